//! Numbers for VIPs and reals.
//!
//! A returned number is given out again as late as possible, and only after the program can have no
//! packet left that still uses its former meaning: until `settle` frees it, such a number is marked
//! unsettled.

use std::collections::BTreeSet;
use std::collections::VecDeque;

/// A pool of the numbers `first` to `first + count - 1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdPool {
    count: u16,
    /// The lowest number never given out; `u32`, because it may be beyond the last one.
    fresh: u32,
    /// The last number plus one.
    end: u32,
    /// Returned numbers, oldest first.
    returned: VecDeque<u16>,
    /// How many of `returned`, from its front, have been settled.
    settled: usize,
    /// How many numbers were ever returned.
    given_back: u64,
    /// Numbers beyond the last one that were used elsewhere.
    beyond: BTreeSet<u16>,
}

/// A number from the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The number.
    pub(crate) id: u16,
    /// It meant something else a moment ago: wait for a grace period before using it.
    pub(crate) unsettled: bool,
}

impl IdPool {
    /// A pool of `count` numbers from `first`; `first + count` is at most 65,536.
    pub(crate) fn new(first: u16, count: u16) -> Self {
        let end = u32::from(first) + u32::from(count);
        debug_assert!(end <= 1 << 16);
        Self {
            count,
            fresh: first.into(),
            end,
            returned: VecDeque::new(),
            settled: 0,
            given_back: 0,
            beyond: BTreeSet::new(),
        }
    }

