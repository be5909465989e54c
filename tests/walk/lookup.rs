//! The packet walk's middle: which VIP and real a packet gets, what is remembered and for how long,
//! the VIP flags, the flood guard. Random flows are in `property.rs`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Flow;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::VipFlags;
use katran::flows::Choice;
use katran::flows::Reason;
use katran::stats::DropReason;
use katran::stats::FlowTableCounters;
use katran_lab::stay_on;

use crate::common::all_in_table;
use crate::common::at;
use crate::common::bpf;
use crate::common::drain;
use crate::common::flows;
use crate::common::frames;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::wire::ipip;

const VIP4: &str = "203.0.113.1:443/tcp";
const TO_VIP4: &str = "203.0.113.1:443";
const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
const REALS: [&str; 4] = [A, B, "198.51.100.3", "2001:db8:2::1"];

fn entries(katran: &Katran) -> usize {
    bpf::flow_entries(katran.flows().table_fd(0).unwrap()).len()
}

fn counted(katran: &Katran) -> FlowTableCounters {
    katran.stats().flow_table().unwrap()
}

/// The reals that a set of new flows gets from the ring.
fn reals_of(katran: &Katran, flows: impl IntoIterator<Item = Flow>) -> BTreeSet<IpAddr> {
    flows
        .into_iter()
        .map(|flow| katran.simulate(&syn(flow)).unwrap().real.unwrap())
        .collect()
}

#[test]
fn a_flow_stays_where_it_is_while_reals_are_drained() {
    let mut katran = load(all_in_table());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4));
    assert_eq!(katran.simulate(&syn(flow)).unwrap().reason, Reason::Ring);
    drain(&mut katran, vip, A, B);

    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!((ran.real, ran.reason), (Some(ip(A)), Reason::FlowTable));
    // A new connection's SYN follows the ring and is remembered (an immediate one follows its flow:
    // `attacks.rs`).
    assert_eq!(katran.flows_mut().remove(&flow).unwrap(), 1);
    let ran = katran.simulate(&syn(flow)).unwrap();
    assert_eq!((ran.real, ran.reason), (Some(ip(B)), Reason::Ring));
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!((ran.real, ran.reason), (Some(ip(B)), Reason::FlowTable));
    // A VIP with only drained reals keeps their flows and takes no new ones.
    katran.add_real(vip, Real::new(ip(B)).weight(0)).unwrap();
    assert_eq!(katran.simulate(&frame(flow)).unwrap().real, Some(ip(B)));
    let another = Flow::tcp(at("192.0.2.7:40002"), at(TO_VIP4));
    let ran = katran.simulate(&syn(another)).unwrap();
    assert_eq!(ran.reason, Reason::Dropped(DropReason::RingEmpty));

    let counters = counted(&katran);
    assert_eq!(counters.packets, 6);
    assert_eq!(
        counters.misses, 2,
        "only packets that the ring had a real for"
    );
    assert_eq!((counters.miss_syn, counters.miss_non_syn), (3, 0));
}

#[test]
fn misses_are_counted_by_kind() {
    let mut katran = load(all_in_table());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    serve(&mut katran, "203.0.113.1:443/udp", VipFlags::empty(), &[A]);
    let [one, two] = [0, 1].map(|i| flows(Protocol::Tcp, TO_VIP4, 2)[i]);
    let udp = flows(Protocol::Udp, TO_VIP4, 1)[0];
    katran.simulate(&syn(one)).unwrap();
    katran.simulate(&frame(one)).unwrap();
    katran.simulate(&frame(two)).unwrap();
    katran.simulate(&frame(udp)).unwrap();
    katran.simulate(&frame(udp)).unwrap();
    let counters = counted(&katran);
    assert_eq!((counters.packets, counters.misses), (5, 3));
    assert_eq!((counters.miss_syn, counters.miss_non_syn), (1, 1));
    assert_eq!((counters.fallback, entries(&katran)), (0, 3));
}

