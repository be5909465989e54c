//! A load balancer from a configuration file: attaches, prints counters every second, follows the
//! file when it is told to.
//!
//! ```text
//! balancer --config lb.toml --interface eth0 [--mode auto|native|generic]
//! balancer --config lb.toml --interface eth0 --check
//! balancer --config lb.toml --shared /sys/fs/bpf/katran_root [--position 2] [--interface eth0]
//! balancer --config lb.toml --interface eth0 --pin /sys/fs/bpf/katran [--take-over]
//! balancer --owner --pin /sys/fs/bpf/katran
//! balancer --remove --pin /sys/fs/bpf/katran
//! ```
//! With `--owner` it prints whose the pinned balancer is, or for how long nobody's. With `--check` it prints what would keep it from working. With `--shared` it is an entry of a root
//! program, as the example `root` sets up. SIGUSR1 prints what keeps the running balancer from
//! working. Unless the file says `flow_tracking = "all"`, it prints `drained: ...` when nothing has gone to a drained real for a
//! minute. SIGHUP applies the file again and prints what changed; a file that is not valid is reported
//! and changes nothing. An interface that is removed and made again is attached to again. SIGINT and
//! SIGTERM detach and end it. With `--pin` it forwards on, whatever ends the program, until `--remove`; the next one goes on with it,
//! with `--take-over` also while this one runs, which ends then. `RUST_LOG=info` shows more of what the library does.

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use common::Keeper;
use common::Options;
use common::say;
use common::with_causes;
use katran::Katran;
use katran::Vip;
use katran::attachments::SharedEntries;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::Severity;
use katran::stats::FlowTableCounters;
use katran::stats::Totals;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGUSR1;

const INTERVAL: Duration = Duration::from_secs(1);
/// A drained real to which nothing has gone for so long is said to be.
const QUIET: Duration = Duration::from_secs(60);
/// Lines between two headings.
const PAGE: u32 = 20;

/// Balances the VIPs of a configuration file on the packets of an interface.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Print what would keep it from working, and end: with status 0 if nothing would
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let options = &arguments.options;
    if let Some(done) = options.without_balancing() {
        return common::exit("balancer", done);
    }
    if arguments.check {
        return match check(options) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => common::exit("balancer", Err(error)),
        };
    }
    common::exit("balancer", balance(options))
}

/// What a balancer with this configuration would meet on its interfaces; it is attached to none.
fn check(options: &Options) -> Result<bool> {
    let mut state = options.state()?;
    // Here it is not pinned.
    if let Some(settings) = &mut state.balancer {
        settings.orphan_limit = None;
    }
    let mut katran = match state.builder()?.load() {
        Ok(katran) => katran,
        Err(error) => {
            // Why, most likely.
            say(Diagnosis::of_host().to_string());
            return Err(error.into());
        }
    };
    katran.apply(&state)?;
    let mut works = true;
    if let Some(path) = &options.shared {
        works &= check_entry(path, options.position)?;
    }
    for (interface, diagnosis) in options.diagnose(&katran)? {
        works &= diagnosis.works();
        say(format!("{interface}:\n{diagnosis}"));
    }
    Ok(works)
}

/// Whether a balancer could have this entry of a root program.
fn check_entry(path: &Path, position: u32) -> Result<bool> {
    let programs = SharedEntries::open(path)?.programs()?;
    let (works, what) = match programs.get(position as usize) {
        None => (false, format!("there are {} entries", programs.len())),
        Some(None) => (true, "empty".to_owned()),
        Some(Some(program)) if ["katran", "katran_full"].contains(&program.name.as_str()) => {
            (true, "a balancer's, which would be replaced".to_owned())
        }
        Some(Some(program)) if program.name.is_empty() => (
            false,
            "some program's, and whose takes CAP_SYS_ADMIN to see".to_owned(),
        ),
        Some(Some(program)) => (false, format!("that of {}, which stays", program.name)),
    };
    let severity = if works {
        Severity::Ok
    } else {
        Severity::Problem
    };
    say(format!(
        "entry {position} of {}:\n{severity:<8} {what}",
        path.display()
    ));
    Ok(works)
}

fn balance(options: &Options) -> Result<()> {
    // First, so that no signal from now on ends the process halfway.
    let signals = common::signals()?;

    let mut katran = options.start()?;
    run(&mut katran, options, &signals)?;
    options.stop(&mut katran);
    summary(&katran)
}

