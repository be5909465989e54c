//! The backend's end of the tunnel: strips outer headers and prints counters every second.

use std::net::IpAddr;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap::error::ErrorKind;
use katran::Decap;
use katran::DecapBuilder;
use katran::Prefix;
use katran::XdpMode;
use katran::attachments::AttachmentState;
use katran::attachments::TcHook;
use katran::diagnosis::Diagnosis;
use katran::stats::DecapCounters;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use super::complain;
use super::keeper;
use super::keeper::Keeper;
use super::pin::Pin;
use super::say;

const INTERVAL: Duration = Duration::from_secs(1);
/// Lines between two headings.
const PAGE: u32 = 20;

/// What to strip, and where.
#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// The interface that tunnelled packets arrive at
    #[arg(long, value_name = "NAME", required_unless_present = "remove")]
    interface: Option<String>,
    /// XDP mode: auto, native (in the driver) or generic (in the network stack)
    #[arg(long, default_value_t = XdpMode::Auto)]
    mode: XdpMode,
    /// Strip at tc ingress instead of XDP
    #[arg(long)]
    tc: bool,
    /// tc mechanism: auto, tcx (Linux 6.6) or clsact
    #[arg(long, default_value_t = TcHook::Auto, requires = "tc", value_name = "HOOK")]
    tc_hook: TcHook,
    /// Check whether this backend can answer clients, and exit
    #[arg(long)]
    check: bool,
    /// With --check: a VIP that this host should have; repeatable
    #[arg(long, value_name = "ADDRESS", requires = "check")]
    vip: Vec<IpAddr>,
    /// Strip only tunnels to this address of the host, one for each family; default: any address
    #[arg(long, value_name = "ADDRESS")]
    destination: Vec<IpAddr>,
    /// Strip only tunnels from this prefix, such as 172.16.0.0/16, and drop others; repeatable;
    /// default: any source
    #[arg(long, value_name = "PREFIX")]
    from: Vec<Prefix>,
    /// Strip only tunnels with packets to this prefix (the VIPs), and drop others; repeatable;
    /// default: any destination
    #[arg(long, value_name = "PREFIX")]
    to: Vec<Prefix>,
    /// The UDP port of GUE tunnels; 0 ignores GUE
    #[arg(long, value_name = "PORT", default_value_t = 6080)]
    gue_port: u16,
    /// This server's id in TCP options: count packets with it, and those for others
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    server_id: u32,
    #[command(flatten)]
    keep: keeper::Keep,
    #[command(flatten)]
    pin: Pin,
    /// Remove the pins in the directory of --pin, and exit
    #[arg(long, requires = "pin")]
    remove: bool,
}

/// Strips tunnels until SIGINT or SIGTERM, or does what the options request.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match arguments.remove {
        true => arguments.pin.remove(),
        false => strip(arguments),
    }
}

fn strip(arguments: &Arguments) -> Result<()> {
    refuse_two_of_a_family(&arguments.destination);
    // First, so that no later signal ends the process halfway.
    let (sender, signals) = mpsc::channel();
    let mut caught = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || caught.forever().next().map(|signal| sender.send(signal)));

    let builder = arguments
        .destination
        .iter()
        .fold(Decap::builder(), |builder, address| {
            builder.destination(*address)
        });
    let builder = builder
        .allow_sources(arguments.from.iter().copied())
        .allow_destinations(arguments.to.iter().copied())
        .gue_port(arguments.gue_port)
        .server_id(arguments.server_id);
    // The parser requires one.
    let interface = arguments.interface.as_deref().unwrap_or_default();
    if arguments.check {
        return check(builder, interface, &arguments.vip);
    }
    let mut decap = match arguments.pin.directory() {
        None => builder.load()?,
        Some(directory) => {
            let (mut decap, start) = builder.clone().pin(directory).adopt_or_load()?;
            arguments.pin.report("decapsulator", &start);
            decap.reload(builder)?;
            decap
        }
    };
    // A new one starts at 0: it may get packets as soon as it is attached.
    let mut last = decap.counters()?;
    let how = attach(&mut decap, arguments, interface)?;
    say(format!("stripping tunnels on {interface} {how}"));

    let mut lines = 0;
    let mut keeper = Keeper::new(arguments.keep);
    while let Err(RecvTimeoutError::Timeout) = signals.recv_timeout(INTERVAL) {
        keeper.keep(&mut decap)?;
        let now = match decap.counters() {
            Ok(now) => now,
            // Packets flow regardless.
            Err(error) => {
                complain(format!("decap: {error}"));
                continue;
            }
        };
        if lines % PAGE == 0 {
            say(match arguments.server_id {
                0 => HEADING.to_owned(),
                _ => format!("{HEADING} {ID_HEADING}"),
            });
        }
        let ids = match arguments.server_id {
            0 => String::new(),
            _ => format!(" {:>10} {:>8}", now.server_ids, now.other_server_ids),
        };
        say(line(&now, &last) + &ids);
        lines += 1;
        last = now;
    }
    if !arguments.pin.leaves("stripping") {
        decap.detach(interface)?;
        say(format!("detached from {interface}"));
    }
    Ok(())
}

