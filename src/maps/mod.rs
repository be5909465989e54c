//! The kernel's maps as the library sees them: typed, with the errno and the map's name in every
//! error, and with shared memory where a store has to be seen at once.

mod cells;
mod chunks;
mod flow_hash;
mod flows;
mod grace;
mod hops;
mod probes;
mod random;
mod rings;
mod runs;
mod server_ids;
mod source_routes;
mod sweep;
mod usage;
mod vips;
mod voids;

pub(crate) use cells::Live;
pub(crate) use cells::RealCells;
pub(crate) use cells::VipKinds;
pub(crate) use cells::real_id;
pub(crate) use chunks::RINGS_PER_CHUNK;
pub(crate) use chunks::create_chunk;
pub(crate) use chunks::ring_bytes;
pub(crate) use flow_hash::FlowHashKeys;
pub(crate) use flow_hash::mask;
pub(crate) use flows::FALLBACK_FLOWS;
pub(crate) use flows::FlowTable;
pub(crate) use flows::FlowTableShape;
pub(crate) use flows::FlowTables;
pub(crate) use grace::Moment;
pub(crate) use hops::HopCells;
pub(crate) use hops::MAX_PORTS;
pub(crate) use probes::MAX_WAYS;
pub(crate) use probes::ProbeCells;
pub(crate) use probes::ProbeWay;
pub(crate) use probes::match_key;
pub(crate) use rings::RingSlot;
pub(crate) use rings::RingStore;
pub(crate) use rings::max_chunks;
pub(crate) use rings::max_chunks_in_surge;
pub(crate) use runs::runs;
pub(crate) use server_ids::ServerIdKeys;
pub(crate) use server_ids::ServerIdStore;
pub(crate) use server_ids::max_server_id_chunks;
pub(crate) use server_ids::max_server_id_places;
pub(crate) use server_ids::server_id_table_bytes;
pub(crate) use source_routes::SourceRouteMaps;
pub(crate) use sweep::VoidReason;

pub use usage::MapUse;
pub(crate) use vips::ChainFull;
pub(crate) use vips::VipCell;
pub(crate) use vips::VipCells;
pub(crate) use vips::VipHash;
pub(crate) use vips::vip_table_bytes;
pub(crate) use voids::Lasting;
pub(crate) use voids::VoidChange;
pub(crate) use voids::VoidFlows;
pub(crate) use voids::Voiding;
pub(crate) use voids::void_pairs;

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use libbpf_rs::MapHandle;

use crate::error::Result;
use crate::kernel::kernel_error;
use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::nested::MapArray;

/// Every map of the balancer.
pub(crate) struct Maps {
    pub(crate) prefix_vips: Typed<types::vip_prefix_key, u32>,
    pub(crate) vip_cells: Arc<VipCells>,
    pub(crate) real_cells: RealCells,
    pub(crate) rings: RingStore,
    pub(crate) live: Arc<Live>,
    /// Of balancers whose reals have next hops of their own.
    pub(crate) next_hops: Option<Arc<HopCells>>,
    pub(crate) cpus: Arc<PerCpuArray<types::cpu>>,
    pub(crate) vip_counters: PerCpuArray<types::vip_counters>,
    pub(crate) real_counters: PerCpuArray<types::real_counters>,
    pub(crate) explanations: Typed<u32, types::explanation>,
    pub(crate) flows: Arc<FlowTables>,
    /// The server-id tables; which one is in force `live` says.
    pub(crate) server_ids: ServerIdStore,
    /// Which of the flow tables' entries are void.
    pub(crate) voids: VoidFlows,
    pub(crate) features: FeatureMaps,
}

/// The maps that only features have; of those that are off there are none.
#[derive(Default)]
pub(crate) struct FeatureMaps {
    pub(crate) source_routes: Option<SourceRouteMaps>,
    pub(crate) global_flows: Option<GlobalFlowMaps>,
    pub(crate) decap_destinations: Option<Typed<types::decap_destination, u32>>,
    /// The ring buffer.
    pub(crate) events: Option<MapHandle>,
}

