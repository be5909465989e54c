//! The packet walk from arrival to the wire: every way to drop a frame, what passes, the outer
//! header's contents, the counters. ICMP and sizes are in `icmp.rs`, the flow table and the choice
//! of the real in `lookup.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;

use katran::Error;
use katran::Family;
use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealFlags;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Verdict;
use katran::stats::DropReason;

use crate::common::GATEWAY;
use crate::common::MAX_REALS;
use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::A6;
use crate::common::fixtures::B;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::VIP6;
use crate::common::fixtures::flow_v4;
use crate::common::fixtures::flow_v6;
use crate::common::flows;
use crate::common::frames;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::IPV6;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;
use crate::common::wire::Prefixes;
use crate::common::wire::ipip;
use crate::common::wire::ipip_from;

/// Metadata before a frame that leaves too little headroom for any of our headers: of the 256
/// bytes, the kernel uses 40.
const ALL_HEADROOM: u32 = 212;

/// VIPs of both families, each with reals of both families.
fn balancer() -> Katran {
    let mut katran = load(builder());
    for text in [VIP4, VIP6] {
        serve(&mut katran, text, VipFlags::empty(), &[A, B, A6]);
    }
    katran
}

/// The frame with one byte changed.
fn with(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

/// Overwrites every slot of every ring with this real's number.
fn overwrite_rings(katran: &Katran, number: u16) {
    let chunk = bpf::inner(katran.map_fd("rings").unwrap(), 0);
    for element in 0..8u32 {
        let ring = bpf::lookup(chunk.as_fd(), &element.to_ne_bytes()).unwrap();
        let slots: Vec<u8> = number.to_ne_bytes().repeat(ring.len() / 2);
        bpf::update(chunk.as_fd(), &element.to_ne_bytes(), &slots);
    }
}

#[test]
fn every_reason_to_drop_is_reached_and_counted_once() {
    let mut katran = load(builder().features(Features::LOCAL_DELIVERY));
    for text in [VIP4, VIP6] {
        serve(&mut katran, text, VipFlags::empty(), &[A, A6]);
    }
    serve(&mut katran, "203.0.113.2:443/tcp", VipFlags::empty(), &[]);
    let (v4, v6) = (frame(flow_v4()), frame(flow_v6()));
    let (source, destination) = (flow_v4().source.ip(), flow_v4().destination.ip());
    let empty = Flow::tcp(flow_v4().source, at("203.0.113.2:443"));
    let options = with(Packet::new(frames::reverse(flow_v4())).ip(), 0, 0x46);
    let udp = flows(Protocol::Udp, "203.0.113.1:443", 1)[0];
    let cut = frames::cut;
    let cases = [
        (DropReason::Ipv4Truncated, v4[..ETHERNET].to_vec()),
        (
            DropReason::Ipv4Truncated,
            v4[..ETHERNET + IPV4 - 1].to_vec(),
        ),
        (DropReason::Ipv4Options, with(v4.clone(), ETHERNET, 0x46)),
        (DropReason::Ipv4Options, with(v4.clone(), ETHERNET, 0x44)),
        (
            DropReason::Ipv4Fragment,
            with(v4.clone(), ETHERNET + 6, 0x20),
        ),
        (
            DropReason::Ipv4Fragment,
            with(v4.clone(), ETHERNET + 6, 0x1f),
        ),
        (
            DropReason::Ipv4Fragment,
            with(v4.clone(), ETHERNET + 7, 0x01),
        ),
        (
            DropReason::Ipv6Truncated,
            v6[..ETHERNET + IPV6 - 1].to_vec(),
        ),
        (DropReason::Ipv6Fragment, with(v6.clone(), ETHERNET + 6, 44)),
        (DropReason::Length, v4[..v4.len() - 1].to_vec()),
        (DropReason::Length, v6[..v6.len() - 1].to_vec()),
        (DropReason::Length, with(v4.clone(), ETHERNET + 2, 0xff)),
        (DropReason::Length, with(v6.clone(), ETHERNET + 4, 0xff)),
        (DropReason::Length, with(v4.clone(), ETHERNET + 3, 19)),
        (DropReason::Length, with(v4.clone(), ETHERNET + 3, 0)),
        (
            DropReason::IcmpTruncated,
            cut(&frames::echo(source, destination, b""), IPV4 + 7),
        ),
        (
            DropReason::IcmpTruncated,
            cut(&frames::unreachable(flow_v6(), 8), IPV6 + 7),
        ),
        (
            DropReason::QuoteTruncated,
            cut(&frames::unreachable(flow_v4(), 8), IPV4 + 8 + 19),
        ),
        (
            DropReason::QuoteTruncated,
            cut(&frames::unreachable(flow_v6(), 8), IPV6 + 8 + 39),
        ),
        (
            DropReason::QuoteTruncated,
            frames::unreachable(flow_v4(), 7),
        ),
        (DropReason::QuoteTruncated, frames::unreachable(udp, 7)),
        (
            DropReason::QuoteOptions,
            frames::icmp_about(flow_v4(), options, 20),
        ),
        (DropReason::TransportTruncated, cut(&v4, IPV4 + 19)),
        (DropReason::TransportTruncated, cut(&frame(udp), IPV4 + 7)),
        // What the IP header's length cuts off does not count, though it is there.
        (
            DropReason::TransportTruncated,
            with(v4.clone(), ETHERNET + 3, 39),
        ),
        (
            DropReason::TransportTruncated,
            with(v6.clone(), ETHERNET + 5, 19),
        ),
        (
            DropReason::TooBig,
            Packet::new(flow_v4()).payload(1475).frame(),
        ),
        (
            DropReason::TooBig,
            Packet::new(flow_v6()).payload(1455).frame(),
        ),
        (DropReason::RingEmpty, frame(empty)),
    ];
    let mut expected: BTreeMap<DropReason, u64> = BTreeMap::new();
    let mut bytes = 0;
    for (reason, frame) in &cases {
        let ran = katran.simulate(frame).unwrap();
        assert_eq!(ran.reason, Reason::Dropped(*reason));
        assert_eq!((ran.verdict, ran.real), (Verdict::Drop, None));
        assert_eq!(ran.frame, *frame);
        *expected.entry(*reason).or_default() += 1;
        bytes += frame.len() as u64;
    }
    overwrite_rings(&katran, MAX_REALS as u16 + 1);
    let ran = katran.simulate(&v4).unwrap();
    assert_eq!(ran.reason, Reason::Dropped(DropReason::RingUnknownReal));
    expected.insert(DropReason::RingUnknownReal, 1);
    bytes += v4.len() as u64;

    let counted: BTreeMap<DropReason, u64> = katran
        .stats()
        .drop_reasons()
        .unwrap()
        .iter()
        .filter(|(_, frames)| *frames != 0)
        .collect();
    assert_eq!(counted, expected);
    let totals = katran.stats().totals().unwrap();
    assert_eq!(totals.drop.packets, cases.len() as u64 + 1);
    assert_eq!((totals.drop.bytes, totals.total), (bytes, totals.drop));
    assert_eq!(katran.stats().ring_drops().unwrap().unknown_real, 1);
    assert_eq!(katran.stats().ring_drops().unwrap().empty, 1);
}

#[test]
fn without_headroom_a_frame_is_dropped_and_counted() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A6]);
    let long = |flow| Packet::new(flow).payload(1500).frame();
    let frames = [
        frame(flow_v4()),
        frame(flow_v6()),
        long(flow_v4()),
        long(flow_v6()),
    ];
    for frame in &frames {
        let program = katran.program_fd();
        let ran = bpf::run_with_metadata(program, frame, ALL_HEADROOM);
        assert_eq!(ran.verdict, Verdict::Drop);
        assert_eq!(
            bpf::run_with_metadata(program, frame, 0).verdict,
            Verdict::Tx
        );
    }
    let failures = katran.stats().encap_failures().unwrap();
    assert_eq!((failures.v4, failures.v6), (1, 1));
    let reasons = katran.stats().drop_reasons().unwrap();
    assert_eq!(reasons.get(DropReason::ReplyFailed), 2);
    assert_eq!(katran.stats().totals().unwrap().drop.packets, 4);
    let cpus = katran.stats().cpus().unwrap();
    let forwarded: u64 = cpus.iter().map(|cpu| cpu.forwarded).sum();
    assert_eq!(
        forwarded, 2,
        "without drops and the balancer's own messages"
    );
}