#[test]
fn a_reset_is_forwarded_and_not_remembered() {
    let mut katran = load(all_in_table());
    serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4));
    let reset = Packet::new(flow).flags(frames::RST).frame();
    for _ in 0..2 {
        assert_eq!(katran.simulate(&reset).unwrap().reason, Reason::Ring);
    }
    assert_eq!(entries(&katran), 0);
    katran.simulate(&frame(flow)).unwrap();
    assert_eq!(katran.simulate(&reset).unwrap().reason, Reason::FlowTable);
}

#[test]
fn no_src_port_sends_a_client_to_one_real() {
    let mut katran = load(all_in_table());
    let vip = serve(&mut katran, VIP4, VipFlags::NO_SRC_PORT, &REALS);
    let client = |i: u16| Flow::tcp((ip("192.0.2.7"), 1000 + i).into(), at(TO_VIP4));
    assert_eq!(reals_of(&katran, (0..100).map(client)).len(), 1);
    assert_eq!(entries(&katran), 100, "the table tells connections apart");
    let bytes = frame(client(5));
    let ran = katran.simulate(&bytes).unwrap();
    assert_eq!(ran.reason, Reason::FlowTable);
    let real = ran.real.unwrap();
    assert_eq!(ran.frame, ipip(&bytes, Some(ip("192.0.2.7")), 0, real));
    katran.set_vip_flags(vip, VipFlags::empty()).unwrap();
    assert_eq!(reals_of(&katran, (100..200).map(client)).len(), REALS.len());
}

#[test]
fn lru_bypass_neither_looks_nor_writes() {
    let mut katran = load(all_in_table());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4));
    katran.simulate(&frame(flow)).unwrap();
    drain(&mut katran, vip, A, B);
    katran.set_vip_flags(vip, VipFlags::LRU_BYPASS).unwrap();
    let before = bpf::flow_entries(katran.flows().table_fd(0).unwrap());
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!((ran.real, ran.reason), (Some(ip(B)), Reason::Ring));
    let answer = katran.real_for_flow(&flow).unwrap().unwrap();
    assert_eq!((answer.real, answer.choice), (Some(ip(B)), Choice::Ring));
    for other in flows(Protocol::Tcp, TO_VIP4, 10) {
        katran.simulate(&syn(other)).unwrap();
    }
    assert_eq!(
        bpf::flow_entries(katran.flows().table_fd(0).unwrap()),
        before
    );
}

#[test]
fn dport_hash_makes_only_the_destination_port_count() {
    let mut katran = load(all_in_table());
    let vip = serve(
        &mut katran,
        "203.0.113.1:0/udp",
        VipFlags::DPORT_HASH,
        &REALS,
    );
    let mut all = BTreeSet::new();
    for port in 1..60 {
        let to = (ip("203.0.113.1"), port).into();
        let clients = (0..5).map(|i| {
            Flow::udp(
                (IpAddr::from([192, 0, 2, i]), 999 + u16::from(i)).into(),
                to,
            )
        });
        let reals: BTreeSet<IpAddr> = clients
            .map(|flow| {
                let bytes = frame(flow);
                let ran = katran.simulate(&bytes).unwrap();
                assert_eq!((ran.vip, ran.reason), (Some(vip), Reason::Ring));
                let real = ran.real.unwrap();
                // The outer header has no client address; the port is the client's again.
                assert_eq!(ran.frame, ipip(&bytes, None, flow.source.port(), real));
                real
            })
            .collect();
        assert_eq!(reals.len(), 1, "port {port}");
        all.extend(reals);
    }
    assert_eq!(all.len(), REALS.len());
    assert_eq!(
        entries(&katran),
        0,
        "what the port decides is not remembered"
    );
}

#[test]
fn dport_hash_still_finds_what_is_remembered() {
    let mut katran = load(all_in_table());
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let flow = Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4));
    katran.simulate(&frame(flow)).unwrap();
    drain(&mut katran, vip, A, B);
    katran.set_vip_flags(vip, VipFlags::DPORT_HASH).unwrap();
    let bytes = frame(flow);
    let ran = katran.simulate(&bytes).unwrap();
    assert_eq!((ran.real, ran.reason), (Some(ip(A)), Reason::FlowTable));
    // The ring did not choose, so the address counts.
    assert_eq!(
        ran.frame,
        ipip(&bytes, Some(flow.source.ip()), 40001, ip(A))
    );
}