/// Checks whether this backend can answer clients.
fn check(builder: DecapBuilder, interface: &str, vips: &[IpAddr]) -> Result<()> {
    let decap = match builder.load() {
        Ok(decap) => decap,
        Err(error) => {
            // Most likely the reason.
            say(Diagnosis::of_host().to_string());
            return Err(error.into());
        }
    };
    let diagnosis = decap.diagnose(interface, vips)?;
    say(diagnosis.to_string());
    anyhow::ensure!(
        diagnosis.works(),
        "this backend would not answer clients; see the problems above"
    );
    Ok(())
}

/// Attaches it, unless the previous process did; returns how.
fn attach(decap: &mut Decap, arguments: &Arguments, interface: &str) -> Result<String> {
    // Attachments whose interface is gone.
    decap.reattach()?;
    let is_there = |name: &str, state| name == interface && state == AttachmentState::Attached;
    let mut by_xdp = decap.interfaces().into_iter();
    let by_xdp = by_xdp.find(|of| is_there(&of.interface, of.state));
    let mut at_tc = decap.tc_interfaces().into_iter();
    let at_tc = at_tc.find(|of| is_there(&of.interface, of.state));
    // Attached in the other way than requested.
    if (arguments.tc && by_xdp.is_some()) || (!arguments.tc && at_tc.is_some()) {
        decap.detach(interface)?;
    }
    Ok(match arguments.tc {
        false => {
            let new = || decap.attach(interface, arguments.mode);
            format!("in {} mode", by_xdp.map_or_else(new, Ok)?.mode)
        }
        true => {
            let new = || decap.attach_tc(interface, arguments.tc_hook);
            format!("at tc ingress by {}", at_tc.map_or_else(new, Ok)?.hook)
        }
    })
}

const HEADING: &str = "     frames    IPv4 tunnel    IPv6 tunnel  stripped/s    foreign  dropped";

const ID_HEADING: &str = "server ids   others";

/// Counters so far, and packets stripped in the last second.
fn line(now: &DecapCounters, last: &DecapCounters) -> String {
    let v4 = |counters: &DecapCounters| counters.ipip_v4 + counters.gue_v4;
    let v6 = |counters: &DecapCounters| counters.ipip_v6 + counters.gue_v6;
    let stripped = |counters: &DecapCounters| v4(counters) + v6(counters);
    format!(
        "{:>11} {:>14} {:>14} {:>11} {:>10} {:>8}",
        now.total,
        v4(now),
        v6(now),
        stripped(now) - stripped(last),
        now.foreign,
        now.dropped()
    )
}

/// The builder would keep only the last one.
fn refuse_two_of_a_family(destinations: &[IpAddr]) {
    let v4 = destinations
        .iter()
        .filter(|address| address.to_canonical().is_ipv4());
    let v4 = v4.count();
    if v4 > 1 || destinations.len() - v4 > 1 {
        let message = "--destination takes one address per family";
        Arguments::augment_args(clap::Command::new("decap"))
            .error(ErrorKind::TooManyValues, message)
            .exit();
    }
}
