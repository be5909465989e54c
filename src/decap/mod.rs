//! The backend's end of the tunnel: a program that strips IP in IP and GUE on arrival, so that a
//! backend needs neither the ipip module nor a tunnel interface. It runs in XDP, or in tc where XDP
//! is not available.

mod builder;
mod load;
mod parts;
mod record;

pub use builder::DecapBuilder;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use crate::attach::Attachment;
use crate::attach::Attachments;
use crate::attach::Named;
use crate::attach::OnInterface;
use crate::attach::Onward;
use crate::attach::TcAttachment;
use crate::attach::TcLink;
use crate::attach::TcPlan;
use crate::attach::XdpLink;
use crate::attach::XdpMode;
use crate::attach::put_back;
use crate::diagnose::Backend;
use crate::diagnose::Clients;
use crate::diagnose::Diagnosis;
use crate::diagnose::HostFacts;
use crate::diagnose::InterfaceFacts;
use crate::diagnose::KernelTunnels;
use crate::diagnose::Ours;
use crate::diagnose::WayBack;
use crate::diagnose::has_ipv6;
use crate::diagnose::has_ipv6_address;
use crate::diagnose::judge_backend;
use crate::diagnose::sysctl;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::pins::Home;
use crate::pins::TC_PROGRAM;
use crate::rtnetlink::Requests;
use crate::rtnetlink::Route;
use crate::sys::program;
use crate::sys::tc::Direction;
use crate::types::Family;
use crate::types::TcHook;
use parts::Parts;

const TC_PRIORITY: u16 = 2307;

/// How a backend answers clients of a family whose packets come by an interface.
fn clients(
    requests: &mut Requests,
    family: Family,
    interface: &InterfaceFacts,
) -> io::Result<Clients> {
    if family == Family::V6 && !has_ipv6() {
        return Ok(Clients {
            family,
            way_back: WayBack::None,
            longest: interface.mtu,
        });
    }
    let routes = requests.default_routes(family)?;
    let is_here = |route: &&Route| Some(route.interface) == interface.index;
    let way_back = match routes.first() {
        Some(first) if is_here(&first) => WayBack::Here,
        Some(_) => WayBack::Elsewhere,
        None if requests.has_other_routes(family)? => WayBack::Partial,
        None => WayBack::None,
    };
    let longest = routes.iter().filter(is_here);
    let longest = longest.map(|route| route.mtu.unwrap_or(interface.mtu));
    Ok(Clients {
        family,
        way_back,
        longest: longest.max().unwrap_or(interface.mtu),
    })
}

/// A loaded decapsulator. Dropping it detaches it, unless it is [pinned](DecapBuilder::pin).
///
/// The inner packet reaches the host's network stack as if it had come without a tunnel: the VIP
/// must be an address of the backend, on `lo`. Other packets pass untouched. Congestion marks in
/// the outer header reach the inner packet (RFC 6040).
///
/// **Without [`allow_sources`](DecapBuilder::allow_sources) and
/// [`allow_destinations`](DecapBuilder::allow_destinations) it takes tunnels from anybody to
/// anybody**: a stranger can make packets with forged sources appear behind this host's filters,
/// and be forwarded if it forwards (CVE-2020-10136).
///
/// ```no_run
/// use katran::Decap;
/// use katran::XdpMode;
///
/// // Outer sources of the balancers, and the VIPs.
/// let mut decap = Decap::builder()
///     .allow_sources(["172.16.0.0/16".parse()?, "100::/64".parse()?])
///     .allow_destinations(["203.0.113.1/32".parse()?])
///     .load()?;
/// decap.attach("eth0", XdpMode::Auto)?;
/// println!("{:?}", decap.counters()?);
/// # Ok::<(), katran::Error>(())
/// ```
#[must_use = "a decapsulator is gone when its handle is dropped, unless it is pinned"]
pub struct Decap {
    // Declared, and so dropped, before the counters.
    attachments: Attachments<XdpLink>,
    tc_attachments: Attachments<TcLink>,
    settings: DecapBuilder,
    parts: Parts,
    /// Where it is pinned. Last, because dropping it admits the next owner.
    home: Option<Home>,
}

