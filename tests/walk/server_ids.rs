//! Routing by ids in packets: QUIC connection ids, the TCP option, stable UDP routing; and the
//! table of server ids.

use std::net::IpAddr;

use katran::Builder;
use katran::Error;
use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::Real;
use katran::RealChange;
use katran::ServerId;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Simulation;
use katran::flows::Verdict;
use katran::stats::QuicCounters;
use katran::stats::StableUdpCounters;
use katran::stats::TcpServerIdCounters;
use nix::errno::Errno;

use crate::common::at;
use crate::common::builder;
use crate::common::faults;
use crate::common::frames;
use crate::common::frames::Packet;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
/// In no VIP: only ids name it.
const C: &str = "2001:db8:2::9";
const TO: &str = "203.0.113.1:443";
const TOP_BIT: u32 = 0x8000_0001;

fn settings() -> Builder {
    builder().features(Features::default() | Features::TCP_SERVER_ID | Features::UDP_STABLE_ROUTING)
}

/// New flows go to A; ids name B and C.
fn balancer(vip: &str, flags: VipFlags) -> (Katran, Vip) {
    let mut katran = load(settings());
    let vip = serve(&mut katran, vip, flags, &[A]);
    let ids = [(7, B), (70_000, C), (TOP_BIT, B), (0xff_ffff, C)];
    katran
        .server_ids_mut()
        .add(&ids.map(|(id, real)| ServerId::new(id, ip(real))))
        .unwrap();
    (katran, vip)
}

fn quic(flags: VipFlags) -> (Katran, Vip) {
    balancer("203.0.113.1:443/udp", VipFlags::QUIC | flags)
}

fn udp(port: u16) -> Flow {
    Flow::udp((ip("192.0.2.7"), port).into(), at(TO))
}

fn tcp(port: u16) -> Flow {
    Flow::tcp((ip("192.0.2.7"), port).into(), at(TO))
}

/// A connection id of this version with a server id.
fn connection_id(version: u8, id: u32) -> [u8; 8] {
    let bytes = id.to_be_bytes();
    let mut cid = [0x3a; 8];
    match version {
        1 => {
            cid[0] = bytes[2] >> 2;
            cid[1] = bytes[2] << 6 | bytes[3] >> 2;
            cid[2] = bytes[3] << 6 | 0x15;
        }
        2 => cid[1..4].copy_from_slice(&bytes[1..]),
        3 => cid[1..5].copy_from_slice(&bytes),
        _ => {}
    }
    cid[0] = cid[0] & 0x3f | version << 6;
    cid
}

fn short(version: u8, id: u32) -> Vec<u8> {
    [&[0x43][..], &connection_id(version, id), b"rest"].concat()
}

fn long(kind: u8, length: u8, version: u8, id: u32) -> Vec<u8> {
    let head = [0xc0 | kind, 0, 0, 0, 1, length];
    [&head[..], &connection_id(version, id), b"rest"].concat()
}

fn stable(id: u32) -> Vec<u8> {
    let [_, a, b, c] = id.to_be_bytes();
    vec![0x52, a, b, c, 0, 0, 0, 0]
}

fn option(id: u32) -> Vec<u8> {
    [&[0xb7, 6][..], &id.to_le_bytes()].concat()
}

fn send(katran: &Katran, flow: Flow, payload: &[u8]) -> Simulation {
    katran
        .simulate(&Packet::new(flow).data(payload).frame())
        .unwrap()
}

fn send_tcp(katran: &Katran, flow: Flow, options: &[u8]) -> Simulation {
    katran
        .simulate(&Packet::new(flow).options(options).frame())
        .unwrap()
}

fn went(to: &str, reason: Reason) -> (Verdict, Option<IpAddr>, Reason) {
    (Verdict::Tx, Some(ip(to)), reason)
}

fn outcome(ran: &Simulation) -> (Verdict, Option<IpAddr>, Reason) {
    (ran.verdict, ran.real, ran.reason)
}

