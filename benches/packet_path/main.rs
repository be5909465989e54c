//! Nanoseconds a packet, as docs/performance.md describes: pristine frames of many flows through
//! the loaded program, the wrapper's own time subtracted, alternating with a fixed yardstick (one
//! hash lookup in the same wrapper), medians of many runs. What is timed is checked by its
//! counters, run by run, and by the frames that come out.
//!
//! cargo bench --bench packet_path               # minutes; writes what `figures` draws
//! cargo bench --bench packet_path -- --quick    # seconds, for whether it works
//! cargo bench --bench packet_path -- FILTER     # rows whose name contains it
//! cargo bench --bench packet_path -- --table KIND
//! cargo bench --bench packet_path -- --check    # fails if a row is slower than the baseline

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod counts;
mod results;
mod traffic;

use std::env;
use std::process::ExitCode;

use katran::FlowTableKind;
use katran::Katran;
use katran::flows::Verdict;
use katran_lab::allowed_cpus;
use katran_lab::require_root;
use katran_lab::stay_on;
use katran_yardstick::Yardstick;
use katran_yardstick::memory_latency;

use crate::common::Spread;
use crate::common::settings;
use crate::counts::Counts;
use crate::results::Baseline;
use crate::results::Results;
use crate::results::Row;
use crate::traffic::Expected;
use crate::traffic::PASS;
use crate::traffic::Traffic;
use crate::traffic::traffics;

/// How often a row that seems slower than the baseline is measured again before it is.
const SECOND_LOOKS: usize = 2;

struct Effort {
    packets: u32,
    rounds: usize,
    flows: &'static [u32],
    /// Entries: far more than flows, so that hardly one is evicted.
    flow_table_size: u64,
}

const FULL: Effort = Effort {
    packets: 2_000_000,
    rounds: 15,
    flows: &[1, 1 << 10, 1 << 16, 1 << 20],
    flow_table_size: 4_000_000,
};
const QUICK: Effort = Effort {
    packets: 200_000,
    rounds: 5,
    flows: &[1, 1 << 16],
    flow_table_size: 262_144,
};

