//! Plans lead from any state to any other that fits, and documents say all that states say.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::super::Limits;
use super::super::Plan;
use super::super::plan::plan;
use super::super::step::Order;
use super::universe::AMPLE;
use super::universe::World;
use super::universe::check_invariants;
use super::universe::config;
use super::universe::normal;
use super::universe::reach;
use super::universe::snapshot;
use super::universe::state;
use super::universe::table;
use super::universe::whole_state;
use crate::document::State;
use crate::types::Real;

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

    /// The same for everything that a state can contain; and a real that a VIP, an id or a route
    /// names before and after is never released in between.
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

    /// Even if every number is in use, any state that fits can be reached; and while there are
    /// numbers for both, no VIP has fewer reals on the way than before or after.
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

    /// The same if ids and routes name reals, too, in one state or both.
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

    /// The document says everything that the state says.
    #[cfg(feature = "serde")]
    #[test]
    fn documents_round_trip(state in whole_state()) {
        let text = state.to_toml().unwrap();
        prop_assert_eq!(State::from_toml(&text).unwrap(), state);
    }
}
