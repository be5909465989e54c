//! Step 2: ICMP. Echo requests are answered in place. An error belongs to the flow of the packet
//! that it quotes, and goes to that flow's real unchanged.

use std::net::IpAddr;

use crate::End;
use crate::Step;
use crate::bytes::ETHERNET;
use crate::bytes::ICMP;
use crate::bytes::ICMPV6;
use crate::bytes::IPV4;
use crate::bytes::IPV6;
use crate::bytes::put_u16;
use crate::bytes::replaced;
use crate::bytes::sum;
use crate::bytes::u16_at;
use crate::bytes::v4_at;
use crate::bytes::v6_at;
use crate::ip::Family;
use crate::ip::Header;
use crate::ip::refuse;
use crate::walk::Run;

/// The hop limit of packets that the balancer originates.
pub(crate) const TTL: u8 = 64;
/// Below this a router must not cut IPv6 (RFC 8200, section 5).
pub(crate) const SMALLEST_MTU: u32 = 1280;

/// An ICMP error, by the packet that it quotes, which a VIP sent to its client.
#[derive(Clone, Copy, Debug)]
pub struct Error {
    /// The source of the quoted packet.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: u8,
    /// Where its transport header begins in the frame.
    pub transport: usize,
    /// Port or host unreachable, which a QUIC server ignores.
    pub quic_ignores_it: bool,
}

/// What an ICMP message means for the walk.
enum Kind {
    Echo,
    Error { quic_ignores_it: bool },
    Other,
}

fn kind_of(family: Family, kind: u8, code: u8) -> Kind {
    match (family, kind) {
        (Family::V4, 8) | (Family::V6, 128) => Kind::Echo,
        // Destination unreachable: 1 and 3 are host and port.
        (Family::V4, 3) => Kind::Error {
            quic_ignores_it: code == 1 || code == 3,
        },
        // Here 3 and 4 are address and port.
        (Family::V6, 1) => Kind::Error {
            quic_ignores_it: code == 3 || code == 4,
        },
        // Packet too big (IPv6), time exceeded, parameter problem.
        (Family::V4, 11 | 12) | (Family::V6, 2..=4) => Kind::Error {
            quic_ignores_it: false,
        },
        _ => Kind::Other,
    }
}

/// The error, if the packet is one; `None` if it is not ICMP.
pub(crate) fn parse(run: &mut Run<'_>, header: &Header) -> Step<Option<Error>> {
    // The other family's ICMP has no meaning here.
    let own = match header.family {
        Family::V4 => ICMP,
        Family::V6 => ICMPV6,
    };
    if header.protocol != own {
        return Ok(None);
    }
    if !header.has(8) {
        return Err(refuse(run, header.destination, "icmp_truncated"));
    }
    let message = &run.frame[header.payload..];
    match kind_of(header.family, message[0], message[1]) {
        Kind::Echo => Err(echo(run, header)),
        Kind::Other => Err(End::Pass("other ICMP")),
        Kind::Error { quic_ignores_it } => {
            count_too_big(run, header);
            let error = quoted(run, header, quic_ignores_it)?;
            if error.source != header.destination {
                return Err(End::Pass("another's ICMP error"));
            }
            Ok(Some(error))
        }
    }
}

/// Counts messages that announce an MTU, for whatever flow.
fn count_too_big(run: &mut Run<'_>, header: &Header) {
    let message = &run.frame[header.payload..];
    let low = u32::from(u16_at(message, 6));
    let high = u32::from(u16_at(message, 4));
    let (all, small, mtu) = match (header.family, message[0], message[1]) {
        (Family::V4, 3, 4) => ("ptb_v4", "ptb_v4_small", low),
        (Family::V6, 2, _) => ("ptb_v6", "ptb_v6_small", high << 16 | low),
        _ => return,
    };
    run.balancer.count("icmp", all);
    if mtu < SMALLEST_MTU {
        run.balancer.count("icmp", small);
    }
}

fn quoted(run: &Run<'_>, header: &Header, quic_ignores_it: bool) -> Step<Error> {
    let at = header.payload + 8;
    let size = match header.family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    };
    if !header.has(8 + size) {
        return Err(refuse(run, header.destination, "quote_truncated"));
    }
    let ip = &run.frame[at..];
    if header.family == Family::V4 && ip[0] & 0xf != 5 {
        return Err(refuse(run, header.destination, "quote_options"));
    }
    let (source, destination, protocol) = match header.family {
        Family::V4 => (v4_at(ip, 12), v4_at(ip, 16), ip[9]),
        Family::V6 => (v6_at(ip, 8), v6_at(ip, 24), ip[6]),
    };
    Ok(Error {
        source,
        destination,
        protocol,
        transport: at + size,
        quic_ignores_it,
    })
}

/// Whether the address is a single host's: not multicast, broadcast, loopback or unspecified.
pub(crate) fn is_single_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_multicast() || address.is_loopback() || address.is_unspecified() || broadcast)
}

/// Turns the request into its reply.
fn echo(run: &mut Run<'_>, header: &Header) -> End {
    let mut vips = run.balancer.tables.vips.values();
    let for_vip = vips.any(|vip| vip.covers(header.destination));
    if !(for_vip && is_single_host(header.source) && is_single_host(header.destination)) {
        return End::Pass("echo request of others");
    }
    let (name, reply) = match header.family {
        Family::V4 => ("echo_v4", 0),
        Family::V6 => ("echo_v6", 129),
    };
    run.balancer.count("icmp", name);
    swap_macs(&mut run.frame);
    let message = &mut run.frame[header.payload..];
    let before = u16_at(message, 0);
    message[0] = reply;
    // Adjusted for that change only: a wrong checksum stays wrong.
    let mut check = replaced(u16_at(message, 2), before, u16_at(message, 0));
    // The sum of zeros is 0, which only 0xffff makes right.
    let rest = &run.frame[header.payload + 4..header.end];
    let is_of_zeros = reply == 0 && rest.iter().all(|byte| *byte == 0);
    if check == 0 && is_of_zeros {
        check = 0xffff;
    }
    let message = &mut run.frame[header.payload..];
    put_u16(message, 2, check);
    let ip = &mut run.frame[ETHERNET..];
    match header.family {
        Family::V4 => {
            swap(ip, 12, 16, 4);
            ip[8] = TTL;
            put_u16(ip, 10, 0);
            let check = !sum(&ip[..IPV4]);
            put_u16(ip, 10, check);
        }
        Family::V6 => {
            swap(ip, 8, 24, 16);
            ip[7] = TTL;
        }
    }
    End::Tx("ICMP echo")
}

fn swap(bytes: &mut [u8], one: usize, other: usize, length: usize) {
    for i in 0..length {
        bytes.swap(one + i, other + i);
    }
}

/// Swaps a frame's MAC addresses.
pub(crate) fn swap_macs(frame: &mut [u8]) {
    swap(frame, 0, 6, 6);
}