#[test]
fn a_frame_without_an_ethernet_header_is_dropped_uncounted() {
    let katran = balancer();
    for length in 0..ETHERNET {
        let ran = katran.simulate(&frame(flow_v4())[..length]).unwrap();
        assert_eq!(ran.reason, Reason::Dropped(DropReason::FrameTruncated));
    }
    assert_eq!(katran.stats().totals().unwrap(), Default::default());
}

#[test]
fn other_packets_are_passed_untouched() {
    let katran = balancer();
    let (v4, v6) = (flow_v4(), flow_v6());
    let arp = with(frame(v4), 13, 0x06);
    let other = |flow: Flow, protocol| {
        let (source, destination) = (flow.source.ip(), flow.destination.ip());
        frames::ethernet(&frames::packet(source, destination, protocol, 0, &[7; 32]))
    };
    let message = |flow: Flow, kind| {
        let (source, destination) = (flow.source.ip(), flow.destination.ip());
        frames::icmp(source, destination, kind, 0, [0; 4], &[0; 40])
    };
    let cases = [
        (Reason::NotIp, arp),
        (Reason::NotTransport, other(v4, 132)),
        (Reason::NotTransport, other(v4, 4)),
        (Reason::NotTransport, other(v4, 41)),
        (Reason::NotTransport, other(v6, 41)),
        (Reason::IcmpOther, message(v4, 0)),
        (Reason::IcmpOther, message(v4, 5)),
        (Reason::IcmpOther, message(v6, 129)),
        (Reason::IcmpOther, message(v6, 135)),
        (Reason::NotAVip, frame(Flow::udp(v4.source, v4.destination))),
        (
            Reason::NotAVip,
            frame(Flow::tcp(v4.source, at("203.0.113.1:80"))),
        ),
        (
            Reason::NotAVip,
            frame(Flow::tcp(v4.source, at("203.0.113.2:443"))),
        ),
        (Reason::NotAVip, frames::unreachable(frames::reverse(v6), 8)),
        (Reason::NotIp, with(frame(v4), ETHERNET, 0x65)),
        (Reason::NotIp, with(frame(v6), ETHERNET, 0x45)),
        // Size limits apply to VIPs only.
        (
            Reason::NotAVip,
            Packet::new(Flow::udp(v6.source, v6.destination))
                .payload(2000)
                .frame(),
        ),
    ];
    for (reason, frame) in &cases {
        let ran = katran.simulate(frame).unwrap();
        assert_eq!((ran.verdict, ran.reason), (Verdict::Pass, *reason));
        assert_eq!((ran.vip, ran.real), (None, None));
        assert_eq!(ran.frame, *frame);
    }
    let totals = katran.stats().totals().unwrap();
    assert_eq!(totals.pass.packets, cases.len() as u64);
    assert_eq!(totals.total, totals.pass);
    assert_eq!(katran.stats().flow_table().unwrap(), Default::default());
}

