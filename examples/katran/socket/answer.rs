//! Requests, and what is answered.

use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use katran::Vip;
use katran::events::Event;
use katran::events::EventKind;
use katran::events::MonitorOptions;
use katran::health::Document;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::common::say;
use crate::common::with_causes;
use crate::options::described;
use crate::run::Handle;

/// Events waiting for a client; the program counts those that are lost.
const WAITING: usize = 1024;
/// How often to check whether a listening client is still there.
const LOOK: Duration = Duration::from_millis(200);

/// A request of a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    Status {
        #[serde(default)]
        diagnose: bool,
    },
    Apply {
        document: String,
        #[serde(default)]
        dry_run: bool,
    },
    Drain {
        real: IpAddr,
        #[serde(default)]
        vip: Option<String>,
        #[serde(default)]
        undo: bool,
    },
    Monitor(Listening),
}

/// Which events to send.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listening {
    /// Kinds of events; all if empty.
    #[serde(default)]
    pub(crate) events: Vec<String>,
    pub(crate) rate_limit: u32,
    pub(crate) snap_length: u32,
    #[serde(default)]
    pub(crate) packet_limit: Option<u64>,
}

/// An event for a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Heard {
    pub(crate) kind: String,
    /// Microseconds since 1970.
    pub(crate) time: u64,
    /// The length of the whole frame, in bytes.
    pub(crate) length: u32,
    /// Its first bytes, in hexadecimal.
    pub(crate) packet: String,
}

/// The counts of events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Heeded {
    pub(crate) delivered: u64,
    pub(crate) over_limit: u64,
    /// Left out by the program.
    pub(crate) limited: u64,
    pub(crate) lost: u64,
}

/// Answers a request.
pub(super) fn answer(line: &[u8], mut stream: &UnixStream, handle: &Handle) -> Result<()> {
    let done = match serde_json::from_slice(line) {
        Err(error) => Err(anyhow::anyhow!("not a request: {error}")),
        Ok(Request::Monitor(listening)) => monitor(handle, listening, stream),
        Ok(request) => done(request, handle, By::Socket),
    };
    let answer = match done {
        Ok(answer) => json!({ "ok": answer }),
        Err(error) => json!({ "error": with_causes(&error) }),
    };
    writeln!(stream, "{answer}")?;
    Ok(())
}

/// The source of a document that came without a file.
const COMMAND: &str = "command";

/// How a request arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// From a client that may do whatever this process may.
    Socket,
    /// From a client with the token.
    Http,
}

/// Handles a request with a one-line answer: all but `monitor`.
pub(crate) fn done(request: Request, handle: &Handle, by: By) -> Result<Value> {
    match request {
        Request::Status { diagnose } => Ok(serde_json::to_value(handle.report(diagnose)?)?),
        Request::Apply { document, dry_run } => apply(handle, &document, dry_run, by),
        Request::Drain { real, vip, undo } => drain(handle, real, vip, undo),
        Request::Monitor(_) => {
            anyhow::bail!("events are available only on the socket: use `katran monitor`")
        }
    }
}

fn apply(handle: &Handle, document: &str, dry_run: bool, by: By) -> Result<Value> {
    // Parsed here, so that no other client waits for it.
    let read = Document::from_toml(document).map_err(anyhow::Error::from);
    let applied = handle.ask(move |owner| {
        if let (By::Http, Ok(document)) = (by, &read) {
            owner.check_commands(document)?;
        }
        match dry_run {
            true => owner.would_change(&read?),
            false => owner.apply_document(read, COMMAND.to_owned()),
        }
    });
    let changes = applied??;
    Ok(match dry_run {
        true => described(&changes, "would be applied").into(),
        false => {
            let text = described(&changes, "applied");
            say(&text);
            text.into()
        }
    })
}

fn drain(handle: &Handle, real: IpAddr, vip: Option<String>, undo: bool) -> Result<Value> {
    let vip = vip.map(|vip| vip.parse::<Vip>()).transpose()?;
    let vips = handle.ask(move |owner| owner.drain(vip, real, undo))??;
    Ok(vips.iter().map(Vip::to_string).collect())
}

/// Sends events until the client hangs up or writes something.
fn monitor(handle: &Handle, listening: Listening, stream: &UnixStream) -> Result<Value> {
    let kinds = listening
        .events
        .iter()
        .map(|name| name.parse::<EventKind>());
    let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
    let mut options = MonitorOptions::new()
        .rate_limit(listening.rate_limit)
        .snap_length(listening.snap_length);
    if !kinds.is_empty() {
        options = options.events(kinds);
    }
    if let Some(packets) = listening.packet_limit {
        options = options.packet_limit(packets);
    }
    let (sender, events) = mpsc::sync_channel(WAITING);
    let started = handle.ask(move |owner| {
        // A slow client makes it wait; the program counts what overflows in the meantime.
        owner.monitor(options, move |event| drop(sender.send(heard(event))))
    });
    let (monitor, switched_on) = started??;
    let write = |line: Value| {
        let mut stream = stream;
        writeln!(stream, "{line}")
    };
    let mut heard = write(json!({ "ok": { "switched_on": switched_on } }));
    stream.set_read_timeout(Some(Duration::from_millis(1)))?;
    while heard.is_ok() {
        match events.recv_timeout(LOOK) {
            Ok(event) => heard = write(json!({ "event": event })),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let mut byte = [0];
                let mut reader = stream;
                match reader.read(&mut byte) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    _ => break,
                }
            }
        }
    }
    // Deliver what is in flight, or lose it.
    let left = std::thread::spawn(move || events.into_iter().collect::<Vec<_>>());
    let stats = monitor.stop();
    for event in left.join().unwrap_or_default() {
        heard = heard.and_then(|()| write(json!({ "event": event })));
    }
    let counters = handle.ask(|owner| {
        owner.end_monitor();
        owner.events()
    });
    let counters = counters??;
    heard?;
    Ok(serde_json::to_value(Heeded {
        delivered: stats.delivered,
        over_limit: stats.over_limit,
        limited: counters.limited,
        lost: counters.lost,
    })?)
}

fn heard(event: &Event) -> Heard {
    use std::fmt::Write;
    let time = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut packet = String::with_capacity(2 * event.packet.len());
    for byte in &event.packet {
        // Writing to a string cannot fail.
        let _ = write!(packet, "{byte:02x}");
    }
    Heard {
        kind: event.kind.to_string(),
        time: time.as_micros() as u64,
        length: event.length,
        packet,
    }
}
