//! A disabled feature costs nothing: the program's size as the kernel runs it, by feature, printed
//! as a table; and the maps' memory, against the estimate and against the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use katran::Builder;
use katran::Decap;
use katran::Encapsulation;
use katran::Features;
use katran::FlowTableKind;
use katran::FlowTracking;
use katran::Katran;
use katran::NextHops;
use katran::Prefix;
use katran::Real;
use katran::RootProgram;
use katran::ServerId;
use katran::ServerIdOption;
use katran::Vip;
use katran::VipFlags;
use katran::attachments::TcHook;
use katran_lab::Host;

use crate::common;
use crate::common::bpf;
use crate::common::builder;
use crate::common::load;

/// Bytes of the program and of its explaining twin. Then of those that special VIPs' packets
/// continue in: the one that looks for ids, the one that sends by them, the walk for the others and
/// its twin, the walk for rare frames and its twin, and the one for QUIC.
#[derive(Clone, Copy)]
struct Sizes {
    program: u32,
    twin: u32,
    special: [u32; 7],
}

impl Sizes {
    fn of(features: Features, frags: bool) -> Self {
        let katran = load(builder().features(features).frags(frags));
        let special = bpf::sizes_in(katran.map_fd("special_programs").unwrap());
        Self {
            program: katran.stats().program_size().unwrap(),
            twin: katran.stats().explainer_size().unwrap(),
            special: [0, 1, 2, 3, 4, 5, 6].map(|program| special[program].bytes),
        }
    }

    fn all(self) -> [u32; 9] {
        let [ids, send, walk, twin, rare, its_twin, quic] = self.special;
        [
            self.program,
            self.twin,
            ids,
            send,
            walk,
            twin,
            rare,
            its_twin,
            quic,
        ]
    }

    /// No program is larger, and some are smaller.
    fn is_less_than(self, other: Self) -> bool {
        let mut pairs = self.all().into_iter().zip(other.all());
        pairs.all(|(this, other)| this <= other) && self.all() != other.all()
    }

    /// Whether the programs are smaller without the feature than with it. Inline decapsulation
    /// shrinks the programs for rare frames, as they then hand all VIP packets on for the
    /// verifier's sake, so these are left out.
    fn is_less_by(mut self, feature: Features, mut other: Self) -> bool {
        if feature == Features::INLINE_DECAP {
            for sizes in [&mut self, &mut other] {
                sizes.special[4..6].fill(0);
            }
        }
        self.is_less_than(other)
    }

    fn print(self, what: &str) {
        let bytes = self.all().map(|bytes| format!(" {bytes:>8}")).concat();
        println!("{what:<30} {:>6}{bytes}", self.program / 8);
    }
}

#[test]
fn a_disabled_feature_leaves_no_instruction() {
    // Strict destinations are part of inline decapsulation.
    let features = Features::all() - Features::FLOW_DEBUG - Features::STRICT_DESTINATION;
    println!(
        "{:<30} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "bytes",
        "insns",
        "program",
        "twin",
        "ids",
        "send",
        "special",
        "its twin",
        "rare",
        "its twin",
        "quic"
    );
    let all = features | Features::STRICT_DESTINATION;
    let full = Sizes::of(all, true);
    full.print("everything");
    for feature in all.iter() {
        let without = Sizes::of(all - feature, true);
        without.print(&format!("without {feature}"));
        assert!(without.is_less_by(feature, full), "{feature}");
    }
    let without = Sizes::of(all, false);
    without.print("without frags");
    // A frame's length is one call with multi-buffer support, and two loads and a subtraction
    // without: one instruction more, unless registers spill.
    assert!(without.program <= full.program + 8);
    Sizes::of(Features::default(), false).print("default");

    let none = Sizes::of(Features::empty(), false);
    none.print("nothing");
    for feature in features.iter() {
        let alone = Sizes::of(feature, false);
        alone.print(&format!("{feature} alone"));
        assert!(none.is_less_by(feature, alone), "{feature}");
    }
    let alone = Sizes::of(Features::STRICT_DESTINATION, false);
    assert_eq!(alone.all(), none.all());
    // Explaining code is in the twin alone.
    for sizes in [full, none] {
        assert!(sizes.program < sizes.twin && sizes.special[2] < sizes.special[3]);
        assert!(sizes.special[4] < sizes.special[5]);
    }
    // Code that only special VIPs need is in their programs.
    let special = Features::GLOBAL_FLOW_TABLE | Features::UDP_STABLE_ROUTING;
    assert_eq!(Sizes::of(special, false).program, none.program);
}

