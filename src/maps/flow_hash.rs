//! Which set of a set-associative flow table a flow belongs to, and its fingerprint there: the
//! program's arithmetic (`src/bpf/flow_sets.h`) for the control side.
//!
//! Both are multilinear hashes: Daniel Lemire and Owen Kaser, "Strongly universal string hashing is
//! fast", The Computer Journal 57 (2014). With keys that nobody knows, any two flows meet in a set
//! no more often than by chance, whoever chose them.

use std::io;

use super::random::random_words;
use crate::skel::katran::types;

const WORDS: usize = types::flow_table_constant::FLOW_WORDS.0 as usize;

/// The random keys: one for each 32-bit word of a flow, and the start values.
#[derive(Clone)]
pub(crate) struct FlowHashKeys([types::flow_hash_key; WORDS + 1]);

/// Where a flow's entry is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowHash {
    set: u32,
    pub(crate) fingerprint: u64,
}

impl FlowHashKeys {
    /// Draws keys from the kernel's random number generator.
    pub(crate) fn draw() -> io::Result<Self> {
        let words: [u64; 2 * (WORDS + 1)] = random_words()?;
        Ok(Self(std::array::from_fn(|i| types::flow_hash_key {
            set: words[2 * i],
            fingerprint: words[2 * i + 1],
        })))
    }

    pub(crate) fn keys(&self) -> &[types::flow_hash_key; WORDS + 1] {
        &self.0
    }

    pub(crate) fn hash(&self, key: &types::flow_key) -> FlowHash {
        let start = &self.0[WORDS];
        let (mut set, mut fingerprint) = (start.set, start.fingerprint);
        for (key, word) in self.0.iter().zip(words(key)) {
            set = set.wrapping_add(key.set.wrapping_mul(word.into()));
            fingerprint = fingerprint.wrapping_add(key.fingerprint.wrapping_mul(word.into()));
        }
        FlowHash {
            set: (set >> 32) as u32,
            fingerprint: fingerprint | 1,
        }
    }
}

impl FlowHash {
    /// The set in a table of so many.
    pub(crate) fn set_of(&self, sets: u32) -> u32 {
        (u64::from(self.set) * u64::from(sets) >> 32) as u32
    }
}

/// The key as the program reads it: 32-bit words as they lie in memory.
fn words(key: &types::flow_key) -> [u32; WORDS] {
    let word = |bytes: &[u8], at: usize| {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let ports = u32::from(key.source_port) | u32::from(key.destination_port) << 16;
    let kind = u32::from_ne_bytes([key.protocol, key.family, key.reserved[0], key.reserved[1]]);
    std::array::from_fn(|i| match i {
        0..4 => word(&key.source, 4 * i),
        4..8 => word(&key.destination, 4 * (i - 4)),
        8 => ports,
        _ => kind,
    })
}

#[cfg(test)]
mod tests {
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
        assert_ne!(one.hash(&key(1, 1)), other.hash(&key(1, 1)));
        assert_eq!(one.hash(&key(1, 1)), one.hash(&key(1, 1)));
        assert_ne!(one.hash(&key(1, 1)).fingerprint, 1);
    }

    #[test]
    fn flows_spread_over_the_sets_as_by_chance() {
        // 65,536 flows that differ in little, over 4,096 sets: 16 each. The probability that a
        // set of a truly random hash gets more than 48 is below 10^-6 over all sets.
        const SETS: u32 = 4096;
        let keys = FlowHashKeys::draw().unwrap();
        let mut sizes = vec![0u32; SETS as usize];
        for last in 0..16 {
            for port in 0..4096 {
                sizes[keys.hash(&key(last, port)).set_of(SETS) as usize] += 1;
            }
        }
        assert_eq!(sizes.iter().sum::<u32>(), 65_536);
        let largest = sizes.iter().max().copied().unwrap();
        assert!(largest <= 64, "a set of {largest}");
    }

    #[test]
    fn every_word_counts() {
        let keys = FlowHashKeys::draw().unwrap();
        let plain = types::flow_key::default();
        let mut seen = vec![keys.hash(&plain)];
        let mut changed = |change: &dyn Fn(&mut types::flow_key)| {
            let mut key = plain;
            change(&mut key);
            let hash = keys.hash(&key);
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
