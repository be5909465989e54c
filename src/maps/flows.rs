//! The flow tables of the forwarding CPUs and the one that all others share, of either kind.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use super::flow_hash::Fingerprint;
use crate::FlowTableKind;
use crate::config::FALLBACK_FLOWS;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::map::Spec;
use crate::sys::map::Typed;
use crate::sys::mapping::Mapping;

const WAYS: u32 = types::flow_table_constant::FLOW_WAYS.0;
/// A table has so many entries for each flow it is made for: with fewer, a set would often have
/// more flows than entries long before the table is full.
const ENTRIES_PER_FLOW: u32 = 2;
/// Words of an entry, and which of them holds the real's id in its low half.
const ENTRY_WORDS: usize = size_of::<types::flow_entry>() / 8;
const ENTRY_MARK: usize = 1;

const _: () = assert!(size_of::<types::flow_set>() == 128);
const _: () = assert!(
    FALLBACK_FLOWS * ENTRIES_PER_FLOW == types::flow_table_constant::FALLBACK_SETS.0 * WAYS
);

/// What the kernel has to be told to make a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowTableShape {
    pub(crate) kind: libbpf_sys::bpf_map_type,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

impl FlowTableShape {
    /// The shape of a table for so many flows; at most 2^27.
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
                value_size: size_of::<types::flow_mark>() as u32,
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
        map: Typed<types::flow_key, types::flow_mark>,
        flows: u32,
    },
}

impl FlowTable {
    /// Makes a table for so many flows.
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

    /// Takes a map of the shape for this kind and number of flows.
    pub(crate) fn new(kind: FlowTableKind, flows: u32, map: OwnedFd) -> io::Result<Self> {
        Ok(match kind {
            FlowTableKind::SetAssociative => Self::Sets {
                map: Typed::new(map)?,
                sets: FlowTableShape::new(kind, flows).max_entries,
            },
            FlowTableKind::KernelLru => Self::Lru {
                map: Typed::new(map)?,
                flows,
            },
        })
    }

    /// What the table remembers of a flow; whether that still counts is for the caller to judge.
    /// `active` of its sets are in use, or all if that is `None`.
    pub(crate) fn find(
        &self,
        key: &types::flow_key,
        fingerprint: Fingerprint,
        active: Option<u32>,
    ) -> io::Result<Option<types::flow_mark>> {
        match self {
            Self::Lru { map, .. } => map.lookup(key),
            Self::Sets { map, sets } => {
                let number = fingerprint.set_of(active.unwrap_or(*sets));
                let set = map.lookup(&number)?.unwrap_or_default();
                let mut entries = set.entries.iter();
                let matching =
                    entries.find(|entry| entry.tag ^ u64::from(entry.mark.id) == fingerprint.0);
                Ok(matching.map(|entry| entry.mark))
            }
        }
    }

    /// How many entries there are, by walking them.
    pub(crate) fn count(&self) -> io::Result<u64> {
        match self {
            Self::Lru { map, flows } => map.count(*flows).map(u64::from),
            Self::Sets { map, sets } => {
                let bytes = *sets as usize * size_of::<types::flow_set>();
                let memory = Mapping::new(map.as_fd(), bytes)?;
                let used = memory
                    .u64s()
                    .chunks_exact(ENTRY_WORDS)
                    .filter(|entry| entry[ENTRY_MARK].load(Ordering::Relaxed) as u32 != 0)
                    .count();
                Ok(used as u64)
            }
        }
    }
}

impl AsFd for FlowTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Sets { map, .. } => map.as_fd(),
            Self::Lru { map, .. } => map.as_fd(),
        }
    }
}

/// All flow tables of a balancer.
pub(crate) struct FlowTables {
    /// By CPU number, ascending.
    pub(crate) of_cpus: Vec<(u32, FlowTable)>,
    pub(crate) fallback: FlowTable,
    /// The map in which the program looks for its CPU's table.
    pub(crate) outer: OwnedFd,
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
}
