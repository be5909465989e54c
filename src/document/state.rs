//! The state of a balancer as a value, which can be written down, compared and applied.
//!
//! A setting of `[balancer]` that a state leaves out stays as it is. Everything else is complete: a
//! VIP has exactly the given flags, reals, weights and real flags.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;

use crate::config::BalancerState;
use crate::config::Builder;
use crate::error::Error;
use crate::error::Result;
use crate::types::DecapMode;
use crate::types::HashFunction;
use crate::types::Real;
use crate::types::RealFlags;
use crate::types::ServerId;
use crate::types::SourceRoute;
use crate::types::Vip;
use crate::types::VipFlags;

/// Everything that a balancer can be configured with, for [`Katran::apply`](crate::Katran::apply).
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
    /// The settings; `None` leaves those that the balancer was loaded with.
    pub balancer: Option<BalancerState>,
    /// All VIPs; others are removed.
    pub vips: Vec<VipState>,
    /// All server ids; others are removed.
    pub server_ids: Vec<ServerIdState>,
    /// All source routes; others are removed.
    pub source_routes: Vec<SourceRoute>,
    /// All addresses at which tunnels end; others are removed.
    pub decap: Vec<DecapState>,
    /// All marks of probes and their reals; others are removed.
    pub marks: Vec<MarkState>,
    /// All probe matches; others are removed.
    pub probe_matches: Vec<ProbeMatchState>,
    /// All VIPs whose probes are counted.
    pub probes: Vec<Vip>,
}

/// One mark of a [`State`]; see [`ProbesMut::map_mark`](crate::probes::ProbesMut::map_mark).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct MarkState {
    /// The mark of packets.
    pub mark: u32,
    /// The real that packets with the mark go to.
    pub real: IpAddr,
}

impl MarkState {
    /// Sends packets with this mark to this real.
    pub fn new(mark: u32, real: IpAddr) -> Self {
        Self {
            mark,
            real: real.to_canonical(),
        }
    }
}

/// One probe match of a [`State`]: an address and port (0: any) that identify probes without a
/// mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct ProbeMatchState {
    /// What identifies the probes.
    pub by: ProbeMatch,
    /// The real that the probes go to.
    pub real: IpAddr,
}

impl ProbeMatchState {
    /// Sends such packets to this real.
    pub fn new(by: ProbeMatch, real: IpAddr) -> Self {
        Self {
            by: by.canonical(),
            real: real.to_canonical(),
        }
    }
}

/// What identifies a probe, other than its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeMatch {
    /// See [`ProbesMut::match_destination`](crate::probes::ProbesMut::match_destination).
    Destination(SocketAddr),
    /// See [`ProbesMut::match_source`](crate::probes::ProbesMut::match_source).
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
    /// For example `to 203.0.113.1:443` and `from 10.0.0.9:0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destination(address) => write!(f, "to {address}"),
            Self::Source(address) => write!(f, "from {address}"),
        }
    }
}

/// One address of a [`State`] at which tunnels end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct DecapState {
    /// The address.
    pub address: IpAddr,
    /// What happens to the inner packets.
    pub mode: DecapMode,
}

impl DecapState {
    /// Lets tunnels end at this address.
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
    /// [`ServerIdsMut::invalidate`](crate::routing::ServerIdsMut::invalidate).
    pub valid: bool,
}

impl ServerIdState {
    /// A server id that routes packets.
    pub fn new(id: ServerId) -> Self {
        Self { id, valid: true }
    }
}

/// One VIP of a [`State`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VipState {
    /// Its address, port and protocol.
    pub vip: Vip,
    /// Its flags, all of them.
    pub flags: VipFlags,
    /// How its ring is filled; `None` for [`Builder::hash_function`].
    pub hash: Option<HashFunction>,
    /// Its reals, all of them, with all their flags. A real of several VIPs must have the same
    /// flags in each.
    pub reals: Vec<Real>,
    /// The reals that are down; see [`Katran::mark_down`](crate::Katran::mark_down).
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

