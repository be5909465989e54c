//! Whether two CPUs forward twice as much as one: packets a second of a pinned thread on each of
//! two CPUs, alone and at once, in turn, medians of many rounds. Each thread has its own wrapper,
//! as each packet writes the wrapper's state. Two rows put the factor into perspective: a program
//! that does nothing shows what the machine can do, and the same with one wrapper for both threads
//! shows the cost of a single shared cache line that both write.
//!
//! cargo bench --bench scaling              # a minute; fails if a factor by CPU time is below 1.9
//! chrt --rr 1 cargo bench --bench scaling  # on a shared machine
//! cargo bench --bench scaling -- --quick   # seconds: only whether it works

#![allow(clippy::unwrap_used)]

mod common;

use std::env;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use katran::FlowTableKind;
use katran::FlowTracking;
use katran_lab::Host;
use katran_lab::allowed_cpus;
use katran_lab::require_root;
use katran_lab::stay_on;
use katran_yardstick::Yardstick;
use libbpf_rs::Xdp;
use libbpf_rs::XdpFlags;

use crate::common::ACK;
use crate::common::NO_FLOOD_GUARD;
use crate::common::PORT;
use crate::common::SYN;
use crate::common::Spread;
use crate::common::TCP;
use crate::common::UDP;
use crate::common::frame;
use crate::common::serve;
use crate::common::settings;

/// The least factor of two CPUs to one.
const TARGET: f64 = 1.9;
/// Factors by wall clock and by CPU time differ by what other processes took. Above this the two
/// threads ran at once for at least 60 % of the time, so the factor by CPU time is meaningful.
const AT_ONCE: f64 = 0.8;
const TX: u32 = 3;
const PASS: u32 = 2;
/// Both tables' entries, as for the packet path; far more than flows.
const FLOW_TABLE_SIZE: u64 = 4_000_000;
/// Any number: these programs ignore flows.
const CONTROL_FLOWS: u32 = 1 << 10;

struct Effort {
    packets: u32,
    rounds: usize,
    flows: &'static [u32],
}

const FULL: Effort = Effort {
    packets: 500_000,
    rounds: 15,
    flows: &[1, 1 << 10, 1 << 16],
};
const QUICK: Effort = Effort {
    packets: 100_000,
    rounds: 5,
    flows: &[1 << 10],
};

