//! Which slot an endpoint gets in its turn.
//!
//! It claims the first of its candidates that is free, and continues behind it next time. Nearly
//! all the time of building a ring goes here, on some 400,000 candidates for 65,537 slots;
//! [`Table::claim`] explains how it stays short.

use super::RingSize;
use super::candidates::Candidates;
use super::candidates::Circle;

/// Which slots are free, by their points on the circle.
pub(super) trait Flags {
    /// All slots of a ring are free.
    fn new(size: RingSize) -> Self;

    fn circle(&self) -> Circle;

    /// 1 if the slot at this point is free, else 0.
    fn is_free(&self, point: u64) -> u32;

    fn take(&mut self, point: u64);
}

/// For rings of fewer than 2^17 slots: a flag for each value of a point's highest 17 bits.
///
/// Half of the flags belong to no slot, and they do not all fit the CPU's first cache. But one
/// shift finds the flag, and the length is constant, so no bounds check is needed, which matters
/// more.
pub(super) struct ByPoint {
    circle: Circle,
    flags: Box<[u8; 1 << Self::BITS]>,
}

impl ByPoint {
    const BITS: u32 = 17;

    /// Whether it can distinguish all slots.
    pub(super) fn is_enough_for(size: RingSize) -> bool {
        size.get() < 1 << Self::BITS
    }
}

impl Flags for ByPoint {
    fn new(size: RingSize) -> Self {
        Self {
            circle: Circle::new(size, Self::BITS),
            flags: Box::new([1; 1 << Self::BITS]),
        }
    }

    #[inline(always)]
    fn circle(&self) -> Circle {
        self.circle
    }

    #[inline(always)]
    fn is_free(&self, point: u64) -> u32 {
        self.flags[(point >> (u64::BITS - Self::BITS)) as usize].into()
    }

    #[inline(always)]
    fn take(&mut self, point: u64) {
        self.flags[(point >> (u64::BITS - Self::BITS)) as usize] = 0;
    }
}

/// For rings of any size: a flag for each slot.
pub(super) struct BySlot {
    circle: Circle,
    flags: Vec<u8>,
}

impl Flags for BySlot {
    fn new(size: RingSize) -> Self {
        Self {
            circle: Circle::new(size, 0),
            flags: vec![1; size.get() as usize],
        }
    }

    #[inline(always)]
    fn circle(&self) -> Circle {
        self.circle
    }

    #[inline(always)]
    fn is_free(&self, point: u64) -> u32 {
        self.flags[self.circle.slot(point) as usize].into()
    }

    #[inline(always)]
    fn take(&mut self, point: u64) {
        self.flags[self.circle.slot(point) as usize] = 0;
    }
}

/// A ring being filled.
pub(super) struct Table<F> {
    /// The owner of each slot; 0 while it is free.
    slots: Vec<u16>,
    free: FreeSlots<F>,
    /// The number of free slots.
    free_count: u32,
    /// With this few free slots, a list is faster.
    few: u32,
}

impl<F: Flags> Table<F> {
    /// A table whose slots are all free.
    pub(super) fn new(size: RingSize) -> Self {
        Self {
            slots: vec![0; size.get() as usize],
            free: FreeSlots::new(size),
            free_count: size.get(),
            few: size.get().isqrt(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free_count == 0
    }

    /// The number of free slots.
    pub(super) fn free(&self) -> u32 {
        self.free_count
    }

    pub(super) fn into_slots(self) -> Vec<u16> {
        self.slots
    }

    /// Lets endpoints claim a slot each, in the order of `turns`, until there are no more turns or
    /// the ring is full.
    ///
    /// The cost is in branches that the CPU cannot predict: whether a candidate is free. So this
    /// tests candidates in blocks, without branches, and the fewer slots are free, the longer the
    /// block, so that a block without a free slot is rare. When nearly all slots are taken, it goes
    /// the other way round, and computes how many candidates away each free slot is. The limits
    /// between these are measured.
    pub(super) fn claim<'a>(&mut self, turns: impl IntoIterator<Item = &'a Candidates>) {
        let size = self.slots.len() as u32;
        let turns = &mut turns.into_iter();
        let mut more = true;
        while more && !self.is_full() {
            let free = self.free_count;
            more = if free > size / 2 {
                self.claim_by(turns, size / 2, |free, it| free.first::<3>(it))
            } else if free > size / 4 {
                self.claim_by(turns, size / 4, |free, it| free.first::<6>(it))
            } else if free > self.few {
                self.claim_by(turns, self.few, |free, it| free.first::<12>(it))
            } else {
                self.free.make_list(&self.slots);
                self.claim_by(turns, 0, |free, it| free.nearest(it))
            };
        }
    }

    /// Claims until `until` slots are free; returns false if the turns ended before.
    ///
    /// `find` advances behind the next free candidate and returns its point.
    #[inline(always)]
    fn claim_by<'a>(
        &mut self,
        turns: &mut impl Iterator<Item = &'a Candidates>,
        until: u32,
        find: impl Fn(&mut FreeSlots<F>, &Candidates) -> u64,
    ) -> bool {
        let circle = self.free.circle;
        let slots = &mut self.slots[..];
        let mut free_count = self.free_count;
        while free_count > until {
            let Some(candidates) = turns.next() else {
                self.free_count = free_count;
                return false;
            };
            let point = find(&mut self.free, candidates);
            slots[circle.slot(point) as usize] = candidates.number();
            self.free.flags.take(point);
            free_count -= 1;
        }
        self.free_count = free_count;
        true
    }

