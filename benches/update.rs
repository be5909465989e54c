//! The control path: one real added or removed, a hundred changed in one batch, a whole
//! configuration file applied, and loading. Each change is timed until the call returns, and that
//! of one real also until packets are switched, as a call may do some of the next one's waiting.
//! After every change a packet through the program must see it.
//!
//! cargo bench --bench update            # a minute
//! cargo bench --bench update -- --quick # seconds

#![allow(clippy::unwrap_used)]

use std::env;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Builder;
use katran::Katran;
use katran::Real;
use katran::RealChange;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::state::VipState;
use katran_lab::require_root;

const VIPS: u16 = 512;
const REALS: u16 = 100;
/// Clients to look at: with 100 reals of equal weight, each real has about 20.
const CLIENTS: u16 = 2000;

fn main() {
    require_root();
    let quick = env::args().any(|argument| argument == "--quick");
    let some = |many: usize| if quick { many / 10 } else { many };
    println!("65,537 slots, flow table of 10,000; each change until packets follow it, in ms");
    heading();
    for reals in [REALS, 1000] {
        let back_to_back = one_real(reals, some(1000), Duration::ZERO);
        back_to_back.report(&format!("one of {reals} reals"));
    }
    one_real(REALS, some(500), Duration::from_millis(10)).report("one of 100 reals, 100 changes/s");
    report("100 weights changed in one batch", &weights(some(1000)));
    report("50 of 100 reals replaced in one batch", &swaps(some(1000)));
    println!("\nThe whole, in ms");
    heading();
    let whole: Vec<_> = (0..some(20)).map(|_| whole_configuration()).collect();
    for (which, what) in [
        (0, "512 VIPs of 100 reals, from a document"),
        (1, "  removed again"),
    ] {
        let samples: Vec<_> = whole.iter().map(|samples| samples[which]).collect();
        report(what, &samples);
    }
    report("load", &(0..some(20)).map(|_| load()).collect::<Vec<_>>());
}

fn heading() {
    let [what, times, p50, p99, max] = ["", "times", "p50", "p99", "max"];
    let undisturbed = "undisturbed: times, p99, max";
    println!("{what:<46} {times:>5} {p50:>8} {p99:>8} {max:>8}   {undisturbed}");
}

/// A call's time, and whether another thread took the CPU meanwhile.
#[derive(Clone, Copy)]
struct Sample {
    took: Duration,
    disturbed: bool,
}

/// Times a call, of which `end` returns when packets were switched.
fn sample(call: impl FnOnce(), end: impl FnOnce() -> Instant) -> [Sample; 2] {
    let before = preemptions();
    let began = Instant::now();
    call();
    let returned = Instant::now();
    let disturbed = preemptions() != before;
    [end(), returned].map(|ended| Sample {
        took: ended - began,
        disturbed,
    })
}

/// How often this thread lost the CPU while it was ready.
fn preemptions() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let count = status
        .lines()
        .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}

fn report(what: &str, samples: &[Sample]) {
    let all: Vec<_> = samples.iter().map(|sample| sample.took).collect();
    let undisturbed = samples.iter().filter(|sample| !sample.disturbed);
    let undisturbed: Vec<_> = undisturbed.map(|sample| sample.took).collect();
    let [p50, p99, max] = quantiles(&all);
    print!(
        "{what:<46} {:>5} {p50:>8.3} {p99:>8.3} {max:>8.3}",
        all.len()
    );
    if undisturbed.is_empty() {
        return println!("   {:>5}", 0);
    }
    let [_, p99, max] = quantiles(&undisturbed);
    println!("   {:>5} {p99:>8.3} {max:>8.3}", undisturbed.len());
}

/// Median, 99th percentile and maximum, in ms.
fn quantiles(durations: &[Duration]) -> [f64; 3] {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let ms = |part: f64| {
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted[rank.max(1) - 1].as_secs_f64() * 1e3
    };
    [0.5, 0.99, 1.0].map(ms)
}

/// All defaults except the flow table's size, which only affects memory.
fn builder() -> Builder {
    Katran::builder()
        .gateway_mac("0a:00:00:00:00:fe".parse().unwrap())
        .flow_table_size(10_000)
}

