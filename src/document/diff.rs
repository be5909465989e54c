//! The differences between two states.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::state::ProbeMatch;
use super::state::ServerIdState;
use super::state::State;
use super::state::stated_flags;
use crate::config::LiveChange;
use crate::types::DecapMode;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::Prefix;
use crate::types::Vip;

/// What [`Katran::apply`](crate::Katran::apply) changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// New VIPs.
    pub vips_added: Vec<Vip>,
    /// Removed VIPs.
    pub vips_removed: Vec<Vip>,
    /// VIPs with other flags or another hash function.
    pub vips_changed: Vec<Vip>,
    /// Reals added to a VIP, including those of new VIPs.
    pub reals_added: Vec<(Vip, IpAddr)>,
    /// Reals removed from a VIP, including those of removed VIPs.
    pub reals_removed: Vec<(Vip, IpAddr)>,
    /// Reals with another weight in a VIP.
    pub reals_changed: Vec<(Vip, IpAddr)>,
    /// Reals with other flags.
    pub real_flags_changed: Vec<IpAddr>,
    /// Reals that went down or came up for a VIP.
    pub health_changed: Vec<(Vip, IpAddr)>,
    /// New server ids.
    pub server_ids_added: Vec<u32>,
    /// Removed server ids.
    pub server_ids_removed: Vec<u32>,
    /// Server ids with another real, or with another validity.
    pub server_ids_changed: Vec<u32>,
    /// New source routes.
    pub source_routes_added: Vec<Prefix>,
    /// Removed source routes.
    pub source_routes_removed: Vec<Prefix>,
    /// Source routes with another real.
    pub source_routes_changed: Vec<Prefix>,
    /// New addresses at which tunnels end.
    pub decap_added: Vec<IpAddr>,
    /// Removed addresses at which tunnels ended.
    pub decap_removed: Vec<IpAddr>,
    /// Addresses with another mode.
    pub decap_changed: Vec<IpAddr>,
    /// New marks.
    pub marks_mapped: Vec<u32>,
    /// Removed marks.
    pub marks_unmapped: Vec<u32>,
    /// Marks with another real.
    pub marks_moved: Vec<u32>,
    /// New probe matches.
    pub probe_matches_added: Vec<ProbeMatch>,
    /// Removed probe matches.
    pub probe_matches_removed: Vec<ProbeMatch>,
    /// Probe matches with another real.
    pub probe_matches_changed: Vec<ProbeMatch>,
    /// VIPs whose probes are now counted.
    pub probes_registered: Vec<Vip>,
    /// VIPs whose probes are no longer counted.
    pub probes_unregistered: Vec<Vip>,
    /// The keys of changed balancer settings, such as `max_vips` or `gateway_mac`; first those that
    /// `docs/configuration.md` does not mark *Live*.
    pub settings_changed: Vec<&'static str>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The steps from one state to the other. Both must be free of contradictions.
    pub(crate) fn between(current: &State, wanted: &State, hash: HashFunction) -> Self {
        let mut changes = Self::default();
        let before: BTreeMap<_, _> = current
            .vips
            .iter()
            .map(|state| (state.vip, state))
            .collect();
        let after: BTreeMap<_, _> = wanted.vips.iter().map(|state| (state.vip, state)).collect();
        for state in &current.vips {
            if !after.contains_key(&state.vip) {
                changes.vips_removed.push(state.vip);
                let reals = state.reals.iter();
                changes
                    .reals_removed
                    .extend(reals.map(|real| (state.vip, real.address())));
            }
        }
        for state in &wanted.vips {
            let vip = state.vip;
            let old = before.get(&vip);
            match old {
                None => changes.vips_added.push(vip),
                Some(old)
                    if old.flags != state.flags
                        || old.hash.unwrap_or(hash) != state.hash.unwrap_or(hash) =>
                {
                    changes.vips_changed.push(vip);
                }
                Some(_) => {}
            }
            let mut left: BTreeMap<_, _> = old
                .into_iter()
                .flat_map(|old| &old.reals)
                .map(|real| (real.address(), real.get_weight()))
                .collect();
            for real in &state.reals {
                match left.remove(&real.address()) {
                    None => changes.reals_added.push((vip, real.address())),
                    Some(weight) if weight != real.get_weight() => {
                        changes.reals_changed.push((vip, real.address()));
                    }
                    Some(_) => {}
                }
            }
            changes.compare_health(vip, old.map_or(&[], |old| &old.down), &state.down, &left);
            changes
                .reals_removed
                .extend(left.into_keys().map(|address| (vip, address)));
        }
        let ids = |state: &State| -> BTreeMap<u32, ServerIdState> {
            let ids = state.server_ids.iter();
            ids.map(|state| (state.id.id(), *state)).collect()
        };
        [
            changes.server_ids_added,
            changes.server_ids_removed,
            changes.server_ids_changed,
        ] = compare(&ids(current), &ids(wanted));
        let routes = |state: &State| -> BTreeMap<Prefix, IpAddr> {
            let routes = state.source_routes.iter();
            routes.map(|route| (route.prefix(), route.real())).collect()
        };
        [
            changes.source_routes_added,
            changes.source_routes_removed,
            changes.source_routes_changed,
        ] = compare(&routes(current), &routes(wanted));
        let ends = |state: &State| -> BTreeMap<IpAddr, DecapMode> {
            let ends = state.decap.iter();
            ends.map(|end| (end.address, end.mode)).collect()
        };
        [
            changes.decap_added,
            changes.decap_removed,
            changes.decap_changed,
        ] = compare(&ends(current), &ends(wanted));
        let marks = |state: &State| -> BTreeMap<u32, IpAddr> {
            let marks = state.marks.iter();
            marks.map(|state| (state.mark, state.real)).collect()
        };
        [
            changes.marks_mapped,
            changes.marks_unmapped,
            changes.marks_moved,
        ] = compare(&marks(current), &marks(wanted));
        let matches = |state: &State| -> BTreeMap<ProbeMatch, IpAddr> {
            let matches = state.probe_matches.iter();
            matches.map(|state| (state.by, state.real)).collect()
        };
        [
            changes.probe_matches_added,
            changes.probe_matches_removed,
            changes.probe_matches_changed,
        ] = compare(&matches(current), &matches(wanted));
        let probes = |state: &State| -> BTreeMap<Vip, ()> {
            state.probes.iter().map(|vip| (*vip, ())).collect()
        };
        [changes.probes_registered, changes.probes_unregistered, _] =
            compare(&probes(current), &probes(wanted));
        let flags = |state: &State| -> BTreeMap<_, _> {
            let reals = state.vips.iter().flat_map(|vip| &vip.reals);
            reals
                .map(|real| (real.address(), stated_flags(real)))
                .collect()
        };
        let old_flags = flags(current);
        changes.real_flags_changed = flags(wanted)
            .into_iter()
            .filter(|(address, new)| old_flags.get(address).is_some_and(|old| old != new))
            .map(|(address, _)| address)
            .collect();
        changes.settings_changed = settings_changed(current, wanted);
        changes
    }
}

