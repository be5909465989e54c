//! The part of a plan for server ids, source routes and tunnel ends.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::names::Deltas;
use super::names::Name;
use super::step::NameChange;
use super::step::Order;
use super::step::Step;
use crate::document::Changes;
use crate::document::ServerIdState;
use crate::document::State;
use crate::types::Prefix;

/// Steps before and after those of the VIPs.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) before: Vec<Step>,
    pub(super) after: Vec<Step>,
}

pub(super) fn around(current: &State, wanted: &State, changes: &Changes, order: Order) -> Around {
    let mut around = Around::default();
    let vips = |state: &State| -> BTreeSet<IpAddr> {
        let reals = state.vips.iter().flat_map(|vip| &vip.reals);
        reals.map(|real| real.address()).collect()
    };
    // Reals that a VIP is about to name: their current names go after that, or their flows would be
    // lost.
    let awaited: BTreeSet<IpAddr> = vips(wanted).difference(&vips(current)).copied().collect();
    // Reals that stay or come, for any reason.
    let all: BTreeSet<IpAddr> = vips(wanted).into_iter().chain(wanted.names()).collect();
    let parts = match order {
        Order::Gapless => Parts::Gapless { awaited: &awaited },
        Order::Frugal => Parts::Frugal { wanted: &all },
    };

    let ids = [current, wanted].map(|state| -> BTreeMap<u32, IpAddr> {
        let ids = state.server_ids.iter();
        ids.map(|state| (state.id.id(), state.id.real())).collect()
    });
    let of_ids = changes_of(&ids, &parts);
    let mut deltas: Vec<_> = of_ids
        .iter()
        .flatten()
        .map(|of| of.references.clone())
        .collect();
    let [before, after] = of_ids;
    around.before.extend(before.map(Step::ServerIds));
    around.after.extend(after.map(Step::ServerIds));
    validity(current, wanted, &mut around.after);

    let routes = [current, wanted].map(|state| -> BTreeMap<Prefix, IpAddr> {
        let routes = state.source_routes.iter();
        routes.map(|route| (route.prefix(), route.real())).collect()
    });
    let of_routes = changes_of(&routes, &parts);
    deltas.extend(of_routes.iter().flatten().map(|of| of.references.clone()));
    let [before, after] = of_routes;
    around.before.extend(before.map(Step::SourceRoutes));
    around.after.extend(after.map(Step::SourceRoutes));

    let ends = wanted.decap.iter();
    let modes: BTreeMap<_, _> = ends.map(|end| (end.address, end.mode)).collect();
    let removed = changes.decap_removed.iter();
    around
        .before
        .extend(removed.map(|end| Step::RemoveDecap(*end)));
    for end in changes.decap_added.iter().chain(&changes.decap_changed) {
        around.before.push(Step::SetDecap(*end, modes[end]));
    }
    let held = handed_over(&deltas);
    if !held.is_empty() {
        let let_go = held.iter().map(|(real, delta)| (*real, -delta)).collect();
        around.before.insert(0, Step::Hold(held));
        around.after.push(Step::Hold(let_go));
    }
    around
}

/// The reals that one change takes a reference from, and another gives one to.
fn handed_over(changes: &[Deltas]) -> Deltas {
    let of = |sign: i64| -> BTreeSet<IpAddr> {
        let all = changes.iter().flatten();
        all.filter(|(_, delta)| delta.signum() == sign)
            .map(|(real, _)| *real)
            .collect()
    };
    of(-1).intersection(&of(1)).map(|real| (*real, 1)).collect()
}

/// What decides whether a change comes before those of VIPs or after them.
enum Parts<'a> {
    Gapless { awaited: &'a BTreeSet<IpAddr> },
    Frugal { wanted: &'a BTreeSet<IpAddr> },
}

/// The changes from the first names to the second ones, before and after VIPs change.
fn changes_of<K: Name>(
    [current, wanted]: &[BTreeMap<K, IpAddr>; 2],
    parts: &Parts<'_>,
) -> [Option<NameChange<K>>; 2] {
    let mut changes = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    const BEFORE: usize = 0;
    const AFTER: usize = 1;
    for (name, old) in current {
        let new = wanted.get(name);
        if new == Some(old) {
            continue;
        }
        let (going, coming) = match parts {
            Parts::Gapless { awaited } if awaited.contains(old) => (AFTER, AFTER),
            Parts::Gapless { .. } => (BEFORE, BEFORE),
            // A removal returns a number.
            Parts::Frugal { wanted } if !wanted.contains(old) => (BEFORE, AFTER),
            Parts::Frugal { .. } => (AFTER, AFTER),
        };
        changes[going].0.push(*name);
        changes[coming].1.extend(new.map(|real| (*name, *real)));
    }
    let new = wanted
        .iter()
        .filter(|(name, _)| !current.contains_key(name));
    let coming = match parts {
        Parts::Gapless { .. } => BEFORE,
        Parts::Frugal { .. } => AFTER,
    };
    changes[coming]
        .1
        .extend(new.map(|(name, real)| (*name, *real)));
    changes.map(|(remove, add)| {
        let mut references = Deltas::new();
        for name in &remove {
            *references.entry(current[name]).or_insert(0) -= 1;
        }
        for (_, real) in &add {
            *references.entry(*real).or_insert(0) += 1;
        }
        let some = !remove.is_empty() || !add.is_empty();
        some.then_some(NameChange {
            remove,
            add,
            references,
        })
    })
}

/// Ids to make invalid, or valid again.
fn validity(current: &State, wanted: &State, steps: &mut Vec<Step>) {
    let before: BTreeMap<u32, ServerIdState> = current
        .server_ids
        .iter()
        .map(|state| (state.id.id(), *state))
        .collect();
    // A new id, or one with another real, is valid afterwards.
    let was_valid = |state: &ServerIdState| {
        let before = before.get(&state.id.id());
        before.is_none_or(|before| before.valid || before.id != state.id)
    };
    let switched = |valid: bool| -> Vec<u32> {
        let ids = wanted.server_ids.iter();
        ids.filter(|state| state.valid == valid && was_valid(state) != valid)
            .map(|state| state.id.id())
            .collect()
    };
    let (invalid, valid) = (switched(false), switched(true));
    if !invalid.is_empty() {
        steps.push(Step::Invalidate(invalid));
    }
    if !valid.is_empty() {
        steps.push(Step::Revalidate(valid));
    }
}
