//! Tunnels that end at the balancer: what is balanced again, sent back out, passed to the host, or
//! left alone, byte for byte; and the counters.

use katran::Builder;
use katran::DecapMode;
use katran::Error;
use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Simulation;
use katran::flows::Verdict;
use katran::stats::DropReason;
use katran::stats::InlineDecapCounters;

use crate::common::at;
use crate::common::builder;
use crate::common::frames;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::IPV6;
use crate::common::frames::Packet;
use crate::common::frames::ethernet;
use crate::common::frames::icmp_about;
use crate::common::frames::packet;
use crate::common::frames::sum;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;

const REAL: &str = "198.51.100.1";
const TCP: &str = "203.0.113.1:443";
const TCP6: &str = "[2001:db8:1::1]:443";
/// Tunnel ends, IPv4 and IPv6: listed as inline, listed as egress, and the host's own.
pub(super) const INLINE: [&str; 2] = ["192.0.2.200", "2001:db8:d::1"];
pub(super) const EGRESS: [&str; 2] = ["192.0.2.202", "2001:db8:e::1"];
pub(super) const OWN: [&str; 2] = ["198.18.0.10", "2001:db8:ffff::10"];
pub(super) const ELSEWHERE: [&str; 2] = ["192.0.2.99", "2001:db8:99::1"];
pub(super) const GUE_PORT: u16 = 6080;

pub(super) fn settings() -> Builder {
    builder()
        .features((Features::default() | Features::INLINE_DECAP) - Features::STRICT_DESTINATION)
        .source_v4(OWN[0].parse().unwrap())
        .source_v6(OWN[1].parse().unwrap())
}

/// The same with the default features.
pub(super) fn strict() -> Builder {
    settings().features(Features::default() | Features::INLINE_DECAP)
}

pub(super) fn balancer(settings: Builder) -> Katran {
    let mut katran = load(settings);
    serve(
        &mut katran,
        "203.0.113.1:443/tcp",
        VipFlags::empty(),
        &[REAL],
    );
    serve(
        &mut katran,
        "[2001:db8:1::1]:443/tcp",
        VipFlags::empty(),
        &[REAL],
    );
    for (ends, mode) in [(INLINE, DecapMode::Inline), (EGRESS, DecapMode::Egress)] {
        for end in ends {
            katran.decap_mut().add(ip(end), mode).unwrap();
        }
    }
    katran
}

