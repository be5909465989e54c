//! `katran monitor`: prints noteworthy packets of the running balancer as they occur, or writes
//! them to pcap files.
//!
//! Events are `tcp_non_syn_miss` (a TCP packet within an unknown connection), `packet_too_big`
//! (above `max_frame`) and `quic_real_gone`. Meanwhile the balancer's feature `introspection` is
//! on, whatever its document says. With `--directory` each kind of event gets a new file for
//! tshark, Wireshark or tcpdump. SIGINT and SIGTERM end it; the balancer continues.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::BufWriter;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use etherparse::TransportSlice;
use katran::events::EventKind;
use pcap_file::pcap::PcapHeader;
use pcap_file::pcap::PcapPacket;
use pcap_file::pcap::PcapWriter;
use serde_json::Value;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::client::Client;
use crate::client::To;
use crate::common::say;
use crate::socket::Heard;
use crate::socket::Heeded;
use crate::socket::Listening;
use crate::socket::Request;

/// Which packets to show, and where to write them.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write one pcap file for each kind of event here, instead of printing
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Show only this kind of event (tcp_non_syn_miss, packet_too_big or quic_real_gone);
    /// repeatable
    #[arg(long, value_name = "NAME")]
    event: Vec<EventKind>,
    /// The largest number of events of each kind per second on each CPU
    #[arg(long, value_name = "N", default_value_t = 100)]
    rate_limit: u32,
    /// The largest number of packets of each kind
    #[arg(long, value_name = "N")]
    packet_limit: Option<u64>,
    /// Bytes of each packet to keep, 14 to 128
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    snap_length: u32,
    #[command(flatten)]
    to: To,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let kinds = match arguments.event.is_empty() {
        true => EventKind::ALL.to_vec(),
        false => arguments.event.clone(),
    };
    let mut client = arguments.to.connect()?;
    // Switch nothing on before the files can be written.
    let mut files = match &arguments.directory {
        None => None,
        Some(directory) => Some(Files::create(directory, &kinds, arguments.snap_length)?),
    };
    let asked = client.ask(&Request::Monitor(Listening {
        events: kinds.iter().map(EventKind::to_string).collect(),
        rate_limit: arguments.rate_limit,
        snap_length: arguments.snap_length,
        packet_limit: arguments.packet_limit,
    }));
    let started: Value = match (asked, &files) {
        (Err(error), Some(files)) => {
            files.remove();
            return Err(error);
        }
        (asked, _) => asked?,
    };
    if started["switched_on"] == true {
        say("switched introspection on");
    }
    say("listening");
    let is_asked = Arc::new(AtomicBool::new(false));
    let (ends, mut stream) = (Arc::clone(&is_asked), client.stream.try_clone()?);
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            ends.store(true, Ordering::Relaxed);
            // Any line ends it.
            let _ = stream.write_all(b"\n");
        }
    });
    let heeded = listen(&mut client, &mut files)?;
    anyhow::ensure!(
        is_asked.load(Ordering::Relaxed),
        "the balancer stopped the monitor"
    );
    say(format!(
        "events: {} delivered; left out: {} by the rate limit, {} because buffers were full, {} \
         by the packet limit",
        heeded.delivered, heeded.limited, heeded.lost, heeded.over_limit
    ));
    Ok(())
}

/// Receives events until the balancer reports the final counts.
fn listen(client: &mut Client, files: &mut Option<Files>) -> Result<Heeded> {
    loop {
        let line = client.line()?;
        let mut line = line.context("the balancer has ended")?;
        if line.get("event").is_none() {
            return Client::of(&mut line);
        }
        let event: Heard = serde_json::from_value(line["event"].take())?;
        let packet = bytes(&event.packet);
        match files {
            Some(files) => files.write(&event, &packet)?,
            None => say(described(&event, &packet)),
        }
    }
}

fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map_while(byte).collect()
}

/// A pcap file for each kind.
struct Files(BTreeMap<String, (PathBuf, PcapWriter<BufWriter<File>>)>);

impl Files {
    fn create(directory: &std::path::Path, kinds: &[EventKind], snap_length: u32) -> Result<Self> {
        let mut files = Self(BTreeMap::new());
        for kind in kinds {
            let path = directory.join(format!("{kind}.pcap"));
            let opened = File::create_new(&path).map_err(anyhow::Error::from);
            let header = PcapHeader {
                snaplen: snap_length,
                ..PcapHeader::default()
            };
            let writer = opened
                .and_then(|file| Ok(PcapWriter::with_header(BufWriter::new(file), header)?))
                .with_context(|| format!("cannot write {}", path.display()));
            match writer {
                Ok(writer) => files.0.insert(kind.to_string(), (path, writer)),
                Err(error) => {
                    files.remove();
                    return Err(error);
                }
            };
        }
        Ok(files)
    }

    /// Removes empty files, which would keep the next run from starting.
    fn remove(&self) {
        for (path, _) in self.0.values() {
            let _ = fs::remove_file(path);
        }
    }

    fn write(&mut self, event: &Heard, packet: &[u8]) -> Result<()> {
        let Some((path, writer)) = self.0.get_mut(&event.kind) else {
            return Ok(());
        };
        let time = Duration::from_micros(event.time);
        let packet = PcapPacket::new(time, event.length, packet);
        let written = writer.write_packet(&packet);
        written.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }
}

/// Seconds since 1970, kind, addresses and frame length.
fn described(event: &Heard, bytes: &[u8]) -> String {
    let (seconds, micros) = (event.time / 1_000_000, event.time % 1_000_000);
    let (kind, packet) = (&event.kind, packet(bytes));
    format!(
        "{seconds}.{micros:06} {kind} {packet}, {} bytes",
        event.length
    )
}

fn packet(bytes: &[u8]) -> String {
    // The packet is cut off, so its lengths are wrong; its headers are right.
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