#[test]
fn the_outer_header_is_made_from_flow_and_real() {
    let prefixes = Prefixes {
        v4: [100, 126],
        v6: [
            0xfd, 0x12, 0x34, 0x56, 0x78, 0x9a, 0, 1, 0xab, 0xcd, 0xef, 0x01,
        ],
    };
    let configured = builder()
        .ipip_source_v4("100.126.0.0".parse().unwrap())
        .ipip_source_v6("fd12:3456:789a:1:abcd:ef01::".parse().unwrap());
    for (builder, prefixes) in [(builder(), Prefixes::default()), (configured, prefixes)] {
        let mut katran = load(builder);
        serve(&mut katran, VIP4, VipFlags::empty(), &[A, A6]);
        serve(
            &mut katran,
            "[2001:db8:1::1]:53/udp",
            VipFlags::empty(),
            &[A, A6],
        );
        let tcp = flows(Protocol::Tcp, "203.0.113.1:443", 64);
        let udp = flows(Protocol::Udp, "[2001:db8:1::1]:53", 64);
        let mut reals = BTreeMap::<_, usize>::new();
        for (flow, tos) in tcp.into_iter().chain(udp).zip((0..=255).step_by(2).cycle()) {
            let bytes = Packet::new(flow).tos(tos).payload(usize::from(tos)).frame();
            let ran = katran.simulate(&bytes).unwrap();
            let (source, real) = (flow.source, ran.real.unwrap());
            let outer = ipip_from(prefixes, &bytes, Some(source.ip()), source.port(), real);
            assert_eq!(ran.frame, outer, "{flow} to {real}");
            *reals.entry((flow.protocol, real)).or_default() += 1;
        }
        assert_eq!(reals.len(), 4, "all mixes of families: {reals:?}");
    }
}

