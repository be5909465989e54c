//! Which slot an endpoint gets when it is its turn.
//!
//! An endpoint's n-th candidate is slot ((offset + n * skip) mod 2^32) mod size. It claims the
//! first free one, and goes on behind it the next time. Nearly all the time of building a ring is
//! spent here; what makes it fast is said at [`Table::claim`].

use super::RingSize;
use super::hash::offset_and_skip;

/// A ring being filled.
pub(super) struct Table {
    size: u32,
    /// The owner of each slot, 0 while it is free.
    slots: Vec<u16>,
    /// A bit for each slot, set while it is free.
    free: Vec<u64>,
    /// How many slots are free.
    free_count: u32,
    /// No word of `free` before this one has a bit set.
    first_word: usize,
}

/// Where an endpoint stands in its sequence of candidates.
#[derive(Clone, Copy)]
pub(super) struct Candidates {
    /// What a claimed slot gets.
    number: u16,
    /// The next candidate before its reduction: offset + n * skip, mod 2^32.
    position: u32,
    /// The next candidate: `position` mod size.
    slot: u32,
    skip: u32,
    /// How many candidates are left before the sequence repeats itself without having met a free
    /// slot; 0 once that has happened.
    period: u64,
}

impl Candidates {
    /// The sequence of the endpoint with this number and hash.
    pub(super) fn new(number: u16, hash: u64, size: RingSize) -> Self {
        let (offset, skip) = offset_and_skip(hash, size);
        Self {
            number,
            position: offset,
            slot: offset,
            skip,
            period: 1 << (u32::BITS - skip.trailing_zeros()),
        }
    }

    /// Steps to the next candidate.
    fn step(&mut self, size: u32) {
        let (position, wrapped) = self.position.overflowing_add(self.skip);
        self.position = position;
        self.slot = if wrapped {
            position % size
        } else {
            add(self.slot, self.skip, size)
        };
    }
}

/// The sum of two numbers below `size`, mod `size`, which is below 2^31.
#[inline(always)]
fn add(a: u32, b: u32, size: u32) -> u32 {
    let sum = a + b;
    // If the sum is below the size, the difference wraps and is the greater one.
    sum.min(sum.wrapping_sub(size))
}

impl Table {
    /// A table of free slots.
    pub(super) fn new(size: RingSize) -> Self {
        let size = size.get();
        let mut free = vec![u64::MAX; (size / u64::BITS) as usize];
        free.push((1 << (size % u64::BITS)) - 1);
        Self {
            size,
            slots: vec![0; size as usize],
            free,
            free_count: size,
            first_word: 0,
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
    pub(super) fn claim(&mut self, candidates: &mut Candidates) {
        let taken = self.size - self.free_count;
        let free = self.free_count;
        if free >= taken {
            self.claim_in_blocks::<4>(candidates);
        } else if free >= self.size / 4 {
            self.claim_in_blocks::<8>(candidates);
        } else {
            self.claim_in_blocks::<16>(candidates);
        }
    }

    fn claim_in_blocks<const BLOCK: usize>(&mut self, candidates: &mut Candidates) {
        let Candidates { skip, .. } = *candidates;
        let mut tested = 0;
        while tested < candidates.period {
            let span = skip * BLOCK as u32;
            if candidates.position.checked_add(span).is_none() {
                // The position will wrap.
                if self.is_free(candidates.slot) == 1 {
                    let slot = candidates.slot;
                    candidates.step(self.size);
                    return self.take(slot, candidates.number);
                }
                candidates.step(self.size);
                tested += 1;
                continue;
            }
            let mut seen = [0; BLOCK];
            let mut mask = 0_u32;
            let mut slot = candidates.slot;
            for (i, seen) in seen.iter_mut().enumerate() {
                *seen = slot;
                mask |= self.is_free(slot) << i;
                slot = add(slot, skip, self.size);
            }
            if mask != 0 {
                let index = mask.trailing_zeros();
                let found = seen[index as usize % BLOCK];
                candidates.position += (index + 1) * skip;
                candidates.slot = add(found, skip, self.size);
                return self.take(found, candidates.number);
            }
            candidates.position += span;
            candidates.slot = slot;
            tested += BLOCK as u64;
        }
        candidates.period = 0;
        let slot = self.lowest_free();
        self.take(slot, candidates.number);
    }

    /// 1 if the slot is free, 0 otherwise.
    #[inline(always)]
    fn is_free(&self, slot: u32) -> u32 {
        (self.free[(slot / u64::BITS) as usize] >> (slot % u64::BITS)) as u32 & 1
    }

    #[inline(always)]
    fn take(&mut self, slot: u32, number: u16) {
        self.slots[slot as usize] = number;
        self.free[(slot / u64::BITS) as usize] &= !(1 << (slot % u64::BITS));
        self.free_count -= 1;
    }

    #[cold]
    fn lowest_free(&mut self) -> u32 {
        while self.free[self.first_word] == 0 {
            self.first_word += 1;
        }
        self.first_word as u32 * u64::BITS + self.free[self.first_word].trailing_zeros()
    }
}
