//! Flows leave a real that their VIP gives up, or that is down for it: at once, on every path
//! besides the ring, and for every VIP and protocol.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use katran::Error;
use katran::Features;
use katran::Flow;
use katran::FlowTableKind;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Choice;
use katran::flows::Reason;
use katran::stats::DropReason;
use katran_lab::eventually;
use nix::errno::Errno;

use crate::common::all_in_table;
use crate::common::at;
use crate::common::faults;
use crate::common::faults::without_commands;
use crate::common::fixtures::A;
use crate::common::flows;
use crate::common::frames::RST;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::frames::unreachable;
use crate::common::ip;
use crate::common::load;
use crate::common::sent;
use crate::common::serve;
use crate::common::vip;

const B: &str = "2001:db8:2::1";
const VIP: &str = "203.0.113.1:443/tcp";
const OTHER: &str = "203.0.113.2:443/tcp";

fn flow(port: u16) -> Flow {
    Flow::tcp((ip("192.0.2.7"), port).into(), at("203.0.113.1:443"))
}

fn send(katran: &Katran, flow: Flow) -> (Option<IpAddr>, Reason) {
    sent(katran, &frame(flow))
}

fn answer(katran: &Katran, flow: Flow) -> Option<IpAddr> {
    katran.real_for_flow(&flow).unwrap().unwrap().real
}

/// Pairs of VIP and down real in the program's map.
fn pairs(katran: &Katran) -> u64 {
    let maps = katran.stats().library().unwrap().maps;
    maps.iter()
        .find(|map| map.name == "down_reals")
        .unwrap()
        .entries
}

/// Waits until the void entries are gone from the tables, and then the pairs that void them.
fn swept(katran: &Katran, left: u64) {
    eventually("void entries are removed", || pairs(katran) <= left);
}

/// All flows go to A, which another VIP has, too; then B takes the new ones.
fn all_on_a(katran: &mut Katran, service: &str, flags: VipFlags, flows: &[Flow]) -> Vip {
    let vip = serve(katran, service, flags, &[A]);
    serve(katran, OTHER, VipFlags::empty(), &[A]);
    for flow in flows {
        assert_eq!(send(katran, *flow), (Some(ip(A)), Reason::Ring));
    }
    katran.add_real(vip, Real::new(ip(B))).unwrap();
    for flow in flows {
        assert_eq!(send(katran, *flow), (Some(ip(A)), Reason::FlowTable));
    }
    vip
}

#[test]
fn a_removed_real_loses_its_flows_though_another_vip_has_it() {
    for (service, to, protocol) in [
        (VIP, "203.0.113.1:443", Protocol::Tcp),
        ("203.0.113.1:443/udp", "203.0.113.1:443", Protocol::Udp),
        ("203.0.113.1:0/tcp", "203.0.113.1:80", Protocol::Tcp),
        ("203.0.113.0/28:443/udp", "203.0.113.5:443", Protocol::Udp),
        (
            "[2001:db8:1::1]:443/tcp",
            "[2001:db8:1::1]:443",
            Protocol::Tcp,
        ),
    ] {
        for kind in [FlowTableKind::SetAssociative, FlowTableKind::KernelLru] {
            let mut katran = load(all_in_table().flow_table(kind));
            let flows = flows(protocol, to, 40);
            let of_other = Flow::tcp(at("192.0.2.7:1"), at("203.0.113.2:443"));
            let vip = all_on_a(&mut katran, service, VipFlags::empty(), &flows);
            send(&katran, of_other);
            katran.remove_real(vip, ip(A)).unwrap();
            for flow in &flows {
                assert_eq!(answer(&katran, *flow), Some(ip(B)), "{service}");
                let entries = katran.flows().find(flow).unwrap();
                assert!(entries.iter().all(|entry| entry.real != Some(ip(A))));
                assert_eq!(send(&katran, *flow), (Some(ip(B)), Reason::Ring));
                assert_eq!(send(&katran, *flow), (Some(ip(B)), Reason::FlowTable));
            }
            assert_eq!(send(&katran, of_other), (Some(ip(A)), Reason::FlowTable));
            swept(&katran, 0);
            for flow in &flows {
                assert_eq!(send(&katran, *flow), (Some(ip(B)), Reason::FlowTable));
            }
            assert_eq!(send(&katran, of_other), (Some(ip(A)), Reason::FlowTable));
        }
    }
}

