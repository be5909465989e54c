//! GUE on the wire: every byte of the outer headers, a checksum that is right in every case without
//! reading the payload, and what is refused.

use std::net::IpAddr;

use katran::Builder;
use katran::Encapsulation;
use katran::Error;
use katran::Family;
use katran::Flow;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::Vip;
use katran::VipFlags;

use crate::common::at;
use crate::common::builder;
use crate::common::frames;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::IPV6;
use crate::common::frames::Packet;
use crate::common::frames::icmp;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::wire::gue;

const A: &str = "198.51.100.1";
const A6: &str = "2001:db8:2::1";
const OWN: &str = "198.18.0.10";
const OWN6: &str = "2001:db8:ffff::10";
/// One service per protocol and family of VIP and real: the port names the real's family.
const PORTS: [(u16, &str); 2] = [(4, A), (6, A6)];
const VIPS: [&str; 2] = ["203.0.113.1", "2001:db8:1::1"];

fn settings() -> Builder {
    builder()
        .encapsulation(Encapsulation::Gue)
        .source_v4(OWN.parse().unwrap())
        .source_v6(OWN6.parse().unwrap())
}

fn balancer(flags: VipFlags) -> Katran {
    let mut katran = load(settings());
    for address in VIPS {
        for (port, real) in PORTS {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let vip = Vip::new((ip(address), port).into(), protocol);
                serve(&mut katran, &vip.to_string(), flags, &[real]);
            }
        }
    }
    katran
}

fn own(real: &str) -> IpAddr {
    ip(if ip(real).is_ipv4() { OWN } else { OWN6 })
}

fn client(vip: &str) -> &'static str {
    match ip(vip).is_ipv4() {
        true => "192.0.2.7",
        false => "2001:db8:c::1a2b:3c4d",
    }
}

fn flow(vip: &str, port: u16, protocol: Protocol) -> Flow {
    let source = (ip(client(vip)), 40_001).into();
    let destination = (ip(vip), port).into();
    match protocol {
        Protocol::Tcp => Flow::tcp(source, destination),
        Protocol::Udp => Flow::udp(source, destination),
    }
}

/// The frame that leaves the balancer.
fn sent(katran: &Katran, frame: &[u8]) -> Vec<u8> {
    katran.simulate(frame).unwrap().frame
}

/// All families of VIP and real, both protocols.
fn every_case() -> impl Iterator<Item = (Flow, &'static str)> {
    VIPS.into_iter().flat_map(|vip| {
        PORTS.into_iter().flat_map(move |(port, real)| {
            [Protocol::Tcp, Protocol::Udp]
                .into_iter()
                .map(move |protocol| (flow(vip, port, protocol), real))
        })
    })
}

#[test]
fn outer_headers_are_right_to_the_byte_whatever_the_payload() {
    let katran = balancer(VipFlags::empty());
    for (flow, real) in every_case() {
        let source = Some(flow.source.ip());
        for bytes in [0, 1, 2, 3, 20, 1001, 1400] {
            for tos in [0, 0xb9] {
                let frame = Packet::new(flow).payload(bytes).tos(tos).frame();
                let expected = gue(&frame, source, 40_001, ip(real), own(real), true);
                assert_eq!(sent(&katran, &frame), expected, "{flow}, {bytes} bytes");
            }
        }
    }
    assert_eq!(katran.stats().totals().unwrap().drop.packets, 0);
}

#[test]
fn bytes_behind_the_packet_stay_and_do_not_count() {
    let katran = balancer(VipFlags::empty());
    for (flow, real) in every_case() {
        let mut frame = Packet::new(flow).payload(3).frame();
        frame.extend([0xaa; 7]);
        let expected = gue(
            &frame,
            Some(flow.source.ip()),
            40_001,
            ip(real),
            own(real),
            true,
        );
        assert_eq!(sent(&katran, &frame), expected, "{flow}");
    }
}