#[test]
fn an_any_port_vip_is_one_service_unless_told_otherwise() {
    let mut katran = load(all_in_table());
    let any = serve(&mut katran, "203.0.113.1:0/tcp", VipFlags::empty(), &REALS);
    let of = |client: &str, port: u16| Flow::tcp(at(client), (ip("203.0.113.1"), port).into());
    let to = |port: u16| of("192.0.2.7:40001", port);
    assert_eq!(reals_of(&katran, (1..100).map(to)).len(), 1);
    assert_eq!(entries(&katran), 99, "the table tells connections apart");
    katran.set_vip_flags(any, VipFlags::SRC_DST_PORT).unwrap();
    // Known flows stay; those of another client port spread.
    assert_eq!(reals_of(&katran, (1..100).map(to)).len(), 1);
    let new = (1..100).map(|port| of("192.0.2.7:40002", port));
    assert_eq!(reals_of(&katran, new).len(), REALS.len());
    assert_eq!(entries(&katran), 198);
    // An exact VIP beside it keeps its port, and all its flows.
    let exact = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let ran = katran.simulate(&frame(to(443))).unwrap();
    assert_eq!(ran.vip, Some(exact));
    katran.remove_vip(exact).unwrap();
    assert_eq!(katran.simulate(&frame(to(443))).unwrap().vip, Some(any));
    katran.remove_vip(any).unwrap();
    assert_eq!(
        katran.simulate(&frame(to(443))).unwrap().reason,
        Reason::NotAVip
    );
}

#[test]
fn udp_entries_expire_and_are_refreshed_by_use() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    const MARGIN: Duration = Duration::from_millis(50);
    let mut katran = load(all_in_table().udp_timeout(TIMEOUT));
    let vip = serve(&mut katran, "203.0.113.1:53/udp", VipFlags::empty(), &[A]);
    let tcp_vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let tcp = Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4));
    katran.simulate(&frame(tcp)).unwrap();
    drain(&mut katran, tcp_vip, A, B);

    // A busy machine can oversleep; then another flow tries.
    let (flow, last) = (0..20)
        .find_map(|i| {
            katran
                .modify_reals(vip, &[RealChange::Add(Real::new(ip(A)))])
                .unwrap();
            if katran.reals(vip).unwrap().len() > 1 {
                katran.remove_real(vip, ip(B)).unwrap();
            }
            let flow = Flow::udp((ip("192.0.2.7"), 40_000 + i).into(), at("203.0.113.1:53"));
            let mut last = Instant::now();
            katran.simulate(&frame(flow)).unwrap();
            drain(&mut katran, vip, A, B);
            for _ in 0..3 {
                thread::sleep(TIMEOUT * 2 / 5);
                let answer = katran.real_for_flow(&flow).unwrap().unwrap();
                let now = Instant::now();
                let ran = katran.simulate(&frame(flow)).unwrap();
                if last.elapsed() + MARGIN >= TIMEOUT {
                    return None;
                }
                last = now;
                assert_eq!(answer.choice, Choice::FlowTable { cpu: 0 });
                assert_eq!((ran.real, ran.reason), (Some(ip(A)), Reason::FlowTable));
            }
            Some((flow, last))
        })
        .unwrap();
    thread::sleep((TIMEOUT + MARGIN).saturating_sub(last.elapsed()) + MARGIN);
    let answer = katran.real_for_flow(&flow).unwrap().unwrap();
    assert_eq!((answer.real, answer.choice), (Some(ip(B)), Choice::Ring));
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!((ran.real, ran.reason), (Some(ip(B)), Reason::Ring));
    // TCP has no such timeout.
    assert_eq!(katran.simulate(&frame(tcp)).unwrap().real, Some(ip(A)));
}