#[test]
fn void_entries_are_removed_by_themselves() {
    let mut katran = load(all_in_table());
    let vip = all_on_a(&mut katran, VIP, VipFlags::empty(), &[]);
    katran.mark_down(vip, ip(B)).unwrap();
    // Enough to split sets on the way.
    for flow in flows(Protocol::Tcp, "203.0.113.1:443", 2000) {
        assert_eq!(send(&katran, flow).0, Some(ip(A)));
    }
    assert!(katran.flows().stats(vip).unwrap().entries > 1500);
    katran.remove_real(vip, ip(A)).unwrap();
    let stats = katran.flows().stats(vip).unwrap();
    assert_eq!(
        stats.stale, stats.entries,
        "all entries are stale from the start"
    );
    swept(&katran, 0);
    assert_eq!(katran.flows().stats(vip).unwrap().entries, 0);
}

#[test]
fn a_real_that_is_added_again_at_once_has_no_old_flows() {
    let mut katran = load(all_in_table());
    let flows = flows(Protocol::Tcp, "203.0.113.1:443", 200);
    let vip = all_on_a(&mut katran, VIP, VipFlags::empty(), &flows);
    for _ in 0..5 {
        katran.remove_real(vip, ip(A)).unwrap();
        katran.add_real(vip, Real::new(ip(A))).unwrap();
        assert_eq!(katran.flows().stats(vip).unwrap().entries, 0);
        let to_a = flows.iter().filter(|flow| {
            let (real, reason) = send(&katran, **flow);
            assert_eq!(reason, Reason::Ring);
            assert_eq!(send(&katran, **flow), (real, Reason::FlowTable));
            real == Some(ip(A))
        });
        let to_a = to_a.count();
        assert!((50..150).contains(&to_a), "{to_a} by the ring");
        katran.flows_mut().purge(vip).unwrap();
    }
}

#[test]
fn a_vip_that_is_added_again_at_once_has_no_old_flows() {
    // With room for two VIPs the number is reused at once.
    let mut katran = load(all_in_table().max_vips(2));
    let flows = flows(Protocol::Tcp, "203.0.113.1:443", 100);
    let vip = all_on_a(&mut katran, VIP, VipFlags::empty(), &flows);
    for _ in 0..3 {
        katran.remove_vip(vip).unwrap();
        serve(&mut katran, VIP, VipFlags::empty(), &[A, B]);
        assert_eq!(katran.flows().stats(vip).unwrap().entries, 0);
        for flow in &flows {
            let (real, reason) = send(&katran, *flow);
            assert_eq!(reason, Reason::Ring);
            assert_eq!(send(&katran, *flow), (real, Reason::FlowTable));
        }
    }
}

