//! A model of the set-associative flow table: sets of eight entries, each with its flow's
//! fingerprint. A set evicts its least recently used entry, but first those that were never used
//! again, as long as there are two of them; sets come into use as flows come. Written from the
//! table's definition, not from its C source, so that the two can be compared.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::FlowTable;

/// Entries of a set.
pub const WAYS: usize = 8;
/// A table for this many flows has one set: twice as many entries as flows.
const FLOWS_PER_SET: u32 = 4;
/// Sets in use from the start.
const FIRST_SETS: usize = 256;
/// A new flow in this entry of its set, or a later one, brings that many more sets into use.
const FULL_FROM: usize = 3;
const SPLITS: usize = 4;
/// With this many entries in its set that were never used again, the oldest of those is evicted.
const USED_ONCE: usize = 2;
/// Words of a flow's key.
const WORDS: usize = 10;

/// The hash's random keys. The hash is multilinear (Lemire and Kaser, "Strongly universal string
/// hashing is fast", 2014): a random number plus the sum of the words, each multiplied by its own
/// random number, in 64 bits.
pub struct HashKeys([u64; WORDS + 1]);

impl HashKeys {
    /// Keys drawn from a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // Odd, except the start value, which is first.
        Self(std::array::from_fn(|i| {
            random.next_u64() | u64::from(i > 0)
        }))
    }

    /// The flow's set in a table of `sets`, by the plain sum.
    ///
    /// The sum is linear in the flow's words, so flows with consecutive addresses and ports form a
    /// lattice, which with unlucky keys meets few sets.
    pub fn linear_set(&self, flow: u32, sets: u32) -> u32 {
        scale(self.fingerprint(flow), sets)
    }

    /// A flow's set in a table of `sets` that are all in use: after one multiplication that is not
    /// linear in the words.
    pub fn set(&self, flow: u32, sets: u32) -> u32 {
        set_among(self.fingerprint(flow), sets as usize) as u32
    }

    fn fingerprint(&self, flow: u32) -> u64 {
        let words = words(flow);
        let products = self.0[1..].iter().zip(words);
        let sum = products.fold(self.0[0], |sum, (key, word)| {
            sum.wrapping_add(key.wrapping_mul(word.into()))
        });
        // Odd, so that no flow has an empty entry's fingerprint.
        sum | 1
    }
}

