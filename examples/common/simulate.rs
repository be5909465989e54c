//! Runs the frames of a capture through the loaded program, without an interface. Prints a table or
//! writes a JSON report, and writes a capture of what leaves the program.

use std::fs;
use std::fs::File;
use std::io::BufWriter;
use std::io::Write;
use std::io::stdout;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use katran::Katran;
use katran::stats::Counters;
use pcap_file::DataLink;
use pcap_file::pcap::PcapHeader;
use pcap_file::pcap::PcapReader;
use pcap_file::pcap::PcapWriter;
use pcap_file::pcap::RawPcapPacket;
use serde::Serialize;

/// Frames grow by an outer header, so the snap length of the input may be too small.
const SNAP_LENGTH: u32 = 262_144;

/// The options of `simulate`.
#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// The configuration document (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The capture to read: pcap with Ethernet frames
    #[arg(long, value_name = "FILE")]
    read: PathBuf,
    /// Write frames as they leave the program to this pcap file
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Write a JSON object for each frame to this file, instead of printing a table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs all frames.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (mut capture, header) = open(&arguments.read)?;
    let katran = load(&arguments.config)?;
    let mut frames = match &arguments.write {
        None => None,
        Some(path) => {
            let header = PcapHeader {
                snaplen: header.snaplen.max(SNAP_LENGTH),
                ..header
            };
            let file = create(path, &arguments.read)?;
            Some(PcapWriter::with_header(BufWriter::new(file), header)?)
        }
    };
    let mut report = match &arguments.json {
        None => Report::Table(BufWriter::new(Box::new(stdout()))),
        Some(path) => Report::Json(BufWriter::new(create(path, &arguments.read)?)),
    };

    let mut tally = Tally::default();
    report.begin()?;
    let broken = loop {
        let packet = match capture.next_raw_packet() {
            None => break None,
            Some(Err(error)) => break Some(error),
            Some(Ok(packet)) => packet,
        };
        let (line, frame) = run_one(&katran, tally.frames, &packet);
        tally.add(&line);
        report.line(&line)?;
        if let Some(frames) = &mut frames {
            frames.write_raw_packet(&leaving(&packet, &frame))?;
        }
    };
    report.end(&katran.counters()?, &tally)?;
    if let Some(frames) = frames {
        frames.into_writer().flush()?;
    }

    if tally.truncated > 0 {
        let frames = tally.truncated;
        eprintln!("warning: frames shorter than on the wire: {frames}");
    }
    if let Some(error) = broken {
        let (path, frames) = (arguments.read.display(), tally.frames);
        return Err(error)
            .with_context(|| format!("{path} ends within a frame, after {frames} whole ones"));
    }
    ensure!(
        tally.errors == 0,
        "{} of {} frames could not be run",
        tally.errors,
        tally.frames
    );
    Ok(())
}

/// A balancer with the settings and VIPs of the file.
fn load(config: &Path) -> Result<Katran> {
    // Health checks do not matter here.
    #[cfg(feature = "health")]
    let document = katran::health::Document::from_toml_file(config)?;
    #[cfg(feature = "health")]
    let state = &document.state;
    #[cfg(not(feature = "health"))]
    let document = katran::state::Document::from_toml_file(config)?;
    #[cfg(not(feature = "health"))]
    let state = document.state();
    let loaded = state.builder()?.load();
    let mut katran = loaded.map_err(|error| document.placed(error))?;
    let applied = katran.apply(state);
    applied.map_err(|error| document.placed(error))?;
    Ok(katran)
}

/// Opens a capture of Ethernet frames, of either byte order and resolution.
fn open(path: &Path) -> Result<(PcapReader<File>, PcapHeader)> {
    let cannot = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(cannot)?;
    let capture = PcapReader::new(file)
        .context("not a pcap file (convert pcapng with `tcpdump -r IN -w OUT`)")
        .with_context(cannot)?;
    let header = capture.header();
    if header.datalink != DataLink::ETHERNET {
        let kind = u32::from(header.datalink);
        bail!(
            "{}: frames of link type {kind}, not Ethernet",
            path.display()
        );
    }
    Ok((capture, header))
}

/// Creates a file for writing, which must not be the input.
fn create(path: &Path, read: &Path) -> Result<File> {
    let cannot = || format!("cannot write {}", path.display());
    let identity = |path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    // A file that does not exist yet is another one.
    if let (Ok(one), Ok(other)) = (identity(path), identity(read)) {
        ensure!(one != other, "{}: it is the input file", cannot());
    }
    File::create(path).with_context(cannot)
}

