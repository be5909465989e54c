//! Copies entries of a flow table to another of the same type: one of another size, or of another
//! CPU.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::flow_hash::Fingerprint;
use super::flows::ENTRY_TAG;
use super::flows::ENTRY_VALUE;
use super::flows::ENTRY_WORDS;
use super::flows::FlowTable;
use super::flows::SET_WORDS;
use super::flows::set_bytes;
use crate::skel::katran::types;
use crate::sys::mapping::Mapping;

/// Entries of a hash to read at a time.
const A_STEP: u32 = 4096;

const USED_BITS: u32 = types::flow_table_constant::USED_BITS.0;

/// Whether packets use the receiving table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// They do not.
    Nobody,
    /// They use it: entries that they have made stay. `since`: an entry last used before this tick
    /// was copied before they came, and is missing only because its flow ended or was forgotten.
    Packets { since: Option<u32> },
}

impl Reader {
    /// Whether the entry with this stamp may be missing.
    fn wants(self, used: u32) -> bool {
        let Self::Packets { since: Some(since) } = self else {
            return true;
        };
        // Stamps have no lowest bits, and wrap around.
        (used | USED_BITS).wrapping_sub(since).cast_signed() >= 0
    }
}

impl FlowTable {
    /// Enters what another table knows and this one does not, if there is room. `active` of
    /// this table's sets are in use, or all if that is `None`. Returns `false` for tables of
    /// different types, which have nothing in common.
    ///
    /// # Errors
    /// If the kernel refuses; some entries are copied then.
    pub(crate) fn enter_all_of(
        &self,
        other: &Self,
        active: Option<u32>,
        reader: Reader,
    ) -> io::Result<bool> {
        match (self, other) {
            (
                Self::Sets { map, sets },
                Self::Sets {
                    map: from,
                    sets: of,
                },
            ) => {
                let into = Mapping::new(map.as_fd(), set_bytes(*sets))?;
                let from = Mapping::new(from.as_fd(), set_bytes(*of))?;
                let active = active.unwrap_or(*sets).clamp(1, *sets);
                let into = into.u64s();
                for entry in from.u64s().chunks_exact(ENTRY_WORDS) {
                    let value = entry[ENTRY_VALUE].load(Ordering::Relaxed);
                    let tag = entry[ENTRY_TAG].load(Ordering::Relaxed);
                    if value as u32 != 0 && reader.wants((value >> 32) as u32) {
                        enter(into, active, tag, value);
                    }
                }
                Ok(true)
            }
            (Self::Lru { map }, Self::Lru { map: from }) => {
                let mut at = None;
                loop {
                    let met = from.elements(at, A_STEP)?;
                    let met_all = met.keys.iter().zip(&met.values);
                    for (key, value) in met_all.filter(|(_, value)| reader.wants(value.used)) {
                        if reader == Reader::Nobody || map.lookup(key)?.is_none() {
                            map.update(key, value)?;
                        }
                    }
                    at = met.next;
                    if at.is_none() {
                        return Ok(true);
                    }
                }
            }
            _ => Ok(false),
        }
    }
}