/// The flow tables that the host application fills.
pub(crate) struct GlobalFlowMaps {
    /// By CPU number, ascending.
    pub(crate) of_cpus: Vec<(u32, Typed<types::flow_key, u32>)>,
    pub(crate) fallback: Typed<types::flow_key, u32>,
    /// The map in which the program looks for its CPU's table.
    pub(crate) outer: MapArray,
}

impl FeatureMaps {
    /// Puts the inner tables into the outer ones.
    pub(crate) fn fill(&self) -> Result<()> {
        match &self.global_flows {
            Some(global) => fill_outer("global_flows", &global.outer, &global.of_cpus),
            None => Ok(()),
        }
    }

    fn named(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let mut named = Vec::new();
        if let Some(routes) = &self.source_routes {
            named.push(("source_routes_v4", routes.v4.as_fd()));
            named.push(("source_routes_v6", routes.v6.as_fd()));
        }
        if let Some(global) = &self.global_flows {
            named.push(("global_flows", global.outer.as_fd()));
            named.push(("global_fallback", global.fallback.as_fd()));
        }
        if let Some(destinations) = &self.decap_destinations {
            named.push(("decap_destinations", destinations.as_fd()));
        }
        if let Some(events) = &self.events {
            named.push(("events", events.as_fd()));
        }
        named
    }
}

/// Puts a table for each CPU into the map that they are found by.
pub(crate) fn fill_outer(
    name: &'static str,
    outer: &MapArray,
    tables: &[(u32, impl AsFd)],
) -> Result<()> {
    let inner: Vec<_> = tables
        .iter()
        .map(|(cpu, table)| (*cpu, table.as_fd()))
        .collect();
    outer
        .set(&inner)
        .map_err(|error| kernel_error("put the tables of the CPUs into", name, error))
}

impl Maps {
    /// Every map that has a name of its own, with that name; not the inner ones.
    pub(crate) fn named(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let mut named = vec![
            ("prefix_vips", self.prefix_vips.as_fd()),
            (".data.vip_heads", self.vip_cells.heads_fd()),
            (".data.vip_infos", self.vip_cells.infos_fd()),
            (".data.reals", self.real_cells.as_fd()),
            ("rings", self.rings.outer().as_fd()),
            (".data.live", self.live.as_fd()),
            ("cpus", self.cpus.as_fd()),
            ("vip_counters", self.vip_counters.as_fd()),
            ("real_counters", self.real_counters.as_fd()),
            ("explanations", self.explanations.as_fd()),
            ("flow_tables", self.flows.outer.as_fd()),
            ("fallback_flows", self.flows.fallback.as_fd()),
            ("server_ids", self.server_ids.as_fd()),
            ("down_reals", self.voids.as_fd()),
        ];
        if let Some(hops) = &self.next_hops {
            named.extend(hops.named());
        }
        named.extend(self.features.named());
        named
    }

    /// The maps inside the others; of many that are alike, how many there are and one of them.
    pub(crate) fn inner(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let global = self.features.global_flows.iter();
        let global =
            global.flat_map(|global| global.of_cpus.iter().map(|(_, table)| table.as_fd()));
        let flows = self.flows.of_cpus.iter().map(|(_, table)| table.as_fd());
        let single = flows.chain(global).map(|map| (1, map));
        single
            .chain([self.rings.chunks()])
            .chain(self.server_ids.chunks())
    }

    /// For how many grace periods callers have waited while maps were put into others, on a kernel
    /// that waits for each.
    pub(crate) fn waits(&self) -> u64 {
        let global = self.features.global_flows.iter();
        let outer = [
            self.rings.outer(),
            &self.flows.outer,
            self.server_ids.outer(),
        ];
        let outer = outer.into_iter().chain(global.map(|global| &global.outer));
        outer.map(MapArray::waits).sum()
    }
}
