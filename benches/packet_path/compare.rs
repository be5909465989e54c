//! Katran's own program and this crate's, alternating: a table of both with the ratio of each pair
//! of runs, and a file for `figures`.

use std::fmt;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::balancer;
use crate::common::Spread;
use crate::common::grouped;
use crate::common::machine::Machine;
use crate::common::machine::load;
use crate::common::results_file;
use crate::common::write;
use crate::options::Effort;
use crate::options::Options;
use crate::print_latency;
use crate::timed::Ours;
use crate::traffic::Traffic;
use crate::traffic::traffics;
use crate::turns::Runs;

const RESULTS: &str = "packet_path_peer.json";

/// A comparison, and its conditions.
#[derive(Serialize)]
struct Comparison {
    machine: Machine,
    /// This crate's flow table type.
    table: String,
    /// This crate's flow tracking.
    tracking: String,
    /// For both programs.
    flow_table_entries: u64,
    packets_a_run: u32,
    rounds: usize,
    quick: bool,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    traffic: String,
    /// `None`: each packet is of another flow.
    flows: Option<u32>,
    /// Nanoseconds a packet.
    katran: Spread,
    ours: Spread,
    /// Our time divided by Katran's in the same round.
    ratio: Spread,
}

/// Measures and prints all rows that Katran's program and this crate's have in common; an error
/// says why Katran's cannot be measured.
pub(crate) fn compare(
    options: &Options,
    effort: &Effort,
    cpu: usize,
    object: &Path,
) -> io::Result<()> {
    let mut comparison = Comparison {
        machine: Machine::now(),
        table: options.timed.table.to_string(),
        tracking: options.timed.tracking.to_string(),
        flow_table_entries: effort.flow_table_size,
        packets_a_run: effort.packets,
        rounds: effort.rounds,
        quick: options.timed.quick,
        rows: Vec::new(),
    };
    println!("{}\n{}\n", comparison.machine, options.timed.balancer());
    println!("| traffic | flows | Katran, ns | this crate, ns | ratio |");
    println!("| --- | --- | --- | --- | --- |");
    for traffic in traffics() {
        if !traffic.compared || !traffic.name.contains(&options.filter) {
            continue;
        }
        let katran = balancer(options, effort, &traffic, cpu);
        let peer = traffic.peer(object, &katran, cpu as u32, effort.flow_table_size as u32)?;
        let mut known = 0;
        for &flows in traffic.numbers(effort.flows) {
            let ours = Ours {
                katran: &katran,
                slots: traffic.slots(&options.timed),
            };
            let runs = Runs::take(ours, Some(&peer), &traffic, flows, flows - known, effort);
            known = flows;
            let row = Row::of(&traffic, flows, runs);
            println!("{row}");
            comparison.rows.push(row);
        }
    }
    println!("\nThe machine's load is {:.2} now.", load());
    print_latency();
    if options.complete() {
        let text = serde_json::to_string_pretty(&comparison)?;
        let path = results_file(RESULTS);
        write(&path, &(text + "\n"))?;
        println!("written to {}", path.display());
    }
    Ok(())
}

impl Row {
    fn of(traffic: &Traffic, flows: u32, runs: Runs) -> Self {
        let pairs = runs.ours.iter().zip(&runs.katrans);
        let ratio = Spread::of(pairs.map(|(ours, katrans)| ours / katrans).collect());
        Self {
            traffic: traffic.name.to_owned(),
            flows: traffic.only.is_none().then_some(flows),
            katran: Spread::of(runs.katrans),
            ours: Spread::of(runs.ours),
            ratio,
        }
    }
}

impl fmt::Display for Row {
    /// A row of a Markdown table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flows = match self.flows {
            Some(flows) => grouped(flows.into()),
            None => "all different".to_owned(),
        };
        let [katran, ours] = [self.katran, self.ours].map(|time| time.text(1));
        let ratio = self.ratio.text(2);
        let name = &self.traffic;
        write!(f, "| {name} | {flows} | {katran} | {ours} | {ratio} |")
    }
}