/// Each path that leads to a real; an id in a packet leads there regardless of health.
#[test]
fn a_down_real_loses_its_flows_on_every_path() {
    for service in [VIP, "203.0.113.1:443/udp"] {
        for kind in [FlowTableKind::SetAssociative, FlowTableKind::KernelLru] {
            let mut katran = load(all_in_table().flow_table(kind));
            let protocol = vip(service).protocol();
            let flows = flows(protocol, "203.0.113.1:443", 30);
            let vip = all_on_a(&mut katran, service, VipFlags::empty(), &flows);
            katran.mark_down(vip, ip(A)).unwrap();
            assert!(katran.is_down(vip, ip(A)).unwrap());
            assert_eq!(katran.reals(vip).unwrap()[0].get_weight(), 1, "is kept");
            for flow in &flows {
                assert_eq!(answer(&katran, *flow), Some(ip(B)));
                assert_eq!(send(&katran, *flow), (Some(ip(B)), Reason::Ring));
            }
            for flow in crate::common::flows(protocol, "203.0.113.1:443", 200) {
                assert_eq!(send(&katran, flow).0, Some(ip(B)), "no new flows");
            }
            swept(&katran, 0);
            for flow in &flows {
                assert_eq!(send(&katran, *flow), (Some(ip(B)), Reason::FlowTable));
            }
            katran.mark_up(vip, ip(A)).unwrap();
            let news = crate::common::flows(protocol, "203.0.113.1:443", 400);
            let to_a = news[200..].iter();
            let to_a = to_a.filter(|flow| send(&katran, **flow).0 == Some(ip(A)));
            assert!(to_a.count() > 50, "the real has its share again");
            for flow in &flows {
                assert_eq!(send(&katran, *flow), (Some(ip(B)), Reason::FlowTable));
            }
            assert_eq!(katran.stats().udp_flow_migration().unwrap().invalidated, 0);
        }
    }
}

#[test]
fn packets_that_make_no_entry_ignore_void_ones_too() {
    let mut katran = load(all_in_table());
    let vip = all_on_a(&mut katran, VIP, VipFlags::empty(), &[flow(1), flow(2)]);
    katran.mark_down(vip, ip(A)).unwrap();
    for _ in 0..2 {
        let reset = crate::common::frames::Packet::new(flow(1))
            .flags(RST)
            .frame();
        assert_eq!(sent(&katran, &reset), (Some(ip(B)), Reason::Ring));
    }
    let error = unreachable(flow(2), 8);
    assert_eq!(sent(&katran, &error).0, Some(ip(B)));
    assert_eq!(sent(&katran, &syn(flow(1))), (Some(ip(B)), Reason::Ring));
}

#[test]
fn if_all_reals_are_down_packets_are_dropped_and_counted() {
    let mut katran = load(all_in_table());
    let vip = serve(&mut katran, VIP, VipFlags::empty(), &[A, B]);
    serve(&mut katran, OTHER, VipFlags::empty(), &[A, B]);
    send(&katran, flow(1));
    katran.mark_down(vip, ip(A)).unwrap();
    katran.mark_down(vip, ip(B)).unwrap();
    assert_eq!(katran.down_reals(vip).unwrap(), [ip(A), ip(B)]);
    let dropped = (None, Reason::Dropped(DropReason::RingEmpty));
    for _ in 0..2 {
        assert_eq!(send(&katran, flow(1)), dropped);
        assert_eq!(send(&katran, flow(2)), dropped);
        swept(&katran, 0);
    }
    assert_eq!(katran.stats().ring_drops().unwrap().empty, 4);
    katran.clear_down(vip).unwrap();
    assert!(katran.down_reals(vip).unwrap().is_empty());
    assert!(send(&katran, flow(1)).0.is_some());
}

