//! The load balancer at work: a client, a router, a balancer and four web servers, each a network
//! namespace of this process, with real traffic between them.
//!
//! `make demo` installs what the demo needs and runs it as root. The last line is a verdict, and
//! the exit status is 0 only if everything that the demo shows is true. Outside its process it
//! makes only a directory for nginx's files, and removes it at the end, even after Ctrl-C.
//!
//! Each part has a file, [`site`] what they share, and `lb.toml` the balancer's configuration.

mod counters;
mod drain;
mod ping;
mod removal;
mod report;
mod scratch;
mod site;
mod spread;
mod table;
mod throughput;
mod web;

use std::env;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use nix::unistd::geteuid;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::report::Report;
use crate::scratch::Scratch;
use crate::site::Site;

/// What the parts return: an error is a part that could not be carried through.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "\
Show the load balancer at work: real traffic between network namespaces

Usage: demo

It needs root, nginx and iperf3: `make demo` installs what is missing. It takes
half a minute, leaves the network of this machine alone, and ends with a verdict
(exit status 0: everything it showed was true).";

const PICTURE: &str = "
  +----------+     +----------+   to a VIP   +------------+
  |  client  |-----|  router  |------------->|  balancer  |  Katran, native XDP:
  +----------+     |          |<-------------|            |  in, encapsulated,
       ^           +----------+   IP in IP   +------------+  out again
       |            |  |  |  |
       |           b0 b1 b2 b3    backend0 to backend3: nginx, and a
       |            |  |  |  |    decapsulator on native XDP
       +------------+--+--+--+    answers go past the balancer to the client

";

const INTRODUCTION: &str = "\
    Each host is a network namespace of this process. The client connects to a virtual address \
    (VIP). The balancer picks a backend for each connection, wraps the packets in an outer IP \
    header and sends them there. The backend strips that header (decapsulates) and answers the \
    client directly.";

/// A part of the demo.
type Part = fn(&mut Site, &mut Report) -> Result<()>;

const PARTS: [Part; 6] = [
    spread::run,
    drain::run,
    removal::run,
    ping::run,
    throughput::run,
    counters::run,
];

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        None => {}
        Some("-h" | "--help") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(_) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    if !geteuid().is_root() {
        eprintln!("demo: run as root (make demo): it loads programs into the kernel");
        return ExitCode::FAILURE;
    }
    let started = Instant::now();
    let mut report = Report::default();
    report.print("katran: a load balancer between a client and four web servers");
    report.print(PICTURE);
    report.say(INTRODUCTION);
    if let Err(error) = show(&mut report) {
        report.failed(format_args!("cannot be set up: {error}"));
    }
    match report.verdict(started.elapsed()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn show(report: &mut Report) -> Result<()> {
    let scratch = end_cleanly_on_signals()?;
    let mut site = Site::new(scratch.path())?;
    for part in PARTS {
        if let Err(error) = part(&mut site, report) {
            report.failed(error);
            // The next part begins as if nothing had happened.
            site.restore()?;
        }
    }
    Ok(())
}

/// Makes the directory for nginx's files, and has it removed when a signal ends the demo. All
/// else needs no cleaning up: namespaces, programs and child processes go with this process.
fn end_cleanly_on_signals() -> io::Result<Scratch> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let scratch = Scratch::new()?;
    let path = PathBuf::from(scratch.path());
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            scratch::remove(&path);
            eprintln!("demo: interrupted");
            process::exit(128 + signal);
        }
    });
    Ok(scratch)
}
