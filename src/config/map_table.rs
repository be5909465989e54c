//! The table of maps, the balancer's and the health checks'. A row gives a map's name, the settings
//! with which it exists, its size before load, and its memory; the loaders and the memory estimate
//! use it.
//!
//! `there` is `Always`, `With` features, `WithHops` for next hops of single reals, or `WithDetails`
//! and `WithPairs` for counts on demand: the map of what is off is not made. `size` is `Own` for a
//! map whose size is in `bpf/`, `Elements`, or `Bytes` of a data section; `Inner` is not a map of
//! an object, but the tables inside one. `takes` gives the elements that all maps of the name can
//! have, and their bytes at load and when they are full.

use super::Config;
use super::Features;
use super::accounting::Takes;
use super::accounting::array;
use super::accounting::buckets_only;
use super::accounting::device_map;
use super::accounting::flow_table_bytes;
use super::accounting::full;
use super::accounting::global_table_bytes;
use super::accounting::hash;
use super::accounting::mappable;
use super::accounting::per_cpu;
use super::accounting::per_cpu_hash;
use super::accounting::ring_buffer;
use super::accounting::ring_chunk;
use super::accounting::trie;
use crate::maps::FALLBACK_FLOWS;
use crate::maps::FlowTableShape;
use crate::maps::MAX_WAYS;
use crate::maps::MapUse;
use crate::maps::RINGS_PER_CHUNK;
use crate::maps::max_chunks;
use crate::maps::max_chunks_in_surge;
use crate::maps::max_server_id_places;
use crate::maps::server_id_table_bytes;
use crate::maps::vip_table_bytes;
use crate::maps::void_pairs;
use crate::skel::healthcheck::types as probes;
use crate::skel::katran::types;
use crate::sys::object::MapSize;
use crate::types::NextHops;
use crate::types::Prefix;

const PORTS: u32 = types::hop_constant::PORTS.0;
const PROBE_FLOWS: u32 = types::probe_constant::PROBE_FLOWS.0;

/// A balancer's settings and the machine's possible CPUs, as the rows name them.
pub(crate) struct Machine<'a> {
    pub(crate) config: &'a Config,
    pub(crate) cpus: u32,
}

