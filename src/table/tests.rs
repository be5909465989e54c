//! Single cases of the table and of plans; `proptests` has general properties.

use std::net::IpAddr;
use std::net::Ipv4Addr;

use super::Limits;
use super::Plan;
use super::Step;
use super::Table;
use super::plan::plan;
use super::step::Order;
use crate::config::BalancerState;
use crate::config::LiveSetting;
use crate::document::State;
use crate::document::VipState;
use crate::error::Error;
use crate::types::HashFunction;
use crate::types::MacAddr;
use crate::types::Real;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::Vip;
use crate::types::VipFlags;

const AMPLE: Limits = Limits {
    max_vips: 8,
    max_reals: 8,
};

fn vip(index: u8) -> Vip {
    Vip::tcp((Ipv4Addr::new(203, 0, 113, index + 1), 80).into())
}

fn address(index: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, index).into()
}

fn state(vips: &[(u8, &[u8])]) -> State {
    let vips = vips.iter().map(|(index, reals)| VipState {
        reals: reals.iter().map(|real| Real::new(address(*real))).collect(),
        ..VipState::new(vip(*index))
    });
    State {
        vips: vips.collect(),
        ..State::default()
    }
}

fn add(table: &mut Table, index: u8, reals: &[u8]) -> Result<(), Error> {
    table.take_step(&Step::AddVip {
        vip: vip(index),
        flags: VipFlags::empty(),
        hash: HashFunction::MaglevV2,
    })?;
    modify(table, index, reals, &[])
}

fn modify(table: &mut Table, index: u8, adds: &[u8], removes: &[u8]) -> Result<(), Error> {
    let adds = adds
        .iter()
        .map(|index| RealChange::Add(Real::new(address(*index))));
    let removes = removes
        .iter()
        .map(|index| RealChange::Remove(address(*index)));
    table.take_step(&Step::ModifyReals {
        vip: vip(index),
        changes: adds.chain(removes).collect(),
        health: Vec::new(),
    })
}

#[test]
fn numbers_come_back_late_unsettled_and_with_a_new_generation() {
    let mut table = Table::new(2, 2);
    add(&mut table, 0, &[0, 1]).unwrap();
    let full = modify(&mut table, 0, &[2], &[0]);
    assert!(
        matches!(full, Err(Error::Exhausted { limit: 2, .. })),
        "{full:?}"
    );
    modify(&mut table, 0, &[], &[0]).unwrap();
    let batch = [RealChange::Add(Real::new(address(2)))];
    let staged = table.stage_reals(&vip(0), &batch, &[]).unwrap();
    assert!(staged.unsettled);
    let record = staged.added[0];
    assert_eq!((record.number.get(), record.generation), (1, 2));
    table.settle(table.given_back());
    assert!(!table.stage_reals(&vip(0), &batch, &[]).unwrap().unsettled);
    // Settling does not change the table: staged changes can still be committed.
    table.commit(staged);
    assert_eq!(table.real_index(address(2)), Some(record.number));
}

#[test]
fn calls_on_what_is_or_is_not_there() {
    let mut table = Table::new(1, 4);
    add(&mut table, 0, &[0]).unwrap();
    assert!(matches!(
        add(&mut table, 0, &[]),
        Err(Error::AlreadyExists { .. })
    ));
    assert!(matches!(
        add(&mut table, 1, &[]),
        Err(Error::Exhausted { limit: 1, .. })
    ));
    assert!(matches!(
        modify(&mut table, 1, &[0], &[]),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        modify(&mut table, 0, &[], &[0, 0]),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        table.stage_set_real_flags(address(1), RealFlags::LOCAL_REAL),
        Err(Error::NotFound { .. })
    ));
    let loopback = RealChange::Add(Real::new(Ipv4Addr::LOCALHOST.into()));
    assert!(matches!(
        table.stage_reals(&vip(0), &[loopback], &[]),
        Err(Error::InvalidAddress { .. })
    ));
    // The last real leaves an empty ring, which is a change of the ring.
    let staged = table
        .stage_reals(&vip(0), &[RealChange::Remove(address(0))], &[])
        .unwrap();
    assert!(staged.ring_changed && staged.endpoints.is_empty());
    // A drained real keeps its number and loses its slots.
    let drain = RealChange::Add(Real::new(address(0)).weight(0));
    let staged = table.stage_reals(&vip(0), &[drain], &[]).unwrap();
    assert!(staged.ring_changed && staged.released.is_empty());
    assert_eq!(staged.endpoints[0].weight, 0);
}

#[test]
#[should_panic = "another change came between"]
fn a_change_is_for_the_table_it_was_staged_for() {
    let mut table = Table::new(2, 2);
    let staged = table
        .stage_add_vip(vip(0), VipFlags::empty(), HashFunction::Maglev)
        .unwrap();
    add(&mut table, 1, &[]).unwrap();
    table.commit(staged);
}

