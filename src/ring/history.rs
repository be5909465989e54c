//! The past of a ring's slots: which have flows that belong to another real than the ring names,
//! and since when.
//!
//! A slot is *settled* when every live flow in it belongs to the real that the ring names.
//! Otherwise it is *unsettled*, and has a *base*: the real that it named when it was last settled.
//! Flows older than the change belong to the base; younger ones have entries in the flow table
//! unless they are on the base. The idea of a table only for changed flows comes from JET (Levi and
//! Keslassy, CoNEXT 2020), which must know changes ahead.
//!
//! Packets read the words while the library writes them. A slot's past counts only where the
//! packets' ring has marked the slot, so the library writes what a change needs before it switches
//! packets to the new ring.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use crate::skel::katran::types::slot_constant as bits;
use crate::skel::katran::types::slot_past;

const REAL: u16 = bits::SLOT_REAL.0 as u16;
const UNSETTLED: u16 = bits::SLOT_UNSETTLED.0 as u16;
const TAKES_NEW: u16 = bits::BASE_TAKES_NEW.0 as u16;
/// In a slot's `since`: it has named reals other than its base and the ring's real.
const OTHERS: u16 = bits::MOMENT_BIT.0 as u16;

/// A real's standing with a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The VIP has given it up, or it is down: it has no flows.
    Gone,
    /// It keeps its flows, and gets no new ones.
    Drained,
    /// It takes new flows.
    TakesNew,
}

/// The standing of all reals of a VIP, by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standings(Vec<Option<bool>>);

impl Standings {
    /// Numbers, and whether they take new flows; all others are gone.
    pub(crate) fn new(reals: impl IntoIterator<Item = (u16, bool)>) -> Self {
        let mut of = Vec::new();
        for (number, takes_new) in reals {
            let place = usize::from(number);
            if of.len() <= place {
                of.resize(place + 1, None);
            }
            of[place] = Some(takes_new);
        }
        Self(of)
    }

    fn of(&self, number: u16) -> Standing {
        match self.0.get(usize::from(number)) {
            Some(Some(true)) if number != 0 => Standing::TakesNew,
            Some(Some(false)) if number != 0 => Standing::Drained,
            _ => Standing::Gone,
        }
    }

    fn is_gone(&self, number: u16) -> bool {
        self.of(number) == Standing::Gone
    }

    fn base(&self, number: u16) -> u16 {
        match self.of(number) {
            Standing::Gone => 0,
            Standing::Drained => number,
            Standing::TakesNew => number | TAKES_NEW,
        }
    }
}

/// A moment: 15 bits of coarse time, which wrap around, above a bit for other use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(u16);

impl At {
    /// From ticks, as in the program.
    pub(crate) fn of_ticks(ticks: u32, shift: u32) -> Self {
        Self(((ticks >> shift) << 1) as u16)
    }

    fn of(word: u16) -> Self {
        Self(word & !OTHERS)
    }

    /// Whether it is no earlier than another one; moments wrap around.
    pub(crate) fn is_not_before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) as i16 >= 0
    }

    /// How many moments this one is after another; 0 if the other is later, because a packet's
    /// clock may be ahead of the control side's.
    pub(crate) fn after(self, other: Self) -> u16 {
        let after = self.0.wrapping_sub(other.0) as i16;
        after.max(0) as u16 >> 1
    }

    fn minus(self, moments: u16) -> Self {
        Self(self.0.wrapping_sub(moments << 1))
    }
}

/// The most moments back that can be distinguished from a moment ahead.
const FURTHEST: u16 = (1 << 13) - 1;

/// Places of rings that hold the pasts of a ring's slots.
pub(crate) const PLANES: usize = bits::PLANES.0 as usize;

/// The words of a VIP's history. A slot's past is one record, so that a packet touches one cache
/// line: slot `s` has record `s / PLANES` of plane `s % PLANES`.
#[derive(Clone, Copy)]
pub(crate) struct Planes<'a>(pub(crate) [&'a [AtomicU16]; PLANES]);

/// A word of a slot's past.
#[derive(Clone, Copy)]
enum Past {
    Base = (offset_of!(slot_past, base) / 2) as isize,
    Since = (offset_of!(slot_past, since) / 2) as isize,
    Deviated = (offset_of!(slot_past, deviated) / 2) as isize,
}

