//! What the decapsulator lets through: congestion marks that carry over or drop a packet, and
//! allowed sources and destinations. Both programs, for XDP and for tc.

use std::net::IpAddr;

use katran::Decap;
use katran::DecapBuilder;
use katran::Flow;
use katran::Prefix;
use katran::flows::Verdict;
use katran::stats::DecapCounters;

use super::decap::both;
use super::decap::gue;
use super::decap::inner_flows;
use super::decap::load_decap;
use super::decap::run;
use super::decap::strips;
use super::decap::when_taken;
use crate::common::at;
use crate::common::ecn::RFC6040;
use crate::common::ecn::in_tunnel;
use crate::common::ecn::marked;
use crate::common::frames::ETHERNET;
use crate::common::frames::IPV4;
use crate::common::frames::IPV6;
use crate::common::frames::Packet;
use crate::common::frames::SYN;
use crate::common::frames::ends_earlier;
use crate::common::frames::ethernet;
use crate::common::frames::frame;
use crate::common::frames::packet;
use crate::common::ip;

const REALS: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
const GUE: [Option<u16>; 2] = [None, Some(6080)];

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The verdict on a frame, and the counters it moves.
fn difference(decap: &Decap, frame: &[u8]) -> (Verdict, DecapCounters) {
    let before = decap.counters().unwrap();
    let verdict = run(decap, frame).verdict;
    let mut now = decap.counters().unwrap();
    now.drop_source -= before.drop_source;
    now.drop_destination -= before.drop_destination;
    now.drop_version -= before.drop_version;
    now.drop_ecn -= before.drop_ecn;
    now.drop_truncated -= before.drop_truncated;
    (verdict, now)
}

#[test]
fn congestion_marks_reach_the_inner_packet() {
    both(|| {
        let decap = load_decap(Decap::builder());
        let (mut drops, mut stripped) = (0, 0);
        for gue in GUE {
            for (flow, end) in inner_flows()
                .into_iter()
                .flat_map(|flow| REALS.map(|end| (flow, end)))
            {
                for (inner, outer, leaves) in RFC6040 {
                    let tunnel = in_tunnel(&marked(flow, inner), outer, ip(end), gue);
                    let what = format!("{inner} in {outer}, {flow} to {end}, {gue:?}");
                    let frame = ethernet(&tunnel);
                    match leaves {
                        Some(mark) => {
                            let out = strips(&decap, &frame, &marked(flow, mark));
                            stripped += u64::from(out);
                        }
                        None => {
                            assert_eq!(run(&decap, &frame).verdict, Verdict::Drop, "{what}");
                            drops += 1;
                        }
                    }
                }
            }
        }
        let counters = decap.counters().unwrap();
        assert_eq!((counters.drop_ecn, drops), (8, 8));
        // Equally many of each kind.
        assert_eq!(counters.ipip_v4 * 4, stripped);
        assert_eq!(counters.gue_v6 * 4, stripped);
        assert_eq!(stripped + counters.drop_head, 120);
    });
}

#[test]
fn inner_packets_of_the_wrong_version_are_dropped() {
    both(|| {
        let decap = load_decap(Decap::builder());
        for flow in inner_flows() {
            for end in REALS {
                let mut inner = Packet::new(flow).ip();
                inner[0] ^= 0x20;
                let mut tunnel = in_tunnel(&inner, 3, ip(end), None);
                // The outer header still names the original version.
                let protocol = if end == REALS[0] { 9 } else { 6 };
                tunnel[protocol] = if flow.source.is_ipv4() { 4 } else { 41 };
                let (verdict, moved) = difference(&decap, &ethernet(&tunnel));
                assert_eq!(
                    (verdict, moved.drop_version),
                    (Verdict::Drop, 1),
                    "{flow} {end}"
                );
            }
        }
    });
}

/// Even if nothing follows the UDP header.
#[test]
fn datagrams_to_the_gue_port_without_a_packet_pass_untouched() {
    both(|| {
        let decap = load_decap(Decap::builder());
        for data in [&b""[..], b"\0", b"\x35 version 3", b"\x70 version 7"] {
            for end in REALS {
                let datagram = gue(data, end, 6080);
                let ran = run(&decap, &datagram);
                assert_eq!((ran.verdict, ran.frame), (Verdict::Pass, datagram));
            }
        }
        assert_eq!(decap.counters().unwrap().drop_truncated, 0);
    });
}

