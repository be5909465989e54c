//! An endpoint's sequence of candidate slots, and arithmetic that makes it cheap.
//!
//! The n-th candidate is slot ((offset + n * skip) mod 2^32) mod size. Here the slots are evenly
//! spaced on a circle of circumference 2^64: one addition leads to the next candidate, and the
//! wrap-around of 64-bit numbers is the reduction mod size.

use std::cell::Cell;

use super::RingSize;
use super::hash::offset_and_skip;

/// The slots of a ring as points on a circle of circumference 2^64.
///
/// Slot s is at s * unit, where unit is 2^64 / size, rounded up. Because of the rounding, the
/// points of a sequence are slightly beyond the true ones, which are fractions: the n-th by less
/// than (n + 1) * size.
#[derive(Clone, Copy)]
pub(super) struct Circle {
    size: u32,
    unit: u64,
    longest_stretch: u64,
}

impl Circle {
    /// A circle on which the `bits` highest bits of a point depend only on its slot; 0 if that is
    /// not needed. If 2^bits is at least the size, they distinguish all slots.
    ///
    /// From its true point to the next one where these bits change, a slot has at least 2^(64 -
    /// bits) / size, so a stretch must end before its error is that large. (The next slot is no
    /// nearer, so the slot is certain as well, even with 0 bits.)
    pub(super) fn new(size: RingSize, bits: u32) -> Self {
        let size = size.get();
        let square = u64::from(size) * u64::from(size);
        Self {
            size,
            unit: unit(size),
            longest_stretch: (u64::MAX >> bits) / square,
        }
    }

    /// The number of slots.
    #[inline(always)]
    pub(super) fn size(self) -> u32 {
        self.size
    }

    /// The point of this slot.
    #[inline(always)]
    pub(super) fn point(self, slot: u32) -> u64 {
        u64::from(slot) * self.unit
    }

    /// The slot at this point of a sequence.
    #[inline(always)]
    pub(super) fn slot(self, point: u64) -> u32 {
        ((u128::from(point) * u128::from(self.size)) >> 64) as u32
    }

    /// A number whose product with the distance of two slots, mod 2^64, grows with the number of
    /// skips from one to the other, and is [`Circle::slot`]'s argument for that number.
    ///
    /// The distance is from 0 to less than twice the size.
    pub(super) fn skips_by_distance(self, skip: u32) -> u64 {
        let inverse = u64::from(inverse(skip, self.size));
        // The unit is too large by this much / size.
        let excess = (self.unit.wrapping_mul(u64::from(self.size))) as u32;
        // inverse * 2^64 / size, rounded up: the error does not grow with the inverse.
        (inverse * self.unit).wrapping_sub(inverse * u64::from(excess) / u64::from(self.size))
    }
}

/// An endpoint's position in its sequence of candidates.
///
/// It goes through the sequence in stretches, within which neither offset + n * skip wraps at 2^32,
/// nor the points on the circle become inexact.
///
/// It advances by shared reference, because one endpoint can have several turns.
pub(super) struct Candidates {
    /// The next candidate, while this stretch has one.
    point: Cell<u64>,
    /// The distance from one candidate to the next.
    step: u64,
    skip: u32,
    /// Candidates left in this stretch.
    left: Cell<u32>,
    /// offset + n * skip, mod 2^32, of the candidate behind this stretch.
    behind: Cell<u32>,
    /// The value of a claimed slot.
    number: u16,
    /// All candidates were tested, and none is or will be free.
    pub(super) exhausted: Cell<bool>,
}

impl Candidates {
    /// The sequence of the endpoint with this number and hash.
    pub(super) fn new(number: u16, hash: u64, size: RingSize) -> Self {
        let (offset, skip) = offset_and_skip(hash, size);
        Self::from_offset(number, offset, skip, size)
    }

    /// The sequence that begins at `offset`, with the distance `skip`.
    pub(super) fn from_offset(number: u16, offset: u32, skip: u32, size: RingSize) -> Self {
        Self {
            point: Cell::new(0),
            step: unit(size.get()).wrapping_mul(skip.into()),
            skip,
            left: Cell::new(0),
            behind: Cell::new(offset),
            number,
            exhausted: Cell::new(false),
        }
    }

    /// The value of a claimed slot.
    #[inline(always)]
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn skip(&self) -> u32 {
        self.skip
    }

    /// The candidate `index` behind the next, in this stretch.
    #[inline(always)]
    pub(super) fn point(&self, index: u32) -> u64 {
        let way = self.step.wrapping_mul(index.into());
        self.point.get().wrapping_add(way)
    }

    /// Candidates left in this stretch.
    #[inline(always)]
    pub(super) fn left(&self) -> u32 {
        self.left.get()
    }

    /// Advances by `count` candidates of this stretch.
    #[inline(always)]
    pub(super) fn advance(&self, count: u32) {
        self.point.set(self.point(count));
        self.left.set(self.left.get() - count);
    }

    /// Advances to the next stretch, and returns its length.
    pub(super) fn next_stretch(&self, circle: Circle) -> u64 {
        let start = self.behind.get();
        let length = self.until_wrap(start).min(circle.longest_stretch);
        // At most 2^32, of which all but the last are enough.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.left.set(length);
        self.point.set(circle.point(start % circle.size));
        let way = length.wrapping_mul(self.skip);
        self.behind.set(start.wrapping_add(way));
        length.into()
    }

