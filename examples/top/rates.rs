//! Rates: what two samples of the counters say about the time between them.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use katran::Katran;
use katran::flows::FlowCount;
use katran::stats::Count;
use katran::stats::CpuCounters;
use katran::stats::FlowTableCounters;
use katran::stats::SlotStats;
use katran::stats::Totals;

/// What a line of frames begins with that an interface has not sent, though the balancer had.
pub(crate) const NOT_SENT: &str = "not sent by ";

/// The counters that `top` shows.
pub(crate) struct Sample {
    pub(crate) time: Instant,
    pub(crate) totals: Totals,
    pub(crate) flow_table: FlowTableCounters,
    /// By reason; and what interfaces have not sent.
    pub(crate) drops: BTreeMap<String, u64>,
    /// By the VIP's text form.
    pub(crate) vips: BTreeMap<String, Count>,
    /// By the VIP's text form.
    pub(crate) slots: BTreeMap<String, SlotStats>,
    /// Entries of the flow tables, by the VIP's text form.
    pub(crate) entries: BTreeMap<String, u64>,
    /// By address.
    pub(crate) reals: BTreeMap<String, Count>,
    /// By address, where there are any: VIPs for which the real is down, and all that have it.
    pub(crate) down: BTreeMap<String, (usize, usize)>,
    pub(crate) cpus: Vec<CpuCounters>,
    /// The CPUs that are meant to forward.
    pub(crate) forwarding: Vec<u32>,
}

impl Sample {
    /// Counting the flow tables' entries goes on for about `time`: with millions of flows they are counted
    /// less often than all else.
    pub(crate) fn take(katran: &Katran, count: &mut FlowCount, time: Duration) -> Result<Self> {
        katran.flows().recount(count, time)?;
        let mut vips = BTreeMap::new();
        let mut slots = BTreeMap::new();
        let mut health = BTreeMap::new();
        for vip in katran.vips() {
            vips.insert(vip.to_string(), katran.stats().vip(vip)?.forwarded);
            slots.insert(vip.to_string(), katran.stats().slots(vip)?);
            let down = katran.down_reals(vip)?;
            for real in katran.reals(vip)? {
                let of: &mut (usize, usize) = health.entry(real.address()).or_default();
                of.0 += usize::from(down.binary_search(&real.address()).is_ok());
                of.1 += 1;
            }
        }
        let addresses: Vec<_> = health.keys().copied().collect();
        let down = health.into_iter().filter(|(_, (down, _))| *down > 0);
        let reals = katran.stats().reals(&addresses)?;
        let reals = addresses.iter().zip(reals);
        let drops = katran.stats().drop_reasons()?;
        let unsent = katran.stats().interfaces().into_iter();
        let unsent = unsent.map(|of| (format!("{NOT_SENT}{}", of.interface), of.unsent));
        Ok(Self {
            time: Instant::now(),
            totals: katran.stats().totals()?,
            flow_table: katran.stats().flow_table()?,
            drops: drops
                .iter()
                .map(|(reason, frames)| (reason.name().to_owned(), frames))
                .chain(unsent)
                .collect(),
            vips,
            slots,
            entries: count
                .vips()
                .map(|(vip, entries)| (vip.to_string(), entries))
                .collect(),
            reals: reals
                .map(|(address, counters)| (address.to_string(), counters.forwarded))
                .collect(),
            down: down
                .map(|(address, of)| (address.to_string(), of))
                .collect(),
            cpus: katran.stats().cpus()?,
            forwarding: katran.forwarding_cpus(),
        })
    }
}

/// Traffic in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rate {
    pub(crate) packets: f64,
    pub(crate) bits: f64,
}

/// A VIP or a real.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Traffic {
    pub(crate) name: String,
    pub(crate) rate: Rate,
    /// Packets so far.
    pub(crate) packets: u64,
    /// Of a real: it is down for so many of the VIPs that have it.
    pub(crate) down: Option<(usize, usize)>,
    /// Of a VIP: the slots of its ring.
    pub(crate) slots: Option<SlotStats>,
    /// Of a VIP: its entries in the flow tables, if they have been counted since it was added.
    pub(crate) entries: Option<u64>,
}

/// Frames dropped for one reason, or not sent by an interface.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drops {
    pub(crate) reason: String,
    /// In a second.
    pub(crate) rate: f64,
    /// So far.
    pub(crate) frames: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) cpu: u32,
    /// Packets forwarded in a second.
    pub(crate) packets: f64,
    /// Of all that were forwarded meanwhile: 0 to 1.
    pub(crate) share: f64,
    pub(crate) under_flood: bool,
}