/// A decapsulator's counters since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DecapCounters {
    /// All frames.
    pub total: u64,
    /// Packets taken out of an IPv4 tunnel (IP in IP).
    pub ipip_v4: u64,
    /// Packets taken out of an IPv6 tunnel (IP in IP).
    pub ipip_v6: u64,
    /// Packets taken out of an IPv4 tunnel (GUE).
    pub gue_v4: u64,
    /// Packets taken out of an IPv6 tunnel (GUE).
    pub gue_v6: u64,
    /// Unwrapped packets with a TCP server id, except SYNs; 0 unless [`DecapBuilder::server_id`] is
    /// set.
    pub server_ids: u64,
    /// Those among them for another server.
    pub other_server_ids: u64,
    /// Tunnelled to another destination: passed untouched.
    pub foreign: u64,
    /// Dropped: tunnelled, and the inner packet exceeds the outer one's payload, or the outer one
    /// exceeds the frame.
    pub drop_truncated: u64,
    /// Dropped: tunnelled, with options in the outer IPv4 header.
    pub drop_options: u64,
    /// Dropped: a fragment of a tunnelled packet.
    pub drop_fragment: u64,
    /// Dropped: the outer header could not be removed.
    pub drop_head: u64,
    /// Dropped: the payload is not an IP packet of the family that the outer header names.
    pub drop_version: u64,
    /// Dropped: a router has marked congestion in the outer header, and the inner packet's ends do
    /// not support such marks (RFC 6040).
    pub drop_ecn: u64,
    /// Dropped: the tunnel comes from outside [`DecapBuilder::allow_sources`].
    pub drop_source: u64,
    /// Dropped: the inner packet goes outside [`DecapBuilder::allow_destinations`].
    pub drop_destination: u64,
}

impl DecapCounters {
    /// Packets dropped for any reason.
    pub fn dropped(&self) -> u64 {
        let broken = self.drop_truncated + self.drop_options + self.drop_fragment + self.drop_head;
        let refused = self.drop_version + self.drop_ecn + self.drop_source + self.drop_destination;
        broken + refused
    }
}

/// # Attaching, counters and diagnosis
impl Decap {
    /// Settings to load a decapsulator with.
    pub fn builder() -> DecapBuilder {
        DecapBuilder::default()
    }

    /// Attaches to an interface of the calling thread's network namespace. It replaces an
    /// attachment to an earlier interface of that name that is gone.
    ///
    /// # Errors
    /// As [`Katran::attach`](crate::Katran::attach).
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<Attachment> {
        let target = self.attachments.check(interface)?;
        self.tc_attachments.check_free(&target)?;
        let mut new = XdpLink::new(self.parts.program.as_fd(), target, mode, Onward::Passed)?;
        if let Some(home) = &self.home {
            // Dropping the new attachment detaches it.
            new.keep_in(home.attached())?;
        }
        self.tc_attachments.forget_former(new.target());
        Ok(self.attachments.add_new(new))
    }

    /// Attaches at tc ingress instead, for hosts where XDP is not available. It costs more, because
    /// the kernel has already made a socket buffer of the packet, but it works with every driver
    /// and beside any XDP program. It shares the [`counters`](Self::counters).
    ///
    /// An inner packet of another family than its tunnel needs Linux 6.3: an older kernel refuses
    /// to strip it, which counts as `drop_head`. With [`TcHook::Clsact`] the filter has priority
    /// 2307. The interface must have Ethernet headers. Tunnels behind one VLAN tag are stripped,
    /// too, because the kernel has removed it by then.
    ///
    /// # Errors
    /// [`Error::NoSuchInterface`]; [`Error::AlreadyExists`] if it is attached there, also by XDP,
    /// because XDP would strip all tunnels first; [`Error::ForeignTcFilter`];
    /// [`Error::Unsupported`] for [`TcHook::Tcx`] before Linux 6.6, and for an interface without
    /// Ethernet headers; [`Error::Privilege`]; [`Error::Verifier`]; [`Error::Kernel`].
    pub fn attach_tc(&mut self, interface: &str, hook: TcHook) -> Result<TcAttachment> {
        let target = self.tc_attachments.check(interface)?;
        self.attachments.check_free(&target)?;
        self.load_tc()?;
        let program = self.parts.tc_program.as_ref();
        let program = program.ok_or_else(|| Error::NotFound {
            what: "the program for tc".to_owned(),
        })?;
        let plan = TcPlan {
            program: program.as_fd(),
            name: TC_PROGRAM,
            direction: Direction::Ingress,
            priority: TC_PRIORITY,
            hook,
            keep_in: self.home.as_ref().map(Home::attached),
        };
        let attached = self.tc_attachments.attach(interface, plan)?;
        self.attachments.forget_former(&target);
        Ok(attached)
    }

