//! Steps 8.1 to 8.3: server ids in packets, by which a connection finds its server after the
//! client's address, the ring or the tables have changed.

use crate::End;
use crate::RealId;
use crate::Step;
use crate::bytes::PROTOCOL_TCP;
use crate::bytes::PROTOCOL_UDP;
use crate::bytes::UDP;
use crate::bytes::slice;
use crate::choose::Ask;
use crate::choose::remember;
use crate::transport::TCP;
use crate::walk::Run;

/// What an id leads to.
enum Named {
    /// No real has it.
    Unknown,
    /// A real.
    Real(RealId),
    /// A real that has just gone.
    Gone,
}

fn look_up(run: &Run<'_>, id: u32) -> Named {
    let tables = &run.balancer.tables;
    match tables.server_ids.get(&id) {
        None => Named::Unknown,
        Some(real) if tables.reals.contains_key(real) => Named::Real(*real),
        Some(_) => Named::Gone,
    }
}

/// The real that an id in the packet names. ICMP errors have none.
pub(crate) fn real(run: &mut Run<'_>, ask: &Ask<'_>) -> Step<Option<RealId>> {
    let features = run.balancer.config.features;
    let mut real = None;
    if let Some(error) = ask.packet.error {
        if ask.vip.flags.quic {
            run.balancer.count("quic", "icmp");
            if error.quic_ignores_it {
                run.balancer.count("quic", "icmp_ignored");
            }
        }
        return Ok(None);
    }
    if ask.vip.flags.quic {
        real = by_connection_id(run, ask)?;
    }
    let is_udp = ask.flow.protocol == PROTOCOL_UDP;
    if features.udp_stable_routing && ask.vip.flags.udp_stable_routing && is_udp {
        real = by_stable_udp(run, ask)?.or(real);
    }
    if features.tcp_server_id && ask.flow.protocol == PROTOCOL_TCP {
        real = by_tcp_option(run, ask);
    }
    Ok(real)
}

/// What happened to the flow's entry after an id named its real.
enum Correction {
    Match,
    Mismatch,
    NotFound,
}

/// Makes or corrects the flow's entry. A missing one counts as a new flow, and is not made under
/// flood. Without `may_correct`, a valid entry that no id made stays.
fn correct(run: &mut Run<'_>, ask: &Ask<'_>, real: RealId, may_correct: bool) -> Correction {
    let now = run.now;
    let threshold = run.balancer.config.flood_threshold;
    let Some(entry) = run.balancer.flows.0.get_mut(&ask.key) else {
        if !run.balancer.flood.count(now, threshold) {
            remember(run, ask, real, true);
        }
        return Correction::NotFound;
    };
    if entry.real == real {
        entry.used = now;
        entry.ended = false;
        return Correction::Match;
    }
    let is_there = run.balancer.tables.reals.contains_key(&entry.real);
    let is_live = is_there && !ask.vip.down.contains(&entry.real);
    if !may_correct && is_live && !entry.by_id {
        return Correction::Match;
    }
    entry.used = now;
    entry.ended = false;
    entry.real = real;
    entry.by_id = true;
    Correction::Mismatch
}

/// What a QUIC packet's destination connection id means.
enum QuicId<'a> {
    /// The client chose it: the packet opens a connection.
    Clients,
    /// No usable id.
    None,
    /// The server's, at least eight bytes.
    Servers(&'a [u8]),
}

/// By RFC 8999, section 5, and the versions' own packet types.
fn quic_id(payload: &[u8]) -> QuicId<'_> {
    const LONG: u8 = 0x80;
    const ID: usize = 8;
    let Some(first) = payload.first() else {
        return QuicId::None;
    };
    if first & LONG == 0 {
        return slice(payload, 1, ID).map_or(QuicId::None, QuicId::Servers);
    }
    let Some(header) = slice(payload, 0, 1 + 4 + 1 + ID) else {
        return QuicId::None;
    };
    let version = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    // Initial and 0-RTT, of version 1 (RFC 9000) and 2 (RFC 9369).
    let clients: &[u8] = match version {
        0x6b33_43cf => &[0x10, 0x20],
        1 => &[0x00, 0x10],
        _ => return QuicId::None,
    };
    if clients.contains(&(first & 0x30)) {
        return QuicId::Clients;
    }
    match usize::from(header[5]) < ID {
        true => QuicId::None,
        false => QuicId::Servers(&header[6..]),
    }
}

/// The server id in a connection id; the top two bits are its version.
fn server_id(id: &[u8]) -> (u8, u32) {
    let bytes = |range: std::ops::Range<usize>| {
        id[range]
            .iter()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
    };
    match id[0] >> 6 {
        1 => (1, bytes(0..3) >> 6 & 0xffff),
        2 => (2, bytes(1..4)),
        3 => (3, bytes(1..5)),
        _ => (0, 0),
    }
}

