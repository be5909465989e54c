//! The way from one state to another, in the fewest steps.
//!
//! Each VIP's reals change in one step, in an order with three guarantees: numbers are free before
//! they are needed, a real in both states is never released on the way (which would lose its
//! flows), and no VIP has fewer reals than it must. If all numbers are in use the last guarantee
//! yields: then reals are swapped in parts, and so are server ids and source routes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::plan_names::Around;
use super::plan_names::around;
use super::records::Table;
use super::step::NameChange;
use super::step::Order;
use super::step::Step;
use crate::document::Changes;
use crate::document::State;
use crate::document::live_changes;
use crate::document::stated_flags;
use crate::error::Error;
use crate::error::Result;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::Real;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::Vip;
use crate::types::VipFlags;

/// A balancer's limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_vips: usize,
    pub(crate) max_reals: usize,
}

/// The steps, in order, and what they change overall.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) changes: Changes,
}

impl Table {
    /// A plan whose steps the table can take, one after the other.
    ///
    /// # Errors
    /// As [`plan`], and what keeps the table from taking a step.
    pub(crate) fn way(&self, current: &State, wanted: &State, limits: Limits) -> Result<Plan> {
        let gapless = plan(current, wanted, limits, Order::Gapless)?;
        match self.rehearse(&gapless.steps) {
            Err(Error::Exhausted { .. }) => {
                let frugal = plan(current, wanted, limits, Order::Frugal)?;
                self.rehearse(&frugal.steps)?;
                Ok(frugal)
            }
            rehearsed => rehearsed.map(|()| gapless),
        }
    }
}

/// How to get a balancer from state `current` to state `wanted`.
///
/// Does not check whether each step is possible: see `Table::take_step`.
///
/// # Errors
/// `Document` if `wanted` contradicts itself, `InvalidConfig` or `InvalidAddress` for an invalid
/// gateway or source.
pub(super) fn plan(current: &State, wanted: &State, limits: Limits, order: Order) -> Result<Plan> {
    wanted.check()?;
    let mut steps = Vec::new();
    let default_hash = wanted.balancer.as_ref();
    let default_hash = default_hash
        .and_then(|settings| settings.hash_function)
        .or_else(|| current.balancer.as_ref()?.hash_function)
        .unwrap_or_default();
    let changes = Changes::between(current, wanted, default_hash);
    let mut last = Vec::new();
    for change in live_changes(current, wanted) {
        for setting in change.between.iter().chain(&change.end) {
            setting.check()?;
        }
        steps.extend(change.between.map(Step::Set));
        last.extend(change.end.map(Step::Set));
    }

    let Around { before, after } = around(current, wanted, &changes, order);
    steps.extend(before);
    let before: BTreeMap<_, _> = current
        .vips
        .iter()
        .map(|state| (state.vip, state))
        .collect();
    for state in &wanted.vips {
        let Some(old) = before.get(&state.vip) else {
            continue;
        };
        if old.flags != state.flags {
            steps.push(Step::SetVipFlags(state.vip, state.flags));
        }
        let hash = state.hash.unwrap_or(default_hash);
        if old.hash.unwrap_or(default_hash) != hash {
            steps.push(Step::SetHashFunction(state.vip, hash));
        }
    }
    let mut planner = Planner::new(current, wanted, limits, steps);
    planner.run(works(current, wanted, &changes, default_hash));
    let mut steps = planner.finish(wanted);
    steps.extend(after);
    steps.extend(probe_steps(wanted, &changes));
    steps.extend(last);
    Ok(Plan { steps, changes })
}

/// Changes of the health check path; removals come first, to make room.
fn probe_steps(wanted: &State, changes: &Changes) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(changes.marks_unmapped.iter().copied().map(Step::UnmapMark));
    let removed = changes.probe_matches_removed.iter().copied();
    steps.extend(removed.map(Step::RemoveProbeMatch));
    let unregistered = changes.probes_unregistered.iter().copied();
    steps.extend(unregistered.map(Step::UnregisterProbe));
    let marks = changes.marks_mapped.iter().chain(&changes.marks_moved);
    let marks: BTreeSet<_> = marks.collect();
    let mapped = wanted
        .marks
        .iter()
        .filter(|state| marks.contains(&state.mark));
    steps.extend(mapped.map(|state| Step::MapMark(state.mark, state.real)));
    let added = &changes.probe_matches_added;
    let matches: BTreeSet<_> = added.iter().chain(&changes.probe_matches_changed).collect();
    let set = wanted.probe_matches.iter();
    let set = set.filter(|state| matches.contains(&state.by));
    steps.extend(set.map(|state| Step::SetProbeMatch(state.by, state.real)));
    let registered = changes.probes_registered.iter().copied();
    steps.extend(registered.map(Step::RegisterProbe));
    steps
}

/// What is left to do for one VIP.
#[derive(Debug)]
struct Work {
    vip: Vip,
    /// The VIP must be made first.
    new: Option<(VipFlags, HashFunction)>,
    /// The VIP goes, and with it the reals in `remove`.
    last: bool,
    add: Vec<Real>,
    reweigh: Vec<Real>,
    remove: Vec<IpAddr>,
    health: Vec<(IpAddr, Health)>,
}