/// A tunnel from an address to a backend of its family, with a client's packet.
fn tunnel(from: &str, flow: Flow, gue: bool) -> Vec<u8> {
    let inner = Packet::new(flow).ip();
    let from: IpAddr = ip(from);
    let end = ip(REALS[usize::from(from.is_ipv6())]);
    ethernet(&match gue {
        true => {
            let outer = Flow::udp((from, 99).into(), (end, 6080).into());
            Packet::new(outer).data(&inner).ip()
        }
        false => packet(
            from,
            end,
            if flow.source.is_ipv4() { 4 } else { 41 },
            0,
            &inner,
        ),
    })
}

#[test]
fn only_allowed_sources_may_open_a_tunnel() {
    both(|| {
        let builder = Decap::builder().allow_sources(prefixes(&["172.16.0.0/16", "10.0.0.2"]));
        let decap = load_decap(builder.clone().allow_sources(prefixes(&["100::/64"])));
        let only_v4 = load_decap(builder);
        let open = load_decap(Decap::builder().allow_sources([]));
        for flow in inner_flows() {
            for gue in [false, true] {
                for (from, allowed) in [
                    ("172.16.0.0", true),
                    ("172.16.255.255", true),
                    ("10.0.0.2", true),
                    ("100::1", true),
                    ("100::ffff:ffff:ffff:ffff", true),
                    ("172.17.0.0", false),
                    ("10.0.0.3", false),
                    ("192.0.2.1", false),
                    ("100:0:0:1::", false),
                    // Begins with the bytes of an allowed IPv4 prefix.
                    ("ac10::1", false),
                ] {
                    let frame = tunnel(from, flow, gue);
                    let taken = when_taken(&decap, &frame, flow.source.is_ipv6());
                    let expected = if allowed {
                        (taken, 0)
                    } else {
                        (Verdict::Drop, 1)
                    };
                    let (verdict, moved) = difference(&decap, &frame);
                    assert_eq!((verdict, moved.drop_source), expected, "{from} {flow}");
                    let allowed = allowed && !from.contains(':');
                    let expected = if allowed {
                        (taken, 0)
                    } else {
                        (Verdict::Drop, 1)
                    };
                    let (verdict, moved) = difference(&only_v4, &frame);
                    assert_eq!((verdict, moved.drop_source), expected, "{from} {flow}");
                    assert_eq!(run(&open, &frame).verdict, taken);
                }
                // A packet in no tunnel may come from anywhere.
                assert_eq!(run(&decap, &frame(flow)).frame, frame(flow));
            }
        }
    });
}

/// A tunnel to another address is passed, not stopped.
#[test]
fn foreign_tunnels_are_not_dropped() {
    both(|| {
        let builder = Decap::builder().destination(ip("198.51.100.9"));
        let builder = builder.allow_sources(prefixes(&["10.0.0.0/8"]));
        let decap = load_decap(builder.allow_destinations(prefixes(&["10.0.0.0/8"])));
        let frame = tunnel("192.0.2.1", inner_flows()[0], false);
        let ran = run(&decap, &frame);
        assert_eq!((ran.verdict, ran.frame), (Verdict::Pass, frame));
        assert_eq!(decap.counters().unwrap().foreign, 1);
    });
}

/// Without an address of a family, an all-zero address must not count as ours.
#[test]
fn a_family_without_a_destination_has_none() {
    both(|| {
        for (own, end) in [(REALS[1], "0.0.0.0"), (REALS[0], "::")] {
            let decap = load_decap(Decap::builder().destination(ip(own)));
            for flow in inner_flows() {
                for gue in GUE {
                    let frame = ethernet(&in_tunnel(&Packet::new(flow).ip(), 0, ip(end), gue));
                    let ran = run(&decap, &frame);
                    let passed = (ran.verdict, ran.frame) == (Verdict::Pass, frame);
                    assert!(passed, "{flow} to {end}, {gue:?}");
                }
            }
            assert_eq!(decap.counters().unwrap().foreign, 4);
        }
    });
}

