//! Flow entries as the library shows and removes them, in both flow table types.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Error;
use katran::Flow;
use katran::FlowTableKind;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Reason;
use katran::stats::Counters;
use katran_lab::stay_on;

use crate::common;
use crate::common::all_in_table;
use crate::common::at;
use crate::common::flow_table;
use crate::common::flows;
use crate::common::frames::Packet;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;

const A: &str = "198.51.100.1";
const B: &str = "2001:db8:2::1";
const SERVICES: [(&str, &str, Protocol); 4] = [
    ("203.0.113.1:443/tcp", "203.0.113.1:443", Protocol::Tcp),
    ("203.0.113.1:443/udp", "203.0.113.1:443", Protocol::Udp),
    (
        "[2001:db8:1::1]:80/tcp",
        "[2001:db8:1::1]:80",
        Protocol::Tcp,
    ),
    ("203.0.114.0/24:0/udp", "203.0.114.7:53", Protocol::Udp),
];
const EACH: u16 = 60;

/// Services, each with this many flows that have sent a packet.
fn balancer() -> (Katran, Vec<(Vip, Vec<Flow>)>) {
    let mut katran = load(all_in_table());
    let services = SERVICES.map(|(name, to, protocol)| {
        let vip = serve(&mut katran, name, VipFlags::empty(), &[A, B]);
        let flows = flows(protocol, to, EACH);
        for flow in &flows {
            katran.simulate(&syn(*flow)).unwrap();
        }
        (vip, flows)
    });
    (katran, services.into())
}

fn entries(katran: &Katran, vip: Vip) -> u64 {
    katran.flows().stats(vip).unwrap().entries
}

fn reason(katran: &Katran, flow: Flow) -> Reason {
    katran.simulate(&frame(flow)).unwrap().reason
}

#[test]
fn a_flow_is_found_with_its_real_and_age() {
    let began = Instant::now();
    let (katran, services) = balancer();
    for (vip, flows) in &services {
        for flow in flows {
            let found = katran.flows().find(flow).unwrap();
            assert_eq!(found.len(), 1, "{vip}, {flow}");
            let entry = found[0];
            let answer = katran.real_for_flow(flow).unwrap().unwrap();
            assert_eq!((entry.real, entry.cpu), (answer.real, Some(0)));
            assert_eq!(entry.flow.source, flow.source);
            assert_eq!(entry.flow.destination.ip(), flow.destination.ip());
            // Entries of an any-port VIP have port 0.
            let port = if vip.port() == 0 {
                0
            } else {
                flow.destination.port()
            };
            assert_eq!(entry.flow.destination.port(), port);
        }
    }
    let flow = services[1].1[0];
    thread::sleep(Duration::from_millis(150));
    let age = katran.flows().find(&flow).unwrap()[0].age;
    // Four ticks are an age's resolution.
    let resolution = Duration::from_millis(50);
    let possible = Duration::from_millis(100)..began.elapsed() + resolution;
    assert!(possible.contains(&age), "{age:?}");
    let used = Instant::now();
    katran.simulate(&frame(flow)).unwrap();
    let younger = katran.flows().find(&flow).unwrap()[0].age;
    assert!(younger < used.elapsed() + resolution, "{younger:?}");

    let stranger = Flow::tcp(at("192.0.2.99:1"), at("203.0.113.1:443"));
    assert!(katran.flows().find(&stranger).unwrap().is_empty());
    let nowhere = Flow::tcp(at("192.0.2.99:1"), at("192.0.2.1:443"));
    assert!(katran.flows().find(&nowhere).unwrap().is_empty());
    let mixed = Flow::tcp(at("192.0.2.99:1"), at("[2001:db8:1::1]:80"));
    assert!(katran.flows().find(&mixed).is_err());
}

#[test]
fn removed_flows_follow_the_ring_again() {
    let (mut katran, services) = balancer();
    let (vip, flows) = &services[0];
    assert_eq!(reason(&katran, flows[0]), Reason::FlowTable);
    assert_eq!(katran.flows_mut().remove(&flows[0]).unwrap(), 1);
    assert_eq!(katran.flows_mut().remove(&flows[0]).unwrap(), 0);
    assert!(katran.flows().find(&flows[0]).unwrap().is_empty());
    assert_eq!(entries(&katran, *vip), u64::from(EACH) - 1);
    assert_eq!(reason(&katran, flows[0]), Reason::Ring);
    assert_eq!(reason(&katran, flows[0]), Reason::FlowTable);
    assert_eq!(reason(&katran, flows[1]), Reason::FlowTable, "others stay");
}