fn works(
    current: &State,
    wanted: &State,
    changes: &Changes,
    default_hash: HashFunction,
) -> Vec<Work> {
    let mut works = Vec::new();
    let mut index = BTreeMap::new();
    let mut work = |vip: Vip| {
        index.insert(vip, works.len());
        works.push(Work {
            vip,
            new: None,
            last: false,
            add: Vec::new(),
            reweigh: Vec::new(),
            remove: Vec::new(),
            health: Vec::new(),
        });
    };
    // The order of attempts: VIPs that go, that stay, that come.
    let added: BTreeSet<_> = changes.vips_added.iter().copied().collect();
    let gone = changes.vips_removed.iter().copied();
    let all = wanted.vips.iter().map(|state| state.vip);
    gone.for_each(&mut work);
    all.clone()
        .filter(|vip| !added.contains(vip))
        .for_each(&mut work);
    all.filter(|vip| added.contains(vip)).for_each(&mut work);

    for vip in &changes.vips_removed {
        works[index[vip]].last = true;
    }
    for (vip, address) in &changes.reals_removed {
        works[index[vip]].remove.push(*address);
    }
    let known: BTreeMap<Vip, BTreeMap<IpAddr, u32>> = current
        .vips
        .iter()
        .map(|state| {
            let reals = state.reals.iter();
            let reals = reals.map(|real| (real.address(), real.get_weight()));
            (state.vip, reals.collect())
        })
        .collect();
    for state in &wanted.vips {
        let work = &mut works[index[&state.vip]];
        if added.contains(&state.vip) {
            work.new = Some((state.flags, state.hash.unwrap_or(default_hash)));
        }
        for real in &state.reals {
            let old = known
                .get(&state.vip)
                .and_then(|reals| reals.get(&real.address()));
            let plain = Real::new(real.address()).weight(real.get_weight());
            match old {
                None => work.add.push(plain.flags(stated_flags(real))),
                Some(weight) if *weight != real.get_weight() => work.reweigh.push(plain),
                Some(_) => {}
            }
        }
    }
    for (vip, address, health) in changes.turned(wanted) {
        works[index[&vip]].health.push((address, health));
    }
    works.retain(|work| !work.is_done());
    works
}

impl Work {
    fn is_done(&self) -> bool {
        !self.last
            && self.new.is_none()
            && self.add.is_empty()
            && self.reweigh.is_empty()
            && self.remove.is_empty()
            && self.health.is_empty()
    }

    /// Takes out the health of those reals that the VIP has, leaving that of `rest`, which are
    /// still to be added.
    fn health_without(&mut self, rest: &[Real]) -> Vec<(IpAddr, Health)> {
        let rest: BTreeSet<_> = rest.iter().map(Real::address).collect();
        let health = std::mem::take(&mut self.health).into_iter();
        let (later, now) = health.partition(|(address, _)| rest.contains(address));
        self.health = later;
        now
    }
}

/// Emits steps, and tracks which numbers they use.
struct Planner {
    steps: Vec<Step>,
    references: BTreeMap<IpAddr, usize>,
    flags: BTreeMap<IpAddr, RealFlags>,
    /// The reals that the wanted state names.
    wanted: BTreeSet<IpAddr>,
    free_vips: usize,
    free_reals: usize,
}

impl Planner {
    fn new(current: &State, wanted: &State, limits: Limits, steps: Vec<Step>) -> Self {
        let mut references = BTreeMap::new();
        let mut flags = BTreeMap::new();
        for real in current.vips.iter().flat_map(|state| &state.reals) {
            *references.entry(real.address()).or_insert(0) += 1;
            flags.insert(real.address(), stated_flags(real));
        }
        // Other names of reals while VIPs change.
        for real in current.names() {
            *references.entry(real).or_insert(0) += 1;
        }
        for step in &steps {
            let (Step::ServerIds(NameChange { references: of, .. })
            | Step::SourceRoutes(NameChange { references: of, .. })) = step
            else {
                continue;
            };
            for (real, delta) in of {
                let known: &mut usize = references.entry(*real).or_insert(0);
                *known = known.saturating_add_signed(*delta as isize);
            }
        }
        references.retain(|_, references| *references > 0);
        let wanted = wanted.vips.iter().flat_map(|state| &state.reals);
        Self {
            steps,
            free_vips: limits.max_vips.saturating_sub(current.vips.len()),
            free_reals: limits.max_reals.saturating_sub(references.len()),
            references,
            flags,
            wanted: wanted.map(Real::address).collect(),
        }
    }

