//! How long it takes to build a ring of 65,537 slots, for 10 to 4,000 reals of equal or mixed
//! weights. Every ring is checked before it is timed.
//!
//! Successive rings have different reals: a CPU that keeps building one ring learns to predict
//! which slots are taken, and is a fifth faster than on a real update. `plain` is the literal
//! definition of a ring with equal weights, on the same machine.

use std::hint::black_box;
use std::iter;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use katran::HashFunction;
use katran::ring::Endpoint;
use katran::ring::Ring;
use katran::ring::RingSize;

const WEIGHTS: [(&str, Weight); 2] = [("equal", |_| 1), ("mixed", |i| 1 + (i - 1) * 37 % 100)];

type Weight = fn(u32) -> u32;

/// Rings built in turn.
const SERVICES: u32 = 64;

fn build_rings(criterion: &mut Criterion) {
    check_recorded_rings();
    for function in [HashFunction::Maglev, HashFunction::MaglevV2] {
        for (name, weight) in WEIGHTS {
            let mut group = criterion.benchmark_group(format!("{function}/{name}"));
            group
                .warm_up_time(Duration::from_millis(200))
                .measurement_time(Duration::from_secs(2));
            for reals in [10, 100, 400, 1000, 4000] {
                let services: Vec<Vec<Endpoint>> = (0..SERVICES)
                    .map(|service| endpoints(service, reals, weight))
                    .collect();
                for endpoints in &services {
                    check_shares(function, endpoints);
                }
                let mut services = services.iter().cycle();
                group.bench_function(BenchmarkId::from_parameter(reals), |bencher| {
                    bencher.iter(|| services.next().map(|it| build(function, black_box(it))));
                });
            }
            group.finish();
        }
    }
}

fn build_plainly(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plain/equal");
    group
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(2));
    for reals in [10, 100, 400, 1000, 4000] {
        let services: Vec<Vec<(u32, u32)>> = (0..SERVICES)
            .map(|service| {
                let hashes = endpoints(service, reals, |_| 1).into_iter();
                // Any evenly spread offsets and skips will do.
                hashes
                    .map(|endpoint| endpoint.hash())
                    .map(|hash| (hash as u32 % 65_537, (hash >> 32) as u32 % 65_536 + 1))
                    .collect()
            })
            .collect();
        let mut services = services.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(reals), |bencher| {
            bencher.iter(|| {
                let sequences = services.next().map_or(&[][..], Vec::as_slice);
                plain(black_box(65_537), sequences)
            });
        });
    }
    group.finish();
}

/// The ring by its definition, for endpoints with these offsets and skips: its slots hold indices.
fn plain(size: u32, sequences: &[(u32, u32)]) -> Vec<i32> {
    let mut slots = vec![-1; size as usize];
    let mut tested = vec![0_u32; sequences.len()];
    let mut free = size;
    for turn in iter::repeat(0..sequences.len()).flatten() {
        let (offset, skip) = sequences[turn];
        let slot = loop {
            let slot = offset.wrapping_add(tested[turn].wrapping_mul(skip)) % size;
            tested[turn] += 1;
            if slots[slot as usize] < 0 {
                break slot;
            }
        };
        slots[slot as usize] = turn as i32;
        free -= 1;
        if free == 0 {
            break;
        }
    }
    slots
}

fn build(function: HashFunction, endpoints: &[Endpoint]) -> Ring {
    Ring::build(function, RingSize::DEFAULT, endpoints).unwrap_or_else(|error| panic!("{error}"))
}

/// Consecutive reals, from 10.0.0.1 for the first service, each with a weight.
fn endpoints(service: u32, reals: u16, weight: Weight) -> Vec<Endpoint> {
    (1..=reals)
        .map(|i| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + (service << 16) + u32::from(i));
            Endpoint::new(i, address.into(), weight(i.into()))
        })
        .collect()
}

/// Compares the rings of 1,000 endpoints with mixed weights to the FNV-1a hashes in
/// `tests/vectors/rings.json`.
fn check_recorded_rings() {
    let endpoints: Vec<Endpoint> = (1..=1000)
        .map(|i| {
            let hash = u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Endpoint::with_hash(i, hash, WEIGHTS[1].1(i.into()))
        })
        .collect();
    for (function, expected) in [
        (HashFunction::Maglev, 0x50d4_118f_cf10_0647),
        (HashFunction::MaglevV2, 0x4aa8_20c3_618f_317f),
    ] {
        let ring = build(function, &endpoints);
        let words = ring.slots().iter().map(|&slot| u32::from(slot));
        let hash = words
            .flat_map(u32::to_le_bytes)
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        assert_eq!(hash, expected, "{function}");
    }
}

/// Checks that no slot is empty, and that equal weights have equal shares.
fn check_shares(function: HashFunction, endpoints: &[Endpoint]) {
    let shares = build(function, endpoints).shares();
    assert_eq!(shares.values().sum::<u32>(), RingSize::DEFAULT.get());
    if endpoints.iter().all(|endpoint| endpoint.weight() == 1) {
        let (least, most) = (shares.values().min(), shares.values().max());
        assert!(
            least
                .zip(most)
                .is_some_and(|(least, most)| most - least <= 1)
        );
        assert_eq!(shares.len(), endpoints.len());
    }
}

criterion_group!(benches, build_rings, build_plainly);
criterion_main!(benches);
