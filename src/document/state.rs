//! The state of a balancer as a value: written down, compared, applied.
//!
//! What is not said is left alone in `[balancer]` and is the default in a VIP: a VIP's flags,
//! reals, weights and real flags are always said in full.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Builder;
use crate::config::Config;
use crate::config::Features;
use crate::error::Error;
use crate::error::Result;
use crate::types::DecapMode;
use crate::types::Encapsulation;
use crate::types::FlowTableKind;
use crate::types::Gateway;
use crate::types::HashFunction;
use crate::types::MacAddr;
use crate::types::NextHops;
use crate::types::Real;
use crate::types::RealFlags;
use crate::types::ServerId;
use crate::types::SourceRoute;
use crate::types::TcHook;
use crate::types::Vip;
use crate::types::VipFlags;

/// Everything that a balancer can be told, for [`Katran::apply`](crate::Katran::apply).
///
/// ```
/// use katran::Real;
/// use katran::State;
/// use katran::Vip;
/// use katran::state::VipState;
///
/// let mut vip = VipState::new(Vip::tcp("203.0.113.1:443".parse().unwrap()));
/// vip.reals.push(Real::new("198.51.100.1".parse().unwrap()).weight(3));
/// let mut state = State::default();
/// state.vips.push(vip);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct State {
    /// The settings; without them, whatever the balancer was loaded with.
    pub balancer: Option<BalancerState>,
    /// All VIPs; those that are not here are removed.
    pub vips: Vec<VipState>,
    /// All server ids; those that are not here are removed.
    pub server_ids: Vec<ServerIdState>,
    /// All source routes; those that are not here are removed.
    pub source_routes: Vec<SourceRoute>,
    /// All addresses at which tunnels may end; those that are not here are removed.
    pub decap: Vec<DecapState>,
    /// All marks of health checks and their reals; those that are not here are unmapped.
    pub marks: Vec<MarkState>,
    /// All matches of health checks; those that are not here are removed.
    pub probe_matches: Vec<ProbeMatchState>,
    /// What probes are counted for; the others are not any more.
    pub probes: Vec<Vip>,
}

/// One mark of a [`State`]; see [`Katran::map_mark`](crate::Katran::map_mark).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct MarkState {
    /// The mark of packets.
    pub mark: u32,
    /// The real that they go to.
    pub real: IpAddr,
}

impl MarkState {
    /// Packets with this mark go to this real.
    pub fn new(mark: u32, real: IpAddr) -> Self {
        Self {
            mark,
            real: real.to_canonical(),
        }
    }
}

/// One match of a [`State`], other than by a mark: probes from or to an address and port (0: any).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct ProbeMatchState {
    /// By what probes are told.
    pub by: ProbeMatch,
    /// The real that they go to.
    pub real: IpAddr,
}

impl ProbeMatchState {
    /// Such packets go to this real.
    pub fn new(by: ProbeMatch, real: IpAddr) -> Self {
        Self {
            by: by.canonical(),
            real: real.to_canonical(),
        }
    }
}

/// By what a probe is told, if not by its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeMatch {
    /// See [`Katran::match_destination`](crate::Katran::match_destination).
    Destination(SocketAddr),
    /// See [`Katran::match_source`](crate::Katran::match_source).
    Source(SocketAddr),
}

impl ProbeMatch {
    pub(crate) fn canonical(self) -> Self {
        let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port()).into();
        match self {
            Self::Destination(address) => Self::Destination(plain(address)),
            Self::Source(address) => Self::Source(plain(address)),
        }
    }
}

impl fmt::Display for ProbeMatch {
    /// Such as `to 203.0.113.1:443` and `from 10.0.0.9:0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destination(address) => write!(f, "to {address}"),
            Self::Source(address) => write!(f, "from {address}"),
        }
    }
}

/// One address of a [`State`] at which tunnels may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct DecapState {
    /// The address.
    pub address: IpAddr,
    /// What becomes of what was in the tunnel.
    pub mode: DecapMode,
}

impl DecapState {
    /// Tunnels may end at this address.
    pub fn new(address: IpAddr, mode: DecapMode) -> Self {
        Self {
            address: address.to_canonical(),
            mode,
        }
    }
}

/// One server id of a [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct ServerIdState {
    /// The id and its real.
    pub id: ServerId,
    /// Whether packets are routed by it; see
    /// [`Katran::invalidate_server_ids`](crate::Katran::invalidate_server_ids).
    pub valid: bool,
}

impl ServerIdState {
    /// An id that packets are routed by.
    pub fn new(id: ServerId) -> Self {
        Self { id, valid: true }
    }
}