    /// Loads the program for tc, unless it is loaded, and pins it before anything is attached.
    fn load_tc(&mut self) -> Result<()> {
        if self.parts.tc_program.is_some() {
            return Ok(());
        }
        let program = self.parts.load_tc(&self.settings)?;
        if let Some(home) = &self.home {
            home.set().pin_program(TC_PROGRAM, program.as_fd())?;
        }
        self.parts.tc_program = Some(program);
        Ok(())
    }

    fn new(settings: DecapBuilder, parts: Parts) -> Self {
        Self {
            attachments: Attachments::default(),
            tc_attachments: Attachments::default(),
            settings,
            parts,
            home: None,
        }
    }

    /// Attaches again what is gone
    /// ([`AttachmentState::Gone`](crate::attachments::AttachmentState::Gone)), where the calling
    /// thread's network namespace has an interface of that name again, and where another XDP
    /// program has replaced this one. An attachment whose interface does not exist yet stays as it
    /// is; see [`interfaces`](Self::interfaces) and [`tc_interfaces`](Self::tc_interfaces).
    ///
    /// # Errors
    /// As [`attach`](Self::attach) and [`attach_tc`](Self::attach_tc): the first failure, after the
    /// library has tried all.
    pub fn reattach(&mut self) -> Result<()> {
        let lost = self.attachments.lost().into_iter();
        let by_xdp = put_back(lost.map(|(name, mode)| self.attach(&name, mode).map(drop)));
        let by_xdp = by_xdp.and(self.attachments.take_back());
        let lost = self.tc_attachments.lost().into_iter();
        let at_tc = put_back(lost.map(|(name, hook)| self.attach_tc(&name, hook).map(drop)));
        by_xdp.and(at_tc)
    }

    /// Detaches from one interface, from XDP or tc.
    ///
    /// `interface` is the current name, if the interface is in the calling thread's network
    /// namespace. Otherwise it is the name that the library last saw, or that you attached by. If
    /// several interfaces had the name, this detaches the one that is gone.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not attached there; [`Error::InvalidConfig`] if several
    /// interfaces had that name and none has it now in the calling thread's network namespace.
    pub fn detach(&mut self, interface: &str) -> Result<()> {
        let named = Named::new(interface);
        let mut seen = self.attachments.seen();
        let by_xdp = seen.len();
        seen.extend(self.tc_attachments.seen());
        match named.choose(&seen)? {
            Some(position) if position >= by_xdp => self.tc_attachments.end(position - by_xdp),
            Some(position) => self.attachments.end(position),
            None => Err(Error::NotFound {
                what: format!("an attachment to {interface}"),
            }),
        }
    }

    /// The interfaces it was attached to at tc ingress, in the order of attaching, each with what
    /// the kernel reports about it.
    pub fn tc_interfaces(&self) -> Vec<TcAttachment> {
        self.tc_attachments.list()
    }

    /// The interfaces it was attached to by XDP, in the order of attaching, each with what the
    /// kernel reports about it.
    pub fn interfaces(&self) -> Vec<Attachment> {
        self.attachments.list()
    }

