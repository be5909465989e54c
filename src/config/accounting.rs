//! The memory of maps by the kernel's accounting: the same sums as its types' `map_mem_usage`
//! (Linux, kernel/bpf/arraymap.c and hashtab.c), which the descriptor's fdinfo shows as `memlock`.

use crate::maps::FlowTableShape;
use crate::maps::RINGS_PER_CHUNK;
use crate::maps::ring_bytes;
use crate::skel::katran::types;
use crate::types::FlowTableKind;

const PAGE: u64 = 4096;
/// The kernel's header of an array, of a hash, and of each element and bucket of a hash.
const ARRAY_HEAD: u64 = 384;
const HASH_HEAD: u64 = 512;
const HASH_ELEMENT: u64 = 48;
const HASH_BUCKET: u64 = 16;
const TRIE_NODE: u64 = 40;
const DEVMAP_HEAD: u64 = 320;
const RING_BUFFER_HEAD: u64 = 3 * PAGE;

/// The memory of the maps of one name.
pub(super) struct Takes {
    pub(super) entries: u64,
    pub(super) at_load: u64,
    pub(super) at_capacity: u64,
}

/// A map that has all its memory from the start.
pub(super) fn full(entries: impl Into<u64>, bytes: u64) -> Takes {
    Takes {
        entries: entries.into(),
        at_load: bytes,
        at_capacity: bytes,
    }
}

fn page(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

/// An array of maps, or a small one; the value's size rounds up to a multiple of 8.
pub(super) fn array(entries: impl Into<u64>, value: u64) -> u64 {
    ARRAY_HEAD + entries.into() * value
}

pub(super) fn mappable(entries: impl Into<u64>, value: u32) -> u64 {
    page(ARRAY_HEAD) + page(entries.into() * u64::from(value))
}

pub(super) fn ring_chunk(ring_size: u32) -> u64 {
    mappable(RINGS_PER_CHUNK, ring_bytes(ring_size))
}

pub(super) fn per_cpu(entries: impl Into<u64>, value: usize, cpus: u32) -> u64 {
    let entries = entries.into();
    ARRAY_HEAD + entries * 8 + entries * value as u64 * u64::from(cpus)
}

/// A hash whose elements are all allocated at once; key and value sizes round up to multiples of 8.
pub(super) fn hash(entries: impl Into<u64>, key: u64, value: u64) -> u64 {
    let entries = entries.into();
    buckets_only(entries) + entries * (HASH_ELEMENT + key + value)
}

/// The same with a value for each CPU, to which an element has a pointer.
pub(super) fn per_cpu_hash(entries: impl Into<u64>, key: u64, value: usize, cpus: u32) -> u64 {
    let entries = entries.into();
    hash(entries, key, 8) + entries * value as u64 * u64::from(cpus)
}

pub(super) fn buckets_only(entries: impl Into<u64>) -> u64 {
    HASH_HEAD + entries.into().next_power_of_two() * HASH_BUCKET
}

/// A trie, with a leaf for each prefix and an inner node for each branching; a node's size without
/// its header rounds up to a multiple of 8.
pub(super) fn trie(prefixes: u32, node: u64) -> Takes {
    Takes {
        entries: prefixes.into(),
        at_load: 0,
        at_capacity: 2 * u64::from(prefixes) * (TRIE_NODE + node),
    }
}

pub(super) fn device_map(ports: u32) -> u64 {
    DEVMAP_HEAD + 8 * u64::from(ports)
}

pub(super) fn ring_buffer(bytes: u32) -> u64 {
    page(RING_BUFFER_HEAD) + u64::from(bytes)
}

/// The memory of one global flow table for so many flows.
pub(crate) fn global_table_bytes(flows: u32) -> u64 {
    hash(flows, size_of::<types::flow_key>() as u64, 8)
}

pub(crate) fn flow_table_bytes(kind: FlowTableKind, flows: u32) -> u64 {
    let shape = FlowTableShape::new(kind, flows);
    match kind {
        FlowTableKind::SetAssociative => mappable(shape.max_entries, shape.value_size),
        FlowTableKind::KernelLru => hash(
            shape.max_entries,
            shape.key_size.into(),
            shape.value_size.into(),
        ),
    }
}