#[test]
fn drain_and_health_are_independent() {
    let mut katran = load(all_in_table());
    let vip = all_on_a(&mut katran, VIP, VipFlags::empty(), &[flow(1), flow(2)]);
    let weight = |katran: &Katran| katran.reals(vip).unwrap()[0].get_weight();
    // An operator drains it: flows stay. It dies: they leave. It returns: still drained.
    katran.add_real(vip, Real::new(ip(A)).weight(0)).unwrap();
    assert_eq!(send(&katran, flow(1)), (Some(ip(A)), Reason::FlowTable));
    katran.mark_down(vip, ip(A)).unwrap();
    assert_eq!(send(&katran, flow(1)), (Some(ip(B)), Reason::Ring));
    katran.mark_up(vip, ip(A)).unwrap();
    assert_eq!(weight(&katran), 0);
    for flow in flows(Protocol::Tcp, "203.0.113.1:443", 100) {
        assert_eq!(send(&katran, flow).0, Some(ip(B)));
    }
    // Changing weights and flags leaves a down real down.
    katran.mark_down(vip, ip(A)).unwrap();
    katran.add_real(vip, Real::new(ip(A)).weight(7)).unwrap();
    katran.set_vip_flags(vip, VipFlags::NO_SRC_PORT).unwrap();
    katran.set_vip_flags(vip, VipFlags::empty()).unwrap();
    assert!(katran.is_down(vip, ip(A)).unwrap());
    let all_on_b = |katran: &Katran| {
        let mut flows = flows(Protocol::Tcp, "203.0.113.1:443", 300).into_iter();
        flows.all(|flow| send(katran, flow).0 == Some(ip(B)))
    };
    assert!(all_on_b(&katran));
    let features = katran.features() | Features::SOURCE_ROUTING;
    katran.reload(features).unwrap();
    assert!(all_on_b(&katran) && weight(&katran) == 7);
}

#[test]
fn source_routes_do_not_lead_to_a_down_real() {
    let features = Features::default() | Features::SOURCE_ROUTING;
    let mut katran = load(all_in_table().features(features));
    let vip = serve(&mut katran, VIP, VipFlags::SRC_ROUTING, &[A, B]);
    let to_a = Some(ip(A));
    let clients = ["192.0.2.0/24".parse().unwrap()];
    katran.source_routes_mut().add(&clients, ip(A)).unwrap();
    assert_eq!(send(&katran, flow(1)), (to_a, Reason::SourceRoute));
    katran.mark_down(vip, ip(A)).unwrap();
    for port in 1..20 {
        assert_eq!(answer(&katran, flow(port)), Some(ip(B)));
        assert_eq!(send(&katran, flow(port)), (Some(ip(B)), Reason::Ring));
    }
    katran.mark_up(vip, ip(A)).unwrap();
    assert_eq!(send(&katran, flow(30)), (to_a, Reason::SourceRoute));
    // The route keeps naming a real that the VIP gave up, and its flows stay.
    katran.remove_real(vip, ip(A)).unwrap();
    assert_eq!(send(&katran, flow(30)), (to_a, Reason::SourceRoute));
    swept(&katran, 0);
    assert_eq!(send(&katran, flow(30)), (to_a, Reason::SourceRoute));
    assert_eq!(send(&katran, flow(30)), (to_a, Reason::FlowTable));
}

#[test]
fn the_global_flow_table_does_not_lead_to_a_down_real() {
    let features = Features::default() | Features::GLOBAL_FLOW_TABLE;
    let mut katran = load(all_in_table().features(features).forwarding_cpus([0]));
    let vip = serve(&mut katran, VIP, VipFlags::GLOBAL_LRU, &[A, B]);
    katran.global_flows_mut().set(0, &flow(1), ip(A)).unwrap();
    assert_eq!(
        send(&katran, flow(1)),
        (Some(ip(A)), Reason::GlobalFlowTable)
    );
    katran.mark_down(vip, ip(A)).unwrap();
    assert_eq!(answer(&katran, flow(1)), Some(ip(B)));
    let found = katran.real_for_flow(&flow(1)).unwrap().unwrap();
    assert_eq!(found.choice, Choice::Ring);
    assert_eq!(send(&katran, flow(1)), (Some(ip(B)), Reason::Ring));
    // While it is down, even if no entry is left to remove.
    thread::sleep(Duration::from_millis(300));
    katran.global_flows_mut().set(0, &flow(2), ip(A)).unwrap();
    assert_eq!(send(&katran, flow(2)), (Some(ip(B)), Reason::Ring));
    assert_eq!(pairs(&katran), 1);
    // Without the flag the global table is not looked up.
    katran.set_vip_flags(vip, VipFlags::empty()).unwrap();
    swept(&katran, 0);
    katran.set_vip_flags(vip, VipFlags::GLOBAL_LRU).unwrap();
    assert_eq!(pairs(&katran), 1);
    katran.global_flows_mut().set(0, &flow(3), ip(A)).unwrap();
    assert_eq!(send(&katran, flow(3)), (Some(ip(B)), Reason::Ring));
    katran.mark_up(vip, ip(A)).unwrap();
    assert_eq!(pairs(&katran), 0);
    katran.global_flows_mut().set(0, &flow(4), ip(A)).unwrap();
    assert_eq!(
        send(&katran, flow(4)),
        (Some(ip(A)), Reason::GlobalFlowTable)
    );
}

