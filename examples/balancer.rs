//! A load balancer from a configuration file: attaches, prints counters every second, follows the
//! file when it is told to.
//!
//! ```text
//! balancer --config lb.toml --interface eth0 [--mode auto|native|generic]
//! ```
//! SIGHUP applies the file again and prints what changed; a file that is not valid is reported and
//! changes nothing. SIGINT and SIGTERM detach and end it. `RUST_LOG=info` shows more of what the
//! library does.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::io::stdout;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use clap::Parser;
use katran::Changes;
use katran::FlowTableCounters;
use katran::Katran;
use katran::State;
use katran::Totals;
use katran::XdpMode;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

const INTERVAL: Duration = Duration::from_secs(1);
/// Lines between two headings.
const PAGE: u32 = 20;

/// Balances the VIPs of a configuration file on the packets of an interface.
#[derive(Parser)]
struct Arguments {
    /// The configuration: TOML with [balancer] and [[vip]]
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where packets come in and leave; may be given several times
    #[arg(long, value_name = "NAME", required = true)]
    interface: Vec<String>,
    /// auto, native (in the driver) or generic (in the network stack)
    #[arg(long, default_value_t = XdpMode::Auto)]
    mode: XdpMode,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match balance(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("balancer: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn balance(arguments: &Arguments) -> Result<()> {
    // First, so that no signal from now on ends the process halfway.
    let signals = signals()?;

    let (mut katran, changes) = load(&arguments.config)?;
    report(&changes);
    for interface in &arguments.interface {
        let attachment = katran.attach(interface, arguments.mode)?;
        say(format!(
            "balancing on {interface} in {} mode",
            attachment.mode
        ));
    }
    run(&mut katran, &arguments.config, &signals)?;

    for interface in &arguments.interface {
        // Dropping the balancer would do it, too; here it is reported.
        match katran.detach(interface) {
            Ok(()) => say(format!("detached from {interface}")),
            Err(error) => eprintln!("{error}"),
        }
    }
    summary(&katran)
}

/// A balancer loaded with the settings of the file, and with its VIPs.
fn load(config: &Path) -> Result<(Katran, Changes)> {
    let state = read(config)?;
    let mut katran = state.builder()?.load()?;
    let changes = katran.apply(&state)?;
    Ok((katran, changes))
}

fn read(config: &Path) -> Result<State> {
    let text = fs::read_to_string(config).map_err(anyhow::Error::from);
    text.and_then(|text| Ok(State::from_toml(&text)?))
        .with_context(|| format!("cannot use {}", config.display()))
}

/// Counters every second, the file at every SIGHUP, until SIGINT or SIGTERM.
fn run(katran: &mut Katran, config: &Path, signals: &Receiver<i32>) -> Result<()> {
    let mut last = Snapshot::take(katran)?;
    let mut lines = 0;
    let mut next = Instant::now() + INTERVAL;
    loop {
        match signals.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(SIGHUP) => match read(config).and_then(|state| Ok(katran.apply(&state)?)) {
                Ok(changes) => report(&changes),
                Err(error) => eprintln!(
                    "{}\nnothing was changed: the old configuration stays in force",
                    with_causes(&error)
                ),
            },
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
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
            totals: katran.totals()?,
            flow_table: katran.flow_table_counters()?,
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
            rate(self.flow_table.packets, before.flow_table.packets),
            rate(self.flow_table.misses, before.flow_table.misses),
        )
    }
}

/// What applying the file changed.
fn report(changes: &Changes) {
    if changes.is_empty() {
        return say("applied: no changes".to_owned());
    }
    say("applied:".to_owned());
    let of_vip = |what: &str, reals: &[(katran::Vip, std::net::IpAddr)]| {
        for (vip, real) in reals {
            say(format!("  {vip}: real {real} {what}"));
        }
    };
    for vip in &changes.vips_added {
        say(format!("  {vip} added"));
    }
    for vip in &changes.vips_changed {
        say(format!("  {vip} has other flags or another hash function"));
    }
    of_vip("added", &changes.reals_added);
    of_vip("has another weight", &changes.reals_changed);
    of_vip("removed", &changes.reals_removed);
    for vip in &changes.vips_removed {
        say(format!("  {vip} removed"));
    }
    for real in &changes.real_flags_changed {
        say(format!("  real {real} has other flags"));
    }
    if changes.gateway_changed {
        say("  the gateway has another MAC address".to_owned());
    }
    for source in &changes.sources_changed {
        say(format!("  outer source address {source}"));
    }
}

/// What went to every VIP and real, and why frames were dropped: printed at the end.
fn summary(katran: &Katran) -> Result<()> {
    say(format!(
        "{:<48} {:>12} {:>15}",
        "sent to reals", "packets", "bytes"
    ));
    let line = |name: String, count: katran::Count| {
        say(format!(
            "{name:<48} {:>12} {:>15}",
            count.packets, count.bytes
        ));
    };
    let mut reals = BTreeSet::new();
    for vip in katran.vips() {
        line(vip.to_string(), katran.vip_counters(vip)?.forwarded);
        reals.extend(katran.reals(vip)?.iter().map(katran::Real::address));
    }
    let reals: Vec<_> = reals.into_iter().collect();
    for (real, counters) in reals.iter().zip(katran.reals_stats(&reals)?) {
        line(format!("real {real}"), counters.forwarded);
    }
    for (reason, frames) in katran
        .drop_reasons()?
        .iter()
        .filter(|(_, frames)| *frames > 0)
    {
        say(format!("{:<48} {frames:>12}", format!("dropped: {reason}")));
    }
    Ok(())
}

/// Prints a line. Nobody reading them any more is no reason to stop balancing, or to panic.
fn say(line: String) {
    let _ = writeln!(stdout(), "{line}");
}

/// SIGHUP, SIGINT and SIGTERM, as messages.
fn signals() -> Result<Receiver<i32>> {
    let (sender, receiver) = mpsc::channel();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// An error and what caused it; some of the library's name the cause themselves.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            known if known.contains(&cause) => text,
            _ => format!("{text}: {cause}"),
        }
    })
}
