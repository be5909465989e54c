//! Recorded packets: a balancer's configuration, frames in, verdicts and frames out.

use std::net::IpAddr;

use katran::Builder;
use katran::DecapMode;
use katran::Features;
use katran::FlowTracking;
use katran::HashFunction;
use katran::Katran;
use katran::Real;
use katran::ServerId;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Verdict;
use katran_lab::require_root;
use serde_json::Value;

use crate::common;
use crate::common::frames::ETHERNET;

pub(crate) const CORE_IPIP: &str = include_str!("../vectors/core_ipip.json");
pub(crate) const CORE_GUE: &str = include_str!("../vectors/core_gue.json");
pub(crate) const QUIC: &str = include_str!("../vectors/quic.json");
pub(crate) const TCP_SERVER_ID: &str = include_str!("../vectors/tcp_server_id.json");
pub(crate) const UDP_STABLE_ROUTING: &str = include_str!("../vectors/udp_stable_routing.json");
pub(crate) const SOURCE_ROUTING: &str = include_str!("../vectors/source_routing.json");
pub(crate) const INLINE_DECAP: &str = include_str!("../vectors/inline_decap.json");
pub(crate) const ICMP_TOO_BIG: &str = include_str!("../vectors/icmp_too_big.json");
pub(crate) const CIDR_VIPS: &str = include_str!("../vectors/cidr_vips.json");

/// All recordings.
pub(crate) const RECORDINGS: [&str; 9] = [
    CORE_IPIP,
    CORE_GUE,
    ICMP_TOO_BIG,
    CIDR_VIPS,
    QUIC,
    TCP_SERVER_ID,
    UDP_STABLE_ROUTING,
    SOURCE_ROUTING,
    INLINE_DECAP,
];

/// A recorded file.
pub(crate) struct Recording {
    json: Value,
    pub(crate) packets: Vec<Packet>,
}

pub(crate) struct Packet {
    pub(crate) description: String,
    pub(crate) frame: Vec<u8>,
    pub(crate) verdict: Verdict,
    /// `None`: unchanged. A dropped frame's bytes do not count.
    pub(crate) out: Option<Vec<u8>>,
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

impl Recording {
    pub(crate) fn read(recording: &str) -> Self {
        let json: Value = serde_json::from_str(recording).unwrap();
        let packets = json["packets"].as_array().unwrap();
        assert!(!packets.is_empty());
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
        Self { json, packets }
    }

    fn builder(&self) -> Builder {
        let config = &self.json["config"];
        let features = config["features"].as_array().unwrap();
        let features = features.iter().fold(Features::empty(), |set, name| {
            set | text(name).parse::<Features>().unwrap()
        });
        Katran::builder()
            .gateway_mac(text(&config["gateway_mac"]).parse().unwrap())
            .encapsulation(text(&config["encap"]).parse().unwrap())
            .max_frame(number(&config["max_frame"]))
            .max_vips(number(&config["max_vips"]))
            .ring_size(number(&config["ring_size"]))
            .gue_port(number(&config["gue_port"]) as u16)
            .source_v4(text(&config["source_v4"]).parse().unwrap())
            .source_v6(text(&config["source_v6"]).parse().unwrap())
            .features(features)
            .hash_function(HashFunction::Maglev)
            .flow_table(common::flow_table())
            .flow_table_size(10_000)
    }

    /// The recorded balancer, loaded and configured, with all flows in its flow table as at the
    /// recording.
    pub(crate) fn load(&self) -> Katran {
        self.load_with(FlowTracking::All)
    }

    /// The same, with this flow tracking: frames are the same, counters are not.
    pub(crate) fn load_with(&self, tracking: FlowTracking) -> Katran {
        require_root();
        let mut katran = self.builder().flow_tracking(tracking).load().unwrap();
        for entry in self.json["state"]["vips"].as_array().unwrap() {
            let address: IpAddr = text(&entry["addr"]).parse().unwrap();
            let port = number(&entry["port"]) as u16;
            let mut vip = Vip::new(
                (address, port).into(),
                text(&entry["proto"]).parse().unwrap(),
            );
            if let Some(length) = entry["prefix"].as_u64() {
                vip = vip.with_prefix(length as u8).unwrap();
            }
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
            // Adding reals one by one, in the order of their recorded numbers, leaves slots with
            // bases.
            let _ = katran.flows_mut().purge(vip).unwrap();
        }
        let ids = self.json["state"]["server_ids"].as_array();
        let ids: Vec<ServerId> = ids
            .into_iter()
            .flatten()
            .map(|id| ServerId::new(number(&id[0]), text(&id[1]).parse().unwrap()))
            .collect();
        katran.server_ids_mut().add(&ids).unwrap();
        let routes = self.json["state"]["src_rules"].as_array();
        for route in routes.into_iter().flatten() {
            let (prefix, real) = (text(&route[0]).parse(), text(&route[1]).parse());
            katran
                .source_routes_mut()
                .add(&[prefix.unwrap()], real.unwrap())
                .unwrap();
        }
        for (key, mode) in [
            ("decap", DecapMode::Inline),
            ("egress_decap", DecapMode::Egress),
        ] {
            for address in self.json["state"][key].as_array().into_iter().flatten() {
                katran
                    .decap_mut()
                    .add(text(address).parse().unwrap(), mode)
                    .unwrap();
            }
        }
        katran
    }

    /// A recorded pair of counters.
    pub(crate) fn pair(&self, name: &str) -> (u64, u64) {
        let pair = &self.json["counters"][name];
        (pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap())
    }

    /// Plays all packets and compares verdicts and frames.
    pub(crate) fn check_packets(&self, katran: &Katran) {
        for (index, packet) in self.packets.iter().enumerate() {
            let what = format!("packet {index}, {}", packet.description);
            let ran = katran.simulate(&packet.frame).unwrap();
            assert_eq!(ran.verdict, packet.verdict, "{what}: {}", ran.reason);
            match &packet.out {
                _ if ran.verdict == Verdict::Drop => {}
                Some(out) => assert_eq!(hex(&ran.frame), hex(out), "{what}"),
                // The specification has this sent, but the recorded program did not: no bytes are
                // recorded.
                None if ran.verdict == Verdict::Tx => {
                    assert!(ran.real.is_some(), "{what}");
                    assert!(ran.frame.ends_with(&packet.frame[ETHERNET..]), "{what}");
                }
                None => assert_eq!(hex(&ran.frame), hex(&packet.frame), "{what}"),
            }
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