/// A refused call changes nothing: rings, entries, down reals.
#[test]
fn a_refused_change_voids_nothing() {
    for (service, flags) in [
        (VIP, VipFlags::empty()),
        ("203.0.113.1:443/udp", VipFlags::UDP_FLOW_MIGRATION),
    ] {
        let mut katran = load(all_in_table());
        let protocol = vip(service).protocol();
        let flows = flows(protocol, "203.0.113.1:443", 20);
        let vip = all_on_a(&mut katran, service, flags, &flows);
        let before = katran.state();
        let mut refused = |commands: &[u32], change: fn(&mut Katran, Vip) -> katran::Result<()>| {
            let error = without_commands(commands, Errno::ENOMEM, || change(&mut katran, vip));
            assert!(
                matches!(error, Err(Error::InsufficientMemory { .. })),
                "{error:?}"
            );
            assert_eq!(katran.state(), before);
            assert_eq!(pairs(&katran), 0);
            for flow in &flows {
                assert_eq!(answer(&katran, *flow), Some(ip(A)));
                assert_eq!(send(&katran, *flow), (Some(ip(A)), Reason::FlowTable));
            }
        };
        let updates = [faults::MAP_UPDATE_ELEM];
        refused(&updates, |katran, vip| katran.remove_real(vip, ip(A)));
        refused(&updates, |katran, vip| katran.mark_down(vip, ip(A)));
        refused(&updates, |katran, vip| {
            let gone = [RealChange::Remove(ip(A)), RealChange::Remove(ip(B))];
            katran.modify_reals(vip, &gone)
        });
    }
}

#[test]
fn a_real_that_cannot_come_up_stays_down() {
    let mut katran = load(all_in_table());
    let vip = all_on_a(&mut katran, VIP, VipFlags::GLOBAL_LRU, &[flow(1)]);
    katran.mark_down(vip, ip(A)).unwrap();
    let deletes = [faults::MAP_DELETE_ELEM];
    let refused = without_commands(&deletes, Errno::ENOMEM, || katran.mark_up(vip, ip(A)));
    assert!(refused.is_err());
    assert!(katran.is_down(vip, ip(A)).unwrap());
    for flow in flows(Protocol::Tcp, "203.0.113.1:443", 50) {
        assert_eq!(send(&katran, flow).0, Some(ip(B)));
    }
    let updates = [faults::MAP_UPDATE_ELEM];
    let refused = without_commands(&updates, Errno::ENOMEM, || katran.mark_down(vip, ip(B)));
    assert!(refused.is_err());
    assert_eq!(katran.down_reals(vip).unwrap(), [ip(A)]);
    katran.mark_up(vip, ip(A)).unwrap();
    assert_eq!(pairs(&katran), 0);
}