/// The verifier gives up after 1,000,000 instructions, and some versions process more of them.
/// Covers all programs of all objects: those in the array that packets continue in, and those that
/// this process has a descriptor of.
#[test]
fn the_verifier_stays_below_its_limit() {
    const MOST: u32 = 250_000;
    // The process also has the programs of concurrent tests, in any configuration.
    const MOST_OF_ANY: u32 = 500_000;
    // The kernel keeps 15 characters: the fourth is `katran_explain_full`.
    let mut missing = BTreeSet::from([
        "katran",
        "katran_full",
        "katran_explain",
        "katran_explain_",
        "katran_root",
        "healthcheck",
        "decap",
        "decap_tc",
        "server_id",
    ]);
    let mut look_at_own = || {
        for (name, size) in bpf::own_programs() {
            assert!(size.verified < MOST_OF_ANY, "{name}: {}", size.verified);
            if missing.remove(name.as_str()) {
                println!("{name}: {}", size.verified);
            }
        }
    };
    let all = Features::all() - Features::FLOW_DEBUG;
    for kind in [FlowTableKind::SetAssociative, FlowTableKind::KernelLru] {
        for encapsulation in [Encapsulation::Ipip, Encapsulation::Gue] {
            let settings = builder()
                .source_v4("10.10.10.10".parse().unwrap())
                .source_v6("2001:db8:ffff::1".parse().unwrap())
                .encapsulation(encapsulation)
                .healthcheck_interface("eth0")
                .flow_table(kind);
            let trackings = [FlowTracking::All, FlowTracking::Changed];
            let each =
                [Features::default(), all].map(|features| trackings.map(|of| (features, of)));
            for (features, tracking) in each.into_iter().flatten() {
                let settings = settings.clone().features(features);
                let katran = load(settings.flow_tracking(tracking));
                let special = bpf::sizes_in(katran.map_fd("special_programs").unwrap());
                let own = bpf::size(katran.program_fd());
                let programs = special.into_iter().chain([own]);
                let verified: Vec<u32> = programs.map(|size| size.verified).collect();
                println!("{kind} {encapsulation} {tracking} {features}: {verified:?}");
                assert!(verified.iter().all(|count| *count < MOST), "{verified:?}");
                look_at_own();
            }
            // The most work for the verifier.
            let settings = settings.flow_tracking(FlowTracking::Changed);
            let katran = load(settings.features(all).max_vip_reals(100));
            let special = bpf::sizes_in(katran.map_fd("special_programs").unwrap());
            let verified: Vec<u32> = special.into_iter().map(|size| size.verified).collect();
            println!("{kind} {encapsulation}, counted in detail: {verified:?}");
            assert!(verified.iter().all(|count| *count < MOST), "{verified:?}");
            look_at_own();
        }
    }
    let limits: [Prefix; 1] = ["198.51.100.0/24".parse().unwrap()];
    let mut decap = Decap::builder()
        .destination(common::ip("198.51.100.1"))
        .server_id(1)
        .allow_sources(limits)
        .allow_destinations(limits)
        .load()
        .unwrap();
    let host = Host::new("tc").unwrap();
    host.run(|| decap.attach_tc("lo", TcHook::Auto)).unwrap();
    let root = RootProgram::builder().frags(true).load().unwrap();
    let server_id = ServerIdOption::server(1).unwrap();
    look_at_own();
    drop((decap, root, server_id));
    assert!(missing.is_empty(), "nobody has {missing:?}");
}