fn real(index: u16) -> Real {
    let [high, low] = index.to_be_bytes();
    Real::new([10, 0, high, low].into())
}

fn vip(index: u16) -> Vip {
    Vip::tcp(([203, 0, 113, 1], 1000 + index).into())
}

/// One VIP with this many reals. It bypasses the flow table, so that each packet looks at the ring.
fn one_vip(reals: u16) -> Katran {
    let mut katran = builder().load().unwrap();
    katran.add_vip(vip(0), VipFlags::LRU_BYPASS).unwrap();
    let reals: Vec<_> = (0..reals).map(|i| RealChange::Add(real(i))).collect();
    katran.modify_reals(vip(0), &reals).unwrap();
    katran
}

/// The real that the loaded program chooses for a VIP's client.
fn sent_to(katran: &Katran, vip: u16, client: u16) -> Option<IpAddr> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
    frame.extend([192, 0, 2, 1, 203, 0, 113, 1]);
    frame.extend(client.to_be_bytes());
    frame.extend((1000 + vip).to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    katran.simulate(&frame).unwrap().real
}

/// A VIP's clients that the loaded program sends to a real.
fn clients_on(katran: &Katran, vip: u16, real: Real) -> Vec<u16> {
    let sent_there = |client: &u16| sent_to(katran, vip, *client) == Some(real.address());
    (0..CLIENTS).filter(sent_there).collect()
}

/// Calls, and the time until packets were switched.
#[derive(Default)]
struct OneReal {
    added: Vec<[Sample; 2]>,
    removed: Vec<[Sample; 2]>,
}

impl OneReal {
    fn report(&self, what: &str) {
        for (change, samples) in [("added", &self.added), ("removed", &self.removed)] {
            let in_force: Vec<_> = samples.iter().map(|[in_force, _]| *in_force).collect();
            let returned: Vec<_> = samples.iter().map(|[_, returned]| *returned).collect();
            report(&format!("{what} {change}: followed"), &in_force);
            report("  the call returns", &returned);
        }
    }
}

/// Adds and removes a real of a VIP with this many others, with a pause after each change.
fn one_real(reals: u16, times: usize, pause: Duration) -> OneReal {
    let mut katran = one_vip(reals);
    let new = real(5000);
    assert_eq!(clients_on(&katran, 0, new), [0_u16; 0]);
    katran.add_real(vip(0), new).unwrap();
    let clients = clients_on(&katran, 0, new);
    let expected = usize::from(CLIENTS / reals);
    assert!(
        (1..3 * expected + 3).contains(&clients.len()),
        "{clients:?} are on the new real"
    );
    let client = clients[0];
    katran.remove_real(vip(0), new.address()).unwrap();
    assert_eq!(clients_on(&katran, 0, new), [0_u16; 0], "the real is gone");

    // Callbacks run once packets have been switched.
    let told = Arc::new(Mutex::new(Instant::now()));
    for register in [Katran::on_real_added, Katran::on_real_removed] {
        let told = Arc::clone(&told);
        register(&mut katran, move |_, _| {
            *told.lock().unwrap() = Instant::now()
        });
    }
    let mut measured = OneReal::default();
    for _ in 0..times {
        let add = || katran.add_real(vip(0), new).unwrap();
        measured.added.push(sample(add, || *told.lock().unwrap()));
        assert_eq!(sent_to(&katran, 0, client), Some(new.address()));
        thread::sleep(pause);
        let remove = || katran.remove_real(vip(0), new.address()).unwrap();
        measured
            .removed
            .push(sample(remove, || *told.lock().unwrap()));
        assert_ne!(sent_to(&katran, 0, client), Some(new.address()));
        thread::sleep(pause);
    }
    measured
}

