//! What the maps take, before anything is loaded.
//!
//! The kernel accounts a map by its type's `map_mem_usage` (Linux, kernel/bpf/arraymap.c and
//! hashtab.c), shown as `memlock` in the descriptor's fdinfo; these are the same sums.

use std::fmt;

use super::Builder;
use super::Config;
use super::Features;
use crate::error::Result;
use crate::maps::FALLBACK_FLOWS;
use crate::maps::FlowTableShape;
use crate::maps::MAX_WAYS;
use crate::maps::RINGS_PER_CHUNK;
use crate::maps::max_chunks;
use crate::maps::max_server_id_places;
use crate::maps::ring_bytes;
use crate::maps::server_id_table_bytes;
use crate::maps::vip_table_bytes;
use crate::maps::void_pairs;
use crate::skel::healthcheck::types as probes;
use crate::skel::katran::types;
use crate::types::FlowTableKind;
use crate::types::NextHops;

const PAGE: u64 = 4096;
/// The kernel's head of an array, of a hash, and of each element and bucket of a hash.
const ARRAY_HEAD: u64 = 384;
const HASH_HEAD: u64 = 512;
const HASH_ELEMENT: u64 = 48;
const HASH_BUCKET: u64 = 16;
const TRIE_NODE: u64 = 40;
const DEVMAP_HEAD: u64 = 320;
const RING_BUFFER_HEAD: u64 = 3 * PAGE;

/// Memory of one map, or of all maps of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapMemory {
    /// The map's name, as `bpftool map` shows it.
    pub name: &'static str,
    /// How many elements it can have, over all maps of this name.
    pub entries: u64,
    /// Bytes right after loading.
    pub at_load: u64,
    /// Bytes when it is full.
    pub at_capacity: u64,
}

/// What the maps of a balancer will take, by map.
///
/// Prints as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    maps: Vec<MapMemory>,
}

impl MemoryEstimate {
    /// The maps, largest first. Maps of features that are off are not there.
    pub fn maps(&self) -> &[MapMemory] {
        &self.maps
    }

    /// Bytes of all maps right after loading.
    pub fn at_load(&self) -> u64 {
        self.maps.iter().map(|map| map.at_load).sum()
    }

    /// Bytes of all maps when everything is full.
    pub fn at_capacity(&self) -> u64 {
        self.maps.iter().map(|map| map.at_capacity).sum()
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: u64 = 1024;
        writeln!(
            f,
            "{:<16} {:>10} {:>14} {:>14}",
            "map", "entries", "at load, KiB", "when full, KiB"
        )?;
        for map in &self.maps {
            writeln!(
                f,
                "{:<16} {:>10} {:>14} {:>14}",
                map.name,
                map.entries,
                map.at_load.div_ceil(KIB),
                map.at_capacity.div_ceil(KIB)
            )?;
        }
        write!(
            f,
            "{:<16} {:>10} {:>14} {:>14}",
            "total",
            "",
            self.at_load().div_ceil(KIB),
            self.at_capacity().div_ceil(KIB)
        )
    }
}

impl Builder {
    /// Tells what the maps will take, by map, before anything is loaded.
    ///
    /// The maps of health checks are there with
    /// [`healthcheck_interface`](Builder::healthcheck_interface); without it they are only made with the
    /// first mark, match or probe.
    ///
    /// Kernel memory, as the kernel accounts it; the process itself takes a fraction of that, and
    /// about 50 bytes for each server id and source route. While
    /// updates of reals follow each other without a pause, and for some ten seconds after, there
    /// are places for up to 72 more rings (9 MiB at 65,537 slots) than `when full` says. Rings are
    /// made eight at a time, and a sixteenth ahead: a slot takes 2.3 bytes with 512 VIPs, at most 4
    /// from 12 VIPs on (and then not during such updates). A server-id table that has just grown has
    /// half as much beside it, until the next change of ids.
    ///
    /// # Errors
    /// As [`Builder::load`] does for settings: [`Error::InvalidConfig`](crate::Error) and
    /// [`Error::Unsupported`](crate::Error).
    ///
    /// ```
    /// use katran::Katran;
    ///
    /// let builder = Katran::builder()
    ///     .gateway_mac("0a:00:00:00:00:fe".parse()?)
    ///     .flow_table_size(1_000_000);
    /// println!("{}", builder.memory_estimate()?);
    /// # Ok::<(), katran::Error>(())
    /// ```
    pub fn memory_estimate(&self) -> Result<MemoryEstimate> {
        Ok(estimate(
            &self.clone().validate()?,
            super::cpus::Topology::read()?.possible.len() as u64,
        ))
    }
}