    /// How many numbers there are, used or not.
    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// How many numbers can be taken.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.never_used() + self.returned.len()
    }

    /// The number that the `nth` call of [`take`](Self::take) from now (0: the next) will return,
    /// if nothing is returned or settled before.
    pub(crate) fn peek(&self, nth: usize) -> Option<Taken> {
        let fresh = self.never_used();
        if nth < fresh {
            // Below `end`, so it fits.
            return Some(Taken {
                id: (self.fresh + nth as u32) as u16,
                unsettled: false,
            });
        }
        let nth = nth - fresh;
        self.returned.get(nth).map(|&id| Taken {
            id,
            unsettled: nth >= self.settled,
        })
    }

    /// Takes a number: those never used in ascending order, then the one returned first.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        let taken = self.peek(0)?;
        if self.fresh < self.end {
            self.fresh += 1;
        } else {
            self.returned.pop_front();
            self.settled = self.settled.saturating_sub(1);
        }
        Some(taken)
    }

    /// Returns a number to the pool.
    pub(crate) fn give_back(&mut self, id: u16) {
        debug_assert!(u32::from(id) < self.fresh && self.returned.len() < usize::from(self.count));
        self.returned.push_back(id);
        self.given_back += 1;
    }

    /// Delays a number that was used elsewhere: it is given out as late as one that is returned
    /// now, or never again. A number in use here stays so, and one beyond the last waits until
    /// there is room for it.
    pub(crate) fn pass_over(&mut self, id: u16, comes_back: bool) {
        let first = self.end - u32::from(self.count);
        if u32::from(id) >= self.end && comes_back {
            self.beyond.insert(id);
        }
        if !(first..self.end).contains(&u32::from(id)) || self.is_out(id) {
            return;
        }
        // Lower numbers that were never given out wait with it.
        while self.fresh <= u32::from(id) {
            let skipped = self.fresh as u16;
            self.fresh += 1;
            self.give_back(skipped);
        }
        if let Some(at) = self.returned.iter().position(|of| *of == id) {
            self.returned.remove(at);
            self.settled -= usize::from(at < self.settled);
        }
        if comes_back {
            self.give_back(id);
        }
    }

    /// How many numbers were ever returned: a point in time for [`settle`](Self::settle).
    pub(crate) fn given_back(&self) -> u64 {
        self.given_back
    }

    /// A grace period has passed since this many numbers had been returned.
    pub(crate) fn settle(&mut self, given_back: u64) {
        let since = self.given_back.saturating_sub(given_back) as usize;
        let settled = self.returned.len().saturating_sub(since);
        self.settled = self.settled.max(settled);
    }

    /// The same with another count; `None`: a number in use would be beyond. Returned numbers
    /// beyond it are forgotten.
    pub(crate) fn with_count(&self, count: u16) -> Option<Self> {
        let mut pool = Self::new((self.end - u32::from(self.count)) as u16, count);
        let is_beyond = |id: &u16| u32::from(*id) >= pool.end;
        if self.in_hand().last().is_some_and(is_beyond) {
            return None;
        }
        let settled = self.returned.iter().take(self.settled);
        pool.settled = settled.filter(|id| !is_beyond(id)).count();
        pool.returned = self
            .returned
            .iter()
            .copied()
            .filter(|id| !is_beyond(id))
            .collect();
        pool.fresh = self.fresh.min(pool.end);
        pool.given_back = self.given_back;
        self.beyond.iter().for_each(|id| pool.pass_over(*id, true));
        Some(pool)
    }

    /// The lowest number never given out.
    pub(crate) fn fresh(&self) -> u32 {
        self.fresh
    }

    /// Returned numbers, oldest first, then those beyond the last one that were used elsewhere.
    pub(crate) fn returned(&self) -> impl Iterator<Item = u16> + '_ {
        self.returned.iter().chain(&self.beyond).copied()
    }

    /// Whether a number is in use.
    pub(crate) fn is_out(&self, id: u16) -> bool {
        let first = self.end - u32::from(self.count);
        (first..self.fresh).contains(&id.into()) && !self.returned.contains(&id)
    }

    /// All numbers in use.
    pub(crate) fn in_hand(&self) -> BTreeSet<u16> {
        let first = self.end - u32::from(self.count);
        // They end below 65,536.
        let mut numbers: BTreeSet<u16> = (first..self.fresh).map(|id| id as u16).collect();
        for id in &self.returned {
            numbers.remove(id);
        }
        numbers
    }

    /// Restores a pool with these `returned` numbers, none of them settled; `None`: there is no
    /// such pool.
    pub(crate) fn restore(&mut self, fresh: u32, returned: Vec<u16>) -> Option<()> {
        let first = self.end - u32::from(self.count);
        let different: BTreeSet<u16> = returned.iter().copied().collect();
        let handed_out = |id: &u16| (first..fresh).contains(&u32::from(*id));
        let (beyond, returned): (Vec<u16>, Vec<u16>) = returned
            .into_iter()
            .partition(|id| u32::from(*id) >= self.end);
        let can_be = (first..=self.end).contains(&fresh)
            && different.len() == returned.len() + beyond.len()
            && returned.iter().all(handed_out);
        if !can_be {
            return None;
        }
        self.fresh = fresh;
        self.settled = 0;
        self.given_back = returned.len() as u64;
        self.returned = returned.into();
        self.beyond = beyond.into_iter().collect();
        Some(())
    }

    fn never_used(&self) -> usize {
        (self.end - self.fresh) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hands_out_fresh_numbers_first_then_the_oldest() {
        let mut pool = IdPool::new(1, 3);
        let take = |pool: &mut IdPool| pool.take().map(|taken| (taken.id, taken.unsettled));
        assert_eq!(take(&mut pool), Some((1, false)));
        pool.give_back(1);
        assert_eq!(take(&mut pool), Some((2, false)));
        assert_eq!(take(&mut pool), Some((3, false)));
        pool.give_back(3);
        assert_eq!(take(&mut pool), Some((1, true)));
        pool.settle(pool.given_back());
        assert_eq!(take(&mut pool), Some((3, false)));
        assert_eq!(take(&mut pool), None);
    }

    #[test]
    fn reaches_both_ends_of_the_range() {
        let mut vips = IdPool::new(0, 65_535);
        assert_eq!(vips.peek(65_534).map(|taken| taken.id), Some(65_534));
        assert_eq!(vips.take().map(|taken| taken.id), Some(0));
        let reals = IdPool::new(1, 65_535);
        assert_eq!(reals.peek(65_534).map(|taken| taken.id), Some(65_535));
        assert_eq!(reals.peek(65_535), None);
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Take,
        GiveBack(usize),
        Mark,
        Settle,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            3 => Just(Operation::Take),
            2 => any::<usize>().prop_map(Operation::GiveBack),
            1 => Just(Operation::Mark),
            1 => Just(Operation::Settle),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn behaves_as_a_queue_of_numbers(
            first in 0_u16..3,
            count in 1_u16..12,
            operations in prop::collection::vec(operation(), 0..100),
        ) {
            let mut pool = IdPool::new(first, count);
            // The model: every free number in the order of use, with its settled mark and how many
            // were returned before it.
            let mut free: VecDeque<_> = (first..first + count).map(|id| (id, false, 0)).collect();
            let mut marked = 0;
            let mut used = Vec::new();
            for operation in operations {
                for (nth, &(id, unsettled, _)) in free.iter().enumerate() {
                    prop_assert_eq!(pool.peek(nth), Some(Taken { id, unsettled }));
                }
                prop_assert_eq!(pool.peek(free.len()), None);
                prop_assert_eq!(pool.free(), free.len());
                match operation {
                    Operation::Take => {
                        let expected = free.pop_front().map(|(id, unsettled, _)| (id, unsettled));
                        prop_assert_eq!(pool.take().map(|taken| (taken.id, taken.unsettled)), expected);
                        used.extend(expected.map(|(id, _)| id));
                    }
                    Operation::GiveBack(which) if !used.is_empty() => {
                        let id = used.swap_remove(which % used.len());
                        free.push_back((id, true, pool.given_back()));
                        pool.give_back(id);
                    }
                    Operation::GiveBack(_) => {}
                    Operation::Mark => marked = pool.given_back(),
                    Operation::Settle => {
                        pool.settle(marked);
                        for (_, unsettled, before) in &mut free {
                            *unsettled &= *before >= marked;
                        }
                    }
                }
                prop_assert_eq!(used.iter().collect::<BTreeSet<_>>().len(), used.len());
                prop_assert_eq!(used.len() + free.len(), usize::from(count));
            }
        }
    }
}
