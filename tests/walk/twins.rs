//! The program and its explaining twin are the same walk: on every recorded frame and on thousands
//! of damaged ones they agree on verdict, bytes and counters. So `simulate` says what happens to
//! traffic.

use std::time::Duration;

use katran::DecapMode;
use katran::Encapsulation;
use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::Protocol;
use katran::ServerId;
use katran::VipFlags;
use katran::events::MonitorOptions;
use katran::flows::Verdict;
use katran_lab::stay_on;

use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::flows;
use crate::common::frames;
use crate::common::frames::Packet;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::recording::RECORDINGS;
use crate::recording::Recording;
use crate::recording::hex;

/// A balancer that simulates, and one of the same configuration whose program runs directly.
struct Twins {
    simulated: Katran,
    direct: Katran,
}

impl Twins {
    fn new(load: impl Fn() -> Katran) -> Self {
        // `simulate` runs there, so both use the first CPU's flow table.
        stay_on(0);
        Self {
            simulated: load(),
            direct: load(),
        }
    }

    fn check(&self, frame: &[u8]) -> Verdict {
        let simulated = self.simulated.simulate(frame).unwrap();
        let direct = bpf::run(self.direct.program_fd(), frame);
        assert_eq!(simulated.verdict, direct.verdict, "{}", hex(frame));
        assert_eq!(hex(&simulated.frame), hex(&direct.frame), "{}", hex(frame));
        direct.verdict
    }

    /// Each has random hash keys: with many flows, one table could evict a flow that the other
    /// keeps, and count its next packet differently.
    fn forget_flows(&mut self) {
        for katran in [&mut self.simulated, &mut self.direct] {
            for vip in katran.vips() {
                let _ = katran.flows_mut().purge(vip).unwrap();
            }
        }
    }

    fn check_counters(&self) {
        let mut counters = [&self.simulated, &self.direct].map(|katran| katran.counters().unwrap());
        // Windows of one second begin with the first flow, at different times.
        for cpu in counters.iter_mut().flat_map(|counters| &mut counters.cpus) {
            cpu.new_flows = 0;
        }
        // How often a number was reused while packets might still have it depends on timing.
        for counters in &mut counters {
            counters.library.waits_for_packets = 0;
            counters.flow_entries_age = Duration::ZERO;
        }
        // Each has random hash keys, so different flows met in a full set.
        let mut entries = counters.iter_mut().map(|counters| {
            let mut maps = counters.library.maps.iter_mut();
            let flows = maps.find(|map| map.name == "flows").unwrap();
            std::mem::take(&mut flows.entries)
        });
        let (one, other) = (entries.next().unwrap(), entries.next().unwrap());
        assert!(one.abs_diff(other) <= one / 100, "{one} and {other} flows");
        drop(entries);
        let of_vips = counters
            .each_mut()
            .map(|counters| std::mem::take(&mut counters.flow_entries));
        let sums = of_vips
            .each_ref()
            .map(|entries| entries.values().sum::<u64>());
        assert_eq!(sums, [one, other]);
        assert!(of_vips[0].keys().eq(of_vips[1].keys()));
        assert_eq!(counters[0], counters[1]);
        assert_ne!(counters[0].totals.total.packets, 0);
    }
}

#[test]
fn twins_agree_on_recorded_frames() {
    for recording in RECORDINGS {
        let recording = Recording::read(recording);
        let twins = Twins::new(|| recording.load());
        for packet in &recording.packets {
            assert_eq!(twins.check(&packet.frame), packet.verdict);
        }
        twins.check_counters();
    }
}

/// Marsaglia's xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// Frames of every kind that the walk distinguishes.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for to in [
        "203.0.113.1:443",
        "203.0.113.9:80",
        "[2001:db8:1::1]:443",
        "[2001:db8:1::9]:7",
    ] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let flow = flows(protocol, to, 1)[0];
            let packet = Packet::new(flow);
            seeds.extend([
                packet.clone().frame(),
                packet.clone().flags(frames::SYN).tos(0xfc).frame(),
                packet.clone().flags(frames::RST).frame(),
                packet.payload(900).frame(),
                frames::unreachable(flow, 8),
                frames::too_big(flow, 1200),
                frames::echo(flow.source.ip(), flow.destination.ip(), b"0123456789"),
            ]);
        }
    }
    for recording in RECORDINGS {
        let packets = Recording::read(recording).packets;
        seeds.extend(packets.into_iter().map(|packet| packet.frame));
    }
    seeds
}

/// Changes up to four bytes of the headers, and sometimes the length.
fn damage(frame: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    for _ in 0..random.below(5) {
        let at = random.below(bytes.len().min(100));
        bytes[at] = match random.below(3) {
            0 => random.below(256) as u8,
            1 => bytes[at] ^ 1 << random.below(8),
            _ => [0, 1, 3, 4, 6, 8, 17, 41, 44, 58, 0x45, 0xff][random.below(12)],
        };
    }
    match random.below(4) {
        0 => bytes.truncate(14 + random.below(bytes.len())),
        1 => bytes.extend(vec![0xee; random.below(200)]),
        _ => {}
    }
    bytes
}

