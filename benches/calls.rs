//! The time of calls that block according to their documentation: on a lab's interface, with 1 VIP
//! and with 512, each with 100 reals, and rings of 65,537 slots.
//!
//! cargo bench --bench calls             # a minute
//! cargo bench --bench calls -- --quick  # seconds: only whether it works

#![allow(clippy::unwrap_used)]

mod common;

use std::env;
use std::path::Path;
use std::time::Instant;

use katran::Builder;
use katran::Decap;
use katran::Features;
use katran::Katran;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::state::VipState;
use katran_lab::Host;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::common::Spread;

const REALS: u16 = 100;

fn main() {
    let quick = env::args().any(|argument| argument == "--quick");
    let bench = env::args().any(|argument| argument == "--bench");
    require_root();
    let directory = private_bpf_fs().unwrap().join("katran");
    let host = Host::new("host").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    host.ip("link set eth0 up").unwrap();
    host.ip("link set eth1 up").unwrap();
    let (sizes, rounds): (&[u16], _) = match quick || !bench {
        true => (&[2], 2),
        false => (&[1, 512], 9),
    };
    println!("milliseconds, medians of {rounds} rounds (quartiles)");
    host.run(|| {
        for vips in sizes {
            balancer(&directory, *vips, rounds);
        }
        decapsulator(rounds);
    });
}

/// Calls, and how long each took.
#[derive(Default)]
struct Times(Vec<(&'static str, Vec<f64>)>);

impl Times {
    fn time<T>(&mut self, what: &'static str, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        let took = start.elapsed().as_secs_f64() * 1e3;
        match self.0.iter_mut().find(|(of, _)| *of == what) {
            Some((_, times)) => times.push(took),
            None => self.0.push((what, vec![took])),
        }
        result
    }

    fn report(self, of: &str) {
        for (what, times) in self.0 {
            println!("{of:<10} {what:<34} {:>24}", Spread::of(times).text(3));
        }
    }
}

fn settings(directory: &Path) -> Builder {
    Katran::builder()
        .gateway_mac(common::GATEWAY.into())
        .flow_table_size(1_000_000)
        .max_vips(600)
        .max_reals(4096)
        .pin(directory)
}

fn real(number: u16) -> Real {
    let [high, low] = number.to_be_bytes();
    Real::new([10, 0, high, low].into())
}

fn vip(number: u16) -> Vip {
    Vip::tcp(([203, 0, 113, 1], 1000 + number).into())
}

fn balancer(directory: &Path, vips: u16, rounds: usize) {
    let mut times = Times::default();
    let mut wanted = State::default();
    for number in 0..vips {
        let mut state = VipState::new(vip(number));
        state.reals = (0..REALS)
            .map(|at| real((number * 8 + at) % 4000))
            .collect();
        wanted.vips.push(state);
    }
    for _ in 0..rounds {
        let mut katran = times.time("load", || settings(directory).load()).unwrap();
        times
            .time("apply: all VIPs", || katran.apply(&wanted))
            .unwrap();
        times
            .time("apply: no change", || katran.apply(&wanted))
            .unwrap();
        let mut other = wanted.clone();
        other.vips[0].reals[0] = real(0).weight(5);
        times
            .time("apply: one weight", || katran.apply(&other))
            .unwrap();
        times
            .time("attach", || katran.attach("eth0", XdpMode::Auto))
            .unwrap();
        let new = vip(600);
        times
            .time("add_vip", || katran.add_vip(new, VipFlags::empty()))
            .unwrap();
        times
            .time("add_real", || katran.add_real(new, real(1)))
            .unwrap();
        times.time("remove_vip", || katran.remove_vip(new)).unwrap();
        let found = times.time("diagnose", || katran.diagnose("eth0"));
        assert!(found.unwrap().works());
        times.time("counters", || katran.counters()).unwrap();
        let features = Features::default() | Features::INTROSPECTION;
        times.time("reload", || katran.reload(features)).unwrap();
        katran.reload(Features::default()).unwrap();
        // Another size loads another set of programs and maps.
        let mut other = katran.state();
        let balancer = other.balancer.as_mut().unwrap();
        balancer.flow_table_size = Some(900_000);
        times
            .time("apply: a replacement", || katran.apply(&other))
            .unwrap();
        let mut other = katran.state();
        let balancer = other.balancer.as_mut().unwrap();
        balancer.flow_table_size = Some(1_000_000);
        katran.apply(&other).unwrap();
        times.time("detach", || katran.detach("eth0")).unwrap();
        katran.attach("eth0", XdpMode::Auto).unwrap();
        times.time("drop, pinned", || drop(katran));
        let (katran, _) = times
            .time("adopt", || settings(directory).adopt_or_load())
            .unwrap();
        times.time("Katran::remove", || katran.remove()).unwrap();
    }
    times.report(&format!("{vips} VIPs"));
}

fn decapsulator(rounds: usize) {
    let mut times = Times::default();
    for _ in 0..rounds {
        let mut decap = times.time("load", || Decap::builder().load()).unwrap();
        times
            .time("attach", || decap.attach("eth0", XdpMode::Auto))
            .unwrap();
        let found = times.time("diagnose", || decap.diagnose("eth0", &[]));
        assert!(found.unwrap().works());
        times.time("drop", || drop(decap));
    }
    times.report("Decap");
}
