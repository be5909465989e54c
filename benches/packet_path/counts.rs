//! What the balancer counts while it is timed, and what it should: a run whose packets did not go
//! the way that is being timed is no measurement.

use katran::Katran;

use crate::traffic::Expected;
use crate::traffic::Slots;
use crate::traffic::Traffic;

/// In a table of sets a set may overflow, most of all while the table grows, and the flows of that
/// set, one packet after another in turn, then miss: at most one packet in so many may.
const PACKETS_A_MISS: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    sent: u64,
    passed: u64,
    dropped: u64,
    /// Packets in settled slots, which ask no flow table.
    settled: u64,
    /// Packets that ask it.
    asked: u64,
    by_base: u64,
    by_entry: u64,
    new: u64,
    /// Packets that the CPU's own flow table did not see.
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

    /// Panics unless `packets` have gone the traffic's way since, in such slots, with `unknown` flows among
    /// them.
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
            // They are older than the change, for all that is known of them, and need no entries.
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

    /// With so many new flows among them.
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
            // New connections go where the ring leads, datagrams to the base, and are remembered.
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
