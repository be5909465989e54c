//! The flow tables of the forwarding CPUs and the table that all others share, of either type.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::flow_hash::Fingerprint;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::map::Spec;
use crate::sys::map::Typed;
use crate::sys::mapping::Mapping;
use crate::sys::nested::MapArray;
use crate::types::FlowTableKind;

/// Flows in the table shared by CPUs without a table.
pub(crate) const FALLBACK_FLOWS: u32 = 4096;

const WAYS: u32 = types::flow_table_constant::FLOW_WAYS.0;
/// Entries per flow that a table is made for. With fewer, a set would often have more flows than
/// entries long before the table is full.
const ENTRIES_PER_FLOW: u32 = 2;
/// Words of an entry, and the one whose low half is the real's id.
pub(super) const ENTRY_WORDS: usize = size_of::<types::flow_entry>() / 8;
pub(super) const ENTRY_TAG: usize = 0;
pub(super) const ENTRY_VALUE: usize = 1;
pub(super) const SET_WORDS: usize = size_of::<types::flow_set>() / 8;

const _: () = assert!(size_of::<types::flow_set>() == 128);
const _: () = assert!(
    FALLBACK_FLOWS * ENTRIES_PER_FLOW == types::flow_table_constant::FALLBACK_SETS.0 * WAYS
);

/// An entry seen on a walk.
#[derive(Clone, Copy)]
pub(crate) struct SeenFlow {
    /// The VIP's number.
    pub(crate) vip: u16,
    pub(crate) value: types::flow_value,
    /// The flow, if the table stores it.
    pub(crate) key: Option<types::flow_key>,
}

pub(super) fn set_bytes(sets: u32) -> usize {
    sets as usize * size_of::<types::flow_set>()
}

/// The VIP's number in a set's entry; `None`: the entry is empty.
fn vip_of(tag: u64, id: u32) -> Option<u16> {
    let number = (tag ^ u64::from(id)) as u16;
    (id != 0).then(|| number.saturating_sub(1))
}

/// Empties an entry if it matches, by one store, at a moment when it does.
fn clear_if(entry: &[AtomicU64], matches: impl Fn(u64, u32) -> bool) -> bool {
    let value = &entry[ENTRY_VALUE];
    let mut word = value.load(Ordering::Relaxed);
    loop {
        let id = word as u32;
        if id == 0 || !matches(entry[ENTRY_TAG].load(Ordering::Relaxed), id) {
            return false;
        }
        // Meanwhile a packet may stamp the entry, or give it to another flow.
        match value.compare_exchange(word, 0, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => word = now,
        }
    }
}

/// The kernel's parameters for a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowTableShape {
    pub(crate) kind: libbpf_sys::bpf_map_type,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

impl FlowTableShape {
    /// The shape of a table for `flows` flows; at most 2^27.
    pub(crate) fn new(kind: FlowTableKind, flows: u32) -> Self {
        match kind {
            FlowTableKind::SetAssociative => Self {
                kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
                key_size: size_of::<u32>() as u32,
                value_size: size_of::<types::flow_set>() as u32,
                max_entries: flows.div_ceil(WAYS / ENTRIES_PER_FLOW),
                flags: libbpf_sys::BPF_F_MMAPABLE,
            },
            FlowTableKind::KernelLru => Self {
                kind: libbpf_sys::BPF_MAP_TYPE_LRU_HASH,
                key_size: size_of::<types::flow_key>() as u32,
                value_size: size_of::<types::flow_value>() as u32,
                max_entries: flows,
                flags: 0,
            },
        }
    }
}

/// A flow table in the kernel.
pub(crate) enum FlowTable {
    Sets {
        map: Typed<u32, types::flow_set>,
        sets: u32,
    },
    Lru {
        map: Typed<types::flow_key, types::flow_value>,
    },
}

impl FlowTable {
    /// Makes a table for `flows` flows.
    pub(crate) fn create(
        kind: FlowTableKind,
        flows: u32,
        numa_node: Option<u32>,
    ) -> io::Result<Self> {
        let shape = FlowTableShape::new(kind, flows);
        let map = map::create(&Spec {
            kind: shape.kind,
            name: "flows",
            key_size: shape.key_size,
            value_size: shape.value_size,
            max_entries: shape.max_entries,
            flags: shape.flags,
            numa_node,
        })?;
        Self::new(kind, flows, map)
    }

