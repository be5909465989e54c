//! The program of health checks against its model: packets that this host sends, with and without
//! marks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use katran::Encapsulation;
use katran::Flow;
use katran::Katran;
use katran::Vip;
use katran::probes::ProbeSource;
use katran_lab::require_root;
use katran_model as model;
use katran_model::bytes::ETHERNET;
use katran_model::bytes::IPV4;
use katran_model::bytes::IPV6;
use katran_model::bytes::u16_at;
use katran_model::probe::Sent;
use katran_model::probe::Source;

use crate::common::at;
use crate::common::bpf;
use crate::common::bpf::Buffer;
use crate::common::builder;
use crate::common::frames::Packet;
use crate::common::ip;
use crate::decap::is_whole;
use crate::generate::Generator;
use crate::generate::Target;
use crate::pair::compared;
use crate::pair::hex;
use crate::random::setting;
use crate::sound;

const GUE_PORT: u16 = 6080;
const OWN_V4: &str = "10.10.10.10";
const OWN_V6: &str = "2001:db8:ffff::1";
const MADE_UP_V4: [u8; 2] = [10, 77];
const MADE_UP_V6: [u8; 12] = [0x20, 1, 0xd, 0xb8, 0, 0x77, 0, 0, 0, 0, 0, 0];
const GATEWAY: [u8; 6] = [0x0a, 0, 0, 0, 0, 0xfe];
const GATEWAY_V6: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x66];
/// After this many packets connections are forgotten, before the kernel's table is full.
const BATCH: u64 = 500;
/// From linux/pkt_cls.h.
const UNSPEC: u32 = u32::MAX;
const SHOT: u32 = 2;

const MARKS: [(u32, &str); 2] = [(7, "198.51.100.1"), (0x8000_0008, "2001:db8:2::1")];
const DESTINATIONS: [(&str, &str); 4] = [
    ("203.0.113.1:80", "198.51.100.3"),
    ("203.0.113.1:0", "2001:db8:2::3"),
    ("[2001:db8:1::2]:443", "198.51.100.4"),
    ("[2001:db8:1::2]:0", "2001:db8:2::4"),
];
const SOURCES: [(&str, &str); 3] = [
    ("100.64.7.3:1025", "198.51.100.5"),
    ("100.64.7.3:0", "2001:db8:2::5"),
    ("[2001:db8:c:7::4003:300]:0", "198.51.100.6"),
];
const KEYS: [&str; 3] = [
    "203.0.113.1:80/tcp",
    "203.0.113.2:53/udp",
    "[2001:db8:1::1]:443/udp",
];

#[derive(Clone, Copy, Debug)]
struct Kind {
    encapsulation: Encapsulation,
    made_up: bool,
    max_packet: u32,
    /// Whether packets are also matched by their addresses.
    matches: bool,
}

const KINDS: [Kind; 3] = [
    Kind {
        encapsulation: Encapsulation::Ipip,
        made_up: false,
        max_packet: 0,
        matches: true,
    },
    Kind {
        encapsulation: Encapsulation::Gue,
        made_up: false,
        max_packet: 1000,
        matches: true,
    },
    Kind {
        encapsulation: Encapsulation::Ipip,
        made_up: true,
        max_packet: 600,
        matches: false,
    },
];

impl Kind {
    fn load(&self) -> Katran {
        require_root();
        let mut builder = builder()
            .encapsulation(self.encapsulation)
            .gateway_mac_v6(GATEWAY_V6.into())
            .healthcheck_max_packet(self.max_packet)
            .source_v4(OWN_V4.parse().unwrap())
            .source_v6(OWN_V6.parse().unwrap());
        if self.made_up {
            builder = builder
                .healthcheck_source(ProbeSource::MadeUp)
                .ipip_source_v4([10, 77, 0, 0].into())
                .ipip_source_v6("2001:db8:77::".parse().unwrap());
        }
        let mut katran = builder.load().unwrap();
        let mut probes = katran.probes_mut();
        for (mark, real) in MARKS {
            probes.map_mark(mark, ip(real)).unwrap();
        }
        if self.matches {
            for (destination, real) in DESTINATIONS {
                probes.match_destination(at(destination), ip(real)).unwrap();
            }
            for (source, real) in SOURCES {
                probes.match_source(at(source), ip(real)).unwrap();
            }
        }
        for key in KEYS {
            probes.register(key.parse().unwrap()).unwrap();
        }
        katran
    }

    fn model(&self) -> model::Probes {
        let matches = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().filter(|_| self.matches);
            let pairs = pairs.map(|(end, real)| ((at(end).ip(), at(end).port()), ip(real)));
            pairs.collect()
        };
        model::Probes {
            encapsulation: match self.encapsulation {
                Encapsulation::Ipip => model::Encapsulation::Ipip,
                _ => model::Encapsulation::Gue,
            },
            gue_port: GUE_PORT,
            source: match self.made_up {
                true => Source::MadeUp(model::MadeUp {
                    v4: MADE_UP_V4,
                    v6: MADE_UP_V6,
                }),
                false => Source::Own(OWN_V4.parse().unwrap(), OWN_V6.parse().unwrap()),
            },
            max_packet: self.max_packet as usize,
            gateway_mac: GATEWAY,
            gateway_mac_v6: GATEWAY_V6,
            marks: MARKS.map(|(mark, real)| (mark, ip(real))).into(),
            destinations: matches(&DESTINATIONS),
            sources: matches(&SOURCES),
            keys: KEYS.iter().map(|key| key_of(key)).collect(),
            connections: Default::default(),
            counters: Default::default(),
            of_keys: Default::default(),
        }
    }
}