#[test]
fn quic_packets_go_where_their_connection_id_says() {
    let (katran, vip) = quic(VipFlags::empty());
    let to = |flow, payload: &[u8]| outcome(&send(&katran, flow, payload));
    let by_id = |real| went(real, Reason::ConnectionId);
    let by_ring = went(A, Reason::Ring);
    assert_eq!(to(udp(1001), &short(1, 7)), by_id(B));
    assert_eq!(to(udp(1002), &short(2, 70_000)), by_id(C));
    assert_eq!(to(udp(1003), &short(2, 0xff_ffff)), by_id(C));
    assert_eq!(to(udp(1004), &short(3, 70_000)), by_id(C));
    assert_eq!(to(udp(1005), &short(3, TOP_BIT)), by_id(B), "all 32 bits");
    // Handshake and retry carry the server's id, the first packets the client's.
    assert_eq!(to(udp(1006), &long(0x20, 8, 1, 7)), by_id(B));
    assert_eq!(to(udp(1007), &long(0x30, 20, 1, 7)), by_id(B));
    assert_eq!(to(udp(1008), &long(0x00, 8, 1, 7)), by_ring);
    assert_eq!(to(udp(1009), &long(0x10, 8, 1, 7)), by_ring);
    // No id, or one that leads nowhere.
    assert_eq!(to(udp(1010), &long(0x20, 7, 1, 7)), by_ring);
    assert_eq!(to(udp(1011), &short(0, 7)), by_ring);
    assert_eq!(to(udp(1012), &short(1, 0)), by_ring);
    assert_eq!(to(udp(1013), &short(1, 8)), by_ring);
    assert_eq!(to(udp(1014), &short(1, 7)[..8]), by_ring);
    assert_eq!(to(udp(1015), &long(0x20, 8, 1, 7)[..13]), by_ring);
    assert_eq!(to(udp(1016), b""), by_ring);
    let counters = katran.stats().quic().unwrap();
    let mut expected = QuicCounters::default();
    expected.cid_initial = 2;
    expected.cid_routed = 7;
    expected.ch_routed = 7;
    expected.cid_v0 = 1;
    expected.cid_v1 = 4;
    expected.cid_v2 = 2;
    expected.cid_v3 = 2;
    expected.cid_invalid_server_id = 1;
    expected.cid_invalid_server_id_sample = 8;
    expected.dst_not_found_in_lru = 7;
    assert_eq!(counters, expected);
    let of_vip = katran.stats().vip(vip).unwrap();
    assert_eq!((of_vip.server_id_new, of_vip.server_id_moved), (2, 0));
    assert_eq!(of_vip.forwarded.packets, 16);
    assert_eq!(
        katran.stats().totals().unwrap().tx.packets,
        16,
        "each counts once"
    );
    assert_eq!(katran.stats().flow_table().unwrap().packets, 16);
}

#[test]
fn a_flow_follows_its_id_and_stays_without_it() {
    let (katran, vip) = quic(VipFlags::empty());
    let flow = udp(2000);
    let to = |payload: &[u8]| outcome(&send(&katran, flow, payload));
    assert_eq!(to(&long(0, 8, 0, 0)), went(A, Reason::Ring));
    assert_eq!(to(&short(1, 7)), went(B, Reason::ConnectionId));
    assert_eq!(
        to(&short(0, 0)),
        went(B, Reason::FlowTable),
        "its entry was corrected"
    );
    assert_eq!(to(&short(1, 7)), went(B, Reason::ConnectionId));
    assert_eq!(to(&short(2, 70_000)), went(C, Reason::ConnectionId));
    let counters = katran.stats().quic().unwrap();
    assert_eq!(
        (counters.dst_match_in_lru, counters.dst_mismatch_in_lru),
        (1, 2)
    );
    assert_eq!(katran.stats().vip(vip).unwrap().server_id_moved, 2);
    // An id's entry is like any other.
    let other = udp(2001);
    assert_eq!(
        outcome(&send(&katran, other, &short(1, 7))),
        went(B, Reason::ConnectionId)
    );
    assert_eq!(
        outcome(&send(&katran, other, &short(0, 0))),
        went(B, Reason::FlowTable)
    );
    let answer = katran.real_for_flow(&other).unwrap().unwrap();
    assert_eq!(answer.real, Some(ip(B)));
}

