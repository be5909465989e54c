//! The kernel's maps as the library sees them: typed, with the errno and the map's name in every
//! error, and with shared memory where a store has to be seen at once.

mod cells;
mod chunks;
mod flow_hash;
mod flows;
mod grace;
mod kernel;
mod random;
mod rings;
mod vips;

pub(crate) use cells::Live;
pub(crate) use cells::RealCells;
pub(crate) use cells::VipKinds;
pub(crate) use cells::real_id;
pub(crate) use chunks::RINGS_PER_CHUNK;
pub(crate) use chunks::create_chunk;
pub(crate) use chunks::ring_bytes;
pub(crate) use flow_hash::FlowHashKeys;
pub(crate) use flow_hash::mask;
pub(crate) use flows::FlowTable;
pub(crate) use flows::FlowTableShape;
pub(crate) use flows::FlowTables;
pub(crate) use grace::Moment;
pub(crate) use kernel::KernelCalls;
pub(crate) use kernel::kernel_error;
pub(crate) use rings::RingSlot;
pub(crate) use rings::RingStore;
pub(crate) use rings::max_chunks;
pub(crate) use rings::max_chunks_in_surge;

pub(crate) use vips::ChainFull;
pub(crate) use vips::VipCell;
pub(crate) use vips::VipCells;
pub(crate) use vips::VipHash;
pub(crate) use vips::vip_table_bytes;

use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;

/// Every map of the balancer.
pub(crate) struct Maps {
    pub(crate) prefix_vips: Typed<types::vip_prefix_key, u32>,
    pub(crate) vip_cells: VipCells,
    pub(crate) real_cells: RealCells,
    pub(crate) rings: RingStore,
    pub(crate) live: Live,
    pub(crate) counters: PerCpuArray<types::counters>,
    pub(crate) vip_counters: PerCpuArray<types::vip_counters>,
    pub(crate) real_counters: PerCpuArray<types::real_counters>,
    pub(crate) explanations: Typed<u32, types::explanation>,
    pub(crate) flows: FlowTables,
}
