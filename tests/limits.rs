//! Limits that docs/limits.md claims. What is a matter of time is compared with the same of less, so
//! that it holds in a debug build and beside other work; the claimed times are for a release build. Tests
//! that change what the whole process may do run it once more for themselves.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

#[allow(dead_code, reason = "each test binary uses a part")]
mod common;

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use katran::Error;
use katran::Features;
use katran::Flow;
use katran::Katran;
use katran::NextHops;
use katran::Real;
use katran::RealChange;
use katran::ServerId;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::state::VipState;
use katran_lab::require_root;
use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;
use nix::sys::signal::SigEvent;
use nix::sys::signal::SigevNotify;
use nix::sys::signal::Signal;
use nix::sys::timer::Expiration;
use nix::sys::timer::Timer;
use nix::sys::timer::TimerSetTimeFlags;
use nix::time::ClockId;

use common::builder;
use common::cpu_time;
use common::frames::Packet;
use common::ip;
use common::load;

/// Names the test that a process is for.
const ALONE: &str = "KATRAN_LIMITS_ALONE";

/// Runs a test in a process of its own, whose limits it may change.
fn alone(name: &str, test: impl FnOnce()) {
    require_root();
    if std::env::var_os(ALONE).is_some_and(|of| of == name) {
        return test();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, name)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(said.contains("1 passed"), "{said}{errors}");
}

/// One test at a time has the machine, as far as these are concerned.
fn quiet() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A time that is claimed for a release build.
fn claim(what: &str, took: Duration, limit: Duration) {
    println!("{what}: {took:?} ({limit:?} in a release build)");
    if !cfg!(debug_assertions) {
        assert!(took < limit, "{what}: {took:?}");
    }
}

fn cpu_time_of<T>(f: impl FnOnce() -> T) -> (T, Duration) {
    let before = cpu_time();
    let result = f();
    (result, cpu_time() - before)
}

fn vip(i: u32) -> Vip {
    let [_, _, high, low] = i.to_be_bytes();
    Vip::tcp(([203, 0, high, low], 443).into())
}

fn real(i: u32) -> Real {
    let [_, _, high, low] = i.to_be_bytes();
    Real::new([10, 1, high, low].into())
}