#[test]
fn with_lru_bypass_an_id_leaves_no_entry() {
    let (katran, _) = quic(VipFlags::LRU_BYPASS);
    let flow = udp(2100);
    assert_eq!(
        outcome(&send(&katran, flow, &short(1, 7))),
        went(B, Reason::ConnectionId)
    );
    assert_eq!(
        outcome(&send(&katran, flow, &short(0, 0))),
        went(A, Reason::Ring)
    );
    let counters = katran.stats().quic().unwrap();
    assert_eq!(counters.dst_not_found_in_lru, 0);
}

#[test]
fn icmp_errors_carry_no_ids() {
    let (katran, _) = quic(VipFlags::empty());
    let flow = udp(2200);
    send(&katran, flow, &short(1, 7));
    let quoted = Packet::new(frames::reverse(flow))
        .data(&short(2, 70_000))
        .ip();
    for (code, ignored) in [(1, true), (3, true), (4, false), (0, false)] {
        let before = katran.stats().quic().unwrap();
        let frame = frames::icmp(
            ip("192.0.2.254"),
            flow.destination.ip(),
            3,
            code,
            [0; 4],
            &quoted,
        );
        let ran = katran.simulate(&frame).unwrap();
        assert_eq!(outcome(&ran), went(B, Reason::FlowTable));
        let after = katran.stats().quic().unwrap();
        assert_eq!(after.icmp - before.icmp, 1);
        assert_eq!(after.icmp_ignored - before.icmp_ignored, u64::from(ignored));
        assert_eq!(after.cid_routed, before.cid_routed);
    }
    // Each also counts once as what it is.
    assert_eq!(katran.stats().icmp().unwrap().ptb_v4, 1);
}

