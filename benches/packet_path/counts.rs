//! What the balancer counts while it is timed, and what it should: a run whose packets did not go
//! the way that is being timed is no measurement.

use katran::Katran;

use crate::traffic::Expected;
use crate::traffic::Traffic;

/// In a table of sets a set may overflow, most of all while the table grows, and the flows of that
/// set, one packet after another in turn, then miss: at most one packet in so many may.
const PACKETS_A_MISS: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    sent: u64,
    passed: u64,
    dropped: u64,
    of_vips: u64,
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
            of_vips: flow_table.packets,
            new: flow_table.misses,
            without_table: flow_table.fallback,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            passed: self.passed - before.passed,
            dropped: self.dropped - before.dropped,
            of_vips: self.of_vips - before.of_vips,
            new: self.new - before.new,
            without_table: self.without_table - before.without_table,
        }
    }

    /// Panics unless `packets` have gone the traffic's way since, with `unknown` flows among them.
    pub(crate) fn check(self, katran: &Katran, traffic: &Traffic, packets: u32, unknown: u32) {
        let counted = Self::of(katran).since(self);
        let mut expected = Self::expected(traffic.expected, packets, unknown);
        let misses = expected.new..=expected.new + u64::from(packets) / PACKETS_A_MISS;
        if traffic.expected == Expected::Known && misses.contains(&counted.new) {
            expected.new = counted.new;
        }
        if traffic.expected == Expected::Sent && counted.new <= packets.into() {
            expected.new = counted.new;
        }
        assert_eq!(counted, expected, "{}", traffic.name);
    }

    fn expected(way: Expected, packets: u32, unknown: u32) -> Self {
        let (sent, passed, new) = match way {
            Expected::Known => (packets, 0, unknown),
            Expected::New | Expected::Sent => (packets, 0, packets),
            Expected::Named => (packets, 0, 0),
            Expected::Passed => (0, packets, 0),
        };
        Self {
            sent: sent.into(),
            passed: passed.into(),
            dropped: 0,
            of_vips: sent.into(),
            new: new.into(),
            without_table: 0,
        }
    }
}