#[test]
fn only_the_chosen_flow_table_type_is_loaded() {
    use libbpf_sys::BPF_MAP_TYPE_ARRAY;
    use libbpf_sys::BPF_MAP_TYPE_LRU_HASH;
    for (kind, map_type) in [
        (FlowTableKind::SetAssociative, BPF_MAP_TYPE_ARRAY),
        (FlowTableKind::KernelLru, BPF_MAP_TYPE_LRU_HASH),
    ] {
        let katran = load(builder().flow_table(kind));
        for table in [katran.map_fd("fallback_flows"), katran.flows().table_fd(0)] {
            assert_eq!(bpf::map_type(table.unwrap()), map_type, "{kind}");
        }
        // The program has no other flow maps.
        let maps = bpf::maps_of(katran.program_fd());
        let hashes = maps.iter().filter(|kind| **kind == BPF_MAP_TYPE_LRU_HASH);
        assert_eq!(
            hashes.count(),
            usize::from(map_type == BPF_MAP_TYPE_LRU_HASH)
        );
        println!(
            "{kind:<16} {} instructions",
            katran.stats().program_size().unwrap() / 8
        );
    }
    // Scanning sets takes more instructions than a call, and the LRU program has none of them.
    let size = |kind| {
        load(builder().flow_table(kind))
            .stats()
            .program_size()
            .unwrap()
    };
    assert!(size(FlowTableKind::KernelLru) + 8 * 400 < size(FlowTableKind::SetAssociative));
}

#[test]
fn the_defaults_hold_millions_of_flows_in_hundreds_of_mib() {
    for (tracking, flows, most) in [
        (FlowTracking::All, 8_000_000, 300 << 20),
        (FlowTracking::Changed, 4_000_000, 180 << 20),
    ] {
        let builder = Katran::builder().gateway_mac(common::GATEWAY);
        let katran = load(builder.flow_tracking(tracking));
        let counters = katran.stats().library().unwrap();
        let capacity = counters.maps.iter().find(|map| map.name == "flows");
        let capacity = capacity.unwrap().capacity;
        assert!(
            (flows..2 * flows).contains(&capacity),
            "{tracking}: {capacity}"
        );
        let memory = katran.stats().memory_in_use().unwrap();
        assert!(memory < most, "{tracking}: {memory}");
    }
}

#[test]
fn numeric_settings_cost_nothing() {
    let size = |builder: Builder| load(builder).stats().program_size().unwrap();
    let usual = size(builder());
    assert_eq!(size(builder().max_frame(9014).gue_port(1)), usual);
    assert_eq!(size(builder().max_reals(1000).max_vips(100)), usual);
}

/// Adds this many VIPs, each with a real; with `prefixes`, every other one is a prefix.
fn fill(katran: &mut Katran, vips: u32, prefixes: bool) {
    for i in 0..vips {
        let address: IpAddr = (0xcb00_0000 + i * 256).to_be_bytes().into();
        let mut vip = Vip::tcp((address, 443).into());
        if prefixes && i % 2 == 0 {
            vip = vip.with_prefix(24).unwrap();
        }
        katran.add_vip(vip, VipFlags::empty()).unwrap();
        let real: IpAddr = (0x0a00_0000 + i).to_be_bytes().into();
        katran.add_real(vip, Real::new(real)).unwrap();
    }
}

#[test]
fn rings_take_memory_for_vips_not_for_updates() {
    let mut katran = load(builder().max_vips(512).ring_size(65_537));
    fill(&mut katran, 4, false);
    let before = katran.stats().memory_in_use().unwrap();
    let vip = katran.vips()[0];
    // Changes a weight: a new ring each time, and the old one is released.
    for weight in 1..=300 {
        let other = Real::new("10.1.0.1".parse().unwrap()).weight(weight);
        katran.add_real(vip, other).unwrap();
    }
    // A ring of 65,537 slots takes 128 KiB; under rapid updates 64 are spare.
    let grown = katran.stats().memory_in_use().unwrap() - before;
    assert!(grown < 9 << 20, "{grown} bytes more after 300 updates");
}

