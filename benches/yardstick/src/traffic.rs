//! Flow numbers as traffic: populations of flows, and packets drawn from them with fixed seeds.

use std::fmt;

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::Distribution;
use rand_distr::Zipf;

use crate::MOST_FLOWS;

const FLOW_BITS: u32 = MOST_FLOWS.ilog2();

/// How often each flow of a population sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// All flows equally often.
    Uniform,
    /// The flow of rank r with a probability proportional to 1 / r.
    Zipf,
}

impl Pattern {
    /// `packets` packets of a population of `flows` scattered flows, by flow number.
    pub fn packets(self, flows: u32, packets: usize, seed: u64) -> Vec<u32> {
        let mut random = StdRng::seed_from_u64(seed);
        match Zipf::new(f64::from(flows), 1.0) {
            Ok(zipf) if self == Self::Zipf => (0..packets)
                .map(|_| scattered(zipf.sample(&mut random) as u32 - 1))
                .collect(),
            _ => (0..packets)
                .map(|_| scattered(random.random_range(0..flows)))
                .collect(),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        })
    }
}

/// The number of the `i`th of 2^30 flows in an order without a pattern in address or port.
///
/// Each step is invertible, so no two are the same: xor with a shift of itself, and multiplication
/// by an odd number modulo 2^30.
pub fn scattered(i: u32) -> u32 {
    const MASK: u32 = MOST_FLOWS - 1;
    let mut flow = i & MASK;
    for factor in [0x2c1b_3c6d, 0x297a_2d39] {
        flow ^= flow >> (FLOW_BITS / 2);
        flow = flow.wrapping_mul(factor) & MASK;
    }
    flow ^ flow >> (FLOW_BITS / 2)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn scattered_flows_are_different_ones() {
        let ends = (0..50_000).chain(MOST_FLOWS - 50_000..MOST_FLOWS);
        let flows: HashSet<u32> = ends.map(scattered).collect();
        assert_eq!(flows.len(), 100_000);
        assert!(flows.iter().all(|flow| *flow < MOST_FLOWS));
    }

    #[test]
    fn packets_are_as_frequent_as_the_pattern_says() {
        const FLOWS: u32 = 100;
        const PACKETS: usize = 1_000_000;
        let harmonic: f64 = (1..=FLOWS).map(|rank| 1.0 / f64::from(rank)).sum();
        for pattern in [Pattern::Uniform, Pattern::Zipf] {
            let mut counts = HashMap::new();
            for flow in pattern.packets(FLOWS, PACKETS, 1) {
                *counts.entry(flow).or_insert(0.0) += 1.0;
            }
            assert_eq!(counts.len(), FLOWS as usize);
            for rank in 1..=FLOWS {
                let share = match pattern {
                    Pattern::Uniform => 1.0 / f64::from(FLOWS),
                    Pattern::Zipf => 1.0 / f64::from(rank) / harmonic,
                };
                let expected = share * PACKETS as f64;
                let counted: f64 = counts[&scattered(rank - 1)];
                assert!((counted - expected).abs() < 6.0 * expected.sqrt());
            }
            assert_eq!(
                pattern.packets(FLOWS, 10, 2),
                pattern.packets(FLOWS, 10, 2),
                "the same again"
            );
        }
    }
}
