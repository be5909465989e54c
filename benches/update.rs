//! The control path, each change until it is in force in the kernel: one real added, a hundred
//! changed in one batch, a whole configuration file applied, and loading. What a change is to do
//! is checked in the kernel before it is timed.
//!
//! cargo bench --bench update            # a minute
//! cargo bench --bench update -- --quick # seconds

#![allow(clippy::unwrap_used)]

use std::env;
use std::time::Duration;
use std::time::Instant;

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use katran::Builder;
use katran::Flow;
use katran::Katran;
use katran::Real;
use katran::RealChange;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::VipState;
use katran_lab::require_root;

const VIPS: u16 = 512;
const REALS: u16 = 100;
/// Flows that are asked for: with 100 reals of equal weight, about 20 of them go to each.
const FLOWS: u16 = 2000;

/// All at its default but the flow table, whose size is the memory's matter.
fn builder() -> Builder {
    require_root();
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

/// One VIP with 100 reals.
fn one_vip() -> Katran {
    let mut katran = builder().load().unwrap();
    katran.add_vip(vip(0), VipFlags::empty()).unwrap();
    let reals: Vec<_> = (0..REALS).map(|i| RealChange::Add(real(i))).collect();
    katran.modify_reals(vip(0), &reals).unwrap();
    katran
}

/// How many of some new flows go to a real.
fn flows_on(katran: &Katran, of: u16, real: Real) -> usize {
    let goes_there = |port: &u16| {
        let source = ([192, 0, 2, 1], *port).into();
        let flow = Flow::tcp(source, ([203, 0, 113, 1], 1000 + of).into());
        katran.real_for_flow(&flow).unwrap().unwrap().real == Some(real.address())
    };
    (0..FLOWS).filter(goes_there).count()
}

/// The real that the loaded program sends a SYN of some client to.
fn sent_to(katran: &Katran, client: u16) -> Option<std::net::IpAddr> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
    frame.extend([192, 0, 2, 1, 203, 0, 113, 1]);
    frame.extend(client.to_be_bytes());
    frame.extend(1000u16.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    katran.simulate(&frame).unwrap().real
}

/// Clients that the loaded program sends to a real.
fn clients_on(katran: &Katran, real: Real) -> usize {
    let sent_there = |client: &u16| sent_to(katran, *client) == Some(real.address());
    (0..FLOWS).filter(sent_there).count()
}

fn one_real(criterion: &mut Criterion) {
    let mut katran = one_vip();
    let new = real(5000);
    assert_eq!(clients_on(&katran, new), 0);
    katran.add_real(vip(0), new).unwrap();
    let clients = clients_on(&katran, new);
    assert!(
        (5..50).contains(&clients),
        "{clients} clients on the new real"
    );
    katran.remove_real(vip(0), new.address()).unwrap();
    assert_eq!(clients_on(&katran, new), 0, "the real is gone");

    let mut group = criterion.benchmark_group("in force in the kernel, 65,537 slots, 100 reals");
    // Now and then a change has to wait for packets that may still read an old ring, at a fixed
    // number of changes. Three changes in a turn: so that this meets the timed one as often as any.
    let mut weight = 1;
    let mut elsewhere = |katran: &mut Katran| {
        weight = weight % 5 + 1;
        katran.add_real(vip(0), real(0).weight(weight)).unwrap();
    };
    group.bench_function("one real added", |bench| {
        bench.iter_custom(|times| {
            timed(times, |_| {
                let began = Instant::now();
                katran.add_real(vip(0), new).unwrap();
                let elapsed = began.elapsed();
                katran.remove_real(vip(0), new.address()).unwrap();
                elsewhere(&mut katran);
                elapsed
            })
        });
    });
    group.bench_function("one real removed", |bench| {
        bench.iter_custom(|times| {
            timed(times, |_| {
                katran.add_real(vip(0), new).unwrap();
                let began = Instant::now();
                katran.remove_real(vip(0), new.address()).unwrap();
                let elapsed = began.elapsed();
                elsewhere(&mut katran);
                elapsed
            })
        });
    });
}

/// All 100 reals change their weight; those that were heavy become light.
fn one_batch(criterion: &mut Criterion) {
    let mut katran = one_vip();
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
            reals.map(|i| clients_on(&katran, real(i))).sum()
        };
        assert!(on(heavy) > 5 * on(1 - heavy), "weights are in force");
    }
    let mut group = criterion.benchmark_group("in force in the kernel, 65,537 slots, 100 reals");
    group.bench_function("100 weights changed in one batch", |bench| {
        bench.iter_custom(|times| {
            timed(times, |turn| {
                let began = Instant::now();
                katran.modify_reals(vip(0), &batches[turn % 2]).unwrap();
                began.elapsed()
            })
        });
    });
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

fn whole_configuration(criterion: &mut Criterion) {
    let document = document();
    let apply = |_| {
        let mut katran = builder().load().unwrap();
        let began = Instant::now();
        let wanted = State::from_toml(&document).unwrap();
        let changes = katran.apply(&wanted).unwrap();
        let elapsed = began.elapsed();
        assert_eq!(changes.vips_added.len(), usize::from(VIPS));
        assert_eq!(
            changes.reals_added.len(),
            usize::from(VIPS) * usize::from(REALS)
        );
        for index in [0, VIPS / 2, VIPS - 1] {
            let flows = flows_on(&katran, index, real(index * 8 % 4096));
            assert!((5..50).contains(&flows), "{flows} flows on a real of 100");
        }
        elapsed
    };
    let name = "512 VIPs of 100 reals applied from a document";
    if env::args().any(|argument| argument == "--quick") {
        println!("{name}, once: {:.0?}", apply(0));
        return;
    }
    let mut group = criterion.benchmark_group("whole");
    group.sample_size(10);
    group.bench_function(name, |bench| {
        bench.iter_custom(|times| timed(times, apply));
    });
}

fn load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("whole");
    group.sample_size(10);
    group.bench_function("load, flow table of 10,000", |bench| {
        bench.iter_custom(|times| {
            timed(times, |_| {
                let began = Instant::now();
                let katran = builder().load().unwrap();
                let elapsed = began.elapsed();
                drop(katran);
                elapsed
            })
        });
    });
}

/// The sum of what `one` measures, so that what it does before and after is not counted.
fn timed(times: u64, mut one: impl FnMut(usize) -> Duration) -> Duration {
    (0..times as usize).map(&mut one).sum()
}

criterion_group!(benches, one_real, one_batch, whole_configuration, load);
criterion_main!(benches);
