//! Counters and sums: what a balancer has done, what it holds, and what its maps take.
//!
//! [`Counters`] is all of it at one moment, as [`Katran::counters`](crate::Katran::counters) reads it; its parts
//! can be read one by one. Values only grow until a new load, unless a field says otherwise. With the feature
//! `serde` they can be serialised.

pub use crate::config::MapMemory;
pub use crate::config::MemoryEstimate;
pub use crate::decap::DecapCounters;
pub use crate::healthcheck::HealthcheckCounters;
pub use crate::katran::Count;
pub use crate::katran::Counters;
pub use crate::katran::CpuCounters;
pub use crate::katran::DropReason;
pub use crate::katran::DropReasons;
pub use crate::katran::EncapFailures;
pub use crate::katran::EventCounters;
pub use crate::katran::FlowTableCounters;
pub use crate::katran::GlobalFlowCounters;
pub use crate::katran::IcmpCounters;
pub use crate::katran::InlineDecapCounters;
pub use crate::katran::LibraryCounters;
pub use crate::katran::QuicCounters;
pub use crate::katran::RealCounters;
pub use crate::katran::RingDrops;
pub use crate::katran::SourceRoutingCounters;
pub use crate::katran::StableUdpCounters;
pub use crate::katran::TcpServerIdCounters;
pub use crate::katran::Totals;
pub use crate::katran::UdpFlowMigrationCounters;
pub use crate::katran::VipCounters;
pub use crate::maps::MapUse;
pub use crate::server_id_option::ServerIdOptionCounters;