/// The outer checksum covers the packet's bytes, even if its own header is wrong about them.
#[test]
fn the_outer_checksum_is_right_with_a_wrong_inner_header_checksum() {
    let katran = balancer(VipFlags::empty());
    let check = |frame: &[u8], flow: Flow, real: &str| {
        let source = Some(flow.source.ip());
        let expected = gue(frame, source, 40_001, ip(real), own(real), true);
        assert_eq!(sent(&katran, frame), expected, "{flow} to {real}");
    };
    for (flow, real) in every_case().filter(|(flow, _)| flow.source.is_ipv4()) {
        for damage in [1, 0x80, 0xff] {
            let mut frame = Packet::new(flow).frame();
            frame[ETHERNET + 10] ^= damage;
            check(&frame, flow, real);
            // Also of the packet that an ICMP error quotes.
            let mut frame = frames::unreachable(flow, 8);
            frame[ETHERNET + 11] ^= damage;
            check(&frame, flow, real);
        }
    }
}

/// The inner checksum does not cover extension headers, so the whole packet is added up.
#[test]
fn the_outer_checksum_is_right_with_extension_headers() {
    const ICMP: u8 = 58;
    let katran = balancer(VipFlags::empty());
    let options = |next: u8| [next, 0, 1, 4, 0xab, 0xcd, 0xef, 1];
    for (flow, real) in every_case().filter(|(flow, _)| flow.source.is_ipv6()) {
        let protocol = match flow.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        for (frame, next) in [
            (Packet::new(flow).payload(33).frame(), protocol),
            (frames::unreachable(flow, 8), ICMP),
        ] {
            let mut headers = options(60).to_vec();
            headers.extend(options(next));
            let frame = frames::extended(&frame, 0, &headers);
            let source = Some(flow.source.ip());
            let expected = gue(&frame, source, 40_001, ip(real), own(real), true);
            assert_eq!(sent(&katran, &frame), expected, "{flow} to {real}, {next}");
        }
        // Without an inner checksum there is no outer one.
        if flow.protocol == Protocol::Udp {
            let frame = Packet::new(flow).without_checksum().frame();
            let frame = frames::extended(&frame, 0, &options(protocol));
            let source = Some(flow.source.ip());
            let expected = gue(&frame, source, 40_001, ip(real), own(real), false);
            assert_eq!(sent(&katran, &frame), expected, "{flow} to {real}");
        }
    }
}

