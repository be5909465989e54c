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
    /// 1 for each slot that is free, else 0.
    free: Vec<u8>,
    /// How many slots are free.
    free_count: u32,
    /// With this many free slots or fewer they are listed in `last_slots`.
    last_count: u32,
    last_slots: Vec<u32>,
    /// No slot before this one is free.
    lowest: usize,
}

impl Table {
    /// A table of free slots.
    pub(super) fn new(size: RingSize) -> Self {
        let size = size.get();
        Self {
            size,
            slots: vec![0; size as usize],
            free: vec![1; size as usize],
            free_count: size,
            // About where `nearest` begins to be faster than `first_free`.
            last_count: size.isqrt() / 2,
            last_slots: Vec::new(),
            lowest: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free_count == 0
    }

    pub(super) fn free_count(&self) -> u32 {
        self.free_count
    }

    pub(super) fn into_slots(self) -> Vec<u16> {
        self.slots
    }

    /// Claims a slot for an endpoint. There must be a free one.
    ///
    /// What costs time here is a branch that the CPU cannot foresee: whether a candidate is free.
    /// So candidates are tested in blocks, without branches, and a block is just long enough that
    /// one without a free slot is rare. When nearly all slots are taken, it is the other way
    /// round: the few free slots are asked how many candidates they are away.
    #[inline(always)]
    pub(super) fn claim(&mut self, candidates: &mut Candidates) {
        let (free, eighth) = (self.free_count, self.size / 8);
        let slot = if free > 5 * eighth {
            self.find(candidates, Self::first_free::<2, 1>)
        } else if free > 4 * eighth {
            self.find(candidates, Self::first_free::<3, 1>)
        } else if free > 2 * eighth {
            self.find(candidates, Self::first_free::<4, 1>)
        } else if free > self.last_count {
            self.find(candidates, Self::first_free::<4, 2>)
        } else {
            self.list_last_slots();
            let slot = self.find(candidates, Self::nearest);
            self.last_slots.retain(|&last| last != slot);
            slot
        };
        self.slots[slot as usize] = candidates.number;
        self.free[slot as usize] = 0;
        self.free_count -= 1;
    }

    /// Finds the next free candidate by a function that looks as far as the end of the lap.
    #[inline(always)]
    fn find(
        &mut self,
        candidates: &mut Candidates,
        within_lap: impl Fn(&Self, &mut Candidates) -> Option<u32>,
    ) -> u32 {
        within_lap(self, candidates).unwrap_or_else(|| self.find_behind_lap(candidates, within_lap))
    }

    /// Goes through further laps.
    ///
    /// A skip that is divisible by a large power of two has a short period, which need not meet
    /// all slots: one of 65,536 in the default ring. The ring's definition knows no slot for an
    /// endpoint that has gone through all its candidates in vain. Here it claims the lowest free
    /// slot, so that it gets its share and all hosts agree.
    #[cold]
    #[inline(never)]
    fn find_behind_lap(
        &mut self,
        candidates: &mut Candidates,
        within_lap: impl Fn(&Self, &mut Candidates) -> Option<u32>,
    ) -> u32 {
        let mut tested = 0;
        while !candidates.exhausted {
            tested += candidates.next_lap(self.size);
            if let Some(slot) = within_lap(self, candidates) {
                return slot;
            }
            candidates.exhausted = tested >= candidates.period();
        }
        while self.free[self.lowest] == 0 {
            self.lowest += 1;
        }
        self.lowest as u32
    }

    /// Goes to the first free candidate of this lap, testing `ROWS` times `LANES` at once.
    #[inline(always)]
    fn first_free<const LANES: usize, const ROWS: usize>(
        &self,
        candidates: &mut Candidates,
    ) -> Option<u32> {
        let (size, skip) = (self.size, candidates.skip);
        let block = (LANES * ROWS) as u64;
        let mut lanes = [candidates.slot; LANES];
        for i in 1..LANES {
            lanes[i] = add(lanes[i - 1], skip, size);
        }
        let stride = (1..LANES).fold(skip, |stride, _| add(stride, skip, size));
        while candidates.left >= block {
            let mut tested = [[0; LANES]; ROWS];
            let mut free = 0;
            for (row, tested) in tested.iter_mut().enumerate() {
                *tested = lanes;
                for (i, lane) in lanes.iter_mut().enumerate() {
                    free |= u32::from(self.free[*lane as usize]) << (row * LANES + i);
                    *lane = add(*lane, stride, size);
                }
            }
            if free != 0 {
                let index = free.trailing_zeros() as usize;
                let slot = tested.as_flattened()[index % (LANES * ROWS)];
                candidates.go_behind(index as u64, slot, size);
                return Some(slot);
            }
            candidates.slot = lanes[0];
            candidates.left -= block;
        }
        self.first_free_of_rest(candidates)
    }

    /// Goes to the first free candidate of this lap, one by one.
    #[cold]
    fn first_free_of_rest(&self, candidates: &mut Candidates) -> Option<u32> {
        while candidates.left > 0 {
            let slot = candidates.slot;
            candidates.go_behind(0, slot, self.size);
            if self.free[slot as usize] == 1 {
                return Some(slot);
            }
        }
        None
    }

    /// Goes to the first free candidate of this lap: of the listed slots the one that is the
    /// fewest skips away.
    fn nearest(&self, candidates: &mut Candidates) -> Option<u32> {
        let size = u64::from(self.size);
        let inverse = u64::from(inverse(candidates.skip, self.size));
        let away = |slot: u32| u64::from(slot + self.size - candidates.slot) * inverse % size;
        let (index, slot) = self
            .last_slots
            .iter()
            .map(|&slot| (away(slot), slot))
            .min()?;
        if index >= candidates.left {
            return None;
        }
        candidates.go_behind(index, slot, self.size);
        Some(slot)
    }

    fn list_last_slots(&mut self) {
        if self.last_slots.is_empty() {
            let free = (0..).zip(&self.free).filter(|&(_, &free)| free == 1);
            self.last_slots = free.map(|(slot, _)| slot).collect();
        }
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