/// The settings of a balancer; what is `None` keeps its default at load and its value after.
///
/// Units and ranges are those of [`Builder`]. After load, only the gateway, the source
/// addresses and the features can change; any other difference is
/// [`Error::LoadTimeSetting`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct BalancerState {
    /// See [`Builder::gateway`].
    pub gateway_mac: Option<Gateway>,
    /// See [`Builder::gateway_mac_v6`].
    pub gateway_mac_v6: Option<MacAddr>,
    /// See [`Builder::next_hops`].
    pub next_hops: Option<NextHops>,
    /// See [`Builder::encapsulation`].
    pub encapsulation: Option<Encapsulation>,
    /// See [`Builder::features`]. Exactly these are on.
    pub features: Option<Features>,
    /// See [`Builder::source_v4`].
    pub source_v4: Option<Ipv4Addr>,
    /// See [`Builder::source_v6`].
    pub source_v6: Option<Ipv6Addr>,
    /// See [`Builder::ipip_source_v4`].
    pub ipip_source_v4: Option<Ipv4Addr>,
    /// See [`Builder::ipip_source_v6`].
    pub ipip_source_v6: Option<Ipv6Addr>,
    /// See [`Builder::gue_port`].
    pub gue_port: Option<u16>,
    /// See [`Builder::max_frame`].
    pub max_frame: Option<u32>,
    /// See [`Builder::frags`].
    pub frags: Option<bool>,
    /// See [`Builder::max_vips`].
    pub max_vips: Option<u32>,
    /// See [`Builder::max_reals`].
    pub max_reals: Option<u32>,
    /// See [`Builder::ring_size`].
    pub ring_size: Option<u32>,
    /// See [`Builder::hash_function`].
    pub hash_function: Option<HashFunction>,
    /// See [`Builder::flow_table`].
    pub flow_table: Option<FlowTableKind>,
    /// See [`Builder::flow_table_size`].
    pub flow_table_size: Option<u64>,
    /// See [`Builder::forwarding_cpus`].
    pub forwarding_cpus: Option<Vec<u32>>,
    /// See [`Builder::numa_nodes`].
    pub numa_nodes: Option<Vec<u32>>,
    /// See [`Builder::flood_threshold`].
    pub flood_threshold: Option<u32>,
    /// See [`Builder::udp_timeout`].
    pub udp_timeout: Option<Duration>,
    /// See [`Builder::global_flow_table_size`].
    pub global_flow_table_size: Option<u32>,
    /// See [`Builder::max_source_routes`].
    pub max_source_routes: Option<u32>,
    /// See [`Builder::max_decap`].
    pub max_decap: Option<u32>,
    /// See [`Builder::max_server_ids`].
    pub max_server_ids: Option<u32>,
    /// See [`Builder::healthcheck_interface`].
    pub healthcheck_interface: Option<String>,
    /// See [`Builder::healthcheck_priority`].
    pub healthcheck_priority: Option<u16>,
    /// See [`Builder::healthcheck_max_packet`].
    pub healthcheck_max_packet: Option<u32>,
    /// See [`Builder::healthcheck_hook`].
    pub healthcheck_hook: Option<TcHook>,
    /// See [`Builder::event_buffer`].
    pub event_buffer: Option<u32>,
}

/// One VIP of a [`State`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VipState {
    /// Its address, port and protocol.
    pub vip: Vip,
    /// Its flags, all of them.
    pub flags: VipFlags,
    /// How its ring is filled; `None`: as [`Builder::hash_function`] says.
    pub hash: Option<HashFunction>,
    /// Its reals, all of them. Flags that are not given are none. A real that several VIPs name
    /// has the same flags in all of them.
    pub reals: Vec<Real>,
    /// Those of its reals that are down; see
    /// [`Katran::mark_down`](crate::Katran::mark_down).
    pub down: Vec<IpAddr>,
}

impl VipState {
    /// A VIP without flags and reals, with the default hash function.
    pub fn new(vip: Vip) -> Self {
        Self {
            vip,
            flags: VipFlags::empty(),
            hash: None,
            reals: Vec::new(),
            down: Vec::new(),
        }
    }
}

/// A place in a state: indices of its lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Vip(usize),
    Real { vip: usize, real: usize },
    ServerId(usize),
    SourceRoute(usize),
    Decap(usize),
    Mark(usize),
    ProbeMatch(usize),
    Probe(usize),
}

/// What makes a state contradict itself, and where.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Conflict {
    pub(super) place: Place,
    pub(super) message: String,
}

impl State {
    /// The settings of `[balancer]`, ready to be loaded; the rest keeps its default.
    ///
    /// # Errors
    /// [`Error::Document`] if the state contradicts itself (see
    /// [`Katran::apply`](crate::Katran::apply)), so that it is known before anything is loaded.
    /// Ranges are checked at load.
    pub fn builder(&self) -> Result<Builder> {
        self.check()?;
        Ok(self
            .balancer
            .as_ref()
            .map(BalancerState::builder)
            .unwrap_or_default())
    }