#[test]
fn a_purge_takes_one_vips_flows_and_no_others() {
    let (mut katran, services) = balancer();
    for (nth, (vip, flows)) in services.iter().enumerate() {
        assert_eq!(
            katran.flows_mut().purge(*vip).unwrap(),
            u64::from(EACH),
            "{vip}"
        );
        assert_eq!(katran.flows_mut().purge(*vip).unwrap(), 0);
        for (other, (vip, _)) in services.iter().enumerate() {
            let left = if other > nth { EACH.into() } else { 0 };
            assert_eq!(entries(&katran, *vip), left, "{vip}");
        }
        assert!(
            flows
                .iter()
                .all(|flow| katran.flows().find(flow).unwrap().is_empty())
        );
    }
    assert!(katran.flows_mut().purge(vip("203.0.113.77:1/tcp")).is_err());
}

#[test]
fn a_purge_of_a_real_takes_its_flows_of_that_vip() {
    let (mut katran, services) = balancer();
    let (vip, flows) = &services[1];
    let at_a = |katran: &Katran, flows: &[Flow]| -> u64 {
        let on_a = flows.iter().filter(|flow| {
            let found = katran.flows().find(flow).unwrap();
            found.first().is_some_and(|entry| entry.real == Some(ip(A)))
        });
        on_a.count() as u64
    };
    let before = at_a(&katran, flows);
    let of_other = at_a(&katran, &services[0].1);
    assert!(before > 0 && before < u64::from(EACH));
    assert_eq!(katran.flows_mut().purge_real(*vip, ip(A)).unwrap(), before);
    assert_eq!(at_a(&katran, flows), 0);
    assert_eq!(entries(&katran, *vip), u64::from(EACH) - before);
    assert_eq!(at_a(&katran, &services[0].1), of_other);
    assert!(
        katran
            .flows_mut()
            .purge_real(*vip, ip("198.51.100.99"))
            .is_err()
    );
}

#[test]
fn stale_entries_are_distinguished() {
    let (mut katran, services) = balancer();
    let live = |(_, flows): &(Vip, Vec<Flow>)| {
        let at_b = |flow: &&Flow| katran.flows().find(flow).unwrap()[0].real == Some(ip(B));
        flows.iter().filter(at_b).count() as u64
    };
    let live: Vec<u64> = services.iter().map(live).collect();
    for (vip, _) in &services {
        katran.remove_real(*vip, ip(A)).unwrap();
    }
    for ((vip, flows), live) in services.iter().zip(live) {
        let stats = katran.flows().stats(*vip).unwrap();
        assert!(live > 0 && live < u64::from(EACH), "{live}");
        assert_eq!(stats.entries - stats.stale, live, "{stats:?}");
        let ages = [
            stats.younger_than_1s,
            stats.younger_than_10s,
            stats.younger_than_1min,
            stats.older,
        ];
        assert_eq!(ages.iter().sum::<u64>(), stats.entries);
        assert_eq!(stats.older, 0, "{stats:?}");
        let found = flows
            .iter()
            .flat_map(|flow| katran.flows().find(flow).unwrap());
        let (left, gone): (Vec<_>, Vec<_>) = found.partition(|entry| entry.real.is_some());
        assert_eq!(left.len() as u64, live);
        // While another VIP has the real, a thread of the library removes its entries; without one
        // they are stale because the real is gone, and stay.
        assert!(gone.len() as u64 <= stats.stale, "{stats:?}");
        if *vip == services[services.len() - 1].0 {
            assert_eq!(stats.entries, u64::from(EACH));
        }
    }
}

