//! Properties of the table and of plans, on random states.
//!
//! A small universe of VIPs and reals makes them meet often: reals are shared, moved, flagged and
//! re-added, and numbers run out.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::Limits;
use super::Name;
use super::Names;
use super::Plan;
use super::RealRecord;
use super::Room;
use super::Step;
use super::Table;
use super::plan::plan;
use super::step::NameChange;
use super::step::Order;
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
use crate::types::Health;
use crate::types::Prefix;
use crate::types::Real;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::ServerId;
use crate::types::SourceRoute;
use crate::types::Vip;
use crate::types::VipFlags;

const VIPS: u8 = 4;
const REALS: u8 = 6;
const AMPLE: Limits = Limits {
    max_vips: 2 * VIPS as usize,
    max_reals: 2 * REALS as usize,
};

fn vip(index: u8) -> Vip {
    Vip::tcp((Ipv4Addr::new(203, 0, 113, index + 1), 80).into())
}

fn address(index: u8) -> IpAddr {
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

fn real_flags() -> impl Strategy<Value = RealFlags> {
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

fn state() -> impl Strategy<Value = State> {
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

/// A state with everything else that names reals, too.
fn whole_state() -> impl Strategy<Value = State> {
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

/// What a state says of health checks, and nothing else.
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

/// A balancer on paper: the table and what lies beside it.
#[derive(Clone)]
struct World {
    table: Table,
    ids: Names<u32>,
    invalid: BTreeSet<u32>,
    routes: Names<Prefix>,
    ends: BTreeMap<IpAddr, DecapMode>,
    socket_marks: BTreeMap<u32, IpAddr>,
    matches: BTreeMap<ProbeMatch, IpAddr>,
    probes: BTreeSet<Vip>,
}

impl World {
    fn new(limits: Limits) -> Self {
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

    fn state(&self) -> State {
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

    fn reach_within(&mut self, wanted: &State, limits: Limits) -> Result<Plan, Error> {
        let plan = self.table.way(&self.state(), wanted, limits)?;
        plan.steps.iter().try_for_each(|step| self.take(step))?;
        Ok(plan)
    }

    fn reach(&mut self, wanted: &State) -> Result<Plan, Error> {
        let plan = plan(&self.state(), wanted, AMPLE, Order::Gapless)?;
        plan.steps.iter().try_for_each(|step| self.take(step))?;
        Ok(plan)
    }
}

fn snapshot(table: &Table) -> State {
    State {
        vips: table.vip_states(),
        ..State::default()
    }
}

/// A real's weight, flags, and whether it is down.
type NormalReal = (u32, RealFlags, bool);
type Normal = BTreeMap<Vip, (VipFlags, HashFunction, BTreeMap<IpAddr, NormalReal>)>;

/// The state as a table gives it back: sorted, with the hash function said.
fn normal(state: &State) -> Normal {
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

fn table(limits: Limits) -> Table {
    Table::new(limits.max_vips as u16, limits.max_reals as u16)
}

fn execute(table: &mut Table, plan: &Plan) -> Result<(), Error> {
    plan.steps.iter().try_for_each(|step| table.take_step(step))
}

fn reach(table: &mut Table, wanted: &State, limits: Limits) -> Result<Plan, Error> {
    let plan = plan(&snapshot(table), wanted, limits, Order::Gapless)?;
    execute(table, &plan)?;
    Ok(plan)
}

/// What must be true of every table.
fn check_invariants(table: &Table, limits: Limits) -> Result<(), TestCaseError> {
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

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 1024 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// From any state, the plan gives what building the other from scratch gives.
    #[test]
    fn applying_is_building_from_scratch(states in prop::collection::vec(state(), 1..5)) {
        let mut applied = table(AMPLE);
        for wanted in &states {
            let before = applied.clone();
            let plan = reach(&mut applied, wanted, AMPLE).unwrap();
            let mut scratch = table(AMPLE);
            let _ = reach(&mut scratch, wanted, AMPLE).unwrap();
            prop_assert_eq!(snapshot(&applied), snapshot(&scratch));
            prop_assert_eq!(normal(&snapshot(&applied)), normal(wanted));
            check_invariants(&applied, AMPLE)?;

            let again = reach(&mut applied, wanted, AMPLE).unwrap();
            prop_assert_eq!(again.steps, []);
            prop_assert!(again.changes.is_empty());
            prop_assert_eq!(plan.changes.is_empty(), plan.steps.is_empty());

            // A real that both states name keeps its number and generation.
            for (address, entry) in before.reals() {
                if let Some(after) = applied.real(address) {
                    prop_assert_eq!(
                        (entry.number, entry.generation),
                        (after.number, after.generation)
                    );
                }
            }
        }
    }

    /// So it is with all that a state can say; and no real that a VIP, an id or a route names before
    /// and after is given up on the way.
    #[test]
    fn whole_states_are_reached(states in prop::collection::vec(whole_state(), 1..5)) {
        let mut world = World::new(AMPLE);
        for wanted in &states {
            let before = world.clone();
            let plan = world.reach(wanted).unwrap();
            let mut reached = world.state();
            prop_assert_eq!(normal(&reached), normal(wanted));
            reached.vips.clone_from(&wanted.vips);
            let mut sorted = wanted.clone();
            sorted.decap.sort();
            prop_assert_eq!(reached, sorted);
            prop_assert_eq!(plan.changes.is_empty(), plan.steps.is_empty());
            prop_assert_eq!(world.reach(wanted).unwrap(), Plan::default());

            let of_vips = |state: &State| -> BTreeSet<IpAddr> {
                let reals = state.vips.iter().flat_map(|vip| &vip.reals);
                reals.map(Real::address).collect()
            };
            let before_state = before.state();
            let names = |state: &State| -> BTreeSet<(String, IpAddr)> {
                let ids = state.server_ids.iter();
                let ids = ids.map(|of| (of.id.id().to_string(), of.id.real()));
                let routes = state.source_routes.iter();
                ids.chain(routes.map(|of| (of.prefix().to_string(), of.real()))).collect()
            };
            let (old, new) = (names(&before_state), names(wanted));
            let named = old.intersection(&new).map(|(_, real)| *real);
            let kept = of_vips(&before_state)
                .intersection(&of_vips(wanted))
                .copied()
                .chain(named)
                .collect::<BTreeSet<_>>();
            for real in kept {
                let identity = |world: &World| {
                    let entry = world.table.real(real).unwrap();
                    (entry.number, entry.generation)
                };
                prop_assert_eq!(identity(&before), identity(&world));
            }
        }
    }

    /// Also where every number is in use, any state that fits can be reached; and while there
    /// are numbers for both, no VIP has fewer reals on the way than before or after.
    #[test]
    fn full_tables_can_be_swapped(from in state(), to in state()) {
        let reals = |state: &State| -> BTreeSet<_> {
            let reals = state.vips.iter().flat_map(|vip| &vip.reals);
            reals.map(Real::address).collect()
        };
        let limits = Limits {
            max_vips: from.vips.len().max(to.vips.len()).max(1),
            max_reals: reals(&from).len().max(reals(&to).len()).max(1),
        };
        let mut full = table(limits);
        let _ = reach(&mut full, &from, limits).unwrap();
        let _ = reach(&mut full, &to, limits).unwrap();
        prop_assert_eq!(normal(&snapshot(&full)), normal(&to));
        check_invariants(&full, limits)?;

        let mut roomy = table(AMPLE);
        let _ = reach(&mut roomy, &from, AMPLE).unwrap();
        let plan = plan(&snapshot(&roomy), &to, AMPLE, Order::Gapless).unwrap();
        for step in &plan.steps {
            roomy.take_step(step).unwrap();
            for state in &to.vips {
                let Some(before) = from.vips.iter().find(|before| before.vip == state.vip) else {
                    continue;
                };
                let now = roomy.vip(&state.vip).unwrap().reals.len();
                prop_assert!(now >= before.reals.len().min(state.reals.len()));
            }
        }
    }

    /// So it is where ids and routes name reals, too, in one state or both.
    #[test]
    fn full_tables_with_names_can_be_swapped(from in whole_state(), to in whole_state()) {
        let reals = |state: &State| -> BTreeSet<_> {
            let reals = state.vips.iter().flat_map(|vip| &vip.reals);
            reals.map(Real::address).chain(state.names()).collect()
        };
        let limits = Limits {
            max_vips: from.vips.len().max(to.vips.len()).max(1),
            max_reals: reals(&from).len().max(reals(&to).len()).max(1),
        };
        let mut world = World::new(limits);
        let names = |state: &State| (state.server_ids.clone(), state.source_routes.clone());
        for wanted in [&from, &to, &from] {
            let _ = world.reach_within(wanted, limits).unwrap();
            let reached = world.state();
            prop_assert_eq!(normal(&reached), normal(wanted));
            prop_assert_eq!(names(&reached), names(wanted));
        }
    }

    /// What is staged and dropped changes nothing, and what is refused neither.
    #[test]
    fn staging_changes_nothing(from in state(), to in state()) {
        let mut filled = table(AMPLE);
        let _ = reach(&mut filled, &from, AMPLE).unwrap();
        let before = filled.clone();
        for state in &to.vips {
            let _ = filled.stage_add_vip(state.vip, state.flags, HashFunction::Maglev);
            let adds: Vec<_> = state.reals.iter().copied().map(RealChange::Add).collect();
            let _ = filled.stage_reals(&state.vip, &adds, &[]);
            let _ = filled.stage_set_vip_flags(&state.vip, VipFlags::NO_SRC_PORT);
            let _ = filled.stage_set_hash_function(&state.vip, HashFunction::Maglev);
            for real in &state.reals {
                let _ = filled.stage_set_real_flags(real.address(), RealFlags::LOCAL_REAL);
            }
            let _ = filled.stage_remove_vip(&state.vip);
        }
        prop_assert_eq!(&filled, &before);
        // A batch whose last change is impossible is refused whole.
        for state in &from.vips {
            let mut changes: Vec<_> = (0..REALS)
                .map(|index| RealChange::Add(Real::new(address(index))))
                .collect();
            changes.push(RealChange::Remove(address(REALS)));
            let step = Step::ModifyReals { vip: state.vip, changes, health: Vec::new() };
            let refused = matches!(filled.take_step(&step), Err(Error::NotFound { .. }));
            prop_assert!(refused);
        }
        prop_assert_eq!(&filled, &before);
    }

    /// What a staged batch says is what the table holds after the commit.
    #[test]
    fn staged_batches_tell_the_truth(
        from in state(),
        batch in prop::collection::vec((0..REALS, 0_u32..3, prop::option::of(real_flags()), any::<bool>()), 0..12),
        health in prop::collection::vec((0..REALS, any::<bool>()), 0..4),
    ) {
        let mut table = table(AMPLE);
        let _ = reach(&mut table, &from, AMPLE).unwrap();
        let Some(state) = from.vips.first() else { return Ok(()) };
        let changes: Vec<_> = batch
            .iter()
            .map(|&(index, weight, flags, remove)| {
                let real = Real::new(address(index)).weight(weight);
                match (remove, flags) {
                    (true, _) => RealChange::Remove(address(index)),
                    (false, None) => RealChange::Add(real),
                    (false, Some(flags)) => RealChange::Add(real.flags(flags)),
                }
            })
            .collect();
        // The model: a map, changed in order.
        let mut model: BTreeMap<_, _> = state
            .reals
            .iter()
            .map(|real| (real.address(), real.get_weight()))
            .collect();
        let old = model.clone();
        let possible = changes.iter().all(|change| match change {
            RealChange::Add(real) => {
                model.insert(real.address(), real.get_weight());
                true
            }
            RealChange::Remove(address) => model.remove(address).is_some(),
        });
        let health: Vec<_> = health.iter().map(|(index, down)| (address(*index), [Health::Up, Health::Down][usize::from(*down)])).collect();
        let possible = possible && health.iter().all(|(real, _)| model.contains_key(real));
        // Down before, and still there; then as it is said.
        let mut down: BTreeSet<_> = state.down.iter().copied().collect();
        let old_down = down.clone();
        down.retain(|real| model.contains_key(real));
        for (real, health) in &health {
            match health {
                Health::Down => down.insert(*real),
                Health::Up => down.remove(real),
            };
        }
        let before = table.clone();
        let staged = table.stage_reals(&state.vip, &changes, &health);
        prop_assert_eq!(staged.is_ok(), possible);
        let Ok(staged) = staged else { return Ok(()) };
        table.commit(staged.clone());
        check_invariants(&table, AMPLE)?;

        let entry = table.vip(&state.vip).unwrap();
        prop_assert_eq!(&entry.reals, &model);
        prop_assert_eq!(&entry.down, &down);
        prop_assert_eq!(staged.number, entry.number);
        prop_assert_eq!(&staged.endpoints, &table.endpoints(entry));
        let weighted = |reals: &BTreeMap<IpAddr, u32>, down: &BTreeSet<IpAddr>| -> Vec<_> {
            let weighted = reals.iter().filter(|(of, weight)| **weight > 0 && !down.contains(of));
            weighted.map(|(address, weight)| (*address, *weight)).collect()
        };
        prop_assert_eq!(
            staged.ring_changed,
            weighted(&old, &old_down) != weighted(&model, &down)
        );
        let addresses = |records: &[RealRecord]| -> BTreeSet<IpAddr> {
            records.iter().map(|record| record.address).collect()
        };
        prop_assert_eq!(addresses(&staged.turned.up), old_down
            .iter()
            .filter(|real| model.contains_key(real) && !down.contains(real))
            .copied()
            .collect::<BTreeSet<_>>());
        prop_assert_eq!(addresses(&staged.turned.down), &down - &old_down);
        let had = |real: &IpAddr| old.contains_key(real);
        let given_up: BTreeMap<_, _> = staged
            .turned
            .given_up
            .iter()
            .map(|(record, named)| (record.address, *named))
            .collect();
        let wanted = old.keys().filter(|real| !model.contains_key(real));
        prop_assert_eq!(given_up, wanted
            .map(|real| (*real, table.real(*real).is_some()))
            .collect::<BTreeMap<_, _>>());
        prop_assert_eq!(addresses(&staged.turned.joined), model
            .keys()
            .filter(|real| !had(real) && before.real(**real).is_some())
            .copied()
            .collect::<BTreeSet<_>>());
        for record in staged.added.iter().chain(&staged.reflagged) {
            let entry = table.real(record.address).unwrap();
            prop_assert_eq!(
                (record.number, record.generation, record.flags),
                (entry.number, entry.generation, entry.flags)
            );
        }
        let known = |table: &Table| -> BTreeMap<_, _> {
            let reals = table.reals();
            reals.map(|(address, entry)| (address, (entry.number, entry.flags))).collect()
        };
        let (was, is) = (known(&before), known(&table));
        let added: BTreeSet<_> = staged.added.iter().map(|record| record.address).collect();
        let reflagged: BTreeSet<_> = staged.reflagged.iter().map(|record| record.address).collect();
        let released: BTreeSet<_> = staged.released.iter().copied().collect();
        prop_assert_eq!(added, is.keys().filter(|a| !was.contains_key(a)).copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(
            released,
            was.iter()
                .filter(|(address, _)| !is.contains_key(address))
                .map(|(address, (number, _))| (*address, *number))
                .collect::<BTreeSet<_>>()
        );
        prop_assert_eq!(
            reflagged,
            was.iter()
                .filter(|(address, (_, flags))| is.get(address).is_some_and(|(_, new)| new != flags))
                .map(|(address, _)| *address)
                .collect::<BTreeSet<_>>()
        );
    }

    /// The document says everything that the state says.
    #[cfg(feature = "serde")]
    #[test]
    fn documents_round_trip(state in whole_state()) {
        let text = state.to_toml().unwrap();
        prop_assert_eq!(State::from_toml(&text).unwrap(), state);
    }
}
