//! The kernel's maps as the library sees them: typed, with the errno and the map's name in every
//! error, and with shared memory where a store has to be seen at once.

mod cells;
mod chunks;
mod grace;
mod kernel;
mod rings;

pub(crate) use cells::Live;
pub(crate) use cells::RealCells;
pub(crate) use cells::VipCell;
pub(crate) use cells::VipCells;
pub(crate) use cells::VipKinds;
pub(crate) use chunks::RINGS_PER_CHUNK;
pub(crate) use chunks::create_chunk;
pub(crate) use chunks::ring_bytes;
pub(crate) use grace::Moment;
pub(crate) use kernel::KernelCalls;
pub(crate) use kernel::kernel_error;
pub(crate) use rings::RingSlot;
pub(crate) use rings::RingStore;
pub(crate) use rings::max_chunks;
pub(crate) use rings::max_chunks_in_surge;

use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;

/// The flow table of one forwarding CPU.
pub(crate) struct FlowTable {
    pub(crate) cpu: u32,
    pub(crate) entries: u32,
    pub(crate) map: Typed<types::flow_key, types::flow_entry>,
}

/// Every map of the balancer.
pub(crate) struct Maps {
    pub(crate) vips: Typed<types::vip_key, u32>,
    pub(crate) prefix_vips: Typed<types::vip_prefix_key, u32>,
    pub(crate) vip_cells: VipCells,
    pub(crate) real_cells: RealCells,
    pub(crate) rings: RingStore,
    pub(crate) live: Live,
    pub(crate) counters: PerCpuArray<types::counters>,
    pub(crate) vip_counters: PerCpuArray<types::vip_counters>,
    pub(crate) real_counters: PerCpuArray<types::real_counters>,
    pub(crate) explanations: Typed<u32, types::explanation>,
    pub(crate) flow_tables: Vec<FlowTable>,
    pub(crate) flow_tables_outer: std::os::fd::OwnedFd,
    pub(crate) fallback_flows: Typed<types::flow_key, types::flow_entry>,
}