impl Changes {
    /// The health changes of a VIP's reals, without reals that are removed.
    fn compare_health(
        &mut self,
        vip: Vip,
        before: &[IpAddr],
        after: &[IpAddr],
        removed: &BTreeMap<IpAddr, u32>,
    ) {
        let [before, after] = [before, after].map(|down| down.iter().collect::<BTreeSet<_>>());
        let turned = before.symmetric_difference(&after);
        let turned = turned.filter(|real| !removed.contains_key(real));
        self.health_changed.extend(turned.map(|real| (vip, **real)));
    }

    /// The reals whose health changes, with their health in `wanted`.
    pub(crate) fn turned(&self, wanted: &State) -> Vec<(Vip, IpAddr, Health)> {
        let turned = self.health_changed.iter().copied();
        if self.health_changed.is_empty() {
            return Vec::new();
        }
        let vips = wanted.vips.iter();
        let down: BTreeSet<_> = vips
            .flat_map(|state| state.down.iter().map(|real| (state.vip, *real)))
            .collect();
        turned
            .map(|(vip, real)| {
                let health = match down.contains(&(vip, real)) {
                    true => Health::Down,
                    false => Health::Up,
                };
                (vip, real, health)
            })
            .collect()
    }
}

/// The keys of changed settings: those that need another load, then those that change live.
pub(crate) fn settings_changed(current: &State, wanted: &State) -> Vec<&'static str> {
    let settings = |state: &State| state.balancer.clone().unwrap_or_default();
    let mut changed = settings(current).load_changes(&settings(wanted));
    let live = live_changes(current, wanted);
    changed.extend(live.iter().map(|change| change.setting));
    changed
}

/// The live changes of settings. Settings that a state leaves out stay.
pub(crate) fn live_changes(current: &State, wanted: &State) -> Vec<LiveChange> {
    let settings = |state: &State| state.balancer.clone().unwrap_or_default();
    settings(current).live_changes(&settings(wanted))
}

/// The keys that are new, gone, and have another value.
fn compare<K: Copy + Ord, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> [Vec<K>; 3] {
    let gone = before.keys().filter(|key| !after.contains_key(key));
    let [mut added, removed, mut changed] = [Vec::new(), gone.copied().collect(), Vec::new()];
    for (key, value) in after {
        match before.get(key) {
            None => added.push(*key),
            Some(old) if old != value => changed.push(*key),
            Some(_) => {}
        }
    }
    [added, removed, changed]
}