#[test]
fn one_walk_counts_the_entries_of_all_vips() {
    let (mut katran, services) = balancer();
    // For a VIP without flows, and fewer than another VIP has.
    let idle = serve(&mut katran, "203.0.113.9:1/tcp", VipFlags::empty(), &[A]);
    for flow in &services[2].1[..20] {
        katran.flows_mut().remove(flow).unwrap();
    }
    let mut count = katran.flows().count().unwrap();
    let vips: Vec<Vip> = count.vips().map(|(vip, _)| vip).collect();
    assert_eq!(vips, katran.vips());
    for (vip, counted) in count.vips() {
        assert_eq!(counted, entries(&katran, vip), "{vip}");
    }
    let [first, third] = [0, 2].map(|nth| services[nth].0);
    let each = u64::from(EACH);
    assert_eq!(count.entries(first), Some(each));
    assert_eq!(count.entries(third), Some(each - 20));
    assert_eq!(count.entries(idle), Some(0));
    assert_eq!(count.entries(vip("203.0.113.77:1/tcp")), None);

    // A snapshot shows what was counted.
    let shown = |counters: &Counters, name: &str, label: &str| {
        let metrics = counters.metrics();
        let metric = metrics.iter().find(|metric| metric.name == name).unwrap();
        let sample = metric.samples.iter().find(|of| of.labels == [label]);
        sample.map(|sample| sample.value)
    };
    let flows = 4 * each - 20;
    let of_first = first.to_string();
    let counters = katran.counters().unwrap();
    assert_eq!(shown(&counters, "vip_flow_entries", &of_first), Some(each));
    assert_eq!(shown(&counters, "map_entries", "flows"), Some(flows));
    assert_eq!(katran.flows_mut().purge(first).unwrap(), each);
    let counters = katran.counters_with(&count).unwrap();
    assert_eq!(shown(&counters, "vip_flow_entries", &of_first), Some(each));
    assert_eq!(shown(&counters, "map_entries", "flows"), Some(flows));
    let counters = katran.counters().unwrap();
    assert_eq!(shown(&counters, "vip_flow_entries", &of_first), Some(0));
    assert_eq!(shown(&counters, "map_entries", "flows"), Some(flows - each));

    // In parts: the figures stay, and age, until the last part is done.
    thread::sleep(Duration::from_millis(50));
    let mut parts = 1;
    while !katran.flows().recount(&mut count, Duration::ZERO).unwrap() {
        assert_eq!(count.entries(first), Some(each));
        assert!(count.age() >= Duration::from_millis(50));
        parts += 1;
    }
    assert!(parts > 1, "each table takes at least one part");
    assert_eq!(count.entries(first), Some(0));
    assert_eq!(count.entries(third), Some(each - 20));

    // A VIP removed during a count has no figures, and one added has none yet.
    let mut again = |katran: &mut Katran, change: &mut dyn FnMut(&mut Katran)| {
        assert!(!katran.flows().recount(&mut count, Duration::ZERO).unwrap());
        change(katran);
        while !katran.flows().recount(&mut count, Duration::ZERO).unwrap() {}
        count.clone()
    };
    let late = "203.0.113.10:1/tcp";
    let count = again(&mut katran, &mut |katran| {
        katran.remove_vip(first).unwrap();
        serve(katran, late, VipFlags::empty(), &[A]);
    });
    assert_eq!(
        (count.entries(first), count.entries(vip(late))),
        (None, None)
    );
    assert_eq!(count.entries(third), Some(each - 20));
    // Neither has one that was removed and added again under another number.
    let count = again(&mut katran, &mut |katran| {
        katran.remove_vip(third).unwrap();
        serve(katran, SERVICES[2].0, VipFlags::empty(), &[A, B]);
    });
    assert_eq!(count.entries(third), None);
    let count = again(&mut katran, &mut |_| {});
    assert_eq!(count.entries(third), Some(0));
    katran.remove_vip(third).unwrap();
    let counters = katran.counters_with(&count).unwrap();
    assert_eq!(
        shown(&counters, "vip_flow_entries", &third.to_string()),
        None
    );
}

#[test]
fn a_vip_that_is_added_again_starts_without_flows() {
    let (mut katran, services) = balancer();
    let (vip, flows) = &services[0];
    katran.remove_vip(*vip).unwrap();
    // Other VIPs keep the reals in use, so their entries would count.
    let again = serve(&mut katran, SERVICES[0].0, VipFlags::empty(), &[A, B]);
    assert_eq!(entries(&katran, again), 0);
    assert!(
        flows
            .iter()
            .all(|flow| reason(&katran, *flow) == Reason::Ring)
    );
}

