//! Step 9: the packet is counted, then delivered to this host or wrapped and sent to its real.

use std::net::IpAddr;

use crate::Encapsulation;
use crate::End;
use crate::RealId;
use crate::Step;
use crate::VipNumber;
use crate::bytes::ETHERNET;
use crate::bytes::IPIP;
use crate::bytes::IPV4;
use crate::bytes::IPV6;
use crate::bytes::IPV6_IN_IP;
use crate::bytes::PROTOCOL_UDP;
use crate::bytes::TYPE_IPV4;
use crate::bytes::TYPE_IPV6;
use crate::bytes::UDP;
use crate::bytes::add;
use crate::bytes::octets;
use crate::bytes::pseudo_sum;
use crate::bytes::put_u16;
use crate::bytes::sum;
use crate::bytes::u16_at;
use crate::choose::Choice;
use crate::icmp::TTL;
use crate::ip::Family;
use crate::transport::Packet;
use crate::walk::Run;

/// One in this many packets of a VIP without a pair looks for a place.
const UNPAIRED_TRIES: u64 = 256;

/// Optional counters. A pair gets its place from its first packet on, if one is free and the packet
/// looks for it.
fn count_in_detail(run: &mut Run<'_>, number: VipNumber, packet: &Packet, real: RealId) {
    let balancer = &mut *run.balancer;
    let most = balancer.config.max_vip_reals;
    if !balancer.config.counts_syns && most == 0 {
        return;
    }
    let of_vip = balancer.details.entry(number).or_default();
    of_vip.syns += u64::from(packet.syn);
    if most == 0 {
        return;
    }
    let pair = (number, real);
    let looks = of_vip.unpaired.is_multiple_of(UNPAIRED_TRIES);
    if (balancer.pairs.len() == most || !looks) && !balancer.pairs.contains_key(&pair) {
        of_vip.unpaired += 1;
        return;
    }
    let of_pair = balancer.pairs.entry(pair).or_default();
    of_pair.packets += 1;
    of_pair.bytes += u64::from(packet.header.length);
    of_pair.syns += u64::from(packet.syn);
}

pub(crate) fn send(
    run: &mut Run<'_>,
    number: VipNumber,
    packet: &Packet,
    choice: &Choice,
) -> Step<End> {
    let bytes = u64::from(packet.header.length);
    let of_vip = run.balancer.of_vips.entry(number).or_default();
    of_vip.packets += 1;
    of_vip.bytes += bytes;
    let of_real = run.balancer.of_reals.entry(choice.real).or_default();
    of_real.packets += 1;
    of_real.bytes += bytes;
    count_in_detail(run, number, packet, choice.real);

    let tables = &run.balancer.tables;
    let config = &run.balancer.config;
    let real = tables.reals[&choice.real];
    let is_local = tables.vips[&number].flags.local_vip && real.local;
    if config.features.local_delivery && is_local {
        return Ok(End::Pass("delivered to this host"));
    }
    // From the address that the frame was sent to, to the router; or as in the real's next hop.
    let (mut to, mut from) = match real.address {
        IpAddr::V4(_) => (config.gateway_mac.to_vec(), run.frame[..6].to_vec()),
        IpAddr::V6(_) => (config.gateway_mac_v6.to_vec(), run.frame[..6].to_vec()),
    };
    let mut by = None;
    if config.next_hops {
        let hop = tables.hops.get(&choice.real);
        let hop = hop.ok_or(End::Drop("next_hop_unknown"))?;
        to = hop.mac.to_vec();
        by = hop.by;
        from = by.map_or(from, |port| port.mac.to_vec());
    }
    let outer = match config.encapsulation {
        Encapsulation::Ipip => ipip(run, packet, choice, real.address),
        Encapsulation::Gue => gue(run, packet, choice, real.address),
    };
    let kind = match real.address {
        IpAddr::V4(_) => TYPE_IPV4,
        IpAddr::V6(_) => TYPE_IPV6,
    };
    let mut frame = to;
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(outer);
    frame.extend(&run.frame[ETHERNET..]);
    run.frame = frame;
    match by {
        None => Ok(End::Tx("sent to its real")),
        Some(port) if port.there => Ok(End::Redirect("sent to its real")),
        Some(_) => Err(End::Drop("redirect_failed")),
    }
}

/// Identification, flags and offset of an outer IPv4 header: as in Katran, or with the inner
/// packet's DF bit. Without that bit identifications differ (RFC 6864): they count this CPU's
/// frames.
fn fragmentation(run: &Run<'_>, packet: &Packet) -> [u8; 4] {
    const DONT_FRAGMENT: u8 = 0x40;
    if !run.balancer.config.outer_dont_fragment {
        return [0; 4];
    }
    let inner = &run.frame[ETHERNET..];
    match packet.header.family {
        // Routers do not fragment IPv6.
        Family::V6 => [0, 0, DONT_FRAGMENT, 0],
        Family::V4 if inner[6] & DONT_FRAGMENT != 0 => [0, 0, DONT_FRAGMENT, 0],
        Family::V4 => {
            let [high, low] = (run.balancer.sent as u16).to_be_bytes();
            [high, low, 0, 0]
        }
    }
}