pub(super) fn flows() -> [Flow; 2] {
    [
        Flow::tcp(at("192.0.2.7:40001"), at(TCP)),
        Flow::tcp(at("[2001:db8:c::7]:40001"), at(TCP6)),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Ipip,
    Gue,
}

pub(super) const KINDS: [Kind; 2] = [Kind::Ipip, Kind::Gue];

/// A packet in a tunnel that ends at this address.
pub(super) fn tunnelled(kind: Kind, inner: &[u8], end: &str) -> Vec<u8> {
    ethernet(&in_tunnel(kind, inner, end))
}

pub(super) fn in_tunnel(kind: Kind, inner: &[u8], end: &str) -> Vec<u8> {
    let source = if ip(end).is_ipv4() {
        "172.16.1.1"
    } else {
        "2001:db8:ff::1"
    };
    let (source, end) = (ip(source), ip(end));
    match kind {
        Kind::Gue => {
            let from = (source, 31337).into();
            let flow = Flow::udp(from, (end, GUE_PORT).into());
            Packet::new(flow).data(inner).ip()
        }
        Kind::Ipip => {
            let protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
            packet(source, end, protocol, 0, inner)
        }
    }
}

/// The packet one hop later: the inner TTL is one less.
pub(super) fn aged(inner: &[u8]) -> Vec<u8> {
    let mut bytes = inner.to_vec();
    if bytes[0] >> 4 == 6 {
        bytes[7] -= 1;
        return bytes;
    }
    bytes[8] -= 1;
    bytes[10..12].fill(0);
    let check = !sum(&bytes[..IPV4]);
    bytes[10..12].copy_from_slice(&check.to_be_bytes());
    bytes
}

fn with_ttl(inner: &[u8], ttl: u8) -> Vec<u8> {
    let mut bytes = inner.to_vec();
    match bytes[0] >> 4 {
        6 => bytes[7] = ttl,
        _ => bytes[8] = ttl,
    }
    bytes
}

pub(super) fn run(katran: &Katran, frame: &[u8]) -> Simulation {
    katran.simulate(frame).unwrap()
}

/// Families of outer and inner header, and both encapsulations.
pub(super) fn mixes() -> impl Iterator<Item = (Kind, usize, Flow)> {
    KINDS.into_iter().flat_map(|kind| {
        [0, 1]
            .into_iter()
            .flat_map(move |outer| flows().map(|flow| (kind, outer, flow)))
    })
}

#[test]
fn the_inner_packet_is_balanced_like_any_other() {
    let katran = balancer(settings());
    for (kind, outer, flow) in mixes() {
        let what = format!("{kind:?} {outer} {flow}");
        let inner = Packet::new(flow).ip();
        let ran = run(&katran, &tunnelled(kind, &inner, INLINE[outer]));
        assert_eq!(ran.verdict, Verdict::Tx, "{what}: {}", ran.reason);
        assert_eq!(ran.real, Some(ip(REAL)), "{what}");
        assert_eq!(
            ran.vip.map(|vip| vip.address()),
            Some(flow.destination.ip())
        );
        // The result without the first tunnel, one hop later.
        let plain = run(&katran, &ethernet(&aged(&inner)));
        assert_eq!(ran.frame, plain.frame, "{what}");
    }
    let mut expected = InlineDecapCounters::default();
    (expected.remote_encap, expected.v4, expected.v6) = (8, 4, 4);
    (expected.xpop_v4, expected.xpop_v6) = (4, 4);
    assert_eq!(katran.stats().decap().unwrap(), expected);
}

/// Each frame counts once, with its length on arrival.
#[test]
fn a_frame_counts_once() {
    let katran = balancer(settings());
    let mut bytes = 0;
    for (kind, outer, flow) in mixes() {
        let frame = tunnelled(kind, &Packet::new(flow).ip(), INLINE[outer]);
        bytes += frame.len() as u64;
        let _ = run(&katran, &frame);
    }
    let totals = katran.stats().totals().unwrap();
    assert_eq!((totals.total.packets, totals.total.bytes), (8, bytes));
    assert_eq!(totals.tx, totals.total);
}

#[test]
fn egress_is_for_every_tunnel_and_counts_by_family() {
    let katran = balancer(settings());
    for (kind, outer, flow) in mixes() {
        // A backend's answer to the client.
        let inner = Packet::new(frames::reverse(flow)).ip();
        let ran = run(&katran, &tunnelled(kind, &inner, EGRESS[outer]));
        assert_eq!(
            (ran.verdict, ran.reason),
            (Verdict::Tx, Reason::DecapEgress)
        );
        let mut expected = ethernet(&aged(&inner));
        expected[..6].copy_from_slice(&frames::ROUTER_MAC);
        expected[6..12].copy_from_slice(&frames::OWN_MAC);
        assert_eq!(ran.frame, expected, "{kind:?} {outer} {flow}");
        assert_eq!((ran.vip, ran.real), (None, None));
    }
    let mut expected = InlineDecapCounters::default();
    (expected.remote_encap, expected.v4, expected.v6) = (8, 4, 4);
    (expected.egress_v4, expected.egress_v6) = (4, 4);
    assert_eq!(katran.stats().decap().unwrap(), expected);
}

#[test]
fn the_hosts_own_tunnels_end_and_their_packets_go_to_its_stack() {
    let katran = balancer(settings());
    for (kind, outer, flow) in mixes() {
        for end in [OWN[outer], ELSEWHERE[outer]] {
            let inner = Packet::new(flow).ip();
            let ran = run(&katran, &tunnelled(kind, &inner, end));
            let outcome = (ran.verdict, ran.reason);
            assert_eq!(outcome, (Verdict::Pass, Reason::DecapToHost), "{end}");
            assert_eq!(ran.frame, ethernet(&aged(&inner)), "{kind:?} {end} {flow}");
        }
    }
    let decap = katran.stats().decap().unwrap();
    assert_eq!((decap.remote_encap, decap.v4, decap.v6), (0, 8, 8));
    // GUE counts for the VIP, too.
    for vip in katran.vips() {
        assert_eq!(katran.stats().vip(vip).unwrap().decap, 4, "{vip}");
        assert_eq!(katran.stats().vip(vip).unwrap().forwarded.packets, 0);
    }
    assert_eq!(katran.stats().totals().unwrap().pass.packets, 16);
}

#[test]
fn strict_destinations_leave_the_tunnels_of_others_alone() {
    // Strict destinations are a default feature.
    let strict = Features::default() | Features::INLINE_DECAP;
    let mut katran = balancer(settings().features(strict));
    let inner = Packet::new(flows()[0]).ip();
    for kind in KINDS {
        for outer in [0, 1] {
            let frame = tunnelled(kind, &inner, ELSEWHERE[outer]);
            let ran = run(&katran, &frame);
            let outcome = (ran.verdict, ran.reason);
            assert_eq!(outcome, (Verdict::Pass, Reason::DecapForeign));
            assert_eq!(ran.frame, frame, "untouched");
            let own = run(&katran, &tunnelled(kind, &inner, OWN[outer]));
            assert_eq!(own.reason, Reason::DecapToHost);
            let listed = run(&katran, &tunnelled(kind, &inner, INLINE[outer]));
            assert_eq!(listed.verdict, Verdict::Tx);
        }
    }
    assert_eq!(katran.stats().decap().unwrap().v4, 4);
    // `set_source` changes the host's address.
    katran.gateways_mut().set_source(ip(ELSEWHERE[0])).unwrap();
    let now = run(&katran, &tunnelled(Kind::Ipip, &inner, ELSEWHERE[0]));
    assert_eq!(now.reason, Reason::DecapToHost);
    let before = run(&katran, &tunnelled(Kind::Ipip, &inner, OWN[0]));
    assert_eq!(before.reason, Reason::DecapForeign);
    // Without its own address the host has no tunnels.
    let bare = balancer(builder().features(strict));
    let ran = run(&bare, &tunnelled(Kind::Ipip, &inner, OWN[0]));
    assert_eq!(ran.reason, Reason::DecapForeign);
}

#[test]
fn packets_without_hops_left_are_dropped() {
    let katran = balancer(settings());
    let mut drops = 0;
    for (kind, outer, flow) in mixes() {
        for end in [INLINE[outer], EGRESS[outer], OWN[outer]] {
            for ttl in [0, 1] {
                let inner = with_ttl(&Packet::new(flow).ip(), ttl);
                let ran = run(&katran, &tunnelled(kind, &inner, end));
                let reason = Reason::Dropped(DropReason::InnerExpired);
                assert_eq!((ran.verdict, ran.reason), (Verdict::Drop, reason));
                drops += 1;
            }
        }
        let two = with_ttl(&Packet::new(flow).ip(), 2);
        assert_eq!(
            run(&katran, &tunnelled(kind, &two, EGRESS[outer])).verdict,
            Verdict::Tx
        );
    }
    let reasons = katran.stats().drop_reasons().unwrap();
    assert_eq!(reasons.get(DropReason::InnerExpired), drops);
    assert_eq!(katran.stats().totals().unwrap().drop.packets, drops);
}

#[test]
fn truncated_tunnels_are_dropped() {
    let katran = balancer(settings());
    for (kind, outer, flow) in mixes() {
        let inner = Packet::new(flow).ip();
        let header = if inner[0] >> 4 == 4 { IPV4 } else { IPV6 };
        for left in [1, header - 1] {
            for end in [INLINE[outer], EGRESS[outer], OWN[outer]] {
                let frame = tunnelled(kind, &inner[..left], end);
                let ran = run(&katran, &frame);
                let reason = Reason::Dropped(DropReason::InnerTruncated);
                assert_eq!(ran.reason, reason, "{kind:?} {left} to {end}");
            }
        }
    }
}

/// An inner echo request for the host is passed to it; one in an inline tunnel is answered like any
/// other.
#[test]
fn an_echo_request_reaches_the_host_untouched() {
    let katran = balancer(settings());
    for (client, to) in [
        ("192.0.2.7", "203.0.113.1"),
        ("2001:db8:c::7", "2001:db8:1::1"),
    ] {
        let echo = frames::echo(ip(client), ip(to), b"are you there?");
        let inner = &echo[ETHERNET..];
        for kind in KINDS {
            let ran = run(&katran, &tunnelled(kind, inner, OWN[0]));
            assert_eq!(ran.reason, Reason::DecapToHost);
            assert_eq!(ran.frame, ethernet(&aged(inner)));
            let ran = run(&katran, &tunnelled(kind, inner, INLINE[0]));
            assert_eq!((ran.verdict, ran.reason), (Verdict::Tx, Reason::IcmpEcho));
        }
    }
}

/// Never the frame that an ICMP error quotes.
#[test]
fn quoted_tunnels_do_not_count() {
    let katran = balancer(settings());
    for (from, end) in [("192.0.2.7", INLINE[0]), ("2001:db8:c::7", INLINE[1])] {
        let inner = Packet::new(flows()[0]).ip();
        for kind in KINDS {
            let flow = Flow::udp((ip(from), 1).into(), (ip(end), GUE_PORT).into());
            let quoted = in_tunnel(kind, &inner, from);
            let header = if ip(end).is_ipv4() { IPV4 } else { IPV6 };
            let frame = icmp_about(flow, quoted.clone(), quoted.len() - header);
            let ran = run(&katran, &frame);
            assert_eq!(ran.verdict, Verdict::Pass, "{kind:?} {end}: {}", ran.reason);
            assert_eq!(ran.frame, frame);
        }
    }
    let untouched = InlineDecapCounters::default();
    assert_eq!(katran.stats().decap().unwrap(), untouched);
}

#[test]
fn a_second_tunnel_is_passed_unchanged() {
    let katran = balancer(settings());
    let inner = Packet::new(flows()[0]).ip();
    for kind in KINDS {
        let middle = in_tunnel(kind, &inner, INLINE[0]);
        let ran = run(&katran, &tunnelled(Kind::Ipip, &middle, INLINE[1]));
        assert_eq!(
            (ran.verdict, ran.reason),
            (Verdict::Pass, Reason::TunnelInTunnel)
        );
        assert_eq!(ran.frame, ethernet(&aged(&middle)), "{kind:?}");
    }
    let decap = katran.stats().decap().unwrap();
    assert_eq!((decap.v4, decap.v6, decap.xpop_v4), (0, 2, 2));
    assert_eq!(katran.stats().totals().unwrap().total.packets, 2);
}

#[test]
fn other_packets_are_walked_as_usual() {
    let katran = balancer(settings());
    let plain = Packet::new(flows()[0]);
    assert_eq!(run(&katran, &plain.frame()).reason, Reason::SettledSlot);
    // UDP to the port with another payload, and to another port.
    let inner = plain.ip();
    for (port, first) in [(GUE_PORT, 0x12), (GUE_PORT + 1, 0x45)] {
        let flow = Flow::udp(at("172.16.1.1:5"), (ip(INLINE[0]), port).into());
        let mut data = inner.clone();
        data[0] = first;
        let frame = Packet::new(flow).data(&data).frame();
        let ran = run(&katran, &frame);
        assert_eq!((ran.reason, &ran.frame), (Reason::NotAVip, &frame));
    }
    // Fragments of the tunnel itself belong to the host, as its end is no VIP address.
    let mut fragment = tunnelled(Kind::Ipip, &inner, INLINE[0]);
    fragment[ETHERNET + 6] = 0x20;
    let ran = run(&katran, &fragment);
    assert_eq!((ran.reason, ran.frame), (Reason::NotAVip, fragment));
    let untouched = InlineDecapCounters::default();
    assert_eq!(katran.stats().decap().unwrap(), untouched);
}

#[test]
fn without_the_feature_tunnels_are_passed() {
    let mut katran = load(builder());
    let inner = Packet::new(flows()[0]).ip();
    let frame = tunnelled(Kind::Ipip, &inner, INLINE[0]);
    let ran = run(&katran, &frame);
    assert_eq!((ran.reason, ran.frame), (Reason::NotTransport, frame));
    let error = katran
        .decap_mut()
        .add(ip(INLINE[0]), DecapMode::Inline)
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("inline-decap"), "{error}");
    assert!(katran.decap_mut().remove(ip(INLINE[0])).is_err());
    assert!(katran.map_fd("decap_destinations").is_none());
}