fn open_files() -> u64 {
    fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

fn limit_open_files(soft: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}

fn large() -> Katran {
    load(builder().max_vips(65_535).max_reals(65_535).ring_size(251))
}

fn all_vips() -> State {
    let mut state = State::default();
    for i in 0..65_535 {
        let mut of = VipState::new(vip(i));
        of.reals = vec![real(i % 50)];
        state.vips.push(of);
    }
    state
}

#[test]
fn all_vips_with_rings_under_a_soft_limit_of_1024_descriptors() {
    alone(
        "all_vips_with_rings_under_a_soft_limit_of_1024_descriptors",
        || {
            limit_open_files(1024);
            let mut katran = large();
            let files = open_files();
            let (_, took) = cpu_time_of(|| katran.apply(&all_vips()).unwrap());
            println!("applied in {took:?} of CPU time");
            assert_eq!(katran.vips().len(), 65_535);
            // The thread that waits for packets may have one for a moment.
            let more = open_files().saturating_sub(files);
            assert!(more < 8, "{more} descriptors more");
            for i in [0, 7985, 65_534] {
                let flow = Flow::tcp(
                    "192.0.2.1:1234".parse().unwrap(),
                    (vip(i).address(), 443).into(),
                );
                let answer = katran.real_for_flow(&flow).unwrap().unwrap();
                assert_eq!(answer.real, Some(real(i % 50).address()), "{i}");
            }
            let full = katran.stats().memory_in_use().unwrap();
            let _ = katran.apply(&State::default()).unwrap();
            assert!(katran.vips().is_empty());
            let left = katran.stats().memory_in_use().unwrap();
            println!("{full} bytes with all VIPs, {left} without");
            assert!(left + 8000 * 8 * 502 < full, "{full} {left}");
        },
    );
}

#[test]
fn an_error_for_want_of_descriptors_names_their_limit() {
    alone("an_error_for_want_of_descriptors_names_their_limit", || {
        let mut katran = large();
        katran.add_vip(vip(0), VipFlags::empty()).unwrap();
        let before = katran.state();
        // libbpf says so in a way of its own.
        limit_open_files(open_files() + 20);
        let refused = builder().load().map(drop).unwrap_err();
        let named =
            matches!(&refused, Error::Exhausted { what, .. } if what.contains("RLIMIT_NOFILE"));
        assert!(named, "{refused}");
        let limit = 256;
        limit_open_files(limit);
        let mut files: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
        let refused = [
            builder().load().map(drop).unwrap_err(),
            katran.apply(&all_vips()).map(drop).unwrap_err(),
            katran
                .server_ids_mut()
                .add(&[ServerId::new(1, ip("10.0.0.1"))])
                .unwrap_err(),
            katran.stats().memory_in_use().map(drop).unwrap_err(),
        ];
        // A hundred are enough for all rings.
        files.truncate(files.len() - 100);
        for error in refused {
            let named = matches!(&error, Error::Exhausted { what, limit: of }
                if what.contains("RLIMIT_NOFILE") && *of == limit);
            assert!(named, "{error}");
        }
        assert_eq!(katran.state(), before);
        let _ = katran.apply(&all_vips()).unwrap();
        assert_eq!(katran.vips().len(), 65_535);
    });
}

#[test]
fn the_64_000th_vip_costs_what_the_2_000th_does() {
    let _quiet = quiet();
    let mut katran = large();
    let mut costs = Vec::new();
    for i in 0..65_000 {
        let (added, took) = cpu_time_of(|| katran.add_vip(vip(i), VipFlags::empty()));
        added.unwrap();
        costs.push(took);
    }
    let median = |costs: &[Duration]| {
        let mut costs = costs.to_vec();
        costs.sort_unstable();
        costs[costs.len() / 2]
    };
    let (early, late) = (median(&costs[1500..2500]), median(&costs[63_500..64_500]));
    println!("{early:?} for the 2,000th, {late:?} for the 64,000th");
    assert!(late < 3 * early, "{early:?} {late:?}");
    claim("the 64,000th VIP", late, Duration::from_micros(50));

    // It is the same with reals, and with the way back.
    let cost = |katran: &mut Katran, vips: std::ops::Range<u32>, f: fn(&mut Katran, u32)| {
        let costs: Vec<_> = vips.map(|i| cpu_time_of(|| f(katran, i)).1).collect();
        median(&costs)
    };
    let add: fn(&mut Katran, u32) = |katran, i| katran.add_real(vip(i), real(1)).unwrap();
    let remove: fn(&mut Katran, u32) = |katran, i| katran.remove_vip(vip(i)).unwrap();
    let early = cost(&mut katran, 0..500, add);
    cost(&mut katran, 500..64_500, add);
    let late = cost(&mut katran, 64_500..65_000, add);
    println!("with a ring: {early:?} for the first, {late:?} for the last");
    assert!(late < 3 * early, "{early:?} {late:?}");
    let early = cost(&mut katran, 64_500..65_000, remove);
    cost(&mut katran, 500..64_500, remove);
    let late = cost(&mut katran, 0..500, remove);
    println!("removed: {early:?} for the first, {late:?} for the last");
    assert!(early < 3 * late, "{early:?} {late:?}");
}

#[test]
fn a_diagnosis_of_16_000_reals_takes_16_times_that_of_1_000() {
    let _quiet = quiet();
    let diagnosed = |reals: u32, next_hops| {
        let mut katran = load(builder().max_reals(20_000).next_hops(next_hops));
        katran.add_vip(vip(0), VipFlags::empty()).unwrap();
        let changes: Vec<_> = (0..reals).map(|i| RealChange::Add(real(i))).collect();
        katran.modify_reals(vip(0), &changes).unwrap();
        let took = |_| {
            let began = Instant::now();
            let (diagnosis, took) = cpu_time_of(|| katran.diagnose("lo"));
            assert!(!diagnosis.unwrap().findings().is_empty());
            (took, began.elapsed())
        };
        (0..3).map(took).min().unwrap()
    };
    for next_hops in [NextHops::Gateway, NextHops::PerReal] {
        let (few, _) = diagnosed(1000, next_hops);
        let (many, by_clock) = diagnosed(16_000, next_hops);
        println!("{next_hops}: {few:?} with 1,000 reals, {many:?} ({by_clock:?}) with 16,000");
        assert!(many < 32 * few, "{few:?} {many:?}");
        claim("diagnose", many, Duration::from_millis(100));
    }
}

#[test]
fn real_for_flow_ends_while_flows_never_pause() {
    let _quiet = quiet();
    let mut katran = load(builder().flow_table_size(4_000_000));
    let vip = vip(0);
    katran.add_vip(vip, VipFlags::empty()).unwrap();
    katran.add_real(vip, real(0)).unwrap();
    let packets = katran_yardstick::Yardstick::new(&packet_to(vip), 4_000_000).unwrap();
    let stop = AtomicBool::new(false);
    let unknown = Flow::tcp("198.18.0.1:9".parse().unwrap(), (vip.address(), 443).into());
    let longest = std::thread::scope(|scope| {
        let katran = &katran;
        let flood = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                packets.run(katran.program_fd(), 20_000).unwrap();
            }
        });
        let asked = |_| {
            let (answer, took) = cpu_time_of(|| katran.real_for_flow(&unknown));
            let answer = answer.unwrap().unwrap();
            assert_eq!(answer.choice, katran::flows::Choice::Ring);
            took
        };
        let longest = (0..20_000).map(asked).max().unwrap();
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap();
        longest
    });
    let new_flows = katran.stats().flow_table().unwrap().misses;
    println!("{longest:?} at most, while {new_flows} flows came");
    assert!(new_flows > 1000, "{new_flows}");
    assert!(longest < Duration::from_millis(20), "{longest:?}");
}

