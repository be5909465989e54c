//! Staging changes nothing, and describes the table after the commit.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::super::RealRecord;
use super::super::Step;
use super::super::Table;
use super::universe::AMPLE;
use super::universe::REALS;
use super::universe::address;
use super::universe::check_invariants;
use super::universe::config;
use super::universe::reach;
use super::universe::real_flags;
use super::universe::state;
use super::universe::table;
use crate::error::Error;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::Real;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::VipFlags;

proptest! {
    #![proptest_config(config())]

    /// A dropped change changes nothing, and neither does a refused one.
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

    /// A staged batch describes the table after the commit.
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
        // Down before, and still there; then by `health`.
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
}