impl Planes<'_> {
    /// Copies another history.
    pub(crate) fn take_over(&self, before: Planes<'_>) {
        for (own, its) in self.0.iter().zip(before.0) {
            for (word, before) in own.iter().zip(its) {
                word.store(before.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    fn word(&self, slot: usize, of: Past) -> Option<&AtomicU16> {
        let record = slot / PLANES * (size_of::<slot_past>() / 2);
        self.0[slot % PLANES].get(record + of as usize)
    }

    fn load(&self, slot: usize, of: Past) -> u16 {
        self.word(slot, of)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn store(&self, slot: usize, of: Past, value: u16) {
        if let Some(word) = self.word(slot, of) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

fn load(words: &[AtomicU16], slot: usize) -> u16 {
    words
        .get(slot)
        .map_or(0, |word| word.load(Ordering::Relaxed))
}

/// Whether a new ring leaves any slot unsettled. `before` has the marks of the packets' ring; it is
/// empty if there is none.
pub(crate) fn needs_history(before: &[AtomicU16], after: &[u16], standings: &Standings) -> bool {
    before.iter().zip(after).any(|(old, new)| {
        let old = old.load(Ordering::Relaxed);
        old & UNSETTLED != 0 || old != *new && !standings.is_gone(old)
    })
}

/// The past of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Before {
    /// The number of its base; 0: none.
    pub(crate) base: u16,
    pub(crate) since: At,
}

/// The number in a slot.
pub(crate) fn number_in(word: u16) -> u16 {
    word & REAL
}

/// The past of a slot; `None`: it is settled.
pub(crate) fn before(ring: &[AtomicU16], planes: Planes<'_>, slot: usize) -> Option<Before> {
    (load(ring, slot) & UNSETTLED != 0).then(|| Before {
        base: planes.load(slot, Past::Base) & REAL,
        since: At::of(planes.load(slot, Past::Since)),
    })
}

/// Marks the unsettled slots of a new ring, and writes their past. For packets still on the ring
/// before, this only makes its unsettled slots stay so for longer. Returns how many are marked.
pub(crate) fn mark(
    before: &[AtomicU16],
    after: &mut [u16],
    planes: Planes<'_>,
    standings: &Standings,
    now: At,
) -> usize {
    let mut marked = 0;
    for (slot, (old, new)) in before.iter().zip(after).enumerate() {
        let word = old.load(Ordering::Relaxed);
        let old = word & REAL;
        let unsettled = if word & UNSETTLED == 0 {
            let changed = old != *new && !standings.is_gone(old);
            if changed {
                planes.store(slot, Past::Base, standings.base(old));
                planes.store(slot, Past::Since, now.0);
                planes.store(slot, Past::Deviated, now.0);
            }
            changed
        } else {
            let base = planes.load(slot, Past::Base) & REAL;
            let since = planes.load(slot, Past::Since);
            let mut others = since & OTHERS;
            if old != *new {
                // Flows on the ring's previous real deviate from here.
                planes.store(slot, Past::Deviated, now.0);
                if old != base && !standings.is_gone(old) {
                    others = OTHERS;
                    planes.store(slot, Past::Since, since | OTHERS);
                }
            }
            others != 0 || !standings.is_gone(base)
        };
        if unsettled {
            *new |= UNSETTLED;
            marked += 1;
        }
    }
    marked
}

/// Marks all slots: their flows may be anywhere, and a flow without an entry is on the slot's base,
/// or on the ring's real if the slot is settled. For a VIP whose flows were all remembered until
/// now.
pub(crate) fn mark_all(ring: &[AtomicU16], planes: Planes<'_>, standings: &Standings, now: At) {
    // All entries are younger.
    let since = now.minus(FURTHEST).0 | OTHERS;
    for (slot, word) in ring.iter().enumerate() {
        let word = word.load(Ordering::Relaxed);
        if word & UNSETTLED == 0 {
            planes.store(slot, Past::Base, standings.base(word & REAL));
        }
        planes.store(slot, Past::Since, since);
        planes.store(slot, Past::Deviated, now.0);
    }
    for word in ring {
        word.fetch_or(UNSETTLED, Ordering::Relaxed);
    }
}

/// Restarts a history with moments of another length.
pub(crate) fn begin_again(ring: &[AtomicU16], planes: Planes<'_>, now: At) {
    for (slot, word) in ring.iter().enumerate() {
        if word.load(Ordering::Relaxed) & UNSETTLED != 0 {
            let others = planes.load(slot, Past::Since) & OTHERS;
            // All entries are younger.
            planes.store(slot, Past::Since, now.minus(FURTHEST).0 | others);
            planes.store(slot, Past::Deviated, now.0);
        }
    }
}

/// Updates the bases after packets have moved to the ring: forgets bases that are gone, and notes
/// whether others take new flows. Settles a slot that no longer needs a history.
pub(crate) fn refresh(ring: &[AtomicU16], planes: Planes<'_>, standings: &Standings) {
    for (slot, word) in ring.iter().enumerate() {
        let value = word.load(Ordering::Relaxed);
        if value & UNSETTLED == 0 {
            continue;
        }
        let base = planes.load(slot, Past::Base);
        let wanted = standings.base(base & REAL);
        if base != wanted {
            planes.store(slot, Past::Base, wanted);
        }
        if wanted == 0 && planes.load(slot, Past::Since) & OTHERS == 0 {
            word.store(value & !UNSETTLED, Ordering::Relaxed);
        }
    }
}

/// Moves the VIP's flows on this real to the ring's reals.
pub(crate) fn give_up(ring: &[AtomicU16], planes: Planes<'_>, number: u16) {
    for (slot, word) in ring.iter().enumerate() {
        let value = word.load(Ordering::Relaxed);
        if value & UNSETTLED == 0 || planes.load(slot, Past::Base) & REAL != number {
            continue;
        }
        planes.store(slot, Past::Base, 0);
        if planes.load(slot, Past::Since) & OTHERS == 0 {
            word.store(value & !UNSETTLED, Ordering::Relaxed);
        }
    }
}

/// A summary of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unsettled {
    /// Unsettled slots.
    pub(crate) slots: u32,
    /// Moments since the oldest of them became unsettled.
    pub(crate) oldest: u16,
}

impl Unsettled {
    /// The sum with another.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            slots: self.slots + other.slots,
            oldest: self.oldest.max(other.oldest),
        }
    }
}

/// Whether no packet asks for the ring's history.
pub(crate) fn is_settled(ring: &[AtomicU16]) -> bool {
    (ring.iter()).all(|word| word.load(Ordering::Relaxed) & UNSETTLED == 0)
}

/// Counts what is unsettled.
pub(crate) fn unsettled(ring: &[AtomicU16], planes: Planes<'_>, now: At) -> Unsettled {
    let mut found = Unsettled::default();
    for (slot, word) in ring.iter().enumerate() {
        if word.load(Ordering::Relaxed) & UNSETTLED != 0 {
            found.slots += 1;
            found.oldest = found
                .oldest
                .max(now.after(At::of(planes.load(slot, Past::Since))));
        }
    }
    found
}

/// How many moments ago a packet may last have gone to this real, which the ring does not name;
/// `None`: no slot has flows that may be on it.
pub(crate) fn silence_of(
    ring: &[AtomicU16],
    planes: Planes<'_>,
    number: u16,
    now: At,
) -> Option<u16> {
    let mut least: Option<u16> = None;
    for (slot, word) in ring.iter().enumerate() {
        let is_unsettled = word.load(Ordering::Relaxed) & UNSETTLED != 0;
        let may_have = planes.load(slot, Past::Base) & REAL == number
            || planes.load(slot, Past::Since) & OTHERS != 0;
        if is_unsettled && may_have {
            let silence = now.after(At::of(planes.load(slot, Past::Deviated)));
            least = Some(least.map_or(silence, |least| least.min(silence)));
        }
    }
    least
}

/// How many ticks ago, at least, a moment ended that began so many moments ago.
pub(crate) fn ticks_after(moments: u16, now: u32, shift: u32) -> u32 {
    let Some(ended) = u32::from(moments).checked_sub(1) else {
        return 0;
    };
    let of_this = now & ((1 << shift) - 1);
    (ended << shift).saturating_add(of_this)
}

/// Settles those of some slots that no live flow needs any more: none has deviated from the ring
/// for more than `idle` moments. Returns what is left of them.
pub(crate) fn settle(
    ring: &[AtomicU16],
    planes: Planes<'_>,
    slots: Range<usize>,
    idle: u16,
    now: At,
) -> Unsettled {
    let mut left = Unsettled::default();
    let first = slots.start;
    let words = ring.get(slots).unwrap_or_default();
    for (place, word) in words.iter().enumerate() {
        let slot = first + place;
        let value = word.load(Ordering::Relaxed);
        if value & UNSETTLED == 0 {
            continue;
        }
        let since = planes.load(slot, Past::Since);
        let age = now.after(At::of(since));
        let quiet = now.after(At::of(planes.load(slot, Past::Deviated)));
        if age > idle && quiet > idle {
            word.store(value & !UNSETTLED, Ordering::Relaxed);
            continue;
        }
        left.slots += 1;
        left.oldest = left.oldest.max(age);
        if age > FURTHEST {
            // Moments wrap around. Entries as old as this belong to no live flow.
            let nearer = now.minus(FURTHEST / 2).0;
            planes.store(slot, Past::Since, nearer | since & OTHERS);
        }
    }
    left
}

/// Moves all flows to the ring's reals now.
pub(crate) fn settle_all(ring: &[AtomicU16]) {
    for word in ring {
        word.fetch_and(!UNSETTLED, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
