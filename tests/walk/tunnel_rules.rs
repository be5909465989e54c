//! What a balancer lets out of tunnels that end at it: congestion marks that carry over or end a
//! packet, malformed packets, and tunnels in tunnels.

use katran::Flow;
use katran::flows::Reason;
use katran::flows::Verdict;
use katran::stats::DropReason;

use super::inline_decap::EGRESS;
use super::inline_decap::ELSEWHERE;
use super::inline_decap::GUE_PORT;
use super::inline_decap::INLINE;
use super::inline_decap::KINDS;
use super::inline_decap::Kind;
use super::inline_decap::OWN;
use super::inline_decap::aged;
use super::inline_decap::balancer;
use super::inline_decap::flows;
use super::inline_decap::in_tunnel;
use super::inline_decap::mixes;
use super::inline_decap::run;
use super::inline_decap::settings;
use super::inline_decap::tunnelled;
use crate::common::at;
use crate::common::ecn;
use crate::common::ecn::RFC6040;
use crate::common::ecn::marked;
use crate::common::frames::ETHERNET;
use crate::common::frames::Packet;
use crate::common::frames::ends_earlier;
use crate::common::frames::ethernet;
use crate::common::frames::reverse;
use crate::common::ip;

fn dropped(reason: DropReason) -> (Verdict, Reason) {
    (Verdict::Drop, Reason::Dropped(reason))
}

#[test]
fn congestion_marks_reach_the_inner_packet() {
    let katran = balancer(settings());
    let mut drops = 0;
    for (kind, outer, flow) in mixes() {
        for end in [INLINE[outer], EGRESS[outer], OWN[outer]] {
            for (inner, of_tunnel, leaves) in RFC6040 {
                let gue = (kind == Kind::Gue).then_some(GUE_PORT);
                let tunnel = ecn::in_tunnel(&marked(flow, inner), of_tunnel, ip(end), gue);
                let ran = run(&katran, &ethernet(&tunnel));
                let what = format!("{inner} in {of_tunnel}, {flow} to {end} by {kind:?}");
                let Some(mark) = leaves else {
                    let outcome = (ran.verdict, ran.reason);
                    assert_eq!(outcome, dropped(DropReason::Ecn), "{what}");
                    drops += 1;
                    continue;
                };
                let inner = aged(&marked(flow, mark));
                if end == INLINE[outer] {
                    // As without the tunnel, with the mark in the next one, too.
                    let plain = run(&katran, &ethernet(&inner));
                    assert_eq!(
                        (ran.verdict, &ran.frame),
                        (Verdict::Tx, &plain.frame),
                        "{what}"
                    );
                    assert_eq!(ran.frame[ETHERNET + 1] & 3, mark, "{what}");
                } else {
                    assert_eq!(ran.frame[ETHERNET..], inner, "{what}");
                }
            }
        }
    }
    let reasons = katran.stats().drop_reasons().unwrap();
    assert_eq!((reasons.get(DropReason::Ecn), drops), (24, 24));
    assert_eq!(katran.stats().totals().unwrap().drop.packets, 24);
}

#[test]
fn inner_packets_of_the_wrong_version_are_dropped_unchanged() {
    let katran = balancer(settings());
    for (kind, outer, flow) in mixes().filter(|(kind, ..)| *kind == Kind::Ipip) {
        for end in [INLINE[outer], EGRESS[outer], OWN[outer]] {
            for version in [0, 1, 5, 15, if flow.source.is_ipv4() { 6 } else { 4 }] {
                let mut frame = tunnelled(kind, &Packet::new(flow).ip(), end);
                let at = ETHERNET + if outer == 0 { 20 } else { 40 };
                frame[at] = version << 4 | frame[at] & 0xf;
                let ran = run(&katran, &frame);
                let outcome = (ran.verdict, ran.reason);
                assert_eq!(
                    outcome,
                    dropped(DropReason::InnerVersion),
                    "{version} {end}"
                );
                assert_eq!(ran.frame, frame, "{version} {end}");
            }
        }
    }
    // A tunnel to another host is not ours to inspect.
    let strict = balancer(super::inline_decap::strict());
    let mut frame = tunnelled(Kind::Ipip, &Packet::new(flows()[0]).ip(), ELSEWHERE[0]);
    frame[ETHERNET + 20] = 0;
    let ran = run(&strict, &frame);
    assert_eq!((ran.reason, ran.frame), (Reason::DecapForeign, frame));
}

