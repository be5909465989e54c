//! How long it takes to build a ring of 65,537 slots.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use katran::Endpoint;
use katran::HashFunction;
use katran::Ring;
use katran::RingSize;

fn build_rings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring/65537");
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for function in [HashFunction::Maglev, HashFunction::MaglevV2] {
        for reals in [10, 100, 400, 1000, 4000] {
            let endpoints = endpoints(reals, |i| 1 + u32::from(i - 1) * 37 % 100);
            let id = BenchmarkId::new(function.to_string(), reals);
            group.bench_with_input(id, &endpoints, |bencher, endpoints| {
                bencher.iter(|| Ring::build(function, RingSize::DEFAULT, black_box(endpoints)));
            });
        }
    }
    group.finish();
}

/// Reals 10.0.0.1 and on, with a weight for each.
fn endpoints(reals: u16, weight: impl Fn(u16) -> u32) -> Vec<Endpoint> {
    (1..=reals)
        .map(|i| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + u32::from(i));
            Endpoint::new(i, address.into(), weight(i))
        })
        .collect()
}

criterion_group!(benches, build_rings);
criterion_main!(benches);