fn mixed(sum: u64) -> u64 {
    (sum ^ sum >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The upper half, as a fraction of 2^32, times the number of sets.
fn scale(hash: u64, sets: u32) -> u32 {
    (((hash >> 32) * u64::from(sets)) >> 32) as u32
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
    /// Whether the flow has had more than one packet.
    again: bool,
}

/// The set-associative table with its own keys.
pub struct SetAssociative {
    keys: HashKeys,
    sets: Vec<[Entry; WAYS]>,
    /// How many sets are in use.
    active: usize,
}

impl SetAssociative {
    /// An empty table for `flows` flows: a quarter as many sets of eight entries.
    pub fn new(flows: u32, seed: u64) -> Self {
        let sets = flows.div_ceil(FLOWS_PER_SET) as usize;
        Self {
            keys: HashKeys::draw(seed),
            sets: vec![Default::default(); sets],
            active: sets.min(FIRST_SETS),
        }
    }

    /// How many sets there are.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// How many sets are in use.
    pub fn active(&self) -> usize {
        self.active
    }

    /// Brings all sets into use, as many flows would.
    pub fn use_all(&mut self) {
        while self.active < self.sets.len() {
            self.split();
        }
    }

    /// The number of the flow's set.
    pub fn set_of(&self, flow: u32) -> usize {
        set_among(self.keys.fingerprint(flow), self.active)
    }

    /// When the flow was last used, if it is known; this is no use.
    pub fn last_used(&self, flow: u32) -> Option<u32> {
        let fingerprint = self.keys.fingerprint(flow);
        let set = &self.sets[set_among(fingerprint, self.active)];
        let mut entries = set.iter();
        let found = entries.find(|entry| entry.fingerprint == fingerprint);
        found.map(|entry| entry.used)
    }

    /// The flow's last packet, if it is known: from here on it ages like a flow with a single
    /// packet.
    pub fn end(&mut self, flow: u32, now: u32) {
        let set = self.set_of(flow);
        let fingerprint = self.keys.fingerprint(flow);
        let mut entries = self.sets[set].iter_mut();
        if let Some(entry) = entries.find(|entry| entry.fingerprint == fingerprint) {
            (entry.used, entry.again) = (now, false);
        }
    }

    /// Brings the next set into use, and moves its flows there.
    fn split(&mut self) {
        let next = self.active;
        self.active += 1;
        // Its number without the highest bit.
        let parent = next & !(1 << next.ilog2());
        for way in 0..WAYS {
            let entry = self.sets[parent][way];
            if entry.fingerprint != 0 && set_among(entry.fingerprint, self.active) == next {
                self.sets[next][way] = entry;
                self.sets[parent][way] = Entry::default();
            }
        }
    }
}

/// The set among those in use (Litwin, "Linear hashing", 1980).
fn set_among(fingerprint: u64, active: usize) -> usize {
    let hash = (mixed(fingerprint) >> 32) as usize;
    let all = active.next_power_of_two();
    let set = hash % all;
    if set < active { set } else { set - all / 2 }
}

impl FlowTable for SetAssociative {
    fn find(&mut self, flow: u32, now: u32) -> bool {
        let set = self.set_of(flow);
        let fingerprint = self.keys.fingerprint(flow);
        let mut entries = self.sets[set].iter_mut();
        let found = entries.find(|entry| entry.fingerprint == fingerprint);
        let found = found.map(|entry| (entry.used, entry.again) = (now, true));
        found.is_some()
    }

    fn remember(&mut self, flow: u32, now: u32) {
        let number = self.set_of(flow);
        let fingerprint = self.keys.fingerprint(flow);
        let set = &mut self.sets[number];
        let same = set.iter().position(|e| e.fingerprint == fingerprint);
        let empty = || set.iter().position(|e| e.fingerprint == 0);
        // The first of several: max_by_key would take the last. Ages hold across a wrap.
        let once = set.iter().filter(|entry| !entry.again).count() >= USED_ONCE;
        let oldest = || {
            (0..WAYS)
                .rev()
                .max_by_key(|way| (once && !set[*way].again, now.wrapping_sub(set[*way].used)))
        };
        let Some(way) = same.or_else(empty).or_else(oldest) else {
            return;
        };
        set[way] = Entry {
            fingerprint,
            used: now,
            again: false,
        };
        if way >= FULL_FROM {
            let more = SPLITS.min(self.sets.len() - self.active);
            (0..more).for_each(|_| self.split());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with a single set.
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
        // A power of two sets: otherwise some would not be split yet.
        const FLOWS: u32 = 32_768;
        let mut table = SetAssociative::new(FLOWS, 7);
        table.use_all();
        for first in [0, 1 << 20] {
            let mut in_set = vec![0u32; table.sets()];
            (first..first + FLOWS).for_each(|flow| in_set[table.set_of(flow)] += 1);
            // Chi squared, compared with a normal distribution with that many degrees of freedom as
            // its mean.
            let chi = |count: &u32| (f64::from(*count) - 4.0).powi(2) / 4.0;
            let chi: f64 = in_set.iter().map(chi).sum();
            let free = in_set.len() as f64;
            assert!((chi - free).abs() < 6.0 * (2.0 * free).sqrt(), "{chi}");
        }
    }

    #[test]
    fn sets_come_into_use_with_the_flows_and_lose_hardly_any() {
        const FLOWS: u32 = 40_000;
        let mut table = SetAssociative::new(4 * FLOWS, 3);
        for flow in 0..FLOWS {
            table.remember(flow, flow);
        }
        // One to two flows for each of 40,000 sets.
        let range = (FLOWS / 2) as usize..=FLOWS as usize;
        assert!(range.contains(&table.active()), "{}", table.active());
        let lost = (0..FLOWS).filter(|flow| !table.find(*flow, FLOWS)).count();
        assert!(lost <= FLOWS as usize / 1000, "{lost} lost");
    }

    #[test]
    fn new_flows_make_room_before_those_that_were_seen_again_while_there_are_two() {
        let mut table = SetAssociative::new(4, 1);
        (0..8).for_each(|flow| table.remember(flow, flow));
        // All but the last are used again; then new flows come. The first one takes an unused
        // place.
        assert!((0..7).all(|flow| table.find(flow, 10 + flow)));
        (100..200).for_each(|flow| table.remember(flow, 20));
        assert!((1..7).all(|flow| table.find(flow, 20 + flow)));
        assert!(!table.find(0, 30) && !table.find(7, 30));
        // However long the others are idle.
        (200..300).for_each(|flow| table.remember(flow, (1 << 20) + flow));
        assert!((1..7).all(|flow| table.find(flow, (1 << 21) + flow)));
        // A flow that has begun outlives the next new one.
        assert!(table.find(298, 1 << 22) && table.find(299, 1 << 22));
        (300..303).for_each(|flow| table.remember(flow, (1 << 22) + flow));
        let known = (300..303).filter(|flow| table.find(*flow, 1 << 23));
        assert_eq!(known.collect::<Vec<_>>(), [301, 302]);
    }

    #[test]
    fn a_flow_that_has_ended_is_as_one_that_was_never_used_again() {
        let mut table = SetAssociative::new(4, 1);
        (0..8).for_each(|flow| table.remember(flow, 0));
        assert!((0..8).all(|flow| table.find(flow, 1000 + flow)));
        [6, 7].iter().for_each(|flow| table.end(*flow, 1010));
        table.end(1_000_000, 1010);
        assert_eq!(table.last_used(7), Some(1010));
        assert_eq!(table.last_used(1_000_000), None);
        table.remember(100, 1020);
        table.remember(101, 1020);
        assert_eq!([6, 7].map(|flow| table.last_used(flow)), [None; 2]);
        assert!((0..6).all(|flow| table.find(flow, 1021)));
    }
}