#[test]
fn flows_can_be_listed_where_the_table_knows_them() {
    let (katran, services) = balancer();
    for (vip, flows) in &services {
        let listed = katran.flows().list(*vip, usize::MAX);
        if flow_table() == FlowTableKind::SetAssociative {
            let error = listed.unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }));
            assert!(error.to_string().contains("kernel-lru"), "{error}");
            continue;
        }
        let listed = listed.unwrap();
        let sources: BTreeSet<_> = listed.iter().map(|entry| entry.flow.source).collect();
        let expected: BTreeSet<_> = flows.iter().map(|flow| flow.source).collect();
        assert_eq!(sources, expected);
        for entry in &listed {
            // Port 0 in its entries does not find an any-port VIP.
            if vip.port() != 0 {
                let found = katran.flows().find(&entry.flow).unwrap();
                assert_eq!((found[0].flow, found[0].real), (entry.flow, entry.real));
            }
        }
        assert_eq!(katran.flows().list(*vip, 7).unwrap().len(), 7);
    }
    assert!(katran.flows().list(vip("203.0.113.77:1/tcp"), 1).is_err());
}

#[test]
fn a_purge_does_not_disturb_forwarding() {
    const PACKETS: u32 = 300_000;
    const FLOWS: u64 = 1_000_000;
    let mut katran = load(
        all_in_table()
            .forwarding_cpus([0, 1])
            .flow_table_size(4 * FLOWS)
            .flood_threshold(u32::MAX),
    );
    let purged = serve(&mut katran, "203.0.113.1:80/tcp", VipFlags::empty(), &[A]);
    let busy = serve(&mut katran, "203.0.113.2:80/tcp", VipFlags::empty(), &[A]);
    let to = |address: &str| {
        let flow = Flow::tcp(at("100.64.0.0:1024"), at(address));
        Packet::new(flow).payload(60).frame()
    };
    let of_purged = katran_yardstick::Yardstick::for_sequences(&to("203.0.113.1:80")).unwrap();
    let all: Vec<u32> = (0..FLOWS as u32).map(katran_yardstick::scattered).collect();
    stay_on(0);
    of_purged.play(katran.program_fd(), &all).unwrap();
    let before = entries(&katran, purged);
    assert!(before > FLOWS * 99 / 100, "{before}");
    let drained = RealChange::Add(Real::new(ip(A)).weight(0));
    katran
        .modify_reals(busy, &[RealChange::Add(Real::new(ip(B))), drained])
        .unwrap();

    // Another CPU forwards, first alone, then during the purge.
    let program = katran.program_fd().try_clone_to_owned().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let forwarder = thread::spawn(move || {
        use std::os::fd::AsFd;
        stay_on(1);
        let busy = katran_yardstick::Yardstick::for_sequences(&to("203.0.113.2:80")).unwrap();
        let packets: Vec<u32> = (0..PACKETS)
            .map(|i| katran_yardstick::scattered(i % 1000))
            .collect();
        let mut times = Vec::new();
        for _ in 0..20 {
            // CPU time: spinning on a lock counts, but not time that other processes use.
            let began = common::cpu_time();
            busy.play(program.as_fd(), &packets).unwrap();
            times.push(common::cpu_time() - began);
            if times.len() == 8 {
                sender.send(()).unwrap();
            }
        }
        times
    });
    receiver.recv().unwrap();
    let began = Instant::now();
    let removed = katran.flows_mut().purge(purged).unwrap();
    let took = began.elapsed();
    let times = forwarder.join().unwrap();
    assert_eq!(removed, before);
    assert_eq!(entries(&katran, purged), 0);
    // A growing set-associative table may lose a few.
    let left = entries(&katran, busy);
    assert!((990..=1000).contains(&left), "{left}");
    assert_eq!(katran.stats().totals().unwrap().drop.packets, 0);
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (alone, meanwhile) = (median(times[..8].to_vec()), median(times[8..].to_vec()));
    println!(
        "{removed} entries in {took:?}; {PACKETS} packets in {alone:?}, then in {meanwhile:?}"
    );
    // Generous for a busy machine: a lock would stop it for as long as the purge takes.
    assert!(
        meanwhile < 2 * alone + Duration::from_millis(20),
        "{times:?}"
    );
}
