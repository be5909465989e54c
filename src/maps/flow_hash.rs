//! A flow's fingerprint in a set-associative flow table, and its set: the program's arithmetic
//! (`src/bpf/flow_sets.h`) for the control side.
//!
//! The fingerprint is a multilinear hash: Daniel Lemire and Owen Kaser, "Strongly universal string
//! hashing is fast", The Computer Journal 57 (2014). Linear hashing addresses the sets: Witold
//! Litwin, "Linear hashing: a new tool for file and table addressing", VLDB 1980.

use std::io;

use super::random::mix;
use super::random::random_words;
use crate::skel::katran::types;

const WORDS: usize = types::flow_table_constant::FLOW_WORDS.0 as usize;

/// The bits of a fingerprint that hold the number of the flow's VIP, plus one.
const VIP_NUMBER_BITS: u32 = types::flow_table_constant::VIP_NUMBER_BITS.0;
const VIP_BITS: u64 = types::flow_table_constant::VIP_NUMBER_MASK.0 as u64;

/// The random keys: one for each 32-bit word of a flow, then the start value.
#[derive(Clone)]
pub(crate) struct FlowHashKeys([u64; WORDS + 1]);

/// A flow's fingerprint, which identifies its entry and determines its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) u64);

impl FlowHashKeys {
    /// Draws keys from the kernel's random number generator. Those of words are odd, so flows that
    /// differ only in high bits of one word, as neighbouring addresses do, never share a
    /// fingerprint.
    pub(crate) fn draw() -> io::Result<Self> {
        let mut keys: [u64; WORDS + 1] = random_words()?;
        keys[..WORDS].iter_mut().for_each(|key| *key |= 1);
        Ok(Self(keys))
    }

    /// Keys drawn earlier; `None`: the number of keys is wrong.
    pub(crate) fn of(keys: &[u64]) -> Option<Self> {
        keys.try_into().ok().map(Self)
    }

    pub(crate) fn keys(&self) -> [u64; WORDS + 1] {
        self.0
    }

    pub(crate) fn fingerprint(&self, key: &types::flow_key) -> Fingerprint {
        let products = self.0.iter().zip(words(key));
        let sum = products.fold(self.0[WORDS], |sum, (key, word)| {
            sum.wrapping_add(key.wrapping_mul(word.into()))
        });
        Fingerprint(sum & !VIP_BITS | u64::from(key.vip))
    }
}

impl Fingerprint {
    /// The number of the flow's set if the first `active` sets are in use; at least one is.
    pub(crate) fn set_of(self, active: u32) -> u32 {
        let hash = (mix(self.0 >> VIP_NUMBER_BITS) >> 32) as u32;
        let mask = mask(active);
        let number = hash & mask;
        match number < active {
            true => number,
            // Not in use yet, so the set that it will be split from.
            false => number & (mask >> 1),
        }
    }
}

/// A mask for the numbers of `active` sets.
pub(crate) fn mask(active: u32) -> u32 {
    active.next_power_of_two() - 1
}

/// The key as the program reads it: 32-bit words in memory order.
fn words(key: &types::flow_key) -> [u32; WORDS] {
    let word = |bytes: &[u8], at: usize| {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let ports = u32::from(key.source_port) | u32::from(key.destination_port) << 16;
    let kind = u32::from(key.protocol) | u32::from(key.family) << 8;
    std::array::from_fn(|i| match i {
        0..4 => word(&key.source, 4 * i),
        4..8 => word(&key.destination, 4 * (i - 4)),
        8 => ports,
        _ => kind,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn key(last: u8, port: u16) -> types::flow_key {
        let mut key = types::flow_key {
            source_port: port.to_be(),
            destination_port: 80u16.to_be(),
            protocol: 6,
            family: 4,
            ..Default::default()
        };
        key.source[..4].copy_from_slice(&[192, 0, 2, last]);
        key.destination[..4].copy_from_slice(&[203, 0, 113, 1]);
        key
    }

    #[test]
    fn keys_are_drawn_anew() {
        let (one, other) = (FlowHashKeys::draw().unwrap(), FlowHashKeys::draw().unwrap());
        let flow = key(1, 1);
        assert_ne!(one.fingerprint(&flow), other.fingerprint(&flow));
        assert_eq!(one.fingerprint(&flow), one.fingerprint(&flow));
    }

    #[test]
    fn flows_that_differ_in_little_spread_over_the_sets() {
        // 65,536 flows of 16 clients with consecutive ports, over 4,096 sets: 16 each, with any
        // keys. The probability that a set of a truly random hash gets more than 64 is below
        // 10^-15.
        const SETS: u32 = 4096;
        for _ in 0..20 {
            let keys = FlowHashKeys::draw().unwrap();
            let mut sizes = vec![0u32; SETS as usize];
            for last in 0..16 {
                for port in 0..4096 {
                    sizes[keys.fingerprint(&key(last, port)).set_of(SETS) as usize] += 1;
                }
            }
            let largest = sizes.iter().max().copied().unwrap();
            assert!(largest <= 64, "a set of {largest}");
        }
    }

    #[test]
    fn another_set_takes_flows_from_one_set_only() {
        // Some 40 flows and more per set: the probability that none of them moves is below 10^-16.
        // (With 4,000 flows one run in fifty found a set that gave nothing.)
        let keys = FlowHashKeys::draw().unwrap();
        let flows: Vec<_> = (0..40_000)
            .map(|flow| keys.fingerprint(&key((flow % 8) as u8, flow / 8)))
            .collect();
        for active in 1..300 {
            let mut parents = BTreeSet::new();
            for flow in &flows {
                let (before, after) = (flow.set_of(active), flow.set_of(active + 1));
                assert!(before < active && after <= active);
                if before != after {
                    assert_eq!(after, active);
                    parents.insert(before);
                }
            }
            assert_eq!(parents.len(), 1, "set {active} from {parents:?}");
        }
    }

    #[test]
    fn neighbours_have_fingerprints_of_their_own_whatever_the_keys() {
        // The last byte of an address is the highest of its word: a difference of 2^31 times a key
        // whose low 33 bits are 0 would vanish.
        let draws = (0..1000).map(|_| FlowHashKeys::draw().unwrap());
        let mut unlucky = FlowHashKeys::draw().unwrap();
        unlucky.0 = unlucky.0.map(|key| key & !((1 << 33) - 1) | key & 1);
        for keys in draws.chain([unlucky]) {
            let all: BTreeSet<u64> = (0..=255)
                .map(|last| keys.fingerprint(&key(last, 1)).0)
                .collect();
            assert_eq!(all.len(), 256);
        }
    }

    #[test]
    fn every_word_counts() {
        let keys = FlowHashKeys::draw().unwrap();
        let plain = types::flow_key::default();
        let mut seen = vec![keys.fingerprint(&plain)];
        let mut changed = |change: &dyn Fn(&mut types::flow_key)| {
            let mut key = plain;
            change(&mut key);
            let hash = keys.fingerprint(&key);
            assert!(!seen.contains(&hash));
            seen.push(hash);
        };
        for byte in 0..16 {
            changed(&|key| key.source[byte] = 1);
            changed(&|key| key.destination[byte] = 1);
        }
        changed(&|key| key.source_port = 1);
        changed(&|key| key.destination_port = 1);
        changed(&|key| key.protocol = 6);
        changed(&|key| key.family = 6);
    }
}
