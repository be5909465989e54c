//! Rates from two reports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::report::Cpu as CpuReport;
use super::report::OfVip;
use super::report::Rate;
use super::report::Report;
use super::report::Slots;
use super::report::rate;
use super::report::rated;

/// A VIP or a real.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Traffic {
    pub(crate) name: String,
    /// Its index among all VIPs, or all reals, by address.
    pub(crate) place: usize,
    pub(crate) rate: Rate,
    /// Packets so far.
    pub(crate) packets: u64,
    /// For a real: the VIPs for which it is down, and all its VIPs.
    pub(crate) down: Option<(usize, usize)>,
    /// For a VIP.
    pub(crate) reals: Vec<OfVip>,
    /// For a VIP: its ring's slots.
    pub(crate) slots: Option<Slots>,
    /// For a VIP: its entries in the flow tables, if they were counted since it was added.
    pub(crate) entries: Option<u64>,
}

/// Frames dropped for one reason.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drops {
    pub(crate) reason: String,
    /// Per second.
    pub(crate) rate: f64,
    /// So far.
    pub(crate) frames: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) cpu: u32,
    /// Packets forwarded per second.
    pub(crate) packets: f64,
    /// Its share of all forwarded packets, 0 to 1.
    pub(crate) share: f64,
    pub(crate) under_flood: bool,
}

/// The traffic between two samples, busiest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Frames with their Ethernet headers.
    pub(crate) received: Rate,
    pub(crate) sent: Rate,
    pub(crate) passed: Rate,
    pub(crate) dropped: Rate,
    /// Packets to VIPs per second.
    pub(crate) to_vips: f64,
    /// Those in settled slots, which need no lookup in the flow table.
    pub(crate) settled: f64,
    /// Those in unsettled slots that went to the slot's base, and those with an entry.
    pub(crate) by_base: f64,
    pub(crate) by_entry: f64,
    /// New flows per second.
    pub(crate) new_flows: f64,
    /// Packets per second on CPUs without a flow table.
    pub(crate) fallback: f64,
    /// The share of lookups in the flow table that found an entry; `None` without lookups.
    pub(crate) hit_rate: Option<f64>,
    pub(crate) vips: Vec<Traffic>,
    pub(crate) reals: Vec<Traffic>,
    /// Reasons with dropped frames.
    pub(crate) drops: Vec<Drops>,
    /// Forwarding CPUs, and others that forwarded.
    pub(crate) cpus: Vec<Cpu>,
}

impl Rates {
    pub(crate) fn between(before: &Report, now: &Report) -> Self {
        let now = &rated(now.clone(), before);
        let seconds = now.since(before);
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let vips = now.vips.iter().enumerate().map(|(place, of)| Traffic {
            name: of.vip.clone(),
            place,
            rate: of.rate.unwrap_or_default(),
            packets: of.sent.packets,
            down: None,
            reals: of.reals.clone(),
            slots: of.slots,
            entries: of.flow_entries,
        });
        let down = down(now);
        let reals = now.reals.iter().enumerate().map(|(place, of)| Traffic {
            name: of.real.to_string(),
            place,
            rate: of.rate.unwrap_or_default(),
            packets: of.sent.packets,
            down: down.get(&of.real).copied(),
            reals: Vec::new(),
            slots: None,
            entries: None,
        });
        let (flows, known) = (&now.flow_table, &before.flow_table);
        let asked = flows.packets.saturating_sub(known.packets);
        let settled = flows.settled.saturating_sub(known.settled);
        let misses = flows.misses.saturating_sub(known.misses);
        let (frames, earlier) = (&now.frames, &before.frames);
        Self {
            received: rate(frames.received, Some(&earlier.received), seconds),
            sent: rate(frames.sent, Some(&earlier.sent), seconds),
            passed: rate(frames.passed, Some(&earlier.passed), seconds),
            dropped: rate(frames.dropped, Some(&earlier.dropped), seconds),
            to_vips: (asked + settled) as f64 / seconds,
            settled: settled as f64 / seconds,
            by_base: per_second(flows.by_base, known.by_base),
            by_entry: per_second(flows.by_entry, known.by_entry),
            new_flows: misses as f64 / seconds,
            fallback: per_second(flows.fallback, known.fallback),
            hit_rate: (asked > 0).then(|| 1.0 - (misses as f64 / asked as f64).min(1.0)),
            vips: busiest_first(vips),
            reals: busiest_first(reals),
            drops: drops(now, before, per_second),
            cpus: cpus(now, before, per_second),
        }
    }

    pub(crate) fn vip(&self, name: &str) -> Option<&Traffic> {
        self.vips.iter().find(|vip| vip.name == name)
    }

    pub(crate) fn real(&self, name: &str) -> Option<&Traffic> {
        self.reals.iter().find(|real| real.name == name)
    }

    /// The busiest CPU's packets, divided by the mean: 1 is an even spread.
    pub(crate) fn imbalance(&self) -> Option<f64> {
        let busiest = self.cpus.iter().map(|cpu| cpu.share).fold(0.0, f64::max);
        (busiest > 0.0).then_some(busiest * self.cpus.len() as f64)
    }
}

/// By traffic, then by name.
fn busiest_first(rows: impl Iterator<Item = Traffic>) -> Vec<Traffic> {
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|a, b| {
        let by_rate = b.rate.packets.total_cmp(&a.rate.packets);
        by_rate.then_with(|| a.name.cmp(&b.name))
    });
    rows
}

/// By address: the VIPs for which the real is down, and all its VIPs.
fn down(now: &Report) -> BTreeMap<IpAddr, (usize, usize)> {
    let mut down = BTreeMap::<IpAddr, (usize, usize)>::new();
    for of in now.vips.iter().flat_map(|vip| &vip.reals) {
        let (down, all) = down.entry(of.real).or_default();
        *down += usize::from(of.down);
        *all += 1;
    }
    down
}

fn drops(now: &Report, before: &Report, per_second: impl Fn(u64, u64) -> f64) -> Vec<Drops> {
    let mut drops: Vec<Drops> = now
        .drops
        .iter()
        .filter(|(_, frames)| **frames > 0)
        .map(|(reason, frames)| Drops {
            reason: reason.clone(),
            rate: per_second(*frames, before.drops.get(reason).copied().unwrap_or(0)),
            frames: *frames,
        })
        .collect();
    drops.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.frames.cmp(&a.frames)));
    drops
}

/// In the order of their numbers: bars that stay in place are easier to watch.
fn cpus(now: &Report, before: &Report, per_second: impl Fn(u64, u64) -> f64) -> Vec<Cpu> {
    let earlier = |cpu: &CpuReport| {
        let same = before.cpus.iter().find(|other| other.cpu == cpu.cpu);
        same.map_or(0, |other| other.forwarded)
    };
    let mut cpus: Vec<Cpu> = now
        .cpus
        .iter()
        .filter(|cpu| cpu.forwarded > 0 || cpu.forwards)
        .map(|cpu| Cpu {
            cpu: cpu.cpu,
            packets: per_second(cpu.forwarded, earlier(cpu)),
            share: 0.0,
            under_flood: cpu.under_flood,
        })
        .collect();
    let all: f64 = cpus.iter().map(|cpu| cpu.packets).sum();
    if all > 0.0 {
        for cpu in &mut cpus {
            cpu.share = cpu.packets / all;
        }
    }
    cpus
}
