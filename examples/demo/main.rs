//! The load balancer at work: a client, a router, a balancer and four web servers, each in a
//! network namespace of this process, and a check of everything it claims.
//!
//! `make demo` installs what it needs and runs it as root. It ends by itself with a one-line
//! verdict, and with exit status 0 only if everything it showed was true. Outside this process it
//! creates only a directory for nginx's files, which it removes at the end, even after Ctrl-C.
//!
//! Each part is one file, and [`site`] has what they share; `lb.toml` is the configuration.

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

/// What the parts return; an error is a part that could not be carried out.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const PICTURE: &str = "
  +----------+     +----------+   to a VIP   +------------+
  |  client  |-----|  router  |------------->|  balancer  |  Katran, native XDP:
  +----------+     |          |<-------------|            |  in, encapsulated,
       ^           +----------+   IP in IP   +------------+  out again
       |            |  |  |  |
       |           b0 b1 b2 b3    backend0 to backend3: nginx, with the VIPs,
       |            |  |  |  |    behind a decapsulator on native XDP
       +------------+--+--+--+    answers: by the router, straight to the client";

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
    if !geteuid().is_root() {
        eprintln!("demo: run as root (make demo): it loads programs into the kernel");
        return ExitCode::FAILURE;
    }
    let started = Instant::now();
    let mut report = Report::default();
    println!("katran: a load balancer between a client and four web servers");
    println!("{PICTURE}");
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
            // The next part starts with a clean state.
            site.restore()?;
        }
    }
    Ok(())
}

/// Creates the directory for nginx's files, and removes it when a signal ends the demo. Nothing
/// else needs cleaning up: namespaces, programs and child processes end with this process.
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
