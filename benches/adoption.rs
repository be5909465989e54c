//! How long a new process takes to adopt a pinned balancer (`Builder::adopt`) whose pinned programs
//! are its own, so that it loads none.
//!
//! cargo bench --bench adoption             # a minute; 512 VIPs of 200 reals, 1,000,000 server ids
//! cargo bench --bench adoption -- --quick  # seconds: only whether it works

#![allow(clippy::unwrap_used)]

mod common;

use std::env;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use katran::Builder;
use katran::Features;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::ServerId;
use katran::Start;
use katran::State;
use katran::Vip;
use katran::state::ServerIdState;
use katran::state::VipState;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::common::Spread;

/// Reals of each VIP.
const REALS: u32 = 200;
/// Reals in all, of which each VIP has some.
const ALL_REALS: u32 = 4000;

fn main() {
    let quick = env::args().any(|argument| argument == "--quick");
    let bench = env::args().any(|argument| argument == "--bench");
    require_root();
    let directory = private_bpf_fs().unwrap().join("katran");
    let (sizes, rounds): (&[(u32, u32)], _) = match quick || !bench {
        true => (&[(8, 1_000)], 3),
        false => (&[(1, 0), (512, 0), (512, 1_000_000)], 9),
    };
    println!("milliseconds, medians of {rounds} rounds (quartiles)");
    println!(
        "{:>5} {:>6} {:>10} {:>22} {:>22}",
        "VIPs", "reals", "server ids", "adopt", "drop"
    );
    for &(vips, ids) in sizes {
        adopt(&directory, vips, ids, rounds);
    }
}

fn settings(directory: &Path) -> Builder {
    Katran::builder()
        .gateway_mac(common::GATEWAY.into())
        .flow_table_size(10_000)
        .max_vips(512)
        .max_reals(4096)
        .max_server_ids(1_000_000)
        .features(Features::default() | Features::TCP_SERVER_ID)
        .pin(directory)
}

fn real(number: u32) -> IpAddr {
    IpAddr::from([10, 0, (number / 250) as u8, (number % 250) as u8 + 1])
}

fn wanted(vips: u32, ids: u32) -> State {
    let vips = (0..vips).map(|number| {
        let address = IpAddr::from([203, 0, (number / 250) as u8, (number % 250) as u8 + 1]);
        let vip = Vip::new((address, 443).into(), Protocol::Tcp);
        let reals = (0..REALS).map(|at| Real::new(real((number * 7 + at) % ALL_REALS)));
        let mut state = VipState::new(vip);
        state.reals = reals.collect();
        state
    });
    let ids = (1..=ids).map(|id| ServerIdState::new(ServerId::new(id, real(id % REALS))));
    let mut state = State::default();
    state.vips = vips.collect();
    state.server_ids = ids.collect();
    state
}

fn adopt(directory: &Path, vips: u32, ids: u32, rounds: usize) {
    let mut katran = settings(directory).load().unwrap();
    let mut state = wanted(vips, ids);
    state.balancer = katran.state().balancer;
    katran.apply(&state).unwrap();
    let state = katran.state();
    drop(katran);
    let milliseconds = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    let (mut adopting, mut dropping) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let (katran, how) = settings(directory).adopt_or_load().unwrap();
        adopting.push(milliseconds(start));
        assert!(matches!(how, Start::Adopted { .. }), "{how:?}");
        assert!(katran.state() == state, "it is another balancer");
        let start = Instant::now();
        drop(katran);
        dropping.push(milliseconds(start));
    }
    println!(
        "{vips:>5} {REALS:>6} {ids:>10} {:>22} {:>22}",
        Spread::of(adopting).text(0),
        Spread::of(dropping).text(0),
    );
    katran::remove(PathBuf::from(directory)).unwrap();
}
