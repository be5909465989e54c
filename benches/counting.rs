//! How long it takes to count the flow tables' entries by VIP (`Flows::count`), and how long the
//! longest part of an incremental count (`Flows::recount`), during which a lock may be held.
//!
//! cargo bench --bench counting             # two minutes; needs 1 GB
//! cargo bench --bench counting -- --quick  # seconds: only whether it works

#![allow(clippy::unwrap_used)]

mod common;

use std::env;
use std::time::Duration;

use katran::FlowTableKind;
use katran::FlowTracking;
use katran_lab::allowed_cpus;
use katran_lab::require_root;
use katran_lab::stay_on;
use katran_yardstick::Yardstick;
use nix::time::ClockId;

use crate::common::NO_FLOOD_GUARD;
use crate::common::PORT;
use crate::common::SYN;
use crate::common::Spread;
use crate::common::TCP;
use crate::common::frame;

/// The configured flows of the one CPU's table; at this number its sets are full, and beyond it
/// evicts.
const FLOW_TABLE_SIZE: u64 = 4_000_000;

fn main() {
    let quick = env::args().any(|argument| argument == "--quick");
    let bench = env::args().any(|argument| argument == "--bench");
    require_root();
    let (flows, rounds): (&[u32], _) = match quick || !bench {
        true => (&[1 << 10], 3),
        false => (&[1 << 10, 1 << 16, 1 << 20, 4_000_000], 15),
    };
    let cpu = allowed_cpus()[0];
    stay_on(cpu);
    println!(
        "table of {FLOW_TABLE_SIZE} flows on one CPU; milliseconds of CPU time, medians of {rounds} rounds (quartiles)"
    );
    println!(
        "{:<16} {:>9} {:>9} {:>22} {:>22} {:>6}",
        "table", "flows", "entries", "at once", "longest part", "parts"
    );
    for kind in [FlowTableKind::SetAssociative, FlowTableKind::KernelLru] {
        for &flows in flows {
            count(kind, flows, rounds, cpu as u32);
        }
    }
}

/// The CPU time that this thread has used so far.
fn cpu_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into()
}

fn count(kind: FlowTableKind, flows: u32, rounds: usize, cpu: u32) {
    let settings = common::settings(kind, FLOW_TABLE_SIZE, Some(NO_FLOOD_GUARD), &[cpu]);
    let katran = common::serve(settings.flow_tracking(FlowTracking::All));
    let syn = frame(false, TCP, SYN, PORT);
    let stick = Yardstick::new(&syn, flows).unwrap();
    stick.run(katran.program_fd(), flows).unwrap();
    let misses = katran.stats().flow_table().unwrap().misses;
    assert_eq!(misses, u64::from(flows), "each flow is remembered");

    let milliseconds = |start: Duration| (cpu_time() - start).as_secs_f64() * 1e3;
    let (mut at_once, mut longest) = (Vec::new(), Vec::new());
    let (mut entries, mut parts) = (0, 0);
    for _ in 0..rounds {
        let start = cpu_time();
        let mut count = katran.flows().count().unwrap();
        at_once.push(milliseconds(start));
        entries = count.vips().map(|(_, entries)| entries).sum();
        let mut longest_part = 0.0f64;
        parts = 0;
        loop {
            let start = cpu_time();
            let is_over = katran.flows().recount(&mut count, Duration::ZERO).unwrap();
            longest_part = longest_part.max(milliseconds(start));
            parts += 1;
            if is_over {
                break;
            }
        }
        longest.push(longest_part);
        let again: u64 = count.vips().map(|(_, entries)| entries).sum();
        assert_eq!(again, entries);
    }
    // A set may have more flows than entries.
    assert!(entries <= flows.into() && entries > u64::from(flows) * 9 / 10);
    println!(
        "{:<16} {flows:>9} {entries:>9} {:>22} {:>22} {parts:>6}",
        kind.to_string(),
        Spread::of(at_once).text(2),
        Spread::of(longest).text(2),
    );
}