#[test]
fn tcp_packets_go_where_their_option_says() {
    let (katran, vip) = balancer("203.0.113.1:443/tcp", VipFlags::empty());
    let to = |flow, options: &[u8]| outcome(&send_tcp(&katran, flow, options));
    let by_id = |real| went(real, Reason::TcpServerId);
    let by_ring = went(A, Reason::Ring);
    assert_eq!(to(tcp(3001), &option(7)), by_id(B));
    assert_eq!(to(tcp(3002), &option(TOP_BIT)), by_id(B), "all 32 bits");
    let nops = |count: usize, id| [vec![1; count], option(id)].concat();
    assert_eq!(to(tcp(3003), &nops(14, 7)), by_id(B));
    assert_eq!(
        to(tcp(3004), &nops(15, 7)),
        by_ring,
        "fifteen options at most"
    );
    let timestamp = [8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    assert_eq!(
        to(tcp(3005), &[&timestamp[..], &option(7)].concat()),
        by_id(B)
    );
    for bad in [
        &[][..],
        // Unknown, id 0, another length, the list's end before it.
        &option(8),
        &option(0),
        &[0xb7, 5, 7, 0, 0],
        &[&[0][..], &option(7)].concat(),
        // Bad lengths: zero, and beyond the header.
        &[8, 0, 0xb7, 6, 7, 0, 0, 0],
        &[8, 1, 0xb7, 6, 7, 0, 0, 0],
        &[8, 40, 0xb7, 6, 7, 0, 0, 0],
        &[1, 1, 0xb7, 6],
    ] {
        assert_eq!(to(tcp(3010), bad).1, Some(ip(A)), "{bad:?}");
    }
    let syn = Packet::new(tcp(3020))
        .flags(frames::SYN)
        .options(&option(7))
        .frame();
    assert_eq!(outcome(&katran.simulate(&syn).unwrap()), by_ring);
    // The SYN's entry stays: `attacks.rs` tests what ids correct.
    assert_eq!(to(tcp(3020), &option(7)), by_id(B));
    assert_eq!(to(tcp(3020), &[]), went(A, Reason::FlowTable));

    let mut expected = TcpServerIdCounters::default();
    expected.sid_routed = 5;
    expected.ch_routed = 11;
    expected.syn = 1;
    assert_eq!(katran.stats().tcp_server_id().unwrap(), expected);
    let of_vip = katran.stats().vip(vip).unwrap();
    assert_eq!((of_vip.server_id_new, of_vip.server_id_moved), (1, 0));
    // An error quotes no options; the bytes in their place are ignored.
    let error = frames::icmp_about(tcp(3020), Packet::new(frames::reverse(tcp(3020))).ip(), 8);
    assert_eq!(
        outcome(&katran.simulate(&error).unwrap()),
        went(A, Reason::FlowTable)
    );
    assert_eq!(katran.stats().tcp_server_id().unwrap(), expected);
}

/// A TCP header longer than its packet is none; bytes behind the packet are padding.
#[test]
fn options_end_where_the_packet_does() {
    for (to, from) in [(TO, "192.0.2.7"), ("[2001:db8:1::1]:443", "2001:db8::7")] {
        let (katran, _) = balancer(&format!("{to}/tcp"), VipFlags::empty());
        for (missing, real, reason) in [
            (0, B, Reason::TcpServerId),
            (1, A, Reason::Ring),
            (8, A, Reason::Ring),
        ] {
            let flow = Flow::tcp((ip(from), 4000 + missing as u16).into(), at(to));
            let mut bytes = Packet::new(flow).options(&option(7)).data(b"").ip();
            frames::ends_earlier(&mut bytes, missing, false);
            let ran = katran.simulate(&frames::ethernet(&bytes)).unwrap();
            assert_eq!(outcome(&ran), went(real, reason), "{to} {missing}");
        }
        let counters = katran.stats().tcp_server_id().unwrap();
        assert_eq!((counters.sid_routed, counters.ch_routed), (1, 2));
    }
}

#[test]
fn stable_udp_goes_where_its_header_says() {
    let (katran, _) = balancer("203.0.113.1:443/udp", VipFlags::UDP_STABLE_ROUTING);
    let to = |flow, payload: &[u8]| outcome(&send(&katran, flow, payload));
    let by_ring = went(A, Reason::Ring);
    assert_eq!(to(udp(4001), &stable(7)), went(B, Reason::StableUdp));
    assert_eq!(to(udp(4001), &stable(70_000)), went(C, Reason::StableUdp));
    assert_eq!(to(udp(4001), &stable(0)), by_ring, "no entry was made");
    assert_eq!(to(udp(4002), &stable(8)), by_ring);
    assert_eq!(to(udp(4003), &stable(7)[..7]), by_ring);
    assert_eq!(to(udp(4004), &[0x53, 0, 0, 7, 0, 0, 0, 0]), by_ring);
    let mut expected = StableUdpCounters::default();
    expected.cid_routed = 2;
    expected.ch_routed = 4;
    expected.cid_invalid_server_id = 1;
    expected.invalid_packet_type = 2;
    assert_eq!(katran.stats().stable_udp().unwrap(), expected);
}

#[test]
fn stable_routing_overrides_a_connection_id() {
    let flags = VipFlags::QUIC | VipFlags::UDP_STABLE_ROUTING;
    let (katran, _) = balancer("203.0.113.1:443/udp", flags);
    // A short header with an id of version 1, whose first byte is also stable routing's.
    let mut payload = stable(70_000);
    payload.extend([0; 4]);
    let ran = send(&katran, udp(4100), &payload);
    assert_eq!(outcome(&ran), went(C, Reason::StableUdp));
}

#[test]
fn ids_can_be_invalidated_removed_and_added_again() {
    let (mut katran, vip) = quic(VipFlags::empty());
    let reason = |katran: &Katran, port| send(katran, udp(port), &short(1, 7)).reason;
    assert_eq!(reason(&katran, 1), Reason::ConnectionId);
    katran.server_ids_mut().invalidate(&[7, 7]).unwrap();
    assert_eq!(reason(&katran, 2), Reason::Ring);
    assert_eq!(katran.server_ids().invalid(), [7]);
    assert_eq!(katran.server_ids().list().len(), 4, "it is not forgotten");
    katran.server_ids_mut().invalidate(&[7]).unwrap();
    katran.server_ids_mut().revalidate(&[7, 70_000]).unwrap();
    assert_eq!(reason(&katran, 3), Reason::ConnectionId);
    assert!(katran.server_ids().invalid().is_empty());

    // Only two ids name C.
    let (c, misses) = (ip(C), |katran: &Katran| {
        katran.stats().flow_table().unwrap().misses
    });
    assert!(katran.real_index(c).is_some());
    katran.server_ids_mut().remove(&[70_000]).unwrap();
    assert!(katran.real_index(c).is_some());
    katran.server_ids_mut().remove(&[0xff_ffff]).unwrap();
    assert_eq!(katran.real_index(c), None);
    let before = misses(&katran);
    assert_eq!(
        send(&katran, udp(5), &short(2, 70_000)).reason,
        Reason::Ring
    );
    assert_eq!(misses(&katran), before + 1);
    // An invalid id keeps its real in use, too.
    katran.server_ids_mut().invalidate(&[7, TOP_BIT]).unwrap();
    assert!(katran.real_index(ip(B)).is_some());
    katran.server_ids_mut().remove(&[7, TOP_BIT]).unwrap();
    assert_eq!(katran.real_index(ip(B)), None);
    assert!(katran.server_ids().list().is_empty());
    // A new real gets none of their packets, even if it reuses the number.
    katran
        .modify_reals(
            vip,
            &[RealChange::Add(Real::new(ip("198.51.100.77")).weight(0))],
        )
        .unwrap();
    assert_eq!(reason(&katran, 6), Reason::Ring);
}

#[test]
fn batches_are_all_or_nothing() {
    let (mut katran, _) = quic(VipFlags::empty());
    let before = katran.server_ids().list();
    let id = |number, real| ServerId::new(number, ip(real));
    let new = "198.51.100.50";
    let refused =
        |katran: &mut Katran, ids: &[ServerId]| katran.server_ids_mut().add(ids).unwrap_err();
    assert!(matches!(
        refused(&mut katran, &[id(100, new), id(7, A)]),
        Error::AlreadyExists { .. }
    ));
    assert!(matches!(
        refused(&mut katran, &[id(100, new), id(100, A)]),
        Error::AlreadyExists { .. }
    ));
    assert!(matches!(
        refused(&mut katran, &[id(100, new), id(0, A)]),
        Error::InvalidConfig { .. }
    ));
    assert!(matches!(
        refused(&mut katran, &[id(100, new), id(101, "224.0.0.1")]),
        Error::InvalidAddress { .. }
    ));
    assert!(matches!(
        katran.server_ids_mut().remove(&[7, 8]).unwrap_err(),
        Error::NotFound { .. }
    ));
    assert!(matches!(
        katran.server_ids_mut().remove(&[7, 7]).unwrap_err(),
        Error::NotFound { .. }
    ));
    assert!(katran.server_ids_mut().invalidate(&[7, 8]).is_err());
    assert!(katran.server_ids_mut().revalidate(&[8]).is_err());
    assert_eq!(katran.server_ids().list(), before);
    assert!(katran.server_ids().invalid().is_empty());
    assert_eq!(katran.real_index(ip(new)), None);
    assert_eq!(
        send(&katran, udp(1), &short(1, 7)).reason,
        Reason::ConnectionId
    );

    let mut small = load(settings().max_server_ids(2));
    small.server_ids_mut().add(&[id(1, A), id(2, A)]).unwrap();
    let error = small.server_ids_mut().add(&[id(3, A)]).unwrap_err();
    assert!(
        matches!(error, Error::Exhausted { limit: 2, .. }),
        "{error}"
    );
}

#[test]
fn the_table_grows_and_shrinks_with_its_ids() {
    const MANY: u32 = 100_000;
    let (mut katran, _) = quic(VipFlags::empty());
    katran
        .server_ids_mut()
        .remove(&[7, 70_000, TOP_BIT, 0xff_ffff])
        .unwrap();
    let empty = katran.stats().memory_in_use().unwrap();
    // Ids without a pattern, for two reals.
    let number = |i: u32| (i + 1).wrapping_mul(0x9e37_79b1);
    let real = |i: u32| ip(if i.is_multiple_of(2) { B } else { C });
    let check = |katran: &Katran, i: u32, known: bool| {
        let ran = send(katran, udp(i as u16), &short(3, number(i)));
        let expected = if known { real(i) } else { ip(A) };
        assert_eq!(ran.real, Some(expected), "{i}: {}", ran.reason);
    };
    let mut step = 1;
    let mut done = 0;
    while done < MANY {
        let upto = (done + step).min(MANY);
        let ids: Vec<_> = (done..upto)
            .map(|i| ServerId::new(number(i), real(i)))
            .collect();
        katran.server_ids_mut().add(&ids).unwrap();
        done = upto;
        step *= 3;
        for i in (0..done).step_by(1 + done as usize / 50) {
            check(&katran, i, true);
        }
        check(&katran, done, false);
    }
    let full = katran.stats().memory_in_use().unwrap() - empty;
    assert!(full <= 64 * u64::from(MANY), "{full} bytes");
    let counters = katran.stats().library().unwrap();
    let use_of = counters
        .maps
        .iter()
        .find(|map| map.name == "server_ids")
        .unwrap();
    assert_eq!(use_of.entries, u64::from(MANY));

    let most: Vec<u32> = (10..MANY).map(number).collect();
    katran.server_ids_mut().remove(&most).unwrap();
    // New clients, as the earlier ones have entries.
    for i in 0..20 {
        let flow = Flow::udp((ip("192.0.2.8"), i as u16).into(), at(TO));
        let ran = send(&katran, flow, &short(3, number(i)));
        assert_eq!(ran.real, Some(if i < 10 { real(i) } else { ip(A) }), "{i}");
    }
    let left = katran
        .stats()
        .memory_in_use()
        .unwrap()
        .saturating_sub(empty);
    assert!(left < 64 << 10, "{left} bytes");
}

#[test]
fn refused_changes_have_no_effect() {
    let (mut katran, _) = quic(VipFlags::empty());
    let before = (katran.server_ids().list(), katran.real_numbers());
    // More than half the first chunk, so a larger table is needed, with a new real.
    let real = |i: u32| ip(if i == 0 { "198.51.100.77" } else { B });
    let ids: Vec<_> = (0..70_000)
        .map(|i| ServerId::new(100_000 + i, real(i)))
        .collect();
    for command in [faults::MAP_CREATE, faults::MAP_UPDATE_BATCH] {
        let refused = faults::without_commands(&[command], Errno::ENOMEM, || {
            katran.server_ids_mut().add(&ids)
        });
        assert!(
            matches!(refused, Err(Error::InsufficientMemory { .. })),
            "{refused:?}"
        );
        assert_eq!((katran.server_ids().list(), katran.real_numbers()), before);
        let known = send(&katran, udp(command as u16), &short(1, 7));
        assert_eq!(outcome(&known), went(B, Reason::ConnectionId));
        let unknown = send(&katran, udp(100 + command as u16), &short(2, 100_001));
        assert_eq!(unknown.reason, Reason::Ring);
    }
    katran.server_ids_mut().add(&ids).unwrap();
    let ran = send(&katran, udp(7), &short(2, 100_000));
    assert_eq!(outcome(&ran), went("198.51.100.77", Reason::ConnectionId));
}
