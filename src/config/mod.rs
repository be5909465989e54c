//! What a balancer is loaded with: settings, their ranges, and the machine they are checked
//! against.
//!
//! A [`Builder`] takes anything; its `validate` turns it into a `Config`, which holds only what
//! can be loaded. Nothing here needs BPF.

mod builder;
mod cpus;
mod features;
mod memory;
mod validate;

pub use builder::Builder;
pub(crate) use cpus::Topology;
pub(crate) use cpus::parse_list;
pub use features::Features;
pub use memory::MapMemory;
pub use memory::MemoryEstimate;
pub(crate) use memory::estimate;
pub(crate) use memory::flow_table_bytes;
pub(crate) use memory::global_table_bytes;
pub(crate) use validate::Config;
pub(crate) use validate::ForwardingCpu;
pub(crate) use validate::check_gateway;
pub(crate) use validate::check_gateway_mac;
pub(crate) use validate::check_source;