#[test]
fn the_memory_estimate_is_what_the_kernel_accounts() {
    let with = |vips, reals, flows| {
        let builder = builder().max_vips(vips).max_reals(reals);
        builder.flow_table_size(flows)
    };
    let default_rings = with(128, 4096, 200_000).ring_size(65_537);
    let configurations = [
        ("small", builder(), 16, false),
        ("tiny", with(1, 1, 1), 1, false),
        ("wide", with(64, 20_000, 100_000), 64, false),
        ("prefixes", with(512, 1024, 1000), 512, true),
        ("default rings", default_rings, 128, false),
        ("one cpu", builder().forwarding_cpus([0]), 16, false),
        ("in detail", builder().max_vip_reals(100_000), 16, false),
    ];
    println!(
        "{:<16} {:>12} {:>12} {:>7} {:>12} {:>12} {:>7}",
        "", "at load", "kernel", "", "full", "kernel", ""
    );
    for (name, builder, vips, prefixes) in configurations {
        let estimate = builder.memory_estimate().unwrap();
        let mut katran = load(builder);
        let at_load = katran.stats().memory_in_use().unwrap();
        fill(&mut katran, vips, prefixes);
        let full = katran.stats().memory_in_use().unwrap();
        let ratio = |estimate: u64, kernel: u64| estimate as f64 / kernel as f64;
        // No real is down, and no id names one.
        let unused = ["down_reals", "server_ids"].map(|name| {
            let map = estimate.maps().iter().find(|map| map.name == name);
            map.map_or(0, |map| map.at_capacity - map.at_load)
        });
        let unused: u64 = unused.iter().sum();
        let ratios = [
            ratio(estimate.at_load(), at_load),
            ratio(estimate.at_capacity() - unused, full),
        ];
        println!(
            "{name:<16} {:>12} {at_load:>12} {:>7.3} {:>12} {full:>12} {:>7.3}",
            estimate.at_load(),
            ratios[0],
            estimate.at_capacity(),
            ratios[1]
        );
        for ratio in ratios {
            assert!((0.9..=1.1).contains(&ratio), "{name}: {ratio}\n{estimate}");
        }
    }
}

/// The maps of health checks: with an interface for them they exist from the load, and the estimate
/// includes them.
#[test]
fn maps_of_health_checks_are_what_the_kernel_accounts() {
    let names = [
        "marks",
        "destinations",
        "sources",
        "probe_keys",
        "probe_counters",
        "probe_totals",
        "probe_flows",
        ".data.settings",
    ];
    let settings = || {
        let builder = builder().max_reals(10_000).max_vips(500);
        builder.source_v4("10.0.0.2".parse().unwrap())
    };
    let bytes = |builder: Builder| {
        let estimate = builder.memory_estimate().unwrap();
        let katran = load(builder);
        (estimate.at_load(), katran.stats().memory_in_use().unwrap())
    };
    let katran = load(settings());
    for name in names.iter().chain(&["ways"]) {
        assert!(katran.map_fd(name).is_none(), "{name}");
    }
    let estimate = settings().memory_estimate().unwrap();
    assert!(estimate.maps().iter().all(|map| !names.contains(&map.name)));
    drop(katran);
    for hops in [NextHops::Gateway, NextHops::PerReal] {
        let without = settings().next_hops(hops);
        let with = without.clone().healthcheck_interface("eth0");
        let estimate = with.memory_estimate().unwrap();
        let mut katran = load(with.clone());
        let ways = (hops == NextHops::PerReal).then_some("ways");
        for name in names.into_iter().chain(ways) {
            assert!(estimate.maps().iter().any(|map| map.name == name), "{name}");
            assert!(katran.map_fd(name).is_some(), "{name}");
        }
        assert_eq!(katran.map_fd("ways").is_some(), ways.is_some());
        katran
            .probes_mut()
            .map_mark(1, common::ip("198.51.100.1"))
            .unwrap();
        katran
            .probes_mut()
            .map_mark(2, common::ip("198.51.100.1"))
            .unwrap();
        katran
            .probes_mut()
            .register("203.0.113.1:80/tcp".parse().unwrap())
            .unwrap();
        let counters = katran.stats().library().unwrap();
        let uses: Vec<_> = counters
            .maps
            .iter()
            .filter(|map| names.contains(&map.name) || map.name == "ways")
            .map(|map| (map.name, map.capacity, map.entries))
            .collect();
        let mut expected = vec![
            ("marks", 10_000, 2),
            ("destinations", 10_000, 0),
            ("sources", 10_000, 0),
            ("probe_keys", 500, 1),
        ];
        // One more: a changed way exists twice for a moment.
        expected.extend(ways.map(|name| (name, 30_001, 1)));
        assert_eq!(uses, expected);
        katran.probes_mut().unmap_mark(1).unwrap();
        katran.probes_mut().unmap_mark(2).unwrap();
        let counters = katran.stats().library().unwrap();
        assert!(
            counters
                .maps
                .iter()
                .all(|map| map.name != "ways" || map.entries == 0)
        );
        drop(katran);
        let (with, without) = (bytes(with), bytes(without));
        let ratio = (with.0 - without.0) as f64 / (with.1 - without.1) as f64;
        println!("{hops} {ratio:.3} {}", with.1 - without.1);
        assert!((0.9..=1.1).contains(&ratio), "{ratio}\n{estimate}");
    }
}

