//! A decapsulator's settings.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Result;
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
    /// ([`DecapCounters::other_server_ids`](crate::stats::DecapCounters::other_server_ids)) until [`Decap::reload`](crate::Decap::reload) says
    /// that id, and then those that still carry the old one. Only the counters are concerned.
    #[doc(alias = "tpr")]
    pub fn server_id(mut self, id: u32) -> Self {
        self.server_id = id;
        self
    }

    /// Pins the decapsulator in a directory, so that it outlives the handle and the process: programs and maps at
    /// [`load`](Self::load), and what is attached when it is attached. Tunnels are stripped, and counted, until
    /// [`Decap::remove`](crate::Decap::remove) or [`katran::remove`](crate::remove).
    ///
    /// The directory is one as for [`Builder::pin`](crate::Builder::pin), of its own: one process at a time has it.
    ///
    /// Default: none: the decapsulator ends with its handle.
    pub fn pin(mut self, directory: impl AsRef<Path>) -> Self {
        self.pin = Some(directory.as_ref().to_owned());
        self
    }

    /// Whether packets can have the destinations.
    pub(super) fn check(&self) -> Result<()> {
        let v4 = self.destination_v4.map(IpAddr::V4);
        let v6 = self.destination_v6.map(IpAddr::V6);
        v4.into_iter().chain(v6).try_for_each(check_host)
    }
}