/// The estimate for checked settings on a machine with so many possible CPUs.
pub(crate) fn estimate(config: &Config, cpus: u64) -> MemoryEstimate {
    let vips = u64::from(config.max_vips);
    let reals = u64::from(config.max_reals) + 1;
    let tables = config.placement.len() as u64;
    let flows = u64::from(config.flows_per_cpu);
    let [vip_heads, vip_infos] = vip_table_bytes(config.max_vips.into());
    let chunk = ARRAY_HEAD.next_multiple_of(PAGE)
        + page(u64::from(RINGS_PER_CHUNK) * u64::from(ring_bytes(config.ring_size)));
    let chunks = u64::from(max_chunks(config.max_vips.into()));
    let fixed = |name, entries, bytes| MapMemory {
        name,
        entries,
        at_load: bytes,
        at_capacity: bytes,
    };
    let mut maps = vec![
        fixed(
            "flows",
            tables * flows,
            tables * flow_table_bytes(config.flow_table, config.flows_per_cpu),
        ),
        fixed(
            "fallback_flows",
            FALLBACK_FLOWS.into(),
            flow_table_bytes(config.flow_table, FALLBACK_FLOWS),
        ),
        fixed("flow_tables", cpus, ARRAY_HEAD + 8 * cpus),
        MapMemory {
            name: "ring_chunk",
            entries: chunks * u64::from(RINGS_PER_CHUNK),
            at_load: chunk,
            at_capacity: chunks * chunk,
        },
        fixed("rings", chunks, ARRAY_HEAD + 8 * chunks),
        MapMemory {
            name: "prefix_vips",
            entries: vips,
            at_load: 0,
            // A leaf for each, and an inner node for each branching.
            at_capacity: 2 * vips * (TRIE_NODE + 24),
        },
        fixed(".data.vip_heads", vips, mappable(1, vip_heads.into())),
        fixed(".data.vip_infos", vips, mappable(1, vip_infos.into())),
        fixed(".data.reals", reals, mappable(reals, 24)),
        fixed("vip_counters", vips, per_cpu(vips, 40, cpus)),
        fixed("real_counters", reals, per_cpu(reals, 24, cpus)),
        fixed("cpus", 1, per_cpu(1, size_of::<types::cpu>() as u64, cpus)),
        fixed("explanations", 1, ARRAY_HEAD + 16),
        fixed("data and rodata", 3, 3 * mappable(1, 8)),
    ];
    let next_hops = config.next_hops != NextHops::Gateway;
    let server_ids = ARRAY_HEAD + 8 * u64::from(max_server_id_places(config.max_server_ids));
    let of_feature = |feature, map| config.features.contains(feature).then_some(map);
    let routes = u64::from(config.max_source_routes);
    let trie = |name, key: u64| MapMemory {
        name,
        entries: routes,
        at_load: 0,
        at_capacity: 2 * routes * (TRIE_NODE + key + 4).next_multiple_of(8),
    };
    let global = config.global_flow_table_size;
    maps.extend(
        [
            of_feature(Features::SOURCE_ROUTING, trie("source_routes_v4", 4)),
            of_feature(Features::SOURCE_ROUTING, trie("source_routes_v6", 16)),
            of_feature(
                Features::GLOBAL_FLOW_TABLE,
                fixed(
                    "global_flows",
                    tables * u64::from(global),
                    ARRAY_HEAD + 8 * cpus + tables * global_table_bytes(global),
                ),
            ),
            of_feature(
                Features::GLOBAL_FLOW_TABLE,
                fixed(
                    "global_fallback",
                    FALLBACK_FLOWS.into(),
                    global_table_bytes(FALLBACK_FLOWS),
                ),
            ),
            of_feature(Features::INLINE_DECAP, {
                let entries = u64::from(config.max_decap);
                fixed("decap_destinations", entries, hash(entries, 24, 8))
            }),
            Some({
                let pairs = void_pairs(config.max_reals.into()).into();
                MapMemory {
                    name: "down_reals",
                    entries: pairs,
                    at_load: HASH_HEAD + buckets(pairs),
                    at_capacity: HASH_HEAD + buckets(pairs) + pairs * (HASH_ELEMENT + 16),
                }
            }),
            Some(MapMemory {
                name: "server_ids",
                entries: config.max_server_ids.into(),
                at_load: server_ids,
                at_capacity: server_ids + server_id_table_bytes(config.max_server_ids),
            }),
            Some(fixed("special_programs", 6, ARRAY_HEAD + 48)),
            of_feature(Features::INTROSPECTION, {
                let bytes = u64::from(config.event_buffer);
                fixed("events", bytes, page(RING_BUFFER_HEAD) + bytes)
            }),
            next_hops.then(|| fixed(".data.hops", reals, mappable(1, reals * 8))),
            next_hops.then(|| fixed("devices", 64, DEVMAP_HEAD + 8 * 64)),
        ]
        .into_iter()
        .flatten(),
    );
    if config.healthcheck_interface.is_some() {
        let reals = reals - 1;
        let ways = u64::from(MAX_WAYS) * reals + 1;
        let totals = size_of::<probes::probe_totals>() as u64;
        maps.extend([
            fixed("marks", reals, hash(reals, 8, 24)),
            fixed("destinations", reals, hash(reals, 24, 24)),
            fixed("sources", reals, hash(reals, 24, 24)),
            fixed("probe_keys", vips, hash(vips, 24, 8)),
            fixed("probe_counters", vips, per_cpu(vips, 8, cpus)),
            fixed("probe_totals", 1, per_cpu(1, totals, cpus)),
            fixed(".data.settings", 1, mappable(1, 8)),
        ]);
        maps.extend(next_hops.then(|| fixed("ways", ways, hash(ways, 24, 8))));
    }
    maps.sort_by_key(|map| std::cmp::Reverse(map.at_capacity));
    MemoryEstimate { maps }
}

