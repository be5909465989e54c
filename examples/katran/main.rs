//! The load balancer as one program. `run` balances, probes, serves metrics and takes commands.
//! Other commands inspect or change the running balancer, or need none.
//!
//! ```text
//! katran run --config lb.toml --interface eth0 [--pin DIR] [--listen] [--probe] [--socket PATH]
//! katran check lb.toml [--interface eth0]      check a document, and the host
//! katran status [--json]                       traffic, health, drains, problems
//! katran apply lb.toml [--dry-run]             change the document without a restart
//! katran drain 198.51.100.1 [VIP] [--wait]     stop new flows to a backend
//! katran top                                   watch traffic
//! katran monitor [--directory DIR]             watch noteworthy packets
//! katran remove --pin DIR                      remove what is pinned there
//! katran simulate, katran decap, katran root   as the examples of these names
//! katran completions SHELL, katran man DIR
//! ```
//! `status`, `apply`, `drain`, `top` and `monitor` use the Unix socket of `run`; `socket.rs`
//! describes the protocol.

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
    /// Check a configuration file, and whether this host is ready for it
    Check(check::Arguments),
    /// Apply another document to the running balancer
    Apply(client::apply::Arguments),
    /// Show the running balancer's traffic, health, drains and problems
    Status(status::Arguments),
    /// Send no new flows to a backend, and report when it can be switched off
    Drain(drain::Arguments),
    /// Watch the running balancer's traffic live
    Top(top::Arguments),
    /// Watch noteworthy packets of the running balancer
    Monitor(monitor::Arguments),
    /// Show what the balancer would do with the frames of a capture
    Simulate(common::simulate::Arguments),
    /// Strip the balancer's tunnels on a backend
    Decap(common::decap::Arguments),
    /// Share an interface between several XDP programs
    #[command(subcommand)]
    Root(common::root::Arguments),
    /// Remove a pinned balancer, decapsulator or server id option
    Remove {
        /// The directory that it is pinned in
        #[arg(long, value_name = "DIR")]
        pin: PathBuf,
    },
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Write a manual page for each command
    Man {
        /// The directory to write to; it must exist
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    // `top` shows the log on its screen.
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
