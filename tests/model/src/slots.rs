//! Step 8 where tables know only changed flows: by the ring's slot, and in an unsettled one by the
//! flow's entry, the slot's base, or the ring. Flows older than the change belong to the base;
//! newer ones have entries, unless they are on the base.

use crate::End;
use crate::RealId;
use crate::Step;
use crate::choose::Ask;
use crate::choose::LIVE;
use crate::choose::count_misses;
use crate::choose::remember;
use crate::choose::ring_slot;
use crate::history::Before;
use crate::walk::Run;

/// A packet's real, by its slot.
pub(crate) fn real(run: &mut Run<'_>, ask: &Ask<'_>) -> Step<RealId> {
    let slot = ring_slot(run, ask, ask.flow.source, ask.flow.source_port);
    let current = ask.vip.ring.as_ref().and_then(|ring| ring[slot]);
    let Some(before) = ask.vip.unsettled.get(&slot).copied() else {
        run.balancer.count("flow_table", "settled");
        run.chosen = Some("settled slot");
        return current.ok_or(End::Drop("ring_empty"));
    };
    run.count_table();
    let real = in_unsettled(run, ask, &before, current);
    if real != current {
        note_deviation(run, ask, slot);
    }
    real.ok_or(End::Drop("ring_empty"))
}

fn in_unsettled(
    run: &mut Run<'_>,
    ask: &Ask<'_>,
    before: &Before,
    current: Option<RealId>,
) -> Option<RealId> {
    // An RST and an ICMP error are led like others, and change nothing.
    let leaves_no_trace = ask.packet.rst || ask.packet.error.is_some();
    if let Some(real) = by_entry(run, ask, before, leaves_no_trace) {
        return Some(real);
    }
    let real = without_entry(run, ask, before, current)?;
    let by_base = before.base == Some(real);
    run.chosen = Some("ring");
    if by_base {
        run.balancer.count("flow_table", "by_base");
        run.chosen = Some("base");
    }
    if leaves_no_trace {
        return Some(real);
    }
    if ask.is_udp() {
        remember_for(run, ask, real);
        count_misses(run, ask, real);
    } else if ask.packet.syn {
        match by_base {
            // It needs no entry, and an old one would catch the connection's next packet.
            true => drop(run.balancer.flows.0.remove(&ask.key)),
            false => remember_for(run, ask, real),
        }
        count_misses(run, ask, real);
    } else if !by_base {
        // It began after the change and has lost its entry, or has lost its base.
        count_misses(run, ask, real);
    }
    Some(real)
}

/// The entry's real, unless the entry is from before the change, or too old for this kind of
/// packet.
fn by_entry(
    run: &mut Run<'_>,
    ask: &Ask<'_>,
    before: &Before,
    leaves_no_trace: bool,
) -> Option<RealId> {
    let now = run.now;
    let timeout = run.balancer.config.udp_timeout;
    let entry = run.balancer.flows.0.get_mut(&ask.key)?;
    let age = now - entry.used;
    // The client may have begun again while its slot was settled and nothing was written.
    let outlived = entry.used < before.since;
    let expired = ask.is_udp() && age > timeout;
    // A spoofed SYN moves no active flow.
    let overtaken = ask.packet.syn && age > LIVE;
    // Entries of reals that the VIP gave up went with the reals.
    let is_there = run.balancer.tables.reals.contains_key(&entry.real);
    let is_void = !is_there || ask.vip.down.contains(&entry.real);
    if outlived || expired || overtaken || is_void {
        return None;
    }
    // Packets within seconds after a FIN do not cancel it.
    let is_over = entry.ended && !ask.packet.fin && age <= LIVE;
    if !leaves_no_trace && !ask.packet.syn && !is_over {
        entry.used = now;
        entry.ended = ask.packet.fin;
    }
    let real = entry.real;
    run.balancer.count("flow_table", "by_entry");
    run.chosen = Some("flow table");
    Some(real)
}

/// The real for a connection that neither an id nor an entry leads, where tables must know all
/// connections. `None`: its slot is settled.
pub(crate) fn unknown(run: &mut Run<'_>, ask: &Ask<'_>) -> Option<Option<RealId>> {
    let slot = ring_slot(run, ask, ask.flow.source, ask.flow.source_port);
    let before = ask.vip.unsettled.get(&slot).copied()?;
    let current = ask.vip.ring.as_ref().and_then(|ring| ring[slot]);
    let real = without_entry(run, ask, &before, current);
    if real.is_some() && real == before.base {
        run.balancer.count("flow_table", "by_base");
        run.chosen = Some("base");
    }
    if real != current {
        note_deviation(run, ask, slot);
    }
    Some(real)
}

/// The real for a packet without an entry.
fn without_entry(
    run: &Run<'_>,
    ask: &Ask<'_>,
    before: &Before,
    current: Option<RealId>,
) -> Option<RealId> {
    if ask.is_udp() {
        // A datagram does not show whether it is its flow's first: after this time no earlier flow
        // is left.
        let lives = run.now - before.since <= run.balancer.config.udp_timeout;
        return before.base.filter(|_| lives).or(current);
    }
    if !ask.packet.syn {
        return before.base.or(current);
    }
    let threshold = run.balancer.config.flood_threshold;
    let flood = run.balancer.flood.acts(run.now, threshold);
    // A flood then makes no entries where possible.
    let spares_an_entry = before.base.filter(|base| flood && ask.vip.takes_new(*base));
    spares_an_entry.or(current)
}

/// Remembers a flow, even under flood: otherwise it would be lost at its next packet.
fn remember_for(run: &mut Run<'_>, ask: &Ask<'_>, real: RealId) {
    let threshold = run.balancer.config.flood_threshold;
    run.balancer.flood.count(run.now, threshold);
    remember(run, ask, real, false);
}

fn note_deviation(run: &mut Run<'_>, ask: &Ask<'_>, slot: usize) {
    let vip = run.balancer.tables.vips.get_mut(&ask.number);
    if let Some(before) = vip.and_then(|vip| vip.unsettled.get_mut(&slot)) {
        before.deviated = run.now;
    }
}
