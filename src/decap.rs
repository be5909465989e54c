//! The backend's end of the tunnel: an XDP program that strips IP in IP and GUE on arrival, so that a
//! backend needs neither the ipip module nor a tunnel interface.

use std::fmt;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder;

use crate::Attachment;
use crate::Result;
use crate::XdpMode;
use crate::attach::Attachments;
use crate::environment;
use crate::katran::into_io;
use crate::maps::kernel_error;
use crate::maps::program_error;
use crate::skel::decap::DecapSkelBuilder;
use crate::skel::decap::types::decap_counters;
use crate::sys::map::PerCpuArray;
use crate::sys::object::VerifierLog;
use crate::types::check_host;

/// Settings of a decapsulator.
#[derive(Clone, Debug)]
pub struct DecapBuilder {
    destination_v4: Option<Ipv4Addr>,
    destination_v6: Option<Ipv6Addr>,
    gue_port: u16,
    server_id: u32,
}

impl Default for DecapBuilder {
    fn default() -> Self {
        Self {
            destination_v4: None,
            destination_v6: None,
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

    /// The UDP port that GUE comes to; what comes to it is taken for GUE if it looks like an IPv4 or
    /// IPv6 packet. 0: GUE is not stripped. Default: 6080, as of
    /// [`Builder::gue_port`](crate::Builder::gue_port).
    pub fn gue_port(mut self, port: u16) -> Self {
        self.gue_port = port;
        self
    }

    /// The server id that this backend has in TCP options (see
    /// [`ServerIdOption`](crate::ServerIdOption)): packets that carry one are counted, and those among
    /// them that are meant for another server. 0, the default: they are not looked at.
    #[doc(alias = "tpr")]
    pub fn server_id(mut self, id: u32) -> Self {
        self.server_id = id;
        self
    }

    /// Loads the decapsulator. Needs no interface and attaches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`](crate::Error::InvalidAddress) for a destination that no packet can have;
    /// [`Error::KernelTooOld`](crate::Error::KernelTooOld), [`Error::BpfUnavailable`](crate::Error::BpfUnavailable), [`Error::Privilege`](crate::Error::Privilege);
    /// [`Error::Verifier`](crate::Error::Verifier) if the kernel rejects the program; [`Error::Kernel`](crate::Error::Kernel).
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
        let mut open = DecapSkelBuilder::default()
            .open(&mut storage)
            .map_err(|error| kernel_error("open", "the BPF object", into_io(error)))?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            let strict = self.destination_v4.is_some() || self.destination_v6.is_some();
            constants.strict = strict.into();
            let v4 = self.destination_v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
            constants.destination_v4 = u32::from_ne_bytes(v4.octets());
            let v6 = self.destination_v6.unwrap_or(Ipv6Addr::UNSPECIFIED);
            constants.destination_v6 = words(v6.octets());
            constants.gue_port = self.gue_port;
            constants.own_server_id = self.server_id;
        }
        let log = VerifierLog::of(&mut open.progs.decap);
        let skel = open
            .load()
            .map_err(|error| program_error("decap", &log, into_io(error)))?;
        let take_over = || -> std::io::Result<_> {
            let counters = skel.maps.decap_counters.as_fd().try_clone_to_owned()?;
            let program = skel.progs.decap.as_fd().try_clone_to_owned()?;
            Ok((PerCpuArray::new(counters)?, program))
        };
        let (counters, program) =
            take_over().map_err(|error| kernel_error("take over", "decap", error))?;
        Ok(Decap {
            attachments: Attachments::default(),
            counters,
            program,
        })
    }
}

/// Four 32-bit words as they lie in memory.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|word| {
        let at = word * 4;
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    })
}

/// A loaded decapsulator. Dropping it detaches it.
///
/// The inner packet reaches the host's stack as if it had come without a tunnel: the VIP has to
/// be an address of the backend, on `lo`. Everything that is not tunnelled passes untouched.
///
/// ```no_run
/// use katran::Decap;
/// use katran::XdpMode;
///
/// let mut decap = Decap::builder().load()?;
/// decap.attach("eth0", XdpMode::Auto)?;
/// println!("{:?}", decap.counters()?);
/// # Ok::<(), katran::Error>(())
/// ```
#[must_use = "a decapsulator is gone when its handle is dropped"]
pub struct Decap {
    attachments: Attachments,
    counters: PerCpuArray<decap_counters>,
    program: OwnedFd,
}

/// What a decapsulator has seen since it was loaded.
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
    /// Packets taken out of tunnels that carry a TCP server id; 0 unless
    /// [`DecapBuilder::server_id`] is set.
    pub server_ids: u64,
    /// Those among them that are meant for another server.
    pub other_server_ids: u64,
    /// Tunnelled, but to a destination that is not ours: passed untouched.
    pub foreign: u64,
    /// Dropped: tunnelled, with an inner header that is not complete.
    pub drop_truncated: u64,
    /// Dropped: tunnelled, with options in the outer IPv4 header.
    pub drop_options: u64,
    /// Dropped: a fragment of a tunnelled packet.
    pub drop_fragment: u64,
    /// Dropped: the outer header could not be removed.
    pub drop_head: u64,
}

impl Decap {
    /// Settings to load a decapsulator with.
    pub fn builder() -> DecapBuilder {
        DecapBuilder::default()
    }

    /// Attaches to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// As [`Katran::attach`](crate::Katran::attach).
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<Attachment> {
        self.attachments
            .attach(self.program.as_fd(), interface, mode)
    }

    /// Detaches from one interface, by the name it had when it was attached.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if it is not attached there.
    pub fn detach(&mut self, interface: &str) -> Result<()> {
        self.attachments.detach(interface)
    }

    /// Where it is attached, in the order of attaching.
    pub fn interfaces(&self) -> Vec<Attachment> {
        self.attachments.list().cloned().collect()
    }

    /// The program that is attached.
    pub fn program_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// What it has seen since it was loaded.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel).
    pub fn counters(&self) -> Result<DecapCounters> {
        let values = self
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
            }))
    }
}

impl fmt::Debug for Decap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decap")
            .field("interfaces", &self.attachments)
            .finish_non_exhaustive()
    }
}
