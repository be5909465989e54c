//! A ledger against a model: random changes of everything, killed before any store, corrupted, and
//! large.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::time::Duration;
use std::time::Instant;

use fastrand::Rng;

use super::heap::Heap;
use super::*;
use crate::config::Builder;
use crate::document::ProbeMatch;
use crate::mutate;
use crate::mutate::one_of;
use crate::table::Deltas;
use crate::table::Paper;
use crate::table::Room;
use crate::types::DecapMode;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::MacAddr;
use crate::types::Prefix;
use crate::types::Real;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::Vip;
use crate::types::VipFlags;

mod large;
mod steps;

fn builder() -> Builder {
    Builder::new()
        .gateway_mac(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .forwarding_cpus([0])
}

/// The recorded state of a balancer that has just been loaded.
fn loaded(builder: Builder) -> Kept {
    let config = builder.validate().unwrap();
    let drawn = Drawn {
        flow_keys: vec![1, u64::MAX, 3],
        vip_keys: vec![5],
        server_id_keys: [7, 8],
        hash_seeds: (7, 8),
        tick: 4_000_000,
        possible_cpus: 2,
    };
    Kept::start(&config.stored().unwrap(), drawn).unwrap()
}

fn small() -> Kept {
    loaded(builder().max_vips(5).max_reals(9).max_server_ids(20))
}

fn real(rng: &mut Rng) -> IpAddr {
    let number = rng.u8(1..12);
    match rng.bool() {
        true => Ipv4Addr::new(198, 51, 100, number).into(),
        false => Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(number)).into(),
    }
}

fn vip(rng: &mut Rng) -> Vip {
    Vip::tcp((Ipv4Addr::new(203, 0, 113, rng.u8(1..7)), 80).into())
}

fn prefix(rng: &mut Rng) -> Prefix {
    Prefix::new(Ipv4Addr::new(10, rng.u8(0..6), 0, 0).into(), 16).unwrap()
}

/// A change of the table, if the first random one is possible.
fn paper(kept: &Kept, rng: &mut Rng) -> Option<Paper> {
    let table = &kept.table;
    let vip = vip(rng);
    let flags = one_of(rng, &[VipFlags::empty(), VipFlags::NO_SRC_PORT]);
    let hash = HashFunction::MaglevV2;
    Some(match rng.u32(0..6) {
        0 => table.stage_add_vip(vip, flags, hash).ok()?.into(),
        1 if rng.bool() => table.stage_remove_vip(&vip).ok()?.into(),
        2 => table.stage_set_vip_flags(&vip, flags).ok()?.into(),
        3 => {
            let flags = one_of(rng, &[RealFlags::empty(), RealFlags::LOCAL_REAL]);
            table.stage_set_real_flags(real(rng), flags).ok()?.into()
        }
        _ => {
            let changes = (0..rng.u32(1..4)).map(|_| match rng.u32(0..3) {
                0 => RealChange::Remove(real(rng)),
                _ => RealChange::Add(Real::new(real(rng)).weight(rng.u32(0..3))),
            });
            let changes: Vec<_> = changes.collect();
            let down = [(real(rng), Health::Down)];
            let down: &[_] = if rng.bool() { &down } else { &[] };
            table.stage_reals(&vip, &changes, down).ok()?.into()
        }
    })
}

/// Names that come and go, with what that means for reals.
fn names(kept: &Kept, rng: &mut Rng) -> Option<(Paper, Change)> {
    let table = &kept.table;
    let paper = |deltas: &Deltas| table.stage_references(deltas).ok();
    let to = real(rng);
    match rng.bool() {
        true => {
            let of = |rng: &mut Rng| rng.u32(1..30);
            let remove: Vec<u32> = kept
                .server_ids
                .iter()
                .map(|(id, _)| id)
                .filter(|_| rng.u32(0..4) == 0)
                .collect();
            let add = [(of(rng), to)];
            let deltas = kept
                .server_ids
                .stage(&remove, &add, Room::Limited, table)
                .ok()?;
            let staged = paper(&deltas)?;
            let number = number_of(kept, &staged, to)?;
            let add = vec![(add[0].0, number)];
            Some((staged.into(), Change::ServerIds { remove, add }))
        }
        false => {
            let remove: Vec<Prefix> = kept
                .source_routes
                .iter()
                .map(|(prefix, _)| prefix)
                .filter(|_| rng.u32(0..4) == 0)
                .collect();
            let add = [(prefix(rng), to)];
            let deltas = kept
                .source_routes
                .stage(&remove, &add, Room::Limited, table)
                .ok()?;
            let staged = paper(&deltas)?;
            let number = number_of(kept, &staged, to)?;
            let remove = remove.into_iter().map(Into::into).collect();
            let add = vec![(add[0].0.into(), number)];
            Some((staged.into(), Change::SourceRoutes { remove, add }))
        }
    }
}