/// A state that the kernel refuses half way is undone: flows of removed reals stay where they were.
#[test]
fn an_undone_state_leaves_flows_where_they_were() {
    let mut katran = load(all_in_table());
    let flows = flows(Protocol::Tcp, "203.0.113.1:443", 50);
    let vip = all_on_a(&mut katran, VIP, VipFlags::empty(), &flows);
    let before = katran.state();
    let mut wanted = before.clone();
    let of_vip = wanted.vips.iter_mut().find(|state| state.vip == vip);
    of_vip.unwrap().reals.retain(|real| real.address() == ip(B));
    // Features are disabled last.
    let balancer = wanted.balancer.as_mut().unwrap();
    balancer.features = Some(Features::empty());
    let loads = [faults::PROG_LOAD];
    let applied = without_commands(&loads, Errno::ENOMEM, || katran.apply(&wanted));
    assert!(applied.is_err());
    assert_eq!(katran.state(), before);
    for flow in &flows {
        assert_eq!(send(&katran, *flow), (Some(ip(A)), Reason::FlowTable));
    }
    assert_eq!(pairs(&katran), 0);
    katran.apply(&wanted).unwrap();
    assert_eq!(send(&katran, flows[0]), (Some(ip(B)), Reason::Ring));
}

/// The map has room for twice as many pairs as there may be reals. Nothing fails for lack of room:
/// what needs more waits until entries are removed.
#[test]
fn removals_succeed_when_the_map_of_pairs_is_full() {
    const REALS: u8 = 20;
    let mut katran = load(all_in_table().max_reals(REALS.into()));
    let reals: Vec<_> = (1..=REALS).map(|i| IpAddr::from([198, 18, 0, i])).collect();
    let add: Vec<_> = reals
        .iter()
        .map(|real| RealChange::Add(Real::new(*real)))
        .collect();
    let flow = |port| {
        Flow::tcp(
            (ip("192.0.2.7"), 1).into(),
            (ip("203.0.113.1"), port).into(),
        )
    };
    let vips: Vec<_> = (1..=8)
        .map(|port| {
            serve(
                &mut katran,
                &format!("203.0.113.1:{port}/tcp"),
                VipFlags::empty(),
                &[],
            )
        })
        .collect();
    // All at once, so that the thread cannot act in between.
    let mut full = katran.state();
    for of_vip in &mut full.vips {
        of_vip.reals = reals.iter().map(|real| Real::new(*real)).collect();
    }
    katran.apply(&full).unwrap();
    for port in 1..=8 {
        assert_eq!(send(&katran, flow(port)).1, Reason::Ring);
    }
    let mut down = full.clone();
    let mut single = full.clone();
    for (of_vip, single) in down.vips.iter_mut().zip(&mut single.vips) {
        of_vip.down = reals[1..].to_vec();
        single.reals.truncate(1);
    }
    for wanted in [&down, &full, &single, &full, &single] {
        katran.apply(wanted).unwrap();
        assert_eq!(katran.state(), *wanted);
        for port in 1..=8 {
            let real = send(&katran, flow(port)).0;
            assert!(*wanted == full || real == Some(reals[0]), "{real:?}");
        }
    }
    // Where pairs stay there is a limit, and exceeding it changes nothing.
    katran.apply(&full).unwrap();
    for vip in &vips[..2] {
        katran.set_vip_flags(*vip, VipFlags::SRC_DST_PORT).unwrap();
    }
    let other = serve(&mut katran, "203.0.113.2:1/tcp", VipFlags::GLOBAL_LRU, &[]);
    let another = serve(&mut katran, "203.0.113.2:2/tcp", VipFlags::GLOBAL_LRU, &[]);
    for vip in [other, another] {
        katran.modify_reals(vip, &add).unwrap();
    }
    for real in &reals {
        katran.mark_down(other, *real).unwrap();
    }
    let before = katran.state();
    let refused = katran.mark_down(another, reals[0]);
    assert!(
        matches!(refused, Err(Error::Exhausted { limit: 20, .. })),
        "{refused:?}"
    );
    assert_eq!(katran.state(), before);
    katran.mark_down(vips[0], reals[0]).unwrap();
    katran.remove_real(other, reals[0]).unwrap();
    swept(&katran, 19);
    katran.mark_down(another, reals[0]).unwrap();
    katran.remove_real(another, reals[1]).unwrap();
}