/// A place in a state: the settings, one setting, or an index into a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "only documents need the place of a setting")]
pub(super) enum Place {
    Balancer,
    Setting(&'static str),
    Vip(usize),
    Real { vip: usize, real: usize },
    ServerId(usize),
    SourceRoute(usize),
    Decap(usize),
    Mark(usize),
    ProbeMatch(usize),
    Probe(usize),
}

/// A contradiction in a state, and where it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Conflict {
    pub(super) place: Place,
    /// The place that it contradicts.
    pub(super) other: Option<Place>,
    pub(super) message: String,
}

/// # Loading
impl State {
    /// A builder with the settings of `[balancer]`, and defaults for the rest.
    ///
    /// # Errors
    /// [`Error::Document`] if the state contradicts itself (see
    /// [`Katran::apply`](crate::Katran::apply)). Loading checks the ranges.
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
            Some(Conflict { message, .. }) => Err(Error::Document {
                file: None,
                at: None,
                message,
            }),
        }
    }

    /// The first contradiction: something listed twice, a real with different flags in two VIPs, or
    /// a real that is down but not listed.
    pub(super) fn conflict(&self) -> Option<Conflict> {
        let mut vips = BTreeMap::new();
        let mut flags = BTreeMap::new();
        for (index, state) in self.vips.iter().enumerate() {
            let vip = &state.vip;
            if let Some(first) = vips.insert(vip, index) {
                return Some(Conflict {
                    place: Place::Vip(index),
                    other: Some(Place::Vip(first)),
                    message: format!("VIP {vip} is listed twice"),
                });
            }
            let mut reals = BTreeMap::new();
            for (real_index, real) in state.reals.iter().enumerate() {
                let address = real.address();
                let place = Place::Real {
                    vip: index,
                    real: real_index,
                };
                if let Some(other) = reals.insert(address, place) {
                    return Some(Conflict {
                        place,
                        other: Some(other),
                        message: format!("real {address} is listed twice in VIP {vip}"),
                    });
                }
                let entry = flags.entry(address);
                let (first, other, known) = entry.or_insert((vip, place, stated_flags(real)));
                if *known != stated_flags(real) {
                    return Some(Conflict {
                        place,
                        other: Some(*other),
                        message: format!(
                            "real {address} has different flags in VIP {vip} and in VIP {first}: \
                             give it the same flags in all VIPs"
                        ),
                    });
                }
            }
            if let Some(down) = state.down.iter().find(|down| !reals.contains_key(down)) {
                return Some(Conflict {
                    place: Place::Vip(index),
                    other: None,
                    message: format!("{down} is marked down, but is not a real of VIP {vip}"),
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
                twice(matches, "probe match", Place::ProbeMatch)
            })
            .or_else(|| twice(self.probes.iter().copied(), "probe", Place::Probe))
    }

    /// The real of every server id and source route.
    pub(crate) fn names(&self) -> impl Iterator<Item = IpAddr> {
        let ids = self.server_ids.iter().map(|state| state.id.real());
        ids.chain(self.source_routes.iter().map(|route| route.real()))
    }
}

/// The first one that occurs a second time.
fn twice<K: Copy + Ord + fmt::Display>(
    mut keys: impl Iterator<Item = K> + Clone,
    what: &str,
    place: impl Fn(usize) -> Place,
) -> Option<Conflict> {
    let mut seen = BTreeSet::new();
    let all = keys.clone();
    let (index, key) = all.enumerate().find(|(_, key)| !seen.insert(*key))?;
    let first = keys.position(|other| other == key);
    Some(Conflict {
        place: place(index),
        other: first.map(place),
        message: format!("{what} {key} is listed twice"),
    })
}

/// The flags of a real in a state, without the bit for its family.
pub(crate) fn stated_flags(real: &Real) -> RealFlags {
    real.get_flags()
        .unwrap_or_default()
        .difference(RealFlags::IPV6)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::types::MacAddr;

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
