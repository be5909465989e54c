//! The JSON of the page: the report, without the reals of closed VIPs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::report::Attachment;
use crate::report::Count;
use crate::report::Health;
use crate::report::OfVip;
use crate::report::Problem;
use crate::report::Report;
use crate::report::Transition;

/// `/api/status`. Counters are those since the balancer was loaded.
#[derive(Debug, Serialize)]
pub(super) struct Status<'a> {
    /// Seconds on the clock of the rates.
    now: f64,
    version: &'a str,
    vips: Vec<VipRow<'a>>,
    drains: Vec<DrainRow<'a>>,
    drops: Vec<DropRow<'a>>,
    attachments: &'a [Attachment],
    /// Findings of the diagnosis except good ones.
    problems: &'a [Problem],
    /// Lookups that found no flow entry.
    new_flows: u64,
}

#[derive(Debug, Serialize)]
struct VipRow<'a> {
    vip: &'a str,
    /// All reals, and those that get new flows.
    reals: usize,
    serving: usize,
    packets: u64,
    bytes: u64,
    unsettled: u32,
    /// The age in seconds of the oldest unsettled slot.
    oldest: Option<f64>,
}

#[derive(Debug, Serialize)]
struct DrainRow<'a> {
    real: IpAddr,
    vip: &'a str,
    /// Seconds without a packet, if known.
    silent: Option<f64>,
    done: bool,
}

#[derive(Debug, Serialize)]
struct DropRow<'a> {
    reason: &'a str,
    packets: u64,
}

/// `/api/reals?vip=...`.
#[derive(Debug, Serialize)]
pub(super) struct Reals<'a> {
    now: f64,
    reals: Vec<RealRow<'a>>,
}

#[derive(Debug, Serialize)]
struct RealRow<'a> {
    address: IpAddr,
    weight: u32,
    /// One word.
    health: &'static str,
    /// The result of the last probe.
    result: Option<&'a str>,
    history: &'a [Transition],
    /// Over all VIPs of this real.
    packets: u64,
    bytes: u64,
}

pub(super) fn status(report: &Report) -> Status<'_> {
    let drops = report.drops.iter();
    Status {
        now: now(report),
        version: &report.version,
        vips: report.vips.iter().map(row).collect(),
        drains: report.vips.iter().flat_map(drains).collect(),
        drops: drops
            .map(|(reason, packets)| DropRow {
                reason,
                packets: *packets,
            })
            .collect(),
        attachments: &report.attachments,
        problems: report.problems.as_deref().unwrap_or_default(),
        new_flows: report.flow_table.misses,
    }
}

fn now(report: &Report) -> f64 {
    report.running
}

fn row(of: &crate::report::Vip) -> VipRow<'_> {
    let slots = of.slots.unwrap_or_default();
    VipRow {
        vip: &of.vip,
        reals: of.reals.len(),
        serving: of
            .reals
            .iter()
            .filter(|real| real.weight > 0 && !real.down)
            .count(),
        packets: of.sent.packets,
        bytes: of.sent.bytes,
        unsettled: slots.unsettled,
        oldest: slots.oldest,
    }
}

fn drains(of: &crate::report::Vip) -> impl Iterator<Item = DrainRow<'_>> {
    of.reals.iter().filter_map(|real| {
        let drain = real.drain?;
        Some(DrainRow {
            real: real.real,
            vip: &of.vip,
            silent: drain.silent,
            done: drain.done,
        })
    })
}

/// `None` if there is no such VIP.
pub(super) fn reals<'a>(report: &'a Report, vip: &str) -> Option<Reals<'a>> {
    let vip = report.vips.iter().find(|of| of.vip == vip)?;
    let sent: BTreeMap<IpAddr, Count> = report.reals.iter().map(|of| (of.real, of.sent)).collect();
    let reals = vip.reals.iter().map(|of| {
        let sent = sent.get(&of.real).copied().unwrap_or_default();
        RealRow {
            address: of.real,
            weight: of.weight,
            health: word(of),
            result: of.check.as_ref().map(|check| check.result.as_str()),
            history: of.check.as_ref().map_or(&[], |check| &check.history),
            packets: sent.packets,
            bytes: sent.bytes,
        }
    });
    Some(Reals {
        now: now(report),
        reals: reals.collect(),
    })
}

fn word(of: &OfVip) -> &'static str {
    match (of.down, of.drain.is_some(), of.health) {
        (true, ..) | (_, _, Health::Down) => "down",
        (_, true, _) => "draining",
        (_, _, Health::Up) => "up",
        (_, _, Health::Unknown) => "unknown",
        (_, _, Health::NotProbed) => "not probed",
    }
}

/// Why traffic should not come here, one line for each reason; empty if it should.
pub(super) fn unready(report: &Report) -> Vec<String> {
    let mut why = Vec::new();
    if report.attachments.is_empty() {
        why.push("not attached to any interface".to_owned());
    }
    let lost = report.attachments.iter().filter(|of| !of.is_there());
    why.extend(lost.map(|of| format!("{}: {}", of.place, of.state)));
    if report.vips.is_empty() {
        why.push("there is no VIP".to_owned());
    }
    let dead = report.vips.iter().filter(|vip| row(vip).serving == 0);
    why.extend(dead.map(|vip| format!("{}: no real gets new flows", vip.vip)));
    why
}