    /// Takes a map with the shape for this type and number of flows.
    pub(crate) fn new(kind: FlowTableKind, flows: u32, map: OwnedFd) -> io::Result<Self> {
        Ok(match kind {
            FlowTableKind::SetAssociative => Self::Sets {
                map: Typed::new(map)?,
                sets: FlowTableShape::new(kind, flows).max_entries,
            },
            FlowTableKind::KernelLru => Self::Lru {
                map: Typed::new(map)?,
            },
        })
    }

    /// The table's entry of a flow; the caller judges whether it is still valid. `active` of the
    /// table's sets are in use, or all if that is `None`.
    pub(crate) fn find(
        &self,
        key: &types::flow_key,
        fingerprint: Fingerprint,
        active: Option<u32>,
    ) -> io::Result<Option<types::flow_value>> {
        match self {
            Self::Lru { map } => map.lookup(key),
            Self::Sets { map, sets } => {
                let number = fingerprint.set_of(active.unwrap_or(*sets));
                let set = map.lookup(&number)?.unwrap_or_default();
                let mut entries = set.entries.iter();
                let matching =
                    entries.find(|entry| entry.tag ^ u64::from(entry.value.id) == fingerprint.0);
                Ok(matching.map(|entry| entry.value))
            }
        }
    }

    /// Removes a flow's entry; `false` if there is none. `active` as for [`find`](Self::find).
    pub(crate) fn remove(
        &self,
        key: &types::flow_key,
        fingerprint: Fingerprint,
        active: Option<u32>,
    ) -> io::Result<bool> {
        match self {
            Self::Lru { map } => map.delete(key),
            Self::Sets { map, sets } => {
                let number = fingerprint.set_of(active.unwrap_or(*sets)) as usize;
                let memory = Mapping::new(map.as_fd(), set_bytes(*sets))?;
                let set = memory.u64s().chunks_exact(SET_WORDS).nth(number);
                let entries = set
                    .into_iter()
                    .flat_map(|set| set.chunks_exact(ENTRY_WORDS));
                let ours = |entry: &[AtomicU64]| {
                    clear_if(entry, |tag, id| tag ^ u64::from(id) == fingerprint.0)
                };
                Ok(entries.filter(|entry| ours(entry)).count() > 0)
            }
        }
    }

    /// Removes every entry that `matches` by its VIP's number and its real's id; returns how many.
    /// Packets continue meanwhile: an entry that one makes behind this walk stays.
    pub(crate) fn remove_all(&self, matches: impl Fn(u16, u32) -> bool) -> io::Result<u64> {
        match self {
            Self::Lru { map } => {
                let mut removed = 0;
                let mut matching = Vec::new();
                self.each(|entry| {
                    if let Some(key) = entry.key
                        && matches(entry.vip, entry.value.id)
                    {
                        matching.push(key);
                    }
                    true
                })?;
                for key in matching {
                    removed += u64::from(map.delete(&key)?);
                }
                Ok(removed)
            }
            Self::Sets { map, sets } => {
                let memory = Mapping::new(map.as_fd(), set_bytes(*sets))?;
                let entries = memory.u64s().chunks_exact(ENTRY_WORDS);
                let ours = |entry: &[AtomicU64]| {
                    clear_if(entry, |tag, id| {
                        vip_of(tag, id).is_some_and(|vip| matches(vip, id))
                    })
                };
                Ok(entries.filter(|entry| ours(entry)).count() as u64)
            }
        }
    }