#[test]
fn counters_of_reals_far_apart_are_those_asked_for() {
    let mut katran = large();
    katran.add_vip(vip(0), VipFlags::empty()).unwrap();
    let changes: Vec<_> = (0..65_535).map(|i| RealChange::Add(real(i))).collect();
    katran.modify_reals(vip(0), &changes).unwrap();
    let wanted = [0, 65_534, 3, 65_534, 30_000].map(|i| real(i).address());
    assert_eq!(katran.stats().reals(&wanted).unwrap().len(), 5);
    let all: Vec<_> = (0..65_535).map(|i| real(i).address()).collect();
    assert_eq!(katran.stats().reals(&all).unwrap().len(), 65_535);
    assert_eq!(katran.counters().unwrap().reals.len(), 65_535);
}

#[test]
fn memory_that_a_cgroup_does_not_leave_is_not_there() {
    alone("memory_that_a_cgroup_does_not_leave_is_not_there", || {
        const LIMIT: u64 = 64 << 20;
        let group = Cgroup::new(LIMIT);
        fs::write(group.0.join("cgroup.procs"), "0").unwrap();
        let refused = builder().flow_table_size(8_000_000).load().unwrap_err();
        let Error::InsufficientMemory {
            needed, available, ..
        } = refused
        else {
            panic!("{refused}");
        };
        println!("needs {needed}, {available} are available");
        assert!(needed > LIMIT && (1..=LIMIT).contains(&available));
        // What fits is loaded.
        let katran = load(builder());
        drop(katran);
        drop(group);
        let _ = load(builder().flow_table_size(4_000_000));
    });
}

