//! The recorded packets: frame in, verdict and frame out, byte for byte, through the loaded
//! program in the kernel; and the counters that they move.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use katran::Features;
use katran::HashFunction;
use katran::Katran;
use katran::Real;
use katran::Verdict;
use katran::Vip;
use katran::VipFlags;
use katran_lab::require_root;
use serde_json::Value;

/// A recorded file: its balancer, configured, and its packets.
struct Recording {
    katran: Katran,
    packets: Vec<Packet>,
    counters: Value,
}

struct Packet {
    description: String,
    frame: Vec<u8>,
    verdict: Verdict,
    /// `None`: as it came in; of a dropped frame the content does not count.
    out: Option<Vec<u8>>,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn flag(name: &Value) -> VipFlags {
    let name = text(name).to_lowercase().replace('_', "-");
    name.parse().unwrap()
}

fn play(recording: &str) -> Recording {
    require_root();
    let json: Value = serde_json::from_str(recording).unwrap();
    let config = &json["config"];
    let features = config["features"].as_array().unwrap();
    let features = features.iter().fold(Features::empty(), |set, name| {
        set | text(name).parse::<Features>().unwrap()
    });
    let mut katran = Katran::builder()
        .gateway_mac(text(&config["gateway_mac"]).parse().unwrap())
        .max_frame(number(&config["max_frame"]))
        .max_vips(number(&config["max_vips"]))
        .ring_size(number(&config["ring_size"]))
        .gue_port(number(&config["gue_port"]) as u16)
        .source_v4(text(&config["source_v4"]).parse().unwrap())
        .source_v6(text(&config["source_v6"]).parse().unwrap())
        .features(features)
        .hash_function(HashFunction::Maglev)
        .flow_table_size(10_000)
        .load()
        .unwrap();
    for entry in json["state"]["vips"].as_array().unwrap() {
        let address: IpAddr = text(&entry["addr"]).parse().unwrap();
        let port = number(&entry["port"]) as u16;
        let vip = Vip::new(
            (address, port).into(),
            text(&entry["proto"]).parse().unwrap(),
        );
        let flags = entry["flags"].as_array();
        let flags = flags
            .into_iter()
            .flatten()
            .fold(VipFlags::empty(), |set, name| set | flag(name));
        katran.add_vip(vip, flags).unwrap();
        for real in entry["reals"].as_array().unwrap() {
            let address = text(&real["addr"]).parse().unwrap();
            let real = Real::new(address).weight(number(&real["weight"]));
            katran.add_real(vip, real).unwrap();
        }
    }
    let packets = json["packets"].as_array().unwrap();
    let packets = packets
        .iter()
        .map(|packet| Packet {
            description: text(&packet["desc"]).to_owned(),
            frame: bytes(text(&packet["in"])),
            verdict: match text(&packet["verdict"]) {
                "XDP_TX" => Verdict::Tx,
                "XDP_PASS" => Verdict::Pass,
                "XDP_DROP" => Verdict::Drop,
                other => panic!("unknown verdict {other}"),
            },
            out: packet["out"].as_str().map(bytes),
        })
        .collect();
    Recording {
        katran,
        packets,
        counters: json["counters"].clone(),
    }
}

impl Recording {
    fn check_packets(&self) {
        assert!(!self.packets.is_empty());
        for (index, packet) in self.packets.iter().enumerate() {
            let what = format!("packet {index}, {}", packet.description);
            let ran = self.katran.simulate(&packet.frame).unwrap();
            assert_eq!(ran.verdict, packet.verdict, "{what}: {}", ran.reason);
            if ran.verdict != Verdict::Drop {
                let expected = packet.out.as_ref().unwrap_or(&packet.frame);
                assert_eq!(hex(&ran.frame), hex(expected), "{what}");
            }
        }
    }

    fn pair(&self, name: &str) -> (u64, u64) {
        let pair = &self.counters[name];
        (pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn core_ipip() {
    let recording = play(include_str!("vectors/core_ipip.json"));
    recording.check_packets();
    let katran = &recording.katran;

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
    let recording = play(include_str!("vectors/icmp_too_big.json"));
    recording.check_packets();
    let icmp = recording.katran.icmp_counters().unwrap();
    assert_eq!(
        (icmp.too_big_v4, icmp.too_big_v6),
        recording.pair("icmp_toobig")
    );
    assert_eq!(recording.katran.flow_table_counters().unwrap().packets, 0);
}
