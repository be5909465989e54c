//! A decapsulator's settings, and how its two programs are loaded with them. They count in one map, and look
//! for addresses in the same tries.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use libbpf_rs::OpenMapMut;

use super::Decap;
use super::TC_NAME;
use crate::attach::Attachments;
use crate::environment;
use crate::error::Result;
use crate::kernel;
use crate::kernel::constants;
use crate::kernel::kernel_error;
use crate::kernel::load_error;
use crate::maps::PrefixTrie;
use crate::skel::decap::DecapSkelBuilder;
use crate::skel::decap_tc::DecapTcSkelBuilder;
use crate::sys::map::PerCpuArray;
use crate::sys::object;
use crate::sys::object::into_io;
use crate::sys::object::numbered;
use crate::types::Prefix;
use crate::types::check_host;

/// Settings of a decapsulator.
#[derive(Clone, Debug)]
pub struct DecapBuilder {
    destination_v4: Option<Ipv4Addr>,
    destination_v6: Option<Ipv6Addr>,
    sources: BTreeSet<Prefix>,
    destinations: BTreeSet<Prefix>,
    pub(super) gue_port: u16,
    server_id: u32,
}

impl Default for DecapBuilder {
    fn default() -> Self {
        Self {
            destination_v4: None,
            destination_v6: None,
            sources: BTreeSet::new(),
            destinations: BTreeSet::new(),
            gue_port: 6080,
            server_id: 0,
        }
    }
}

impl DecapBuilder {
    /// Strips only tunnels that end at this address, one per family; without any, tunnels to
    /// whatever address reaches the interface.
    ///
    /// As soon as one is set, tunnels that end elsewhere are passed on untouched, those of a
    /// family without an address included.
    #[doc(alias = "strictDestination")]
    pub fn destination(mut self, address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.destination_v4 = Some(v4),
            IpAddr::V6(v6) => self.destination_v6 = Some(v6),
        }
        self
    }

    /// Strips only tunnels that come from addresses in these prefixes, of both families: others are
    /// dropped and counted ([`DecapCounters::drop_source`](crate::stats::DecapCounters::drop_source)).
    /// Calls add up. Without any prefix a tunnel may come from anywhere.
    ///
    /// They are the outer sources of the balancers: [`Builder::ipip_source_v4`](crate::Builder::ipip_source_v4)
    /// and [`ipip_source_v6`](crate::Builder::ipip_source_v6) with IP in IP, the balancers' own addresses
    /// with GUE and for their health checks. An address can be made up by anybody whom the network does
    /// not keep from it: filter these sources at its edge.
    pub fn allow_sources(mut self, prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        self.sources.extend(prefixes);
        self
    }

    /// Strips only tunnels with packets to addresses in these prefixes, of both families: others are
    /// dropped and counted
    /// ([`DecapCounters::drop_destination`](crate::stats::DecapCounters::drop_destination)). Calls add
    /// up. Without any prefix a packet may go anywhere.
    ///
    /// They are the addresses of the VIPs that this backend serves.
    pub fn allow_destinations(mut self, prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        self.destinations.extend(prefixes);
        self
    }

    /// The UDP port that GUE comes to; what comes to it is taken for GUE if it looks like an IPv4 or
    /// IPv6 packet. 0: GUE is not stripped. Default: 6080, as of
    /// [`Builder::gue_port`](crate::Builder::gue_port).
    pub fn gue_port(mut self, port: u16) -> Self {
        self.gue_port = port;
        self
    }

    /// The server id that this backend has in TCP options (see
    /// [`ServerIdOption`](crate::ServerIdOption)): packets other than SYNs that carry one are counted, and
    /// those among them that are meant for another server. 0, the default: they are not looked at.
    ///
    /// It is fixed at load. After [`ServerIdOption::set_id`](crate::ServerIdOption::set_id) connections with the new id
    /// count as another server's
    /// ([`DecapCounters::other_server_ids`](crate::stats::DecapCounters::other_server_ids)) until a decapsulator with
    /// that id is loaded, and then those that still carry the old one. Only the counters are concerned.
    #[doc(alias = "tpr")]
    pub fn server_id(mut self, id: u32) -> Self {
        self.server_id = id;
        self
    }

    /// Loads the decapsulator. Needs no interface and attaches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`](crate::Error::InvalidAddress) for a destination that no packet can
    /// have; [`Error::KernelTooOld`](crate::Error::KernelTooOld),
    /// [`Error::BpfUnavailable`](crate::Error::BpfUnavailable),
    /// [`Error::Privilege`](crate::Error::Privilege); [`Error::Verifier`](crate::Error::Verifier)
    /// if the kernel rejects the program; [`Error::Kernel`](crate::Error::Kernel).
    pub fn load(self) -> Result<Decap> {
        for address in [
            self.destination_v4.map(IpAddr::V4),
            self.destination_v6.map(IpAddr::V6),
        ]
        .into_iter()
        .flatten()
        {
            check_host(address)?;
        }
        environment::check_kernel()?;
        let mut storage = MaybeUninit::uninit();
        let mut open = kernel::open(DecapSkelBuilder::default(), &mut storage)?;
        write_constants!(
            self,
            constants("decap", open.maps.rodata_data.as_deref_mut())?
        );
        make_room(&mut open.maps.allowed_sources, &self.sources)?;
        make_room(&mut open.maps.allowed_destinations, &self.destinations)?;
        let skel =
            object::load(open, &["decap"]).map_err(|refused| load_error("decap", refused))?;
        let take_over = || -> std::io::Result<_> {
            let own = |of: BorrowedFd<'_>| of.try_clone_to_owned();
            Ok((
                PerCpuArray::new(own(skel.maps.decap_counters.as_fd())?)?,
                PrefixTrie::new(own(skel.maps.allowed_sources.as_fd())?)?,
                PrefixTrie::new(own(skel.maps.allowed_destinations.as_fd())?)?,
                own(skel.progs.decap.as_fd())?,
            ))
        };
        let (counters, sources, destinations, program) =
            take_over().map_err(|error| kernel_error("take over", "decap", error))?;
        fill("allowed_sources", &sources, &self.sources)?;
        fill("allowed_destinations", &destinations, &self.destinations)?;
        Ok(Decap {
            attachments: Attachments::default(),
            tc_attachments: Attachments::default(),
            settings: self,
            tc_program: None,
            counters,
            sources,
            destinations,
            program,
        })
    }
}

