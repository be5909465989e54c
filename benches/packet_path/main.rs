//! Nanoseconds a packet, as docs/performance.md describes: pristine frames of many flows through
//! the loaded program, minus the wrapper's own time, alternating with a fixed yardstick (one hash
//! lookup in the same wrapper), medians of many runs. The counters of every run and the frames that
//! leave are checked.
//!
//! cargo bench --bench packet_path               # minutes
//! cargo bench --bench packet_path -- --quick    # seconds: only whether it works
//! cargo bench --bench packet_path -- FILTER     # rows whose name contains it
//! cargo bench --bench packet_path -- --table KIND --tracking KIND
//! cargo bench --bench packet_path -- --check    # fails if a row is slower than the baseline
//! cargo bench --bench packet_path -- --peer OBJECT [--changed]
//!
//! `--peer` also times Katran's own program, alternately with this crate's: the same frames, VIPs,
//! reals, rings and flow table sizes, in the same run; `figures` draws it. Compare by the ratio of
//! each pair of runs. `--changed` measures after every slot of every ring has changed its real.
//! Without `--peer` the last rows are those of 512 busy VIPs (`many_vips.rs`).

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod compare;
mod counts;
mod many_vips;
mod options;
mod results;
mod timed;
mod traffic;
mod turns;

use std::env;
use std::process::ExitCode;

use katran::Katran;
use katran_lab::allowed_cpus;
use katran_lab::require_root;
use katran_lab::stay_on;
use katran_yardstick::memory_latency;

use crate::common::Spread;
use crate::options::Effort;
use crate::options::Options;
use crate::results::Baseline;
use crate::results::Results;
use crate::results::Row;
use crate::timed::Ours;
use crate::traffic::Traffic;
use crate::traffic::traffics;
use crate::turns::Runs;

/// How often a row that seems slower than the baseline is measured again.
const SECOND_LOOKS: usize = 2;

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("packet_path: {error}");
            return ExitCode::from(2);
        }
    };
    require_root();
    let effort = options.effort();
    let baseline = if options.check {
        match Baseline::read(&options.timed, effort.flow_table_size) {
            Ok(baseline) => Some(baseline),
            Err(error) => {
                eprintln!("packet_path: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        None
    };
    // One CPU, so that one flow table sees all flows.
    let cpu = allowed_cpus()[0];
    stay_on(cpu);
    print_head(&options, &effort, cpu);
    if let Some(object) = &options.timed.peer {
        return match compare::compare(&options, &effort, cpu, object) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("packet_path: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let slower = measure_all(&options, &effort, cpu, baseline.as_ref());
    if !options.check {
        many_vips::measure(&options, &effort, cpu);
    }
    for row in &slower {
        eprintln!("packet_path: slower than the baseline: {row}");
    }
    if slower.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Measures this crate's program; returns the rows that are slower than the baseline.
fn measure_all(
    options: &Options,
    effort: &Effort,
    cpu: usize,
    baseline: Option<&Baseline>,
) -> Vec<String> {
    let mut results = Results {
        table: options.timed.table.to_string(),
        tracking: options.timed.tracking.to_string(),
        flow_table_entries: effort.flow_table_size,
        quick: options.timed.quick,
        rows: Vec::new(),
    };
    let (mut instructions, mut slower) = (0, Vec::new());
    print_titles();
    let all = traffics();
    for traffic in all.iter().filter(|row| row.name.contains(&options.filter)) {
        let katran = balancer(options, effort, traffic, cpu);
        instructions = katran.stats().program_size().unwrap() / 8;
        let mut known = 0;
        for &flows in traffic.numbers(effort.flows) {
            let ours = Ours {
                katran: &katran,
                slots: traffic.slots(&options.timed),
            };
            let mut row = measure(ours, traffic, flows, flows - known, effort);
            known = flows;
            print(&row);
            let most = baseline.and_then(|b| b.most(traffic.name, flows));
            if let Some(most) = most {
                for _ in 0..SECOND_LOOKS {
                    if row.ratio <= most {
                        break;
                    }
                    println!("  more than {most:.2}, measured again");
                    row = measure(ours, traffic, flows, 0, effort);
                    print(&row);
                }
                if row.ratio > most {
                    slower.push(format!(
                        "{}, {flows} flows: {:.2}, at most {most:.2}",
                        row.traffic, row.ratio
                    ));
                }
            }
            results.rows.push(row);
        }
    }
    if instructions > 0 {
        println!("the program has {instructions} instructions after the verifier");
    }
    print_latency();
    if options.complete() {
        results.write();
    }
    slower
}

/// A row's balancer, after the change if requested.
fn balancer(options: &Options, effort: &Effort, traffic: &Traffic, cpu: usize) -> Katran {
    let timed = &options.timed;
    let settings = timed.settings(effort.flow_table_size, traffic.flood_threshold, cpu);
    let mut katran = traffic.balancer(settings);
    if timed.changed {
        traffic.change_every_slot(&mut katran);
    }
    katran
}

fn print_head(options: &Options, effort: &Effort, cpu: usize) {
    println!(
        "{} packets a run, medians of {} runs (quartiles), wrapper subtracted; CPU {cpu}; a \
         flow table of {} entries; {}.",
        effort.packets,
        effort.rounds,
        effort.flow_table_size,
        options.timed.balancer()
    );
    print_latency();
}

fn print_titles() {
    println!(
        "Ratio: to one hash lookup in the same wrapper, by which to compare machines.\n\
         {:<34} {:>10} {:>18} {:>10} {:>6}",
        "traffic", "flows", "ns a packet", "lookup, ns", "ratio"
    );
}

/// Prints the least that a packet of an uncached flow must wait.
fn print_latency() {
    let [near, far] = [8 << 20, 128 << 20].map(memory_latency);
    println!("a cache line of 8 MiB at random takes {near:.0} ns now, one of 128 MiB {far:.0} ns");
}

fn print(row: &Row) {
    let spread = Spread {
        median: row.ns_median,
        quartiles: row.ns_quartiles,
    };
    println!(
        "{:<34} {:>10} {:>18} {:>10.1} {:>6.2}",
        row.traffic,
        row.flows,
        spread.text(usize::from(row.ns_median < 100.0)),
        row.lookup_ns,
        row.ratio,
    );
}

fn measure(ours: Ours<'_>, traffic: &Traffic, flows: u32, unknown: u32, effort: &Effort) -> Row {
    let runs = Runs::take(ours, None, traffic, flows, unknown, effort);
    let (ours, lookup) = (Spread::of(runs.ours), Spread::of(runs.lookups));
    Row {
        traffic: traffic.name.to_owned(),
        flows,
        ns_median: ours.median,
        ns_quartiles: ours.quartiles,
        lookup_ns: lookup.median,
        ratio: ours.median / lookup.median,
    }
}
