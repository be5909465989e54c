//! The table of maps. A row gives a map's name, the settings with which it is there, its size as it is
//! set before load, and what it takes: the loader and the memory estimate go by it.
//!
//! `there` is `Always`, or `With` features: a map of features that are off is not made. `size` is
//! `Own` for a map whose size stands in `bpf/maps.h`, `Elements`, or `Bytes` of a data section;
//! `Inner` is no map of the object, but the tables inside one. `takes` says how many elements all
//! maps of the name can have, their bytes at load, and when they are full.

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
use super::accounting::ring_buffer;
use super::accounting::ring_chunk;
use super::accounting::trie;
use crate::maps::FALLBACK_FLOWS;
use crate::maps::FlowTableShape;
use crate::maps::RINGS_PER_CHUNK;
use crate::maps::max_chunks;
use crate::maps::max_chunks_in_surge;
use crate::maps::max_server_id_places;
use crate::maps::server_id_table_bytes;
use crate::maps::vip_table_bytes;
use crate::maps::void_pairs;
use crate::skel::katran::types;
use crate::types::NextHops;

const PORTS: u32 = types::hop_constant::PORTS.0;

/// A balancer's settings and the machine's possible CPUs, in the words of the rows.
pub(crate) struct Machine<'a> {
    pub(crate) config: &'a Config,
    pub(crate) cpus: u32,
}

/// One map, or all maps of one kind.
pub(crate) struct MapRow {
    pub(crate) name: &'static str,
    there: There,
    pub(crate) size: Size,
    pub(super) takes: fn(&Machine<'_>) -> Takes,
}

enum There {
    Always,
    With(Features),
    /// It is always there, but takes something only with next hops of single reals.
    NextHops,
}

/// How a map gets its size.
pub(crate) enum Size {
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
use There::With;

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
    row("special_programs", Always, Own, |_| full(6u32, array(6u32, 8))),
    row("events", With(Features::INTROSPECTION), Elements(|on| on.config.event_buffer), |on| {
        full(on.config.event_buffer, ring_buffer(on.config.event_buffer))
    }),
    row(".data.hops", There::NextHops, Bytes(|on| on.hop_bytes()), |on| {
        full(on.numbers(), mappable(on.numbers(), 8))
    }),
    row("devices", There::NextHops, Own, |_| full(PORTS, device_map(PORTS))),
];

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
    /// The row of a map of the object.
    pub(crate) fn of(name: &str) -> Option<&'static Self> {
        MAPS.iter().find(|row| row.name == name)
    }

    /// Whether the map is made with these settings.
    pub(crate) fn is_made(&self, config: &Config) -> bool {
        match self.there {
            There::With(features) => config.features.contains(features),
            There::Always | There::NextHops => true,
        }
    }

    /// Elements that all maps of the name can have.
    pub(crate) fn capacity(&self, machine: &Machine<'_>) -> u64 {
        (self.takes)(machine).entries
    }

    /// Whether it takes memory that is worth a line.
    pub(super) fn counts(&self, config: &Config) -> bool {
        match self.there {
            There::NextHops => config.next_hops != NextHops::Gateway,
            There::Always | There::With(_) => self.is_made(config),
        }
    }
}

impl Machine<'_> {
    fn vips(&self) -> u32 {
        self.config.max_vips.into()
    }

    fn reals(&self) -> u32 {
        self.config.max_reals.into()
    }

    /// Numbers of reals: 0 is none's.
    fn numbers(&self) -> u32 {
        self.reals() + 1
    }

    fn tables(&self) -> u64 {
        self.config.placement.len() as u64
    }

    fn chunks(&self) -> u64 {
        max_chunks(self.vips()).into()
    }

    /// Twice the limit: routes that take the places of others come before those go. Tries take memory
    /// only for what is in them; and before Linux 6.13 a full one refuses even to change a route.
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