#[test]
fn settings_that_can_change_are_steps() {
    let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
    let with = |balancer| State {
        balancer: Some(balancer),
        ..State::default()
    };
    let current = with(BalancerState {
        gateway_mac: Some(mac.into()),
        max_vips: Some(512),
        ..BalancerState::default()
    });
    assert_eq!(
        plan(&current, &current, AMPLE, Order::Gapless).unwrap(),
        Plan::default()
    );
    assert_eq!(
        plan(&current, &State::default(), AMPLE, Order::Gapless).unwrap(),
        Plan::default()
    );
    let other = MacAddr::new([2, 0, 0, 0, 0, 2]);
    let source: Ipv4Addr = "10.0.0.1".parse().unwrap();
    let wanted = with(BalancerState {
        gateway_mac: Some(other.into()),
        source_v4: Some(source),
        ..BalancerState::default()
    });
    let plan_made = plan(&current, &wanted, AMPLE, Order::Gapless).unwrap();
    assert_eq!(
        plan_made.steps,
        [
            Step::Set(LiveSetting::gateway_mac(other.into())),
            Step::Set(LiveSetting::source_v4(Some(source)))
        ]
    );
    assert_eq!(
        plan_made.changes.to_string(),
        "2 settings changed (gateway_mac, source_v4)"
    );
    let wanted = with(BalancerState {
        gateway_mac: Some(MacAddr::new([0xff; 6]).into()),
        ..BalancerState::default()
    });
    assert!(plan(&current, &wanted, AMPLE, Order::Gapless).is_err());
}

#[test]
fn one_step_for_each_vip_that_changes() {
    let from = state(&[(0, &[0, 1]), (1, &[0, 1]), (2, &[2])]);
    let to = state(&[(0, &[0, 1]), (1, &[1, 3, 4]), (3, &[2])]);
    let plan_made = plan(&from, &to, AMPLE, Order::Gapless).unwrap();
    let reals: Vec<_> = plan_made
        .steps
        .iter()
        .map(|step| match step {
            Step::ModifyReals { vip, changes, .. } => format!("{vip} {}", changes.len()),
            Step::AddVip { vip, .. } => format!("+{vip}"),
            Step::RemoveVip(vip) => format!("-{vip}"),
            other => format!("{other:?}"),
        })
        .collect();
    // Real 2 moves to VIP 3 before VIP 2 lets it go.
    assert_eq!(
        reals,
        [
            "203.0.113.2:80/tcp 3",
            "+203.0.113.4:80/tcp",
            "203.0.113.4:80/tcp 1",
            "-203.0.113.3:80/tcp"
        ]
    );
    assert_eq!(
        plan_made.changes.to_string(),
        "1 VIP added, 1 VIP removed, 3 reals added, 2 reals removed"
    );
}

#[test]
fn a_full_table_is_swapped_in_parts_and_never_empty() {
    let (old, new): (Vec<u8>, Vec<u8>) = ((0..100).collect(), (100..200).collect());
    let limits = Limits {
        max_vips: 1,
        max_reals: 100,
    };
    let mut table = Table::new(1, 100);
    add(&mut table, 0, &old).unwrap();
    let plan_made = plan(
        &state(&[(0, &old)]),
        &state(&[(0, &new)]),
        limits,
        Order::Gapless,
    )
    .unwrap();
    assert!(plan_made.steps.len() <= 8, "{}", plan_made.steps.len());
    table.rehearse(&plan_made.steps).unwrap();
    for step in &plan_made.steps {
        table.take_step(step).unwrap();
        assert!(table.vip(&vip(0)).unwrap().reals.len() >= 50);
    }
}

#[test]
fn what_cannot_fit_is_refused_by_the_rehearsal() {
    let mut table = Table::new(1, 2);
    add(&mut table, 0, &[0]).unwrap();
    let limits = Limits {
        max_vips: 1,
        max_reals: 2,
    };
    let current = state(&[(0, &[0])]);
    let steps = plan(&current, &state(&[(0, &[1, 2, 3])]), limits, Order::Gapless)
        .unwrap()
        .steps;
    let refused = table.rehearse(&steps);
    assert!(
        matches!(refused, Err(Error::Exhausted { limit: 2, .. })),
        "{refused:?}"
    );
    let steps = plan(
        &current,
        &state(&[(0, &[]), (1, &[])]),
        limits,
        Order::Gapless,
    )
    .unwrap()
    .steps;
    let refused = table.rehearse(&steps);
    assert!(
        matches!(refused, Err(Error::Exhausted { limit: 1, .. })),
        "{refused:?}"
    );
}