#[test]
fn only_allowed_destinations_may_be_in_a_tunnel() {
    both(|| {
        let vips = prefixes(&["203.0.113.1", "2001:db8:1::/48"]);
        let decap = load_decap(Decap::builder().allow_destinations(vips));
        for (to, allowed) in [
            ("203.0.113.1:443", true),
            ("203.0.113.2:443", false),
            ("127.0.0.1:25", false),
            ("[2001:db8:1::1]:443", true),
            ("[2001:db8:2::1]:443", false),
            ("[cb00:7101::]:443", false),
        ] {
            let from = if to.starts_with('[') {
                "[2001:db8:c::7]:5"
            } else {
                "192.0.2.7:5"
            };
            let flow = Flow::tcp(at(from), at(to));
            for gue in [false, true] {
                for from in ["172.16.1.1", "100::1"] {
                    let frame = tunnel(from, flow, gue);
                    let taken = when_taken(&decap, &frame, flow.source.is_ipv6());
                    let (verdict, moved) = difference(&decap, &frame);
                    let expected = if allowed {
                        (taken, 0)
                    } else {
                        (Verdict::Drop, 1)
                    };
                    assert_eq!(
                        (verdict, moved.drop_destination),
                        expected,
                        "{to} by {from}"
                    );
                }
            }
        }
        // The inner destination decides, whatever the tunnel's end.
        let counters = decap.counters().unwrap();
        assert_eq!((counters.drop_source, counters.drop_destination), (0, 16));
    });
}

/// The prefixes are the tries' entries: any number, up to full addresses.
#[test]
fn many_prefixes_fit() {
    both(|| {
        let many =
            (0..3000_u32).map(|i| Prefix::new((0x0a00_0000 + i * 2).to_be_bytes().into(), 32));
        let many: Vec<Prefix> = many.map(Result::unwrap).collect();
        let twice = many.iter().chain(&many).copied();
        let decap = load_decap(DecapBuilder::default().allow_sources(twice));
        let flow = inner_flows()[0];
        for (from, verdict) in [
            ("10.0.0.0", Verdict::Pass),
            ("10.0.0.1", Verdict::Drop),
            ("10.0.23.110", Verdict::Pass),
            ("10.0.23.112", Verdict::Drop),
        ] {
            assert_eq!(
                run(&decap, &tunnel(from, flow, false)).verdict,
                verdict,
                "{from}"
            );
        }
    });
}

/// The id in a SYN is an earlier connection's, and leads nowhere.
#[test]
fn server_ids_of_syns_are_not_counted() {
    both(|| {
        let decap = load_decap(Decap::builder().server_id(7));
        let option = [&[0xb7, 6][..], &9_u32.to_le_bytes()].concat();
        for (flags, counted) in [(SYN, 0), (SYN | 0x10, 0), (0x10, 1), (0x04, 1)] {
            let before = decap.counters().unwrap();
            let inner = Packet::new(inner_flows()[0]).flags(flags).options(&option);
            let outer = in_tunnel(&inner.ip(), 0, ip(REALS[0]), None);
            assert_eq!(run(&decap, &ethernet(&outer)).frame, inner.frame());
            let now = decap.counters().unwrap();
            assert_eq!(now.server_ids - before.server_ids, counted, "{flags:#x}");
            assert_eq!(now.other_server_ids - before.other_server_ids, counted);
        }
    });
}

