//! The load balancer as one program: `run` balances, probes, serves metrics and takes commands; the others look at
//! the running one, change it, or do what needs no balancer.
//!
//! ```text
//! katran run --config lb.toml --interface eth0 [--pin DIR] [--listen] [--probe] [--socket PATH]
//! katran check lb.toml [--interface eth0]      is it right, and would anything keep it from working?
//! katran status [--json]                       who gets what, health, drains, attachments, problems
//! katran apply lb.toml [--dry-run]             another document, without a restart
//! katran drain 198.51.100.1 [VIP] [--wait]     no new flows; when may it be switched off?
//! katran top                                   the same, live
//! katran monitor [--directory DIR]             noteworthy packets
//! katran remove --pin DIR                      takes away a balancer, or decapsulator, that is pinned
//! katran simulate, katran decap, katran root   see the examples of these names
//! katran completions SHELL, katran man DIR
//! ```
//! `status`, `apply`, `drain`, `top` and `monitor` speak to `run` by its Unix socket; `socket.rs` describes the protocol.

mod check;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod drain;
mod metrics;
mod monitor;
mod options;
mod page;
mod pages;
mod report;
mod run;
mod socket;
mod status;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// A layer-4 load balancer: XDP, Maglev hashing, IP in IP, direct server return.
#[derive(Parser)]
#[command(name = "katran", version, max_term_width = 80)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Balance the VIPs of a configuration file, until SIGINT or SIGTERM
    Run(Box<run::Arguments>),
    /// Is a configuration file right, and would anything keep it from working?
    Check(check::Arguments),
    /// Give the running balancer another document
    Apply(client::apply::Arguments),
    /// What the running balancer does: traffic, health, drains, problems
    Status(status::Arguments),
    /// Send no new flows to a backend (UDP: after udp_timeout), and tell when it may be switched off
    Drain(drain::Arguments),
    /// Watch the running balancer's traffic
    Top(top::Arguments),
    /// Watch noteworthy packets of the running balancer
    Monitor(monitor::Arguments),
    /// What would the balancer do with the frames of a capture?
    Simulate(common::simulate::Arguments),
    /// Strip the balancer's tunnels, on a backend
    Decap(common::decap::Arguments),
    /// Share an interface between several XDP programs
    #[command(subcommand)]
    Root(common::root::Arguments),
    /// Take away a balancer, or decapsulator, that is pinned
    Remove {
        /// Where it is pinned
        #[arg(long, value_name = "DIR")]
        pin: PathBuf,
    },
    /// Print what makes a shell complete these commands
    Completions { shell: clap_complete::Shell },
    /// Write manual pages, one for each command
    Man {
        /// Where to; it must exist
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    // It has the log on its screen.
    if !matches!(command, Command::Top(_)) {
        common::log();
    }
    let (name, done) = match command {
        Command::Run(arguments) => ("run", run::run(*arguments)),
        Command::Check(arguments) => ("check", check::run(&arguments)),
        Command::Apply(arguments) => ("apply", client::apply::run(&arguments)),
        Command::Status(arguments) => ("status", status::run(&arguments)),
        Command::Drain(arguments) => ("drain", drain::run(&arguments)),
        Command::Top(arguments) => ("top", top::run(&arguments)),
        Command::Monitor(arguments) => ("monitor", monitor::run(&arguments)),
        Command::Simulate(arguments) => ("simulate", common::simulate::run(&arguments)),
        Command::Decap(arguments) => ("decap", common::decap::run(&arguments)),
        Command::Root(arguments) => ("root", common::root::run(arguments)),
        Command::Remove { pin } => ("remove", common::pin::remove(&pin)),
        Command::Completions { shell } => ("completions", pages::completions(shell)),
        Command::Man { directory } => ("man", pages::manual(&directory)),
    };
    common::exit(&format!("katran {name}"), done)
}