/// What the command line asks for.
#[derive(Default)]
struct Options {
    quick: bool,
    check: bool,
    table: FlowTableKind,
    filter: String,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut bench = false;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--check" => options.check = true,
                "--bench" => bench = true,
                "--table" => {
                    let kind = arguments.next().unwrap_or_default();
                    options.table = kind.parse().map_err(|error| format!("{error}"))?;
                }
                name if !name.starts_with('-') => options.filter = argument,
                _ => {
                    return Err(format!(
                        "{argument} is not known; there are --quick, --check, --table KIND and \
                         FILTER"
                    ));
                }
            }
        }
        // Like criterion: without --bench it is a test that the bench works.
        options.quick |= !bench;
        if options.quick && options.check {
            return Err("a quick run cannot be checked against the baseline".to_owned());
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("packet_path: {error}");
            return ExitCode::from(2);
        }
    };
    require_root();
    let effort = if options.quick { QUICK } else { FULL };
    let baseline = if options.check {
        match Baseline::read(&options.table.to_string(), effort.flow_table_size) {
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

    let mut results = Results {
        table: options.table.to_string(),
        flow_table_entries: effort.flow_table_size,
        quick: options.quick,
        rows: Vec::new(),
    };
    let (mut instructions, mut slower) = (0, Vec::new());
    let all = traffics();
    for traffic in all.iter().filter(|row| row.name.contains(&options.filter)) {
        let katran = traffic.balancer(settings(
            options.table,
            effort.flow_table_size,
            traffic.flood_threshold,
            &[cpu as u32],
        ));
        instructions = katran.stats().program_size().unwrap() / 8;
        let only = traffic.only.map(|flows| [flows]);
        let numbers = only.as_ref().map_or(effort.flows, |only| only.as_slice());
        let mut known = 0;
        for &flows in numbers {
            let mut row = measure(&katran, traffic, flows, flows - known, &effort);
            known = flows;
            print(&row);
            let most = baseline.as_ref().and_then(|b| b.most(traffic.name, flows));
            if let Some(most) = most {
                for _ in 0..SECOND_LOOKS {
                    if row.ratio <= most {
                        break;
                    }
                    println!("  more than {most:.2}, measured again");
                    row = measure(&katran, traffic, flows, 0, &effort);
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
    println!("the program has {instructions} instructions after the verifier");
    print_latency();
    if options.filter.is_empty() {
        results.write();
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

fn print_head(options: &Options, effort: &Effort, cpu: usize) {
    println!(
        "{} packets a run, medians of {} runs (quartiles), wrapper subtracted; CPU {cpu}, flow \
         table {} of {} entries; ratio to one hash lookup in the same wrapper.\n\
         Katran's figures are the specification's, from another machine of this kind: compare \
         machines by the lookup.",
        effort.packets, effort.rounds, options.table, effort.flow_table_size
    );
    print_latency();
    println!(
        "{:<30} {:>10} {:>18} {:>10} {:>6} {:>10} {:>7}",
        "traffic", "flows", "ns a packet", "lookup, ns", "ratio", "Katran, ns", "of that"
    );
}

/// What a packet of a flow that is in no cache has to wait for at least.
fn print_latency() {
    let [near, far] = [8 << 20, 128 << 20].map(memory_latency);
    println!("a cache line of 8 MiB at random takes {near:.0} ns now, one of 128 MiB {far:.0} ns");
}

fn print(row: &Row) {
    let spread = Spread {
        median: row.ns_median,
        quartiles: row.ns_quartiles,
    };
    let (katran, share) = match row.katran_ns {
        Some([low, high]) => (
            if low == high {
                format!("{low:.0}")
            } else {
                format!("{low:.0}..{high:.0}")
            },
            format!("{:.2}", row.ns_median / ((low + high) / 2.0)),
        ),
        None => Default::default(),
    };
    println!(
        "{:<30} {:>10} {:>18} {:>10.1} {:>6.2} {katran:>10} {share:>7}",
        row.traffic,
        row.flows,
        spread.text(usize::from(row.ns_median < 100.0)),
        row.lookup_ns,
        row.ratio,
    );
}

fn measure(katran: &Katran, traffic: &Traffic, flows: u32, unknown: u32, effort: &Effort) -> Row {
    let stick = Yardstick::new(&traffic.frame, flows).unwrap();

    // All flows once, so that the flow table knows them; if there is no end of them, until it is
    // full.
    let first = u64::from(flows).min(2 * effort.flow_table_size) as u32;
    let counts = Counts::of(katran);
    let ran = stick.run(katran.program_fd(), first).unwrap();
    assert_eq!(ran.action, traffic.action(), "{}", traffic.name);
    counts.check(katran, traffic, first, unknown);

    let (mut ours, mut lookups) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let run = |program| stick.run(program, effort.packets).unwrap();
        let wrapper = run(stick.nothing());
        let lookup = run(stick.one_lookup());
        assert_eq!((wrapper.action, lookup.action), (PASS, PASS));
        let counts = Counts::of(katran);
        let our = run(katran.program_fd());
        assert_eq!(our.action, traffic.action(), "{}", traffic.name);
        counts.check(katran, traffic, effort.packets, 0);
        ours.push(our.nanoseconds - wrapper.nanoseconds);
        lookups.push(lookup.nanoseconds - wrapper.nanoseconds);
    }
    for flow in [0, flows / 2, flows - 1] {
        check_frame(katran, &stick, traffic, flow);
    }

    let (ours, lookup) = (Spread::of(ours), Spread::of(lookups));
    Row {
        traffic: traffic.name.to_owned(),
        flows,
        ns_median: ours.median,
        ns_quartiles: ours.quartiles,
        lookup_ns: lookup.median,
        ratio: ours.median / lookup.median,
        katran_ns: traffic.katran_ns(flows),
    }
}

/// What comes out of the wrapper is what the program makes of that flow's frame on its own; a
/// frame that was sent holds the one that came in.
fn check_frame(katran: &Katran, stick: &Yardstick, traffic: &Traffic, flow: u32) {
    let frame = stick.frame(flow);
    let (action, out) = stick.run_flow(katran.program_fd(), flow).unwrap();
    let simulation = katran.simulate(&frame).unwrap();
    let name = traffic.name;
    assert_eq!(action, traffic.action(), "{name}, flow {flow}");
    assert_eq!(out, simulation.frame, "{name}, flow {flow}");
    if traffic.expected == Expected::Passed {
        assert_eq!(simulation.verdict, Verdict::Pass, "{name}, flow {flow}");
        assert_eq!(out, frame, "{name}, flow {flow}");
    } else {
        assert_eq!(simulation.verdict, Verdict::Tx, "{name}, flow {flow}");
        let outer = traffic.outer_bytes();
        assert_eq!(out[14 + outer..], frame[14..], "{name}, flow {flow}");
    }
}