fn number_of(kept: &Kept, staged: &crate::table::StagedReferences, real: IpAddr) -> Option<u16> {
    let staged = staged.records.get(&real).map(|record| record.number.0);
    staged.or_else(|| Some(kept.table.real_index(real)?.0))
}

/// Anything else.
fn other(kept: &Kept, rng: &mut Rng) -> Change {
    let small = &kept.small;
    match rng.u32(0..7) {
        0 => {
            let mut config = kept.config.clone();
            config.source_v4 = one_of(rng, &[None, Some(Ipv4Addr::new(192, 0, 2, 1))]);
            config.gateway_mac_v6 = Some(MacAddr::new([2, 0, 0, 0, 0, rng.u8(..)]));
            Change::Settings(config.stored().unwrap())
        }
        1 => {
            let ids = kept.server_ids.iter().map(|(id, _)| id);
            let ids = ids.filter(|_| rng.bool()).collect();
            Change::Validity {
                ids,
                valid: rng.bool(),
            }
        }
        2 => Change::Decap(
            real(rng),
            one_of(rng, &[None, Some(DecapMode::Inline.stored())]),
        ),
        3 => Change::Mark(rng.u32(1..4), Some(real(rng)).filter(|_| rng.bool())),
        4 => {
            let by = one_of(rng, &[ProbeMatch::Destination, ProbeMatch::Source]);
            let by = by((real(rng), 80).into());
            Change::Match(by.into(), Some(real(rng)).filter(|_| rng.bool()))
        }
        5 => Change::Probe(vip(rng).into(), small.probes.is_empty() || rng.bool()),
        _ => Change::Watched(Some(vip(rng).into()).filter(|_| rng.bool())),
    }
}

fn intent(kept: &Kept, rng: &mut Rng) -> Intent {
    match rng.u32(0..4) {
        0 => Intent {
            edit: None,
            changes: vec![other(kept, rng)],
        },
        1 => names(kept, rng).map_or_else(Intent::default, |(paper, change)| Intent {
            edit: Some(paper.stored()),
            changes: vec![change],
        }),
        _ => Intent {
            edit: paper(kept, rng).map(|paper| paper.stored()),
            changes: Vec::new(),
        },
    }
}

/// How a change ends.
#[derive(Clone, Copy)]
enum End {
    Done,
    Undone { met: bool },
}

fn some_end(rng: &mut Rng) -> End {
    match rng.u32(0..6) {
        0 => End::Undone { met: rng.bool() },
        _ => End::Done,
    }
}

/// A call of the balancer.
fn change(ledger: &mut Ledger, kept: &mut Kept, intent: &Intent, end: End) -> io::Result<()> {
    ledger.intend(intent.clone(), || Ok(kept.view()))?;
    match end {
        End::Done => {
            kept.finish(intent.clone()).unwrap();
            ledger.done();
        }
        End::Undone { met } => {
            kept.give_up(intent.clone(), met).unwrap();
            ledger.undone(met);
        }
    }
    Ok(())
}

fn read(heap: &Heap) -> Result<(Ledger, Replayed), Refused> {
    Ledger::read(Box::new(heap.clone()))
}

/// Another process's view: no numbers are settled there.
fn elsewhere(kept: &Kept) -> Kept {
    Kept {
        table: kept.table.unsettled(),
        ..kept.clone()
    }
}

fn assert_same(found: &Kept, kept: &Kept) {
    assert_eq!(elsewhere(found), elsewhere(kept));
}

/// Small enough that it always needs snapshots and larger grounds.
fn begun(kept: &Kept) -> (Heap, Ledger) {
    let heap = Heap::new(2048);
    let ledger = Ledger::create(Box::new(heap.clone()), &kept.view()).unwrap();
    (heap, ledger)
}

#[test]
fn what_was_done_is_known_to_the_next_owner() {
    mutate::cases(80, |rng| {
        let mut kept = small();
        let (heap, mut ledger) = begun(&kept);
        for _ in 0..rng.usize(0..300) {
            let intent = intent(&kept, rng);
            change(&mut ledger, &mut kept, &intent, some_end(rng)).unwrap();
            kept.table.settle(kept.table.given_back());
            if rng.u32(0..40) == 0 {
                let found = read(&heap.found()).unwrap().1;
                assert!(found.under_way.is_none() && found.before.is_none());
                assert_same(&found.kept, &kept);
            }
        }
        let (_, found) = read(&heap.found()).unwrap();
        assert_same(&found.kept, &kept);
        assert_eq!(found.kept.state(), kept.state());
    });
}