#[test]
fn under_flood_new_flows_are_forwarded_but_not_remembered() {
    const THRESHOLD: u32 = 5;
    let mut katran = load(all_in_table().flood_threshold(THRESHOLD));
    serve(&mut katran, VIP4, VipFlags::empty(), &REALS);
    let under_flood = |katran: &Katran| {
        let cpus = katran.stats().cpus().unwrap();
        let flooded: Vec<u32> = cpus
            .iter()
            .filter(|cpu| cpu.under_flood)
            .map(|cpu| cpu.cpu)
            .collect();
        (flooded, cpus[0].new_flows)
    };
    assert_eq!(under_flood(&katran), (vec![], 0));
    // All flows must fall into one window of a second.
    let mut clients = flows(Protocol::Tcp, TO_VIP4, 400).into_iter();
    let flooded = (0..20)
        .find_map(|_| {
            thread::sleep(Duration::from_millis(1100));
            let before = entries(&katran);
            let flows: Vec<Flow> = clients.by_ref().take(12).collect();
            let start = Instant::now();
            for flow in &flows {
                let ran = katran.simulate(&syn(*flow)).unwrap();
                assert_eq!(
                    (ran.verdict, ran.reason),
                    (katran::flows::Verdict::Tx, Reason::Ring)
                );
            }
            let state = under_flood(&katran);
            if start.elapsed() > Duration::from_millis(900) {
                return None;
            }
            assert_eq!(entries(&katran) - before, THRESHOLD as usize);
            assert_eq!(state, (vec![0], 12));
            Some(flows)
        })
        .unwrap();
    let remembered = |flow: &Flow| {
        let answer = katran.real_for_flow(flow).unwrap().unwrap();
        answer.choice == Choice::FlowTable { cpu: 0 }
    };
    let known: Vec<bool> = flooded.iter().map(remembered).collect();
    assert_eq!(known, (0..12).map(|i| i < THRESHOLD).collect::<Vec<_>>());
    // A known flow is not new.
    assert_eq!(
        katran.simulate(&frame(flooded[0])).unwrap().reason,
        Reason::FlowTable
    );

    thread::sleep(Duration::from_millis(1100));
    assert_eq!(under_flood(&katran), (vec![], 12), "the window is over");
    katran.simulate(&frame(flooded[11])).unwrap();
    assert_eq!(under_flood(&katran), (vec![], 1), "a new window");
    assert!(remembered(&flooded[11]));
}

#[test]
fn a_cpu_without_a_table_uses_the_shared_one() {
    let mut katran = load(all_in_table().forwarding_cpus([0]));
    serve(&mut katran, VIP4, VipFlags::empty(), &REALS);
    let flow = Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4));
    assert!(katran.flows().table_fd(1).is_none());
    stay_on(1);
    let first = bpf::run(katran.program_fd(), &syn(flow));
    assert_eq!(
        bpf::run(katran.program_fd(), &frame(flow)).verdict,
        first.verdict
    );
    assert_eq!(entries(&katran), 0);
    let fallback = bpf::flow_entries(katran.map_fd("fallback_flows").unwrap());
    assert_eq!(fallback.len(), 1);
    let counters = counted(&katran);
    assert_eq!(
        (counters.packets, counters.misses, counters.fallback),
        (2, 1, 2)
    );
    let answer = katran.real_for_flow(&flow).unwrap().unwrap();
    assert_eq!(answer.choice, Choice::FallbackTable);
    // The first CPU has its own table, which does not know it.
    assert_eq!(katran.simulate(&frame(flow)).unwrap().reason, Reason::Ring);
    assert_eq!(counted(&katran).fallback, 2);
}

