//! Flows, the table that remembers where they went, and the guard that keeps a flood out of it.
//!
//! The table of this model forgets nothing by itself; the real ones evict. So the two agree while a
//! table has room, which is what they promise; what goes first when it has none is another test's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::RealId;
use crate::Time;
use crate::VipNumber;

/// What belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The client's address.
    pub source: IpAddr,
    /// The VIP's.
    pub destination: IpAddr,
    /// The client's port.
    pub source_port: u16,
    /// The VIP's.
    pub destination_port: u16,
    /// TCP or UDP, by number.
    pub protocol: u8,
}

/// What the table remembers of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it went.
    pub real: RealId,
    /// When it was used last.
    pub used: Time,
    /// An id in a packet has made it.
    pub by_id: bool,
    /// Its client has ended the connection, so it makes room early, unless packets come long after that.
    pub ended: bool,
}

/// Entries by VIP and flow, so that no VIP finds those of an earlier one with its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowTable(pub BTreeMap<(VipNumber, Flow), Entry>);

/// One window of the flood guard: a second.
const WINDOW: Time = 1000;

/// The flood guard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flood {
    /// When the window began; none: no flow has been counted.
    pub start: Option<Time>,
    /// New flows in it.
    pub new_flows: u64,
}

impl Flood {
    /// Counts a new flow. Whether there are too many of them, so that this one is not remembered.
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