/// Runs one frame; returns its line of the report, and the frame that leaves the program.
fn run_one(katran: &Katran, index: u64, packet: &RawPcapPacket) -> (Line, Vec<u8>) {
    let truncated = packet.incl_len < packet.orig_len;
    match katran.simulate(&packet.data) {
        Ok(ran) => {
            let line = Line {
                index,
                verdict: ran.verdict.to_string(),
                length: ran.frame.len(),
                vip: ran.vip.map(|vip| vip.to_string()),
                real: ran.real,
                reason: Some(ran.reason.to_string()),
                truncated,
                error: None,
            };
            (line, ran.frame)
        }
        Err(error) => {
            let line = Line {
                index,
                verdict: "ERROR".to_owned(),
                length: packet.data.len(),
                vip: None,
                real: None,
                reason: None,
                truncated,
                error: Some(error.to_string()),
            };
            (line, packet.data.to_vec())
        }
    }
}

/// The record of a frame that leaves: with the arrival's time, and as much missing.
fn leaving<'a>(arrived: &RawPcapPacket, frame: &'a [u8]) -> RawPcapPacket<'a> {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    RawPcapPacket {
        ts_sec: arrived.ts_sec,
        ts_frac: arrived.ts_frac,
        incl_len: length,
        orig_len: length.saturating_add(arrived.orig_len.saturating_sub(arrived.incl_len)),
        data: frame.into(),
    }
}

/// One frame in the report.
#[derive(Serialize)]
struct Line {
    index: u64,
    verdict: String,
    /// The length of the frame as it leaves the program.
    length: usize,
    vip: Option<String>,
    real: Option<IpAddr>,
    /// The step of the walk that decided.
    reason: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// All counters after the last frame.
#[derive(Serialize)]
struct LastLine<'a> {
    counters: &'a Counters,
}

#[derive(Default)]
struct Tally {
    frames: u64,
    tx: u64,
    pass: u64,
    drop: u64,
    errors: u64,
    truncated: u64,
}

impl Tally {
    fn add(&mut self, line: &Line) {
        self.frames += 1;
        self.truncated += u64::from(line.truncated);
        match line.verdict.as_str() {
            "TX" => self.tx += 1,
            "PASS" => self.pass += 1,
            "DROP" => self.drop += 1,
            _ => self.errors += 1,
        }
    }
}

enum Report {
    Table(BufWriter<Box<dyn Write>>),
    Json(BufWriter<File>),
}

impl Report {
    fn begin(&mut self) -> Result<()> {
        if let Self::Table(out) = self {
            writeln!(
                out,
                "{:>6}  {:<7} {:>6}  {:<30} {:<26} why",
                "frame", "verdict", "length", "VIP", "real"
            )?;
        }
        Ok(())
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        match self {
            Self::Json(out) => writeln!(out, "{}", serde_json::to_string(line)?)?,
            Self::Table(out) => {
                let real = line.real.map(|real| real.to_string());
                let why = line.reason.as_ref().or(line.error.as_ref());
                let or_dash = |text: Option<&String>| text.map_or("-", |text| text).to_owned();
                writeln!(
                    out,
                    "{:>6}  {:<7} {:>6}  {:<30} {:<26} {}{}",
                    line.index,
                    line.verdict,
                    line.length,
                    or_dash(line.vip.as_ref()),
                    or_dash(real.as_ref()),
                    or_dash(why),
                    if line.truncated { " (truncated)" } else { "" },
                )?;
            }
        }
        Ok(())
    }

    fn end(&mut self, counters: &Counters, tally: &Tally) -> Result<()> {
        match self {
            Self::Json(out) => {
                let line = LastLine { counters };
                writeln!(out, "{}", serde_json::to_string(&line)?)?;
                out.flush()?;
            }
            Self::Table(out) => {
                let Tally {
                    frames,
                    tx,
                    pass,
                    drop,
                    errors,
                    ..
                } = tally;
                let s = if *frames == 1 { "" } else { "s" };
                write!(out, "{frames} frame{s}: {tx} TX, {pass} PASS, {drop} DROP")?;
                match errors {
                    0 => writeln!(out)?,
                    _ => writeln!(out, ", {errors} ERROR")?,
                }
                out.flush()?;
            }
        }
        Ok(())
    }
}