#[test]
fn tunnel_ends_can_be_added_and_removed() {
    let mut katran = balancer(settings());
    let all = [
        (ip(INLINE[0]), DecapMode::Inline),
        (ip(EGRESS[0]), DecapMode::Egress),
        (ip(INLINE[1]), DecapMode::Inline),
        (ip(EGRESS[1]), DecapMode::Egress),
    ];
    assert_eq!(katran.decap().list(), all);
    for mode in [DecapMode::Inline, DecapMode::Egress] {
        let twice = katran.decap_mut().add(ip(INLINE[0]), mode).unwrap_err();
        assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
    }
    let bad = katran
        .decap_mut()
        .add(ip("224.0.0.1"), DecapMode::Inline)
        .unwrap_err();
    assert!(matches!(bad, Error::InvalidAddress { .. }), "{bad}");
    katran
        .decap_mut()
        .add(ip("192.0.2.1"), DecapMode::Inline)
        .unwrap();
    katran
        .decap_mut()
        .add(ip("192.0.2.2"), DecapMode::Inline)
        .unwrap();
    let full = katran
        .decap_mut()
        .add(ip("192.0.2.3"), DecapMode::Inline)
        .unwrap_err();
    assert!(matches!(full, Error::Exhausted { limit: 6, .. }), "{full}");
    katran.decap_mut().remove(ip("192.0.2.1")).unwrap();
    katran.decap_mut().remove(ip("192.0.2.2")).unwrap();
    let gone = katran.decap_mut().remove(ip("192.0.2.2")).unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    assert_eq!(katran.decap().list(), all);
    katran.decap_mut().remove(ip(INLINE[0])).unwrap();
    let inner = Packet::new(flows()[0]).ip();
    let ran = run(&katran, &tunnelled(Kind::Ipip, &inner, INLINE[0]));
    assert_eq!(ran.reason, Reason::DecapToHost);
}
