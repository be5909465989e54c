//! A model of the set-associative flow table: sets of eight entries, each with a fingerprint of
//! its flow; in a set the least recently used entry goes. Written from the table's definition, not
//! from its C source, so that the two can be held against each other.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::FlowTable;

/// Entries of a set.
pub const WAYS: usize = 8;
/// A table for so many flows has one set: twice as many entries as flows.
const FLOWS_PER_SET: u32 = 4;
/// Words of the key that a flow is hashed by.
const WORDS: usize = 10;

/// The random keys of the two hashes.
///
/// Both are multilinear (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): a
/// random number, and the sum of the words, each times a random number of its own, in 64 bits.
pub struct HashKeys {
    set: [u64; WORDS + 1],
    fingerprint: [u64; WORDS + 1],
}

impl HashKeys {
    /// Keys drawn from a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut keys = || std::array::from_fn(|_| random.next_u64());
        Self {
            set: keys(),
            fingerprint: keys(),
        }
    }

    /// The set of a flow in a table of `sets`, by the sum as it is.
    ///
    /// The sum is linear in the flow's words, so flows whose addresses and ports follow one
    /// another form a lattice, and with unlucky keys it meets few sets.
    pub fn linear_set(&self, flow: u32, sets: u32) -> u32 {
        scale(sum(&self.set, &words(flow)), sets)
    }

    /// The same after one multiplication that is not linear in the words.
    pub fn set(&self, flow: u32, sets: u32) -> u32 {
        let sum = sum(&self.set, &words(flow));
        scale((sum ^ sum >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15), sets)
    }

    fn fingerprint(&self, flow: u32) -> u64 {
        // Odd, so that no flow has that of an empty entry.
        sum(&self.fingerprint, &words(flow)) | 1
    }
}

/// The upper half, as a fraction of 2^32, times the number of sets.
fn scale(hash: u64, sets: u32) -> u32 {
    (((hash >> 32) * u64::from(sets)) >> 32) as u32
}

fn sum(keys: &[u64; WORDS + 1], words: &[u32; WORDS]) -> u64 {
    let products = keys[1..].iter().zip(words);
    products.fold(keys[0], |sum, (key, word)| {
        sum.wrapping_add(key.wrapping_mul((*word).into()))
    })
}

/// The key of one of the yardstick's flows to 203.0.113.1:80/tcp: source, destination, ports,
/// protocol and family, as a little-endian machine reads them from a frame.
fn words(flow: u32) -> [u32; WORDS] {
    let (tail, port) = crate::tail_and_port(flow);
    let [high, low] = tail.to_be_bytes();
    let source = u32::from_le_bytes([100, 64, high, low]);
    let destination = u32::from_le_bytes([203, 0, 113, 1]);
    let ports = u32::from(port.to_be()) | u32::from(80u16.to_be()) << 16;
    [source, 0, 0, 0, destination, 0, 0, 0, ports, 6 | 4 << 8]
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// 0: empty.
    fingerprint: u64,
    used: u32,
}

/// The set-associative table with keys of its own.
pub struct SetAssociative {
    keys: HashKeys,
    sets: Vec<[Entry; WAYS]>,
}

impl SetAssociative {
    /// An empty table for `flows` flows: as many sets of eight entries as a quarter of that.
    pub fn new(flows: u32, seed: u64) -> Self {
        let sets = flows.div_ceil(FLOWS_PER_SET);
        Self {
            keys: HashKeys::draw(seed),
            sets: vec![Default::default(); sets as usize],
        }
    }

    /// How many sets there are.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// The number of the flow's set.
    pub fn set_of(&self, flow: u32) -> usize {
        self.keys.set(flow, self.sets.len() as u32) as usize
    }
}

impl FlowTable for SetAssociative {
    fn find(&mut self, flow: u32, now: u32) -> bool {
        let set = self.set_of(flow);
        let fingerprint = self.keys.fingerprint(flow);
        let mut entries = self.sets[set].iter_mut();
        let found = entries.find(|entry| entry.fingerprint == fingerprint);
        found.map(|entry| entry.used = now).is_some()
    }

    fn remember(&mut self, flow: u32, now: u32) {
        let set = self.set_of(flow);
        let fingerprint = self.keys.fingerprint(flow);
        let set = &mut self.sets[set];
        let same = set.iter().position(|e| e.fingerprint == fingerprint);
        let empty = || set.iter().position(|e| e.fingerprint == 0);
        // The first of several: max_by_key would take the last. Ages are right across a wrap.
        let oldest = || {
            (0..WAYS)
                .rev()
                .max_by_key(|way| now.wrapping_sub(set[*way].used))
        };
        if let Some(way) = same.or_else(empty).or_else(oldest) {
            set[way] = Entry {
                fingerprint,
                used: now,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything in one set.
    fn one_set() -> SetAssociative {
        let table = SetAssociative::new(4, 1);
        assert_eq!(table.sets(), 1);
        table
    }

    #[test]
    fn a_set_holds_eight_flows_and_then_the_oldest_goes() {
        let mut table = one_set();
        for flow in 0..8 {
            assert!(!table.packet(flow, flow));
        }
        assert!((0..8).rev().all(|flow| table.packet(flow, 20 - flow)));
        assert!(!table.packet(100, 30), "puts 7 out, used at 13");
        assert!(!table.find(7, 31));
        assert!((0..7).all(|flow| table.find(flow, 31)));
    }

    #[test]
    fn of_equally_old_entries_the_first_goes_and_a_known_flow_puts_none_out() {
        let mut table = one_set();
        for flow in 0..8 {
            table.remember(flow, 5);
        }
        table.remember(3, 5);
        assert!((0..8).all(|flow| table.find(flow, 5)));
        table.remember(8, 5);
        let known: Vec<bool> = (0..9).map(|flow| table.find(flow, 5)).collect();
        assert_eq!(known[0..2], [false, true]);
        assert_eq!(known[8..], [true]);
    }

    #[test]
    fn ages_survive_the_wrap_of_the_clock() {
        let mut table = one_set();
        let start = u32::MAX - 3;
        for flow in 0..8 {
            table.remember(flow, start.wrapping_add(flow));
        }
        table.remember(8, start.wrapping_add(8));
        assert!(!table.find(0, 4) && table.find(1, 4));
    }

    #[test]
    fn flows_spread_over_the_sets_as_balls_over_bins() {
        const FLOWS: u32 = 40_000;
        let table = SetAssociative::new(FLOWS, 7);
        for first in [0, 1 << 20] {
            let mut in_set = vec![0u32; table.sets()];
            (first..first + FLOWS).for_each(|flow| in_set[table.set_of(flow)] += 1);
            // Chi squared has mean and variance of a normal one with so many degrees of freedom.
            let chi = |count: &u32| (f64::from(*count) - 4.0).powi(2) / 4.0;
            let chi: f64 = in_set.iter().map(chi).sum();
            let free = in_set.len() as f64;
            assert!((chi - free).abs() < 6.0 * (2.0 * free).sqrt(), "{chi}");
        }
    }
}