/// One map, or all maps of one kind.
pub(crate) struct MapRow {
    pub(crate) name: &'static str,
    there: There,
    size: Size,
    pub(super) takes: fn(&Machine<'_>) -> Takes,
}

enum There {
    Always,
    With(Features),
    WithHops,
    WithDetails,
    WithPairs,
    /// It always exists, but takes memory only with next hops of single reals.
    UsedByHops,
}

enum Size {
    Own,
    Elements(fn(&Machine<'_>) -> u32),
    Bytes(fn(&Machine<'_>) -> u32),
    Inner,
}

use Size::Bytes;
use Size::Elements;
use Size::Inner;
use Size::Own;
use There::Always;
use There::UsedByHops;
use There::With;
use There::WithDetails;
use There::WithHops;
use There::WithPairs;

/// Every map of the balancer's object.
#[rustfmt::skip]
pub(crate) const MAPS: &[MapRow] = &[
    row("flows", Always, Inner, |on| {
        let table = flow_table_bytes(on.config.flow_table, on.config.flows_per_cpu);
        full(on.tables() * u64::from(on.config.flows_per_cpu), on.tables() * table)
    }),
    row("fallback_flows", Always, Elements(|on| on.fallback().max_entries), |on| {
        full(FALLBACK_FLOWS, flow_table_bytes(on.config.flow_table, FALLBACK_FLOWS))
    }),
    row("flow_tables", Always, Elements(|on| on.cpus), |on| full(on.cpus, array(on.cpus, 8))),
    row("ring_chunk", Always, Inner, |on| {
        let (chunks, chunk) = (on.chunks(), ring_chunk(on.config.ring_size));
        Takes { entries: chunks * u64::from(RINGS_PER_CHUNK), at_load: chunk, at_capacity: chunks * chunk }
    }),
    row("rings", Always, Elements(|on| max_chunks_in_surge(on.vips())), |on| {
        full(on.chunks(), array(on.chunks(), 8))
    }),
    row("prefix_vips", Always, Elements(|on| on.vips()), |on| trie(on.vips(), 24)),
    row("vip_addresses", Always, Elements(|on| on.vips()), |on| trie(on.vips(), 24)),
    row(".data.vip_heads", Always, Bytes(|on| vip_table_bytes(on.vips())[0]), |on| {
        full(on.vips(), mappable(1u32, vip_table_bytes(on.vips())[0]))
    }),
    row(".data.vip_infos", Always, Bytes(|on| vip_table_bytes(on.vips())[1]), |on| {
        full(on.vips(), mappable(1u32, vip_table_bytes(on.vips())[1]))
    }),
    row(".data.reals", Always, Bytes(|on| on.numbers() * size_of::<types::real>() as u32), |on| {
        full(on.reals(), mappable(on.numbers(), 24))
    }),
    row("vip_counters", Always, Elements(|on| on.vips()), |on| {
        full(on.vips(), per_cpu(on.vips(), size_of::<types::vip_counters>(), on.cpus))
    }),
    row("real_counters", Always, Elements(|on| on.numbers()), |on| {
        full(on.numbers(), per_cpu(on.numbers(), size_of::<types::real_counters>(), on.cpus))
    }),
    row("vip_details", WithDetails, Elements(|on| on.vips()), |on| {
        full(on.vips(), per_cpu(on.vips(), size_of::<types::vip_details>(), on.cpus))
    }),
    row("vip_reals", WithPairs, Elements(|on| on.config.max_vip_reals), |on| {
        let value = size_of::<types::vip_real_counters>();
        full(on.config.max_vip_reals, per_cpu_hash(on.config.max_vip_reals, 8, value, on.cpus))
    }),
    row("cpus", Always, Own, |on| full(1u32, per_cpu(1u32, size_of::<types::cpu>(), on.cpus))),
    row("explanations", Always, Own, |_| full(1u32, array(1u32, 16))),
    row(".data.live", Always, Own, |_| full(1u32, mappable(1u32, size_of::<types::live>() as u32))),
    row(".data.ports", Always, Own, |_| full(PORTS, mappable(PORTS, size_of::<types::port>() as u32))),
    row("rodata", Always, Inner, |_| full(1u32, mappable(1u32, 8))),
    row("source_routes_v4", With(Features::SOURCE_ROUTING), Elements(|on| on.tries()), |on| {
        trie(on.config.max_source_routes, 8)
    }),
    row("source_routes_v6", With(Features::SOURCE_ROUTING), Elements(|on| on.tries()), |on| {
        trie(on.config.max_source_routes, 24)
    }),
    row("global_flows", With(Features::GLOBAL_FLOW_TABLE), Elements(|on| on.cpus), |on| {
        let flows = on.config.global_flow_table_size;
        full(
            on.tables() * u64::from(flows),
            array(on.cpus, 8) + on.tables() * global_table_bytes(flows),
        )
    }),
    row("global_fallback", With(Features::GLOBAL_FLOW_TABLE), Elements(|_| FALLBACK_FLOWS), |_| {
        full(FALLBACK_FLOWS, global_table_bytes(FALLBACK_FLOWS))
    }),
    row("decap_destinations", With(Features::INLINE_DECAP), Elements(|on| on.config.max_decap), |on| {
        full(on.config.max_decap, hash(on.config.max_decap, 24, 8))
    }),
    row("allowed_sources", With(Features::INLINE_DECAP), Elements(|on| prefixes(&on.config.allow_sources)), |on| {
        trie(prefixes(&on.config.allow_sources), 24)
    }),
    row("egress_sources", With(Features::INLINE_DECAP), Elements(|on| prefixes(&on.config.egress_sources)), |on| {
        trie(prefixes(&on.config.egress_sources), 24)
    }),
    row("down_reals", Always, Elements(|on| void_pairs(on.reals())), |on| Takes {
        entries: void_pairs(on.reals()).into(),
        at_load: buckets_only(void_pairs(on.reals())),
        at_capacity: hash(void_pairs(on.reals()), 8, 8),
    }),
    row("server_ids", Always, Elements(|on| max_server_id_places(on.config.max_server_ids)), |on| {
        let ids = on.config.max_server_ids;
        let at_load = array(max_server_id_places(ids), 8);
        Takes { entries: ids.into(), at_load, at_capacity: at_load + server_id_table_bytes(ids) }
    }),
    row("special_programs", Always, Own, |_| full(8u32, array(8u32, 8))),
    row("events", With(Features::INTROSPECTION), Elements(|on| on.config.event_buffer), |on| {
        full(on.config.event_buffer, ring_buffer(on.config.event_buffer))
    }),
    row(".data.hops", UsedByHops, Bytes(|on| on.hop_bytes()), |on| {
        full(on.numbers(), mappable(on.numbers(), 8))
    }),
    row("devices", UsedByHops, Own, |_| full(PORTS, device_map(PORTS))),
];

/// Every map of the health checks' object.
#[rustfmt::skip]
pub(super) const PROBE_MAPS: &[MapRow] = &[
    row("marks", Always, Elements(|on| on.reals()), |on| full(on.reals(), hash(on.reals(), 8, 24))),
    row("destinations", Always, Elements(|on| on.reals()), |on| full(on.reals(), hash(on.reals(), 24, 24))),
    row("sources", Always, Elements(|on| on.reals()), |on| full(on.reals(), hash(on.reals(), 24, 24))),
    row("ways", WithHops, Elements(|on| on.ways()), |on| full(on.ways(), hash(on.ways(), 24, 8))),
    row("probe_keys", Always, Elements(|on| on.vips()), |on| full(on.vips(), hash(on.vips(), 24, 8))),
    row("probe_counters", Always, Elements(|on| on.vips()), |on| full(on.vips(), per_cpu(on.vips(), 8, on.cpus))),
    row("probe_flows", Always, Own, |_| full(PROBE_FLOWS, hash(PROBE_FLOWS, 40, 24))),
    row("probe_totals", Always, Own, |on| full(1u32, per_cpu(1u32, size_of::<probes::probe_totals>(), on.cpus))),
    row(".data.settings", Always, Own, |_| {
        full(1u32, mappable(1u32, size_of::<probes::probe_settings>() as u32))
    }),
];

/// Room for so many prefixes: a map has at least one.
fn prefixes(list: &[Prefix]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX).max(1)
}

const fn row(
    name: &'static str,
    there: There,
    size: Size,
    takes: fn(&Machine<'_>) -> Takes,
) -> MapRow {
    MapRow {
        name,
        there,
        size,
        takes,
    }
}

impl MapRow {
    /// The row of a map of either object: all names differ.
    pub(crate) fn of(name: &str) -> Option<&'static Self> {
        MAPS.iter().chain(PROBE_MAPS).find(|row| row.name == name)
    }

    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        let rows = MAPS.iter().chain(PROBE_MAPS);
        rows.map(|row| row.name)
    }

    pub(crate) fn is_made(&self, config: &Config) -> bool {
        match self.there {
            With(features) => config.features.contains(features),
            WithHops => config.next_hops != NextHops::Gateway,
            WithDetails => config.counts_in_detail(),
            WithPairs => config.max_vip_reals != 0,
            Always | UsedByHops => true,
        }
    }

    /// Whether it takes enough memory for a line.
    pub(super) fn counts(&self, config: &Config) -> bool {
        match self.there {
            UsedByHops => config.next_hops != NextHops::Gateway,
            Always | With(_) | WithHops | WithDetails | WithPairs => self.is_made(config),
        }
    }
}

impl Machine<'_> {
    /// The size of the map of this name. Sections without a row, such as constants, have their own
    /// size.
    pub(crate) fn size_of(&self, name: &str) -> MapSize {
        match MapRow::of(name) {
            Some(row) if !row.is_made(self.config) => MapSize::Unmade,
            Some(row) => match row.size {
                Elements(elements) => MapSize::Elements(elements(self)),
                Bytes(bytes) => MapSize::Bytes(bytes(self)),
                Own | Inner => MapSize::Own,
            },
            None => MapSize::Own,
        }
    }

    /// Capacity and entries of a map.
    pub(crate) fn use_of(&self, name: &'static str, entries: u64) -> MapUse {
        let row = MapRow::of(name);
        MapUse {
            name,
            capacity: row.map_or(0, |row| (row.takes)(self).entries),
            entries,
        }
    }

    fn vips(&self) -> u32 {
        self.config.max_vips.into()
    }

    fn reals(&self) -> u32 {
        self.config.max_reals.into()
    }

    /// Real numbers: 0 means none.
    fn numbers(&self) -> u32 {
        self.reals() + 1
    }

    /// Each mark and each match may have its own real. One more: a way that changes briefly exists
    /// twice.
    fn ways(&self) -> u32 {
        MAX_WAYS * self.reals() + 1
    }

    fn tables(&self) -> u64 {
        self.config.placement.len() as u64
    }

    fn chunks(&self) -> u64 {
        max_chunks(self.vips()).into()
    }

    /// Twice the limit: routes come before those they replace go. Tries take memory only for their
    /// contents; and before Linux 6.13 a full one refuses even to change a route.
    fn tries(&self) -> u32 {
        2 * self.config.max_source_routes
    }

    fn hop_bytes(&self) -> u32 {
        let hop = size_of::<u64>() as u32;
        match self.config.next_hops {
            NextHops::Gateway => hop,
            _ => self.numbers() * hop,
        }
    }

    pub(crate) fn fallback(&self) -> FlowTableShape {
        FlowTableShape::new(self.config.flow_table, FALLBACK_FLOWS)
    }
}