#[test]
fn a_made_up_source_is_never_a_network_or_broadcast_address() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    serve(&mut katran, "203.0.113.1:80/tcp", VipFlags::empty(), &[A6]);
    serve(
        &mut katran,
        "[2001:db8:1::1]:80/tcp",
        VipFlags::empty(),
        &[A6],
    );
    // 40,001 is 0x9c41. In each case, client XOR port is all zeros, all ones, or nearly so.
    let cases = [
        ("192.0.65.156:40001", "203.0.113.1:443", "172.16.0.1"),
        ("192.0.190.99:40001", "203.0.113.1:443", "172.16.255.254"),
        ("192.0.65.157:40001", "203.0.113.1:443", "172.16.0.1"),
        ("192.0.190.98:40001", "203.0.113.1:443", "172.16.255.254"),
        ("192.0.64.156:40001", "203.0.113.1:443", "172.16.1.0"),
        ("192.0.191.99:40001", "203.0.113.1:443", "172.16.254.255"),
        (
            "[2001:db8::1:4:419c]:40001",
            "[2001:db8:1::1]:443",
            "172.16.0.1",
        ),
        (
            "[2001:db8::1:4:be63]:40001",
            "[2001:db8:1::1]:443",
            "172.16.255.254",
        ),
        ("156.65.0.0:40001", "203.0.113.1:80", "100::1"),
        ("99.190.255.255:40001", "203.0.113.1:80", "100::ffff:fffe"),
        ("156.65.0.1:40001", "203.0.113.1:80", "100::1"),
        ("156.65.1.0:40001", "203.0.113.1:80", "100::100"),
        ("[2001:db8::9c41:0]:40001", "[2001:db8:1::1]:80", "100::1"),
        (
            "[2001:db8::63be:ffff]:40001",
            "[2001:db8:1::1]:80",
            "100::ffff:fffe",
        ),
        (
            "[2001:db8::63be:feff]:40001",
            "[2001:db8:1::1]:80",
            "100::ffff:feff",
        ),
    ];
    for (client, service, expected) in cases {
        let flow = Flow::tcp(at(client), at(service));
        let bytes = frame(flow);
        let ran = katran.simulate(&bytes).unwrap();
        let (source, real) = (flow.source, ran.real.unwrap());
        let outer = ipip(&bytes, Some(source.ip()), source.port(), real);
        assert_eq!(ran.frame, outer, "{flow}");
        let made_up = match ip(expected) {
            IpAddr::V4(_) => IpAddr::from(<[u8; 4]>::try_from(&ran.frame[26..30]).unwrap()),
            IpAddr::V6(_) => IpAddr::from(<[u8; 16]>::try_from(&ran.frame[22..38]).unwrap()),
        };
        assert_eq!(made_up, ip(expected), "{flow}");
    }
}

#[test]
fn bytes_after_the_packet_travel_along_uncounted() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    for flow in [flow_v4(), flow_v6()] {
        let mut bytes = Packet::new(flow).payload(0).frame();
        let length = bytes.len() - ETHERNET;
        bytes.extend([0xaa; 23]);
        let ran = katran.simulate(&bytes).unwrap();
        let source = flow.source;
        assert_eq!(
            ran.frame,
            ipip(&bytes, Some(source.ip()), source.port(), ip(A))
        );
        let outer = &ran.frame[ETHERNET..];
        let outer_length = u16::from_be_bytes([outer[2], outer[3]]);
        assert_eq!(usize::from(outer_length), length + IPV4);
        assert_eq!(ran.frame.len(), bytes.len() + IPV4);
        assert_eq!(ran.frame[bytes.len() + IPV4 - 23..], [0xaa; 23]);
    }
    // The IP header's length field as it is: for IPv6 without the 40 bytes.
    let forwarded = katran.stats().vip(vip(VIP4)).unwrap().forwarded;
    assert_eq!((forwarded.packets, forwarded.bytes), (1, 40));
    let forwarded = katran.stats().vip(vip(VIP6)).unwrap().forwarded;
    assert_eq!((forwarded.packets, forwarded.bytes), (1, 20));
    let forwarded = katran.stats().real(ip(A)).unwrap().forwarded;
    assert_eq!((forwarded.packets, forwarded.bytes), (2, 60));
}

