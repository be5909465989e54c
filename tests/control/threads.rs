//! One balancer and many threads: concurrent queries, changes one at a time, and packets that wait
//! for neither.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Flow;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::flows::Verdict;

use crate::common::bpf;
use crate::common::builder;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;

/// For each VIP.
const CHANGES: usize = 40;
/// Both VIPs' reals alternate between these sets.
const SETS: [[&str; 2]; 2] = [
    ["198.51.100.1", "2001:db8:2::1"],
    ["198.51.100.2", "2001:db8:2::2"],
];
const SERVICES: [&str; 2] = ["203.0.113.1:443", "[2001:db8:1::1]:443"];

fn set(index: usize) -> BTreeSet<IpAddr> {
    SETS[index].map(ip).into()
}

/// Asks in three ways, which must agree: all before a change, or all after it.
fn ask(katran: &Katran, vip: Vip, flow: Flow) {
    let reals: BTreeSet<IpAddr> = katran
        .reals(vip)
        .unwrap()
        .iter()
        .map(Real::address)
        .collect();
    assert!(reals == set(0) || reals == set(1), "{reals:?}");
    let answer = katran.real_for_flow(&flow).unwrap().unwrap().real;
    let ran = katran.simulate(&frame(flow)).unwrap();
    assert_eq!((ran.vip, ran.real), (Some(vip), answer));
    assert!(reals.contains(&answer.unwrap()));
}

#[test]
fn queries_changes_and_packets_run_concurrently() {
    let mut katran = load(builder());
    // Without a flow table the ring decides, so each answer shows which ring it used.
    let vips = SERVICES.map(|to| {
        let text = format!("{to}/tcp");
        serve(&mut katran, &text, VipFlags::LRU_BYPASS, &SETS[0])
    });
    let flows = SERVICES.map(|to| flows(Protocol::Tcp, to, 50));
    let program = katran.program_fd().try_clone_to_owned().unwrap();
    let katran = RwLock::new(katran);
    let done = AtomicBool::new(false);
    let [packets, questions] = [(); 2].map(|()| AtomicU64::new(0));
    let began = Instant::now();
    let goes_on = || {
        assert!(began.elapsed() < Duration::from_secs(240), "abandoned");
        !done.load(Ordering::Relaxed)
    };
    thread::scope(|scope| {
        let packet_flows = flows.iter().flatten().cycle();
        let traffic = scope.spawn(|| {
            for flow in packet_flows.take_while(|_| goes_on()) {
                let ran = bpf::run(program.as_fd(), &frame(*flow));
                assert_eq!(ran.verdict, Verdict::Tx);
                packets.fetch_add(1, Ordering::Relaxed);
            }
        });
        let readers = [0, 1].map(|service| {
            let (vip, flows) = (vips[service], &flows[service]);
            let (katran, questions) = (&katran, &questions);
            scope.spawn(move || {
                for flow in flows.iter().cycle().take_while(|_| goes_on()) {
                    ask(&katran.read().unwrap(), vip, *flow);
                    questions.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let writers = vips.map(|vip| {
            let (katran, packets, questions) = (&katran, &packets, &questions);
            scope.spawn(move || {
                for change in 0..CHANGES {
                    let [old, new] = [change % 2, (change + 1) % 2].map(set);
                    let mut changes: Vec<_> = old.into_iter().map(RealChange::Remove).collect();
                    changes.extend(new.into_iter().map(|real| RealChange::Add(Real::new(real))));
                    katran.write().unwrap().modify_reals(vip, &changes).unwrap();
                    // Some packets and queries see each change.
                    for count in [packets, questions] {
                        let seen = count.load(Ordering::Relaxed);
                        while goes_on() && count.load(Ordering::Relaxed) == seen {
                            thread::sleep(Duration::from_micros(100));
                        }
                    }
                }
            })
        });
        let ended = writers.map(|writer| writer.join());
        done.store(true, Ordering::Relaxed);
        for thread in ended.into_iter().chain(readers.map(|reader| reader.join())) {
            thread.unwrap();
        }
        traffic.join().unwrap();
    });
    let katran = katran.into_inner().unwrap();
    for vip in vips {
        let reals = katran.reals(vip).unwrap();
        let reals: BTreeSet<IpAddr> = reals.iter().map(Real::address).collect();
        assert_eq!(reals, set(CHANGES % 2));
    }
    assert_eq!(katran.real_numbers().len(), SETS[0].len());
    // Every packet counts once, simulated ones too.
    let all = packets.into_inner() + questions.into_inner();
    assert_eq!(katran.stats().totals().unwrap().tx.packets, all);
}
