//! The rows of the table: which traffic, what the balancer must make of it, and what Katran's own
//! program took for it.

use crate::common::ACK;
use crate::common::NO_FLOOD_GUARD;
use crate::common::OTHER_PORT;
use crate::common::PORT;
use crate::common::SYN;
use crate::common::TCP;
use crate::common::UDP;
use crate::common::frame;

pub(crate) const TX: u32 = 3;
pub(crate) const PASS: u32 = 2;
/// As many as the wrapper can tell apart: more than all packets of a row, so each is a new flow.
pub(crate) const UNSEEN: u32 = 1 << 30;

/// Nanoseconds a packet that Katran's own program took with so many flows: from, to. Measured in
/// the same way with kernel LRU tables of 4 million entries, on another virtual machine with two
/// CPUs.
type KatranFigures = &'static [(u32, [f64; 2])];

const KATRAN_TCP_V4: KatranFigures = &[
    (1, [109.0, 109.0]),
    (1 << 10, [116.0, 116.0]),
    (1 << 16, [225.0, 281.0]),
    (1 << 20, [390.0, 420.0]),
];
/// Not dearer with more flows: its flood guard acted, too.
const KATRAN_SYN: KatranFigures = &[
    (1, [130.0, 130.0]),
    (1 << 10, [140.0, 140.0]),
    (1 << 16, [140.0, 140.0]),
    (1 << 20, [150.0, 150.0]),
];
const KATRAN_UDP: KatranFigures = &[
    (1, [147.0, 147.0]),
    (1 << 10, [147.0, 147.0]),
    (1 << 16, [262.0, 262.0]),
    (1 << 20, [390.0, 390.0]),
];
const KATRAN_TCP_V6: KatranFigures = &[
    (1, [109.0, 109.0]),
    (1 << 10, [127.0, 127.0]),
    (1 << 16, [215.0, 215.0]),
    (1 << 20, [430.0, 430.0]),
];
const KATRAN_PASSED: KatranFigures = &[(1, [48.0, 48.0])];

/// What the balancer makes of each packet.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Expected {
    /// Sent to a real that the flow table remembers, once the flow is known.
    Known,
    /// Sent to a real as a new flow each time.
    New,
    Passed,
}

pub(crate) struct Traffic {
    pub(crate) name: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) expected: Expected,
    /// New flows in a second, from which on they are not remembered; `None`: the default.
    pub(crate) flood_threshold: Option<u32>,
    /// How many flows there are, instead of one number after the other.
    pub(crate) only: Option<u32>,
    katran: KatranFigures,
}

impl Traffic {
    fn new(name: &'static str, expected: Expected, frame: Vec<u8>) -> Self {
        Self {
            name,
            frame,
            expected,
            flood_threshold: Some(NO_FLOOD_GUARD),
            only: None,
            katran: &[],
        }
    }

    /// New flows come faster than the flood guard allows by default, as when Katran was measured:
    /// a few percent of them are still remembered.
    fn flood(mut self) -> Self {
        self.flood_threshold = None;
        self
    }

    /// Hardly any new flow is remembered.
    fn full_flood(mut self) -> Self {
        self.flood_threshold = Some(1);
        self
    }

    /// No flow comes twice.
    fn unseen(mut self) -> Self {
        self.only = Some(UNSEEN);
        self
    }

    fn katran(mut self, figures: KatranFigures) -> Self {
        self.katran = figures;
        self
    }

    /// The XDP action of each packet.
    pub(crate) fn action(&self) -> u32 {
        match self.expected {
            Expected::Passed => PASS,
            Expected::Known | Expected::New => TX,
        }
    }

    pub(crate) fn katran_ns(&self, flows: u32) -> Option<[f64; 2]> {
        let figure = self.katran.iter().find(|(of, _)| *of == flows);
        figure.map(|(_, range)| *range)
    }
}

pub(crate) fn traffics() -> Vec<Traffic> {
    let known = |name, frame| Traffic::new(name, Expected::Known, frame);
    let new = |name, frame| Traffic::new(name, Expected::New, frame);
    let [syn, syn_v6] = [false, true].map(|v6| frame(v6, TCP, SYN, PORT));
    let [udp, udp_v6] = [false, true].map(|v6| frame(v6, UDP, 0, PORT));
    let [ack, ack_v6] = [false, true].map(|v6| frame(v6, TCP, ACK, PORT));
    let elsewhere = frame(false, TCP, ACK, OTHER_PORT);
    vec![
        known("TCP/IPv4 established", ack).katran(KATRAN_TCP_V4),
        new("TCP/IPv4 SYN, flood guard acts", syn.clone())
            .flood()
            .katran(KATRAN_SYN),
        new("TCP/IPv4 SYN, all remembered", syn),
        known("UDP/IPv4 established", udp.clone()).katran(KATRAN_UDP),
        new("UDP/IPv4 new, flood guard acts", udp.clone())
            .full_flood()
            .unseen(),
        new("UDP/IPv4 new, all remembered", udp).unseen(),
        known("TCP/IPv6 established", ack_v6).katran(KATRAN_TCP_V6),
        new("TCP/IPv6 SYN, flood guard acts", syn_v6.clone()).flood(),
        new("TCP/IPv6 SYN, all remembered", syn_v6),
        known("UDP/IPv6 established", udp_v6.clone()),
        new("UDP/IPv6 new, flood guard acts", udp_v6.clone())
            .full_flood()
            .unseen(),
        new("UDP/IPv6 new, all remembered", udp_v6).unseen(),
        Traffic::new("not a VIP: passed on", Expected::Passed, elsewhere).katran(KATRAN_PASSED),
    ]
}