/// Loads the program for tc, which has its counters and prefixes with the other one.
pub(super) fn load_tc(decap: &Decap) -> Result<OwnedFd> {
    let mut storage = MaybeUninit::uninit();
    let mut open = kernel::open(DecapTcSkelBuilder::default(), &mut storage)?;
    write_constants!(
        decap.settings,
        constants(TC_NAME, open.maps.rodata_data.as_deref_mut())?
    );
    let maps = &mut open.maps;
    share(
        "decap_counters",
        &mut maps.decap_counters,
        decap.counters.as_fd(),
    )?;
    share(
        "allowed_sources",
        &mut maps.allowed_sources,
        decap.sources.as_fd(),
    )?;
    let destinations = decap.destinations.as_fd();
    share(
        "allowed_destinations",
        &mut maps.allowed_destinations,
        destinations,
    )?;
    let skel = object::load(open, &[TC_NAME]).map_err(|refused| load_error(TC_NAME, refused))?;
    let program = skel.progs.decap_tc.as_fd().try_clone_to_owned();
    program.map_err(|error| kernel_error("take over", TC_NAME, error))
}

/// Writes settings into the constants of either program: two types that are made of one declaration.
macro_rules! write_constants {
    ($settings:expr, $constants:expr) => {{
        let (settings, constants) = (&$settings, $constants);
        let strict = settings.destination_v4.is_some() || settings.destination_v6.is_some();
        constants.strict = strict.into();
        let v4 = settings.destination_v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
        constants.destination_v4 = u32::from_ne_bytes(v4.octets());
        let v6 = settings.destination_v6.unwrap_or(Ipv6Addr::UNSPECIFIED);
        constants.destination_v6 = words(v6.octets());
        constants.limit_sources = (!settings.sources.is_empty()).into();
        constants.limit_destinations = (!settings.destinations.is_empty()).into();
        constants.gue_port = settings.gue_port;
        constants.own_server_id = settings.server_id;
    }};
}
use write_constants;

/// Four 32-bit words as they lie in memory.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|word| {
        let at = word * 4;
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    })
}

/// Room for these prefixes; a map of none cannot be.
fn make_room(map: &mut OpenMapMut<'_>, prefixes: &BTreeSet<Prefix>) -> Result<()> {
    let entries = u32::try_from(prefixes.len()).unwrap_or(u32::MAX).max(1);
    let sized = map.set_max_entries(entries);
    sized.map_err(|error| kernel_error("set the sizes of", "the maps", into_io(error)))
}

fn share(name: &'static str, map: &mut OpenMapMut<'_>, with: BorrowedFd<'_>) -> Result<()> {
    let shared = numbered(|| map.reuse_fd(with));
    shared.map_err(|error| kernel_error("share", name, error))
}

fn fill(name: &'static str, trie: &PrefixTrie, prefixes: &BTreeSet<Prefix>) -> Result<()> {
    let prefixes: Vec<Prefix> = prefixes.iter().copied().collect();
    let filled = trie.insert(&prefixes);
    filled.map_err(|error| kernel_error("write prefixes into", name, error))
}
