//! A restored table equals the one that was written, whatever changes that had seen.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use fastrand::Rng;

use super::super::Table;
use super::super::names::Deltas;
use super::*;
use crate::mutate;
use crate::mutate::one_of;
use crate::types::Real;
use crate::types::RealChange;

fn vip(rng: &mut Rng) -> Vip {
    let port = rng.u16(1..4);
    let text = match rng.u32(0..3) {
        0 => format!("203.0.113.0/24:{port}/udp"),
        1 => format!("[2001:db8::1]:{port}/udp"),
        _ => format!("203.0.113.1:{port}/tcp"),
    };
    text.parse().unwrap()
}

fn real(rng: &mut Rng) -> IpAddr {
    let number = rng.u8(1..12);
    match rng.bool() {
        true => Ipv4Addr::new(198, 51, 100, number).into(),
        false => Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(number)).into(),
    }
}

/// A change that the table can take now, if the first random one is possible.
fn stage(table: &Table, rng: &mut Rng) -> Option<Edit> {
    let flags = one_of(rng, &[VipFlags::empty(), VipFlags::NO_SRC_PORT]);
    let hash = one_of(rng, &[HashFunction::Maglev, HashFunction::MaglevV2]);
    let (vip, address) = (vip(rng), real(rng));
    let edit: Edit = match rng.u32(0..10) {
        0 | 1 => table.stage_add_vip(vip, flags, hash).ok()?.into(),
        2 => table.stage_remove_vip(&vip).ok()?.into(),
        3 => table.stage_set_vip_flags(&vip, flags).ok()?.into(),
        4 => table.stage_set_hash_function(&vip, hash).ok()?.into(),
        5 => {
            let delta = one_of(rng, &[-1, 1, 2]);
            let named = table.real(address).map_or(0, |entry| entry.references);
            let of_vips = table
                .vips()
                .filter(|(_, of)| of.reals.contains_key(&address));
            if delta < 0 && named as usize <= of_vips.count() {
                return None;
            }
            table
                .stage_references(&Deltas::from([(address, delta)]))
                .ok()?
                .into()
        }
        6 => {
            let flags = one_of(rng, &[RealFlags::empty(), RealFlags::LOCAL_REAL]);
            table.stage_set_real_flags(address, flags).ok()?.into()
        }
        _ => {
            let changes = (0..rng.u32(0..4)).map(|_| match rng.u32(0..3) {
                0 => RealChange::Remove(real(rng)),
                _ => RealChange::Add(Real::new(real(rng)).weight(rng.u32(0..3))),
            });
            let changes: Vec<_> = changes.collect();
            let health =
                (0..rng.u32(0..2)).map(|_| (real(rng), one_of(rng, &[Health::Up, Health::Down])));
            let health: Vec<_> = health.collect();
            table.stage_reals(&vip, &changes, &health).ok()?.into()
        }
    };
    Some(edit)
}

/// Through bytes.
fn written<T: Serialize + for<'a> Deserialize<'a>>(value: &T) -> T {
    let bytes = postcard::to_stdvec(value).unwrap();
    postcard::from_bytes(&bytes).unwrap()
}

fn by_snapshot(table: &Table, limits: (u16, u16)) -> Table {
    let mut again = Table::new(limits.0, limits.1);
    for vip in table.stored_vips() {
        again.restore_vip(written(&vip)).unwrap();
    }
    for real in table.stored_reals() {
        again.restore_real(written(&real)).unwrap();
    }
    again
        .restore_numbers(written(&table.stored_numbers()))
        .unwrap();
    again
}

#[test]
fn what_was_written_makes_an_equal_table() {
    mutate::cases(if cfg!(miri) { 3 } else { 300 }, |rng| {
        let limits = (rng.u16(1..6), rng.u16(1..9));
        let mut table = Table::new(limits.0, limits.1);
        let mut again = table.clone();
        let mut made = 0;
        for _ in 0..rng.usize(0..150) {
            let Some(edit) = stage(&table, rng) else {
                continue;
            };
            let stored = written(&edit.stored());
            match rng.u32(0..5) {
                0 => {
                    table.abandon(edit);
                    again.restore_abandoned(stored).unwrap();
                }
                _ => {
                    table.commit(edit);
                    again.restore_edit(stored).unwrap();
                }
            }
            made += 1;
            if rng.bool() {
                table.settle(table.given_back());
            }
            if rng.u32(0..20) == 0 {
                again = by_snapshot(&table, limits);
            }
            again.check_whole().unwrap();
            assert_eq!(again.unsettled(), table.unsettled(), "after {made}");
        }
        assert_eq!(by_snapshot(&table, limits), table.unsettled());
    });
}

