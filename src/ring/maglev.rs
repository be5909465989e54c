//! Whose turn it is: the two ring functions, Maglev and MaglevV2.
//!
//! Both go back to Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer"
//! (NSDI 2016), section 3.4, and differ in how weights enter. Neither takes longer for odd
//! weights: the work is bounded by the slots and the endpoints.

use std::iter;
use std::mem;

use super::Endpoint;
use super::RingSize;
use super::table::Candidates;
use super::table::Table;
use crate::HashFunction;

/// The slots of the ring of these endpoints, which are in order and none of weight 0.
pub(super) fn fill(function: HashFunction, size: RingSize, endpoints: &[Endpoint]) -> Vec<u16> {
    match endpoints {
        [] => return vec![0; size.get() as usize],
        [only] => return vec![only.number; size.get() as usize],
        _ => {}
    }
    let mut table = Table::new(size);
    let mut candidates: Vec<Candidates> = endpoints
        .iter()
        .map(|endpoint| Candidates::new(endpoint.number, endpoint.hash, size))
        .collect();
    let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.weight).collect();
    match function {
        HashFunction::Maglev => maglev(&mut table, &mut candidates, &weights),
        HashFunction::MaglevV2 => maglev_v2(&mut table, &mut candidates, &weights),
    }
    table.into_slots()
}

/// In the first round every endpoint claims as many slots as its weight, then one in each round.
fn maglev(table: &mut Table, candidates: &mut [Candidates], weights: &[u32]) {
    let first_round = weights
        .iter()
        .enumerate()
        .flat_map(|(endpoint, &weight)| iter::repeat_n(endpoint, weight as usize));
    table.claim(candidates, first_round);
    round_robin(table, candidates);
}

/// Every endpoint claims one slot in each round.
fn round_robin(table: &mut Table, candidates: &mut [Candidates]) {
    let count = candidates.len();
    while !table.is_full() {
        table.claim(candidates, 0..count);
    }
}

/// In each round every endpoint adds its weight to its sum; it claims one slot if the sum has
/// reached the largest weight, which is subtracted then.
fn maglev_v2(table: &mut Table, candidates: &mut [Candidates], weights: &[u32]) {
    if weights.iter().all(|&weight| weight == weights[0]) {
        return round_robin(table, candidates);
    }
    let mut turns = Turns::new(weights);
    while !table.is_full() {
        table.claim(candidates, turns.next().iter().map(|&i| i as usize));
    }
}

/// The endpoints in the order in which MaglevV2 lets them claim.
///
/// As long as a fair part of the endpoints claims in each round, going through the rounds is
/// fastest. With few weights that are much larger than the others hardly anyone claims in most
/// rounds, and it would take endpoints times slots steps: then a calendar is kept.
enum Turns {
    Rounds(Rounds),
    Calendar(Calendar),
}

impl Turns {
    /// The turns of endpoints with these weights, none of them 0.
    fn new(weights: &[u32]) -> Self {
        let largest = weights.iter().copied().max().unwrap_or(1);
        // How many endpoints are looked at in a round for one that claims, on average.
        let sum: u64 = weights.iter().copied().map(u64::from).sum();
        let looks = (u64::from(largest) * weights.len() as u64).div_ceil(sum.max(1));
        if looks <= 8 {
            Self::Rounds(Rounds::new(weights, largest))
        } else {
            Self::Calendar(Calendar::new(weights, largest, looks))
        }
    }

    /// Whose turn it is in the next round or rounds: endpoints, by their index.
    fn next(&mut self) -> &[u32] {
        match self {
            Self::Rounds(rounds) => rounds.next(),
            Self::Calendar(calendar) => calendar.next(),
        }
    }
}

/// The turns of one round after the other.
struct Rounds {
    /// Each endpoint's weight, and its sum, which is below the largest weight between rounds.
    states: Vec<(u64, u64)>,
    largest: u64,
    order: Vec<u32>,
}