fn page(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

fn mappable(entries: u64, value: u64) -> u64 {
    page(ARRAY_HEAD) + page(entries * value)
}

fn per_cpu(entries: u64, value: u64, cpus: u64) -> u64 {
    ARRAY_HEAD + entries * 8 + entries * value * cpus
}

/// A hash whose elements are all made at once; sizes of keys and values in steps of 8.
fn hash(entries: u64, key: u64, value: u64) -> u64 {
    HASH_HEAD + buckets(entries) + entries * (HASH_ELEMENT + key + value)
}

fn buckets(entries: u64) -> u64 {
    entries.next_power_of_two() * HASH_BUCKET
}

/// The memory of one table for so many flows that the host application fills.
pub(crate) fn global_table_bytes(flows: u32) -> u64 {
    let element = HASH_ELEMENT + size_of::<types::flow_key>() as u64 + 8;
    HASH_HEAD + buckets(flows.into()) + u64::from(flows) * element
}

/// One flow table's memory.
pub(crate) fn flow_table_bytes(kind: FlowTableKind, flows: u32) -> u64 {
    let shape = FlowTableShape::new(kind, flows);
    let entries = u64::from(shape.max_entries);
    match kind {
        FlowTableKind::SetAssociative => mappable(entries, shape.value_size.into()),
        FlowTableKind::KernelLru => {
            let element = HASH_ELEMENT + u64::from(shape.key_size + shape.value_size);
            HASH_HEAD + buckets(entries) + entries * element
        }
    }
}