/// Enters one flow into its set, unless it is there: an older entry makes room for a younger one.
fn enter(sets: &[AtomicU64], active: u32, tag: u64, value: u64) {
    let fingerprint = Fingerprint(tag ^ u64::from(value as u32));
    let first = fingerprint.set_of(active) as usize * SET_WORDS;
    let set = || sets[first..first + SET_WORDS].chunks_exact(ENTRY_WORDS);
    let word = |entry: &[AtomicU64]| entry[ENTRY_VALUE].load(Ordering::Relaxed);
    let is_there = set().any(|entry| {
        let id = u64::from(word(entry) as u32);
        id != 0 && entry[ENTRY_TAG].load(Ordering::Relaxed) ^ id == fingerprint.0
    });
    if is_there {
        return;
    }
    let exchange = |entry: &[AtomicU64], before, after| {
        entry[ENTRY_VALUE]
            .compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    };
    let take = |entry: &[AtomicU64], empty| {
        entry[ENTRY_TAG].store(tag, Ordering::Relaxed);
        // A packet may have taken it meanwhile; a torn entry matches no flow.
        exchange(entry, empty, value)
    };
    for entry in set() {
        let empty = word(entry);
        if empty as u32 == 0 && take(entry, empty) {
            return;
        }
    }
    let used = |word: u64| (word >> 32) as u32;
    // Stamps wrap around, but all are from the last days.
    let age = |entry: &&[AtomicU64]| used(value).wrapping_sub(used(word(entry))) as i32;
    if let Some(oldest) = set().max_by_key(age)
        && age(&oldest) > 0
        && exchange(oldest, word(oldest), 0)
    {
        take(oldest, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::FlowHashKeys;
    use crate::types::FlowTableKind;

    fn key(port: u16) -> types::flow_key {
        types::flow_key {
            source_port: port,
            destination_port: 80,
            vip: 3,
            ..Default::default()
        }
    }

    fn put(table: &FlowTable, keys: &FlowHashKeys, active: u32, port: u16, used: u32) {
        let FlowTable::Sets { map, sets } = table else {
            unreachable!("it was made with sets");
        };
        let memory = Mapping::new(map.as_fd(), set_bytes(*sets)).unwrap();
        let id = 7;
        let tag = keys.fingerprint(&key(port)).0 ^ id;
        enter(memory.u64s(), active, tag, id | u64::from(used) << 32);
    }

    #[test]
    fn entries_are_found_in_a_table_of_another_size() {
        let keys = FlowHashKeys::draw().unwrap();
        let make = |flows| FlowTable::create(FlowTableKind::SetAssociative, flows, None).unwrap();
        let (small, large) = (make(1024), make(65_536));
        for port in 1..=300 {
            put(&small, &keys, 100, port, 1000 + u32::from(port));
        }
        let known = |table: &FlowTable, active, port: u16| {
            let key = key(port);
            let found = table
                .find(&key, keys.fingerprint(&key), Some(active))
                .unwrap();
            found.is_some_and(|value| (value.id, value.used) == (7, 1000 + u32::from(port)))
        };
        let before: Vec<u16> = (1..=300).filter(|port| known(&small, 100, *port)).collect();
        assert!(before.len() > 280, "{}", before.len());
        for (active, reader) in [
            (100, Reader::Nobody),
            (9000, Reader::Packets { since: None }),
        ] {
            assert!(large.enter_all_of(&small, Some(active), reader).unwrap());
            assert!(before.iter().all(|port| known(&large, active, *port)));
        }
        // If there is no room for all, the youngest are entered.
        let tiny = make(32);
        assert!(tiny.enter_all_of(&small, None, Reader::Nobody).unwrap());
        let kept = before.iter().filter(|port| known(&tiny, 8, **port));
        let kept: Vec<u16> = kept.copied().collect();
        assert!((40..=64).contains(&kept.len()), "{}", kept.len());
        let of_young = kept.iter().filter(|port| **port > 150).count();
        assert!(of_young > kept.len() * 3 / 4, "{kept:?}");
        let hash = FlowTable::create(FlowTableKind::KernelLru, 1024, None).unwrap();
        assert!(!hash.enter_all_of(&small, None, Reader::Nobody).unwrap());
    }

    #[test]
    fn an_entry_that_is_not_used_any_more_is_copied_once() {
        let keys = FlowHashKeys::draw().unwrap();
        let make = |flows| FlowTable::create(FlowTableKind::SetAssociative, flows, None).unwrap();
        let (from, into) = (make(1024), make(2048));
        let now = u32::MAX - 5;
        // Stamps wrap around. The low bits of one are flags.
        let ages = [(1, -4), (2, -5), (3, 0), (4, 3), (5, 8)];
        for (port, after) in ages {
            put(&from, &keys, 64, port, now.wrapping_add_signed(after));
        }
        let since = Reader::Packets { since: Some(now) };
        assert!(into.enter_all_of(&from, Some(64), since).unwrap());
        let found = ages.map(|(port, _)| {
            let key = key(port);
            let found = into.find(&key, keys.fingerprint(&key), Some(64));
            found.unwrap().is_some()
        });
        assert_eq!(found, [false, false, true, true, true]);
    }

    #[test]
    fn entries_of_a_hash_come_along() {
        let make = |flows| FlowTable::create(FlowTableKind::KernelLru, flows, None).unwrap();
        let (one, other) = (make(1024), make(4096));
        let (FlowTable::Lru { map }, FlowTable::Lru { map: into }) = (&one, &other) else {
            unreachable!("they were made as hashes");
        };
        let value = |id| types::flow_value { id, used: 5 };
        for port in 1..=100 {
            map.update(&key(port), &value(7)).unwrap();
        }
        into.update(&key(1), &value(9)).unwrap();
        let later = Reader::Packets { since: Some(64) };
        assert!(other.enter_all_of(&one, None, later).unwrap());
        assert_eq!(into.lookup(&key(2)).unwrap().map(|value| value.id), None);
        assert!(
            other
                .enter_all_of(&one, None, Reader::Packets { since: None })
                .unwrap()
        );
        let id = |port| into.lookup(&key(port)).unwrap().map(|value| value.id);
        // Entries that packets have made since stay.
        assert_eq!(
            (id(1), id(2), id(100), id(101)),
            (Some(9), Some(7), Some(7), None)
        );
    }
}