fn main() -> ExitCode {
    let quick = env::args().any(|argument| argument == "--quick");
    let bench = env::args().any(|argument| argument == "--bench");
    require_root();
    let quick = quick || !bench;
    let effort = if quick { QUICK } else { FULL };
    let allowed = allowed_cpus();
    let &[first, second, ..] = allowed.as_slice() else {
        eprintln!(
            "scaling: two CPUs are needed, {} may be used",
            allowed.len()
        );
        return ExitCode::FAILURE;
    };
    let cpus = [first, second];
    println!(
        "{} packets a CPU and run, medians of {} rounds (quartiles), CPUs {first} and {second}; \
         millions of packets a second of CPU time, the wrapper's included",
        effort.packets, effort.rounds
    );
    println!(
        "{:<31} {:>6} {:>8} {:>8} {:>20} {:>20}",
        "traffic", "flows", "one CPU", "two", "factor, wall clock", "factor, CPU time"
    );

    compare_the_machine(cpus, &effort);
    if compare_forwarding(cpus, &effort) || quick {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Rows to compare the others with.
fn compare_the_machine(cpus: [usize; 2], effort: &Effort) {
    let ack = frame(false, TCP, ACK, PORT);
    let own = [(); 2].map(|()| Yardstick::new(&ack, CONTROL_FLOWS).unwrap());
    let _dispatched = own.each_ref().map(dispatch);
    for (name, sticks) in [
        ("nothing: the machine", [&own[0], &own[1]]),
        ("nothing, one wrapper for both", [&own[0], &own[0]]),
    ] {
        let lanes = lanes(cpus, sticks, |stick| stick.nothing());
        compare(name, CONTROL_FLOWS, lanes, PASS, effort);
    }
}

/// Returns whether all factors reach the target.
fn compare_forwarding(cpus: [usize; 2], effort: &Effort) -> bool {
    // All flows in the tables: packets that skip them share nothing.
    let settings = settings(
        FlowTableKind::default(),
        FLOW_TABLE_SIZE,
        Some(NO_FLOOD_GUARD),
        &cpus.map(|cpu| cpu as u32),
    );
    let katran = serve(settings.flow_tracking(FlowTracking::All));
    let mut scales = true;
    for (name, frame) in [
        ("TCP/IPv4 established", frame(false, TCP, ACK, PORT)),
        ("TCP/IPv4 SYN, all remembered", frame(false, TCP, SYN, PORT)),
        ("UDP/IPv4 established", frame(false, UDP, 0, PORT)),
        ("TCP/IPv6 established", frame(true, TCP, ACK, PORT)),
    ] {
        for &flows in effort.flows {
            let own = [(); 2].map(|()| Yardstick::new(&frame, flows).unwrap());
            let _dispatched = own.each_ref().map(dispatch);
            let lanes = lanes(cpus, [&own[0], &own[1]], |_| katran.program_fd());
            // Each CPU's flow table learns all flows.
            at_once(&lanes, flows, TX);
            let before = katran.stats().flow_table().unwrap();
            let factors = compare(name, flows, lanes, TX, effort);
            let after = katran.stats().flow_table().unwrap();
            let sent = effort.rounds as u64 * 4 * u64::from(effort.packets);
            assert_eq!(after.packets - before.packets, sent, "{name}");
            // Both CPUs have used their own tables.
            assert_eq!(after.fallback, before.fallback, "{name}");
            if factors.wall < AT_ONCE * factors.cpu {
                println!("  CPUs too busy for the two to run at once: try chrt --rr 1");
                scales = false;
            } else if factors.cpu < TARGET {
                println!("  less than {TARGET}");
                scales = false;
            }
        }
    }
    scales
}

/// Attaches the wrapper, for as long as the host lives, in its own network namespace, where no
/// packet arrives.
///
/// The kernel calls XDP programs through a dispatcher, which it rewrites, after an RCU grace
/// period, whenever a program is newly attached or run repeatedly. A run on another CPU delays the
/// end of that grace period: without this, the two would run one after the other.
fn dispatch(stick: &Yardstick) -> Host {
    let host = Host::new("dispatcher").unwrap();
    let loopback = host.interface_index("lo").unwrap();
    let xdp = Xdp::new(stick.wrapper_fd());
    host.run(|| xdp.attach(loopback as i32, XdpFlags::SKB_MODE).unwrap());
    host
}

/// A CPU, and what runs on it.
struct Lane<'a> {
    cpu: usize,
    stick: &'a Yardstick,
    program: BorrowedFd<'a>,
}

fn lanes<'a>(
    cpus: [usize; 2],
    [first, second]: [&'a Yardstick; 2],
    program: impl Fn(&'a Yardstick) -> BorrowedFd<'a>,
) -> [Lane<'a>; 2] {
    [(cpus[0], first), (cpus[1], second)].map(|(cpu, stick)| Lane {
        cpu,
        stick,
        program: program(stick),
    })
}

/// Packets a second over all lanes, or the ratio of two such rates.
#[derive(Clone, Copy)]
struct Rate {
    /// From the first start to the last end.
    wall: f64,
    /// By the threads' CPU time.
    cpu: f64,
}

/// Runs `packets` on each lane at the same time.
fn at_once(lanes: &[Lane<'_>], packets: u32, action: u32) -> Rate {
    let barrier = Barrier::new(lanes.len());
    let runs: Vec<(Instant, Instant, f64)> = thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .iter()
            .map(|lane| {
                scope.spawn(|| {
                    stay_on(lane.cpu);
                    barrier.wait();
                    let began = Instant::now();
                    let ran = lane.stick.run(lane.program, packets).unwrap();
                    assert_eq!(ran.action, action);
                    (began, Instant::now(), ran.nanoseconds)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let began = runs.iter().map(|run| run.0).min().unwrap();
    let ended = runs.iter().map(|run| run.1).max().unwrap();
    let sent = f64::from(packets) * lanes.len() as f64;
    Rate {
        wall: sent / (ended - began).as_secs_f64(),
        cpu: runs.iter().map(|run| 1e9 / run.2).sum(),
    }
}

/// Prints a row; returns how much faster two CPUs are than one.
fn compare(name: &str, flows: u32, lanes: [Lane<'_>; 2], action: u32, effort: &Effort) -> Rate {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    let (mut by_wall, mut by_cpu) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let first = at_once(&lanes[..1], effort.packets, action);
        let both = at_once(&lanes, effort.packets, action);
        let second = at_once(&lanes[1..], effort.packets, action);
        one.push((first.cpu + second.cpu) / 2.0);
        two.push(both.cpu);
        by_wall.push(2.0 * both.wall / (first.wall + second.wall));
        by_cpu.push(2.0 * both.cpu / (first.cpu + second.cpu));
    }
    let [one, two, by_wall, by_cpu] = [one, two, by_wall, by_cpu].map(Spread::of);
    println!(
        "{name:<31} {flows:>6} {:>8.2} {:>8.2} {:>20} {:>20}",
        one.median / 1e6,
        two.median / 1e6,
        by_wall.text(2),
        by_cpu.text(2)
    );
    Rate {
        wall: by_wall.median,
        cpu: by_cpu.median,
    }
}
