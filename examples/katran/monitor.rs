//! Noteworthy packets of a balancer, as they happen: printed, or written to pcap files.
//!
//! ```text
//! monitor --config lb.toml --interface eth0 [--directory DIR] [--event NAME]... [--rate-limit N]
//!         [--packet-limit N] [--snap-length BYTES]
//! ```
//! It balances like the example `balancer`, with the feature `introspection` on whatever the file lists.
//! Events are `tcp_non_syn_miss` (a TCP packet in the middle of a connection that no table knows),
//! `packet_too_big` (above `max_frame`) and `quic_real_gone`. With `--directory` there is a new file for
//! each, which tshark, Wireshark and tcpdump read. SIGHUP has the file read again, SIGUSR1 a diagnosis
//! printed; SIGINT and SIGTERM end it.

mod common;

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use clap::Parser;
use common::Keeper;
use common::Options;
use common::ROUND;
use common::say;
use etherparse::TransportSlice;
use katran::Features;
use katran::Katran;
use katran::State;
use katran::events::Event;
use katran::events::EventKind;
use katran::events::Monitor;
use katran::events::MonitorOptions;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGUSR1;

/// Balances, and shows packets that an operator may want to know of.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Write pcap files here, one for each kind of event, instead of printing events
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Only this kind of event; may be given several times
    #[arg(long, value_name = "NAME")]
    event: Vec<EventKind>,
    /// The most events of each kind a second and CPU
    #[arg(long, value_name = "N", default_value_t = 100)]
    rate_limit: u32,
    /// The most packets of each kind
    #[arg(long, value_name = "N")]
    packet_limit: Option<u64>,
    /// Bytes to keep of each packet, 14 to 128
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    snap_length: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    if let Some(done) = arguments.options.without_balancing() {
        return common::exit("monitor", done);
    }
    common::exit("monitor", run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let signals = common::signals()?;
    let mut state = arguments.options.state()?;
    let balancer = state.balancer.get_or_insert_default();
    let listed = balancer.features.unwrap_or_default();
    balancer.features = Some(listed | Features::INTROSPECTION);
    let mut katran = arguments.options.load(&state)?;
    if !listed.contains(Features::INTROSPECTION) {
        say("switched introspection on".to_owned());
    }
    // No packet is touched before it is clear that there is somewhere to write to.
    let monitor = start(arguments, &katran)?;
    if let Err(error) = arguments.options.attach(&mut katran) {
        drop(monitor);
        remove_empty_files(arguments);
        return Err(error);
    }
    say("listening".to_owned());
    let mut keeper = Keeper::new();
    loop {
        match signals.recv_timeout(ROUND) {
            Ok(SIGUSR1) => arguments.options.report_diagnosis(&katran),
            Ok(SIGHUP) => arguments.options.follow_with(&mut katran, introspect),
            Err(RecvTimeoutError::Timeout) => keeper.keep(&mut katran)?,
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    summary(&katran, monitor)?;
    arguments.options.stop(&mut katran);
    Ok(())
}

/// The feature stays on, whatever the file lists.
fn introspect(state: &mut State) {
    let balancer = state.balancer.as_mut();
    if let Some(features) = balancer.and_then(|balancer| balancer.features.as_mut()) {
        *features |= Features::INTROSPECTION;
    }
}

fn start(arguments: &Arguments, katran: &Katran) -> Result<Monitor> {
    let mut options = MonitorOptions::new()
        .rate_limit(arguments.rate_limit)
        .snap_length(arguments.snap_length);
    if !arguments.event.is_empty() {
        options = options.events(arguments.event.iter().copied());
    }
    if let Some(packets) = arguments.packet_limit {
        options = options.packet_limit(packets);
    }
    Ok(match &arguments.directory {
        Some(directory) => katran.events().to_pcap(options, directory)?,
        None => katran.events().start(options, |event| say(line(event)))?,
    })
}

/// Files that were made for nothing would keep the next attempt from starting.
fn remove_empty_files(arguments: &Arguments) {
    /// What a pcap file without packets has.
    const HEADER_BYTES: u64 = 24;
    let Some(directory) = &arguments.directory else {
        return;
    };
    let all = EventKind::ALL.to_vec();
    let kinds = match arguments.event.is_empty() {
        true => &all,
        false => &arguments.event,
    };
    for kind in kinds {
        let path = directory.join(format!("{kind}.pcap"));
        if fs::metadata(&path).is_ok_and(|file| file.len() == HEADER_BYTES) {
            let _ = fs::remove_file(path);
        }
    }
}

fn summary(katran: &Katran, monitor: Monitor) -> Result<()> {
    let stats = monitor.stop();
    let counters = katran.stats().events()?;
    say(format!(
        "{} events delivered; left out: {} by the rate limit, {} for want of room, {} by the packet limit",
        stats.delivered, counters.limited, counters.lost, stats.over_limit
    ));
    if let Some(failure) = stats.failure {
        say(format!("{} not written: {failure}", stats.failed));
    }
    Ok(())
}

/// Seconds since 1970, the kind, who to whom, and the frame's length.
fn line(event: &Event) -> String {
    let time = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = format!(
        "{}.{:06} {}",
        time.as_secs(),
        time.subsec_micros(),
        event.kind
    );
    // Writing to a string cannot fail.
    let _ = write!(line, " {}", packet(&event.packet));
    let _ = write!(line, ", {} bytes", event.length);
    line
}

fn packet(bytes: &[u8]) -> String {
    // The packet is cut short, so its lengths do not fit; its headers do.
    let Ok(packet) = etherparse::LaxSlicedPacket::from_ethernet(bytes) else {
        return "not IP".to_owned();
    };
    let (source, destination) = match &packet.net {
        Some(etherparse::LaxNetSlice::Ipv4(ip)) => (
            ip.header().source_addr().to_string(),
            ip.header().destination_addr().to_string(),
        ),
        Some(etherparse::LaxNetSlice::Ipv6(ip)) => (
            ip.header().source_addr().to_string(),
            ip.header().destination_addr().to_string(),
        ),
        _ => return "not IP".to_owned(),
    };
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => format!(
            "tcp {source} port {} > {destination} port {}",
            tcp.source_port(),
            tcp.destination_port()
        ),
        Some(TransportSlice::Udp(udp)) => format!(
            "udp {source} port {} > {destination} port {}",
            udp.source_port(),
            udp.destination_port()
        ),
        _ => format!("{source} > {destination}"),
    }
}
