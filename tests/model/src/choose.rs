//! Steps 7 and 8: the flow's key, and its real. An id in the packet takes precedence, then flow
//! tables, then source routes, then the ring.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use crate::End;
use crate::Entry;
use crate::Flow;
use crate::RealId;
use crate::Step;
use crate::Time;
use crate::Vip;
use crate::VipNumber;
use crate::bytes::PROTOCOL_TCP;
use crate::bytes::PROTOCOL_UDP;
use crate::hash;
use crate::ids;
use crate::slots;
use crate::tables::covers;
use crate::transport::Packet;
use crate::walk::Run;

/// How long an entry protects its flow from a SYN, in milliseconds.
pub(crate) const LIVE: Time = 5000;

/// A real, and the parts of the flow that its outer header is made from.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The real.
    pub real: RealId,
    /// The client's address; all zeros if the ring chose by the port alone.
    pub source: IpAddr,
    /// The client's port, if it counts.
    pub source_port: u16,
}

/// What a packet's real depends on.
pub(crate) struct Ask<'a> {
    pub(crate) number: VipNumber,
    pub(crate) vip: Vip,
    pub(crate) packet: &'a Packet,
    /// The flow as the ring sees it.
    pub(crate) flow: Flow,
    /// The flow as tables see it.
    pub(crate) key: (VipNumber, Flow),
}

impl Ask<'_> {
    pub(crate) fn is_udp(&self) -> bool {
        self.flow.protocol == PROTOCOL_UDP
    }
}

pub(crate) fn real(run: &mut Run<'_>, number: VipNumber, packet: &Packet) -> Step<Choice> {
    let vip = run.balancer.tables.vips[&number].clone();
    let mut flow = packet.flow;
    if vip.flags.no_src_port {
        flow.source_port = 0;
    }
    let mut key = flow;
    if flow.protocol == PROTOCOL_TCP {
        (key.source_port, key.destination_port) = packet.ports;
    }
    let ask = Ask {
        number,
        vip,
        packet,
        flow,
        key: (number, key),
    };
    if ask.vip.tracks_changes(&run.balancer.config) {
        let real = slots::real(run, &ask)?;
        return Ok(Choice {
            real,
            source: flow.source,
            source_port: flow.source_port,
        });
    }
    run.count_table();
    let known = match ids::real(run, &ask)? {
        Some(real) => Some(real),
        None => by_tables(run, &ask),
    };
    match known {
        Some(real) => Ok(Choice {
            real,
            source: flow.source,
            source_port: flow.source_port,
        }),
        None => new_flow(run, &ask),
    }
}

/// 4 to 6: the flow table's answer, or the global one's, unless void.
fn by_tables(run: &mut Run<'_>, ask: &Ask<'_>) -> Option<RealId> {
    // A VIP without reals sends to none.
    if ask.packet.syn && !follows_live_entry(run, ask) || ask.vip.reals.is_empty() {
        return None;
    }
    let found = by_flow_table(run, ask).or_else(|| by_global_table(run, ask))?;
    match is_void(run, ask, found) {
        true => None,
        false => Some(found),
    }
}

/// Whether a SYN's flow was used recently: a spoofed SYN moves no flow.
fn follows_live_entry(run: &Run<'_>, ask: &Ask<'_>) -> bool {
    let entry = run.balancer.flows.0.get(&ask.key);
    let threshold = run.balancer.config.flood_threshold;
    !run.balancer.flood.acts(run.now, threshold)
        && entry.is_some_and(|entry| run.now - entry.used <= LIVE)
}

fn by_flow_table(run: &mut Run<'_>, ask: &Ask<'_>) -> Option<RealId> {
    if ask.vip.flags.lru_bypass {
        return None;
    }
    // Errors leave entries alone, and so does a SYN that follows one.
    let leaves_no_trace = ask.packet.error.is_some() || ask.packet.syn;
    let timeout = run.balancer.config.udp_timeout;
    let entry = run.balancer.flows.0.get_mut(&ask.key)?;
    // An entry of a removed real never matches.
    let real = entry.real;
    let is_there = run.balancer.tables.reals.contains_key(&real);
    if !is_there || ask.is_udp() && run.now - entry.used > timeout {
        return None;
    }
    if !leaves_no_trace {
        entry.used = run.now;
        entry.ended = false;
    }
    run.chosen = Some("flow table");
    Some(real)
}

fn by_global_table(run: &mut Run<'_>, ask: &Ask<'_>) -> Option<RealId> {
    let config = &run.balancer.config;
    if !config.features.global_flow_table || !ask.vip.flags.global_lru || ask.packet.syn {
        return None;
    }
    if !config.has_global_table {
        run.balancer.count("global_lru", "no_table");
    }
    let real = *run.balancer.tables.global_flows.get(&ask.key)?;
    run.balancer.tables.reals.get(&real)?;
    run.balancer.count("global_lru", "hits");
    run.chosen = Some("global flow table");
    Some(real)
}