/// All 100 reals change their weight; heavy ones become light.
fn weights(times: usize) -> Vec<Sample> {
    let mut katran = one_vip(REALS);
    let weights = |even, odd| -> Vec<RealChange> {
        let weight = |i| if i % 2 == 0 { even } else { odd };
        (0..REALS)
            .map(|i| RealChange::Add(real(i).weight(weight(i))))
            .collect()
    };
    let batches = [weights(10, 1), weights(1, 10)];
    for (heavy, batch) in batches.iter().enumerate() {
        katran.modify_reals(vip(0), batch).unwrap();
        let on = |parity: usize| -> usize {
            let reals = (parity as u16..10).step_by(2);
            reals.map(|i| clients_on(&katran, 0, real(i)).len()).sum()
        };
        assert!(on(heavy) > 5 * on(1 - heavy), "weights are followed");
    }
    alternate(&mut katran, &batches, times)
}

/// Half of the 100 reals are replaced.
fn swaps(times: usize) -> Vec<Sample> {
    let mut katran = one_vip(REALS);
    let half = REALS / 2;
    let swap = |old: u16, new: u16| -> Vec<RealChange> {
        let add = (new..new + half).map(|i| RealChange::Add(real(i)));
        let remove = (old..old + half).map(|i| RealChange::Remove(real(i).address()));
        add.chain(remove).collect()
    };
    let batches = [swap(0, 5000), swap(5000, 0)];
    for (batch, (there, gone)) in batches.iter().zip([(5000, 0), (0, 5000)]) {
        katran.modify_reals(vip(0), batch).unwrap();
        assert!(!clients_on(&katran, 0, real(there)).is_empty());
        assert!(clients_on(&katran, 0, real(gone)).is_empty());
    }
    alternate(&mut katran, &batches, times)
}

/// Alternates between the batches without a pause. Each must move some client.
fn alternate(katran: &mut Katran, batches: &[Vec<RealChange>; 2], times: usize) -> Vec<Sample> {
    let all = |katran: &Katran| -> Vec<_> { (0..100).map(|i| sent_to(katran, 0, i)).collect() };
    let at_end_of = [0, 1].map(|turn| {
        katran.modify_reals(vip(0), &batches[turn]).unwrap();
        all(katran)
    });
    let client = (0..100).find(|i| at_end_of[0][*i] != at_end_of[1][*i]);
    let client = client.unwrap();
    let one = |turn: usize| {
        let change = || katran.modify_reals(vip(0), &batches[turn % 2]).unwrap();
        let [sample, _] = sample(change, Instant::now);
        let real = sent_to(katran, 0, client as u16);
        assert_eq!(real, at_end_of[turn % 2][client]);
        sample
    };
    (0..times).map(one).collect()
}

/// 512 VIPs of 100 reals, 4,096 reals in all.
fn document() -> String {
    let mut state = State::default();
    for index in 0..VIPS {
        let mut vip = VipState::new(vip(index));
        vip.reals = (0..REALS).map(|i| real((index * 8 + i) % 4096)).collect();
        state.vips.push(vip);
    }
    state.to_toml().unwrap()
}

/// From the document's text to packets, and back to an empty one.
fn whole_configuration() -> [Sample; 2] {
    let document = document();
    let mut katran = builder().load().unwrap();
    let mut changes = None;
    let apply = || {
        let wanted = State::from_toml(&document).unwrap();
        changes = Some(katran.apply(&wanted).unwrap());
    };
    let [applied, _] = sample(apply, Instant::now);
    let changes = changes.unwrap();
    assert_eq!(changes.vips_added.len(), usize::from(VIPS));
    assert_eq!(
        changes.reals_added.len(),
        usize::from(VIPS) * usize::from(REALS)
    );
    for index in [0, VIPS / 2, VIPS - 1] {
        let clients = clients_on(&katran, index, real(index * 8 % 4096)).len();
        assert!((5..50).contains(&clients), "{clients} are on a real of 100");
    }
    let remove = || drop(katran.apply(&State::default()).unwrap());
    let [removed, _] = sample(remove, Instant::now);
    assert_eq!(sent_to(&katran, 0, 0), None);
    [applied, removed]
}

fn load() -> Sample {
    let mut katran = None;
    let [loaded, _] = sample(|| katran = Some(builder().load().unwrap()), Instant::now);
    loaded
}