    /// offset + n * skip, mod 2^32, of the next candidate.
    pub(super) fn position(&self) -> u32 {
        let way = self.left().wrapping_mul(self.skip);
        self.behind.get().wrapping_sub(way)
    }

    /// Advances to the candidate at this position, which begins a stretch.
    pub(super) fn go_to(&self, position: u32) {
        self.behind.set(position);
        self.left.set(0);
    }

    /// The number of candidates from this position until it wraps.
    pub(super) fn until_wrap(&self, position: u32) -> u64 {
        u64::from((u32::MAX - position) / self.skip) + 1
    }

    /// The number of candidates after which the sequence repeats.
    pub(super) fn period(&self) -> u64 {
        1 << (u32::BITS - self.skip.trailing_zeros())
    }
}

/// 2^64 / size, rounded up; no size divides 2^64.
fn unit(size: u32) -> u64 {
    u64::MAX / u64::from(size) + 1
}

/// The inverse of `number` mod `prime`: Euclid's extended algorithm.
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

    /// Sizes of all magnitudes, each with the number of highest bits that distinguish its slots,
    /// and with 0.
    fn circles() -> impl Strategy<Value = (u32, u32)> {
        prop::sample::select(vec![
            (3, 2),
            (3, 17),
            (1009, 17),
            (10_007, 0),
            (65_521, 17),
            (65_537, 17),
            (65_537, 0),
            (131_071, 17),
            (131_101, 0),
            (16_777_213, 0),
        ])
    }

    /// The points of the next candidates, free or not.
    fn points(candidates: &Candidates, circle: Circle, count: usize) -> Vec<u64> {
        let mut points = Vec::new();
        while points.len() < count {
            if candidates.left() == 0 {
                candidates.next_stretch(circle);
            }
            points.push(candidates.point(0));
            candidates.advance(1);
        }
        points
    }

    proptest! {
        #[test]
        fn candidates_meet_every_slot(
            hash in any::<u64>(),
            slots in prop::sample::select(vec![3_u32, 5, 1009, 10_007, 65_521]),
        ) {
            // Below 2^16 slots, offset + n * skip does not wrap before all are met.
            let circle = Circle::new(size(slots), 17);
            let candidates = Candidates::new(1, hash, size(slots));
            let points = points(&candidates, circle, slots as usize).into_iter();
            let met: HashSet<u32> = points.map(|point| circle.slot(point)).collect();
            prop_assert_eq!(met.len(), slots as usize);
        }

        #[test]
        fn candidates_wrap_at_32_bits(
            (slots, bits) in circles(),
            offset in any::<u32>(),
            skip in any::<u32>(),
        ) {
            let (offset, skip) = (offset % slots, skip % (slots - 1) + 1);
            let circle = Circle::new(size(slots), bits);
            let candidates = Candidates::from_offset(1, offset, skip, size(slots));
            for (n, point) in (0..).zip(points(&candidates, circle, 5000)) {
                let slot = offset.wrapping_add(skip.wrapping_mul(n)) % slots;
                prop_assert_eq!(circle.slot(point), slot);
                // The highest bits are the same on every way to a slot.
                if bits > 0 {
                    let shift = u64::BITS - bits;
                    prop_assert_eq!(point >> shift, circle.point(slot) >> shift);
                }
            }
            let n = 5000_u32;
            prop_assert_eq!(candidates.position(), offset.wrapping_add(skip.wrapping_mul(n)));
        }

        /// The points are exact enough up to the end of the longest stretch.
        #[test]
        fn stretches_are_short_enough(
            (slots, bits) in circles(),
            slot in any::<u32>(),
            skip in any::<u32>(),
        ) {
            let (slot, skip) = (slot % slots, skip % (slots - 1) + 1);
            let circle = Circle::new(size(slots), bits);
            let n = circle.longest_stretch.min(u32::MAX.into()) - 1;
            // Makes the last candidate this slot.
            let way = u128::from(n) * u128::from(skip) % u128::from(slots);
            let start = (slot + slots - way as u32) % slots;
            let candidates = Candidates::from_offset(1, start, skip, size(slots));
            let point = circle.point(start).wrapping_add(candidates.step.wrapping_mul(n));
            prop_assert_eq!(circle.slot(point), slot);
            if bits > 0 {
                let shift = u64::BITS - bits;
                prop_assert_eq!(point >> shift, circle.point(slot) >> shift);
            }
        }

        #[test]
        fn skips_are_counted_by_distance(
            (slots, _) in circles(),
            skip in any::<u32>(),
            skips in any::<u32>(),
            around in any::<bool>(),
        ) {
            let (skip, skips) = (skip % (slots - 1) + 1, skips % slots);
            let distance = u64::from(skips) * u64::from(skip) % u64::from(slots);
            let distance = distance + if around { u64::from(slots) } else { 0 };
            let circle = Circle::new(size(slots), 0);
            let product = circle.skips_by_distance(skip).wrapping_mul(distance);
            prop_assert_eq!(circle.slot(product), skips);
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
    fn points_of_slots_differ_in_the_highest_bits() {
        for slots in [3, 1009, 65_521, 65_537, 131_071] {
            let circle = Circle::new(size(slots), 17);
            let flags: HashSet<u64> = (0..slots).map(|slot| circle.point(slot) >> 47).collect();
            assert_eq!(flags.len(), slots as usize);
        }
    }
}
