//! A decapsulator's settings, and what begins with them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::Path;
use std::path::PathBuf;

use super::Decap;
use super::parts::Parts;
use super::pinned::adopt_whole;
use crate::environment;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Start;
use crate::pins::Home;
use crate::pins::Kind;
use crate::pins::remove_if_there;
use crate::types::Prefix;
use crate::types::check_host;

/// Settings of a decapsulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecapBuilder {
    pub(super) destination_v4: Option<Ipv4Addr>,
    pub(super) destination_v6: Option<Ipv6Addr>,
    pub(super) sources: BTreeSet<Prefix>,
    pub(super) destinations: BTreeSet<Prefix>,
    pub(super) gue_port: u16,
    pub(super) server_id: u32,
    /// No setting of the decapsulator, but where it is to be.
    pub(super) pin: Option<PathBuf>,
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
            pin: None,
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
    /// After [`ServerIdOption::set_id`](crate::ServerIdOption::set_id) connections with the new id
    /// count as another server's
    /// ([`DecapCounters::other_server_ids`](crate::stats::DecapCounters::other_server_ids)) until [`Decap::reload`] says
    /// that id, and then those that still carry the old one. Only the counters are concerned.
    #[doc(alias = "tpr")]
    pub fn server_id(mut self, id: u32) -> Self {
        self.server_id = id;
        self
    }

    /// Pins the decapsulator in a directory, so that it outlives the handle and the process: programs and maps at
    /// [`load`](Self::load), and what is attached when it is attached. Tunnels are stripped, and counted, until
    /// [`Decap::remove`] or [`katran::remove`](crate::remove).
    ///
    /// The directory is one as for [`Builder::pin`](crate::Builder::pin), of its own: one process at a time has it.
    ///
    /// Default: none: the decapsulator ends with its handle.
    pub fn pin(mut self, directory: impl AsRef<Path>) -> Self {
        self.pin = Some(directory.as_ref().to_owned());
        self
    }

    /// Loads the decapsulator. Needs no interface and attaches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`](crate::Error::InvalidAddress) for a destination that no packet can
    /// have; [`Error::KernelTooOld`](crate::Error::KernelTooOld),
    /// [`Error::BpfUnavailable`](crate::Error::BpfUnavailable),
    /// [`Error::Privilege`](crate::Error::Privilege); [`Error::Verifier`](crate::Error::Verifier)
    /// if the kernel rejects the program; [`Error::Kernel`](crate::Error::Kernel). With [`pin`](Self::pin) also
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) if something is pinned in the directory (see
    /// [`adopt`](Self::adopt)), and those of a directory, as in [`Builder::load`](crate::Builder::load). Nothing stays in the
    /// kernel then, and no directory.
    pub fn load(mut self) -> Result<Decap> {
        self.check()?;
        environment::check_kernel()?;
        let directory = self.pin.take();
        let home = directory.map(|path| Home::claim(&path, Kind::Decapsulator));
        let home = home.transpose()?;
        match (Parts::load(&self, None), home) {
            (Ok(parts), Some(home)) => Decap::new(self, parts).settle_in(home),
            (Err(error), Some(home)) => {
                home.give_up();
                Err(error)
            }
            (loaded, None) => loaded.map(|parts| Decap::new(self, parts)),
        }
    }

    /// Goes on with the decapsulator that is pinned in the directory of [`pin`](Self::pin), whose process is gone: with
    /// its settings, not with those given here ([`Decap::reload`] changes them), its attachments and its counters.
    /// Programs of this version take the place of those that are attached, between two packets; links stay.
    ///
    /// An interface that was removed meanwhile has taken its attachment with it: [`Decap::interfaces`] and
    /// [`Decap::tc_interfaces`] say so, and [`Decap::reattach`] puts it back.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if nothing whole is pinned there;
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if it is something else;
    /// [`Error::Busy`](crate::Error::Busy); [`Error::Unsupported`](crate::Error::Unsupported) if another version of the crate
    /// has pinned it in another way; otherwise as [`load`](Self::load). What is there works on.
    pub fn adopt(self) -> Result<Decap> {
        let directory = self.directory_to_adopt()?;
        let adopted = adopt_whole(&directory)?;
        adopted
            .map(|(decap, _)| decap)
            .ok_or_else(|| Kind::Decapsulator.missing(&directory))
    }

    /// [Adopts](Self::adopt) what is pinned, or [loads](Self::load) if nothing is; what is half made is removed before.
    ///
    /// ```no_run
    /// use katran::Decap;
    ///
    /// let settings = Decap::builder().allow_destinations(["203.0.113.1/32".parse()?]);
    /// let (mut decap, _) = settings.clone().pin("/sys/fs/bpf/katran_decap").adopt_or_load()?;
    /// decap.reload(settings)?; // nothing, if they are those in force
    /// # Ok::<(), katran::Error>(())
    /// ```
    ///
    /// # Errors
    /// As these.
    pub fn adopt_or_load(self) -> Result<(Decap, Start)> {
        let directory = self.directory_to_adopt()?;
        if let Some(adopted) = adopt_whole(&directory)? {
            return Ok(adopted);
        }
        remove_if_there(&directory)?;
        self.load().map(|decap| (decap, Start::Loaded))
    }

    fn directory_to_adopt(&self) -> Result<PathBuf> {
        self.pin.clone().ok_or_else(|| Error::InvalidConfig {
            setting: "pin",
            value: "(none)".to_owned(),
            reason: "it says which decapsulator to go on with".to_owned(),
        })
    }

    /// Whether packets can have the destinations.
    pub(super) fn check(&self) -> Result<()> {
        let v4 = self.destination_v4.map(IpAddr::V4);
        let v6 = self.destination_v6.map(IpAddr::V6);
        v4.into_iter().chain(v6).try_for_each(check_host)
    }
}
