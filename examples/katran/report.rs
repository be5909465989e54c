//! What the running balancer tells about itself, as it goes through the socket and as `status --json` prints it.
//! Counters are those since the balancer was loaded; for rates ask twice.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;

/// What a line of frames begins with that an interface has not sent, though the balancer had.
pub(crate) const NOT_SENT: &str = "not sent by ";

/// The state of an attachment by which packets come in.
pub(crate) const ATTACHED: &str = "attached";

/// Packets and bytes; of VIPs and reals as IP counts them, else of whole frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// Traffic in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rate {
    pub(crate) packets: f64,
    pub(crate) bits: f64,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Of the crate.
    pub(crate) version: String,
    pub(crate) process: u32,
    /// Seconds since the process began to balance, when the figures were taken.
    pub(crate) running: f64,
    /// Seconds since then: the balancer answers from what it knew when it is busy with a change.
    pub(crate) age: f64,
    /// Where packets come in.
    pub(crate) attachments: Vec<Attachment>,
    /// Where it is pinned.
    pub(crate) pinned: Option<String>,
    pub(crate) vips: Vec<Vip>,
    pub(crate) reals: Vec<Real>,
    pub(crate) frames: Frames,
    pub(crate) flow_table: FlowTable,
    /// Dropped frames by reason, of those that there have been; and what interfaces have not sent.
    pub(crate) drops: BTreeMap<String, u64>,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) last_apply: Option<Applied>,
    /// The last one that was refused, unless one has succeeded since.
    pub(crate) refused: Option<Applied>,
    /// What the diagnosis has found that is not as it should be; `None`: it was not asked for.
    pub(crate) problems: Option<Vec<Problem>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// An interface, or an entry of a root program.
    pub(crate) place: String,
    /// Of XDP; `None`: an entry.
    pub(crate) mode: Option<String>,
    /// [`ATTACHED`], or why not.
    pub(crate) state: String,
}

impl Attachment {
    pub(crate) fn is_there(&self) -> bool {
        self.state == ATTACHED
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vip {
    pub(crate) vip: String,
    pub(crate) sent: Count,
    /// Entries in the flow tables, if they have been counted since it was added.
    pub(crate) flow_entries: Option<u64>,
    /// Of its ring, where only changed flows are remembered.
    pub(crate) slots: Option<Slots>,
    pub(crate) reals: Vec<OfVip>,
    /// Too few of them work, so those that are in use stay so.
    #[serde(default)]
    pub(crate) panics: bool,
    /// All others are down, so drained ones serve.
    #[serde(default)]
    pub(crate) falls_back: bool,
    /// The client works it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<Rate>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slots {
    pub(crate) settled: u32,
    pub(crate) unsettled: u32,
    /// For how many seconds the oldest of those.
    pub(crate) oldest: Option<f64>,
}

/// A real of a VIP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OfVip {
    pub(crate) real: IpAddr,
    pub(crate) weight: u32,
    /// It is down: it gets no flows, whatever its weight.
    pub(crate) down: bool,
    pub(crate) health: Health,
    /// What came of its last probe; `None`: none has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) check: Option<Check>,
    pub(crate) drain: Option<Drain>,
}

/// What probes say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Health {
    #[default]
    NotProbed,
    /// No probe has ended yet.
    Unknown,
    Up,
    Down,
}

/// What probes have found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// Seconds since 1970, when the last one ended.
    pub(crate) time: f64,
    /// `answers`, or why it failed, or why it says nothing.
    pub(crate) result: String,
    /// It says nothing: it was not sent, or not through the tunnel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unsent: bool,
    /// Why it failed, in a word, as `katran_health_failures_total` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
    /// When it came up or went down, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) history: Vec<Transition>,
}

/// A real has come up or gone down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Transition {
    /// Seconds since 1970.
    pub(crate) time: f64,
    pub(crate) up: bool,
    pub(crate) reason: String,
}

/// A real that gets no new flows from a VIP (of UDP after `udp_timeout`), as its weight there is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drain {
    /// By `katran drain`; else by the document.
    pub(crate) by_command: bool,
    /// Seconds without a packet, if that is known.
    pub(crate) silent: Option<f64>,
    /// So long that what it had is over: it may be switched off.
    pub(crate) done: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Real {
    pub(crate) real: IpAddr,
    pub(crate) sent: Count,
    /// The client works it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<Rate>,
}

/// Frames by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Frames {
    pub(crate) received: Count,
    pub(crate) sent: Count,
    pub(crate) passed: Count,
    pub(crate) dropped: Count,
}

/// Packets to VIPs by what led them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FlowTable {
    /// For which the table was asked.
    pub(crate) packets: u64,
    pub(crate) settled: u64,
    /// New flows.
    pub(crate) misses: u64,
    pub(crate) by_base: u64,
    pub(crate) by_entry: u64,
    /// On CPUs without a table.
    pub(crate) fallback: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) cpu: u32,
    pub(crate) forwarded: u64,
    pub(crate) under_flood: bool,
    /// It is meant to forward.
    pub(crate) forwards: bool,
}

/// A document that was applied, or refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    /// Seconds since 1970.
    pub(crate) time: f64,
    /// Seconds that it took.
    pub(crate) took: f64,
    /// What it changed, or why it changed nothing.
    pub(crate) result: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) interface: String,
    /// `note`, `warning` or `PROBLEM`.
    pub(crate) severity: String,
    pub(crate) subject: String,
    pub(crate) message: String,
    pub(crate) advice: String,
}

impl Report {
    /// Whether it is from before a change that is under way: else it has only come here.
    pub(crate) fn is_old(&self) -> bool {
        self.age > 0.5
    }

    /// Seconds since an earlier one. Two of one moment tell no rate; nothing is infinite.
    pub(crate) fn since(&self, before: &Self) -> f64 {
        (self.running - before.running).max(1e-3)
    }
}

/// A report with the rates since an earlier one.
pub(crate) fn rated(mut now: Report, before: &Report) -> Report {
    let seconds = now.since(before);
    let vips: BTreeMap<_, _> = before.vips.iter().map(|of| (&of.vip, of.sent)).collect();
    for vip in &mut now.vips {
        vip.rate = Some(rate(vip.sent, vips.get(&vip.vip), seconds));
    }
    let reals: BTreeMap<_, _> = before.reals.iter().map(|of| (of.real, of.sent)).collect();
    for real in &mut now.reals {
        real.rate = Some(rate(real.sent, reals.get(&real.real), seconds));
    }
    now
}

/// What was counted in so many seconds. One that was removed and added again counts from 0.
pub(crate) fn rate(now: Count, before: Option<&Count>, seconds: f64) -> Rate {
    let before = before.copied().unwrap_or_default();
    let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    Rate {
        packets: per_second(now.packets, before.packets),
        bits: per_second(now.bytes, before.bytes) * 8.0,
    }
}

/// Three digits or more, with a prefix of the decimal system: at most seven signs.
pub(crate) fn scaled(number: f64) -> String {
    let mut scaled = number;
    for prefix in ["", "k", "M", "G", "T", "P"] {
        if scaled < 999.95 {
            let digits = usize::from(!prefix.is_empty());
            return format!("{scaled:.digits$} {prefix}").trim_end().to_owned();
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.1} E")
}
