//! Deliberate improvements on Katran when VIPs and reals change: reused numbers, switched rings,
//! weights, queries. `docs/compatibility.md` lists all differences.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Error;
use katran::Flow;
use katran::HashFunction;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::VipFlags;
use katran::flows::Reason;
use katran::flows::Verdict;
use katran::stats::DropReason;

use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::builder;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::TO_VIP4;
use crate::common::fixtures::VIP4;
use crate::common::fixtures::VIP6;
use crate::common::fixtures::flow_v4;
use crate::common::fixtures::flow_v6;
use crate::common::flows;
use crate::common::frames::ETHERNET;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::frames::unreachable;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;

#[test]
fn a_vip_without_reals_drops_and_counts() {
    let mut katran = load(all_in_table());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = flow_v4();
    assert_eq!(katran.simulate(&syn(flow)).unwrap().real, Some(ip(A)));
    assert_eq!(
        katran.simulate(&frame(flow)).unwrap().reason,
        Reason::FlowTable
    );

    katran.remove_real(vip, ip(A)).unwrap();
    for bytes in [syn(flow), frame(flow), unreachable(flow, 20)] {
        let ran = katran.simulate(&bytes).unwrap();
        assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
        assert_eq!((ran.verdict, ran.real), (Verdict::Drop, None));
        assert_eq!(ran.vip, Some(vip));
    }
    assert_eq!(katran.stats().ring_drops().unwrap().empty, 3);
    assert_eq!(katran.stats().totals().unwrap().drop.packets, 3);
    assert_eq!(katran.real_for_flow(&flow).unwrap().unwrap().real, None);
}

#[test]
fn a_vip_without_reals_drops_although_another_vip_has_the_real() {
    let mut katran = load(builder());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, VIP6, VipFlags::empty(), &[A]);
    let flow = flow_v4();
    katran.simulate(&frame(flow)).unwrap();
    katran.remove_real(vip, ip(A)).unwrap();
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
    assert_eq!(katran.real_for_flow(&flow).unwrap().unwrap().real, None);
}

#[test]
fn an_entry_of_a_removed_real_never_names_its_successor() {
    let mut katran = load(all_in_table().max_reals(2));
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    let flows = flows(Protocol::Tcp, TO_VIP4, 200);
    let of_a: Vec<Flow> = flows
        .into_iter()
        .filter(|flow| katran.simulate(&frame(*flow)).unwrap().real == Some(ip(A)))
        .collect();
    assert!(of_a.len() > 50);
    let number = katran.real_index(ip(A)).unwrap();

    katran.remove_real(vip, ip(A)).unwrap();
    katran.add_real(vip, Real::new(ip(C))).unwrap();
    assert_eq!(
        katran.real_index(ip(C)),
        Some(number),
        "the number is reused"
    );
    let mut reals = BTreeSet::new();
    for flow in of_a {
        let answer = katran.real_for_flow(&flow).unwrap().unwrap();
        let ran = katran.simulate(&frame(flow)).unwrap();
        assert_eq!(ran.reason, Reason::Ring, "the old entry does not count");
        assert_eq!(answer.real, ran.real);
        reals.insert(ran.real.unwrap());
    }
    assert_eq!(
        reals,
        BTreeSet::from([ip(B), ip(C)]),
        "Katran sends them all to {C}"
    );
}