/// Counters every second, the file at every SIGHUP, until SIGINT or SIGTERM.
fn run(katran: &mut Katran, options: &Options, signals: &Receiver<i32>) -> Result<()> {
    let mut last = Snapshot::take(katran)?;
    let mut lines = 0;
    let mut next = Instant::now() + INTERVAL;
    let mut keeper = Keeper::new();
    let mut drains = Drains::default();
    loop {
        match signals.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(SIGHUP) => options.follow(katran),
            Ok(SIGUSR1) => options.report_diagnosis(katran),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                keeper.keep(katran)?;
                drains.look(katran);
                match Snapshot::take(katran) {
                    Ok(now) => {
                        if lines % PAGE == 0 {
                            say(HEADING.to_owned());
                        }
                        say(now.since(&last));
                        lines += 1;
                        last = now;
                    }
                    // Packets flow all the same.
                    Err(error) => eprintln!("{}", with_causes(&error)),
                }
                // A process that was stopped for a while does not catch up.
                next = (next + INTERVAL).max(Instant::now());
            }
        }
    }
}

/// What a line is made of. `Katran::counters` would have it all, but it walks the flow tables.
struct Snapshot {
    time: Instant,
    totals: Totals,
    flow_table: FlowTableCounters,
}

const HEADING: &str =
    "     packets    sent/s    Mbit/s  passed/s dropped/s  to VIPs/s  new flows/s";

impl Snapshot {
    fn take(katran: &Katran) -> Result<Self> {
        Ok(Self {
            time: Instant::now(),
            totals: katran.stats().totals()?,
            flow_table: katran.stats().flow_table()?,
        })
    }

    /// Packets so far, and rates since an earlier snapshot.
    fn since(&self, before: &Self) -> String {
        let seconds = (self.time - before.time).as_secs_f64();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let (now, then) = (&self.totals, &before.totals);
        format!(
            "{:>12} {:>9.0} {:>9.2} {:>9.0} {:>9.0} {:>10.0} {:>12.0}",
            now.total.packets,
            rate(now.tx.packets, then.tx.packets),
            rate(now.tx.bytes, then.tx.bytes) * 8.0 / 1e6,
            rate(now.pass.packets, then.pass.packets),
            rate(now.drop.packets, then.drop.packets),
            rate(to_vips(&self.flow_table), to_vips(&before.flow_table)),
            rate(self.flow_table.misses, before.flow_table.misses),
        )
    }
}

/// Packets to any VIP: for which the flow table was asked, and for which it was not.
fn to_vips(flow_table: &FlowTableCounters) -> u64 {
    flow_table.packets + flow_table.settled
}

/// Reals that have been drained and that nothing has gone to for a while: each is said once.
#[derive(Default)]
struct Drains {
    said: BTreeSet<(Vip, IpAddr)>,
}

impl Drains {
    fn look(&mut self, katran: &Katran) {
        for vip in katran.vips() {
            for real in katran.reals(vip).unwrap_or_default() {
                let drained = (vip, real.address());
                // Not known where all flows are remembered.
                let silence = match real.get_weight() {
                    0 => katran.drained(vip, real.address()).ok().flatten(),
                    _ => None,
                };
                match silence {
                    Some(silence) if silence >= QUIET => {
                        if self.said.insert(drained) {
                            let (address, seconds) = (real.address(), silence.as_secs());
                            say(format!(
                                "drained: {address} of {vip}: no packet for {seconds} s"
                            ));
                        }
                    }
                    _ => {
                        self.said.remove(&drained);
                    }
                }
            }
        }
    }
}

/// What went to every VIP and real, and why frames were dropped: printed at the end.
fn summary(katran: &Katran) -> Result<()> {
    say(format!(
        "{:<48} {:>12} {:>15}",
        "sent to reals", "packets", "bytes"
    ));
    let line = |name: String, count: katran::stats::Count| {
        say(format!(
            "{name:<48} {:>12} {:>15}",
            count.packets, count.bytes
        ));
    };
    let mut reals = BTreeSet::new();
    for vip in katran.vips() {
        line(vip.to_string(), katran.stats().vip(vip)?.forwarded);
        reals.extend(katran.reals(vip)?.iter().map(katran::Real::address));
    }
    let reals: Vec<_> = reals.into_iter().collect();
    for (real, counters) in reals.iter().zip(katran.stats().reals(&reals)?) {
        line(format!("real {real}"), counters.forwarded);
    }
    for (reason, frames) in katran
        .stats()
        .drop_reasons()?
        .iter()
        .filter(|(_, frames)| *frames > 0)
    {
        say(format!("{:<48} {frames:>12}", format!("dropped: {reason}")));
    }
    Ok(())
}