/// A memory cgroup below that of this process, of whichever version there is.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    fn new(limit: u64) -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let of_v1 = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers
                .split(',')
                .any(|it| it == "memory")
                .then_some(path)
        });
        let of_v2 = groups.lines().find_map(|line| line.strip_prefix("0::"));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let point = |kind: &str, option: &str| {
            let found = mounts.lines().find_map(|line| {
                let fields: Vec<_> = line.split(' ').collect();
                let has = fields[3].split(',').any(|it| it == option);
                (fields[2] == kind && has).then(|| fields[1].to_owned())
            });
            found.unwrap()
        };
        let (parent, file) = match of_v1 {
            Some(path) => (point("cgroup", "memory") + path, "memory.limit_in_bytes"),
            None => (point("cgroup2", "rw") + of_v2.unwrap(), "memory.max"),
        };
        let group = format!("{parent}/katran-limits-{}", std::process::id());
        fs::create_dir(&group).unwrap();
        let group = Self(group.into());
        fs::write(group.0.join(file), limit.to_string()).unwrap();
        group
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let parent = self.0.parent().unwrap();
        fs::write(parent.join("cgroup.procs"), "0").unwrap();
        fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn a_profilers_timer_does_not_disturb_loading() {
    alone("a_profilers_timer_does_not_disturb_loading", || {
        let load_and_reload = || {
            let began = Instant::now();
            let mut katran = load(builder());
            katran.reload(Features::INTROSPECTION).unwrap();
            began.elapsed()
        };
        let quiet = (0..2).map(|_| load_and_reload()).min().unwrap();
        let rang = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGALRM, Arc::clone(&rang)).unwrap();
        let event = SigEvent::new(SigevNotify::SigevSignal {
            signal: Signal::SIGALRM,
            si_value: 0,
        });
        let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event).unwrap();
        let every = Expiration::Interval(Duration::from_millis(5).into());
        timer.set(every, TimerSetTimeFlags::empty()).unwrap();
        let mut disturbed = Duration::MAX;
        for _ in 0..2 {
            disturbed = disturbed.min(load_and_reload());
            // It is let in again afterwards.
            assert!(rang.swap(false, Ordering::Relaxed));
        }
        println!("{quiet:?} without a timer, {disturbed:?} with one of 5 ms");
        assert!(disturbed < 3 * quiet, "{quiet:?} {disturbed:?}");
    });
}

#[test]
fn adding_server_ids_waits_once_for_packets() {
    let mut katran = load(builder());
    let mut from = 1;
    for count in [1, 5000, 70_000, 1, 200_000, 300_000, 10] {
        let ids: Vec<_> = (from..from + count)
            .map(|id| ServerId::new(id, real(id % 50).address()))
            .collect();
        let before = katran.stats().library().unwrap().waits_for_packets;
        katran.server_ids_mut().add(&ids).unwrap();
        let waits = katran.stats().library().unwrap().waits_for_packets - before;
        println!("{count} ids: {waits}");
        assert!(
            waits <= 1,
            "{count} ids after {from}: {waits} grace periods"
        );
        from += count;
    }
    let full = katran.stats().memory_in_use().unwrap();
    let all: Vec<u32> = (1..from).collect();
    let before = katran.stats().library().unwrap().waits_for_packets;
    katran.server_ids_mut().remove(&all).unwrap();
    let waits = katran.stats().library().unwrap().waits_for_packets - before;
    assert!(waits <= 3, "{waits}");
    let left = katran.stats().memory_in_use().unwrap();
    println!("{full} bytes with {from} ids, {left} without");
    assert!(left + 10 * u64::from(from) < full, "{full} {left}");
}

#[test]
fn rings_and_tables_of_cpus_wait_once_for_packets() {
    let katran = load(builder());
    // The first chunk of rings, and the tables of all CPUs.
    assert_eq!(katran.stats().library().unwrap().waits_for_packets, 2);
    let mut katran = load(builder().max_vips(1000));
    let mut state = all_vips();
    state.vips.truncate(512);
    let before = katran.stats().library().unwrap().waits_for_packets;
    let _ = katran.apply(&state).unwrap();
    let waits = katran.stats().library().unwrap().waits_for_packets - before;
    assert_eq!(waits, 1, "64 chunks of rings");
    let _ = katran.apply(&State::default()).unwrap();
    let waits = katran.stats().library().unwrap().waits_for_packets - before;
    assert!(waits <= 2, "{waits}: as they go");
}

/// A packet of the first of many flows to a VIP, whose others the yardstick makes.
fn packet_to(vip: Vip) -> Vec<u8> {
    let to = (vip.address(), vip.port()).into();
    let flow = Flow::tcp("100.64.0.0:1024".parse().unwrap(), to);
    Packet::new(flow).payload(64).frame()
}
