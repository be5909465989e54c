//! Which slot an endpoint gets when it is its turn.
//!
//! An endpoint's n-th candidate is slot ((offset + n * skip) mod 2^32) mod size. It claims the
//! first free one, and goes on behind it the next time. Nearly all the time of building a ring is
//! spent here, on some 700,000 candidates for 65,537 slots; [`Table::claim`] tells how it is kept
//! short.

use super::RingSize;
use super::hash::offset_and_skip;

/// Where an endpoint stands in its sequence of candidates.
///
/// The sequence falls into laps, which end where offset + n * skip wraps at 2^32. Within a lap
/// the next candidate is found by adding the skip to the slot itself.
pub(super) struct Candidates {
    /// What a claimed slot gets.
    number: u16,
    /// All candidates were tested and none was free, or will ever be.
    exhausted: bool,
    /// The next candidate.
    slot: u32,
    skip: u32,
    /// offset + n * skip, mod 2^32, at the lap's first candidate.
    lap_start: u32,
    /// How many candidates are left in this lap, the next one included.
    left: u64,
}

impl Candidates {
    /// The sequence of the endpoint with this number and hash.
    pub(super) fn new(number: u16, hash: u64, size: RingSize) -> Self {
        let (offset, skip) = offset_and_skip(hash, size);
        Self::from_offset(number, offset, skip)
    }

    /// The sequence that begins at this slot, with this distance from one to the next.
    pub(super) fn from_offset(number: u16, offset: u32, skip: u32) -> Self {
        let mut sequence = Self {
            number,
            exhausted: false,
            slot: offset,
            skip,
            lap_start: offset,
            left: 0,
        };
        sequence.left = sequence.lap_length();
        sequence
    }

    /// The number of candidates in this lap.
    fn lap_length(&self) -> u64 {
        u64::from((u32::MAX - self.lap_start) / self.skip) + 1
    }

    /// Goes to the beginning of the next lap and returns that lap's length.
    fn next_lap(&mut self, size: u32) -> u64 {
        let lap_end = u64::from(self.lap_start) + self.lap_length() * u64::from(self.skip);
        // It is at least 2^32; what is above is the next position.
        self.lap_start = lap_end as u32;
        self.slot = self.lap_start % size;
        self.left = self.lap_length();
        self.left
    }

    /// After so many candidates the sequence repeats itself.
    fn period(&self) -> u64 {
        1 << (u32::BITS - self.skip.trailing_zeros())
    }

    /// Goes behind the candidate that is `index` candidates ahead, and is `slot`.
    #[inline(always)]
    fn go_behind(&mut self, index: u64, slot: u32, size: u32) {
        self.slot = add(slot, self.skip, size);
        self.left -= index + 1;
    }
}

/// A ring being filled.
pub(super) struct Table {
    size: u32,
    /// The owner of each slot; 0 while it is free.
    slots: Vec<u16>,
    free: FreeSlots,
    /// How many slots are free.
    free_count: u32,
}

impl Table {
    /// A table of free slots.
    pub(super) fn new(size: RingSize) -> Self {
        let free = FreeSlots::new(size);
        let size = size.get();
        Self {
            size,
            slots: vec![0; size as usize],
            free,
            free_count: size,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free_count == 0
    }

    pub(super) fn into_slots(self) -> Vec<u16> {
        self.slots
    }

    /// Lets endpoints claim a slot each, in the order of `turns`, which are indices of
    /// `candidates`, until the turns are over or the ring is full.
    ///
    /// What costs time here is a branch that the CPU cannot foresee: whether a candidate is free.
    /// So candidates are tested in blocks, without branches, and the fewer slots are free, the
    /// longer the block, so that one without a free slot is rare. When nearly all slots are
    /// taken, it is the other way round: the free ones are asked how many candidates they are
    /// away. The limits between these are measured.
    pub(super) fn claim(
        &mut self,
        candidates: &mut [Candidates],
        turns: impl IntoIterator<Item = usize>,
    ) {
        let eighth = self.size / 8;
        let last = self.size.isqrt() / 2;
        let turns = &mut turns.into_iter();
        let mut more = true;
        while more && !self.is_full() {
            let free = self.free_count;
            more = if free > 5 * eighth {
                self.claim_by(
                    candidates,
                    turns,
                    5 * eighth,
                    FreeSlots::first_of_block::<2>,
                )
            } else if free > 4 * eighth {
                self.claim_by(
                    candidates,
                    turns,
                    4 * eighth,
                    FreeSlots::first_of_block::<3>,
                )
            } else if free > 2 * eighth {
                self.claim_by(
                    candidates,
                    turns,
                    2 * eighth,
                    FreeSlots::first_of_block::<4>,
                )
            } else if free > last {
                self.claim_by(candidates, turns, last, FreeSlots::first_of_rows)
            } else {
                self.free.make_list();
                self.claim_by(candidates, turns, 0, FreeSlots::nearest)
            };
        }
    }

    /// Claims until so many slots are free; returns false if the turns were over before.
    ///
    /// `find` goes to the next free candidate, but no farther than the end of the lap.
    fn claim_by(
        &mut self,
        candidates: &mut [Candidates],
        turns: &mut impl Iterator<Item = usize>,
        until: u32,
        find: impl Fn(&mut FreeSlots, &mut Candidates) -> Option<u32> + Copy,
    ) -> bool {
        for remaining in (until..self.free_count).rev() {
            let Some(turn) = turns.next() else {
                return false;
            };
            let candidates = &mut candidates[turn];
            let slot = match find(&mut self.free, candidates) {
                Some(slot) => slot,
                None => self.free.find_behind_lap(candidates, find),
            };
            self.slots[slot as usize] = candidates.number;
            self.free.take(slot);
            self.free_count = remaining;
        }
        true
    }
}

/// The slots that are free, and ways to find an endpoint's next one.
struct FreeSlots {
    size: u32,
    /// 1 for each slot that is free, else 0.
    flags: Vec<u8>,
    /// The free slots, once there are few.
    list: Vec<u32>,
    /// No slot before this one is free.
    lowest: usize,
}

impl FreeSlots {
    fn new(size: RingSize) -> Self {
        Self {
            size: size.get(),
            flags: vec![1; size.get() as usize],
            list: Vec::new(),
            lowest: 0,
        }
    }