    /// A walk that removes entries, a part of the table at a time.
    pub(crate) fn walk(&self) -> io::Result<Walk<'_>> {
        Ok(match self {
            Self::Lru { map } => Walk::Lru { map, from: None },
            Self::Sets { map, sets } => Walk::Sets {
                memory: Mapping::new(map.as_fd(), set_bytes(*sets))?,
                sets: *sets,
            },
        })
    }

    /// The sets in use, by their entries: up to the last one that has any, and at least the initial
    /// ones. 1 if the table has no sets.
    pub(crate) fn sets_in_use(&self) -> io::Result<u32> {
        let Self::Sets { map, sets } = self else {
            return Ok(1);
        };
        let memory = Mapping::new(map.as_fd(), set_bytes(*sets))?;
        let has_any = |set: &[AtomicU64]| {
            let mut entries = set.chunks_exact(ENTRY_WORDS);
            entries.any(|entry| entry[ENTRY_VALUE].load(Ordering::Relaxed) as u32 != 0)
        };
        let mut all = memory.u64s().chunks_exact(SET_WORDS);
        let used = all.rposition(has_any).map_or(1, |last| last as u32 + 1);
        Ok(used.max(types::flow_table_constant::FIRST_SETS.0.min(*sets)))
    }

    /// Passes every entry to `see`, until that returns `false`.
    pub(crate) fn each(&self, mut see: impl FnMut(SeenFlow) -> bool) -> io::Result<()> {
        match self {
            Self::Lru { map } => {
                let mut from = None;
                loop {
                    let met = map.elements(from, ENTRIES_A_STEP)?;
                    let mut all = met.keys.into_iter().zip(met.values);
                    let goes_on = all.all(|(key, value)| {
                        see(SeenFlow {
                            vip: key.vip.saturating_sub(1),
                            value,
                            key: Some(key),
                        })
                    });
                    from = met.next;
                    if !goes_on || from.is_none() {
                        break;
                    }
                }
            }
            Self::Sets { map, sets } => {
                let memory = Mapping::new(map.as_fd(), set_bytes(*sets))?;
                for entry in memory.u64s().chunks_exact(ENTRY_WORDS) {
                    let word = entry[ENTRY_VALUE].load(Ordering::Relaxed);
                    let value = types::flow_value {
                        id: word as u32,
                        used: (word >> 32) as u32,
                    };
                    let tag = entry[ENTRY_TAG].load(Ordering::Relaxed);
                    let Some(vip) = vip_of(tag, value.id) else {
                        continue;
                    };
                    if !see(SeenFlow {
                        vip,
                        value,
                        key: None,
                    }) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Passes the VIP's number of every entry in the part of the table from `from` (`None`: its
    /// beginning) to `see`. The first `active` sets are in use, or all if that is `None`. Returns
    /// where the next part begins; `None`: that was the last.
    pub(crate) fn see_part(
        &self,
        from: Option<u32>,
        active: Option<u32>,
        mut see: impl FnMut(u16),
    ) -> io::Result<Option<u32>> {
        match self {
            Self::Lru { map } => {
                let met = map.elements(from, ENTRIES_A_STEP)?;
                met.keys
                    .iter()
                    .for_each(|key| see(key.vip.saturating_sub(1)));
                Ok(met.next)
            }
            Self::Sets { map, sets } => {
                let end = active.unwrap_or(*sets).min(*sets);
                let first = from.unwrap_or(0);
                let last = first.saturating_add(SETS_A_STEP).min(end);
                if first >= last {
                    return Ok(None);
                }
                // Maps only this part: mapping millions of flows takes as long as reading them.
                let memory = Mapping::part(map.as_fd(), set_bytes(first), set_bytes(last - first))?;
                for entry in memory.u64s().chunks_exact(ENTRY_WORDS) {
                    let id = entry[ENTRY_VALUE].load(Ordering::Relaxed) as u32;
                    if let Some(vip) = vip_of(entry[ENTRY_TAG].load(Ordering::Relaxed), id) {
                        see(vip);
                    }
                }
                Ok((last < end).then_some(last))
            }
        }
    }
}

/// Sets, or entries of a hash, per step of a [`Walk`] or count, which takes a fraction of a
/// millisecond. This many sets fill whole pages.
const SETS_A_STEP: u32 = 8192;
const ENTRIES_A_STEP: u32 = 2048;

/// A walk through a flow table that removes entries while packets continue.
pub(crate) enum Walk<'a> {
    Sets {
        memory: Mapping,
        sets: u32,
    },
    Lru {
        map: &'a Typed<types::flow_key, types::flow_value>,
        /// Where in the hash to continue.
        from: Option<u32>,
    },
}

impl Walk<'_> {
    /// Removes what `matches`, by its VIP's number and its real's id, from the next part of the
    /// table; of a set-associative table only from set `first` up to `end` (other tables are walked
    /// as they are). Returns where the next part begins; `None`: that was the last.
    pub(crate) fn step(
        &mut self,
        first: u32,
        end: u32,
        matches: &impl Fn(u16, u32) -> bool,
    ) -> io::Result<Option<u32>> {
        match self {
            Self::Sets { memory, sets } => {
                let end = end.min(*sets);
                let first = first.min(end);
                let last = first.saturating_add(SETS_A_STEP).min(end);
                let words = first as usize * SET_WORDS..last as usize * SET_WORDS;
                for entry in memory.u64s()[words].chunks_exact(ENTRY_WORDS) {
                    clear_if(entry, |tag, id| {
                        vip_of(tag, id).is_some_and(|vip| matches(vip, id))
                    });
                }
                Ok((last < end).then_some(last))
            }
            Self::Lru { map, from } => {
                let met = map.elements(*from, ENTRIES_A_STEP)?;
                for (key, value) in met.keys.iter().zip(&met.values) {
                    let ours =
                        |value: &types::flow_value| matches(key.vip.saturating_sub(1), value.id);
                    // A packet may have moved the flow to another real since the part was read.
                    // Between these two calls it still may; then this removes an entry that the
                    // ring makes again.
                    if ours(value) && map.lookup(key)?.is_some_and(|now| ours(&now)) {
                        map.delete(key)?;
                    }
                }
                *from = met.next;
                Ok(met.next.map(|_| first))
            }
        }
    }
}

impl AsFd for FlowTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Sets { map, .. } => map.as_fd(),
            Self::Lru { map } => map.as_fd(),
        }
    }
}

