//! Step 3: tunnels that end here. The outer headers are removed; the inner packet is the host's, is
//! sent back out, or is walked like any other.

use std::net::IpAddr;
use std::ops::Range;

use crate::End;
use crate::Step;
use crate::bytes::ETHERNET;
use crate::bytes::IPIP;
use crate::bytes::IPV4;
use crate::bytes::IPV6;
use crate::bytes::IPV6_IN_IP;
use crate::bytes::PROTOCOL_TCP;
use crate::bytes::PROTOCOL_UDP;
use crate::bytes::TYPE_IPV4;
use crate::bytes::TYPE_IPV6;
use crate::bytes::UDP;
use crate::bytes::put_u16;
use crate::bytes::replaced;
use crate::bytes::u16_at;
use crate::bytes::v4_at;
use crate::bytes::v6_at;
use crate::icmp::swap_macs;
use crate::ip::Family;
use crate::ip::Header;
use crate::ip::behind_extensions;
use crate::tables::DecapMode;
use crate::tables::allowed;
use crate::vip;
use crate::walk::Run;

/// The congestion mark (RFC 3168): 0 is not capable, 1 and 2 are capable, 3 is congestion
/// experienced.
const MARK: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// A packet in a tunnel.
struct Tunnel {
    inner: Family,
    /// Where the inner packet begins in the frame.
    at: usize,
    /// Where the outer packet's payload ends. Bytes behind it are Ethernet padding.
    end: usize,
    gue: bool,
}

impl Tunnel {
    fn carried<'a>(&self, run: &'a Run<'_>) -> &'a [u8] {
        &run.frame[self.at..self.end]
    }
}

/// The packet's payload, if it is a tunnel: IP in IP of any families, or GUE.
fn tunnel_of(run: &Run<'_>, header: &Header) -> Option<Tunnel> {
    let (at, end) = (header.payload, header.end);
    let ipip = |inner| Tunnel {
        inner,
        at,
        end,
        gue: false,
    };
    match header.protocol {
        IPIP => Some(ipip(Family::V4)),
        IPV6_IN_IP => Some(ipip(Family::V6)),
        PROTOCOL_UDP => {
            let (inner, place) = in_gue(&run.frame[at..end], run.balancer.config.gue_port)?;
            Some(Tunnel {
                inner,
                at: at + place.start,
                end: at + place.end,
                gue: true,
            })
        }
        _ => None,
    }
}

/// The packet in a GUE datagram to this port: its family, and its range in the datagram. It
/// directly follows the UDP header and begins with its version; anything else is no GUE. The
/// datagram may end before its IP packet does; bytes behind it are not part of its data (RFC 9868).
pub(crate) fn in_gue(datagram: &[u8], port: u16) -> Option<(Family, Range<usize>)> {
    if datagram.len() < UDP || u16_at(datagram, 2) != port {
        return None;
    }
    let end = datagram.len().min(u16_at(datagram, 4).into());
    let inner = match datagram.get(UDP..end)?.first()? >> 4 {
        4 => Family::V4,
        6 => Family::V6,
        _ => return None,
    };
    Some((inner, UDP..end))
}

/// A packet's length by its header, which must be there.
pub(crate) fn own_length(packet: &[u8], family: Family) -> usize {
    match family {
        Family::V4 => u16_at(packet, 2).into(),
        Family::V6 => IPV6 + usize::from(u16_at(packet, 4)),
    }
}

/// Returns whether there was a tunnel, so that the walk begins again with its contents.
pub(crate) fn unwrap(run: &mut Run<'_>, header: &Header) -> Step<bool> {
    if !run.balancer.config.features.inline_decap {
        return Ok(false);
    }
    let Some(tunnel) = tunnel_of(run, header) else {
        return Ok(false);
    };
    if run.unwrapped {
        return Err(End::Pass("a tunnel in a tunnel"));
    }
    let mode = run.balancer.tables.decap.get(&header.destination).copied();
    if mode.is_some() {
        run.balancer.count("decap", "remote_encap");
    } else if run.balancer.config.features.strict_destination && !is_own(run, header.destination) {
        return Err(End::Pass("a tunnel that ends elsewhere"));
    }
    if !allowed(&run.balancer.tables.allow_sources, header.source) {
        return Err(End::Drop("outer_source"));
    }
    let outer = match header.family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    run.balancer.count("decap", outer);
    check_inner(run, &tunnel)?;
    if mode == Some(DecapMode::Egress) {
        check_egress(run, &tunnel)?;
    }
    age(run, &tunnel)?;
    pass_on_congestion(run, header, &tunnel)?;
    strip(run, &tunnel);
    match mode {
        None => {
            if tunnel.gue {
                count_for_vip(run, tunnel.inner);
            }
            Err(End::Pass("unwrapped for the host"))
        }
        Some(DecapMode::Egress) => {
            let name = match tunnel.inner {
                Family::V4 => "egress_v4",
                Family::V6 => "egress_v6",
            };
            run.balancer.count("decap", name);
            swap_macs(&mut run.frame);
            Err(End::Tx("unwrapped and sent out"))
        }
        Some(DecapMode::Inline) => {
            let name = match tunnel.inner {
                Family::V4 => "xpop_v4",
                Family::V6 => "xpop_v6",
            };
            run.balancer.count("decap", name);
            run.unwrapped = true;
            Ok(true)
        }
    }
}

fn is_own(run: &Run<'_>, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => run.balancer.config.source_v4 == Some(v4),
        IpAddr::V6(v6) => run.balancer.config.source_v6 == Some(v6),
    }
}

