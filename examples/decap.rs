//! The backend's end of the tunnel: strips the balancer's outer headers before the network stack
//! sees the packets, and prints counters every second.
//!
//! ```text
//! decap --interface eth0 [--mode auto|native|generic] [--tc] [--tc-hook auto|tcx|clsact]
//!       [--destination ADDRESS]... [--from PREFIX]... [--to PREFIX]... [--gue-port PORT]
//!       [--server-id NUMBER] [--pin /sys/fs/bpf/katran_decap]
//! decap --remove --pin /sys/fs/bpf/katran_decap
//! ```
//! `--from` names the balancers' outer sources, `--to` the VIPs. Without them, anybody who reaches
//! this host can make packets with forged sources appear on it. With `--tc` it works at tc ingress
//! instead of XDP. `--check --vip 203.0.113.1` only checks whether this backend can answer clients.
//! The host must have the VIPs on `lo`. The program attaches again to an interface that is removed
//! and created again. SIGINT and SIGTERM detach and end it. With `--pin`, stripping continues after
//! the program's end, until `--remove`; the next start adopts it and applies its own options.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::decap;

/// Strip the balancer's tunnels (IP in IP, GUE) on a backend.
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