impl fmt::Display for Changes {
    /// One line, such as `1 VIP added, 3 reals added, 1 weight changed`; `nothing changed`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.vips_added.len(), "VIP", "VIPs", "added"),
            (self.vips_removed.len(), "VIP", "VIPs", "removed"),
            (self.vips_changed.len(), "VIP", "VIPs", "changed"),
            (self.reals_added.len(), "real", "reals", "added"),
            (self.reals_removed.len(), "real", "reals", "removed"),
            (self.reals_changed.len(), "weight", "weights", "changed"),
            (
                self.real_flags_changed.len(),
                "real's flags",
                "reals' flags",
                "changed",
            ),
            (
                self.health_changed.len(),
                "real's health",
                "reals' health",
                "changed",
            ),
            (
                self.server_ids_added.len(),
                "server id",
                "server ids",
                "added",
            ),
            (
                self.server_ids_removed.len(),
                "server id",
                "server ids",
                "removed",
            ),
            (
                self.server_ids_changed.len(),
                "server id",
                "server ids",
                "changed",
            ),
            (
                self.source_routes_added.len(),
                "source route",
                "source routes",
                "added",
            ),
            (
                self.source_routes_removed.len(),
                "source route",
                "source routes",
                "removed",
            ),
            (
                self.source_routes_changed.len(),
                "source route",
                "source routes",
                "changed",
            ),
            (
                self.decap_added.len(),
                "decap address",
                "decap addresses",
                "added",
            ),
            (
                self.decap_removed.len(),
                "decap address",
                "decap addresses",
                "removed",
            ),
            (
                self.decap_changed.len(),
                "decap address",
                "decap addresses",
                "changed",
            ),
            (self.marks_mapped.len(), "mark", "marks", "mapped"),
            (self.marks_unmapped.len(), "mark", "marks", "unmapped"),
            (self.marks_moved.len(), "mark", "marks", "moved"),
            (
                self.probe_matches_added.len(),
                "probe match",
                "probe matches",
                "added",
            ),
            (
                self.probe_matches_removed.len(),
                "probe match",
                "probe matches",
                "removed",
            ),
            (
                self.probe_matches_changed.len(),
                "probe match",
                "probe matches",
                "changed",
            ),
            (
                self.probes_registered.len(),
                "probe",
                "probes",
                "registered",
            ),
            (
                self.probes_unregistered.len(),
                "probe",
                "probes",
                "unregistered",
            ),
        ];
        let mut parts: Vec<_> = counts
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, many, what)| {
                format!("{count} {} {what}", if count == 1 { one } else { many })
            })
            .collect();
        let settings = &self.settings_changed;
        if !settings.is_empty() {
            let many = if settings.len() == 1 { "" } else { "s" };
            let keys = settings.join(", ");
            parts.push(format!("{} setting{many} changed ({keys})", settings.len()));
        }
        match parts.is_empty() {
            true => f.write_str("nothing changed"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BalancerState;

    #[test]
    fn only_what_is_said_is_compared() {
        let current = BalancerState {
            max_vips: Some(512),
            forwarding_cpus: Some(vec![0, 1]),
            numa_nodes: Some(vec![0, 1]),
            ..BalancerState::default()
        };
        let wanted = BalancerState {
            forwarding_cpus: Some(vec![1, 0]),
            numa_nodes: Some(vec![1, 0]),
            ring_size: Some(13),
            ..BalancerState::default()
        };
        assert_eq!(current.load_changes(&wanted), ["ring_size"]);
        let swapped = BalancerState {
            numa_nodes: Some(vec![0, 1]),
            ring_size: None,
            gateway_mac: Some("0a:00:00:00:00:fe".parse().unwrap()),
            ..wanted
        };
        assert_eq!(current.load_changes(&swapped), ["numa_nodes"]);
        assert!(current.load_changes(&BalancerState::default()).is_empty());
    }

    #[test]
    fn changes_read_well() {
        assert_eq!(Changes::default().to_string(), "nothing changed");
        let vip: Vip = "203.0.113.1:443/tcp".parse().unwrap();
        let changes = Changes {
            vips_added: vec![vip],
            reals_added: vec![(vip, vip.address()); 3],
            settings_changed: vec!["gateway_mac", "source_v4"],
            ..Changes::default()
        };
        assert_eq!(
            changes.to_string(),
            "1 VIP added, 3 reals added, 2 settings changed (gateway_mac, source_v4)"
        );
        assert!(!changes.is_empty());
    }
}