#[test]
fn a_packet_sees_the_old_ring_or_the_new_one() {
    const SWITCHES: usize = 30;
    let mut katran = load(builder().ring_size(65_537));
    let vip = serve(&mut katran, VIP4, VipFlags::LRU_BYPASS, &[A, B]);
    let sets = [[A, B], [C, "198.51.100.4"]].map(|set| set.map(ip));
    let changes = |from: usize| {
        let [old, new] = [sets[from], sets[1 - from]];
        let mut changes: Vec<_> = old.into_iter().map(RealChange::Remove).collect();
        changes.extend(new.map(|address| RealChange::Add(Real::new(address))));
        changes
    };
    let frames: Vec<Vec<u8>> = flows(Protocol::Tcp, TO_VIP4, 500)
        .into_iter()
        .map(frame)
        .collect();
    let program = katran.program_fd().try_clone_to_owned().unwrap();
    let done = AtomicBool::new(false);
    let packets = AtomicUsize::new(0);
    let switches = Mutex::new(0);
    let started = Instant::now();
    thread::scope(|scope| {
        let runner = scope.spawn(|| {
            // One CPU's packets in order: which set each saw. Every change of the set is a switch;
            // rewriting a ring slot by slot would show both sets alternately.
            let mut seen = None;
            for bytes in frames.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                assert!(started.elapsed() < Duration::from_secs(120), "abandoned");
                let ran = bpf::run(program.as_fd(), bytes);
                assert_eq!(ran.verdict, Verdict::Tx);
                let at = ETHERNET + 16;
                let real: [u8; 4] = ran.frame[at..at + 4].try_into().unwrap();
                let set = sets.iter().position(|set| set.contains(&real.into()));
                assert!(set.is_some(), "{real:?}");
                if seen.is_some() && seen != set {
                    *switches.lock().unwrap() += 1;
                }
                seen = set;
                packets.fetch_add(1, Ordering::Relaxed);
            }
        });
        let wait = |more: usize| {
            let from = packets.load(Ordering::Relaxed);
            while packets.load(Ordering::Relaxed) < from + more {
                assert!(!runner.is_finished());
                thread::sleep(Duration::from_millis(1));
            }
        };
        wait(100);
        for switch in 0..SWITCHES {
            katran.modify_reals(vip, &changes(switch % 2)).unwrap();
            wait(100);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(*switches.lock().unwrap(), SWITCHES);
}

/// How many of these flows each real gets.
fn spread(katran: &Katran, flows: &[Flow]) -> BTreeMap<IpAddr, usize> {
    let mut counts = BTreeMap::new();
    for flow in flows {
        let ran = katran.simulate(&frame(*flow)).unwrap();
        *counts.entry(ran.real.unwrap()).or_default() += 1;
    }
    counts
}

#[test]
fn weights_count_by_default() {
    let mut katran = load(builder().ring_size(65_537));
    let vip = vip(VIP4);
    katran.add_vip(vip, VipFlags::LRU_BYPASS).unwrap();
    assert_eq!(katran.hash_function(vip).unwrap(), HashFunction::MaglevV2);
    for (address, weight) in [(A, 1), (B, 3)] {
        let real = Real::new(ip(address)).weight(weight);
        katran.add_real(vip, real).unwrap();
    }
    let flows = flows(Protocol::Tcp, TO_VIP4, 4000);
    let share = |katran: &Katran| spread(katran, &flows)[&ip(B)] as f64 / flows.len() as f64;
    let v2 = share(&katran);
    assert!((v2 - 0.75).abs() < 0.03, "{v2} of the flows");
    katran.set_hash_function(vip, HashFunction::Maglev).unwrap();
    let v1 = share(&katran);
    assert!((v1 - 0.5).abs() < 0.03, "{v1} of the flows, as with Katran");
}

#[test]
fn querying_a_flow_leaves_no_trace() {
    let mut katran = load(all_in_table());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    serve(
        &mut katran,
        "203.0.113.1:53/udp",
        VipFlags::empty(),
        &[A, B],
    );
    katran.stats_mut().watch_misses(vip).unwrap();
    let tcp = flows(Protocol::Tcp, TO_VIP4, 50);
    let udp = flows(Protocol::Udp, "203.0.113.1:53", 50);
    let trace = |katran: &Katran| {
        let table = bpf::flow_entries(katran.flows().table_fd(0).unwrap());
        let fallback = bpf::flow_entries(katran.map_fd("fallback_flows").unwrap());
        let mut counters = katran.counters().unwrap();
        counters.flow_entries_age = Duration::ZERO;
        (counters, table, fallback)
    };
    // Half of the flows are remembered.
    for flow in tcp.iter().chain(&udp).step_by(2) {
        katran.simulate(&frame(*flow)).unwrap();
    }
    let before = trace(&katran);
    assert_eq!(before.1.len(), 50);
    for flow in tcp.iter().chain(&udp) {
        assert!(katran.real_for_flow(flow).unwrap().unwrap().real.is_some());
    }
    assert_eq!(trace(&katran), before);
    // Proves that the comparison sees a packet.
    katran.simulate(&frame(tcp[1])).unwrap();
    let after = trace(&katran);
    assert_ne!(after.0, before.0);
    assert_eq!(after.1.len(), 51);
}

#[test]
fn a_new_vip_starts_empty_and_at_zero() {
    let mut katran = load(builder().max_vips(1));
    let old = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    katran.simulate(&frame(flow_v4())).unwrap();
    assert_eq!(katran.stats().vip(old).unwrap().forwarded.packets, 1);
    katran.remove_vip(old).unwrap();
    assert_eq!(
        katran.simulate(&frame(flow_v4())).unwrap().reason,
        Reason::NotAVip
    );

    // With a single number, this VIP reuses the old one's.
    for text in [VIP6, VIP4] {
        let new = vip(text);
        katran.add_vip(new, VipFlags::empty()).unwrap();
        let flow = if text == VIP6 { flow_v6() } else { flow_v4() };
        let ran = katran.simulate(&frame(flow)).unwrap();
        assert_eq!(ran.vip, Some(new));
        assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
        assert_eq!(katran.stats().vip(new).unwrap(), Default::default());
        katran.add_real(new, Real::new(ip(A))).unwrap();
        assert_eq!(katran.stats().real(ip(A)).unwrap(), Default::default());
        let ran = katran.simulate(&frame(flow)).unwrap();
        assert_eq!(ran.reason, Reason::SettledSlot);
        katran.remove_vip(new).unwrap();
    }
}

#[test]
fn weight_zero_has_no_slot_whatever_the_function() {
    let mut katran = load(builder());
    let vip = serve(&mut katran, VIP4, VipFlags::LRU_BYPASS, &[A, B]);
    katran.add_real(vip, Real::new(ip(A)).weight(0)).unwrap();
    let flows = flows(Protocol::Tcp, TO_VIP4, 300);
    for function in [
        HashFunction::Maglev,
        HashFunction::MaglevV2,
        HashFunction::Maglev,
    ] {
        katran.set_hash_function(vip, function).unwrap();
        assert_eq!(spread(&katran, &flows), BTreeMap::from([(ip(B), 300)]));
    }
    // Nor does a VIP with only drained reals have a ring.
    katran.add_real(vip, Real::new(ip(B)).weight(0)).unwrap();
    katran
        .set_hash_function(vip, HashFunction::MaglevV2)
        .unwrap();
    let ran = katran.simulate(&frame(flows[0])).unwrap();
    assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));
}

#[test]
fn quic_on_a_tcp_vip_is_an_error() {
    let mut katran = load(builder());
    let refused = katran.add_vip(vip(VIP4), VipFlags::QUIC).unwrap_err();
    assert!(
        matches!(
            &refused,
            Error::InvalidConfig {
                setting: "flags",
                ..
            }
        ),
        "{refused}"
    );
    assert!(refused.to_string().contains("QUIC runs over UDP"));
    assert!(katran.vips().is_empty());
}
