//! The kernel's maps as the library sees them: typed, with errno and map name in every error, and
//! with shared memory where packets must see a store at once.

mod addresses;
mod carry;
mod cells;
mod chunks;
mod details;
mod flow_copy;
mod flow_hash;
mod flow_sample;
mod flows;
mod grace;
mod hops;
mod ports;
mod prefixes;
mod probes;
mod random;
mod rings;
mod runs;
mod server_ids;
mod settler;
mod source_routes;
mod stations;
mod sweep;
mod task;
mod usage;
mod vips;
mod voids;

pub(crate) use addresses::VipAddresses;
pub(crate) use carry::Carrier;
pub(crate) use carry::Counted;
pub(crate) use carry::no_carrier;
pub(crate) use cells::Live;
pub(crate) use cells::LivePointer;
pub(crate) use cells::RealCells;
pub(crate) use cells::VipKinds;
pub(crate) use cells::real_id;
pub(crate) use chunks::MappedChunk;
pub(crate) use chunks::RINGS_PER_CHUNK;
pub(crate) use chunks::create_chunk;
pub(crate) use chunks::planes_at;
pub(crate) use chunks::ring_bytes;
pub(crate) use details::Details;
pub(crate) use flow_copy::Reader;
pub(crate) use flow_hash::FlowHashKeys;
pub(crate) use flow_hash::mask;
pub(crate) use flows::FALLBACK_FLOWS;
pub(crate) use flows::FlowTable;
pub(crate) use flows::FlowTableShape;
pub(crate) use flows::FlowTables;
pub(crate) use grace::GracePeriods;
pub(crate) use grace::Moment;
pub(crate) use hops::HopCells;
pub(crate) use prefixes::PrefixTrie;
pub(crate) use probes::MAX_WAYS;
pub(crate) use probes::ProbeCells;
pub(crate) use probes::ProbeWay;
pub(crate) use probes::match_key;
pub(crate) use rings::PlaneSlots;
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
pub(crate) use settler::Pace;
pub(crate) use settler::Settler;
pub(crate) use settler::Watched;
pub(crate) use source_routes::SourceRouteMaps;
pub(crate) use sweep::VoidReason;

pub use usage::MapUse;
pub(crate) use vips::ChainFull;
pub(crate) use vips::TABLES_DECIDE;
pub(crate) use vips::VipCell;
pub(crate) use vips::VipCells;
pub(crate) use vips::VipHash;
pub(crate) use vips::vip_table_bytes;
pub(crate) use voids::Entries;
pub(crate) use voids::Lasting;
pub(crate) use voids::VoidChange;
pub(crate) use voids::VoidFlows;
pub(crate) use voids::Voiding;
pub(crate) use voids::void_pairs;

use std::os::fd::AsFd;

use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::nested::MapArray;

/// Puts a table for each CPU into the map where packets find them.
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
