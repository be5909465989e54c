//! Whether a standard stack would accept a frame: EtherType, lengths and checksums. What the
//! balancer sends must be sound if its input was.

use std::net::IpAddr;

use katran_model::bytes::ICMP;
use katran_model::bytes::ICMPV6;
use katran_model::bytes::IPIP;
use katran_model::bytes::IPV6_IN_IP;
use katran_model::bytes::PROTOCOL_TCP;
use katran_model::bytes::PROTOCOL_UDP;
use katran_model::bytes::add;
use katran_model::bytes::pseudo_sum;
use katran_model::bytes::sum;
use katran_model::bytes::u16_at;
use katran_model::bytes::v4_at;
use katran_model::bytes::v6_at;

/// The frame's fault, if any. `gue`: the tunnels' UDP port.
pub(crate) fn fault(frame: &[u8], gue: u16) -> Option<&'static str> {
    let mut at = 12;
    while matches!(u16_at(frame, at), 0x8100 | 0x88a8) && at < 20 {
        at += 4;
    }
    let ip = frame.get(at + 2..).unwrap_or_default();
    match (u16_at(frame, at), ip.first().map(|first| first >> 4)) {
        (0x0800, Some(4)) | (0x86dd, Some(6)) => packet(ip, gue, 0),
        _ => Some("EtherType"),
    }
}

/// The same for an IP packet and what follows it.
fn packet(ip: &[u8], gue: u16, depth: usize) -> Option<&'static str> {
    if depth > 8 {
        return None;
    }
    let (header, length, protocol, addresses): (usize, usize, u8, (IpAddr, IpAddr)) =
        match ip.first().map(|first| first >> 4) {
            Some(4) if ip.len() >= 20 => {
                let header = usize::from(ip[0] & 0xf) * 4;
                if header < 20 || ip.len() < header {
                    return Some("IPv4 header length");
                }
                if sum(&ip[..header]) != 0xffff {
                    return Some("IPv4 header checksum");
                }
                if u16_at(ip, 6) & 0x3fff != 0 {
                    return Some("a fragment, of which nothing can be said");
                }
                let addresses = (v4_at(ip, 12), v4_at(ip, 16));
                (header, u16_at(ip, 2).into(), ip[9], addresses)
            }
            Some(6) if ip.len() >= 40 => {
                let addresses = (v6_at(ip, 8), v6_at(ip, 24));
                (40, 40 + usize::from(u16_at(ip, 4)), ip[6], addresses)
            }
            _ => return Some("IP header"),
        };
    if length < header || ip.len() < length {
        return Some("IP length");
    }
    let (mut header, mut protocol) = (header, protocol);
    // Hop-by-hop options, routing, destination options (RFC 8200).
    while addresses.0.is_ipv6() && matches!(protocol, 0 | 43 | 60) {
        let extension = &ip[header..length];
        if extension.len() < 8 || extension.len() < 8 * (usize::from(extension[1]) + 1) {
            return Some("extension header");
        }
        protocol = extension[0];
        header += 8 * (usize::from(extension[1]) + 1);
    }
    let body = &ip[header..length];
    let checked = |body: &[u8]| {
        let pseudo = pseudo_sum(addresses.0, addresses.1, protocol, body.len() as u16);
        add(pseudo, sum(body)) == 0xffff
    };
    match protocol {
        PROTOCOL_TCP if body.len() < 20 => Some("TCP header"),
        PROTOCOL_TCP => (!checked(body)).then_some("TCP checksum"),
        PROTOCOL_UDP if body.len() < 8 => Some("UDP header"),
        PROTOCOL_UDP if usize::from(u16_at(body, 4)) != body.len() => Some("UDP length"),
        PROTOCOL_UDP => {
            if u16_at(body, 6) != 0 && !checked(body) {
                return Some("UDP checksum");
            }
            if u16_at(body, 2) != gue {
                return None;
            }
            match body.get(8).map(|first| first >> 4) {
                Some(4 | 6) => packet(&body[8..], gue, depth + 1),
                _ => None,
            }
        }
        ICMP if body.len() < 8 => Some("ICMP header"),
        ICMP => (sum(body) != 0xffff).then_some("ICMP checksum"),
        ICMPV6 if body.len() < 8 => Some("ICMPv6 header"),
        ICMPV6 => (!checked(body)).then_some("ICMPv6 checksum"),
        IPIP | IPV6_IN_IP => {
            let version = if protocol == IPIP { 4 } else { 6 };
            match body.first().map(|first| first >> 4) == Some(version) {
                true => packet(body, gue, depth + 1),
                false => Some("IP version in a tunnel"),
            }
        }
        _ => None,
    }
}
