//! A balancer's settings, their ranges, and the machine they are checked against.
//!
//! The settings are the rows of `settings.rs`. A [`Builder`] takes anything; its `validate` turns
//! it into a `Config`, which holds only what can be loaded. Nothing here needs BPF.

// First, so that its method blocks come first in the documentation of `Builder`.
mod settings;

mod accounting;
mod constants;
mod cpus;
mod features;
mod keys;
#[cfg(test)]
mod live_tests;
mod map_table;
mod memory;
mod pin;
mod ranges;
#[cfg(feature = "serde")]
mod read;
mod stored;
mod table;
mod validate;

pub(crate) use accounting::flow_table_bytes;
pub(crate) use accounting::global_table_bytes;
pub(crate) use constants::moment_shift;
pub(crate) use constants::prefix_v4;
pub(crate) use constants::prefix_v6;
pub(crate) use constants::ticks;
pub(crate) use cpus::ForwardingCpu;
pub(crate) use cpus::Topology;
pub(crate) use cpus::parse_list;
pub use features::Features;
#[cfg(feature = "serde")]
pub(crate) use keys::Set;
#[cfg(feature = "serde")]
pub(crate) use keys::Text;
pub(crate) use map_table::Machine;
pub(crate) use map_table::MapRow;
pub use memory::MapMemory;
pub use memory::MemoryEstimate;
pub(crate) use memory::estimate;
pub(crate) use ranges::check_gateway;
pub(crate) use ranges::check_gateway_mac;
pub(crate) use ranges::check_source;
#[cfg(feature = "serde")]
pub(crate) use read::Fault;
#[cfg(feature = "serde")]
pub(crate) use read::Read;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use read::Time;
#[cfg(feature = "serde")]
pub(crate) use read::Value;
#[cfg(feature = "serde")]
pub(crate) use read::Wrong;
#[cfg(feature = "serde")]
pub(crate) use read::did_you_mean;
#[cfg(feature = "serde")]
pub(crate) use read::no_address;
#[cfg(feature = "serde")]
pub(crate) use read::reason;
pub(crate) use settings::BalancerKeys;
pub use settings::BalancerState;
pub use settings::Builder;
pub(crate) use settings::Config;
pub(crate) use settings::LiveChange;
pub(crate) use settings::LiveSetting;
#[cfg(all(test, feature = "serde"))]
pub(crate) use settings::ROWS;
#[cfg(feature = "serde")]
pub(crate) use settings::SETTING_KEYS;
