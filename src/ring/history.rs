//! What slots of a ring were before: which of them have flows that belong to another real than the ring names,
//! and since when.
//!
//! A slot is *settled* when every flow that may still live in it belongs to the real that the ring names. Else it is
//! *unsettled*, and has a *base*: the real that it named when it was last settled. Flows that are older than the
//! change belong to the base; those that are younger have entries in the flow table, if they are not on the
//! base. The idea of a table for changed flows only is that of JET (Levi and Keslassy, CoNEXT 2020), which has to
//! know changes ahead.
//!
//! Packets read the words while they are written here: a slot's past counts only where the ring that packets
//! are on has marked the slot, so what a change needs is written before packets are switched to it.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use crate::skel::katran::types::slot_constant as bits;
use crate::skel::katran::types::slot_past;

const REAL: u16 = bits::SLOT_REAL.0 as u16;
const UNSETTLED: u16 = bits::SLOT_UNSETTLED.0 as u16;
const TAKES_NEW: u16 = bits::BASE_TAKES_NEW.0 as u16;
/// Of a slot's `since`: it has named reals that are neither its base nor the one that the ring names.
const OTHERS: u16 = bits::MOMENT_BIT.0 as u16;

/// What a real is to a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The VIP has given it up, or it is down: no flow belongs to it.
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
    /// Numbers with whether they take new flows; all others are gone.
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

/// A moment: 15 bits of coarse time, which wrap around, above a bit of other use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(u16);

impl At {
    /// Of ticks, as the program makes one.
    pub(crate) fn of_ticks(ticks: u32, shift: u32) -> Self {
        Self(((ticks >> shift) << 1) as u16)
    }

    fn of(word: u16) -> Self {
        Self(word & !OTHERS)
    }

    /// Whether it is not before another one; moments wrap around.
    pub(crate) fn is_not_before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) as i16 >= 0
    }

    /// How many moments this one is after another; 0 if that is ahead, as what a packet has just written may be of
    /// the control side's clock.
    pub(crate) fn after(self, other: Self) -> u16 {
        let after = self.0.wrapping_sub(other.0) as i16;
        after.max(0) as u16 >> 1
    }

    fn minus(self, moments: u16) -> Self {
        Self(self.0.wrapping_sub(moments << 1))
    }
}

/// So many moments back is the furthest that one is told from one ahead.
const FURTHEST: u16 = (1 << 13) - 1;

/// Places of rings that the pasts of a ring's slots lie in.
pub(crate) const PLANES: usize = bits::PLANES.0 as usize;

/// The words of a VIP's history. A slot's past is one record, so that a packet touches one cache line: slot `s` has
/// record `s / PLANES` of plane `s % PLANES`.
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
    /// Becomes what others are.
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

/// Whether a new ring leaves any slot unsettled. `before` has the marks of the ring that packets are on; it is empty if
/// there is none.
pub(crate) fn needs_history(before: &[AtomicU16], after: &[u16], standings: &Standings) -> bool {
    before.iter().zip(after).any(|(old, new)| {
        let old = old.load(Ordering::Relaxed);
        old & UNSETTLED != 0 || old != *new && !standings.is_gone(old)
    })
}

/// What one slot was before.
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

/// What a slot was before; `None`: it is settled.
pub(crate) fn before(ring: &[AtomicU16], planes: Planes<'_>, slot: usize) -> Option<Before> {
    (load(ring, slot) & UNSETTLED != 0).then(|| Before {
        base: planes.load(slot, Past::Base) & REAL,
        since: At::of(planes.load(slot, Past::Since)),
    })
}

/// Marks the slots of a new ring that are unsettled with it, and writes what packets have to know of them. Nothing of
/// that counts for packets that are still on the ring before, but that its unsettled slots stay so for
/// longer. Returns how many are marked.
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
                // Those that were on the ring's real deviate from now on.
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

/// Marks all slots: their flows may be anywhere, and one without an entry is on the slot's base, or on the ring's real where that
/// is settled. So it is for a VIP whose flows were all remembered until now.
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

/// Has a history count from now on in moments of another length.
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

/// Packets are on the ring, and the VIP's reals are what `standings` says: bases that are gone are none any more, and of
/// the others it is known whether they take new flows. A slot that needs no history then is settled.
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

/// The flows of the VIP that are on this real are to move to where the ring leads.
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

/// What a history holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unsettled {
    /// Slots.
    pub(crate) slots: u32,
    /// Moments since the oldest of them became unsettled.
    pub(crate) oldest: u16,
}

impl Unsettled {
    /// Of these and of others.
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

/// What is unsettled.
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

/// How many moments ago a packet may last have gone to this real, which the ring does not name; `None`: no slot has
/// flows that may be on it.
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

/// Settles those of some slots that no flow needs any more that may still live: nothing was heard for more than `idle` moments
/// of one that is not where the ring leads. Returns what is left of them.
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
            // Moments wrap around. Entries that are as old as this are of no flow that may live.
            let nearer = now.minus(FURTHEST / 2).0;
            planes.store(slot, Past::Since, nearer | since & OTHERS);
        }
    }
    left
}

/// All flows are to move to the ring's reals now.
pub(crate) fn settle_all(ring: &[AtomicU16]) {
    for word in ring {
        word.fetch_and(!UNSETTLED, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