    #[inline(always)]
    fn flag(&self, slot: u32) -> u32 {
        self.flags[slot as usize].into()
    }

    #[inline(always)]
    fn take(&mut self, slot: u32) {
        self.flags[slot as usize] = 0;
    }

    /// Goes to the first free candidate of this lap, testing `BLOCK` at a time.
    #[inline(always)]
    fn first_of_block<const BLOCK: usize>(&mut self, candidates: &mut Candidates) -> Option<u32> {
        let (size, skip) = (self.size, candidates.skip);
        let (mut slot, mut left) = (candidates.slot, candidates.left);
        while left >= BLOCK as u64 {
            let mut tested = [0; BLOCK];
            let mut free = 0;
            for (i, tested) in tested.iter_mut().enumerate() {
                *tested = slot;
                free |= self.flag(slot) << i;
                slot = add(slot, skip, size);
            }
            if free != 0 {
                let index = free.trailing_zeros() as usize % BLOCK;
                candidates.left = left;
                candidates.go_behind(index as u64, tested[index], size);
                return Some(tested[index]);
            }
            left -= BLOCK as u64;
        }
        (candidates.slot, candidates.left) = (slot, left);
        self.first_one_by_one(candidates)
    }

    /// The same in blocks of two rows of four: the four are computed independently of each
    /// other.
    #[inline(always)]
    fn first_of_rows(&mut self, candidates: &mut Candidates) -> Option<u32> {
        const LANES: usize = 4;
        const BLOCK: usize = 2 * LANES;
        let (size, skip) = (self.size, candidates.skip);
        let (slot, mut left) = (candidates.slot, candidates.left);
        let twice = add(skip, skip, size);
        let (stride, second) = (add(twice, twice, size), add(slot, skip, size));
        let mut lanes: [u32; LANES] = [
            slot,
            second,
            add(slot, twice, size),
            add(second, twice, size),
        ];
        while left >= BLOCK as u64 {
            let mut tested = [0; BLOCK];
            let mut free = 0;
            for (i, tested) in tested.iter_mut().enumerate() {
                let lane = &mut lanes[i % LANES];
                *tested = *lane;
                free |= self.flag(*lane) << i;
                *lane = add(*lane, stride, size);
            }
            if free != 0 {
                let index = free.trailing_zeros() as usize % BLOCK;
                candidates.left = left;
                candidates.go_behind(index as u64, tested[index], size);
                return Some(tested[index]);
            }
            left -= BLOCK as u64;
        }
        (candidates.slot, candidates.left) = (lanes[0], left);
        self.first_one_by_one(candidates)
    }

    /// Goes to the first free candidate of this lap, which may end within a block.
    #[inline(never)]
    fn first_one_by_one(&self, candidates: &mut Candidates) -> Option<u32> {
        while candidates.left > 0 {
            let slot = candidates.slot;
            candidates.go_behind(0, slot, self.size);
            if self.flag(slot) == 1 {
                return Some(slot);
            }
        }
        None
    }

    /// Lists the free slots, for [`FreeSlots::nearest`].
    fn make_list(&mut self) {
        if self.list.is_empty() {
            let free = (0..).zip(&self.flags).filter(|&(_, &free)| free == 1);
            self.list = free.map(|(slot, _)| slot).collect();
        }
    }

