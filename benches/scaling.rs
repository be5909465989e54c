//! Whether two CPUs forward twice as much as one: packets a second of a pinned thread on each of
//! two CPUs, alone and at once, in turn, medians of many rounds. Each thread has a wrapper of its
//! own, for the wrapper's state is written with every packet. Two rows say what the factor is to
//! be read against: a program that does nothing, which is what the machine can do, and the same
//! with one wrapper for both threads, which is what one shared written cache line costs.
//!
//! cargo bench --bench scaling              # a minute; fails if a factor by CPU time is below 1.9
//! chrt --rr 1 cargo bench --bench scaling  # on a machine that others use, too
//! cargo bench --bench scaling -- --quick   # seconds, for whether it works

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

/// Two CPUs against one, at least.
const TARGET: f64 = 1.9;
/// Factors by wall clock and by CPU time differ by what others took. From here on the two threads
/// have run at once for at least 60 % of the time, and the factor by CPU time tells.
const AT_ONCE: f64 = 0.8;
const TX: u32 = 3;
const PASS: u32 = 2;
/// Entries of both tables, as for the packet path; far more than flows.
const FLOW_TABLE_SIZE: u64 = 4_000_000;
/// Any number: these programs look at no flow.
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

/// What to read the other rows against.
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

/// Whether all factors are as they should be.
fn compare_forwarding(cpus: [usize; 2], effort: &Effort) -> bool {
    // All flows in the tables: packets that ask none share nothing that could be in each other's way.
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
            // Each CPU's flow table gets to know all flows.
            at_once(&lanes, flows, TX);
            let before = katran.stats().flow_table().unwrap();
            let factors = compare(name, flows, lanes, TX, effort);
            let after = katran.stats().flow_table().unwrap();
            let sent = effort.rounds as u64 * 4 * u64::from(effort.packets);
            assert_eq!(after.packets - before.packets, sent, "{name}");
            // Both CPUs have used tables of their own.
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

/// Attaches the wrapper in a network namespace of its own, where no packet comes, while the host
/// lives.
///
/// The kernel calls XDP programs through a dispatcher, which it writes again, after a grace period
/// of RCU, whenever a program joins those that are attached or run many times. A run on another
/// CPU keeps that grace period from ending: without this, the two would run one after the other.
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

/// Packets a second of all lanes together, or such a rate by another.
#[derive(Clone, Copy)]
struct Rate {
    /// From the first one's start to the last one's end.
    wall: f64,
    /// Of the time that the threads had a CPU: what others took is no part of it.
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

/// Prints a row; how much faster two CPUs are than one.
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
