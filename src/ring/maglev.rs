//! The order of turns: the two ring functions, Maglev and MaglevV2.
//!
//! Both come from Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer"
//! (NSDI 2016), section 3.4, and differ in how they use weights. Neither is slower with odd
//! weights: slots and endpoints bound the work.

use super::Endpoint;
use super::RingSize;
use super::candidates::Candidates;
use super::table::ByPoint;
use super::table::BySlot;
use super::table::Flags;
use super::table::Table;
use super::turns::Turns;
use crate::types::HashFunction;

/// The ring's slots for these endpoints, which are in order and have no weight 0.
pub(super) fn fill(function: HashFunction, size: RingSize, endpoints: &[Endpoint]) -> Vec<u16> {
    match endpoints {
        [] => return vec![0; size.get() as usize],
        [only] => return vec![only.number; size.get() as usize],
        _ => {}
    }
    let candidates: Vec<Candidates> = endpoints
        .iter()
        .map(|endpoint| Candidates::new(endpoint.number, endpoint.hash, size))
        .collect();
    let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.weight).collect();
    fill_in_turn(function, size, &candidates, &weights)
}

/// The slots as endpoints of these weights claim them.
fn fill_in_turn(
    function: HashFunction,
    size: RingSize,
    candidates: &[Candidates],
    weights: &[u32],
) -> Vec<u16> {
    if ByPoint::is_enough_for(size) {
        fill_table(function, Table::<ByPoint>::new(size), candidates, weights)
    } else {
        fill_table(function, Table::<BySlot>::new(size), candidates, weights)
    }
}

fn fill_table<F: Flags>(
    function: HashFunction,
    mut table: Table<F>,
    candidates: &[Candidates],
    weights: &[u32],
) -> Vec<u16> {
    match function {
        HashFunction::Maglev => maglev(&mut table, candidates, weights),
        HashFunction::MaglevV2 => maglev_v2(&mut table, candidates, weights),
    }
    table.into_slots()
}

/// In the first round every endpoint claims as many slots as its weight, then one per round.
fn maglev<F: Flags>(table: &mut Table<F>, candidates: &[Candidates], weights: &[u32]) {
    if weights.iter().any(|&weight| weight != 1) {
        for (candidates, &weight) in candidates.iter().zip(weights) {
            table.claim_run(candidates, weight);
        }
    }
    round_robin(table, candidates);
}

/// Every endpoint claims one slot per round.
fn round_robin<F: Flags>(table: &mut Table<F>, candidates: &[Candidates]) {
    while !table.is_full() {
        table.claim(candidates);
    }
}

