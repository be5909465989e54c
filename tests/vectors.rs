//! The recorded packets: frame in, verdict and frame out, byte for byte, through the loaded
//! program in the kernel; and the counters that they move.

mod common;

use common::recording::CIDR_VIPS;
use common::recording::CORE_IPIP;
use common::recording::ICMP_TOO_BIG;
use common::recording::Recording;
use katran::Verdict;

#[test]
fn core_ipip() {
    let recording = Recording::read(CORE_IPIP);
    let katran = &recording.load();
    recording.check_packets(katran);

    let flow_table = katran.flow_table_counters().unwrap();
    let icmp = katran.icmp_counters().unwrap();
    let drops = katran.ring_drops().unwrap();
    assert_eq!(
        (flow_table.packets, flow_table.misses),
        recording.pair("lru")
    );
    assert_eq!(
        (flow_table.miss_syn, flow_table.miss_non_syn),
        recording.pair("lru_miss")
    );
    assert_eq!(
        (icmp.ptb_v4, icmp.ptb_v4_small),
        recording.pair("icmp_ptb_v4")
    );
    assert_eq!(
        (icmp.ptb_v6, icmp.ptb_v6_small),
        recording.pair("icmp_ptb_v6")
    );
    assert_eq!((drops.unknown_real, drops.empty), recording.pair("ch_drop"));

    let totals = katran.totals().unwrap();
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
    let reasons = katran.drop_reasons().unwrap();
    let by_reason: u64 = reasons.iter().map(|(_, frames)| frames).sum();
    assert_eq!(by_reason, totals.drop.packets, "every drop has a reason");
}

#[test]
fn icmp_too_big() {
    let recording = Recording::read(ICMP_TOO_BIG);
    let katran = recording.load();
    recording.check_packets(&katran);
    let icmp = katran.icmp_counters().unwrap();
    assert_eq!(
        (icmp.too_big_v4, icmp.too_big_v6),
        recording.pair("icmp_toobig")
    );
    assert_eq!(katran.flow_table_counters().unwrap().packets, 0);
}

#[test]
fn cidr_vips() {
    let recording = Recording::read(CIDR_VIPS);
    let katran = recording.load();
    recording.check_packets(&katran);
    let flow_table = katran.flow_table_counters().unwrap();
    assert_eq!(
        (flow_table.packets, flow_table.misses),
        recording.pair("lru")
    );
    assert_eq!(
        (flow_table.miss_syn, flow_table.miss_non_syn),
        recording.pair("lru_miss")
    );
}