/// By the outer length, and in GUE by the datagram's, whatever follows it in the frame.
#[test]
fn a_tunnels_payload_ends_with_its_outer_packet() {
    both(|| {
        let decap = load_decap(Decap::builder());
        for (flow, header) in inner_flows().into_iter().zip([IPV4, IPV6]) {
            let inner = Packet::new(flow).ip();
            for (end, kind) in REALS
                .into_iter()
                .flat_map(|end| GUE.map(|kind| (end, kind)))
            {
                let whole = in_tunnel(&inner, 0, ip(end), kind);
                for datagram in [false, true] {
                    if datagram && kind.is_none() {
                        continue;
                    }
                    let what = format!("{flow} to {end}, {kind:?} {datagram}");
                    let behind = inner.len() - header;
                    for missing in [1, behind, behind + 1, inner.len() - 1] {
                        let mut tunnel = whole.clone();
                        ends_earlier(&mut tunnel, missing, datagram);
                        let (verdict, moved) = difference(&decap, &ethernet(&tunnel));
                        let outcome = (verdict, moved.drop_truncated);
                        assert_eq!(outcome, (Verdict::Drop, 1), "{what} {missing}");
                    }
                    // An empty datagram is no tunnel.
                    let mut tunnel = whole.clone();
                    ends_earlier(&mut tunnel, inner.len(), datagram);
                    let frame = ethernet(&tunnel);
                    let (verdict, moved) = difference(&decap, &frame);
                    if kind.is_some() {
                        assert_eq!(
                            (verdict, moved.drop_truncated),
                            (Verdict::Pass, 0),
                            "{what}"
                        );
                        assert_eq!(run(&decap, &frame).frame, frame, "{what}");
                    } else {
                        assert_eq!(
                            (verdict, moved.drop_truncated),
                            (Verdict::Drop, 1),
                            "{what}"
                        );
                    }
                }
                // A frame that ends before its outer packet does, even by a single unused byte.
                let mut longer = whole.clone();
                longer[if end == REALS[0] { 3 } else { 5 }] += 1;
                let (verdict, moved) = difference(&decap, &ethernet(&longer));
                assert_eq!(
                    (verdict, moved.drop_truncated),
                    (Verdict::Drop, 1),
                    "{flow}"
                );
                // An inner packet that claims to be longer than the payload, in a frame that is.
                let mut longer = inner.clone();
                longer[if header == IPV4 { 3 } else { 5 }] += 1;
                let mut frame = ethernet(&in_tunnel(&longer, 0, ip(end), kind));
                frame.push(0);
                let (verdict, moved) = difference(&decap, &frame);
                assert_eq!(
                    (verdict, moved.drop_truncated),
                    (Verdict::Drop, 1),
                    "{flow}"
                );
                // Padding behind everything stays padding.
                let mut padded = ethernet(&whole);
                padded.extend([0x45; 7]);
                let _ = strips(&decap, &padded, &[&inner[..], &[0x45; 7]].concat());
            }
        }
    });
}

/// A frame whose IP version contradicts its EtherType contains no valid packet.
#[test]
fn a_frame_of_another_version_than_its_ethertype_passes_untouched() {
    both(|| {
        let decap = load_decap(Decap::builder());
        let inner = Packet::new(inner_flows()[0]).ip();
        for (end, kind) in REALS
            .into_iter()
            .flat_map(|end| GUE.map(|kind| (end, kind)))
        {
            let right = ethernet(&in_tunnel(&inner, 0, ip(end), kind));
            for version in [0, 5, 15, if end == REALS[0] { 6 } else { 4 }] {
                let mut frame = right.clone();
                frame[ETHERNET] = version << 4 | frame[ETHERNET] & 0xf;
                let ran = run(&decap, &frame);
                assert_eq!(
                    (ran.verdict, ran.frame),
                    (Verdict::Pass, frame),
                    "{end} {version}"
                );
            }
        }
        let counters = decap.counters().unwrap();
        assert_eq!(counters.total, 16);
        assert_eq!(
            counters.ipip_v4 + counters.ipip_v6 + counters.gue_v4 + counters.gue_v6,
            0
        );
    });
}

/// Options beyond the packet's end are not part of it.
#[test]
fn server_ids_in_padding_are_not_counted() {
    both(|| {
        let decap = load_decap(Decap::builder().server_id(7));
        let option = [&[0xb7, 6][..], &9_u32.to_le_bytes()].concat();
        let packet = Packet::new(inner_flows()[0]).options(&option).data(b"");
        for (missing, counted) in [(0, 1), (1, 0), (8, 0)] {
            let mut inner = packet.ip();
            ends_earlier(&mut inner, missing, false);
            let before = decap.counters().unwrap();
            let outer = in_tunnel(&inner, 0, ip(REALS[0]), None);
            assert_eq!(run(&decap, &ethernet(&outer)).frame, ethernet(&inner));
            let now = decap.counters().unwrap();
            assert_eq!(now.server_ids - before.server_ids, counted, "{missing}");
        }
    });
}

/// A truncated header is detected before its contents are used.
#[test]
fn truncation_is_detected_before_other_rules() {
    both(|| {
        let builder = Decap::builder().allow_destinations(prefixes(&["10.0.0.0/8", "100::/64"]));
        let decap = load_decap(builder);
        for (flow, header) in inner_flows().into_iter().zip([IPV4, IPV6]) {
            let tunnel = tunnel("172.16.1.1", flow, false);
            let cut = &tunnel[..ETHERNET + IPV4 + header - 1];
            assert_eq!(run(&decap, cut).verdict, Verdict::Drop);
        }
        let counters = decap.counters().unwrap();
        assert_eq!((counters.drop_truncated, counters.drop_destination), (2, 0));
    });
}
