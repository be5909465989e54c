//! Counters, sizes and memory of a balancer.
//!
//! [`Counters`] is a snapshot of all counters, read by
//! [`Katran::counters`](crate::Katran::counters); [`Stats`] reads the parts one by one. Values only
//! grow until the next load, unless a field says otherwise. The feature `serde` makes them
//! serialisable.

pub use crate::config::MapMemory;
pub use crate::config::MemoryEstimate;
pub use crate::counters::Count;
pub use crate::counters::Counters;
pub use crate::counters::CpuCounters;
pub use crate::counters::DropReason;
pub use crate::counters::DropReasons;
pub use crate::counters::EncapFailures;
pub use crate::counters::EventCounters;
pub use crate::counters::FlowTableCounters;
pub use crate::counters::GlobalFlowCounters;
pub use crate::counters::HealthcheckCounters;
pub use crate::counters::IcmpCounters;
pub use crate::counters::InlineDecapCounters;
pub use crate::counters::InterfaceCounters;
pub use crate::counters::LibraryCounters;
pub use crate::counters::Metric;
pub use crate::counters::MetricKind;
pub use crate::counters::NextHopCounts;
pub use crate::counters::OrphanCounters;
pub use crate::counters::QuicCounters;
pub use crate::counters::RealCounters;
pub use crate::counters::RingDrops;
pub use crate::counters::Sample;
pub use crate::counters::SlotStats;
pub use crate::counters::SourceRoutingCounters;
pub use crate::counters::StableUdpCounters;
pub use crate::counters::TcpServerIdCounters;
pub use crate::counters::Totals;
pub use crate::counters::UdpFlowMigrationCounters;
pub use crate::counters::VipCounters;
pub use crate::counters::VipDetails;
pub use crate::counters::VipRealCounters;
pub use crate::decap::DecapCounters;
pub use crate::katran::Stats;
pub use crate::katran::StatsMut;
pub use crate::maps::MapUse;
pub use crate::server_id_option::ServerIdOptionCounters;