    /// Looks for what commonly keeps a backend from answering, on an interface of the calling
    /// thread's network namespace, for services at these addresses. It changes nothing. Return
    /// routes and packet lengths are judged for the families of `vips`; if that is empty, for both,
    /// and then a missing default route is only a note. It blocks for a millisecond.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel does not answer. A missing interface is a finding, not an
    /// error.
    pub fn diagnose(&self, interface: &str, vips: &[IpAddr]) -> Result<Diagnosis> {
        let failed = |error| kernel_error("inspect the interface", interface, error);
        let program = self.parts.program.as_fd();
        let of_tc = self.tc_attachments.get(interface);
        let tc_index = of_tc.map(|attached| attached.target().place.index);
        let ours = Ours {
            elsewhere: tc_index.is_some(),
            ..Ours::of(program, &self.attachments, interface)
        };
        let compiled = program::info(program).ok().and_then(|info| info.compiled);
        let facts = InterfaceFacts::gather(interface, ours).map_err(failed)?;
        let mut requests = Requests::new().map_err(failed)?;
        let mut of_host = Vec::new();
        for vip in vips.iter().map(IpAddr::to_canonical) {
            let route = match vip.is_ipv4() || has_ipv6() {
                true => requests.route(vip).map_err(failed)?,
                false => None,
            };
            of_host.push((vip, route.is_some_and(|route| route.local)));
        }
        let mut of_families = Vec::new();
        for family in Family::ALL {
            if vips.is_empty() || of_host.iter().any(|(vip, _)| Family::of(*vip) == family) {
                of_families.push(clients(&mut requests, family, &facts).map_err(failed)?);
            }
        }
        let of_both = |setting: &str| {
            let of = |name: &str| sysctl(&format!("net/ipv4/conf/{name}/{setting}"));
            of("all").max(of(interface))
        };
        Ok(judge_backend(&Backend {
            host: HostFacts::gather(compiled),
            tc_index,
            rp_filter: of_both("rp_filter"),
            clients: of_families,
            outer: match has_ipv6_address(interface) {
                true => Family::V6,
                false => Family::V4,
            },
            arp_ignore: of_both("arp_ignore"),
            arp_announce: of_both("arp_announce"),
            gue: self.settings.gue_port != 0,
            vips: of_host,
            kernel: KernelTunnels::gather(&mut requests).map_err(failed)?,
            interface: facts,
        }))
    }

    /// The program for XDP.
    pub fn program_fd(&self) -> BorrowedFd<'_> {
        self.parts.program.as_fd()
    }

    /// The program for tc, once it was attached.
    pub fn tc_program_fd(&self) -> Option<BorrowedFd<'_>> {
        self.parts.tc_program.as_ref().map(AsFd::as_fd)
    }

    /// The counters since it was loaded.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn counters(&self) -> Result<DecapCounters> {
        let values = self
            .parts
            .counters
            .get(0)
            .map_err(|error| kernel_error("read", "decap_counters", error))?;
        Ok(values
            .iter()
            .fold(DecapCounters::default(), |sum, value| DecapCounters {
                total: sum.total + value.total,
                ipip_v4: sum.ipip_v4 + value.ipip_v4,
                ipip_v6: sum.ipip_v6 + value.ipip_v6,
                gue_v4: sum.gue_v4 + value.gue_v4,
                gue_v6: sum.gue_v6 + value.gue_v6,
                server_ids: sum.server_ids + value.server_ids,
                other_server_ids: sum.other_server_ids + value.other_server_ids,
                foreign: sum.foreign + value.foreign,
                drop_truncated: sum.drop_truncated + value.drop_truncated,
                drop_options: sum.drop_options + value.drop_options,
                drop_fragment: sum.drop_fragment + value.drop_fragment,
                drop_head: sum.drop_head + value.drop_head,
                drop_version: sum.drop_version + value.drop_version,
                drop_ecn: sum.drop_ecn + value.drop_ecn,
                drop_source: sum.drop_source + value.drop_source,
                drop_destination: sum.drop_destination + value.drop_destination,
            }))
    }
}

// Here, so that its methods follow these in the documentation.
mod pinned;

impl fmt::Debug for Decap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decap")
            .field("interfaces", &self.attachments)
            .field("tc_interfaces", &self.tc_attachments)
            .finish_non_exhaustive()
    }
}
