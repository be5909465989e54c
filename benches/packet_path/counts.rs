//! The balancer's counters during a timed run, and their expected values: a run whose packets did
//! not take the timed path is no measurement.

use katran::Katran;

use crate::traffic::Expected;
use crate::traffic::Slots;
use crate::traffic::Traffic;

/// A set of a set-associative table may overflow, mostly while the table grows; then its flows miss
/// in turn. At most one packet in this many may.
const PACKETS_A_MISS: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    sent: u64,
    passed: u64,
    dropped: u64,
    /// Packets in settled slots, which skip the flow table.
    settled: u64,
    /// Packets that look at the flow table.
    asked: u64,
    by_base: u64,
    by_entry: u64,
    new: u64,
    /// Packets that did not reach the CPU's own flow table.
    without_table: u64,
}

impl Counts {
    pub(crate) fn of(katran: &Katran) -> Self {
        let totals = katran.stats().totals().unwrap();
        let flow_table = katran.stats().flow_table().unwrap();
        Self {
            sent: totals.tx.packets,
            passed: totals.pass.packets,
            dropped: totals.drop.packets,
            settled: flow_table.settled,
            asked: flow_table.packets,
            by_base: flow_table.by_base,
            by_entry: flow_table.by_entry,
            new: flow_table.misses,
            without_table: flow_table.fallback,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            passed: self.passed - before.passed,
            dropped: self.dropped - before.dropped,
            settled: self.settled - before.settled,
            asked: self.asked - before.asked,
            by_base: self.by_base - before.by_base,
            by_entry: self.by_entry - before.by_entry,
            new: self.new - before.new,
            without_table: self.without_table - before.without_table,
        }
    }

    /// Panics unless `packets` packets have since gone the traffic's way, in slots like these, with
    /// `unknown` flows among them.
    pub(crate) fn check(
        self,
        katran: &Katran,
        traffic: &Traffic,
        slots: Slots,
        packets: u32,
        unknown: u32,
    ) {
        let counted = Self::of(katran).since(self);
        let most = packets.into();
        let new = match (slots, traffic.expected) {
            (_, Expected::Passed | Expected::Named) | (Slots::Settled, _) => 0..=0,
            // They may be older than the change for all the program knows, so they need no entries.
            (Slots::Unsettled, Expected::Known) if traffic.is_tcp() => 0..=0,
            (_, Expected::Known) => {
                let unknown = u64::from(unknown);
                unknown..=unknown + u64::from(packets) / PACKETS_A_MISS
            }
            (_, Expected::New) => most..=most,
            (_, Expected::Sent) => 0..=most,
        };
        let name = traffic.name;
        assert!(new.contains(&counted.new), "{name}: {counted:?}, {new:?}");
        let expected = Self::expected(traffic, slots, most, counted.new);
        assert_eq!(counted, expected, "{name}");
    }

    /// With this many new flows among them.
    fn expected(traffic: &Traffic, slots: Slots, packets: u64, new: u64) -> Self {
        let nothing = Self {
            sent: 0,
            passed: 0,
            dropped: 0,
            settled: 0,
            asked: 0,
            by_base: 0,
            by_entry: 0,
            new,
            without_table: 0,
        };
        if traffic.expected == Expected::Passed {
            return Self {
                passed: packets,
                ..nothing
            };
        }
        let sent = Self {
            sent: packets,
            asked: packets,
            ..nothing
        };
        match slots {
            Slots::NotAsked => sent,
            Slots::Settled => Self {
                settled: packets,
                asked: 0,
                ..sent
            },
            // New connections go to the ring's real, datagrams to the base, and both are
            // remembered.
            Slots::Unsettled if traffic.is_tcp() && traffic.expected == Expected::Known => Self {
                by_base: packets,
                ..sent
            },
            Slots::Unsettled => Self {
                by_base: if traffic.is_tcp() { 0 } else { new },
                by_entry: packets - new,
                ..sent
            },
        }
    }
}