#[test]
fn local_delivery_needs_both_flags() {
    let mut katran = load(builder());
    let vip = serve(&mut katran, VIP4, VipFlags::LOCAL_VIP, &[A]);
    let bytes = frame(flow_v4());
    let mut verdict = |vip_flags, real_flags| {
        katran.set_vip_flags(vip, vip_flags).unwrap();
        katran.set_real_flags(ip(A), real_flags).unwrap();
        let ran = katran.simulate(&bytes).unwrap();
        assert_eq!(ran.real, Some(ip(A)));
        assert_eq!(ran.verdict == Verdict::Pass, ran.frame == bytes);
        ran.verdict
    };
    let (no, none) = (VipFlags::empty(), RealFlags::empty());
    assert_eq!(verdict(no, none), Verdict::Tx);
    assert_eq!(verdict(VipFlags::LOCAL_VIP, none), Verdict::Tx);
    assert_eq!(verdict(no, RealFlags::LOCAL_REAL), Verdict::Tx);
    assert_eq!(verdict(no, RealFlags::APPLICATION), Verdict::Tx);
    assert_eq!(
        verdict(VipFlags::LOCAL_VIP, RealFlags::LOCAL_REAL),
        Verdict::Pass
    );
    assert_eq!(katran.stats().real(ip(A)).unwrap().forwarded.packets, 5);
    let cpus = katran.stats().cpus().unwrap();
    assert_eq!(cpus.iter().map(|cpu| cpu.forwarded).sum::<u64>(), 5);
    let totals = katran.stats().totals().unwrap();
    assert_eq!((totals.tx.packets, totals.pass.packets), (4, 1));
}

#[test]
fn the_gateway_can_be_changed_at_any_time() {
    let mut katran = load(builder());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let sent_to = |katran: &Katran| {
        let ran = katran.simulate(&frame(flow_v4())).unwrap();
        assert_eq!(ran.frame[6..12], frames::OWN_MAC);
        ran.frame[..6].to_vec()
    };
    assert_eq!(sent_to(&katran), GATEWAY.octets());
    let other = "0a:01:02:03:04:05".parse().unwrap();
    katran.gateways_mut().set_mac(other).unwrap();
    assert_eq!(sent_to(&katran), other.octets());
    assert_eq!(katran.gateways().mac(Family::V4), other);
    for bad in [
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
    ] {
        let error = katran
            .gateways_mut()
            .set_mac(bad.parse().unwrap())
            .unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    }
    assert_eq!(sent_to(&katran), other.octets());
}

#[test]
fn counters_are_per_vip_and_per_real() {
    let mut katran = balancer();
    let spare = Real::new(ip("198.51.100.9"));
    katran.add_real(vip(VIP4), spare.weight(0)).unwrap();
    let mut packets = BTreeMap::new();
    let mut bytes = BTreeMap::new();
    let mut of_vip = BTreeMap::new();
    for to in ["203.0.113.1:443", "[2001:db8:1::1]:443"] {
        for (flow, length) in flows(Protocol::Tcp, to, 40).into_iter().zip(10..) {
            let ran = katran
                .simulate(&Packet::new(flow).payload(length).frame())
                .unwrap();
            let l3 = length as u64 + if flow.source.is_ipv4() { 40 } else { 20 };
            *packets.entry(ran.real.unwrap()).or_insert(0) += 1;
            *bytes.entry(ran.real.unwrap()).or_insert(0) += l3;
            let of_vip = of_vip.entry(ran.vip.unwrap()).or_insert((0, 0));
            *of_vip = (of_vip.0 + 1, of_vip.1 + l3);
        }
    }
    for (vip, expected) in of_vip {
        let forwarded = katran.stats().vip(vip).unwrap().forwarded;
        assert_eq!((forwarded.packets, forwarded.bytes), expected);
    }
    // In the order given, with one that got nothing and one twice.
    let asked = [A6, "198.51.100.9", B, A, A6].map(ip);
    let stats = katran.stats().reals(&asked).unwrap();
    for (address, stats) in asked.iter().zip(&stats) {
        assert_eq!(
            stats.forwarded.packets,
            packets.get(address).copied().unwrap_or(0)
        );
        assert_eq!(
            stats.forwarded.bytes,
            bytes.get(address).copied().unwrap_or(0)
        );
        assert_eq!(katran.stats().real(*address).unwrap(), *stats);
    }
    assert_eq!(stats.len(), asked.len());
    assert!(katran.stats().reals(&[]).unwrap().is_empty());
    for unknown in [
        katran.stats().reals(&[ip(A), ip("198.51.100.77")]).err(),
        katran.stats().vip(vip("203.0.113.9:1/tcp")).err(),
    ] {
        assert!(matches!(unknown, Some(Error::NotFound { .. })));
    }
}