/// What went on between two samples, the busiest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Frames with their Ethernet headers.
    pub(crate) received: Rate,
    pub(crate) sent: Rate,
    pub(crate) passed: Rate,
    pub(crate) dropped: Rate,
    /// Packets to VIPs in a second.
    pub(crate) to_vips: f64,
    /// Those of them in settled slots, for which the flow table is not asked.
    pub(crate) settled: f64,
    /// Those in unsettled slots that went to the slot's base, and those that an entry led.
    pub(crate) by_base: f64,
    pub(crate) by_entry: f64,
    /// New flows in a second.
    pub(crate) new_flows: f64,
    /// Packets in a second on CPUs without a flow table.
    pub(crate) fallback: f64,
    /// Of the packets for which the flow table was asked: the share whose flow was not new; `None` without any.
    pub(crate) hit_rate: Option<f64>,
    pub(crate) vips: Vec<Traffic>,
    pub(crate) reals: Vec<Traffic>,
    /// Reasons for which a frame has been dropped.
    pub(crate) drops: Vec<Drops>,
    /// CPUs that are meant to forward, and others that have.
    pub(crate) cpus: Vec<Cpu>,
}

impl Rates {
    pub(crate) fn between(before: &Sample, now: &Sample) -> Self {
        // Two samples of one moment tell no rate; nothing is infinite.
        let seconds = (now.time - before.time).as_secs_f64().max(1e-3);
        // A VIP that was removed and added again counts from 0.
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let rate = |now: Count, before: Count| Rate {
            packets: per_second(now.packets, before.packets),
            bits: per_second(now.bytes, before.bytes) * 8.0,
        };
        let traffic = |now: &BTreeMap<String, Count>, before: &BTreeMap<String, Count>| {
            let mut rows: Vec<Traffic> = now
                .iter()
                .map(|(name, count)| Traffic {
                    name: name.clone(),
                    rate: rate(*count, before.get(name).copied().unwrap_or_default()),
                    packets: count.packets,
                    down: None,
                    slots: None,
                    entries: None,
                })
                .collect();
            rows.sort_by(|a, b| b.rate.packets.total_cmp(&a.rate.packets));
            rows
        };
        let mut reals = traffic(&now.reals, &before.reals);
        for real in &mut reals {
            real.down = now.down.get(&real.name).copied();
        }
        let mut vips = traffic(&now.vips, &before.vips);
        for vip in &mut vips {
            vip.slots = now.slots.get(&vip.name).copied();
            vip.entries = now.entries.get(&vip.name).copied();
        }
        let (flows, known) = (&now.flow_table, &before.flow_table);
        let asked = flows.packets.saturating_sub(known.packets);
        let settled = flows.settled.saturating_sub(known.settled);
        let misses = flows.misses.saturating_sub(known.misses);
        let (totals, earlier) = (&now.totals, &before.totals);
        Self {
            received: rate(totals.total, earlier.total),
            sent: rate(totals.tx, earlier.tx),
            passed: rate(totals.pass, earlier.pass),
            dropped: rate(totals.drop, earlier.drop),
            to_vips: (asked + settled) as f64 / seconds,
            settled: settled as f64 / seconds,
            by_base: per_second(flows.by_base, known.by_base),
            by_entry: per_second(flows.by_entry, known.by_entry),
            new_flows: misses as f64 / seconds,
            fallback: per_second(flows.fallback, known.fallback),
            hit_rate: (asked > 0).then(|| 1.0 - (misses as f64 / asked as f64).min(1.0)),
            vips,
            reals,
            drops: drops(now, before, per_second),
            cpus: cpus(now, before, per_second),
        }
    }

    /// How many times the mean of these CPUs the busiest one forwards: 1 is an even spread.
    pub(crate) fn imbalance(&self) -> Option<f64> {
        let busiest = self.cpus.iter().map(|cpu| cpu.share).fold(0.0, f64::max);
        (busiest > 0.0).then_some(busiest * self.cpus.len() as f64)
    }
}

fn drops(now: &Sample, before: &Sample, per_second: impl Fn(u64, u64) -> f64) -> Vec<Drops> {
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

/// In the order of their numbers: a bar that stays in its place is easier to watch.
fn cpus(now: &Sample, before: &Sample, per_second: impl Fn(u64, u64) -> f64) -> Vec<Cpu> {
    let earlier = |cpu: &CpuCounters| {
        let same = before.cpus.iter().find(|other| other.cpu == cpu.cpu);
        same.map_or(0, |other| other.forwarded)
    };
    let mut cpus: Vec<Cpu> = now
        .cpus
        .iter()
        .filter(|cpu| cpu.forwarded > 0 || now.forwarding.contains(&cpu.cpu))
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
