//! `run --counters`: a line of counters every second, and a summary at the end.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use katran::Katran;
use katran::stats::Count;
use katran::stats::FlowTableCounters;
use katran::stats::Totals;

use crate::common::say;

/// Lines between two headings.
const PAGE: u32 = 20;

const HEADING: &str =
    "     packets    sent/s    Mbit/s  passed/s dropped/s  to VIPs/s  new flows/s";

/// The lines so far.
pub(super) struct Lines {
    last: Snapshot,
    number: u32,
}

impl Lines {
    pub(super) fn begin(katran: &Katran) -> Result<Self> {
        let last = Snapshot::take(katran)?;
        Ok(Self { last, number: 0 })
    }

    /// Prints the next line.
    pub(super) fn next(&mut self, katran: &Katran) -> Result<()> {
        let now = Snapshot::take(katran)?;
        if self.number.is_multiple_of(PAGE) {
            say(HEADING);
        }
        say(now.since(&self.last));
        self.number += 1;
        self.last = now;
        Ok(())
    }
}

/// The figures of a line. `Katran::counters` has them all, but walks the flow tables.
struct Snapshot {
    time: Instant,
    totals: Totals,
    flow_table: FlowTableCounters,
}

impl Snapshot {
    fn take(katran: &Katran) -> Result<Self> {
        Ok(Self {
            time: Instant::now(),
            totals: katran.stats().totals()?,
            flow_table: katran.stats().flow_table()?,
        })
    }

    /// Packets so far, and rates since an earlier snapshot.
    fn since(&self, before: &Self) -> String {
        let seconds = (self.time - before.time).as_secs_f64();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let (now, then) = (&self.totals, &before.totals);
        format!(
            "{:>12} {:>9.0} {:>9.2} {:>9.0} {:>9.0} {:>10.0} {:>12.0}",
            now.total.packets,
            rate(now.tx.packets, then.tx.packets),
            rate(now.tx.bytes, then.tx.bytes) * 8.0 / 1e6,
            rate(now.pass.packets, then.pass.packets),
            rate(now.drop.packets, then.drop.packets),
            rate(to_vips(&self.flow_table), to_vips(&before.flow_table)),
            rate(self.flow_table.misses, before.flow_table.misses),
        )
    }
}

/// Packets to any VIP, with or without a lookup in the flow table.
fn to_vips(flow_table: &FlowTableCounters) -> u64 {
    flow_table.packets + flow_table.settled
}

/// The summary: packets to each VIP and real, and reasons of drops.
pub(super) fn summary(katran: &Katran) -> Result<()> {
    say(format!(
        "{:<48} {:>12} {:>15}",
        "sent to reals", "packets", "bytes"
    ));
    let line = |name: String, count: Count| {
        say(format!(
            "{name:<48} {:>12} {:>15}",
            count.packets, count.bytes
        ));
    };
    let mut reals = BTreeSet::new();
    for vip in katran.vips() {
        line(vip.to_string(), katran.stats().vip(vip)?.forwarded);
        reals.extend(katran.reals(vip)?.iter().map(katran::Real::address));
    }
    let reals: Vec<_> = reals.into_iter().collect();
    for (real, counters) in reals.iter().zip(katran.stats().reals(&reals)?) {
        line(format!("real {real}"), counters.forwarded);
    }
    for (reason, frames) in katran
        .stats()
        .drop_reasons()?
        .iter()
        .filter(|(_, frames)| *frames > 0)
    {
        say(format!("{:<48} {frames:>12}", format!("dropped: {reason}")));
    }
    Ok(())
}