fn key_of(text: &str) -> (IpAddr, u16, u8) {
    let key: Vip = text.parse().unwrap();
    (key.address(), key.port(), key.protocol().number())
}

/// The source port of the outer UDP header.
fn source_port(out: &[u8]) -> u16 {
    let header = if out[ETHERNET] >> 4 == 4 { IPV4 } else { IPV6 };
    u16_at(out, ETHERNET + header)
}

/// Whether the frame ends with its packet, as a host's own do.
fn has_no_padding(frame: &[u8]) -> bool {
    let length = match frame[ETHERNET] >> 4 {
        4 => usize::from(u16_at(frame, ETHERNET + 2)),
        _ => IPV6 + usize::from(u16_at(frame, ETHERNET + 4)),
    };
    frame.len() == ETHERNET + length
}

/// Compares program and model on a packet with this mark.
fn one(katran: &Katran, model: &mut model::Probes, frame: &[u8], mark: u32) -> Result<(), String> {
    let program = katran.probes().program_fd().unwrap();
    let (action, out, after) = bpf::run_tc_with(program, frame, Buffer { mark, segment: 0 });
    // The port is random but for one bit.
    let (action_of, frame_of, mark_of) = match model.send(frame, mark, source_port(&out)) {
        Sent::AsItIs => (UNSPEC, frame.to_vec(), mark),
        Sent::Wrapped(wrapped) => (UNSPEC, wrapped, 0),
        Sent::Dropped => (SHOT, Vec::new(), mark),
    };
    if action != action_of {
        return Err(format!("tc action {action}, the model's: {action_of}"));
    }
    if action == SHOT {
        return Ok(());
    }
    if (&out, after) != (&frame_of, mark_of) {
        return Err(format!(
            "the program: {}, mark {after}\nthe model:   {}, mark {mark_of}",
            hex(&out),
            hex(&frame_of)
        ));
    }
    if sound::fault(frame, GUE_PORT).is_none()
        && has_no_padding(frame)
        && let Some(fault) = sound::fault(&out, GUE_PORT)
    {
        return Err(format!("what left is wrong: {fault}\n{}", hex(&out)));
    }
    Ok(())
}

/// Packets for counters that random ones may not move.
fn certain() -> Vec<(Vec<u8>, u32)> {
    const MARK: u32 = MARKS[0].0;
    let tcp = |from, to| Packet::new(Flow::tcp(at(from), at(to)));
    let mut sent = Vec::new();
    for key in KEYS {
        let vip: Vip = key.parse().unwrap();
        let source = if vip.address().is_ipv4() {
            "100.64.9.1:2000"
        } else {
            "[2001:db8:c:9::1]:2000"
        };
        let probe = Packet::new(Flow {
            source: at(source),
            destination: (vip.address(), vip.port()).into(),
            protocol: vip.protocol(),
        });
        // The second one lacks its mark.
        sent.extend([(probe.frame(), MARK), (probe.frame(), 0)]);
        sent.push((probe.payload(1200).frame(), MARK));
    }
    let matched_and_not = [
        tcp("100.64.9.2:2000", DESTINATIONS[0].0),
        tcp(SOURCES[0].0, "203.0.113.9:443"),
        tcp("100.64.9.2:2000", "203.0.113.9:443"),
    ];
    sent.extend(matched_and_not.map(|packet| (packet.frame(), 0)));
    sent
}

#[test]
fn the_model_and_the_program_of_health_checks_agree_on_random_frames() {
    let frames = setting("KATRAN_FRAMES", 200_000).max(200_000) / 8 / KINDS.len() as u64;
    let seed = setting("KATRAN_SEED", fastrand::u64(..));
    eprintln!("KATRAN_SEED={seed}");
    let mut moved = BTreeSet::new();
    for kind in KINDS {
        let katran = kind.load();
        let mut model = kind.model();
        let target = Target {
            gue_port: GUE_PORT,
            max_frame: 1000,
            longest: 3520,
        };
        let mut generator = Generator::new(seed, target);
        let agree_on = |model: &mut model::Probes, frame: &[u8], mark: u32| {
            if let Err(what) = one(&katran, model, frame, mark) {
                let frame = hex(frame);
                panic!("KATRAN_SEED={seed} {kind:?} mark {mark}: {frame}\n{what}");
            }
        };
        for (frame, mark) in certain() {
            agree_on(&mut model, &frame, mark);
        }
        for i in 0..frames {
            if i % BATCH == 0 {
                bpf::clear(katran.map_fd("probe_flows").unwrap());
                model.connections.clear();
            }
            let frame = generator.frame();
            if !is_whole(&frame) {
                continue;
            }
            let mark = [0, 0, 0, 9, MARKS[0].0, MARKS[1].0][generator.rng.usize(0..6)];
            agree_on(&mut model, &frame, mark);
        }
        moved.extend(check_counters(&katran, &model));
    }
    assert_eq!(moved.len(), 7, "{moved:?}");
}

/// Compares all counters; returns those that moved.
fn check_counters(katran: &Katran, model: &model::Probes) -> Vec<String> {
    for key in KEYS {
        let count = katran.probes().counter(key.parse().unwrap()).unwrap();
        let expected = model.of_keys.get(&key_of(key)).copied().unwrap_or(0);
        assert_eq!(count, expected, "{key}");
        assert!(count > 0, "{key}: no probe");
    }
    compared(katran.probes().counters().unwrap(), &model.counters)
}