/// A feature's maps: if enabled, as large as configured; otherwise absent.
#[test]
fn maps_of_features_are_what_the_kernel_accounts() {
    const NAMES: u32 = 20_000;
    let features = Features::SOURCE_ROUTING
        | Features::GLOBAL_FLOW_TABLE
        | Features::INLINE_DECAP
        | Features::INTROSPECTION;
    let limits = || {
        let builder = builder().global_flow_table_size(NAMES).max_decap(100);
        builder.max_source_routes(NAMES).max_server_ids(NAMES)
    };
    let without = limits().memory_estimate().unwrap();
    let of_features = [
        "source_routes_v4",
        "source_routes_v6",
        "global_flows",
        "global_fallback",
        "decap_destinations",
        "events",
        ".data.hops",
        "devices",
    ];
    for name in of_features {
        assert!(without.maps().iter().all(|map| map.name != name), "{name}");
    }
    let limits = || limits().features(features).next_hops(NextHops::Redirect);
    let estimate = limits().memory_estimate().unwrap();
    let mut katran = load(limits());
    for name in of_features {
        assert!(estimate.maps().iter().any(|map| map.name == name), "{name}");
        assert!(katran.map_fd(name).is_some(), "{name}");
    }
    let at_load = katran.stats().memory_in_use().unwrap();
    let vip = common::serve(
        &mut katran,
        "203.0.113.1:443/udp",
        VipFlags::UDP_FLOW_MIGRATION,
        &[],
    );
    let real = common::ip("198.51.100.1");
    katran.add_real(vip, Real::new(real)).unwrap();
    // Scattered like clients' prefixes, by a multiplication that reaches every number.
    let scattered = (0..NAMES).map(|i| i.wrapping_mul(0x9e37_79b1));
    let v4 = scattered.clone().map(|i| {
        let address = std::net::Ipv4Addr::from(i & !0xff);
        Prefix::new(address.into(), 24).unwrap()
    });
    let v6 = scattered.map(|i| {
        let address = std::net::Ipv6Addr::from((0x2001_u128 << 112) | (u128::from(i) << 80));
        Prefix::new(address.into(), 48).unwrap()
    });
    let prefixes: BTreeSet<Prefix> = v4.chain(v6).collect();
    let prefixes: Vec<Prefix> = prefixes.into_iter().collect();
    katran.source_routes_mut().add(&prefixes, real).unwrap();
    let ids: Vec<ServerId> = (1..=NAMES).map(|id| ServerId::new(id, real)).collect();
    katran.server_ids_mut().add(&ids).unwrap();
    for i in 0..100 {
        let end = [192, 0, 2, i].into();
        katran
            .decap_mut()
            .add(end, katran::DecapMode::Inline)
            .unwrap();
    }
    let full = katran.stats().memory_in_use().unwrap();
    // Among the other maps only rings have grown.
    let others = ["ring_chunk", "prefix_vips", "down_reals"];
    let growth: u64 = estimate
        .maps()
        .iter()
        .filter(|map| !others.contains(&map.name))
        .map(|map| match map.name {
            // A leaf per prefix and an inner node per branching: the kernel accounts only the
            // leaves.
            "source_routes_v4" | "source_routes_v6" => map.at_capacity / 2,
            _ => map.at_capacity - map.at_load,
        })
        .sum();
    // Trie nodes are smaller than on the oldest kernel, which the estimate is for.
    for (what, expected, kernel, most) in [
        ("at load", estimate.at_load(), at_load, 1.1),
        ("growth", growth, full - at_load, 1.5),
    ] {
        let ratio = expected as f64 / kernel as f64;
        println!("{what:<10} {expected:>10} {kernel:>10} {ratio:.3}");
        assert!((0.9..=most).contains(&ratio), "{what}: {ratio}\n{estimate}");
    }
    katran
        .server_ids_mut()
        .remove(&ids.iter().map(ServerId::id).collect::<Vec<_>>())
        .unwrap();
    katran.source_routes_mut().clear().unwrap();
    let after = katran.stats().memory_in_use().unwrap();
    // The smallest table of server ids remains.
    let smallest = 1 << 20;
    assert!(
        after < at_load + smallest + (full - at_load) / 10,
        "{at_load} {full} {after}"
    );
}
