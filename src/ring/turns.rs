//! The order in which MaglevV2 lets endpoints claim, by their weights.
//!
//! In each round every endpoint adds its weight to its sum. An endpoint whose sum has reached the
//! largest weight subtracts that and has a turn.

use std::mem;

/// The endpoints in the order in which MaglevV2 lets them claim.
///
/// While a fair part of the endpoints claims in each round, going through the rounds is fastest. If
/// a few weights are much larger than the others, most rounds have hardly any claims, and this
/// would take endpoints times slots steps: then a calendar is faster.
pub(super) enum Turns {
    Rounds(Rounds),
    Calendar(Calendar),
}

impl Turns {
    /// The turns of endpoints with these weights, none of them 0; `needed` turns will be used.
    pub(super) fn new(weights: &[u32], needed: u32) -> Self {
        let largest = weights.iter().copied().max().unwrap_or(1);
        // How many endpoints a round examines per claim, on average.
        let sum: u64 = weights.iter().copied().map(u64::from).sum();
        let looks = (u64::from(largest) * weights.len() as u64).div_ceil(sum.max(1));
        if looks <= 8 {
            Self::Rounds(Rounds::new(weights, largest, needed))
        } else {
            Self::Calendar(Calendar::new(weights, largest, looks))
        }
    }

    /// The turns of the next round or rounds: endpoints, by index.
    pub(super) fn next(&mut self) -> &[u32] {
        match self {
            Self::Rounds(rounds) => rounds.next(),
            Self::Calendar(calendar) => calendar.next(),
        }
    }
}

/// The turns round by round, several rounds at a time.
pub(super) struct Rounds {
    states: Vec<Sum>,
    largest: u32,
    order: Vec<u32>,
    /// How many turns to make at a time; the last round is completed.
    enough: usize,
    /// After these all sums are 0 again, and the order repeats.
    repeats: bool,
}

/// An endpoint's weight, and how much its sum is below the largest weight.
struct Sum {
    weight: u32,
    lack: u32,
}

impl Rounds {
    fn new(weights: &[u32], largest: u32, needed: u32) -> Self {
        // More would not stay in the caches until they are read again.
        const MANY: u32 = 1 << 16;
        const SOME: u32 = 1 << 11;
        let divisor = weights.iter().copied().fold(largest, gcd);
        let period: u64 = weights.iter().map(|w| u64::from(w / divisor)).sum();
        let repeats = period <= needed.min(MANY).into();
        Self {
            states: weights
                .iter()
                .map(|&weight| Sum {
                    weight,
                    lack: largest,
                })
                .collect(),
            largest,
            order: Vec::new(),
            enough: if repeats {
                period as usize
            } else {
                needed.min(SOME) as usize
            },
            repeats,
        }
    }

    fn next(&mut self) -> &[u32] {
        if self.repeats && !self.order.is_empty() {
            return &self.order;
        }
        let mut count = 0;
        while count < self.enough {
            self.order.resize(count + self.states.len(), 0);
            let order = &mut self.order[count..];
            count += Self::round(&mut self.states, self.largest, order);
        }
        self.order.truncate(count);
        &self.order
    }

    /// Makes one round: writes its turns in order, and returns their number.
    fn round(states: &mut [Sum], largest: u32, order: &mut [u32]) -> usize {
        // Without branches, because claims are hard to predict. In two steps, so that the compiler
        // vectorises the first.
        const AT_ONCE: usize = 16;
        let mut count = 0;
        for (first, states) in (0..).step_by(AT_ONCE).zip(states.chunks_mut(AT_ONCE)) {
            let mut due = [0_u8; AT_ONCE];
            for (due, sum) in due.iter_mut().zip(states.iter_mut()) {
                let claims = sum.weight >= sum.lack;
                *due = claims.into();
                let more = if claims { largest } else { 0 };
                sum.lack = sum.lack.wrapping_sub(sum.weight).wrapping_add(more);
            }
            for (endpoint, due) in (first..).zip(&due[..states.len()]) {
                order[count] = endpoint;
                count += usize::from(*due);
            }
        }
        count
    }
}

/// Euclid's algorithm.
fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The turns of several rounds at a time, enough for about one claim per endpoint.
pub(super) struct Calendar {
    states: Vec<NextClaim>,
    /// How many rounds to make at a time.
    span: u64,
    /// How many rounds have been made.
    done: u64,
    /// The claims of these rounds as found: the round, and the endpoint.
    claims: Vec<(u32, u32)>,
    /// For each of the rounds how many claims it has; then where its next claim belongs.
    places: Vec<u32>,
    order: Vec<u32>,
}

/// When an endpoint claims: the k-th time in round ceil(k * W / w), where w is its weight and W the
/// largest one.
struct NextClaim {
    /// The round, counted from 1.
    round: u64,
    /// Its sum after that, with the largest weight subtracted.
    sum: u32,
    weight: u32,
    /// The fewest rounds to the next claim: W / w.
    wait: u32,
    /// How much the weights of that many rounds are below the largest: W mod w.
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

    /// Advances to the endpoint's next claim.
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

        // Sorted by round; within a round they keep the endpoints' order.
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

    proptest! {
        #[test]
        fn calendar_and_rounds_agree(
            weights in weights(),
            span in 1..100_u64,
            needed in 1..100_000_u32,
        ) {
            let largest = *weights.iter().max().unwrap();
            let mut rounds = Rounds::new(&weights, largest, needed);
            let mut calendar = Calendar::new(&weights, largest, span);
            prop_assert_eq!(
                take(|| rounds.next().to_vec(), 500),
                take(|| calendar.next().to_vec(), 500)
            );
        }
    }

    #[test]
    fn turns_are_proportional_to_weights() {
        let period = [2, 1, 2, 2, 0, 1, 2];
        for weights in [[1, 2, 4], [30, 60, 120]] {
            for needed in [1, 7, 65_537] {
                let mut turns = Turns::new(&weights, needed);
                let twice = take(|| turns.next().to_vec(), 14);
                assert_eq!(twice, [period, period].concat());
            }
        }
    }

    #[test]
    fn few_large_weights_are_left_to_the_calendar() {
        let mut weights = vec![1; 100];
        assert!(matches!(Turns::new(&weights, 1009), Turns::Rounds(_)));
        weights[50] = u32::MAX;
        let mut turns = Turns::new(&weights, 1009);
        assert!(matches!(turns, Turns::Calendar(_)));
        assert_eq!(turns.next(), vec![50; 100]);
    }
}