/// Checks that the tunnel's payload is a complete IP packet of the family that the outer header
/// states.
fn check_inner(run: &Run<'_>, tunnel: &Tunnel) -> Step<()> {
    let inner = tunnel.carried(run);
    let (size, version) = match tunnel.inner {
        Family::V4 => (IPV4, 4),
        Family::V6 => (IPV6, 6),
    };
    if inner.len() < size {
        return Err(End::Drop("inner_truncated"));
    }
    if inner[0] >> 4 != version {
        return Err(End::Drop("inner_version"));
    }
    match own_length(inner, tunnel.inner) <= inner.len() {
        true => Ok(()),
        false => Err(End::Drop("inner_truncated")),
    }
}

/// The tunnel counts as one hop, so the inner TTL is decremented. A packet with none left is
/// dropped.
fn age(run: &mut Run<'_>, tunnel: &Tunnel) -> Step<()> {
    let inner = &mut run.frame[tunnel.at..];
    let ttl = match tunnel.inner {
        Family::V4 => 8,
        Family::V6 => 7,
    };
    if inner[ttl] <= 1 {
        return Err(End::Drop("inner_expired"));
    }
    let before = u16_at(inner, 8);
    inner[ttl] -= 1;
    if tunnel.inner == Family::V4 {
        let check = replaced(u16_at(inner, 10), before, u16_at(inner, 8));
        put_u16(inner, 10, check);
    }
    Ok(())
}

fn pass_on_congestion(run: &mut Run<'_>, header: &Header, tunnel: &Tunnel) -> Step<()> {
    let inner = &mut run.frame[tunnel.at..];
    match pass_on_mark(inner, tunnel.inner, header.tos) {
        true => Ok(()),
        false => Err(End::Drop("ecn")),
    }
}

/// Copies a router's mark on the outer header to the inner one (RFC 6040). `false`: the inner
/// packet's sender does not support marks, so a loss must signal congestion.
pub(crate) fn pass_on_mark(inner: &mut [u8], family: Family, outer_tos: u8) -> bool {
    let shift = match family {
        Family::V4 => 0,
        Family::V6 => 4,
    };
    let mark = match (outer_tos & MARK, inner[1] >> shift & MARK) {
        (CE, NOT_ECT) => return false,
        (CE, _) => CE,
        (ECT_1, ECT_0) => ECT_1,
        (_, mark) => mark,
    };
    let before = u16_at(inner, 0);
    inner[1] = inner[1] & !(MARK << shift) | mark << shift;
    let after = u16_at(inner, 0);
    if family == Family::V4 && after != before {
        let check = replaced(u16_at(inner, 10), before, after);
        put_u16(inner, 10, check);
    }
    true
}

/// A packet that leaves by an egress address must have a complete header, be no tunnel, and come
/// from an allowed source.
fn check_egress(run: &Run<'_>, tunnel: &Tunnel) -> Step<()> {
    let inner = tunnel.carried(run);
    if tunnel.inner == Family::V4 {
        // A packet that ends within its header is useless.
        let header = usize::from(inner[0] & 0xf) * 4;
        if header < IPV4 || own_length(inner, Family::V4) < header {
            return Err(End::Drop("inner_truncated"));
        }
    }
    let (protocol, source, plain, behind) = match tunnel.inner {
        Family::V4 => {
            let plain = inner[0] & 0xf == 5 && u16_at(inner, 6) & 0x3fff == 0;
            (inner[9], v4_at(inner, 12), plain, IPV4)
        }
        Family::V6 => {
            // There might be a tunnel behind the extension headers.
            let Some((protocol, behind)) = behind_extensions(inner) else {
                return Err(End::Drop("nested_tunnel"));
            };
            (protocol, v6_at(inner, 8), true, behind)
        }
    };
    let datagram = inner.get(behind..own_length(inner, tunnel.inner));
    let port = run.balancer.config.gue_port;
    let is_gue = plain
        && protocol == PROTOCOL_UDP
        && datagram.is_some_and(|datagram| in_gue(datagram, port).is_some());
    if protocol == IPIP || protocol == IPV6_IN_IP || is_gue {
        return Err(End::Drop("nested_tunnel"));
    }
    if !allowed(&run.balancer.tables.egress_sources, source) {
        return Err(End::Drop("egress_source"));
    }
    Ok(())
}

/// Removes the outer headers. The MAC addresses stay.
fn strip(run: &mut Run<'_>, tunnel: &Tunnel) {
    run.frame.drain(ETHERNET..tunnel.at);
    let kind = match tunnel.inner {
        Family::V4 => TYPE_IPV4,
        Family::V6 => TYPE_IPV6,
    };
    put_u16(&mut run.frame, 12, kind);
}

/// Counts a packet unwrapped from GUE for the host, for its VIP.
fn count_for_vip(run: &mut Run<'_>, family: Family) {
    let ip = &run.frame[ETHERNET..];
    let (destination, protocol, size) = match family {
        Family::V4 if ip[0] & 0xf != 5 || u16_at(ip, 6) & 0x3fff != 0 => return,
        Family::V4 => (v4_at(ip, 16), ip[9], IPV4),
        Family::V6 => (v6_at(ip, 24), ip[6], IPV6),
    };
    let has_ports = own_length(ip, family) >= size + UDP;
    if (protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP) || !has_ports {
        return;
    }
    let port = u16_at(ip, size + 2);
    if let Some((number, _)) = vip::lookup(&run.balancer.tables, destination, port, protocol) {
        run.balancer.of_vips.entry(number).or_default().decap += 1;
    }
}
