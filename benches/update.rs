//! The control path, end to end in the kernel: one real added, a hundred changed in one batch, a
//! whole configuration applied, and loading.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use criterion::BatchSize;
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

fn katran_with(reals: u16) -> Katran {
    require_root();
    let mut katran = builder().load().unwrap();
    katran.add_vip(vip(0), VipFlags::empty()).unwrap();
    let changes: Vec<_> = (0..reals)
        .map(|index| RealChange::Add(real(index)))
        .collect();
    katran.modify_reals(vip(0), &changes).unwrap();
    katran
}

/// How many of some flows the ring gives to a real.
fn flows_on(katran: &Katran, real: Real) -> usize {
    (0..2000u16)
        .filter(|port| {
            let flow = Flow::tcp(
                ([192, 0, 2, 1], *port).into(),
                ([203, 0, 113, 1], 1000).into(),
            );
            katran.real_for_flow(&flow).unwrap().unwrap().real == Some(real.address())
        })
        .count()
}

fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("in force in the kernel, 65,537 slots");
    group.sample_size(20);
    for reals in [100, 1000] {
        let mut katran = katran_with(reals);
        let new = real(5000);
        katran.add_real(vip(0), new).unwrap();
        assert!(
            flows_on(&katran, new) > 0 || reals > 500,
            "the new real is in force"
        );
        katran.remove_real(vip(0), new.address()).unwrap();
        assert_eq!(
            flows_on(&katran, new),
            0,
            "the removed real is out of force"
        );
        group.bench_function(
            format!("one real added to and removed from {reals}"),
            |bench| {
                bench.iter(|| {
                    katran.add_real(vip(0), new).unwrap();
                    katran.remove_real(vip(0), new.address()).unwrap();
                });
            },
        );
    }
    let mut katran = katran_with(100);
    let weigh = |weight| -> Vec<RealChange> {
        (0..100)
            .map(|index| RealChange::Add(real(index).weight(weight + u32::from(index))))
            .collect()
    };
    let batches = [weigh(10), weigh(20)];
    group.bench_function("two batches of 100 weights", |bench| {
        bench.iter(|| {
            for batch in &batches {
                katran.modify_reals(vip(0), batch).unwrap();
            }
        });
    });
    group.finish();
}

fn whole(criterion: &mut Criterion) {
    require_root();
    let mut state = State::default();
    for index in 0..512 {
        let mut vip = VipState::new(vip(index));
        vip.reals = (0..100)
            .map(|member| real(index % 16 * 100 + member))
            .collect();
        state.vips.push(vip);
    }
    let mut group = criterion.benchmark_group("whole");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    group.bench_function("512 VIPs of 100 reals applied", |bench| {
        bench.iter_batched(
            || builder().load().unwrap(),
            |mut katran| {
                let changes = katran.apply(&state).unwrap();
                assert_eq!(changes.vips_added.len(), 512);
                katran
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("load, small flow tables", |bench| {
        bench.iter_with_large_drop(|| black_box(builder().load().unwrap()));
    });
    group.finish();
}

criterion_group!(benches, changes, whole);
criterion_main!(benches);