/// All flow tables of a balancer.
pub(crate) struct FlowTables {
    /// By CPU number, ascending.
    pub(crate) of_cpus: Vec<(u32, FlowTable)>,
    pub(crate) fallback: FlowTable,
    /// The map in which the program looks for its CPU's table.
    pub(crate) outer: MapArray,
}

impl FlowTables {
    /// Each table, with its CPU; `None`: the table that all others share.
    pub(crate) fn all(&self) -> Vec<(Option<u32>, &FlowTable)> {
        let of_cpus = self.of_cpus.iter();
        let of_cpus = of_cpus.map(|(cpu, table)| (Some(*cpu), table));
        of_cpus.chain([(None, &self.fallback)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_associative_table_takes_at_most_32_bytes_a_flow() {
        for flows in [4, 1000, 4_000_000] {
            let shape = FlowTableShape::new(FlowTableKind::SetAssociative, flows);
            let bytes = u64::from(shape.max_entries) * u64::from(shape.value_size);
            assert_eq!(bytes, 32 * u64::from(flows), "{flows} flows");
        }
        let smallest = FlowTableShape::new(FlowTableKind::SetAssociative, 1);
        assert_eq!(smallest.max_entries, 1);
    }

    /// The VIP numbers seen in all parts of a table, and the number of parts.
    fn seen(table: &FlowTable, active: Option<u32>) -> (Vec<u16>, u32) {
        let (mut seen, mut parts, mut from) = (Vec::new(), 0, None);
        loop {
            from = table.see_part(from, active, |vip| seen.push(vip)).unwrap();
            parts += 1;
            if from.is_none() {
                seen.sort_unstable();
                return (seen, parts);
            }
        }
    }

    #[test]
    fn parts_of_sets_have_each_entry_once() {
        let sets = 2 * SETS_A_STEP + 3;
        let flows = sets * (WAYS / ENTRIES_PER_FLOW);
        let table = FlowTable::create(FlowTableKind::SetAssociative, flows, None).unwrap();
        assert_eq!(seen(&table, None), (Vec::new(), 3));
        let FlowTable::Sets { map, .. } = &table else {
            unreachable!("it was made with sets");
        };
        let of_vip = |vip: u64| {
            let mut set = types::flow_set::default();
            set.entries[7].value.id = 5;
            set.entries[7].tag = (vip + 1) ^ 5;
            set
        };
        let numbers = [0, SETS_A_STEP - 1, SETS_A_STEP, 2 * SETS_A_STEP, sets - 1];
        for (vip, number) in (10..).zip(numbers) {
            map.update(&number, &of_vip(vip)).unwrap();
        }
        assert_eq!(seen(&table, None), (vec![10, 11, 12, 13, 14], 3));
        assert_eq!(seen(&table, Some(sets - 1)), (vec![10, 11, 12, 13], 3));
        assert_eq!(seen(&table, Some(SETS_A_STEP)), (vec![10, 11], 1));
        assert_eq!(seen(&table, Some(1)), (vec![10], 1));
        // The table has fewer sets than where the walk was: it is another balancer's.
        let beyond = table.see_part(Some(sets), None, |_| unreachable!("no set is there"));
        assert_eq!(beyond.unwrap(), None);
    }

    #[test]
    fn parts_of_a_hash_have_each_entry_once() {
        let table = FlowTable::create(FlowTableKind::KernelLru, 20_000, None).unwrap();
        let FlowTable::Lru { map } = &table else {
            unreachable!("it was made as a hash");
        };
        let vips = 1..=2 * ENTRIES_A_STEP as u16;
        for vip in vips.clone() {
            let key = types::flow_key {
                vip: vip + 1,
                ..Default::default()
            };
            map.update(&key, &types::flow_value { id: 5, used: 0 })
                .unwrap();
        }
        let (seen, parts) = seen(&table, None);
        assert_eq!(seen, vips.collect::<Vec<_>>());
        assert!(parts > 1, "{parts}");
    }
}
