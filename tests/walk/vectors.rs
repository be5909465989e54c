//! The recorded packets: frame in, verdict and frame out, byte for byte, through the loaded program
//! in the kernel; and their counters.

use katran::FlowTracking;
use katran::Katran;
use katran::flows::Verdict;

use crate::recording::CIDR_VIPS;
use crate::recording::CORE_GUE;
use crate::recording::CORE_IPIP;
use crate::recording::ICMP_TOO_BIG;
use crate::recording::INLINE_DECAP;
use crate::recording::QUIC;
use crate::recording::Recording;
use crate::recording::SOURCE_ROUTING;
use crate::recording::TCP_SERVER_ID;
use crate::recording::UDP_STABLE_ROUTING;

#[test]
fn recorded_packets_to_vips_leave_in_ip_in_ip() {
    core(CORE_IPIP);
}

#[test]
fn recorded_packets_to_vips_leave_in_gue() {
    core(CORE_GUE);
}

/// The same packets and services in either encapsulation.
fn core(recording: &str) {
    let (recording, katran) = play(recording);
    // Each ICMP error that the recorded program sent on was a miss of another flow; here none is
    // (see docs/compatibility.md), and one more is forwarded.
    let flow_table = katran.stats().flow_table().unwrap();
    let frames = recording.packets.iter();
    let forwarded = frames.filter(|packet| packet.verdict == Verdict::Tx);
    let errors = forwarded.filter_map(|packet| Some((quoted_protocol(&packet.frame)?, packet)));
    let (recorded, new): (Vec<_>, Vec<_>) = errors.partition(|(_, packet)| packet.out.is_some());
    let tcp = recorded.iter().filter(|(protocol, _)| *protocol == 6);
    let (packets, misses) = recording.pair("lru");
    assert_eq!((recorded.len(), new.len()), (6, 1));
    assert_eq!(
        (flow_table.packets, flow_table.misses),
        (packets + 1, misses - recorded.len() as u64)
    );
    let (miss_syn, miss_non_syn) = recording.pair("lru_miss");
    assert_eq!(
        (flow_table.miss_syn, flow_table.miss_non_syn),
        (miss_syn, miss_non_syn - tcp.count() as u64)
    );
    let icmp = katran.stats().icmp().unwrap();
    let drops = katran.stats().ring_drops().unwrap();
    assert_eq!(
        (icmp.ptb_v4, icmp.ptb_v4_small),
        recording.pair("icmp_ptb_v4")
    );
    assert_eq!(
        (icmp.ptb_v6, icmp.ptb_v6_small),
        recording.pair("icmp_ptb_v6")
    );
    assert_eq!((drops.unknown_real, drops.empty), recording.pair("ch_drop"));

    let totals = katran.stats().totals().unwrap();
    let with = |verdict| {
        let frames = recording.packets.iter();
        frames.filter(move |packet| packet.verdict == verdict)
    };
    let packets = |verdict| with(verdict).count() as u64;
    let bytes = |verdict| {
        with(verdict)
            .map(|packet| packet.frame.len() as u64)
            .sum::<u64>()
    };
    for (count, verdict) in [
        (totals.tx, Verdict::Tx),
        (totals.pass, Verdict::Pass),
        (totals.drop, Verdict::Drop),
    ] {
        assert_eq!(count.packets, packets(verdict), "{verdict}");
        assert_eq!(count.bytes, bytes(verdict), "{verdict}");
    }
    assert_eq!(totals.total.packets, recording.packets.len() as u64);
    let reasons = katran.stats().drop_reasons().unwrap();
    let by_reason: u64 = reasons.iter().map(|(_, frames)| frames).sum();
    assert_eq!(by_reason, totals.drop.packets, "every drop has a reason");
}

/// The protocol of the packet that an ICMP error quotes.
fn quoted_protocol(frame: &[u8]) -> Option<u8> {
    let (kind, quoted) = match (frame.get(12..14)?, frame.get(20)?, frame.get(23)?) {
        ([0x08, 0x00], _, 1) => (frame.get(34)?, frame.get(34 + 8 + 9)?),
        ([0x86, 0xdd], 58, _) => (frame.get(54)?, frame.get(54 + 8 + 6)?),
        _ => return None,
    };
    matches!(kind, 1..=4 | 11 | 12).then_some(*quoted)
}

#[test]
fn recorded_packets_above_the_limit_get_icmp_errors() {
    let (recording, katran) = play(ICMP_TOO_BIG);
    let icmp = katran.stats().icmp().unwrap();
    assert_eq!(
        (icmp.too_big_v4, icmp.too_big_v6),
        recording.pair("icmp_toobig")
    );
    assert_eq!(katran.stats().flow_table().unwrap().packets, 0);
}

#[test]
fn recorded_quic_packets_go_by_their_connection_ids() {
    packets_and_flow_table(QUIC);
}

#[test]
fn recorded_tcp_packets_go_by_the_server_id_in_their_option() {
    packets_and_flow_table(TCP_SERVER_ID);
}

#[test]
fn recorded_stable_udp_packets_go_by_their_ids() {
    packets_and_flow_table(UDP_STABLE_ROUTING);
}

/// Packets, and what the flow table counted.
fn packets_and_flow_table(recording: &str) {
    let (recording, katran) = play(recording);
    check_flow_table(&recording, &katran);
}

fn play(recording: &str) -> (Recording, Katran) {
    let recording = Recording::read(recording);
    recording.check_packets(&recording.load_with(FlowTracking::Changed));
    let katran = recording.load();
    recording.check_packets(&katran);
    (recording, katran)
}

fn check_flow_table(recording: &Recording, katran: &Katran) {
    let flow_table = katran.stats().flow_table().unwrap();
    assert_eq!(
        (flow_table.packets, flow_table.misses),
        recording.pair("lru")
    );
    assert_eq!(
        (flow_table.miss_syn, flow_table.miss_non_syn),
        recording.pair("lru_miss")
    );
}

#[test]
fn recorded_clients_go_by_their_source_routes() {
    let (recording, katran) = play(SOURCE_ROUTING);
    check_flow_table(&recording, &katran);
    let routing = katran.stats().source_routing().unwrap();
    assert_eq!(
        (routing.unmatched, routing.matched),
        recording.pair("lpm_src")
    );
}

#[test]
fn recorded_tunnels_are_unwrapped_and_sent_on() {
    let (recording, katran) = play(INLINE_DECAP);
    check_flow_table(&recording, &katran);
    let decap = katran.stats().decap().unwrap();
    assert_eq!((decap.remote_encap, 0), recording.pair("remote_encap"));
    assert_eq!((decap.xpop_v4, decap.xpop_v6), recording.pair("xpop_decap"));
    assert_eq!(
        (decap.egress_v4, decap.egress_v6),
        recording.pair("egress_decap")
    );
    // Katran counts none of these as IPv4; here the outer family counts.
    let outer = |bytes: [u8; 2]| {
        let frames = recording.packets.iter();
        frames
            .filter(|packet| packet.frame[12..14] == bytes)
            .count() as u64
    };
    assert_eq!((decap.v4, decap.v6), (outer([8, 0]), outer([0x86, 0xdd])));
}

#[test]
fn recorded_packets_find_vips_that_are_prefixes() {
    packets_and_flow_table(CIDR_VIPS);
}
