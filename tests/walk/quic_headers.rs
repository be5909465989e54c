//! Which ids in QUIC packets count: long headers by version, LRU_BYPASS, and the ICMP errors that a
//! QUIC server ignores. Where ids lead is in `server_ids.rs`.

use std::net::IpAddr;

use katran::Flow;
use katran::Katran;
use katran::ServerId;
use katran::VipFlags;
use katran::flows::Reason;
use katran::stats::QuicCounters;

use crate::common::at;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::TO_VIP4 as TO;
use crate::common::frames;
use crate::common::frames::Packet;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;

const ID: u32 = 70_000;
const V1: u32 = 1;
/// RFC 9369.
const V2: u32 = 0x6b33_43cf;

/// New flows go to A, the id names B.
fn balancer(flags: VipFlags) -> Katran {
    let mut katran = load(builder());
    let flags = VipFlags::QUIC | flags;
    serve(&mut katran, "203.0.113.1:443/udp", flags, &[A]);
    serve(&mut katran, "[2001:db8:1::1]:443/udp", flags, &[A]);
    let id = ServerId::new(ID, ip(B));
    katran.server_ids_mut().add(&[id]).unwrap();
    katran
}

fn flow(port: u16) -> Flow {
    Flow::udp((ip("192.0.2.7"), port).into(), at(TO))
}

/// A connection id of version 2 with the server id.
fn connection_id() -> [u8; 8] {
    let [_, a, b, c] = ID.to_be_bytes();
    [0x80, a, b, c, 1, 2, 3, 4]
}

fn long(kind: u8, version: u32) -> Vec<u8> {
    let mut bytes = vec![0xc0 | kind];
    bytes.extend(version.to_be_bytes());
    bytes.push(8);
    bytes.extend(connection_id());
    bytes.extend(b"rest");
    bytes
}

fn short() -> Vec<u8> {
    [&[0x43][..], &connection_id(), b"rest"].concat()
}

fn send(katran: &Katran, flow: Flow, payload: &[u8]) -> (Option<IpAddr>, Reason) {
    sent(katran, &Packet::new(flow).data(payload).frame())
}

#[test]
fn types_of_long_headers_are_those_of_their_version() {
    let katran = balancer(VipFlags::empty());
    let by_id = (Some(ip(B)), Reason::ConnectionId);
    let by_ring = (Some(ip(A)), Reason::Ring);
    // Initial and 0-RTT carry the client's id, handshake and retry the server's.
    let known = [
        (
            V1,
            [(0x00, true), (0x10, true), (0x20, false), (0x30, false)],
        ),
        (
            V2,
            [(0x10, true), (0x20, true), (0x30, false), (0x00, false)],
        ),
    ];
    let mut port = 1000;
    let mut next = || {
        port += 1;
        flow(port)
    };
    for (version, kinds) in known {
        for (kind, of_client) in kinds {
            let expected = if of_client { by_ring } else { by_id };
            let ran = send(&katran, next(), &long(kind, version));
            assert_eq!(ran, expected, "version {version:#x}, type {kind:#x}");
        }
    }
    let mut expected = QuicCounters::default();
    expected.cid_initial = 4;
    expected.cid_v2 = 4;
    expected.cid_routed = 4;
    expected.dst_not_found_in_lru = 4;
    assert_eq!(katran.stats().quic().unwrap(), expected);

    // Version negotiation, drafts, Facebook's own, a grease, and neighbours of known versions.
    let unknown = [
        0,
        2,
        0xff00_001d,
        0xface_b002,
        0x0a0a_0a0a,
        0x0100_0000,
        V2 + 1,
        V2.swap_bytes(),
    ];
    for version in unknown {
        for kind in [0x00, 0x10, 0x20, 0x30] {
            let ran = send(&katran, next(), &long(kind, version));
            assert_eq!(ran, by_ring, "version {version:#x}, type {kind:#x}");
            expected.ch_routed += 1;
        }
    }
    assert_eq!(katran.stats().quic().unwrap(), expected);
}

#[test]
fn with_lru_bypass_an_id_neither_makes_nor_corrects_nor_counts() {
    let mut katran = balancer(VipFlags::empty());
    // An entry from before the flag was set.
    assert_eq!(send(&katran, flow(1), b"none").1, Reason::Ring);
    for vip in katran.vips() {
        katran
            .set_vip_flags(vip, VipFlags::QUIC | VipFlags::LRU_BYPASS)
            .unwrap();
    }
    for port in [1, 2] {
        let ran = send(&katran, flow(port), &short());
        assert_eq!(ran, (Some(ip(B)), Reason::ConnectionId));
    }
    let counters = katran.stats().quic().unwrap();
    let of_entries = [
        counters.dst_match_in_lru,
        counters.dst_mismatch_in_lru,
        counters.dst_not_found_in_lru,
    ];
    assert_eq!((counters.cid_routed, of_entries), (2, [0; 3]));
    assert_eq!(katran.stats().cpus().unwrap()[0].new_flows, 1);
    for vip in katran.vips() {
        katran.set_vip_flags(vip, VipFlags::QUIC).unwrap();
    }
    let left = [1, 2].map(|port| send(&katran, flow(port), b"none"));
    let expected = [Reason::FlowTable, Reason::Ring].map(|reason| (Some(ip(A)), reason));
    assert_eq!(left, expected);
}

#[test]
fn a_quic_server_does_not_ignore_a_too_big_message() {
    let katran = balancer(VipFlags::empty());
    let v6 = Flow::udp(at("[2001:db8:c::7]:40001"), at("[2001:db8:1::1]:443"));
    let ignored = |flow: Flow, kind: u8, code: u8| {
        let before = katran.stats().quic().unwrap();
        let quoted = Packet::new(frames::reverse(flow)).ip();
        let (client, vip) = (flow.source.ip(), flow.destination.ip());
        let rest = [0, 0, 5, 0xdc];
        let frame = frames::icmp(client, vip, kind, code, rest, &quoted);
        assert_eq!(katran.simulate(&frame).unwrap().real, Some(ip(A)));
        let after = katran.stats().quic().unwrap();
        assert_eq!(after.icmp - before.icmp, 1, "{kind}/{code}");
        after.icmp_ignored - before.icmp_ignored == 1
    };
    // Packet too big, whose code means nothing (RFC 4443, 3.2), and unreachable.
    for code in 0..=5 {
        assert!(!ignored(v6, 2, code), "code {code}");
        assert_eq!(ignored(v6, 1, code), [3, 4].contains(&code), "code {code}");
    }
    for code in 0..=4 {
        assert_eq!(
            ignored(flow(7), 3, code),
            [1, 3].contains(&code),
            "code {code}"
        );
    }
}