    /// Goes to the first free candidate of this lap: the listed slot that is the fewest skips
    /// away.
    #[inline(always)]
    fn nearest(&mut self, candidates: &mut Candidates) -> Option<u32> {
        if candidates.left < self.list.len() as u64 {
            // The laps of a large ring may be that short.
            return self.first_one_by_one(candidates);
        }
        let size = u64::from(self.size);
        let inverse = u64::from(inverse(candidates.skip, self.size));
        let away = |slot: u32| u64::from(slot + self.size - candidates.slot) * inverse % size;
        // Slots that were claimed since the list was made are in it no longer.
        self.list.retain(|&slot| self.flags[slot as usize] == 1);
        let (index, slot) = self.list.iter().map(|&slot| (away(slot), slot)).min()?;
        if index >= candidates.left {
            return None;
        }
        candidates.go_behind(index, slot, self.size);
        Some(slot)
    }

    /// Goes through further laps.
    ///
    /// A skip that is divisible by a large power of two has a short period, which need not meet
    /// all slots: one skip in 65,536 of the default ring. The ring's definition knows no slot for
    /// an endpoint that has gone through all its candidates in vain. Here it claims the lowest
    /// free slot, so that it gets its share and all hosts agree.
    #[cold]
    #[inline(never)]
    fn find_behind_lap(
        &mut self,
        candidates: &mut Candidates,
        find: impl Fn(&mut Self, &mut Candidates) -> Option<u32>,
    ) -> u32 {
        let mut tested = 0;
        while !candidates.exhausted {
            tested += candidates.next_lap(self.size);
            if let Some(slot) = find(self, candidates) {
                return slot;
            }
            candidates.exhausted = tested >= candidates.period();
        }
        // It has none left, here and from now on.
        candidates.left = 0;
        while self.flags[self.lowest] == 0 {
            self.lowest += 1;
        }
        self.lowest as u32
    }
}

/// The sum of two numbers below `size`, mod `size`, which is below 2^31.
#[inline(always)]
fn add(a: u32, b: u32, size: u32) -> u32 {
    let sum = a + b;
    // If the sum is below the size, the difference wraps and is the greater one.
    sum.min(sum.wrapping_sub(size))
}

/// The number by which `number` has the product 1, mod `prime`: Euclid's extended algorithm.
fn inverse(number: u32, prime: u32) -> u32 {
    let (mut larger, mut smaller) = (prime, number);
    // larger = number * of_larger, smaller = number * of_smaller, mod prime.
    let (mut of_larger, mut of_smaller) = (0_i64, 1_i64);
    while smaller > 1 {
        let quotient = larger / smaller;
        (larger, smaller) = (smaller, larger % smaller);
        (of_larger, of_smaller) = (of_smaller, of_larger - i64::from(quotient) * of_smaller);
    }
    // Between 0 and the prime, a u32.
    of_smaller.rem_euclid(i64::from(prime)) as u32
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what panics has failed the test")]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn size(slots: u32) -> RingSize {
        RingSize::try_from(slots).unwrap()
    }

    /// The next candidates, whether free or not.
    fn sequence(candidates: &mut Candidates, size: u32, count: usize) -> Vec<u32> {
        let mut slots = Vec::new();
        while slots.len() < count {
            if candidates.left == 0 {
                candidates.next_lap(size);
            }
            slots.push(candidates.slot);
            candidates.go_behind(0, candidates.slot, size);
        }
        slots
    }

    proptest! {
        #[test]
        fn candidates_meet_every_slot(
            hash in any::<u64>(),
            slots in prop::sample::select(vec![3_u32, 5, 1009, 10_007, 65_521]),
        ) {
            // Below 2^16 slots, offset + n * skip does not wrap before all are met.
            let mut candidates = Candidates::new(1, hash, size(slots));
            let met = sequence(&mut candidates, slots, slots as usize);
            prop_assert_eq!(met.into_iter().collect::<HashSet<_>>().len(), slots as usize);
        }

        #[test]
        fn candidates_wrap_at_32_bits(
            slots in prop::sample::select(vec![65_537_u32, 655_373, 16_777_213]),
            offset in any::<u32>(),
            skip in any::<u32>(),
        ) {
            let (offset, skip) = (offset % slots, skip % (slots - 1) + 1);
            let mut candidates = Candidates::from_offset(1, offset, skip);
            for (n, slot) in (0..).zip(sequence(&mut candidates, slots, 5000)) {
                prop_assert_eq!(slot, offset.wrapping_add(skip.wrapping_mul(n)) % slots);
            }
        }

        #[test]
        fn inverse_is_one(
            prime in prop::sample::select(vec![3_u32, 1009, 65_537, 16_777_213]),
            number in any::<u32>(),
        ) {
            let number = number % (prime - 1) + 1;
            let product = u64::from(inverse(number, prime)) * u64::from(number);
            prop_assert_eq!(product % u64::from(prime), 1);
        }
    }

    #[test]
    fn whole_range_is_one_lap_at_skip_1() {
        let mut candidates = Candidates::from_offset(1, 0, 1);
        assert_eq!(candidates.left, 1 << 32);
        assert_eq!(candidates.next_lap(65_537), 1 << 32);
        assert_eq!((candidates.lap_start, candidates.slot), (0, 0));
    }
}
