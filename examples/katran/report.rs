//! What the running balancer reports, through the socket and in `status --json`. Counters count
//! since the balancer was loaded; for rates, ask twice.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;

/// The prefix of a line for frames that an interface did not send, though the balancer did.
pub(crate) const NOT_SENT: &str = "not sent by ";

/// The state of a working attachment.
pub(crate) const ATTACHED: &str = "attached";

/// Packets and bytes; IP packets for VIPs and reals, else whole frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// Traffic per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rate {
    pub(crate) packets: f64,
    pub(crate) bits: f64,
}

/// The whole report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The crate's version.
    pub(crate) version: String,
    pub(crate) process: u32,
    /// Seconds from the process's start to these figures.
    pub(crate) running: f64,
    /// Seconds since then: while busy with a change, the balancer answers with earlier figures.
    pub(crate) age: f64,
    /// Where packets arrive.
    pub(crate) attachments: Vec<Attachment>,
    /// The directory that it is pinned in.
    pub(crate) pinned: Option<String>,
    pub(crate) vips: Vec<Vip>,
    pub(crate) reals: Vec<Real>,
    pub(crate) frames: Frames,
    pub(crate) flow_table: FlowTable,
    /// Dropped frames by reason, without reasons at 0; and frames that interfaces did not send.
    pub(crate) drops: BTreeMap<String, u64>,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) last_apply: Option<Applied>,
    /// The last refused document, unless one has succeeded since.
    pub(crate) refused: Option<Applied>,
    /// Findings of the diagnosis except good ones; `None` if it was not requested.
    pub(crate) problems: Option<Vec<Problem>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// An interface or a root entry.
    pub(crate) place: String,
    /// The XDP mode; `None` for an entry.
    pub(crate) mode: Option<String>,
    /// [`ATTACHED`], or the reason why not.
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
    /// Its entries in the flow tables, if they were counted since it was added.
    pub(crate) flow_entries: Option<u64>,
    /// Its ring's slots, with `flow_tracking = "changed"`.
    pub(crate) slots: Option<Slots>,
    pub(crate) reals: Vec<OfVip>,
    /// Too few of them work, so no more are taken out.
    #[serde(default)]
    pub(crate) panics: bool,
    /// All others are down, so packets go to drained ones.
    #[serde(default)]
    pub(crate) falls_back: bool,
    /// Computed by the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<Rate>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slots {
    pub(crate) settled: u32,
    pub(crate) unsettled: u32,
    /// The age in seconds of the oldest unsettled slot.
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
    /// Its last probe; `None` if none has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) check: Option<Check>,
    pub(crate) drain: Option<Drain>,
}

/// The health by probes.
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

/// Results of probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// When the last one ended, in seconds since 1970.
    pub(crate) time: f64,
    /// `answers`, the reason of the failure, or why it says nothing.
    pub(crate) result: String,
    /// It says nothing: not sent, or not through the tunnel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unsent: bool,
    /// The cause of the failure in one word, as in `katran_health_failures_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
    /// Transitions, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) history: Vec<Transition>,
}

/// A real came up or went down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Transition {
    /// Seconds since 1970.
    pub(crate) time: f64,
    pub(crate) up: bool,
    pub(crate) reason: String,
}

/// A real with weight 0 at a VIP, which gets no new flows there (UDP: after `udp_timeout`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drain {
    /// By `katran drain`, not by the document.
    pub(crate) by_command: bool,
    /// Seconds without a packet, if known.
    pub(crate) silent: Option<f64>,
    /// Its flows have ended: it can be switched off.
    pub(crate) done: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Real {
    pub(crate) real: IpAddr,
    pub(crate) sent: Count,
    /// Computed by the client.
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

/// Packets to VIPs by what chose their real.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FlowTable {
    /// Packets that looked into the table.
    pub(crate) packets: u64,
    pub(crate) settled: u64,
    /// Those without an entry: new flows.
    pub(crate) misses: u64,
    pub(crate) by_base: u64,
    pub(crate) by_entry: u64,
    /// Those on CPUs without a table.
    pub(crate) fallback: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) cpu: u32,
    pub(crate) forwarded: u64,
    pub(crate) under_flood: bool,
    /// It is a forwarding CPU.
    pub(crate) forwards: bool,
}

/// A document that was applied or refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    /// Seconds since 1970.
    pub(crate) time: f64,
    /// How many seconds it took.
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
    /// Whether it is from before a change in progress, not only delayed on its way.
    pub(crate) fn is_old(&self) -> bool {
        self.age > 0.5
    }

    /// Seconds since an earlier report. Two of the same moment give no rate, rather than an
    /// infinite one.
    pub(crate) fn since(&self, before: &Self) -> f64 {
        (self.running - before.running).max(1e-3)
    }
}

/// A report with rates since an earlier one.
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

/// The rate over so many seconds. A VIP that was removed and added again counts from 0.
pub(crate) fn rate(now: Count, before: Option<&Count>, seconds: f64) -> Rate {
    let before = before.copied().unwrap_or_default();
    let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    Rate {
        packets: per_second(now.packets, before.packets),
        bits: per_second(now.bytes, before.bytes) * 8.0,
    }
}

/// A number of things, such as `1 VIP` or `2 VIPs`.
pub(crate) fn counted(number: impl std::fmt::Display, one: &str) -> String {
    let number = number.to_string();
    let many = if number == "1" { "" } else { "s" };
    format!("{number} {one}{many}")
}

/// Three or more digits with a decimal prefix, at most seven characters.
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
