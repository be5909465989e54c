//! Step 1: the IP header. Fragments, options and impossible lengths are not forwarded; but packets
//! for no VIP are the host's, whatever they look like.

use std::net::IpAddr;

use crate::End;
use crate::Step;
use crate::bytes::ETHERNET;
use crate::bytes::IPV4;
use crate::bytes::IPV6;
use crate::bytes::u16_at;
use crate::bytes::v4_at;
use crate::bytes::v6_at;
use crate::walk::Run;

/// An IP packet's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The contents of an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Its family.
    pub family: Family,
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The payload's protocol number.
    pub protocol: u8,
    /// The ToS byte or the traffic class.
    pub tos: u8,
    /// The length field as it is: of the whole packet for IPv4, of what follows 40 bytes for IPv6.
    pub length: u16,
    /// Where in the frame its payload begins.
    pub payload: usize,
    /// Where the packet ends in the frame. Bytes behind it are Ethernet padding.
    pub end: usize,
}

impl Header {
    /// The length of the whole packet.
    pub fn packet_length(&self) -> u16 {
        match self.family {
            Family::V4 => self.length,
            Family::V6 => self.length.wrapping_add(IPV6 as u16),
        }
    }

    /// Whether the packet has this many bytes of payload.
    pub fn has(&self, bytes: usize) -> bool {
        self.payload + bytes <= self.end
    }
}

/// The most extension headers; more end the walk.
const EXTENSION_HEADERS: usize = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

pub(crate) fn parse(run: &Run<'_>, family: Family) -> Step<Header> {
    match family {
        Family::V4 => parse_v4(run),
        Family::V6 => parse_v6(run),
    }
}

/// Ends the walk of a packet that cannot be forwarded: dropped for this reason if it is for a VIP,
/// else the host's.
pub(crate) fn refuse(run: &Run<'_>, destination: IpAddr, reason: &'static str) -> End {
    let mut vips = run.balancer.tables.vips.values();
    match vips.any(|vip| vip.covers(destination)) {
        true => End::Drop(reason),
        false => End::Pass("not for a VIP"),
    }
}

/// Where the packet ends, by its header; `None` if that is behind the frame's end or within the
/// header.
fn end_of(run: &Run<'_>, header: usize, length: usize) -> Option<usize> {
    let end = ETHERNET + length;
    (length >= header && end <= run.frame.len()).then_some(end)
}

fn parse_v4(run: &Run<'_>) -> Step<Header> {
    let ip = &run.frame[ETHERNET..];
    if ip.len() < IPV4 {
        return Err(End::Drop("ipv4_truncated"));
    }
    if ip[0] >> 4 != 4 {
        return Err(End::Pass("another IP version"));
    }
    let destination = v4_at(ip, 16);
    let length = u16_at(ip, 2);
    if ip[0] & 0xf != 5 {
        return Err(refuse(run, destination, "ipv4_options"));
    }
    // The more-fragments flag, and the offset.
    if u16_at(ip, 6) & 0x3fff != 0 {
        return Err(refuse(run, destination, "ipv4_fragment"));
    }
    let Some(end) = end_of(run, IPV4, length.into()) else {
        return Err(refuse(run, destination, "length"));
    };
    Ok(Header {
        family: Family::V4,
        source: v4_at(ip, 12),
        destination,
        protocol: ip[9],
        tos: ip[1],
        length,
        payload: ETHERNET + IPV4,
        end,
    })
}

fn parse_v6(run: &Run<'_>) -> Step<Header> {
    let ip = &run.frame[ETHERNET..];
    if ip.len() < IPV6 {
        return Err(End::Drop("ipv6_truncated"));
    }
    if ip[0] >> 4 != 6 {
        return Err(End::Pass("another IP version"));
    }
    let destination = v6_at(ip, 24);
    let length = u16_at(ip, 4);
    let Some(end) = end_of(run, IPV6, IPV6 + usize::from(length)) else {
        return Err(refuse(run, destination, "length"));
    };
    let mut header = Header {
        family: Family::V6,
        source: v6_at(ip, 8),
        destination,
        protocol: ip[6],
        tos: ip[0] << 4 | ip[1] >> 4,
        length,
        payload: ETHERNET + IPV6,
        end,
    };
    for walked in 0.. {
        match header.protocol {
            FRAGMENT => return Err(refuse(run, destination, "ipv6_fragment")),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let walkable = walked < EXTENSION_HEADERS && walk_extension(run, &mut header);
                if !walkable {
                    return Err(refuse(run, destination, "extension_headers"));
                }
            }
            _ => break,
        }
    }
    Ok(header)
}

/// The protocol behind the IPv6 packet's extension headers, and where that begins; `None`: they
/// cannot be followed. Does not check that all of it is there.
pub(crate) fn behind_extensions(ip: &[u8]) -> Option<(u8, usize)> {
    let (mut protocol, mut at) = (ip[6], IPV6);
    for walked in 0.. {
        if !matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            break;
        }
        let extension = ip.get(at..at + 8)?;
        if walked == EXTENSION_HEADERS || protocol == ROUTING && extension[3] != 0 {
            return None;
        }
        protocol = extension[0];
        at += 8 * (usize::from(extension[1]) + 1);
    }
    (at <= IPV6 + usize::from(u16_at(ip, 4)) || at == IPV6).then_some((protocol, at))
}

/// Steps over an extension header (RFC 8200, section 4); `false` if it is truncated, or routes the
/// packet elsewhere first.
fn walk_extension(run: &Run<'_>, header: &mut Header) -> bool {
    if !header.has(8) {
        return false;
    }
    let extension = &run.frame[header.payload..];
    let bytes = 8 * (usize::from(extension[1]) + 1);
    let segments_left = extension[3];
    if !header.has(bytes) || header.protocol == ROUTING && segments_left != 0 {
        return false;
    }
    header.protocol = extension[0];
    header.payload += bytes;
    true
}