/// Changes that do not fit this table are refused, and others leave it whole.
#[test]
fn changes_of_another_table_are_refused_or_leave_it_whole() {
    let (mut taken, mut refused) = (0, 0);
    mutate::cases(if cfg!(miri) { 3 } else { 300 }, |rng| {
        let [mut table, mut other] = [(); 2].map(|()| Table::new(4, 7));
        for _ in 0..60 {
            let from = [&table, &other][rng.usize(0..2)];
            let Some(edit) = stage(from, rng) else {
                continue;
            };
            let mut stored = edit.stored();
            if rng.u32(0..4) == 0 {
                match rng.u32(0..4) {
                    0 => stored.numbers.taken += 1,
                    1 => stored.numbers.returned.push(rng.u16(0..9)),
                    2 => stored.vips.returned.push(rng.u16(0..9)),
                    _ => stored.reals.truncate(1),
                }
            }
            // Eventually this finds a real without a number.
            let before = table.clone();
            match table.restore_edit(stored) {
                Ok(()) if table.check_whole().is_err() => {
                    table = before;
                    refused += 1;
                }
                Ok(()) => taken += 1,
                Err(_) => {
                    assert_eq!(table, before);
                    refused += 1;
                }
            }
            if rng.bool()
                && let Some(edit) = stage(&other, rng)
            {
                other.commit(edit);
            }
        }
    });
    assert!(
        taken > 100 && refused > 100 || cfg!(miri),
        "{taken} {refused}"
    );
}

#[test]
fn snapshots_that_contradict_themselves_are_refused() {
    let mut table = Table::new(2, 4);
    let mut rng = Rng::with_seed(1);
    while table.vips().len() < 2
        || table.reals().len() < 2
        || table.given_back() == Table::new(2, 4).given_back()
    {
        if let Some(edit) = stage(&table, &mut rng) {
            table.commit(edit);
        }
    }
    let (vip, entry) = table.stored_vips().next().unwrap();
    let (address, real) = table.stored_reals().next().unwrap();
    let numbers = table.stored_numbers();
    let mut empty = Table::new(2, 4);
    let twice = StoredEntry {
        reals: vec![(address, 1), (address, 2)],
        ..entry.clone()
    };
    let unknown = StoredEntry {
        flags: 1 << 31,
        ..entry.clone()
    };
    let hash = StoredEntry {
        hash: 7,
        ..entry.clone()
    };
    for entry in [twice, unknown, hash] {
        assert!(empty.restore_vip((vip, entry)).is_err());
    }
    for real in [
        StoredReal {
            generation: 0,
            ..real
        },
        StoredReal {
            references: 0,
            ..real
        },
        StoredReal {
            flags: real.flags ^ RealFlags::IPV6.bits(),
            ..real
        },
    ] {
        assert!(empty.restore_real((address, real)).is_err());
    }
    for numbers in [
        StoredNumbers {
            fresh: [3, 1],
            ..numbers.clone()
        },
        StoredNumbers {
            fresh: [0, 6],
            ..numbers.clone()
        },
        StoredNumbers {
            fresh: [1, 1],
            returned: [vec![1], vec![]],
            ..numbers.clone()
        },
        // Beyond the last one.
        StoredNumbers {
            returned: [vec![9, 9], vec![]],
            ..numbers.clone()
        },
        StoredNumbers {
            fresh: [2, 5],
            returned: [vec![], vec![2, 2]],
            ..numbers.clone()
        },
    ] {
        assert!(empty.restore_numbers(numbers).is_err());
    }
    // A real without a number, and a missing real of a VIP.
    let mut table = Table::new(2, 4);
    table.restore_real((address, real)).unwrap();
    assert!(table.check_whole().is_err());
    assert!(table.restore_real((address, real)).is_err());
    let mut table = Table::new(2, 4);
    let entry = StoredEntry {
        reals: vec![(address, 1)],
        down: vec![],
        ..entry
    };
    table.restore_vip((vip, entry.clone())).unwrap();
    assert!(table.restore_vip((vip, entry)).is_err());
    table
        .restore_numbers(StoredNumbers {
            fresh: [2, 1],
            returned: [vec![], vec![]],
            generations: vec![],
        })
        .unwrap();
    assert!(table.check_whole().is_err());
}