/// A UDP length that ends the datagram before the packet's end (RFC 9868), or beyond it.
#[test]
fn the_outer_checksum_is_right_whatever_udps_length() {
    let katran = balancer(VipFlags::empty());
    for (flow, real) in every_case().filter(|(flow, _)| flow.protocol == Protocol::Udp) {
        for payload in [1, 2, 55, 56, 57, 120, 1000, 1400] {
            let whole = 8 + payload as u16;
            for length in [0, 1, 7, 8, 9, whole - 1, whole + 1, whole + 64, u16::MAX] {
                let mut frame = Packet::new(flow).payload(payload).frame();
                let header = if flow.source.is_ipv4() { IPV4 } else { IPV6 };
                let at = ETHERNET + header + 4;
                frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
                // The checksum over this length, if the datagram has one.
                frame[at + 2..at + 4].fill(0);
                let ends = usize::from(length.clamp(8, whole));
                let datagram = &frame[at - 4..at - 4 + ends];
                let (from, to) = (flow.source.ip(), flow.destination.ip());
                let sum = !frames::pseudo_sum(from, to, 17, datagram);
                frame[at + 2..at + 4].copy_from_slice(&sum.max(1).to_be_bytes());
                // Bytes behind the packet do not count.
                frame.extend([0xaa; 5]);
                let source = Some(flow.source.ip());
                let expected = gue(&frame, source, 40_001, ip(real), own(real), true);
                let what = format!("{flow} to {real}, {payload} bytes, length {length}");
                assert_eq!(sent(&katran, &frame), expected, "{what}");
            }
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_gets_none_outside() {
    let katran = balancer(VipFlags::empty());
    for (flow, real) in every_case().filter(|(flow, _)| flow.protocol == Protocol::Udp) {
        let frame = Packet::new(flow).without_checksum().frame();
        let expected = gue(
            &frame,
            Some(flow.source.ip()),
            40_001,
            ip(real),
            own(real),
            false,
        );
        let out = sent(&katran, &frame);
        assert_eq!(out, expected, "{flow}");
        let outer = if ip(real).is_ipv4() { IPV4 } else { IPV6 };
        assert_eq!(out[ETHERNET + outer + 6..][..2], [0, 0]);
    }
}

#[test]
fn a_checksum_that_comes_out_as_0_is_sent_as_ffff() {
    let katran = balancer(VipFlags::empty());
    for (flow, real) in every_case() {
        let outer = if ip(real).is_ipv4() { IPV4 } else { IPV6 };
        let check_at = ETHERNET + outer + 6;
        // Most payloads need one of these ports.
        let found = (0..40).find_map(|payload| {
            (1024..=u16::MAX).find_map(|port| {
                let mut flow = flow;
                flow.source.set_port(port);
                let frame = Packet::new(flow).payload(payload).frame();
                let source = Some(flow.source.ip());
                let expected = gue(&frame, source, port, ip(real), own(real), true);
                (expected[check_at..][..2] == [0xff, 0xff]).then_some((frame, expected))
            })
        });
        let (frame, expected) = found.unwrap();
        assert_eq!(sent(&katran, &frame), expected, "{flow}");
    }
}

#[test]
fn icmp_errors_travel_with_a_right_checksum() {
    let katran = balancer(VipFlags::empty());
    for (flow, real) in every_case() {
        let (client, vip) = (flow.source.ip(), flow.destination.ip());
        // A router's error about a packet from the VIP to the client.
        let reverse = Flow {
            source: flow.destination,
            destination: flow.source,
            ..flow
        };
        let quoted = &Packet::new(reverse).payload(64).ip()[..];
        let (router, kind, code) = match client.is_ipv4() {
            true => (ip("192.0.2.254"), 3, 4),
            false => (ip("2001:db8:c::fe"), 2, 0),
        };
        for length in [quoted.len(), quoted.len() - 1, 48] {
            let frame = icmp(router, vip, kind, code, [0, 0, 5, 0], &quoted[..length]);
            let expected = gue(&frame, Some(client), 40_001, ip(real), own(real), true);
            assert_eq!(sent(&katran, &frame), expected, "{flow}, {length} quoted");
        }
    }
}

#[test]
fn flags_that_hide_the_client_hide_it_in_the_outer_port_too() {
    let katran = balancer(VipFlags::NO_SRC_PORT);
    for (flow, real) in every_case() {
        let frame = frames::frame(flow);
        let expected = gue(&frame, Some(flow.source.ip()), 0, ip(real), own(real), true);
        assert_eq!(sent(&katran, &frame), expected, "{flow}");
    }
    let katran = balancer(VipFlags::DPORT_HASH);
    for (flow, real) in every_case() {
        let frame = frames::frame(flow);
        // The address counts as 0; the port is unchanged.
        let expected = gue(&frame, None, 40_001, ip(real), own(real), true);
        assert_eq!(sent(&katran, &frame), expected, "{flow}");
    }
}

#[test]
fn the_outer_source_port_is_never_0() {
    let katran = balancer(VipFlags::empty());
    // Ports that cancel out with the client's address, exactly or nearly.
    for (flow, real) in every_case() {
        let v6 = ip(real).is_ipv6();
        let port = match flow.source.ip() {
            // From 192.0.2.7.
            IpAddr::V4(_) if v6 => 0x0207,
            IpAddr::V4(_) => 0x0702,
            // From ...:1a2b:3c4d.
            IpAddr::V6(_) if v6 => 0x1a2b,
            IpAddr::V6(_) => 0x4d3c,
        };
        for (port, expected) in [
            (port, 0xffff),
            (port ^ 0x8000, if v6 { 0x8000 } else { 0x80 }),
        ] {
            let mut flow = flow;
            flow.source.set_port(port);
            let frame = frames::frame(flow);
            let source = Some(flow.source.ip());
            let out = sent(&katran, &frame);
            let wanted = gue(&frame, source, port, ip(real), own(real), true);
            assert_eq!(out, wanted, "{flow}");
            let at = ETHERNET + if v6 { IPV6 } else { IPV4 };
            let outer = u16::from_be_bytes([out[at], out[at + 1]]);
            assert_eq!(outer, expected, "{flow}");
        }
    }
}

#[test]
fn a_wrong_inner_checksum_stays_detectable() {
    let katran = balancer(VipFlags::empty());
    for (flow, real) in every_case() {
        let mut frame = Packet::new(flow).payload(64).frame();
        // A bit of the payload.
        *frame.last_mut().unwrap() ^= 1;
        let right = gue(
            &frame,
            Some(flow.source.ip()),
            40_001,
            ip(real),
            own(real),
            true,
        );
        assert_ne!(sent(&katran, &frame), right, "{flow}");
    }
}

#[test]
fn another_port_and_another_source_are_used_at_once() {
    let mut katran = load(settings().gue_port(9999));
    serve(&mut katran, "203.0.113.1:4/tcp", VipFlags::empty(), &[A]);
    serve(&mut katran, "203.0.113.1:6/tcp", VipFlags::empty(), &[A6]);
    let source_and_port = |katran: &Katran, port: u16, outer: usize| {
        let flow = Flow::tcp(at("192.0.2.7:40001"), (ip(VIPS[0]), port).into());
        let out = sent(katran, &frames::frame(flow));
        let source = match outer {
            IPV4 => IpAddr::from(<[u8; 4]>::try_from(&out[ETHERNET + 12..][..4]).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(&out[ETHERNET + 8..][..16]).unwrap()),
        };
        let at = ETHERNET + outer + 2;
        (source, u16::from_be_bytes([out[at], out[at + 1]]))
    };
    assert_eq!(source_and_port(&katran, 4, IPV4), (ip(OWN), 9999));
    assert_eq!(source_and_port(&katran, 6, IPV6), (ip(OWN6), 9999));
    for (v4, v6) in [
        ("198.18.0.11", "2001:db8:ffff::11"),
        ("198.18.0.12", "2001:db8:ffff::12"),
    ] {
        katran.gateways_mut().set_source(ip(v4)).unwrap();
        katran.gateways_mut().set_source(ip(v6)).unwrap();
        assert_eq!(katran.gateways().source(Family::V4), Some(ip(v4)));
        assert_eq!(source_and_port(&katran, 4, IPV4), (ip(v4), 9999));
        assert_eq!(source_and_port(&katran, 6, IPV6), (ip(v6), 9999));
    }
    assert!(katran.gateways_mut().set_source(ip("127.0.0.1")).is_err());
    assert_eq!(
        katran.gateways().source(Family::V4),
        Some(ip("198.18.0.12"))
    );
}

#[test]
fn a_real_of_a_family_without_a_source_is_refused_until_it_has_one() {
    let mut katran = load(
        builder()
            .encapsulation(Encapsulation::Gue)
            .source_v4(OWN.parse().unwrap()),
    );
    let vip = serve(&mut katran, "203.0.113.1:6/tcp", VipFlags::empty(), &[A]);
    let before = katran.state();
    let error = katran.add_real(vip, Real::new(ip(A6))).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { .. }));
    let text = error.to_string();
    assert!(text.contains("source_v6") && text.contains(A6), "{text}");
    assert_eq!(katran.state(), before);
    assert_eq!(katran.real_index(ip(A6)), None);

    katran.gateways_mut().set_source(ip(OWN6)).unwrap();
    katran.add_real(vip, Real::new(ip(A6))).unwrap();
    // A document sets source and reals at once.
    let state = katran.state();
    let mut bare = load(builder().encapsulation(Encapsulation::Gue));
    let mut wanted = state.clone();
    wanted.balancer = None;
    assert!(bare.apply(&wanted).is_err());
    assert!(bare.vips().is_empty(), "all or nothing");
    bare.apply(&state).unwrap();
    assert_eq!(bare.state(), state);
}
