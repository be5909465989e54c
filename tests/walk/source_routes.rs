//! Source routes: the client's longest prefix chooses the real of a new flow.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::time::Duration;
use std::time::Instant;

use katran::Builder;
use katran::Error;
use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::Prefix;
use katran::SourceRoute;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Choice;
use katran::flows::Reason;
use katran::stats::DropReason;
use nix::errno::Errno;

use crate::common;
use crate::common::at;
use crate::common::bpf;
use crate::common::builder;
use crate::common::faults;
use crate::common::frames::RST;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;

/// A is in the VIP's ring; only routes name B and C, one of each family.
const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
const C: &str = "2001:db8:2::3";
const VIP: &str = "203.0.113.1:443";
const VIP6: &str = "[2001:db8:1::1]:443";

fn settings() -> Builder {
    builder()
        .features(Features::default() | Features::SOURCE_ROUTING)
        .forwarding_cpus([0])
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn balancer(flags: VipFlags) -> Katran {
    let mut katran = load(settings());
    for vip in [VIP, VIP6] {
        let vip = format!("{vip}/tcp");
        serve(&mut katran, &vip, VipFlags::SRC_ROUTING | flags, &[A]);
    }
    katran
        .source_routes_mut()
        .add(&[prefix("100.64.0.0/10"), prefix("2001:db8:c::/48")], ip(B))
        .unwrap();
    katran
        .source_routes_mut()
        .add(
            &[prefix("100.64.7.0/24"), prefix("2001:db8:c:7::/64")],
            ip(C),
        )
        .unwrap();
    katran
}

fn flow(client: &str, port: u16) -> Flow {
    let client = ip(client);
    let to = at(if client.is_ipv4() { VIP } else { VIP6 });
    Flow::tcp((client, port).into(), to)
}

fn routed(to: &str) -> (Option<IpAddr>, Reason) {
    (Some(ip(to)), Reason::SourceRoute)
}

#[test]
fn the_longest_prefix_chooses_the_real_of_a_new_flow() {
    let katran = balancer(VipFlags::empty());
    for (client, to, by) in [
        ("100.64.0.1", B, Some("100.64.0.0/10")),
        ("100.127.255.255", B, Some("100.64.0.0/10")),
        ("100.64.7.9", C, Some("100.64.7.0/24")),
        ("9.9.9.9", A, None),
        ("2001:db8:c:1::1", B, Some("2001:db8:c::/48")),
        ("2001:db8:c:7::1", C, Some("2001:db8:c:7::/64")),
        ("2001:db8:d::1", A, None),
    ] {
        let answer = katran.real_for_flow(&flow(client, 1)).unwrap().unwrap();
        assert_eq!(answer.real, Some(ip(to)), "{client}");
        let choice = by.map_or(Choice::Ring, |by| Choice::SourceRoute {
            prefix: prefix(by),
        });
        assert_eq!(answer.choice, choice, "{client}");
        let reason = by.map_or(Reason::Ring, |_| Reason::SourceRoute);
        let opened = sent(&katran, &syn(flow(client, 1)));
        assert_eq!(opened, (Some(ip(to)), reason), "{client}");
        // After that the flow table knows it.
        let next = sent(&katran, &frame(flow(client, 1)));
        assert_eq!(next, (Some(ip(to)), Reason::FlowTable), "{client}");
    }
    let counters = katran.stats().source_routing().unwrap();
    assert_eq!((counters.matched, counters.unmatched), (5, 2));
    // With no real in the ring, only clients in a prefix have one.
    let mut katran = katran;
    for vip in katran.vips() {
        katran.remove_real(vip, ip(A)).unwrap();
    }
    let answer = katran.real_for_flow(&flow("9.9.9.9", 7)).unwrap().unwrap();
    assert_eq!((answer.real, answer.choice), (None, Choice::Ring));
    assert_eq!(answer.drop, Some(DropReason::RingEmpty));
    let dropped = Reason::Dropped(DropReason::RingEmpty);
    assert_eq!(sent(&katran, &syn(flow("9.9.9.9", 7))), (None, dropped));
    let answer = katran
        .real_for_flow(&flow("100.64.0.1", 7))
        .unwrap()
        .unwrap();
    assert_eq!((answer.real, answer.drop), (Some(ip(B)), None));
    assert_eq!(sent(&katran, &syn(flow("100.64.0.1", 7))), routed(B));
}

#[test]
fn a_vip_without_the_flag_ignores_it() {
    let mut katran = balancer(VipFlags::empty());
    let vip: Vip = format!("{VIP}/tcp").parse().unwrap();
    katran.set_vip_flags(vip, VipFlags::empty()).unwrap();
    let flow = flow("100.64.0.1", 1);
    // The flag was set before, so flows may be elsewhere.
    assert_eq!(sent(&katran, &syn(flow)), (Some(ip(A)), Reason::Base));
    let counters = katran.stats().source_routing().unwrap();
    assert_eq!((counters.matched, counters.unmatched), (0, 0));
}

#[test]
fn known_flows_stay_when_routes_are_removed() {
    let mut katran = balancer(VipFlags::empty());
    let old = flow("100.64.0.1", 1);
    assert_eq!(sent(&katran, &syn(old)), routed(B));
    let reset = common::frames::Packet::new(flow("100.64.0.1", 3)).flags(RST);
    assert_eq!(sent(&katran, &reset.frame()), routed(B));
    katran
        .source_routes_mut()
        .remove(&[prefix("100.64.0.0/10")])
        .unwrap();
    // The other family's route keeps the real in use.
    let known = sent(&katran, &frame(old));
    assert_eq!(known, (Some(ip(B)), Reason::FlowTable));
    // The reset removed the first flow's entry.
    for new in [flow("100.64.0.1", 2), flow("100.64.0.1", 3)] {
        assert_eq!(sent(&katran, &frame(new)).1, Reason::Ring);
    }
}

#[test]
fn with_the_flow_table_bypassed_every_packet_uses_its_route() {
    let katran = balancer(VipFlags::LRU_BYPASS);
    for _ in 0..3 {
        assert_eq!(sent(&katran, &frame(flow("100.64.0.1", 1))), routed(B));
    }
    assert_eq!(katran.stats().source_routing().unwrap().matched, 3);
}

#[test]
fn dport_hash_decides_only_without_a_matching_prefix() {
    let katran = balancer(VipFlags::DPORT_HASH);
    assert_eq!(sent(&katran, &syn(flow("100.64.0.1", 1))), routed(B));
    // The prefix's choice is remembered; the ring's, which depends on the port, is not.
    let known = sent(&katran, &frame(flow("100.64.0.1", 1)));
    assert_eq!(known.1, Reason::FlowTable);
    assert_eq!(sent(&katran, &syn(flow("9.9.9.9", 1))).1, Reason::Ring);
    assert_eq!(sent(&katran, &frame(flow("9.9.9.9", 1))).1, Reason::Ring);
}

#[test]
fn source_routes_work_under_flood() {
    let mut katran = load(settings().flood_threshold(10));
    let vip = format!("{VIP}/tcp");
    serve(&mut katran, &vip, VipFlags::SRC_ROUTING, &[A]);
    katran
        .source_routes_mut()
        .add(&[prefix("0.0.0.0/0")], ip(B))
        .unwrap();
    let reasons: Vec<Reason> = (0..40)
        .map(|port| sent(&katran, &syn(flow("100.64.0.1", 1 + port))).1)
        .collect();
    assert_eq!(reasons, [Reason::SourceRoute; 40]);
    let counters = katran.stats().source_routing().unwrap();
    assert_eq!((counters.matched, counters.unmatched), (40, 0));
}

#[test]
fn a_real_lives_while_a_route_names_it() {
    let mut katran = balancer(VipFlags::empty());
    let number = katran.real_index(ip(B)).unwrap();
    assert_eq!(katran.stats().real(ip(B)).unwrap().forwarded.packets, 0);
    let _ = sent(&katran, &syn(flow("100.64.0.1", 1)));
    assert_eq!(katran.stats().real(ip(B)).unwrap().forwarded.packets, 1);
    katran
        .source_routes_mut()
        .remove(&[prefix("100.64.0.0/10")])
        .unwrap();
    assert_eq!(katran.real_index(ip(B)), Some(number));
    katran.source_routes_mut().clear().unwrap();
    assert_eq!(katran.real_index(ip(B)), None);
    assert_eq!(katran.source_routes().count(), 0);
    assert_eq!(katran.source_routes().list(), []);
    let known = sent(&katran, &frame(flow("100.64.0.1", 1)));
    assert_eq!(known, (Some(ip(A)), Reason::Ring), "its flows are void");
}

#[test]
fn batches_are_all_or_nothing() {
    let limited = settings().max_source_routes(3).max_reals(3);
    let mut katran = load(limited);
    serve(
        &mut katran,
        &format!("{VIP}/tcp"),
        VipFlags::SRC_ROUTING,
        &[A],
    );
    let routes = |texts: &[&str]| texts.iter().map(|text| prefix(text)).collect::<Vec<_>>();
    katran
        .source_routes_mut()
        .add(
            &routes(&["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"]),
            ip(B),
        )
        .unwrap();
    let before = katran.source_routes().list();
    assert_eq!(
        before,
        [
            SourceRoute::new(prefix("10.0.0.0/8"), ip(B)),
            SourceRoute::new(prefix("10.1.0.0/16"), ip(B)),
            SourceRoute::new(prefix("2001:db8::/32"), ip(B)),
        ]
    );
    let kernel = |katran: &Katran| {
        ["source_routes_v4", "source_routes_v6"].map(|map| bpf::dump(katran.map_fd(map).unwrap()))
    };
    let in_kernel = kernel(&katran);
    let exists = |error| matches!(error, Error::AlreadyExists { .. });
    let exhausted = |error| matches!(error, Error::Exhausted { .. });
    let missing = |error| matches!(error, Error::NotFound { .. });
    let add = |katran: &mut Katran, texts: &[&str], real: &str| {
        katran
            .source_routes_mut()
            .add(&routes(texts), ip(real))
            .unwrap_err()
    };
    assert!(exists(add(&mut katran, &["10.2.0.0/16", "10.0.0.0/8"], A)));
    assert!(exists(add(&mut katran, &["10.2.0.0/16", "10.2.0.0/16"], A)));
    // The limit is per family: two more exceed it here, but would fit in the other family.
    assert!(exhausted(add(
        &mut katran,
        &["10.2.0.0/16", "10.3.0.0/16"],
        A
    )));
    let bad = add(&mut katran, &["10.2.0.0/16"], "127.0.0.1");
    assert!(matches!(bad, Error::InvalidAddress { .. }), "{bad}");
    let gone = routes(&["10.0.0.0/8", "10.9.0.0/16"]);
    assert!(missing(
        katran.source_routes_mut().remove(&gone).unwrap_err()
    ));
    let twice = routes(&["10.0.0.0/8", "10.0.0.0/8"]);
    assert!(missing(
        katran.source_routes_mut().remove(&twice).unwrap_err()
    ));
    // No number is left for a fourth real.
    katran
        .source_routes_mut()
        .add(&routes(&["2001:db8:1::/48"]), ip(C))
        .unwrap();
    assert!(exhausted(add(
        &mut katran,
        &["2001:db8:2::/48"],
        "198.51.100.9"
    )));
    katran
        .source_routes_mut()
        .remove(&routes(&["2001:db8:1::/48"]))
        .unwrap();

    // The kernel refuses: if the second family fails, the first is undone.
    for (command, errno) in [
        (faults::MAP_UPDATE_BATCH, Errno::ENOMEM),
        (faults::MAP_DELETE_BATCH, Errno::EBUSY),
    ] {
        let failed = faults::without_commands(&[command], errno, || match command {
            faults::MAP_UPDATE_BATCH => katran
                .source_routes_mut()
                .add(&routes(&["10.2.0.0/16", "2001:db8:2::/48"]), ip(A)),
            _ => katran
                .source_routes_mut()
                .remove(&routes(&["10.0.0.0/8", "2001:db8::/32"])),
        });
        let refused = match errno {
            Errno::ENOMEM => matches!(failed, Err(Error::InsufficientMemory { .. })),
            _ => matches!(failed, Err(Error::Kernel { .. })),
        };
        assert!(refused, "{failed:?}");
    }
    assert_eq!(katran.source_routes().list(), before);
    assert_eq!(kernel(&katran), in_kernel);
    // The next call works.
    katran
        .source_routes_mut()
        .add(&routes(&["10.2.0.0/16"]), ip(C))
        .unwrap();
    assert_eq!(sent(&katran, &syn(flow("10.2.0.1", 1))), routed(C));
}

#[test]
fn a_balancer_without_the_feature_says_so() {
    let mut katran = load(builder());
    let error = katran
        .source_routes_mut()
        .add(&[prefix("10.0.0.0/8")], ip(A))
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(error.to_string().contains("source-routing"), "{error}");
    assert!(katran.map_fd("source_routes_v4").is_none());
    assert_eq!(katran.source_routes().list(), []);
}

/// 1,000,000 prefixes by batch calls take less than 10 seconds.
#[test]
fn a_million_prefixes_are_loaded_in_seconds() {
    let mut katran = load(settings().max_source_routes(1_000_000));
    serve(
        &mut katran,
        &format!("{VIP}/tcp"),
        VipFlags::SRC_ROUTING,
        &[A],
    );
    let v4 = (0..500_000u32).map(|i| {
        let address: Ipv4Addr = (0x0a00_0000 + (i << 4)).into();
        Prefix::new(address.into(), 28).unwrap()
    });
    let v6 = (0..500_000u128).map(|i| {
        let address: Ipv6Addr = ((0x2001_0db8 << 96) | (i << 64)).into();
        Prefix::new(address.into(), 64).unwrap()
    });
    let prefixes: Vec<Prefix> = v4.chain(v6).collect();
    // This thread's CPU time, as other processes use the machine. A release build must take less
    // than ten seconds; a debug build took 4.6 to 15.
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 30 } else { 10 });
    let began = common::cpu_time();
    for (batch, real) in prefixes.chunks(100_000).zip([B, C].into_iter().cycle()) {
        katran.source_routes_mut().add(batch, ip(real)).unwrap();
    }
    let took = common::cpu_time() - began;
    println!("1,000,000 prefixes added in {took:?}");
    assert!(took < limit, "{took:?}");
    assert_eq!(katran.source_routes().count(), 1_000_000);
    assert_eq!(sent(&katran, &syn(flow("10.0.0.1", 1))), routed(B));
    assert_eq!(sent(&katran, &syn(flow("10.32.0.1", 1))), routed(C));
    let began = Instant::now();
    katran.source_routes_mut().clear().unwrap();
    println!("and removed in {:?}", began.elapsed());
    assert_eq!(sent(&katran, &syn(flow("10.0.0.1", 1))).1, Reason::Ring);
}