fn by_connection_id(run: &mut Run<'_>, ask: &Ask<'_>) -> Step<Option<RealId>> {
    let payload = run.frame[ask.packet.header.payload + UDP..].to_vec();
    let (version, id) = match quic_id(&payload) {
        QuicId::Clients => {
            run.balancer.count("quic", "cid_initial");
            count_new(run, ask);
            return Ok(None);
        }
        QuicId::None => {
            run.balancer.count("quic", "ch_routed");
            return Ok(None);
        }
        QuicId::Servers(id) => server_id(id),
    };
    if version == 0 {
        run.balancer.count("quic", "cid_v0");
    }
    if id == 0 {
        run.balancer.count("quic", "ch_routed");
        return Ok(None);
    }
    let counter = ["cid_v0", "cid_v1", "cid_v2", "cid_v3"][usize::from(version)];
    run.balancer.count("quic", counter);
    let real = match look_up(run, id) {
        Named::Unknown => {
            run.balancer.count("quic", "cid_invalid_server_id");
            let sample = ("quic", "cid_invalid_server_id_sample");
            run.balancer.counters.0.insert(sample, id.into());
            run.balancer.count("quic", "ch_routed");
            return Ok(None);
        }
        Named::Gone => {
            run.balancer.count("quic", "cid_unknown_real_dropped");
            run.balancer.tell("quic_real_gone", &run.frame);
            return Err(End::Drop("quic_real_gone"));
        }
        Named::Real(real) => real,
    };
    run.balancer.count("quic", "cid_routed");
    run.chosen = Some("QUIC connection id");
    if ask.vip.flags.lru_bypass {
        return Ok(Some(real));
    }
    let counter = match correct(run, ask, real, true) {
        Correction::Match => "dst_match_in_lru",
        Correction::NotFound => "dst_not_found_in_lru",
        Correction::Mismatch => {
            count_moved(run, ask);
            "dst_mismatch_in_lru"
        }
    };
    run.balancer.count("quic", counter);
    Ok(Some(real))
}

fn count_new(run: &mut Run<'_>, ask: &Ask<'_>) {
    let of_vip = run.balancer.of_vips.entry(ask.number).or_default();
    of_vip.server_id_new += 1;
}

fn count_moved(run: &mut Run<'_>, ask: &Ask<'_>) {
    let of_vip = run.balancer.of_vips.entry(ask.number).or_default();
    of_vip.server_id_moved += 1;
}

fn by_stable_udp(run: &mut Run<'_>, ask: &Ask<'_>) -> Step<Option<RealId>> {
    const STABLE: u8 = 0x52;
    let id = match slice(&run.frame, ask.packet.header.payload + UDP, 8) {
        Some(&[STABLE, a, b, c, ..]) => u32::from_be_bytes([0, a, b, c]),
        _ => {
            run.balancer.count("stable_udp", "invalid_packet_type");
            0
        }
    };
    if id == 0 {
        run.balancer.count("stable_udp", "ch_routed");
        return Ok(None);
    }
    match look_up(run, id) {
        Named::Unknown => {
            run.balancer.count("stable_udp", "cid_invalid_server_id");
            run.balancer.count("stable_udp", "ch_routed");
            Ok(None)
        }
        Named::Gone => {
            run.balancer.count("stable_udp", "cid_unknown_real_dropped");
            Err(End::Drop("stable_udp_real_gone"))
        }
        Named::Real(real) => {
            run.balancer.count("stable_udp", "cid_routed");
            run.chosen = Some("stable UDP routing");
            Ok(Some(real))
        }
    }
}

/// The id in TCP's options: kind 0xB7, six bytes, little-endian.
pub(crate) fn tcp_option(frame: &[u8], segment: usize) -> Option<u32> {
    const MOST: usize = 15;
    let end = segment + usize::from(frame[segment + 12] >> 4) * 4;
    let mut at = segment + TCP;
    for _ in 0..MOST {
        if at >= end {
            return None;
        }
        match *frame.get(at)? {
            0 => return None,
            1 => at += 1,
            kind => {
                let length = usize::from(*frame.get(at + 1)?);
                if length < 2 {
                    return None;
                }
                if kind == 0xb7 {
                    let is_whole = length == 6 && at + length <= end;
                    let id = slice(frame, at + 2, 4).filter(|_| is_whole)?;
                    return Some(u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
                }
                at += length;
            }
        }
    }
    None
}

fn by_tcp_option(run: &mut Run<'_>, ask: &Ask<'_>) -> Option<RealId> {
    if ask.packet.syn {
        run.balancer.count("tcp_server_id", "syn");
        count_new(run, ask);
        return None;
    }
    let header = ask.packet.header;
    // A TCP header longer than its packet is none: bytes behind the packet are padding.
    let is_whole = header.has(usize::from(run.frame[header.payload + 12] >> 4) * 4);
    let id = tcp_option(&run.frame, header.payload).filter(|id| is_whole && *id != 0);
    let Some(Named::Real(real)) = id.map(|id| look_up(run, id)) else {
        run.balancer.count("tcp_server_id", "ch_routed");
        return None;
    };
    run.balancer.count("tcp_server_id", "sid_routed");
    run.chosen = Some("TCP server id");
    if !ask.vip.flags.lru_bypass
        && let Correction::Mismatch = correct(run, ask, real, false)
    {
        run.balancer.count("tcp_server_id", "dst_mismatch_in_lru");
        count_moved(run, ask);
    }
    Some(real)
}
