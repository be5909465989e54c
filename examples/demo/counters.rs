//! Part 6: what the programs counted, and that the counts agree.

use crate::Result;
use crate::report::Report;
use crate::site::Site;
use crate::table::Table;
use crate::table::grouped;

/// Of a thousand encapsulated packets, how many may be lost before a backend: iperf3 may send more
/// than the virtual interfaces' queues hold.
const LOST: u64 = 20;

pub(crate) fn run(site: &mut Site, report: &mut Report) -> Result<()> {
    report.part(
        "What the programs counted",
        "The balancer's counters, then those of the backends' decapsulators. Packets to VIPs follow \
         a hash ring; in slots of the ring that a change touched, a flow table keeps connections \
         on their backend.",
    );
    let katran = &site.katran;
    // First: a late packet may arrive in between; it is missing here then, not there.
    let of_backends = site.decaps.iter().map(katran::Decap::counters);
    let of_backends = of_backends.collect::<katran::Result<Vec<_>>>()?;
    let (totals, flows) = (katran.stats().totals()?, katran.stats().flow_table()?);
    let (icmp, drops) = (katran.stats().icmp()?, katran.stats().drop_reasons()?);
    let mut table = Table::new(&["balancer", "", "frames", "bytes"]).text(1);
    for (name, what, count) in [
        ("total", "all frames", totals.total),
        ("tx", "encapsulated, or answered", totals.tx),
        ("pass", "left to the host", totals.pass),
        ("drop", "dropped", totals.drop),
    ] {
        let (frames, bytes) = (grouped(count.packets), grouped(count.bytes));
        table.row([name.to_owned(), what.to_owned(), frames, bytes]);
    }
    for (name, what, number) in [
        ("to VIPs", "slot unchanged: by the ring", flows.settled),
        ("", "slot changed: previous backend", flows.by_base),
        ("", "slot changed: remembered flow", flows.by_entry),
        ("", "slot changed: new connection", flows.miss_syn),
        ("", "slot changed: unknown flow", flows.miss_non_syn),
        ("", "on a CPU without a flow table", flows.fallback),
        ("icmp", "pings answered", icmp.echo_v4 + icmp.echo_v6),
    ] {
        table.row([name.to_owned(), what.to_owned(), grouped(number)]);
    }
    let mut dropped = 0;
    for (reason, frames) in drops.iter().filter(|(_, frames)| *frames > 0) {
        dropped += frames;
        table.row([
            "drop reason".to_owned(),
            reason.to_string(),
            grouped(frames),
        ]);
    }
    if dropped == 0 {
        table.row(["drop reason", "none", "0"].map(str::to_owned));
    }
    report.print(format_args!("{table}\n"));

    let mut table = Table::new(&[
        "backend",
        "frames",
        "from IPv4 tunnel",
        "from IPv6 tunnel",
        "dropped",
    ]);
    let (mut unwrapped, mut refused) = (0, 0);
    for (name, counters) in site.names().zip(of_backends) {
        let dropped = counters.dropped();
        unwrapped += counters.ipip_v4 + counters.ipip_v6;
        refused += dropped;
        let mut row = vec![name.to_owned()];
        let numbers = [counters.total, counters.ipip_v4, counters.ipip_v6, dropped];
        row.extend(numbers.map(grouped));
        table.row(row);
    }
    let answered = icmp.echo_v4 + icmp.echo_v6 + icmp.too_big_v4 + icmp.too_big_v6;
    let encapsulated = totals.tx.packets.saturating_sub(answered);
    let lost = encapsulated.saturating_sub(unwrapped);
    report.print(format_args!(
        "{table}\n  {} packets encapsulated, {} decapsulated, {} lost in queues.",
        grouped(encapsulated),
        grouped(unwrapped),
        grouped(lost)
    ));
    let sum = totals.tx.packets + totals.pass.packets + totals.drop.packets;
    report.check(sum == totals.total.packets, "the totals do not add up");
    report.check(
        dropped == 0,
        format_args!("the balancer dropped {dropped} frames"),
    );
    report.check(
        refused == 0,
        format_args!("the decapsulators dropped {refused} packets"),
    );
    report.check(
        unwrapped > 0 && unwrapped <= encapsulated && 1000 * lost <= LOST * encapsulated,
        format_args!("{encapsulated} packets were encapsulated, but {unwrapped} unwrapped"),
    );
    Ok(())
}
