//! The history of the ring's slots: the rules of `FlowTracking::Changed` for TCP, written from
//! their definition and not from the crate's code (`src/ring/history.rs` and `src/bpf/in_slot.h`).
//!
//! `tests/model` has them as well, but walks whole frames and remembers every flow; this simulation
//! plays an hour of 50,000 connections a second on tables that evict, where a packet is just a slot
//! and a number. The library's own code is private, and works on words shared with packets, with
//! times of 15 bits.

use std::rc::Rc;

use crate::service::Change;
use crate::service::REALS;
use crate::service::SECOND;
use crate::service::Standing;

/// `flow_idle_timeout`, at its default.
const IDLE: u32 = 3600 * SECOND;

/// The ring, its possible reals, and the changed slots.
pub(crate) struct Slots {
    pub(crate) ring: Rc<[u16]>,
    standing: Vec<Standing>,
    unsettled: Vec<Option<Before>>,
}

/// An unsettled slot's history.
#[derive(Clone, Copy)]
struct Before {
    /// The real that it had when last settled; 0: that real is gone.
    base: u16,
    /// It has had further reals with flows to keep.
    others: bool,
    since: u32,
    /// When a packet last went elsewhere than to the ring's real, or the ring last changed.
    deviated: u32,
}

/// Where a packet goes, and what happens to its flow's entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    /// To the real, by the ring or the base; the table is not touched.
    To(u16),
    /// To the ring's real, which an entry remembers.
    Remembered(u16),
    /// To the entry's real.
    ByEntry,
}

impl Slots {
    pub(crate) fn new(ring: &Rc<[u16]>) -> Self {
        Self {
            ring: Rc::clone(ring),
            standing: vec![Standing::Gone; usize::from(2 * REALS) + 1],
            unsettled: vec![None; ring.len()],
        }
    }

    pub(crate) fn is_gone(&self, real: u16) -> bool {
        self.standing[usize::from(real)] == Standing::Gone
    }

    /// Changes the ring and the reals.
    pub(crate) fn change(&mut self, change: &Change) {
        for (real, standing) in &change.reals {
            self.standing[usize::from(*real)] = *standing;
        }
        let old = std::mem::replace(&mut self.ring, Rc::clone(&change.ring));
        for (slot, (old, new)) in old.iter().zip(&*change.ring).enumerate() {
            let keeps_flows = !self.is_gone(*old);
            let before = &mut self.unsettled[slot];
            match before {
                None if old != new && keeps_flows => {
                    *before = Some(Before {
                        base: *old,
                        others: false,
                        since: change.at,
                        deviated: change.at,
                    });
                }
                Some(before) if old != new => {
                    before.deviated = change.at;
                    before.others |= *old != before.base && keeps_flows;
                }
                _ => (),
            }
        }
        let gone = |real: u16| self.standing[usize::from(real)] == Standing::Gone;
        for before in &mut self.unsettled {
            if let Some(of_slot) = before
                && gone(of_slot.base)
            {
                of_slot.base = 0;
                if !of_slot.others {
                    *before = None;
                }
            }
        }
    }

    /// Settles slots that no flow needs any more.
    pub(crate) fn settle(&mut self, now: u32) {
        for before in &mut self.unsettled {
            if before.is_some_and(|it| now - it.since > IDLE && now - it.deviated > IDLE) {
                *before = None;
            }
        }
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled.iter().flatten().count()
    }

    /// Whether a flow on this real needs an entry to stay there.
    pub(crate) fn needs_entry(&self, slot: usize, real: u16) -> bool {
        let without = match self.unsettled[slot] {
            Some(before) if before.base != 0 => before.base,
            _ => self.ring[slot],
        };
        real != without
    }

    /// A packet's way at this time. `used`: when its flow's entry was last used, if there is one;
    /// only unsettled slots need it.
    pub(crate) fn way(
        &mut self,
        slot: usize,
        first: bool,
        now: u32,
        used: impl FnOnce() -> Option<u32>,
    ) -> Way {
        let current = self.ring[slot];
        let Some(before) = &mut self.unsettled[slot] else {
            return Way::To(current);
        };
        // Flow numbers do not repeat, so no SYN finds an entry.
        if first {
            return if current == before.base {
                Way::To(current)
            } else {
                Way::Remembered(current)
            };
        }
        if used().is_some_and(|used| used >= before.since) {
            return Way::ByEntry;
        }
        if before.base == 0 {
            return Way::To(current);
        }
        if before.base != current {
            before.deviated = now;
        }
        Way::To(before.base)
    }

    /// A packet went to its entry's real.
    pub(crate) fn went_by_entry(&mut self, slot: usize, real: u16, now: u32) {
        if real != self.ring[slot]
            && let Some(before) = &mut self.unsettled[slot]
        {
            before.deviated = now;
        }
    }
}