/// Whether a table's answer is void, as the real is down. Datagrams of migrating VIPs are counted,
/// and stay where they are while the flood guard acts, as in Katran.
fn is_void(run: &mut Run<'_>, ask: &Ask<'_>, real: RealId) -> bool {
    if !ask.vip.down.contains(&real) {
        return false;
    }
    if ask.vip.flags.udp_flow_migration && ask.is_udp() {
        let threshold = run.balancer.config.flood_threshold;
        if run.balancer.flood.acts(run.now, threshold) {
            return false;
        }
        run.balancer.count("udp_flow_migration", "invalidated");
    }
    true
}

/// Whether a new flow of the packet would be remembered, but for a flood.
fn is_remembered(ask: &Ask<'_>, by_port: bool) -> bool {
    // Without reals nothing would read the entry, though a source route may lead the packet.
    let unread = ask.vip.flags.lru_bypass || ask.vip.reals.is_empty();
    !(unread || ask.packet.rst || by_port || ask.packet.error.is_some())
}

/// 7: the flow is new.
fn new_flow(run: &mut Run<'_>, ask: &Ask<'_>) -> Step<Choice> {
    let counts = ask.packet.error.is_none();
    if counts {
        count_tcp_miss(run, ask);
    }
    let routed = by_source_route(run, ask);
    let by_port = ask.vip.flags.dport_hash && routed.is_none();
    let source = match by_port {
        true => unspecified(ask.flow.source),
        false => ask.flow.source,
    };
    run.chosen = Some(if routed.is_some() {
        "source route"
    } else {
        "ring"
    });
    let in_slot = slots::unknown(run, ask);
    let real = match (routed, in_slot) {
        (Some(real), _) => real,
        (None, Some(real)) => real.ok_or(End::Drop("ring_empty"))?,
        (None, None) => by_ring(run, ask, source, by_port)?,
    };
    // Otherwise a connection that does not begin on its slot's base would be lost at its next
    // packet.
    let must = ask.packet.syn && in_slot.is_some() && run.chosen != Some("base");
    let threshold = run.balancer.config.flood_threshold;
    if is_remembered(ask, by_port) {
        let guarded = run.balancer.flood.count(run.now, threshold);
        if !guarded || must {
            remember(run, ask, real, false);
        }
    }
    if counts {
        count_miss(run, ask, real);
    }
    Ok(Choice {
        real,
        source,
        source_port: ask.flow.source_port,
    })
}

/// Counts a TCP packet whose flow is new, or has probably lost its real.
fn count_tcp_miss(run: &mut Run<'_>, ask: &Ask<'_>) {
    if ask.flow.protocol != PROTOCOL_TCP {
        return;
    }
    match ask.packet.syn {
        true => run.balancer.count("flow_table", "miss_syn"),
        false => {
            run.balancer.count("flow_table", "miss_non_syn");
            run.balancer.tell("tcp_non_syn_miss", &run.frame);
        }
    }
}

/// Counts a packet of a new flow, for its real.
fn count_miss(run: &mut Run<'_>, ask: &Ask<'_>, real: RealId) {
    run.balancer.count("flow_table", "misses");
    if run.balancer.tables.watched == Some(ask.number) {
        run.balancer.of_reals.entry(real).or_default().misses += 1;
    }
}

/// Counts in both.
pub(crate) fn count_misses(run: &mut Run<'_>, ask: &Ask<'_>, real: RealId) {
    count_tcp_miss(run, ask);
    count_miss(run, ask, real);
}

/// Makes or rewrites the flow's entry.
pub(crate) fn remember(run: &mut Run<'_>, ask: &Ask<'_>, real: RealId, by_id: bool) {
    let entry = Entry {
        real,
        used: run.now,
        by_id,
        ended: false,
    };
    run.balancer.flows.0.insert(ask.key, entry);
}

/// The real of the longest prefix that covers the client, unless down.
fn by_source_route(run: &mut Run<'_>, ask: &Ask<'_>) -> Option<RealId> {
    if !run.balancer.config.features.source_routing || !ask.vip.flags.src_routing {
        return None;
    }
    let routes = run.balancer.tables.source_routes.iter();
    let longest = routes
        .filter(|(prefix, length, _)| covers(*prefix, *length, ask.flow.source))
        .max_by_key(|(_, length, _)| *length)
        .map(|(_, _, real)| *real);
    match longest {
        None => run.balancer.count("source_routing", "unmatched"),
        Some(_) => run.balancer.count("source_routing", "matched"),
    }
    longest.filter(|real| !ask.vip.down.contains(real))
}

fn by_ring(run: &Run<'_>, ask: &Ask<'_>, source: IpAddr, by_port: bool) -> Step<RealId> {
    let source_port = match by_port {
        true => ask.flow.destination_port,
        false => ask.flow.source_port,
    };
    let slot = ring_slot(run, ask, source, source_port);
    let ring = ask.vip.ring.as_ref();
    ring.and_then(|ring| ring[slot])
        .ok_or(End::Drop("ring_empty"))
}

/// The flow's slot, as the ring sees it.
pub(crate) fn ring_slot(run: &Run<'_>, ask: &Ask<'_>, source: IpAddr, source_port: u16) -> usize {
    let config = &run.balancer.config;
    hash::slot(source, source_port, ask.flow.destination_port, config)
}

fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