    /// Refuses a state that contradicts itself.
    pub(crate) fn check(&self) -> Result<()> {
        match self.conflict() {
            None => Ok(()),
            Some(Conflict { message, .. }) => Err(Error::Document { message }),
        }
    }

    /// The first contradiction: something that is listed twice, a real with different flags in two
    /// VIPs, or a mark that cannot be.
    pub(super) fn conflict(&self) -> Option<Conflict> {
        let mut vips = BTreeSet::new();
        let mut flags = BTreeMap::new();
        for (index, state) in self.vips.iter().enumerate() {
            let vip = &state.vip;
            if !vips.insert(vip) {
                return Some(Conflict {
                    place: Place::Vip(index),
                    message: format!("VIP {vip} is listed twice"),
                });
            }
            let mut reals = BTreeSet::new();
            for (real_index, real) in state.reals.iter().enumerate() {
                let address = real.address();
                let conflict = |message| {
                    let place = Place::Real {
                        vip: index,
                        real: real_index,
                    };
                    Some(Conflict { place, message })
                };
                if !reals.insert(address) {
                    return conflict(format!("real {address} is listed twice in VIP {vip}"));
                }
                let (first, known) = flags.entry(address).or_insert((vip, stated_flags(real)));
                if *known != stated_flags(real) {
                    return conflict(format!(
                        "real {address} has other flags in VIP {vip} than in VIP {first}: they \
                         are the real's, so it must be listed with the same everywhere"
                    ));
                }
            }
            if let Some(down) = state.down.iter().find(|down| !reals.contains(down)) {
                return Some(Conflict {
                    place: Place::Vip(index),
                    message: format!("{down} is down, but is no real of VIP {vip}"),
                });
            }
        }
        let ids = self.server_ids.iter().map(|state| state.id.id());
        let routes = self.source_routes.iter().map(|route| route.prefix());
        let ends = self.decap.iter().map(|end| end.address);
        twice(ids, "server id", Place::ServerId)
            .or_else(|| twice(routes, "source route", Place::SourceRoute))
            .or_else(|| twice(ends, "decap address", Place::Decap))
            .or_else(|| {
                let marks = self.marks.iter().map(|state| state.mark);
                twice(marks, "mark", Place::Mark)
            })
            .or_else(|| {
                let matches = self.probe_matches.iter().map(|state| state.by);
                twice(matches, "match of probes", Place::ProbeMatch)
            })
            .or_else(|| twice(self.probes.iter().copied(), "probe", Place::Probe))
    }

    /// The real of every server id and source route.
    pub(crate) fn names(&self) -> impl Iterator<Item = IpAddr> {
        let ids = self.server_ids.iter().map(|state| state.id.real());
        ids.chain(self.source_routes.iter().map(|route| route.real()))
    }
}

/// The first of these that is listed a second time.
fn twice<K: Copy + Ord + fmt::Display>(
    keys: impl Iterator<Item = K>,
    what: &str,
    place: impl Fn(usize) -> Place,
) -> Option<Conflict> {
    let mut seen = BTreeSet::new();
    let (index, key) = keys.enumerate().find(|(_, key)| !seen.insert(*key))?;
    Some(Conflict {
        place: place(index),
        message: format!("{what} {key} is listed twice"),
    })
}

/// The flags that a real of a state has; its family's bit is not its affair.
pub(crate) fn stated_flags(real: &Real) -> RealFlags {
    real.get_flags()
        .unwrap_or_default()
        .difference(RealFlags::IPV6)
}

impl BalancerState {
    /// The settings in force.
    pub(crate) fn of(config: &Config) -> Self {
        let cpus = &config.forwarding_cpus;
        Self {
            gateway_mac: Some(config.gateway),
            gateway_mac_v6: config.gateway_mac_v6,
            next_hops: Some(config.next_hops),
            encapsulation: Some(config.encapsulation),
            features: Some(config.features),
            source_v4: config.source_v4,
            source_v6: config.source_v6,
            ipip_source_v4: Some(config.ipip_source_v4),
            ipip_source_v6: Some(config.ipip_source_v6),
            gue_port: Some(config.gue_port),
            max_frame: Some(config.max_frame),
            frags: Some(config.frags),
            max_vips: Some(config.max_vips.into()),
            max_reals: Some(config.max_reals.into()),
            ring_size: Some(config.ring_size),
            hash_function: Some(config.hash_function),
            flow_table: Some(config.flow_table),
            flow_table_size: Some(config.flow_table_size),
            forwarding_cpus: Some(cpus.iter().map(|placed| placed.cpu).collect()),
            numa_nodes: cpus.iter().map(|placed| placed.numa_node).collect(),
            flood_threshold: Some(config.flood_threshold),
            udp_timeout: Some(config.udp_timeout),
            global_flow_table_size: Some(config.global_flow_table_size),
            max_source_routes: Some(config.max_source_routes),
            max_decap: Some(config.max_decap),
            max_server_ids: Some(config.max_server_ids),
            healthcheck_interface: config.healthcheck_interface.clone(),
            healthcheck_priority: Some(config.healthcheck_priority),
            healthcheck_max_packet: Some(config.healthcheck_max_packet),
            healthcheck_hook: Some(config.healthcheck_hook),
            event_buffer: Some(config.event_buffer),
        }
    }

