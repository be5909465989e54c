//! A small universe of VIPs and reals, in which states collide often: reals are shared, moved,
//! flagged and re-added, and numbers run out. This file has random states, a balancer on paper that
//! goes from one to the next, and what must be true of every table.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::super::Limits;
use super::super::Name;
use super::super::Names;
use super::super::Plan;
use super::super::Room;
use super::super::Step;
use super::super::Table;
use super::super::plan::plan;
use super::super::step::NameChange;
use super::super::step::Order;
use crate::document::DecapState;
use crate::document::MarkState;
use crate::document::ProbeMatch;
use crate::document::ProbeMatchState;
use crate::document::ServerIdState;
use crate::document::State;
use crate::document::VipState;
use crate::document::stated_flags;
use crate::error::Error;
use crate::types::DecapMode;
use crate::types::HashFunction;
use crate::types::Prefix;
use crate::types::Real;
use crate::types::RealFlags;
use crate::types::ServerId;
use crate::types::SourceRoute;
use crate::types::Vip;
use crate::types::VipFlags;

const VIPS: u8 = 4;
pub(super) const REALS: u8 = 6;
pub(super) const AMPLE: Limits = Limits {
    max_vips: 2 * VIPS as usize,
    max_reals: 2 * REALS as usize,
};

fn vip(index: u8) -> Vip {
    Vip::tcp((Ipv4Addr::new(203, 0, 113, index + 1), 80).into())
}

pub(super) fn address(index: u8) -> IpAddr {
    match index % 2 {
        0 => Ipv4Addr::new(198, 51, 100, index + 1).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, index.into()).into(),
    }
}

fn flags() -> impl Strategy<Value = VipFlags> {
    prop::sample::select(vec![
        VipFlags::empty(),
        VipFlags::NO_SRC_PORT,
        VipFlags::LRU_BYPASS,
    ])
}

pub(super) fn real_flags() -> impl Strategy<Value = RealFlags> {
    prop::sample::select(vec![
        RealFlags::empty(),
        RealFlags::LOCAL_REAL,
        RealFlags::from_bits_retain(4),
    ])
}

fn hash() -> impl Strategy<Value = Option<HashFunction>> {
    prop::sample::select(vec![
        None,
        Some(HashFunction::Maglev),
        Some(HashFunction::MaglevV2),
    ])
}

pub(super) fn state() -> impl Strategy<Value = State> {
    let real = (0_u32..3, prop::bool::weighted(0.2));
    let reals = prop::collection::btree_map(0..REALS, real, 0..=usize::from(REALS));
    let vips =
        prop::collection::btree_map(0..VIPS, (flags(), hash(), reals), 0..=usize::from(VIPS));
    let flags = prop::collection::vec(real_flags(), usize::from(REALS));
    (vips, flags).prop_map(|(vips, flags)| State {
        vips: vips
            .into_iter()
            .map(|(index, (vip_flags, hash, reals))| VipState {
                flags: vip_flags,
                hash,
                down: reals
                    .iter()
                    .filter(|(_, (_, down))| *down)
                    .map(|(real, _)| address(*real))
                    .collect(),
                reals: reals
                    .into_iter()
                    .map(|(real, (weight, _))| match flags[usize::from(real)] {
                        flags if flags.is_empty() => Real::new(address(real)).weight(weight),
                        flags => Real::new(address(real)).weight(weight).flags(flags),
                    })
                    .collect(),
                ..VipState::new(vip(index))
            })
            .collect(),
        ..State::default()
    })
}

/// A state with everything else that names reals.
pub(super) fn whole_state() -> impl Strategy<Value = State> {
    let ids = prop::collection::btree_map(1_u32..5, (0..REALS, any::<bool>()), 0..4);
    let routes = prop::collection::btree_map(8_u8..12, 0..REALS, 0..4);
    let ends = prop::collection::btree_map(0..REALS, any::<bool>(), 0..3);
    (state(), ids, routes, ends, probes()).prop_map(|whole| {
        let (state, ids, routes, ends, probes) = whole;
        let ids = ids.into_iter().map(|(id, (real, valid))| {
            let mut state = ServerIdState::new(ServerId::new(id, address(real)));
            state.valid = valid;
            state
        });
        let routes = routes.into_iter().map(|(length, real)| {
            let prefix = Prefix::new([10, 0, 0, 0].into(), length).unwrap();
            SourceRoute::new(prefix, address(real))
        });
        let mode = |inline| match inline {
            true => DecapMode::Inline,
            false => DecapMode::Egress,
        };
        let ends = ends
            .into_iter()
            .map(|(end, inline)| DecapState::new(address(end), mode(inline)));
        State {
            server_ids: ids.collect(),
            source_routes: routes.collect(),
            decap: ends.collect(),
            marks: probes.marks,
            probe_matches: probes.probe_matches,
            probes: probes.probes,
            ..state
        }
    })
}