#[test]
fn twins_agree_on_damaged_frames() {
    let mut twins = Twins::new(|| {
        let mut katran = load(builder().max_frame(700));
        let reals = [
            "198.51.100.1",
            "198.51.100.2",
            "2001:db8:2::1",
            "2001:db8:2::2",
        ];
        let dport = VipFlags::DPORT_HASH;
        serve(
            &mut katran,
            "203.0.113.1:443/tcp",
            VipFlags::empty(),
            &reals,
        );
        serve(&mut katran, "203.0.113.1:443/udp", dport, &reals);
        serve(
            &mut katran,
            "203.0.113.0/24:0/tcp",
            VipFlags::NO_SRC_PORT,
            &reals,
        );
        serve(
            &mut katran,
            "203.0.113.0/25:0/udp",
            VipFlags::LRU_BYPASS,
            &reals,
        );
        serve(
            &mut katran,
            "[2001:db8:1::1]:443/tcp",
            VipFlags::empty(),
            &reals,
        );
        serve(
            &mut katran,
            "[2001:db8:1::1]:0/udp",
            VipFlags::SRC_DST_PORT,
            &reals,
        );
        serve(&mut katran, "[2001:db8:1::/64]:0/tcp", dport, &[]);
        katran
    });
    check_damaged(&mut twins);
}

/// Everything that can be enabled, each special VIP where recorded frames find it.
#[test]
fn twins_agree_on_damaged_frames_with_every_feature() {
    for encapsulation in [Encapsulation::Ipip, Encapsulation::Gue] {
        let mut twins = Twins::new(|| everything(encapsulation));
        // Without a rate limit, so both report the same events.
        let [simulated, direct] = [&twins.simulated, &twins.direct].map(|katran| {
            let options = MonitorOptions::new().rate_limit(u32::MAX);
            katran.events().to_list(options, 1).unwrap()
        });
        check_damaged(&mut twins);
        let stats = simulated.stop();
        assert_eq!(stats, direct.stop());
        assert!(stats.delivered > 1000, "{stats:?}");
    }
}

fn everything(encapsulation: Encapsulation) -> Katran {
    let later = Features::FLOW_DEBUG;
    let strict = match encapsulation {
        Encapsulation::Gue => Features::STRICT_DESTINATION,
        _ => Features::empty(),
    };
    let features = (Features::all() - later - Features::STRICT_DESTINATION) | strict;
    // Every frame above this makes an event.
    let builder = builder().features(features).max_frame(700);
    let builder = builder.event_buffer(1 << 23);
    let mut katran = load(
        builder
            .encapsulation(encapsulation)
            .global_flow_table_size(1000)
            .source_v4("10.10.10.10".parse().unwrap())
            .source_v6("2001:db8:ffff::1".parse().unwrap()),
    );
    let reals = ["198.51.100.1", "198.51.100.2", "2001:db8:2::1"];
    let special = VipFlags::GLOBAL_LRU | VipFlags::UDP_FLOW_MIGRATION;
    for (vip, flags) in [
        ("203.0.113.1:443/tcp", VipFlags::SRC_ROUTING),
        (
            "203.0.113.1:443/udp",
            VipFlags::QUIC | VipFlags::UDP_STABLE_ROUTING,
        ),
        (
            "203.0.113.0/24:0/tcp",
            VipFlags::GLOBAL_LRU | VipFlags::DPORT_HASH,
        ),
        ("203.0.113.0/24:0/udp", VipFlags::QUIC | special),
        (
            "[2001:db8:1::1]:443/tcp",
            VipFlags::NO_SRC_PORT | VipFlags::SRC_ROUTING,
        ),
        (
            "[2001:db8:1::/64]:0/udp",
            VipFlags::UDP_STABLE_ROUTING | special,
        ),
        ("[2001:db8:1::/64]:0/tcp", VipFlags::LRU_BYPASS),
    ] {
        serve(&mut katran, vip, flags, &reals);
    }
    katran
        .mark_down("203.0.113.0/24:0/udp".parse().unwrap(), ip(reals[0]))
        .unwrap();
    // The recordings' ids, among others.
    let ids = (1..5000).map(|id| ServerId::new(id, ip(reals[id as usize % 3])));
    katran
        .server_ids_mut()
        .add(&ids.collect::<Vec<_>>())
        .unwrap();
    let prefixes = ["100.64.0.0/10", "2001:db8::/32"].map(|text| text.parse().unwrap());
    katran
        .source_routes_mut()
        .add(&prefixes, ip(reals[1]))
        .unwrap();
    for (end, mode) in [
        ("192.0.2.200", DecapMode::Inline),
        ("2001:db8:d::1", DecapMode::Inline),
        ("192.0.2.202", DecapMode::Egress),
    ] {
        katran.decap_mut().add(ip(end), mode).unwrap();
    }
    katran
}

fn check_damaged(twins: &mut Twins) {
    let seeds = seeds();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut verdicts = [0; 3];
    for number in 0..20_000 {
        if number % 500 == 0 {
            twins.forget_flows();
        }
        let frame = damage(&seeds[random.below(seeds.len())], &mut random);
        verdicts[twins.check(&frame) as usize] += 1;
    }
    assert!(verdicts.iter().all(|count| *count > 1000), "{verdicts:?}");
    twins.check_counters();
}

#[test]
fn twins_agree_on_a_frame_at_every_length() {
    let twins = Twins::new(|| {
        let mut katran = load(builder().max_frame(600));
        serve(
            &mut katran,
            "203.0.113.1:443/tcp",
            VipFlags::empty(),
            &["198.51.100.1"],
        );
        serve(
            &mut katran,
            "[2001:db8:1::1]:443/tcp",
            VipFlags::empty(),
            &["2001:db8:2::1"],
        );
        katran
    });
    for to in ["203.0.113.1:443", "[2001:db8:1::1]:443"] {
        let flow = Flow::tcp(
            (
                ip(if to.starts_with('[') {
                    "2001:db8:c::7"
                } else {
                    "192.0.2.7"
                }),
                4000,
            )
                .into(),
            at(to),
        );
        for frame in [
            Packet::new(flow).payload(700).frame(),
            frames::unreachable(flow, 20),
            frames::echo(flow.source.ip(), flow.destination.ip(), b""),
        ] {
            for length in 14..=frame.len() {
                twins.check(&frame[..length]);
            }
        }
    }
    twins.check_counters();
}