    fn builder(&self) -> Builder {
        fn set<T: Clone>(
            builder: Builder,
            value: &Option<T>,
            setter: impl FnOnce(Builder, T) -> Builder,
        ) -> Builder {
            match value {
                Some(value) => setter(builder, value.clone()),
                None => builder,
            }
        }
        let b = Builder::new();
        let b = set(b, &self.gateway_mac, Builder::gateway);
        let b = set(b, &self.gateway_mac_v6, Builder::gateway_mac_v6);
        let b = set(b, &self.next_hops, Builder::next_hops);
        let b = set(b, &self.encapsulation, Builder::encapsulation);
        let b = set(b, &self.features, Builder::features);
        let b = set(b, &self.source_v4, Builder::source_v4);
        let b = set(b, &self.source_v6, Builder::source_v6);
        let b = set(b, &self.ipip_source_v4, Builder::ipip_source_v4);
        let b = set(b, &self.ipip_source_v6, Builder::ipip_source_v6);
        let b = set(b, &self.gue_port, Builder::gue_port);
        let b = set(b, &self.max_frame, Builder::max_frame);
        let b = set(b, &self.frags, Builder::frags);
        let b = set(b, &self.max_vips, Builder::max_vips);
        let b = set(b, &self.max_reals, Builder::max_reals);
        let b = set(b, &self.ring_size, Builder::ring_size);
        let b = set(b, &self.hash_function, Builder::hash_function);
        let b = set(b, &self.flow_table, Builder::flow_table);
        let b = set(b, &self.flow_table_size, Builder::flow_table_size);
        let b = set(b, &self.forwarding_cpus, Builder::forwarding_cpus);
        let b = set(b, &self.numa_nodes, Builder::numa_nodes);
        let b = set(b, &self.flood_threshold, Builder::flood_threshold);
        let b = set(b, &self.udp_timeout, Builder::udp_timeout);
        let b = set(
            b,
            &self.global_flow_table_size,
            Builder::global_flow_table_size,
        );
        let b = set(b, &self.max_source_routes, Builder::max_source_routes);
        let b = set(b, &self.max_decap, Builder::max_decap);
        let b = set(b, &self.max_server_ids, Builder::max_server_ids);
        let b = set(
            b,
            &self.healthcheck_interface,
            Builder::healthcheck_interface,
        );
        let b = set(b, &self.healthcheck_priority, Builder::healthcheck_priority);
        let b = set(
            b,
            &self.healthcheck_max_packet,
            Builder::healthcheck_max_packet,
        );
        let b = set(b, &self.healthcheck_hook, Builder::healthcheck_hook);
        set(b, &self.event_buffer, Builder::event_buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(text: &str, reals: &[Real]) -> VipState {
        VipState {
            reals: reals.to_vec(),
            ..VipState::new(text.parse().unwrap())
        }
    }

    fn message(vips: &[VipState]) -> String {
        let state = State {
            vips: vips.to_vec(),
            ..State::default()
        };
        state.builder().unwrap_err().to_string()
    }

    #[test]
    fn contradictions_are_named() {
        let real = Real::new("198.51.100.1".parse().unwrap());
        let (a, b) = ("203.0.113.1:80/tcp", "203.0.113.2:80/tcp");
        assert!(
            message(&[vip(a, &[]), vip(a, &[])]).contains("203.0.113.1:80/tcp is listed twice")
        );
        assert!(
            message(&[vip(a, &[real, real.weight(2)])]).contains("198.51.100.1 is listed twice")
        );
        let local = real.flags(RealFlags::LOCAL_REAL);
        let text = message(&[vip(a, &[real]), vip(b, &[local])]);
        assert!(text.contains(a) && text.contains(b), "{text}");
    }

    #[test]
    fn settings_survive_the_way_through_config() {
        let builder = Builder::new()
            .gateway_mac(MacAddr::new([2, 0, 0, 0, 0, 1]))
            .ring_size(13)
            .forwarding_cpus([0])
            .source_v4(Ipv4Addr::new(10, 0, 0, 1))
            .healthcheck_interface("eth0")
            .udp_timeout(Duration::from_millis(1500));
        let config = builder.validate().unwrap();
        let state = BalancerState::of(&config);
        assert_eq!(state.builder().validate().unwrap(), config);
    }
}