    /// Lets one endpoint claim `count` slots in a row, or as many as there are.
    ///
    /// Which of its next candidates are free does not depend on its earlier claims, so one test of
    /// a block serves all of its claims.
    pub(super) fn claim_run(&mut self, candidates: &Candidates, count: u32) {
        const BLOCK: u32 = 8;
        let circle = self.free.circle;
        let mut count = count.min(self.free_count);
        while count > 0 {
            if candidates.left() < BLOCK || self.free_count <= self.few {
                self.claim([candidates]);
                count -= 1;
                continue;
            }
            let mut free = self.free.test::<BLOCK>(candidates);
            let mut gone = BLOCK;
            while free != 0 {
                let index = free.trailing_zeros();
                free &= free - 1;
                let point = candidates.point(index);
                self.slots[circle.slot(point) as usize] = candidates.number();
                self.free.flags.take(point);
                self.free_count -= 1;
                count -= 1;
                if count == 0 {
                    gone = index + 1;
                    break;
                }
            }
            candidates.advance(gone);
        }
    }
}

/// The free slots, and ways to find an endpoint's next one.
struct FreeSlots<F> {
    circle: Circle,
    flags: F,
    /// The free slots, once there are few.
    list: Vec<u32>,
    /// No slot before this one is free.
    lowest: u32,
}

impl<F: Flags> FreeSlots<F> {
    fn new(size: RingSize) -> Self {
        let flags = F::new(size);
        Self {
            circle: flags.circle(),
            flags,
            list: Vec::new(),
            lowest: 0,
        }
    }

    /// Which of the next candidates are free: a bit for each, the lowest for the first.
    #[inline(always)]
    fn test<const BLOCK: u32>(&self, candidates: &Candidates) -> u32 {
        (0..BLOCK).rev().fold(0, |free, index| {
            2 * free + self.flags.is_free(candidates.point(index))
        })
    }

    /// Goes to the first free candidate, testing `BLOCK` at a time.
    #[inline(always)]
    fn first<const BLOCK: u32>(&mut self, candidates: &Candidates) -> u64 {
        while candidates.left() >= BLOCK {
            let free = self.test::<BLOCK>(candidates);
            if free != 0 {
                let index = free.trailing_zeros();
                let point = candidates.point(index);
                candidates.advance(index + 1);
                return point;
            }
            candidates.advance(BLOCK);
        }
        self.first_behind(candidates)
    }

    /// The same where a stretch ends.
    ///
    /// A skip that is divisible by a large power of two has a short period, which need not meet all
    /// slots: one skip in 65,536 of the default ring. The ring's definition gives no slot to an
    /// endpoint none of whose candidates is free. Here it claims the lowest free slot, so that it
    /// gets its share and all hosts agree.
    #[cold]
    #[inline(never)]
    fn first_behind(&mut self, candidates: &Candidates) -> u64 {
        let mut tested = 0;
        while !candidates.exhausted.get() {
            while candidates.left() > 0 {
                let point = candidates.point(0);
                candidates.advance(1);
                if self.flags.is_free(point) == 1 {
                    return point;
                }
            }
            if tested >= candidates.period() {
                candidates.exhausted.set(true);
            } else {
                tested += candidates.next_stretch(self.circle);
            }
        }
        self.lowest()
    }

    /// Lists the free slots, for [`FreeSlots::nearest`].
    fn make_list(&mut self, slots: &[u16]) {
        const AT_ONCE: usize = 32;
        if !self.list.is_empty() {
            return;
        }
        for (first, some) in (0..).step_by(AT_ONCE).zip(slots.chunks(AT_ONCE)) {
            // Most have none, which this finds out fast.
            if some.iter().fold(false, |free, &owner| free | (owner == 0)) {
                let free = (first..).zip(some).filter(|&(_, &owner)| owner == 0);
                self.list.extend(free.map(|(slot, _)| slot));
            }
        }
    }

    /// Advances to the first free candidate: the listed slot that is the fewest skips away.
    #[inline(always)]
    fn nearest(&mut self, candidates: &Candidates) -> u64 {
        let mut position = candidates.position();
        let size = self.circle.size();
        let factor = self.circle.skips_by_distance(candidates.skip());
        let mut tested = 0;
        while !candidates.exhausted.get() {
            let start = u64::from(size - position % size).wrapping_mul(factor);
            let mut nearest = (u64::MAX, 0);
            for (index, &slot) in self.list.iter().enumerate() {
                let away = u64::from(slot).wrapping_mul(factor).wrapping_add(start);
                if away < nearest.0 {
                    nearest = (away, index);
                }
            }
            let skips = self.circle.slot(nearest.0);
            let length = candidates.until_wrap(position);
            if u64::from(skips) < length {
                let behind = position.wrapping_add((skips + 1).wrapping_mul(candidates.skip()));
                candidates.go_to(behind);
                return self.circle.point(self.list.swap_remove(nearest.1));
            }
            tested += length;
            position = position.wrapping_add((length as u32).wrapping_mul(candidates.skip()));
            candidates.exhausted.set(tested >= candidates.period());
        }
        let lowest = self.lowest();
        let circle = self.circle;
        self.list.retain(|&slot| circle.point(slot) != lowest);
        lowest
    }

    /// The lowest free slot.
    fn lowest(&mut self) -> u64 {
        while self.flags.is_free(self.circle.point(self.lowest)) == 0 {
            self.lowest += 1;
        }
        self.circle.point(self.lowest)
    }
}
