//! A balancer's program on a row's packets: timed, with its counters and frames checked. The same
//! code times Katran's program and this crate's.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;

use katran::Katran;
use katran::flows::Verdict;
use katran_yardstick::Measured;
use katran_yardstick::Peer;
use katran_yardstick::PeerCounts;
use katran_yardstick::Yardstick;

use crate::common::GATEWAY;
use crate::counts::Counts;
use crate::traffic::Expected;
use crate::traffic::Slots;
use crate::traffic::Traffic;

const ETHERNET: usize = 14;

/// This crate's, and what slots its packets fall on.
#[derive(Clone, Copy)]
pub(crate) struct Ours<'a> {
    pub(crate) katran: &'a Katran,
    pub(crate) slots: Slots,
}

#[derive(Clone, Copy)]
pub(crate) enum Balancer<'a> {
    Ours(Ours<'a>),
    Katrans(&'a Peer),
}

impl<'a> Balancer<'a> {
    fn program(self) -> BorrowedFd<'a> {
        match self {
            Self::Ours(ours) => ours.katran.program_fd(),
            Self::Katrans(peer) => peer.program_fd(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ours(_) => "this crate",
            Self::Katrans(_) => "Katran",
        }
    }

    /// Runs the program on `packets` packets, with `unknown` new flows among them, and panics
    /// unless all went the traffic's way.
    pub(crate) fn run(
        self,
        stick: &Yardstick,
        traffic: &Traffic,
        packets: u32,
        unknown: u32,
    ) -> Measured {
        self.counted(traffic, packets, unknown, |program| {
            let measured = stick.run(program, packets).unwrap();
            let (who, name) = (self.name(), traffic.name);
            assert_eq!(measured.action, traffic.action(), "{who}: {name}");
            measured
        })
    }

    /// Runs `send` and panics unless the program has counted `packets` packets of the traffic
    /// meanwhile, with `unknown` new flows among them.
    pub(crate) fn counted<T>(
        self,
        traffic: &Traffic,
        packets: u32,
        unknown: u32,
        send: impl FnOnce(BorrowedFd<'a>) -> T,
    ) -> T {
        match self {
            Self::Ours(Ours { katran, slots }) => {
                let counts = Counts::of(katran);
                let sent = send(self.program());
                counts.check(katran, traffic, slots, packets, unknown);
                sent
            }
            Self::Katrans(peer) => {
                let before = peer.counts().unwrap();
                let sent = send(self.program());
                check_counts(peer, before, traffic, packets);
                sent
            }
        }
    }

    /// Checks that the frame for this flow goes through the gateway to a real with the original
    /// packet inside; a passed packet must be unchanged.
    pub(crate) fn check_frame(
        self,
        stick: &Yardstick,
        traffic: &Traffic,
        flow: u32,
        katran: &Katran,
    ) {
        let frame = stick.frame(flow);
        let (action, out) = stick.run_flow(self.program(), flow).unwrap();
        let what = format!("{}: {}, flow {flow}", self.name(), traffic.name);
        assert_eq!(action, traffic.action(), "{what}");
        if let Self::Ours(Ours { katran, .. }) = self {
            let simulation = katran.simulate(&frame).unwrap();
            let verdict = match traffic.expected {
                Expected::Passed => Verdict::Pass,
                _ => Verdict::Tx,
            };
            assert_eq!(simulation.verdict, verdict, "{what}");
            assert_eq!(out, simulation.frame, "{what}");
        }
        if traffic.expected == Expected::Passed {
            assert_eq!(out, frame, "{what}");
            return;
        }
        assert_eq!(out[..6], GATEWAY, "{what}: the gateway's MAC address");
        let inner = ETHERNET + traffic.outer_bytes();
        assert_eq!(out[inner..], frame[ETHERNET..], "{what}: the packet inside");
        let real = outer_destination(&out);
        let known = katran.real_index(real);
        assert!(known.is_some(), "{what}: {real} is not a real");
    }
}

/// Panics unless Katran's program has since counted `packets` packets to VIPs, each sent to a real;
/// none for traffic that is passed.
fn check_counts(peer: &Peer, before: PeerCounts, traffic: &Traffic, packets: u32) {
    let after = peer.counts().unwrap();
    let counted = [
        after.to_vips - before.to_vips,
        after.to_reals - before.to_reals,
    ];
    let expected = match traffic.expected {
        Expected::Passed => 0,
        _ => u64::from(packets),
    };
    assert_eq!(
        counted, [expected; 2],
        "Katran: {}: packets to VIPs, to reals",
        traffic.name
    );
}

fn outer_destination(frame: &[u8]) -> IpAddr {
    let v6 = frame[12..ETHERNET] == [0x86, 0xdd];
    if v6 {
        let octets: [u8; 16] = frame[ETHERNET + 24..][..16].try_into().unwrap();
        Ipv6Addr::from(octets).into()
    } else {
        let octets: [u8; 4] = frame[ETHERNET + 16..][..4].try_into().unwrap();
        Ipv4Addr::from(octets).into()
    }
}
