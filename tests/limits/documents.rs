//! Large documents: the time and memory to read and write one.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use katran::ServerId;
use katran::SourceRoute;
use katran::State;
use katran::state::ServerIdState;
use katran::state::VipState;

use super::alone;
use super::claim;
use super::cpu_time_of;
use super::real;
use super::vip;

/// A debug build takes a tenth of everything.
const SERVER_IDS: u32 = if cfg!(debug_assertions) {
    100_000
} else {
    1_000_000
};
const ROUTES: u32 = SERVER_IDS / 10;

/// The process's memory in bytes: current, and peak since [`forget_peak`].
fn memory() -> [usize; 2] {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kilobytes.parse::<usize>().unwrap() * 1024
    })
}

/// The most memory that `f` uses beyond what the process had before.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize, Duration) {
    // proc(5): 5 resets the peak to the current size.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let [before, _] = memory();
    let (result, took) = cpu_time_of(f);
    let [_, peak] = memory();
    (result, peak.saturating_sub(before), took)
}

/// Every id and route in its own table, as `to_toml` writes them.
fn document() -> String {
    let mut text = String::new();
    let address = |i: u32| real(i % 16_384).address();
    for id in 1..=SERVER_IDS {
        let real = address(id);
        write!(text, "[[server_id]]\nid = {id}\nreal = \"{real}\"\n\n").unwrap();
    }
    for route in 0..ROUTES {
        let [_, a, b, c] = (route << 4).to_be_bytes();
        let real = address(route);
        let prefix = format!("100.{}.{b}.{c}/28", 64 + a);
        write!(
            text,
            "[[source_route]]\nprefix = \"{prefix}\"\nreal = \"{real}\"\n\n"
        )
        .unwrap();
    }
    // Blank lines are only between tables.
    text.truncate(text.len() - 1);
    text.shrink_to_fit();
    text
}

#[test]
fn a_million_server_ids_are_read_in_five_times_their_text() {
    alone(
        "documents::a_million_server_ids_are_read_in_five_times_their_text",
        || {
            let text = document();
            let (state, peak, took) = peak_of(|| State::from_toml(&text).unwrap());
            let kept = text.len() + peak;
            println!(
                "{} bytes of text, {peak} bytes more while it is read: {:.2} times the text",
                text.len(),
                kept as f64 / text.len() as f64
            );
            assert_eq!(state.server_ids.len(), SERVER_IDS as usize);
            assert_eq!(state.source_routes.len(), ROUTES as usize);
            assert!(kept <= 5 * text.len(), "{kept} of {}", text.len());
            let limit = Duration::from_secs(3) * SERVER_IDS / 1_000_000;
            claim("reading", took, limit, 10);

            let (written, peak, took) = peak_of(|| state.to_toml().unwrap());
            println!("{peak} bytes more while it is written");
            assert!(written == text, "written differently");
            assert!(peak <= 5 * text.len(), "{peak} of {}", text.len());
            claim("writing", took, limit, 10);
        },
    );
}

/// A table is parsed as a whole, so the largest VIP determines the memory needed.
#[test]
fn a_vip_of_65_535_reals_is_read_in_30_times_its_text() {
    alone(
        "documents::a_vip_of_65_535_reals_is_read_in_30_times_its_text",
        || {
            let mut state = State::default();
            let mut of = VipState::new(vip(0));
            of.reals = (0..65_535).map(|i| real(i).weight(i)).collect();
            state.vips.push(of);
            let text = state.to_toml().unwrap();
            let (read, peak, took) = peak_of(|| State::from_toml(&text).unwrap());
            println!("{} bytes of text, {peak} more", text.len());
            assert!(read == state);
            assert!(peak <= 30 * text.len(), "{peak} of {}", text.len());
            claim("reading", took, Duration::from_millis(300), 10);
        },
    );
}

/// The memory of the state; `apply` also copies it once for the comparison.
#[test]
fn an_id_of_a_state_takes_32_bytes_at_most() {
    let id = ServerIdState::new(ServerId::new(1, IpAddr::from([198, 51, 100, 1])));
    assert!(size_of_val(&id) <= 32 && size_of::<SourceRoute>() <= 40);
}
