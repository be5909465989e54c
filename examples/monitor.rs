//! Noteworthy packets of a balancer, as they happen: printed, or written to pcap files.
//!
//! ```text
//! monitor --config lb.toml --interface eth0 [--directory DIR] [--event NAME]... [--rate-limit N]
//! ```
//! It balances like the example `balancer`, and switches the feature `introspection` on if the file
//! does not, under traffic. Events are `tcp_non_syn_miss` (a TCP packet in the middle of a connection
//! that no table knows), `packet_too_big` (above `max_frame`) and `quic_real_gone`. With `--directory`
//! there is a file for each, which tshark, Wireshark and tcpdump read. SIGINT and SIGTERM end it.

mod common;

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use clap::Parser;
use common::Options;
use common::say;
use etherparse::TransportSlice;
use katran::Event;
use katran::EventKind;
use katran::Features;
use katran::Monitor;
use katran::MonitorOptions;
use signal_hook::consts::SIGHUP;

/// Balances, and shows packets that an operator may want to know of.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Write pcap files here, one for each kind of event, and print nothing
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Only this kind of event; may be given several times
    #[arg(long, value_name = "NAME")]
    event: Vec<EventKind>,
    /// The most events a second and CPU
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
    common::exit("monitor", run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let signals = common::signals()?;
    let mut katran = arguments.options.start()?;
    if !katran.features().contains(Features::INTROSPECTION) {
        katran.reload(katran.features() | Features::INTROSPECTION)?;
        say("switched introspection on".to_owned());
    }
    let mut options = MonitorOptions::new()
        .rate_limit(arguments.rate_limit)
        .snap_length(arguments.snap_length);
    if !arguments.event.is_empty() {
        options = options.events(arguments.event.iter().copied());
    }
    if let Some(packets) = arguments.packet_limit {
        options = options.packet_limit(packets);
    }
    let monitor = match &arguments.directory {
        Some(directory) => katran.monitor_to_pcap(options, directory)?,
        None => katran.monitor(options, |event| say(line(event)))?,
    };
    say("listening".to_owned());
    while let Ok(SIGHUP) = signals.recv() {
        arguments.options.follow(&mut katran);
    }
    summary(&katran, monitor)?;
    arguments.options.stop(&mut katran);
    Ok(())
}

fn summary(katran: &katran::Katran, monitor: Monitor) -> Result<()> {
    let stats = monitor.stop();
    let counters = katran.event_counters()?;
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
