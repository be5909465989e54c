//! The backend's end of the tunnel: strips what the balancer wrapped, before the host's network
//! stack sees it, and prints its counters every second.
//!
//! ```text
//! decap --interface eth0 [--mode auto|native|generic] [--tc] [--tc-hook auto|tcx|clsact]
//!       [--destination ADDRESS]... [--from PREFIX]... [--to PREFIX]... [--gue-port PORT]
//!       [--server-id NUMBER] [--pin /sys/fs/bpf/katran_decap]
//! decap --remove --pin /sys/fs/bpf/katran_decap
//! ```
//! `--from` is where the balancers' tunnels come from, `--to` the VIPs: without them, anybody who reaches this
//! host can have packets with made-up sources appear on it.
//! With `--tc` it works at tc ingress instead of in XDP; with `--check --vip 203.0.113.1` it only prints
//! what would keep this backend from answering.
//! The host holds the VIPs on `lo`. An interface that is removed and made again is attached to again. SIGINT and SIGTERM
//! detach and end it. With `--pin` tunnels are stripped on, whatever ends the program, until `--remove`; the next start goes
//! on with it, and brings it to what its options say.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::decap;

/// Strips the balancer's tunnels (IP in IP, GUE) on a backend.
#[derive(Parser)]
#[command(max_term_width = 80)]
struct Arguments {
    #[command(flatten)]
    decap: decap::Arguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    common::log();
    common::exit("decap", decap::run(&arguments.decap))
}