/// An outer IP header for this many bytes, with the inner ToS byte.
fn outer_header(
    run: &Run<'_>,
    packet: &Packet,
    ends: (IpAddr, IpAddr),
    protocol: u8,
    payload: u16,
) -> Vec<u8> {
    let (source, real) = ends;
    let tos = packet.header.tos;
    let mut header;
    match real {
        IpAddr::V4(_) => {
            header = vec![0x45, tos];
            header.extend(payload.wrapping_add(IPV4 as u16).to_be_bytes());
            header.extend(fragmentation(run, packet));
            header.extend([TTL, protocol, 0, 0]);
            header.extend(octets(source));
            header.extend(octets(real));
            let check = !sum(&header);
            put_u16(&mut header, 10, check);
        }
        IpAddr::V6(_) => {
            header = vec![0x60 | tos >> 4, tos << 4, 0, 0];
            header.extend(payload.to_be_bytes());
            header.extend([protocol, TTL]);
            header.extend(octets(source));
            header.extend(octets(real));
        }
    }
    header
}

/// The prefixes of outer sources, which are made up per flow.
#[derive(Clone, Copy, Debug)]
pub struct MadeUp {
    /// The first half of an IPv4 address.
    pub v4: [u8; 2],
    /// The first three quarters of an IPv6 address.
    pub v6: [u8; 12],
}

impl MadeUp {
    /// The outer source of packets from a client to a real.
    pub(crate) fn address(&self, real: IpAddr, client: IpAddr, port: u16) -> IpAddr {
        let [high, low] = port.to_be_bytes();
        let address = octets(client);
        let tail = &address[address.len() - 4..];
        match real {
            IpAddr::V4(_) => {
                let [a, b] = self.v4;
                let mut host = [low ^ tail[2], high ^ tail[3]];
                if host == [0, 0] || host == [0xff, 0xff] {
                    host[1] ^= 1;
                }
                [a, b, host[0], host[1]].into()
            }
            IpAddr::V6(_) => {
                let mut host = [tail[0] ^ high, tail[1] ^ low, tail[2], tail[3]];
                if host == [0; 4] || host == [0xff; 4] {
                    host[3] ^= 1;
                }
                let mut bytes = [0; 16];
                bytes[..12].copy_from_slice(&self.v6);
                bytes[12..].copy_from_slice(&host);
                bytes.into()
            }
        }
    }
}

/// IP in IP. The outer source is made up per flow, so that a backend's queues share the flows.
fn ipip(run: &Run<'_>, packet: &Packet, choice: &Choice, real: IpAddr) -> Vec<u8> {
    let config = &run.balancer.config;
    let made_up = MadeUp {
        v4: config.ipip_source_v4,
        v6: config.ipip_source_v6,
    };
    let source = made_up.address(real, choice.source, choice.source_port);
    let protocol = match packet.header.family {
        Family::V4 => IPIP,
        Family::V6 => IPV6_IN_IP,
    };
    let length = packet.header.packet_length();
    outer_header(run, packet, (source, real), protocol, length)
}

/// GUE, variant 1: a UDP header, and directly the packet.
fn gue(run: &Run<'_>, packet: &Packet, choice: &Choice, real: IpAddr) -> Vec<u8> {
    let config = &run.balancer.config;
    let own: IpAddr = match real {
        IpAddr::V4(_) => config.source_v4.map(IpAddr::V4),
        IpAddr::V6(_) => config.source_v6.map(IpAddr::V6),
    }
    .unwrap_or(choice.source);
    let [high, low] = choice.source_port.to_be_bytes();
    let s = octets(choice.source);
    let mut port = match (real, packet.header.family) {
        (IpAddr::V4(_), Family::V4) => [low ^ s[2], high ^ s[3]],
        (IpAddr::V6(_), Family::V4) => [s[2] ^ high, s[3] ^ low],
        (IpAddr::V6(_), Family::V6) => [s[12] ^ high, s[13] ^ low],
        (IpAddr::V4(_), Family::V6) => [low ^ s[14], high ^ s[15]],
    };
    if port == [0, 0] {
        port = [0xff, 0xff];
    }
    let length = packet.header.packet_length().wrapping_add(UDP as u16);
    let mut udp = port.to_vec();
    udp.extend(config.gue_port.to_be_bytes());
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    // No checksum (RFC 6935) for a datagram without one, and for an incomplete packet.
    let inner = inner_sum(run, packet).filter(|_| !packet.unchecked);
    if let Some(inner) = inner {
        let pseudo = pseudo_sum(own, real, PROTOCOL_UDP, length);
        let check = match !add(add(pseudo, sum(&udp)), inner) {
            0 => 0xffff,
            check => check,
        };
        put_u16(&mut udp, 6, check);
    }
    let mut outer = outer_header(run, packet, (own, real), PROTOCOL_UDP, length);
    outer.extend(udp);
    outer
}

/// The inner packet's sum. The payload need not be read, as the inner checksum implies it:
/// transport header and payload are the complement of the pseudo header. If UDP's length differs
/// from the packet's, or with extension headers, it does not cover everything, so all of it is
/// read.
fn inner_sum(run: &Run<'_>, packet: &Packet) -> Option<u16> {
    let header = &packet.header;
    let ip = &run.frame[ETHERNET..];
    let (size, behind) = match header.family {
        Family::V4 => (IPV4, header.length.wrapping_sub(IPV4 as u16)),
        Family::V6 => (IPV6, header.length),
    };
    let is_datagram = packet.error.is_none() && header.protocol == PROTOCOL_UDP;
    let is_extended = header.payload != ETHERNET + size;
    let is_odd = is_datagram && !is_extended && u16_at(ip, size + 4) != behind;
    if is_extended || is_odd {
        let all = ip.get(..size + usize::from(behind));
        return all.map(sum);
    }
    let header_sum = sum(&ip[..size]);
    // ICMP has no pseudo header over IPv4.
    if header.family == Family::V4 && packet.error.is_some() {
        return Some(header_sum);
    }
    let pseudo = pseudo_sum(header.source, header.destination, header.protocol, behind);
    Some(add(header_sum, !pseudo))
}
