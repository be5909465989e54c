//! Rings against the recorded ones and against a literal reading of their definition, and the
//! properties that Maglev hashing is used for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use katran::HashFunction;
use katran::ring::Endpoint;
use katran::ring::Ring;
use katran::ring::RingSize;
use katran::ring::backend_hash;
use proptest::prelude::*;
use serde_json::Value;

const BOTH: [HashFunction; 2] = [HashFunction::Maglev, HashFunction::MaglevV2];

fn vectors(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    serde_json::from_str(&std::fs::read_to_string(path.join(name)).unwrap()).unwrap()
}

fn size(slots: u32) -> RingSize {
    RingSize::try_from(slots).unwrap()
}

fn build(function: HashFunction, size: RingSize, endpoints: &[Endpoint]) -> Ring {
    Ring::build(function, size, endpoints).unwrap()
}

/// FNV-1a, 64 bit, over the slots as little-endian 32-bit words.
fn fnv1a64(slots: &[u16]) -> u64 {
    let bytes = slots.iter().flat_map(|&slot| u32::from(slot).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The endpoints of the recorded rings.
fn recorded_endpoints(count: u16, weight: impl Fn(u32) -> u32) -> Vec<Endpoint> {
    (1..=count)
        .map(|i| {
            let hash = u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Endpoint::with_hash(i, hash, weight(i.into()))
        })
        .collect()
}

#[test]
fn rings_are_the_recorded_ones() {
    let vectors = vectors("rings.json");
    let rows = vectors.as_array().unwrap();
    assert_eq!(rows.len(), 26);
    for row in rows {
        let function = match row["function"].as_str().unwrap() {
            "Maglev" => HashFunction::Maglev,
            "MaglevV2" => HashFunction::MaglevV2,
            other => panic!("{other}"),
        };
        let name = format!("{}, {function}", row["name"]);
        let slots = u32::try_from(row["ring_size"].as_u64().unwrap()).unwrap();
        let count = u16::try_from(row["endpoints"]["count"].as_u64().unwrap()).unwrap();
        let weights = row["endpoints"]["weights"].as_str().unwrap();
        let endpoints = recorded_endpoints(count, |i| match weights {
            "i" => i,
            "1 + ((i-1)*37) % 100" => 1 + (i - 1) * 37 % 100,
            constant => constant.parse().unwrap(),
        });

        let ring = build(function, size(slots), &endpoints);
        assert_eq!(ring.len(), slots as usize, "{name}");
        for (slot, first) in ring.slots().iter().zip(row["first"].as_array().unwrap()) {
            assert_eq!(u64::from(*slot), first.as_u64().unwrap(), "{name}");
        }
        assert_eq!(
            format!("{:016x}", fnv1a64(ring.slots())),
            row["fnv1a64"].as_str().unwrap(),
            "{name}"
        );
    }
}

#[test]
fn backend_hashes_are_the_recorded_ones() {
    let vectors = vectors("hashing.json");
    let rows = vectors["addresses"].as_array().unwrap();
    assert_eq!(rows.len(), 16);
    for row in rows {
        let address: IpAddr = row["address"].as_str().unwrap().parse().unwrap();
        let hash = format!("{:016x}", backend_hash(address));
        assert_eq!(hash, row["hash"].as_str().unwrap(), "{address}");
    }
}

fn any_function() -> impl Strategy<Value = HashFunction> {
    prop::sample::select(&BOTH[..])
}

/// Any hashes, with weights of all magnitudes, more often small ones and 0.
fn any_endpoints(most: usize) -> impl Strategy<Value = Vec<Endpoint>> {
    let weight = prop_oneof![
        0..=2_u32,
        1..=100_u32,
        Just(1),
        (0..32_u32).prop_map(|shift| u32::MAX >> shift),
    ];
    prop::collection::vec((any::<u64>(), weight), 0..most).prop_map(|endpoints| {
        (1..)
            .zip(endpoints)
            .map(|(number, (hash, weight))| Endpoint::with_hash(number, hash, weight))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn input_order_does_not_matter(
        function in any_function(),
        endpoints in any_endpoints(40),
        rotation in 0..40_usize,
    ) {
        let mut other = endpoints.clone();
        other.reverse();
        other.rotate_left(rotation % endpoints.len().max(1));
        prop_assert_eq!(
            build(function, size(1009), &endpoints),
            build(function, size(1009), &other)
        );
    }

    #[test]
    fn weight_zero_is_as_if_absent(function in any_function(), endpoints in any_endpoints(40)) {
        let mut present = endpoints.clone();
        present.retain(|endpoint| endpoint.weight() != 0);
        let ring = build(function, size(1009), &endpoints);
        prop_assert_eq!(&ring, &build(function, size(1009), &present));
        prop_assert_eq!(ring.has_no_reals(), present.is_empty());
        if !present.is_empty() {
            prop_assert!(ring.slots().iter().all(|&number| number != 0));
        }
    }

    /// Whatever the hashes, a real's share is off by at most two slots plus the fraction
    /// reals/slots of itself: for an unfinished round, and for what the others have not yet claimed
    /// of theirs. With 100 reals in 65,537 slots that is within 1 % for every real with 240 slots
    /// or more.
    #[test]
    fn v2_shares_are_proportional_to_weights(
        weights in prop::collection::vec(1..=1000_u32, 2..=100),
        factor in any::<u64>(),
    ) {
        let endpoints: Vec<Endpoint> = (1..)
            .zip(&weights)
            .map(|(number, &weight)| {
                let hash = factor.wrapping_mul(2 * u64::from(number) + 1);
                Endpoint::with_hash(number, hash, weight)
            })
            .collect();
        let shares = build(HashFunction::MaglevV2, RingSize::DEFAULT, &endpoints).shares();
        let sum: u32 = weights.iter().sum();
        let allowance = weights.len() as f64 / 65_537.0;
        for (number, weight) in (1..).zip(weights) {
            let due = 65_537.0 * f64::from(weight) / f64::from(sum);
            let has = f64::from(shares.get(&number).copied().unwrap_or(0));
            prop_assert!((has - due).abs() <= 2.0 + allowance * due, "{number}: {has}, due {due}");
        }
    }
}

/// A service's reals, consecutive or behind a few IPv6 prefixes.
fn services() -> [Vec<IpAddr>; 2] {
    let v4 = |i: u32| IpAddr::V4((0x0a00_0000 + i).into());
    let v6 = |i: u32| {
        let prefix = 0x2001_0db8_u128 << 96;
        IpAddr::V6((prefix | u128::from(i % 8) << 64 | u128::from(i)).into())
    };
    [(1..=100).map(v4).collect(), (1..=100).map(v6).collect()]
}

fn endpoints(addresses: &[IpAddr], weight: impl Fn(u32) -> u32) -> Vec<Endpoint> {
    (1..)
        .zip(addresses)
        .map(|(number, &address)| Endpoint::new(number, address, weight(number.into())))
        .collect()
}

#[test]
fn v2_shares_of_100_reals_are_within_one_percent() {
    // 1 % of the real's due share; the smallest weight here is due 432 slots.
    for addresses in services() {
        for weight in [|_| 1, |_| 100, |i| 2 + i % 3, |i| 50 + i] {
            let endpoints = endpoints(&addresses, weight);
            let shares = build(HashFunction::MaglevV2, RingSize::DEFAULT, &endpoints).shares();
            let sum: u32 = endpoints.iter().map(Endpoint::weight).sum();
            for endpoint in endpoints {
                let due = 65_537.0 * f64::from(endpoint.weight()) / f64::from(sum);
                let has = f64::from(shares[&endpoint.number()]);
                assert!(
                    (has / due - 1.0).abs() < 0.01,
                    "{endpoint:?}: {has}, due {due}"
                );
            }
        }
    }
}

/// How few slots of other reals change depends on hashes and is not guaranteed. Measured on 30,000
/// random services of 100 reals, half with equal weights and half with weights of 1 to 100: median
/// 0.57 %, 1.3 % or less in 999 of 1,000, never above 1.7 % with equal weights, and once above 2 %
/// with unequal ones. So these services are fixed.
#[test]
fn when_a_real_leaves_few_slots_of_others_change() {
    for function in BOTH {
        for addresses in services() {
            for weight in [|_| 1, |i| 1 + i * 37 % 100] {
                let all = endpoints(&addresses, weight);
                let before = build(function, RingSize::DEFAULT, &all);
                for gone in (0..all.len()).step_by(17) {
                    let mut rest = all.clone();
                    let gone = rest.remove(gone).number();
                    let after = build(function, RingSize::DEFAULT, &rest);
                    let changed = before
                        .changed_slots(&after)
                        .filter(|&(slot, _)| before.slots()[slot] != gone)
                        .count();
                    let others = before.slots().iter().filter(|&&slot| slot != gone).count();
                    assert!(
                        changed * 100 < others * 2,
                        "{changed} of {others}: {gone} left"
                    );
                }
            }
        }
    }
}

#[test]
fn draining_is_leaving() {
    let [addresses, _] = services();
    let all = endpoints(&addresses, |_| 5);
    let drained = endpoints(&addresses, |i| if i == 40 { 0 } else { 5 });
    let mut without = all;
    without.remove(39);
    for function in BOTH {
        assert_eq!(
            build(function, RingSize::DEFAULT, &drained),
            build(function, RingSize::DEFAULT, &without)
        );
    }
}

#[test]
fn none_and_one() {
    for function in BOTH {
        for size in [RingSize::MIN, RingSize::DEFAULT] {
            assert!(build(function, size, &[]).has_no_reals());
            let one = build(function, size, &[Endpoint::with_hash(7, 42, 3)]);
            assert_eq!(one.shares(), BTreeMap::from([(7, size.get())]));
        }
    }
}

#[test]
fn more_endpoints_than_slots() {
    for function in BOTH {
        let ring = build(function, size(5), &recorded_endpoints(4000, |_| 1));
        assert_eq!(ring.shares().into_values().collect::<Vec<_>>(), [1; 5]);
    }
}

/// Extreme weights take no longer than others. The limit allows for a busy machine and a debug
/// build; going through the rounds one by one would take minutes.
#[test]
fn extreme_weights_take_no_longer() {
    // This thread's time only: other tests run beside it.
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    let now = || Duration::from(clock.now().unwrap());
    let begin = now();
    let weights: [fn(u32) -> u32; 4] = [
        |_| u32::MAX,
        |i| if i == 1 { u32::MAX } else { 1 },
        |i| if i % 2 == 0 { u32::MAX } else { 1 },
        |i| u32::MAX >> (i % 32),
    ];
    for function in BOTH {
        for weight in weights {
            let ring = build(
                function,
                RingSize::DEFAULT,
                &recorded_endpoints(4000, weight),
            );
            assert!(ring.slots().iter().all(|&number| number != 0));
        }
    }
    let took = now() - begin;
    assert!(took < Duration::from_secs(10), "{took:?}");

    // The real with all the weight has all the slots.
    let endpoints = recorded_endpoints(4000, weights[1]);
    let shares = build(HashFunction::MaglevV2, RingSize::DEFAULT, &endpoints).shares();
    assert_eq!(shares, BTreeMap::from([(1, 65_537)]));
}