impl Rounds {
    fn new(weights: &[u32], largest: u32) -> Self {
        Self {
            states: weights.iter().map(|&weight| (weight.into(), 0)).collect(),
            largest: largest.into(),
            order: vec![0; weights.len()],
        }
    }

    fn next(&mut self) -> &[u32] {
        let mut count = 0;
        // Without branches: whether an endpoint claims is hard to foresee.
        for (endpoint, (weight, sum)) in (0..).zip(&mut self.states) {
            *sum += *weight;
            self.order[count] = endpoint;
            let due = *sum >= self.largest;
            *sum -= if due { self.largest } else { 0 };
            count += usize::from(due);
        }
        &self.order[..count]
    }
}

/// The turns of several rounds at a time, as many as it takes for about one claim an endpoint.
struct Calendar {
    states: Vec<NextClaim>,
    /// How many rounds are made at a time.
    span: u64,
    /// How many rounds have been made.
    done: u64,
    /// The claims of these rounds as they are found: which of the rounds, and whose.
    claims: Vec<(u32, u32)>,
    /// For each of the rounds how many claims it has; then where the next of them belongs.
    places: Vec<u32>,
    order: Vec<u32>,
}

/// When an endpoint claims: for the k-th time in round ceil(k * W / w), if w is its weight and W
/// the largest one.
struct NextClaim {
    /// The round, counted from 1.
    round: u64,
    /// What its sum is then, after the largest weight was subtracted.
    sum: u32,
    weight: u32,
    /// How many rounds to the next claim it takes at least: W / w.
    wait: u32,
    /// What the weights of so many rounds lack of the largest: W mod w.
    lack: u32,
}

impl NextClaim {
    fn first(weight: u32, largest: u32) -> Self {
        let mut first = Self {
            round: 0,
            sum: 0,
            weight,
            wait: largest / weight,
            lack: largest % weight,
        };
        first.advance();
        first
    }

    /// Goes to the endpoint's next claim.
    fn advance(&mut self) {
        self.round += u64::from(self.wait);
        if self.sum >= self.lack {
            self.sum -= self.lack;
        } else {
            self.round += 1;
            self.sum += self.weight - self.lack;
        }
    }
}

impl Calendar {
    fn new(weights: &[u32], largest: u32, span: u64) -> Self {
        Self {
            states: weights
                .iter()
                .map(|&weight| NextClaim::first(weight, largest))
                .collect(),
            span,
            done: 0,
            claims: Vec::new(),
            places: vec![0; span as usize],
            order: Vec::new(),
        }
    }

    fn next(&mut self) -> &[u32] {
        let end = self.done + self.span;
        self.claims.clear();
        self.places.fill(0);
        for (endpoint, state) in (0..).zip(&mut self.states) {
            while state.round <= end {
                let round = (state.round - self.done - 1) as u32;
                self.claims.push((round, endpoint));
                self.places[round as usize] += 1;
                state.advance();
            }
        }
        self.done = end;

        // Sorted by round; within a round they stay in the endpoints' order.
        let mut before = 0;
        for place in &mut self.places {
            before += mem::replace(place, before);
        }
        self.order.resize(self.claims.len(), 0);
        for &(round, endpoint) in &self.claims {
            let place = &mut self.places[round as usize];
            self.order[*place as usize] = endpoint;
            *place += 1;
        }
        &self.order
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what panics has failed the test")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(mut next: impl FnMut() -> Vec<u32>, count: usize) -> Vec<u32> {
        let mut turns = Vec::new();
        while turns.len() < count {
            turns.extend(next());
        }
        turns.truncate(count);
        turns
    }

    /// Weights of all magnitudes, small ones more often.
    fn weights() -> impl Strategy<Value = Vec<u32>> {
        let weight = prop_oneof![
            1..=3_u32,
            1..=100_u32,
            (0..32_u32).prop_map(|shift| u32::MAX >> shift),
            1..=u32::MAX
        ];
        prop::collection::vec(weight, 2..60)
    }

