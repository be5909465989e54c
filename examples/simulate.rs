//! Runs every frame of a capture, in order, through the really loaded program, without touching
//! an interface.
//!
//! cargo run --release --example simulate -- --config examples/data/lb.toml --read in.pcap
//!     --write out.pcap --json report.jsonl
//!
//! out.pcap gets the frames as they leave the program, one for each input frame whatever its
//! verdict; a dropped one is as it was when it was dropped. report.jsonl gets one line per frame
//! and a last line with all counters; without --json a table goes to standard output. A frame
//! that the kernel cannot be given (longer than a page) is reported as ERROR and left as it is;
//! the exit status is 1 then. Of a frame that the capture cut short, what was captured is run.
//! Needs root.

use std::error::Error;
use std::fs;
use std::fs::File;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use katran::Katran;
use katran::State;
use pcap_file::DataLink;
use pcap_file::pcap::PcapHeader;
use pcap_file::pcap::PcapPacket;
use pcap_file::pcap::PcapReader;
use pcap_file::pcap::PcapWriter;
use serde_json::Value;
use serde_json::json;

/// Runs a capture through the loaded program.
#[derive(Parser)]
struct Arguments {
    /// The configuration: balancer settings, VIPs and reals (TOML).
    #[arg(long)]
    config: PathBuf,
    /// The capture to run: pcap, Ethernet.
    #[arg(long)]
    read: PathBuf,
    /// Where the frames go as they leave the program.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Where the report goes, a JSON object a line.
    #[arg(long)]
    json: Option<PathBuf>,
}

type Anyhow<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("simulate: {failed} frames could not be run");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What became of one frame, in the words of the report.
struct Outcome {
    frame: Vec<u8>,
    verdict: String,
    vip: Option<String>,
    real: Option<String>,
    reason: String,
    failed: bool,
}

/// The number of frames that could not be run.
fn run(arguments: &Arguments) -> Anyhow<usize> {
    let state = named(&arguments.config, fs::read_to_string(&arguments.config))?;
    let state = named(&arguments.config, State::from_toml(&state))?;
    let capture = named(&arguments.read, File::open(&arguments.read))?;
    let mut capture = named(&arguments.read, PcapReader::new(BufReader::new(capture)))?;
    let header = capture.header();
    if header.datalink != DataLink::ETHERNET {
        let link = header.datalink;
        return Err(format!("{}: not Ethernet but {link:?}", arguments.read.display()).into());
    }
    let mut katran = state.builder()?.load()?;
    katran.apply(&state)?;
    let mut out = match &arguments.write {
        Some(path) => Some(writer(path, header)?),
        None => None,
    };
    let mut report: Box<dyn Write> = match &arguments.json {
        Some(path) => Box::new(BufWriter::new(named(path, File::create(path))?)),
        None => Box::new(std::io::stdout().lock()),
    };

    let as_json = arguments.json.is_some();
    if !as_json {
        writeln!(
            report,
            "frame  verdict  bytes  {:<30}  {:<24}  decided by",
            "VIP", "real"
        )?;
    }
    let (mut failed, mut cut) = (0, 0);
    let mut index = 0;
    while let Some(packet) = capture.next_packet() {
        let packet = named(&arguments.read, packet)?;
        cut += usize::from((packet.data.len() as u32) < packet.orig_len);
        let outcome = simulate(&katran, &packet.data);
        failed += usize::from(outcome.failed);
        if as_json {
            writeln!(report, "{}", outcome.json(index))?;
        } else {
            writeln!(report, "{}", outcome.row(index))?;
        }
        if let Some(out) = &mut out {
            let length = outcome.frame.len() as u32;
            out.write_packet(&PcapPacket::new_owned(
                packet.timestamp,
                length,
                outcome.frame,
            ))?;
        }
        index += 1;
    }
    let counters = serde_json::to_value(katran.counters()?)?;
    if as_json {
        writeln!(report, "{}", json!({ "counters": counters }))?;
    } else {
        write_counters(&mut report, "", &counters)?;
    }
    report.flush()?;
    if let Some(out) = out {
        out.into_writer().flush()?;
    }
    if cut != 0 {
        eprintln!("simulate: {cut} frames were cut short by the capture and run as they are");
    }
    Ok(failed)
}

fn simulate(katran: &Katran, frame: &[u8]) -> Outcome {
    match katran.simulate(frame) {
        Ok(ran) => Outcome {
            verdict: ran.verdict.to_string(),
            vip: ran.vip.map(|vip| vip.to_string()),
            real: ran.real.map(|real| real.to_string()),
            reason: ran.reason.to_string(),
            frame: ran.frame,
            failed: false,
        },
        Err(error) => Outcome {
            verdict: "ERROR".to_owned(),
            vip: None,
            real: None,
            reason: error.to_string(),
            frame: frame.to_vec(),
            failed: true,
        },
    }
}

impl Outcome {
    fn json(&self, index: usize) -> String {
        // By hand, for the order of the keys.
        format!(
            r#"{{"index":{index},"verdict":{},"length":{},"vip":{},"real":{},"reason":{}}}"#,
            json!(self.verdict),
            self.frame.len(),
            json!(self.vip),
            json!(self.real),
            json!(self.reason),
        )
    }

    fn row(&self, index: usize) -> String {
        format!(
            "{index:>5}  {:<7}  {:>5}  {:<30}  {:<24}  {}",
            self.verdict,
            self.frame.len(),
            self.vip.as_deref().unwrap_or("-"),
            self.real.as_deref().unwrap_or("-"),
            self.reason,
        )
    }
}

/// Counters that are not zero, one a line.
fn write_counters(report: &mut dyn Write, path: &str, value: &Value) -> Anyhow<()> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(items) => (0..)
            .zip(items)
            .map(|(at, item): (usize, _)| (at.to_string(), item))
            .collect(),
        Value::Number(number) if number.as_u64() == Some(0) => return Ok(()),
        leaf => {
            writeln!(report, "{path} {leaf}")?;
            return Ok(());
        }
    };
    for (key, value) in inner {
        let path = if path.is_empty() {
            key
        } else {
            format!("{path}.{key}")
        };
        write_counters(report, &path, value)?;
    }
    Ok(())
}

fn writer(path: &Path, like: PcapHeader) -> Anyhow<PcapWriter<BufWriter<File>>> {
    let file = BufWriter::new(named(path, File::create(path))?);
    // An encapsulated frame may be longer than any that was captured.
    let header = PcapHeader {
        snaplen: 65_535,
        ..like
    };
    named(path, PcapWriter::with_header(file, header))
}

/// Puts the file's name in front of an error.
fn named<T, E: std::fmt::Display>(path: &Path, result: Result<T, E>) -> Anyhow<T> {
    result.map_err(|error| format!("{}: {error}", path.display()).into())
}