/// Otherwise one frame would leave once for each of its headers.
#[test]
fn no_tunnel_leaves_by_an_egress_address() {
    let katran = balancer(settings());
    let mut drops = 0;
    for (kind, outer, flow) in mixes() {
        let packet = Packet::new(reverse(flow)).ip();
        for nested in KINDS {
            for end in INLINE.into_iter().chain(EGRESS).chain(ELSEWHERE) {
                let middle = in_tunnel(nested, &packet, end);
                let frame = tunnelled(kind, &middle, EGRESS[outer]);
                let ran = run(&katran, &frame);
                let outcome = (ran.verdict, ran.reason);
                assert_eq!(
                    outcome,
                    dropped(DropReason::NestedTunnel),
                    "{kind:?} {nested:?} {end}"
                );
                assert_eq!(ran.frame, frame);
                drops += 1;
            }
        }
        // Sixty of them.
        let mut many = packet.clone();
        for _ in 0..60 {
            many = in_tunnel(Kind::Ipip, &many, EGRESS[0]);
        }
        let ran = run(&katran, &tunnelled(kind, &many, EGRESS[outer]));
        assert_eq!(ran.verdict, Verdict::Drop);
        drops += 1;
    }
    // Protocols 4 and 41 behind options, or in a fragment.
    for (at, value) in [(0, 0x46), (6, 0x20), (7, 1)] {
        let mut middle = in_tunnel(Kind::Ipip, &Packet::new(flows()[0]).ip(), ELSEWHERE[0]);
        middle[at] = value;
        let ran = run(&katran, &tunnelled(Kind::Ipip, &middle, EGRESS[0]));
        assert_eq!(
            ran.reason,
            Reason::Dropped(DropReason::NestedTunnel),
            "{at}"
        );
        drops += 1;
    }
    // Behind extension headers, and where those cannot be followed.
    for (next, count) in [(4, 1), (41, 1), (4, 4), (6, 5)] {
        let mut middle = Packet::new(flows()[1]).ip();
        let plain = middle.split_off(40);
        middle[6] = 60;
        for left in (0..count).rev() {
            middle.extend([if left == 0 { next } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        middle.extend(plain);
        let length = middle.len() as u16 - 40;
        middle[4..6].copy_from_slice(&length.to_be_bytes());
        let ran = run(&katran, &tunnelled(Kind::Ipip, &middle, EGRESS[0]));
        let outcome = (ran.verdict, ran.reason);
        assert_eq!(outcome, dropped(DropReason::NestedTunnel), "{next} {count}");
        drops += 1;
    }
    let reasons = katran.stats().drop_reasons().unwrap();
    assert_eq!(reasons.get(DropReason::NestedTunnel), drops);
    assert_eq!(katran.stats().totals().unwrap().tx.packets, 0);
}

/// Found by fuzzing: the second tunnel was passed before its length was checked.
#[test]
fn a_second_tunnel_of_impossible_length_is_dropped() {
    let katran = balancer(settings());
    let flow = flows()[0];
    let vip = flow.destination.ip().to_string();
    let mut second = in_tunnel(Kind::Ipip, &Packet::new(flow).ip(), &vip);
    for (length, reason) in [
        (None, Reason::TunnelInTunnel),
        (Some(0_u16), Reason::Dropped(DropReason::Length)),
        (Some(19), Reason::Dropped(DropReason::Length)),
    ] {
        if let Some(length) = length {
            second[2..4].copy_from_slice(&length.to_be_bytes());
        }
        let ran = run(&katran, &tunnelled(Kind::Ipip, &second, INLINE[0]));
        assert_eq!(ran.reason, reason, "{length:?}");
    }
}

/// A payload that begins with neither 4 nor 6, or is empty, is no tunnel, whether outermost or
/// inside one.
#[test]
fn datagrams_to_the_gue_port_without_a_packet_are_like_any_other() {
    let mut katran = balancer(settings());
    let vip = format!("203.0.113.1:{GUE_PORT}/udp");
    crate::common::serve(
        &mut katran,
        &vip,
        katran::VipFlags::empty(),
        &["198.51.100.1"],
    );
    let to = at(&format!("203.0.113.1:{GUE_PORT}"));
    let flow = Flow::udp(at("192.0.2.7:40001"), to);
    for data in [&b""[..], b"\0", b"\x35 version 3", b"\x70 version 7"] {
        let packet = Packet::new(flow).data(data).ip();
        let plain = run(&katran, &ethernet(&packet));
        assert_eq!(plain.verdict, Verdict::Tx, "{data:?}: {}", plain.reason);
        for kind in KINDS {
            for outer in [0, 1] {
                let inner = Packet::new(flow).data(data).ip();
                let ran = run(&katran, &tunnelled(kind, &inner, INLINE[outer]));
                let expected = run(&katran, &ethernet(&aged(&inner)));
                assert_eq!(
                    ran.verdict,
                    Verdict::Tx,
                    "{kind:?} {data:?}: {}",
                    ran.reason
                );
                assert_eq!(ran.frame, expected.frame);
                // It leaves by an egress address, as it is no tunnel.
                let ran = run(&katran, &tunnelled(kind, &inner, EGRESS[outer]));
                assert_eq!(ran.reason, Reason::DecapEgress, "{kind:?} {data:?}");
            }
        }
    }
    // Also to an address where tunnels end.
    for end in INLINE {
        let from = if ip(end).is_ipv4() {
            "192.0.2.7:5"
        } else {
            "[2001:db8:c::7]:5"
        };
        let flow = Flow::udp(at(from), (ip(end), GUE_PORT).into());
        let frame = Packet::new(flow).data(b"").frame();
        let ran = run(&katran, &frame);
        assert_eq!((ran.reason, ran.frame), (Reason::NotAVip, frame));
    }
}

/// By the outer length, and in GUE by the datagram's.
#[test]
fn a_tunnels_payload_ends_with_its_outer_packet() {
    let katran = balancer(settings());
    let mut drops = 0;
    for (kind, outer, flow) in mixes() {
        let inner = Packet::new(flow).ip();
        let header = if flow.source.is_ipv4() { 20 } else { 40 };
        for end in [INLINE[outer], EGRESS[outer], OWN[outer]] {
            for datagram in [false, true] {
                if datagram && kind == Kind::Ipip {
                    continue;
                }
                // All but a byte, the header alone, less than that: the frame still has the rest.
                for missing in [1, inner.len() - header, inner.len() - header + 1] {
                    let mut tunnel = in_tunnel(kind, &inner, end);
                    ends_earlier(&mut tunnel, missing, datagram);
                    let frame = ethernet(&tunnel);
                    let ran = run(&katran, &frame);
                    let what = format!("{kind:?} {end} {flow} {missing} {datagram}");
                    let outcome = (ran.verdict, ran.reason);
                    assert_eq!(outcome, dropped(DropReason::InnerTruncated), "{what}");
                    assert_eq!(ran.frame, frame, "{what}");
                    drops += 1;
                }
                // An empty datagram is no tunnel, whatever follows it.
                let mut tunnel = in_tunnel(kind, &inner, end);
                ends_earlier(&mut tunnel, inner.len(), datagram);
                let frame = ethernet(&tunnel);
                let ran = run(&katran, &frame);
                if kind == Kind::Gue {
                    assert_eq!((ran.reason, ran.frame), (Reason::NotAVip, frame), "{end}");
                } else {
                    let outcome = (ran.verdict, ran.reason);
                    assert_eq!(outcome, dropped(DropReason::InnerTruncated), "{end}");
                    drops += 1;
                }
            }
            // The inner packet claims to be longer, and the frame is.
            let mut longer = inner.clone();
            let at = if flow.source.is_ipv4() { 3 } else { 5 };
            longer[at] += 1;
            let mut frame = tunnelled(kind, &longer, end);
            frame.push(0);
            let ran = run(&katran, &frame);
            assert_eq!(ran.reason, Reason::Dropped(DropReason::InnerTruncated));
            drops += 1;
            // Padding behind the payload makes no difference.
            let mut padded = tunnelled(kind, &inner, end);
            let plain = run(&katran, &padded);
            assert_ne!(plain.verdict, Verdict::Drop);
            padded.extend([0x45; 7]);
            let ran = run(&katran, &padded);
            assert_eq!(ran.verdict, plain.verdict);
            assert_eq!(ran.frame[..plain.frame.len()], plain.frame);
        }
    }
    let reasons = katran.stats().drop_reasons().unwrap();
    assert_eq!(reasons.get(DropReason::InnerTruncated), drops);
}

/// An IPv4 header shorter than the minimum, or longer than its packet, must not leave. What stays
/// here is up to the walk or the host.
#[test]
fn packets_cut_within_their_header_do_not_leave_by_an_egress_address() {
    let katran = balancer(settings());
    let mut drops = 0;
    for (kind, outer, flow) in mixes().filter(|(.., flow)| flow.source.is_ipv4()) {
        // Lengths of the header and of the packet.
        for (header, length) in [(20, 19), (20, 0), (16, 40), (0, 40), (40, 39), (40, 40)] {
            let mut inner = Packet::new(flow).ip();
            inner[0] = 0x40 + header / 4;
            inner[2..4].copy_from_slice(&u16::to_be_bytes(length));
            let frame = tunnelled(kind, &inner, EGRESS[outer]);
            let ran = run(&katran, &frame);
            let what = format!("{kind:?} {header} {length}");
            if header == 40 && length == 40 {
                assert_eq!(ran.reason, Reason::DecapEgress, "{what}");
                continue;
            }
            let outcome = (ran.verdict, ran.reason);
            assert_eq!(outcome, dropped(DropReason::InnerTruncated), "{what}");
            assert_eq!(ran.frame, frame, "{what}");
            drops += 1;
            let ran = run(&katran, &tunnelled(kind, &inner, OWN[outer]));
            assert_eq!(ran.reason, Reason::DecapToHost, "{what}");
        }
    }
    let reasons = katran.stats().drop_reasons().unwrap();
    assert_eq!((reasons.get(DropReason::InnerTruncated), drops), (20, 20));
}

/// An empty datagram in a tunnel, followed by other bytes, contains no tunnel.
#[test]
fn padding_makes_no_second_tunnel() {
    let katran = balancer(settings());
    for (kind, outer, flow) in mixes() {
        for end in INLINE {
            for datagram in [false, true] {
                let inner = Packet::new(flow).ip();
                let mut second = in_tunnel(Kind::Gue, &inner, end);
                ends_earlier(&mut second, inner.len(), datagram);
                let ran = run(&katran, &tunnelled(kind, &second, EGRESS[outer]));
                assert_eq!(ran.reason, Reason::DecapEgress, "{kind:?} {end} {flow}");
                let ran = run(&katran, &tunnelled(kind, &second, INLINE[outer]));
                assert_eq!(ran.reason, Reason::NotAVip, "{kind:?} {end} {flow}");
            }
        }
    }
}

/// A packet for the host counts for the VIP whose port it names, not for one that padding names.
#[test]
fn a_packet_without_ports_counts_for_no_vip() {
    let katran = balancer(settings());
    for outer in [0, 1] {
        for (flow, header) in flows().into_iter().zip([20, 40]) {
            let whole = Packet::new(flow).ip();
            for (bytes, count) in [(0, 0), (7, 0), (8, 1)] {
                let mut inner = whole.clone();
                ends_earlier(&mut inner, whole.len() - header - bytes, false);
                let counted = || -> u64 {
                    let vips = katran.vips();
                    vips.into_iter()
                        .map(|vip| katran.stats().vip(vip).unwrap().decap)
                        .sum()
                };
                let before = counted();
                let ran = run(&katran, &tunnelled(Kind::Gue, &inner, OWN[outer]));
                assert_eq!(ran.reason, Reason::DecapToHost);
                assert_eq!(counted() - before, count, "{flow} {bytes}");
            }
        }
    }
}

#[test]
fn only_allowed_sources_open_tunnels() {
    let prefixes = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.parse().unwrap())
            .collect::<Vec<_>>()
    };
    let allowed = |sources: &[&str]| balancer(settings().allow_sources(prefixes(sources)));
    // Tunnels come from 172.16.1.1 and 2001:db8:ff::1.
    for (sources, v4, v6) in [
        (&["172.16.0.0/16", "2001:db8:ff::/64"][..], true, true),
        (&["172.16.1.1"], true, false),
        (&["172.16.1.0/32", "2001:db8:ff::1"], false, true),
        (&["0.0.0.0/0"], true, false),
        (&["ac10:101::/32"], false, false),
        (&[], true, true),
    ] {
        let katran = allowed(sources);
        let mut drops = 0;
        for (kind, outer, flow) in mixes() {
            for end in [INLINE[outer], EGRESS[outer], OWN[outer]] {
                let frame = tunnelled(kind, &Packet::new(flow).ip(), end);
                let ran = run(&katran, &frame);
                if [v4, v6][outer] {
                    assert_ne!(ran.verdict, Verdict::Drop, "{sources:?} {end}");
                } else {
                    assert_eq!((ran.verdict, ran.reason), dropped(DropReason::OuterSource));
                    assert_eq!(ran.frame, frame);
                    drops += 1;
                }
            }
        }
        let reasons = katran.stats().drop_reasons().unwrap();
        assert_eq!(reasons.get(DropReason::OuterSource), drops, "{sources:?}");
    }
    // Packets of a foreign tunnel are not ours to drop, nor are those in no tunnel.
    let katran = balancer(super::inline_decap::strict().allow_sources(prefixes(&["10.0.0.1"])));
    let frame = tunnelled(Kind::Ipip, &Packet::new(flows()[0]).ip(), ELSEWHERE[0]);
    assert_eq!(run(&katran, &frame).reason, Reason::DecapForeign);
    assert_eq!(
        run(&katran, &Packet::new(flows()[0]).frame()).verdict,
        Verdict::Tx
    );
}

#[test]
fn only_answers_of_vips_leave_by_an_egress_address() {
    let vips = ["203.0.113.0/24", "2001:db8:1::1/128"].map(|text| text.parse().unwrap());
    let mut katran = balancer(settings().egress_sources(vips));
    let check = |katran: &katran::Katran| {
        let before = katran
            .stats()
            .drop_reasons()
            .unwrap()
            .get(DropReason::EgressSource);
        for (kind, outer, flow) in mixes() {
            let answer = Packet::new(reverse(flow)).ip();
            let ran = run(katran, &tunnelled(kind, &answer, EGRESS[outer]));
            assert_eq!(ran.reason, Reason::DecapEgress, "{kind:?} {flow}");
            // From the client's address, which anyone may have.
            let frame = tunnelled(kind, &Packet::new(flow).ip(), EGRESS[outer]);
            let ran = run(katran, &frame);
            assert_eq!((ran.verdict, ran.reason), dropped(DropReason::EgressSource));
            assert_eq!(ran.frame, frame);
            // Packets that are balanced again, or go to the host, may come from anywhere.
            let ran = run(
                katran,
                &tunnelled(kind, &Packet::new(flow).ip(), INLINE[outer]),
            );
            assert_eq!(ran.verdict, Verdict::Tx, "{}", ran.reason);
        }
        let reasons = katran.stats().drop_reasons().unwrap();
        assert_eq!(reasons.get(DropReason::EgressSource) - before, 8);
    };
    check(&katran);
    // The list is part of the state, and returns with the feature.
    let state = katran.state();
    let sources = state.balancer.unwrap().egress_sources.unwrap();
    assert_eq!(sources, vips);
    let (features, ends) = (katran.features(), katran.decap().list());
    for (end, _) in &ends {
        katran.decap_mut().remove(*end).unwrap();
    }
    katran.reload(katran::Features::default()).unwrap();
    katran.reload(features).unwrap();
    for (end, mode) in ends {
        katran.decap_mut().add(end, mode).unwrap();
    }
    check(&katran);
}

#[test]
fn only_listed_addresses_and_the_hosts_own_end_tunnels_by_default() {
    let katran = balancer(super::inline_decap::strict());
    let packet = Packet::new(flows()[0]).ip();
    for kind in KINDS {
        for outer in [0, 1] {
            let frame = tunnelled(kind, &packet, ELSEWHERE[outer]);
            let ran = run(&katran, &frame);
            assert_eq!((ran.reason, ran.frame), (Reason::DecapForeign, frame));
            let own = run(&katran, &tunnelled(kind, &packet, OWN[outer]));
            assert_eq!(own.reason, Reason::DecapToHost);
        }
    }
}