    fn run(&mut self, mut works: Vec<Work>) {
        while !works.is_empty() {
            let before = works.len();
            works.retain_mut(|work| {
                let ready = self.fits(work) && !self.releases_wanted(work);
                if ready {
                    self.emit(work);
                }
                !ready
            });
            if works.len() < before || self.hold_wanted(&mut works) {
                continue;
            }
            if let Some(index) = works.iter().position(|work| self.fits(work)) {
                self.emit(&mut works.remove(index));
            } else if !works.iter_mut().any(|work| self.emit_part(work)) {
                // It cannot be done; the step that fails says what ran out.
                works.drain(..).for_each(|mut work| self.emit(&mut work));
            }
        }
    }

    /// Real flags that no step has set.
    fn finish(mut self, wanted: &State) -> Vec<Step> {
        for real in wanted.vips.iter().flat_map(|state| &state.reals) {
            let flags = stated_flags(real);
            if self.flags.insert(real.address(), flags) != Some(flags) {
                self.steps.push(Step::SetRealFlags(real.address(), flags));
            }
        }
        self.steps
    }

    fn is_known(&self, address: IpAddr) -> bool {
        self.references.contains_key(&address)
    }

    fn fits(&self, work: &Work) -> bool {
        let new = work
            .add
            .iter()
            .filter(|real| !self.is_known(real.address()));
        new.count() <= self.free_reals && (work.new.is_none() || self.free_vips > 0)
    }

    /// The wanted reals whose last reference this work would remove.
    fn endangered<'a>(&'a self, work: &'a Work) -> impl Iterator<Item = IpAddr> + 'a {
        work.remove.iter().copied().filter(|address| {
            self.wanted.contains(address) && self.references.get(address) == Some(&1)
        })
    }

    fn releases_wanted(&self, work: &Work) -> bool {
        self.endangered(work).next().is_some()
    }

    /// Adds endangered reals to a VIP that will have them, so that they survive.
    fn hold_wanted(&mut self, works: &mut [Work]) -> bool {
        let can_hold = |planner: &Self, work: &Work| {
            (work.new.is_none() || planner.free_vips > 0)
                && work
                    .add
                    .iter()
                    .any(|real| planner.references.get(&real.address()) == Some(&1))
        };
        if !works.iter().any(|work| can_hold(self, work)) {
            return false;
        }
        let endangered: BTreeSet<_> = works
            .iter()
            .flat_map(|work| self.endangered(work))
            .collect();
        for work in works {
            if !can_hold(self, work) {
                continue;
            }
            let (held, rest): (Vec<_>, _) = work
                .add
                .drain(..)
                .partition(|real| endangered.contains(&real.address()));
            if !held.is_empty() {
                let health = work.health_without(&rest);
                work.add = rest;
                self.emit(&mut Work {
                    vip: work.vip,
                    new: work.new.take(),
                    last: false,
                    add: held,
                    reweigh: Vec::new(),
                    remove: Vec::new(),
                    health,
                });
                return true;
            }
            work.add = rest;
        }
        false
    }

    /// Adds what there are numbers for, and removes half of what goes.
    fn emit_part(&mut self, work: &mut Work) -> bool {
        if work.new.is_some() && self.free_vips == 0 {
            return false;
        }
        let mut room = self.free_reals;
        let (add, rest): (Vec<_>, _) = work.add.drain(..).partition(|real| {
            let known = self.is_known(real.address());
            let fits = known || room > 0;
            room -= usize::from(fits && !known);
            fits
        });
        let remove: Vec<_> = work.remove.drain(..work.remove.len().div_ceil(2)).collect();
        if add.is_empty() && remove.is_empty() {
            work.add = rest;
            return false;
        }
        let health = work.health_without(&rest);
        work.add = rest;
        self.emit(&mut Work {
            vip: work.vip,
            new: work.new.take(),
            last: false,
            add,
            reweigh: std::mem::take(&mut work.reweigh),
            remove,
            health,
        });
        true
    }

    fn emit(&mut self, work: &mut Work) {
        let vip = work.vip;
        if let Some((flags, hash)) = work.new.take() {
            self.steps.push(Step::AddVip { vip, flags, hash });
            self.free_vips = self.free_vips.saturating_sub(1);
        }
        for real in &work.add {
            let references = self.references.entry(real.address()).or_insert(0);
            if *references == 0 {
                self.free_reals = self.free_reals.saturating_sub(1);
            }
            *references += 1;
            self.flags.insert(real.address(), stated_flags(real));
        }
        for address in &work.remove {
            if let Some(references) = self.references.get_mut(address) {
                *references -= 1;
                if *references == 0 {
                    self.references.remove(address);
                    self.flags.remove(address);
                    self.free_reals += 1;
                }
            }
        }
        if work.last {
            self.steps.push(Step::RemoveVip(vip));
            self.free_vips += 1;
            return;
        }
        let adds = work.add.drain(..).chain(work.reweigh.drain(..));
        let changes: Vec<_> = adds
            .map(RealChange::Add)
            .chain(work.remove.drain(..).map(RealChange::Remove))
            .collect();
        let health = std::mem::take(&mut work.health);
        if !changes.is_empty() || !health.is_empty() {
            self.steps.push(Step::ModifyReals {
                vip,
                changes,
                health,
            });
        }
    }
}
