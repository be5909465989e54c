//! What is off leaves nothing behind: the size of the program as the kernel runs it, by feature,
//! printed as a table; and what its maps take, against the estimate and against the kernel.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

mod common;

use std::net::IpAddr;

use common::bpf;
use common::builder;
use common::load;
use katran::Builder;
use katran::Features;
use katran::FlowTableKind;
use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::VipFlags;

/// Bytes of the program, and of its explaining twin.
fn sizes(features: Features, frags: bool) -> (u32, u32) {
    let katran = load(builder().features(features).frags(frags));
    (
        katran.program_size().unwrap(),
        katran.explainer_size().unwrap(),
    )
}

#[test]
fn a_feature_that_is_off_leaves_no_instruction_behind() {
    let features = [Features::ICMP_TOO_BIG, Features::LOCAL_DELIVERY];
    let all = features.into_iter().collect::<Features>();
    assert_eq!(all, Features::default(), "every feature there is");
    let row = |what: &str, (program, twin): (u32, u32)| {
        println!("{what:<30} {:>6} {:>8} {:>8}", program / 8, program, twin);
    };
    println!("{:<30} {:>6} {:>8} {:>8}", "", "insns", "bytes", "twin");
    let (full, full_twin) = sizes(all, true);
    row("everything", (full, full_twin));
    for feature in features {
        let (size, twin) = sizes(all.difference(feature), true);
        row(&format!("without {feature}"), (size, twin));
        assert!(size < full && twin < full_twin, "{feature}");
    }
    let (size, twin) = sizes(all, false);
    row("without frags", (size, twin));
    assert!(size < full && twin < full_twin);
    let default = size;

    let (none, none_twin) = sizes(Features::empty(), false);
    row("nothing", (none, none_twin));
    for feature in features {
        let (size, twin) = sizes(feature, false);
        row(&format!("{feature} alone"), (size, twin));
        assert!(none < size && size < default, "{feature}");
        assert!(none_twin < twin);
    }
    // What explains is in the twin alone, whatever is on.
    assert!(full < full_twin && default < twin && none < none_twin);
}

#[test]
fn only_the_chosen_kind_of_flow_table_is_loaded() {
    use libbpf_sys::BPF_MAP_TYPE_ARRAY;
    use libbpf_sys::BPF_MAP_TYPE_LRU_HASH;
    for (kind, map_type) in [
        (FlowTableKind::SetAssociative, BPF_MAP_TYPE_ARRAY),
        (FlowTableKind::KernelLru, BPF_MAP_TYPE_LRU_HASH),
    ] {
        let katran = load(builder().flow_table(kind));
        for table in [katran.map_fd("fallback_flows"), katran.flow_table_fd(0)] {
            assert_eq!(bpf::map_type(table.unwrap()), map_type, "{kind}");
        }
        // No other map of the program is for flows.
        let maps = bpf::maps_of(katran.program_fd());
        let hashes = maps.iter().filter(|kind| **kind == BPF_MAP_TYPE_LRU_HASH);
        assert_eq!(
            hashes.count(),
            usize::from(map_type == BPF_MAP_TYPE_LRU_HASH)
        );
        println!(
            "{kind:<16} {} instructions",
            katran.program_size().unwrap() / 8
        );
    }
    // Scanning sets takes more instructions than a call, and none of them is left with the LRU.
    let size = |kind| load(builder().flow_table(kind)).program_size().unwrap();
    assert!(size(FlowTableKind::KernelLru) + 8 * 500 < size(FlowTableKind::SetAssociative));
}

#[test]
fn the_defaults_hold_8_million_flows_in_less_than_300_mib() {
    let katran = load(Katran::builder().gateway_mac(common::GATEWAY));
    let capacity = |counters: &katran::LibraryCounters| {
        let flows = counters.maps.iter().find(|map| map.name == "flows");
        flows.unwrap().capacity
    };
    assert!(capacity(&katran.library_counters().unwrap()) >= 8_000_000);
    let memory = katran.memory_in_use().unwrap();
    assert!(memory < 300 << 20, "{memory}");
}

#[test]
fn settings_that_are_numbers_cost_nothing() {
    let size = |builder: Builder| load(builder).program_size().unwrap();
    let usual = size(builder());
    assert_eq!(size(builder().max_frame(9014).gue_port(1)), usual);
    assert_eq!(size(builder().max_reals(1000).max_vips(100)), usual);
}

/// Adds as many VIPs, every other one a prefix if there is to be any, each with a real.
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
    let before = katran.memory_in_use().unwrap();
    let vip = katran.vips()[0];
    // Another real's weight: each time a new ring, and the old one given up.
    for weight in 1..=300 {
        let other = Real::new("10.1.0.1".parse().unwrap()).weight(weight);
        katran.add_real(vip, other).unwrap();
    }
    // A ring of 65,537 slots takes 128 KiB, and where updates are fast there are 64 to spare.
    let grown = katran.memory_in_use().unwrap() - before;
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
    ];
    println!(
        "{:<16} {:>12} {:>12} {:>7} {:>12} {:>12} {:>7}",
        "", "at load", "kernel", "", "full", "kernel", ""
    );
    for (name, builder, vips, prefixes) in configurations {
        let estimate = builder.memory_estimate().unwrap();
        let mut katran = load(builder);
        let at_load = katran.memory_in_use().unwrap();
        fill(&mut katran, vips, prefixes);
        let full = katran.memory_in_use().unwrap();
        let ratio = |estimate: u64, kernel: u64| estimate as f64 / kernel as f64;
        let ratios = [
            ratio(estimate.at_load(), at_load),
            ratio(estimate.at_capacity(), full),
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