    /// An endpoint for the literal reading of the definition.
    struct Literal {
        offset: u32,
        skip: u32,
        n: u32,
        weight: u32,
        sum: u64,
    }

    /// The ring, claim by claim as it is defined, in which the owner of a slot is an index + 1.
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
        let mut table = Table::new(size.try_into().unwrap());
        let mut candidates: Vec<Candidates> = (1..)
            .zip(endpoints)
            .map(|(number, &(offset, skip, _))| Candidates::from_offset(number, offset, skip))
            .collect();
        let weights: Vec<u32> = endpoints.iter().map(|&(_, _, weight)| weight).collect();
        match function {
            HashFunction::Maglev => maglev(&mut table, &mut candidates, &weights),
            HashFunction::MaglevV2 => maglev_v2(&mut table, &mut candidates, &weights),
        }
        table.into_slots()
    }

    /// A ring size, and endpoints for it: offset, skip and weight.
    fn rings() -> impl Strategy<Value = (u32, Vec<(u32, u32, u32)>)> {
        let size = prop::sample::select(vec![3_u32, 5, 7, 61, 127, 251, 1009, 10_007]);
        size.prop_flat_map(|size| {
            let weight = prop_oneof![Just(1), 1..=3_u32, 1..=100_u32, 1..=100_000_u32];
            let endpoint = (0..size, 1..size, weight);
            (Just(size), prop::collection::vec(endpoint, 2..50))
        })
    }

    proptest! {
        #[test]
        fn rings_are_as_defined((size, endpoints) in rings()) {
            for function in [HashFunction::Maglev, HashFunction::MaglevV2] {
                prop_assert_eq!(
                    filled(function, size, &endpoints),
                    literal(function, size, &endpoints)
                );
            }
        }

        #[test]
        fn calendar_and_rounds_agree(weights in weights(), span in 1..100_u64) {
            let largest = *weights.iter().max().unwrap();
            let mut rounds = Rounds::new(&weights, largest);
            let mut calendar = Calendar::new(&weights, largest, span);
            prop_assert_eq!(
                take(|| rounds.next().to_vec(), 500),
                take(|| calendar.next().to_vec(), 500)
            );
        }
    }

    /// The larger the ring and the fewer the endpoints, the more often n * skip wraps. Skips of
    /// short period are left out: for them the definition has no answer.
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
        // Skip 65,536 meets all slots but one, and the two leave out the same.
        let slots = filled(
            HashFunction::Maglev,
            65_537,
            &[(7, 65_536, 1), (7, 65_536, 1)],
        );
        assert_eq!(slots.iter().filter(|&&slot| slot == 1).count(), 32_769);
        assert_eq!(slots.iter().filter(|&&slot| slot == 2).count(), 32_768);
        // The slot left out is the one after the offset; it is claimed last.
        assert_eq!(slots[8], 1);

        // Each of these meets 2^13 slots only, so most slots are claimed as the lowest free one.
        let endpoints = [(0, 1 << 19, 1), (1, 1 << 19, 2), (2, 1 << 19, 1)];
        let slots = filled(HashFunction::MaglevV2, 655_373, &endpoints);
        assert_eq!(slots.iter().filter(|&&slot| slot == 2).count(), 327_687);
        assert!(slots.iter().all(|&slot| slot != 0));
    }

    #[test]
    fn turns_are_proportional_to_weights() {
        let mut turns = Turns::new(&[1, 2, 4]);
        assert_eq!(turns.next(), [2]);
        assert_eq!(turns.next(), [1, 2]);
        assert_eq!(turns.next(), [2]);
        assert_eq!(turns.next(), [0, 1, 2]);
    }

    #[test]
    fn few_large_weights_are_left_to_the_calendar() {
        let mut weights = vec![1; 100];
        assert!(matches!(Turns::new(&weights), Turns::Rounds(_)));
        weights[50] = u32::MAX;
        let mut turns = Turns::new(&weights);
        assert!(matches!(turns, Turns::Calendar(_)));
        assert_eq!(turns.next(), vec![50; 100]);
    }
}
