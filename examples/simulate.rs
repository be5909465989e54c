//! What would the balancer do? Runs every frame of a capture, in order, through the program as this
//! kernel loads it, with the VIPs of a configuration file and without an interface.
//!
//! ```text
//! simulate --config lb.toml --read in.pcap [--write out.pcap] [--json report.jsonl]
//! ```
//! `out.pcap` gets every frame as it leaves the program, whatever its verdict, with the time
//! stamps, byte order and resolution of `in.pcap`. The report has a JSON line for each frame, then
//! one with all counters; without `--json` a table is printed. Try it with made-up clients of two
//! VIPs: `--config examples/data/lb.toml --read examples/data/sample.pcap`.
//!
//! A frame that the capture's snap length cut off is run as captured (its IP header still has the
//! full length), marked `"truncated":true` and counted in a warning. A frame that the kernel cannot
//! run has the verdict `ERROR`, is written unchanged, and makes the exit status 1; so does a
//! capture that ends within a frame, after all whole ones have been run.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::simulate;

/// Show what the balancer would do with the frames of a capture, without an interface.
#[derive(Parser)]
#[command(max_term_width = 80)]
struct Arguments {
    #[command(flatten)]
    simulate: simulate::Arguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    common::log();
    common::exit("simulate", simulate::run(&arguments.simulate))
}