/// Killed before any store of a change: the next owner knows the state before it or after it, or
/// the one before with the whole change; and however it ends that, the owner after it knows the
/// same.
#[test]
fn a_change_that_is_cut_off_is_known_whole() {
    mutate::cases(25, |rng| {
        let mut kept = small();
        let (heap, mut ledger) = begun(&kept);
        for _ in 0..rng.usize(0..150) {
            let intent = intent(&kept, rng);
            change(&mut ledger, &mut kept, &intent, some_end(rng)).unwrap();
        }
        for _ in 0..6 {
            let (intent, end) = (intent(&kept, rng), some_end(rng));
            let (mut stores, mut seen) = (0, [0; 3]);
            loop {
                let left = heap.found();
                let (mut ledger, before) = read(&left).unwrap();
                let mut after = before.kept.clone();
                let lived = death::after(stores, || {
                    change(&mut ledger, &mut after, &intent, end).unwrap();
                });
                let next = left.found();
                let (mut ledger, mut found) = read(&next).unwrap();
                match found.under_way.take() {
                    Some(under_way) => {
                        assert_eq!(under_way, intent);
                        assert_same(&found.kept, &before.kept);
                        let met = rng.bool();
                        match rng.bool() {
                            true => {
                                found.kept.finish(under_way).unwrap();
                                ledger.done();
                            }
                            false => {
                                found.kept.give_up(under_way, met).unwrap();
                                ledger.undone(met);
                            }
                        }
                        let last = read(&next.found()).unwrap().1;
                        assert!(last.under_way.is_none());
                        assert_same(&last.kept, &found.kept);
                        seen[1] += 1;
                    }
                    None if seen[1] == 0 => {
                        assert_same(&found.kept, &before.kept);
                        seen[0] += 1;
                    }
                    None => {
                        assert_same(&found.kept, &after);
                        seen[2] += 1;
                    }
                }
                if lived.is_some() {
                    break;
                }
                stores += 1;
            }
            assert!(seen.iter().all(|times| *times > 0), "{seen:?}");
            change(&mut ledger, &mut kept, &intent, end).unwrap();
        }
    });
}

#[test]
fn a_change_that_there_is_no_memory_for_is_not_made() {
    let kept = small();
    let heap = Heap::new(1 << 13).limited(1 << 13);
    let mut ledger = Ledger::create(Box::new(heap.clone()), &kept.view()).unwrap();
    let ids = Change::Validity {
        ids: (0..4000).collect(),
        valid: true,
    };
    let intent = Intent {
        edit: None,
        changes: vec![ids],
    };
    ledger.intend(intent, || Ok(kept.view())).unwrap_err();
    let found = read(&heap.found()).unwrap().1;
    assert!(found.under_way.is_none());
    assert_same(&found.kept, &kept);
    // And the next one is.
    let intent = Intent {
        edit: None,
        changes: vec![Change::Mark(1, None)],
    };
    ledger.intend(intent, || Ok(kept.view())).unwrap();
}

/// A change that cannot be refused is made, and in the next snapshot.
#[test]
fn what_was_not_written_is_in_the_next_snapshot() {
    let mut kept = small();
    let (heap, mut ledger) = begun(&kept);
    kept.small.watched = Some("203.0.113.1:80/tcp".parse().unwrap());
    ledger.fall_behind();
    let mark = Intent {
        edit: None,
        changes: vec![Change::Mark(9, None)],
    };
    change(&mut ledger, &mut kept, &mark, End::Done).unwrap();
    assert_same(&read(&heap.found()).unwrap().1.kept, &kept);
}

/// A change of one mark of probes.
fn mark(mark: u32) -> Intent {
    Intent {
        edit: None,
        changes: vec![Change::Mark(
            mark,
            Some(Ipv4Addr::new(198, 51, 100, 1).into()),
        )],
    }
}

/// A panic that the application has caught: the result of that change is in the snapshot.
#[test]
fn a_change_that_has_not_come_to_its_end_is_none_for_the_next_one() {
    let mut kept = small();
    let (heap, mut ledger) = begun(&kept);
    ledger.intend(mark(1), || Ok(kept.view())).unwrap();
    kept.finish(mark(2)).unwrap();
    ledger.intend(mark(3), || Ok(kept.view())).unwrap();
    let found = read(&heap.found()).unwrap().1;
    assert_same(&found.kept, &kept);
    assert_eq!(found.under_way, Some(mark(3)));
}

#[test]
fn a_mutated_ledger_is_read_or_refused() {
    let (mut taken, mut refused) = (0, 0);
    mutate::cases(2000, |rng| {
        let mut kept = small();
        let (heap, mut ledger) = begun(&kept);
        for _ in 0..rng.usize(0..12) {
            let intent = intent(&kept, rng);
            change(&mut ledger, &mut kept, &intent, End::Done).unwrap();
        }
        // With a correct checksum, as another version might write it.
        let mut record = encode(&Record::Intent(intent(&kept, rng))).unwrap();
        mutate::bytes(rng, &mut record);
        if record.is_empty() {
            return;
        }
        ledger.log.append(&record[..record.len().min(200)]);
        ledger.log.append(&encode(&Record::Done).unwrap());
        match read(&heap.found()) {
            Ok((_, found)) => {
                found.kept.check_whole().unwrap();
                taken += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("cannot be read"), "{error}");
                refused += 1;
            }
        }
    });
    assert!(taken > 20 && refused > 20, "{taken} {refused}");
}