/// Only the health check part of a state.
fn probes() -> impl Strategy<Value = State> {
    let marks = prop::collection::btree_map(1_u32..5, 0..REALS, 0..4);
    let matches = prop::collection::btree_map((any::<bool>(), 0_u16..3), 0..REALS, 0..4);
    let keys = prop::collection::btree_set(0..VIPS, 0..4);
    (marks, matches, keys).prop_map(|(marks, matches, keys)| {
        let matches = matches.into_iter().map(|((by_source, port), real)| {
            let from = (address(0), port).into();
            let by = match by_source {
                false => ProbeMatch::Destination(from),
                true => ProbeMatch::Source(from),
            };
            ProbeMatchState::new(by, address(real))
        });
        let marks = marks.into_iter();
        State {
            marks: marks
                .map(|(mark, real)| MarkState::new(mark, address(real)))
                .collect(),
            probe_matches: matches.collect(),
            probes: keys.into_iter().map(vip).collect(),
            ..State::default()
        }
    })
}

/// A balancer on paper: the table and its surroundings.
#[derive(Clone)]
pub(super) struct World {
    pub(super) table: Table,
    ids: Names<u32>,
    invalid: BTreeSet<u32>,
    routes: Names<Prefix>,
    ends: BTreeMap<IpAddr, DecapMode>,
    socket_marks: BTreeMap<u32, IpAddr>,
    matches: BTreeMap<ProbeMatch, IpAddr>,
    probes: BTreeSet<Vip>,
}

impl World {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            table: table(limits),
            ids: Names::new(100),
            invalid: BTreeSet::new(),
            routes: Names::new(100),
            ends: BTreeMap::new(),
            socket_marks: BTreeMap::new(),
            matches: BTreeMap::new(),
            probes: BTreeSet::new(),
        }
    }

    pub(super) fn state(&self) -> State {
        let real = |number| self.table.address_of(number).unwrap();
        let ids = self.ids.iter().map(|(id, of)| {
            let mut state = ServerIdState::new(ServerId::new(id, real(of)));
            state.valid = !self.invalid.contains(&id);
            state
        });
        let routes = self.routes.iter();
        let ends = self.ends.iter();
        State {
            balancer: None,
            vips: self.table.vip_states(),
            server_ids: ids.collect(),
            source_routes: routes
                .map(|(of, to)| SourceRoute::new(of, real(to)))
                .collect(),
            decap: ends
                .map(|(end, mode)| DecapState::new(*end, *mode))
                .collect(),
            marks: self
                .socket_marks
                .iter()
                .map(|(mark, real)| MarkState::new(*mark, *real))
                .collect(),
            probe_matches: self
                .matches
                .iter()
                .map(|(by, real)| ProbeMatchState::new(*by, *real))
                .collect(),
            probes: self.probes.iter().copied().collect(),
        }
    }

    /// What `Katran` does for a step, without the kernel.
    fn take(&mut self, step: &Step) -> Result<(), Error> {
        fn rename<K: Name>(
            names: &mut Names<K>,
            table: &mut Table,
            step: &Step,
            change: &NameChange<K>,
        ) -> Result<(), Error> {
            let deltas = names.stage(&change.remove, &change.add, Room::Passing, table)?;
            assert_eq!(deltas, change.references);
            table.take_step(step)?;
            let named = change.add.iter();
            let named = named.map(|(name, real)| (*name, table.real_index(*real).unwrap()));
            let named: Vec<_> = named.collect();
            names.commit(&change.remove, named);
            Ok(())
        }
        match step {
            Step::ServerIds(change) => {
                let touched = change.add.iter().map(|(id, _)| id).chain(&change.remove);
                for id in touched {
                    self.invalid.remove(id);
                }
                return rename(&mut self.ids, &mut self.table, step, change);
            }
            Step::SourceRoutes(change) => {
                return rename(&mut self.routes, &mut self.table, step, change);
            }
            Step::Invalidate(ids) => self.invalid.extend(ids),
            Step::Revalidate(ids) => self.invalid.retain(|id| !ids.contains(id)),
            Step::SetDecap(end, mode) => drop(self.ends.insert(*end, *mode)),
            Step::RemoveDecap(end) => assert!(self.ends.remove(end).is_some()),
            Step::MapMark(mark, real) => drop(self.socket_marks.insert(*mark, *real)),
            Step::UnmapMark(mark) => assert!(self.socket_marks.remove(mark).is_some()),
            Step::SetProbeMatch(by, real) => drop(self.matches.insert(*by, *real)),
            Step::RemoveProbeMatch(by) => assert!(self.matches.remove(by).is_some()),
            Step::RegisterProbe(vip) => assert!(self.probes.insert(*vip)),
            Step::UnregisterProbe(vip) => assert!(self.probes.remove(vip)),
            _ => {}
        }
        self.table.take_step(step)
    }

    pub(super) fn reach_within(&mut self, wanted: &State, limits: Limits) -> Result<Plan, Error> {
        let plan = self.table.way(&self.state(), wanted, limits)?;
        plan.steps.iter().try_for_each(|step| self.take(step))?;
        Ok(plan)
    }

    pub(super) fn reach(&mut self, wanted: &State) -> Result<Plan, Error> {
        let plan = plan(&self.state(), wanted, AMPLE, Order::Gapless)?;
        plan.steps.iter().try_for_each(|step| self.take(step))?;
        Ok(plan)
    }
}

