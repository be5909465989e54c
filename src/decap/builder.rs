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
///
/// ```no_run
/// use katran::Decap;
///
/// let decap = Decap::builder()
///     .destination("198.51.100.1".parse().unwrap())
///     .allow_sources(["172.16.0.0/16".parse()?])
///     .allow_destinations(["203.0.113.0/24".parse()?])
///     .pin("/sys/fs/bpf/katran_decap")
///     .load()?;
/// # Ok::<(), katran::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecapBuilder {
    pub(super) destination_v4: Option<Ipv4Addr>,
    pub(super) destination_v6: Option<Ipv6Addr>,
    pub(super) sources: BTreeSet<Prefix>,
    pub(super) destinations: BTreeSet<Prefix>,
    pub(super) gue_port: u16,
    pub(super) server_id: u32,
    /// Not a setting of the decapsulator, but its place.
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

/// # Settings
impl DecapBuilder {
    /// Strips only tunnels that end at this address, one per family. By default tunnels to any
    /// address that reaches the interface.
    ///
    /// Once one is set, other tunnels pass untouched, including all of a family without an address.
    #[doc(alias = "strictDestination")]
    pub fn destination(mut self, address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.destination_v4 = Some(v4),
            IpAddr::V6(v6) => self.destination_v6 = Some(v6),
        }
        self
    }

    /// Strips only tunnels that come from addresses in these prefixes, of both families; others are
    /// dropped and counted
    /// ([`DecapCounters::drop_source`](crate::stats::DecapCounters::drop_source)). Calls add up. By
    /// default from anywhere.
    ///
    /// Set the outer sources of the balancers:
    /// [`Builder::ipip_source_v4`](crate::Builder::ipip_source_v4) and
    /// [`ipip_source_v6`](crate::Builder::ipip_source_v6) with IP in IP, the balancers' own
    /// addresses with GUE and for their health checks. Addresses can be forged wherever the network
    /// does not prevent it: filter these sources at its edge.
    pub fn allow_sources(mut self, prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        self.sources.extend(prefixes);
        self
    }

    /// Strips only tunnels with packets to addresses in these prefixes, of both families; others
    /// are dropped and counted
    /// ([`DecapCounters::drop_destination`](crate::stats::DecapCounters::drop_destination)). Calls
    /// add up. By default to anywhere.
    ///
    /// Set the addresses of the VIPs that this backend serves.
    pub fn allow_destinations(mut self, prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        self.destinations.extend(prefixes);
        self
    }

    /// The UDP port for GUE; a datagram to it counts as GUE if its payload looks like an IPv4 or
    /// IPv6 packet. 0: GUE is not stripped. Default: 6080, as
    /// [`Builder::gue_port`](crate::Builder::gue_port).
    pub fn gue_port(mut self, port: u16) -> Self {
        self.gue_port = port;
        self
    }

    /// This backend's server id in TCP options (see [`ServerIdOption`](crate::ServerIdOption)):
    /// counts the packets, except SYNs, that carry an id, and those among them for another server.
    /// 0, the default: they are not looked at. It affects only the counters.
    ///
    /// After [`ServerIdOption::set_id`](crate::ServerIdOption::set_id) connections with the new id
    /// count as another server's
    /// ([`DecapCounters::other_server_ids`](crate::stats::DecapCounters::other_server_ids)) until
    /// [`Decap::reload`](crate::Decap::reload) with that id, and then those with the old one.
    #[doc(alias = "tpr")]
    pub fn server_id(mut self, id: u32) -> Self {
        self.server_id = id;
        self
    }

    /// Pins the decapsulator in a directory, so that it outlives the handle and the process.
    /// [`load`](Self::load) pins programs and maps, and later calls what they attach. It keeps
    /// stripping tunnels and counting until [`Decap::remove`](crate::Decap::remove) or
    /// [`katran::remove`](crate::remove).
    ///
    /// The rules for the directory are those of [`Builder::pin`](crate::Builder::pin); each
    /// decapsulator needs its own, and one process at a time owns it.
    ///
    /// Default: none; the decapsulator ends with its handle.
    pub fn pin(mut self, directory: impl AsRef<Path>) -> Self {
        self.pin = Some(directory.as_ref().to_owned());
        self
    }

    /// Checks that packets can have these destinations.
    pub(super) fn check(&self) -> Result<()> {
        let v4 = self.destination_v4.map(IpAddr::V4);
        let v6 = self.destination_v6.map(IpAddr::V6);
        v4.into_iter().chain(v6).try_for_each(check_host)
    }
}
