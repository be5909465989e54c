//! Flows, the table that remembers them, and the guard that keeps a flood out of it.
//!
//! This model's table forgets nothing; the real ones evict. So the two agree while a table has
//! room; other tests cover what is evicted without.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::RealId;
use crate::Time;
use crate::VipNumber;

/// A flow's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The client's address.
    pub source: IpAddr,
    /// The VIP's address.
    pub destination: IpAddr,
    /// The client's port.
    pub source_port: u16,
    /// The VIP's port.
    pub destination_port: u16,
    /// TCP or UDP, by number.
    pub protocol: u8,
}

/// An entry of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The flow's real.
    pub real: RealId,
    /// When it was last used.
    pub used: Time,
    /// Whether an id in a packet made it.
    pub by_id: bool,
    /// The client has ended the connection, so the entry is evicted early, unless packets come long
    /// after that.
    pub ended: bool,
}

/// Entries by VIP and flow, so that no VIP finds those of an earlier VIP with its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowTable(pub BTreeMap<(VipNumber, Flow), Entry>);

/// The flood guard's window: a second.
const WINDOW: Time = 1000;

/// The flood guard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flood {
    /// When the window began; none: no flow was counted yet.
    pub start: Option<Time>,
    /// New flows in it.
    pub new_flows: u64,
}

impl Flood {
    /// Counts a new flow; returns whether there are too many to remember this one.
    pub(crate) fn count(&mut self, now: Time, threshold: u64) -> bool {
        if !self.is_open(now) {
            self.start = Some(now);
            self.new_flows = 0;
        }
        self.new_flows += 1;
        self.new_flows > threshold
    }

    /// Whether the guard acts now.
    pub(crate) fn acts(&self, now: Time, threshold: u64) -> bool {
        self.is_open(now) && self.new_flows > threshold
    }

    fn is_open(&self, now: Time) -> bool {
        self.start.is_some_and(|start| now - start < WINDOW)
    }
}