pub(super) fn snapshot(table: &Table) -> State {
    State {
        vips: table.vip_states(),
        ..State::default()
    }
}

/// A real's weight, flags, and whether it is down.
pub(super) type NormalReal = (u32, RealFlags, bool);
pub(super) type Normal = BTreeMap<Vip, (VipFlags, HashFunction, BTreeMap<IpAddr, NormalReal>)>;

/// The state as a table returns it: sorted, with an explicit hash function.
pub(super) fn normal(state: &State) -> Normal {
    let vips = state.vips.iter().map(|state| {
        let reals = state.reals.iter().map(|real| {
            let down = state.down.contains(&real.address());
            let value = (real.get_weight(), stated_flags(real), down);
            (real.address(), value)
        });
        (
            state.vip,
            (state.flags, state.hash.unwrap_or_default(), reals.collect()),
        )
    });
    vips.collect()
}

pub(super) fn table(limits: Limits) -> Table {
    Table::new(limits.max_vips as u16, limits.max_reals as u16)
}

fn execute(table: &mut Table, plan: &Plan) -> Result<(), Error> {
    plan.steps.iter().try_for_each(|step| table.take_step(step))
}

pub(super) fn reach(table: &mut Table, wanted: &State, limits: Limits) -> Result<Plan, Error> {
    let plan = plan(&snapshot(table), wanted, limits, Order::Gapless)?;
    execute(table, &plan)?;
    Ok(plan)
}

/// What must be true of every table.
pub(super) fn check_invariants(table: &Table, limits: Limits) -> Result<(), TestCaseError> {
    let mut references = BTreeMap::new();
    for (_, entry) in table.vips() {
        for address in entry.reals.keys() {
            *references.entry(*address).or_insert(0) += 1;
        }
        let endpoints = table.endpoints(entry);
        prop_assert_eq!(endpoints.len(), entry.reals.len());
        for endpoint in endpoints {
            let down = entry.down.contains(&endpoint.address);
            let weight = if down {
                0
            } else {
                entry.reals[&endpoint.address]
            };
            prop_assert_eq!(endpoint.weight, weight);
        }
        prop_assert!(entry.down.iter().all(|down| entry.reals.contains_key(down)));
    }
    let counted: BTreeMap<_, _> = table
        .reals()
        .map(|(address, entry)| (address, entry.references))
        .collect();
    prop_assert_eq!(counted, references);
    let numbers: BTreeSet<_> = table.reals().map(|(_, entry)| entry.number).collect();
    prop_assert_eq!(numbers.len(), table.reals().len());
    for (address, entry) in table.reals() {
        prop_assert!((1..=limits.max_reals as u32).contains(&entry.number.get()));
        prop_assert_ne!(entry.generation, 0);
        prop_assert_eq!(table.address_of(entry.number), Some(address));
        prop_assert_eq!(entry.flags.contains(RealFlags::IPV6), address.is_ipv6());
    }
    let vip_numbers: BTreeSet<_> = table.vips().map(|(_, entry)| entry.number).collect();
    prop_assert_eq!(vip_numbers.len(), table.vips().len());
    prop_assert_eq!(table.free_reals(), limits.max_reals - table.reals().len());
    prop_assert_eq!(table.free_vips(), limits.max_vips - table.vips().len());
    Ok(())
}

pub(super) fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 1024 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