/// In each round every endpoint adds its weight to its sum. Once the sum has reached the largest
/// weight, the endpoint claims one slot and subtracts that weight.
fn maglev_v2<F: Flags>(table: &mut Table<F>, candidates: &[Candidates], weights: &[u32]) {
    if weights.iter().all(|&weight| weight == weights[0]) {
        return round_robin(table, candidates);
    }
    let mut turns = Turns::new(weights, table.free());
    while !table.is_full() {
        let turns = turns.next().iter();
        table.claim(turns.map(|&endpoint| &candidates[endpoint as usize]));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what panics has failed the test")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An endpoint for the literal reading of the definition.
    struct Literal {
        offset: u32,
        skip: u32,
        n: u32,
        weight: u32,
        sum: u64,
    }

    /// The ring, claim by claim as defined, with slot owners as index + 1.
    fn literal(function: HashFunction, size: u32, endpoints: &[(u32, u32, u32)]) -> Vec<u16> {
        let mut endpoints: Vec<Literal> = endpoints
            .iter()
            .map(|&(offset, skip, weight)| Literal {
                offset,
                skip,
                n: 0,
                weight,
                sum: 0,
            })
            .collect();
        let largest = endpoints.iter().map(|e| u64::from(e.weight)).max().unwrap();
        let mut slots = vec![0; size as usize];
        let mut left = size;
        for round in 0.. {
            for (number, e) in (1..).zip(&mut endpoints) {
                e.sum += u64::from(e.weight);
                let claims = match function {
                    HashFunction::Maglev if round == 0 => e.weight,
                    HashFunction::Maglev => 1,
                    HashFunction::MaglevV2 if e.sum >= largest => {
                        e.sum -= largest;
                        1
                    }
                    HashFunction::MaglevV2 => 0,
                };
                for _ in 0..claims {
                    loop {
                        let candidate = e.offset.wrapping_add(e.n.wrapping_mul(e.skip)) % size;
                        e.n += 1;
                        if slots[candidate as usize] == 0 {
                            slots[candidate as usize] = number;
                            break;
                        }
                    }
                    left -= 1;
                    if left == 0 {
                        return slots;
                    }
                }
            }
        }
        unreachable!()
    }

    fn filled(function: HashFunction, size: u32, endpoints: &[(u32, u32, u32)]) -> Vec<u16> {
        let size = size.try_into().unwrap();
        let candidates: Vec<Candidates> = (1..)
            .zip(endpoints)
            .map(|(number, &(offset, skip, _))| Candidates::from_offset(number, offset, skip, size))
            .collect();
        let weights: Vec<u32> = endpoints.iter().map(|&(_, _, weight)| weight).collect();
        fill_in_turn(function, size, &candidates, &weights)
    }

    /// One of these ring sizes, and endpoints for it: offset, skip and weight.
    fn rings(
        sizes: &'static [u32],
        most: usize,
    ) -> impl Strategy<Value = (u32, Vec<(u32, u32, u32)>)> {
        prop::sample::select(sizes).prop_flat_map(move |size| {
            let weight = prop_oneof![Just(1), 1..=3_u32, 1..=100_u32, 1..=100_000_u32];
            let endpoint = (0..size, 1..size, weight);
            (Just(size), prop::collection::vec(endpoint, 2..most))
        })
    }

    proptest! {
        #[test]
        fn small_rings_are_as_defined(
            (size, endpoints) in rings(&[3, 5, 7, 61, 127, 251, 1009, 10_007], 50)
        ) {
            for function in [HashFunction::Maglev, HashFunction::MaglevV2] {
                prop_assert_eq!(
                    filled(function, size, &endpoints),
                    literal(function, size, &endpoints)
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// 2^17 is the limit between the two ways to flag free slots.
        #[test]
        fn rings_are_as_defined(
            (size, endpoints) in rings(&[65_521, 65_537, 131_071, 131_101], 500)
        ) {
            for function in [HashFunction::Maglev, HashFunction::MaglevV2] {
                // Without skips that do not reach all slots, which the definition does not cover.
                let endpoints: Vec<_> = endpoints
                    .iter()
                    .copied()
                    .filter(|(_, skip, _)| skip.trailing_zeros() < 8)
                    .collect();
                prop_assume!(!endpoints.is_empty());
                prop_assert!(
                    filled(function, size, &endpoints) == literal(function, size, &endpoints),
                    "{size} {function}"
                );
            }
        }
    }

    /// The larger the ring and the fewer the endpoints, the more often n * skip wraps. Skips of
    /// short period are left out, because the definition does not cover them.
    #[test]
    fn large_rings_are_as_defined() {
        for (size, skips) in [
            (65_537, vec![1, 65_535]),
            (65_537, vec![65_535, 65_534, 3]),
            (655_373, vec![655_371, 4321, 655_371, 123_457]),
            (1_000_003, vec![999_999, 999_998]),
        ] {
            let endpoints: Vec<(u32, u32, u32)> = (1..)
                .zip(skips)
                .map(|(i, skip)| (size - i * 1000, skip, i))
                .collect();
            for function in [HashFunction::Maglev, HashFunction::MaglevV2] {
                // Not assert_eq, which would print the rings.
                assert!(
                    filled(function, size, &endpoints) == literal(function, size, &endpoints),
                    "{size} {function}"
                );
            }
        }
    }

    #[test]
    fn endpoints_without_candidates_get_their_share_nevertheless() {
        // Skip 65,536 meets all slots but one, and both leave out the same.
        let slots = filled(
            HashFunction::Maglev,
            65_537,
            &[(7, 65_536, 1), (7, 65_536, 1)],
        );
        assert_eq!(slots.iter().filter(|&&slot| slot == 1).count(), 32_769);
        assert_eq!(slots.iter().filter(|&&slot| slot == 2).count(), 32_768);
        // The slot left out is the one after the offset; it is claimed last.
        assert_eq!(slots[8], 1);

        // Each of these meets only 2^13 slots, so most slots are claimed as the lowest free one.
        let endpoints = [(0, 1 << 19, 1), (1, 1 << 19, 2), (2, 1 << 19, 1)];
        let slots = filled(HashFunction::MaglevV2, 655_373, &endpoints);
        assert_eq!(slots.iter().filter(|&&slot| slot == 2).count(), 327_687);
        assert!(slots.iter().all(|&slot| slot != 0));
    }
}