/// Two CPUs can enter a flow into their shared table at once, in different places.
#[test]
fn a_flow_that_is_entered_twice_goes_to_no_other_flows_real() {
    const ENTRY: usize = 16;
    let mut katran = load(
        all_in_table()
            .forwarding_cpus([0])
            .flow_table(katran::FlowTableKind::SetAssociative),
    );
    let vip = serve(&mut katran, VIP4, VipFlags::empty(), &[A]);
    let (flow, other) = (
        Flow::tcp(at("192.0.2.7:40001"), at(TO_VIP4)),
        Flow::tcp(at("192.0.2.7:40002"), at(TO_VIP4)),
    );
    stay_on(1);
    // This flow's entry names A, the other one's names C, and new flows go to B.
    bpf::run(katran.program_fd(), &syn(flow));
    let entry_of_this = bpf::flow_entries(katran.map_fd("fallback_flows").unwrap()).remove(0);
    let third = RealChange::Add(Real::new(ip(REALS[2])));
    katran
        .modify_reals(vip, &[RealChange::Add(Real::new(ip(A)).weight(0)), third])
        .unwrap();
    bpf::run(katran.program_fd(), &syn(other));
    let entry_of_other = bpf::flow_entries(katran.map_fd("fallback_flows").unwrap())
        .into_iter()
        .find(|entry| *entry != entry_of_this)
        .unwrap();
    let drained = RealChange::Add(Real::new(ip(REALS[2])).weight(0));
    katran
        .modify_reals(vip, &[drained, RealChange::Add(Real::new(ip(B)))])
        .unwrap();

    let table = katran.map_fd("fallback_flows").unwrap();
    let sets = bpf::dump(table);
    let (number, set) = sets
        .iter()
        .find(|(_, set)| set.chunks_exact(ENTRY).any(|entry| entry == entry_of_this))
        .unwrap();
    let place = |set: &mut Vec<u8>, way: usize, entry: &[u8]| {
        set[way * ENTRY..(way + 1) * ENTRY].copy_from_slice(entry);
    };
    let mut set = vec![0; set.len()];
    place(&mut set, 1, &entry_of_this);
    place(&mut set, 2, &entry_of_this);
    place(&mut set, 3, &entry_of_other);
    bpf::update(table, number, &set);
    let ran = bpf::run(katran.program_fd(), &frame(flow));
    let to = &ran.frame[14 + 16..14 + 20];
    assert!(to == [198, 51, 100, 1] || to == [198, 51, 100, 2], "{to:?}");
    // The other flow's entry is unchanged.
    assert!(bpf::flow_entries(table).contains(&entry_of_other));
}

#[test]
fn watched_misses_count_from_zero_for_one_vip() {
    let mut katran = load(all_in_table());
    let watched = serve(&mut katran, VIP4, VipFlags::empty(), &REALS);
    let other = serve(
        &mut katran,
        "203.0.113.2:443/tcp",
        VipFlags::empty(),
        &REALS,
    );
    let misses = |katran: &Katran| -> Vec<u64> {
        let stats = katran.stats().reals(&REALS.map(ip)).unwrap();
        stats.iter().map(|real| real.misses).collect()
    };
    // New clients each time: a SYN of a recent flow is no miss.
    let mut clients = 0u16;
    let mut send = |katran: &Katran, to: &str, count: u16| {
        let mut expected = vec![0; REALS.len()];
        let new = flows(Protocol::Tcp, to, clients + count).split_off(clients.into());
        clients += count;
        for flow in new {
            let real = katran.simulate(&syn(flow)).unwrap().real.unwrap();
            expected[REALS.map(ip).iter().position(|each| *each == real).unwrap()] += 1;
            katran.simulate(&frame(flow)).unwrap();
        }
        expected
    };
    send(&katran, TO_VIP4, 20);
    assert_eq!(misses(&katran), [0; 4]);
    katran.stats_mut().watch_misses(watched).unwrap();
    assert_eq!(katran.stats().watched_vip(), Some(watched));
    let expected = send(&katran, TO_VIP4, 50);
    send(&katran, "203.0.113.2:443", 30);
    assert_eq!(misses(&katran), expected);
    katran.stats_mut().watch_misses(watched).unwrap();
    assert_eq!(misses(&katran), [0; 4], "again from zero");
    katran.stats_mut().watch_misses(other).unwrap();
    send(&katran, TO_VIP4, 10);
    let expected = send(&katran, "203.0.113.2:443", 30);
    assert_eq!(misses(&katran), expected);
    katran.remove_vip(other).unwrap();
    assert_eq!(
        (katran.stats().watched_vip(), misses(&katran)),
        (None, vec![0; 4])
    );
    assert!(katran.stats_mut().watch_misses(other).is_err());
    katran.stats_mut().watch_misses(watched).unwrap();
    katran.stats_mut().unwatch_misses();
    assert_eq!(katran.stats().watched_vip(), None);
}
