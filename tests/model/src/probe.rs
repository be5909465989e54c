//! Health checks: packets that this host sends. A probe goes through the tunnel to its real like
//! clients' packets; everything else leaves unchanged.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use crate::Counters;
use crate::Encapsulation;
use crate::bytes::ETHERNET;
use crate::bytes::ICMP;
use crate::bytes::ICMPV6;
use crate::bytes::IPIP;
use crate::bytes::IPV4;
use crate::bytes::IPV6;
use crate::bytes::IPV6_IN_IP;
use crate::bytes::PROTOCOL_TCP;
use crate::bytes::PROTOCOL_UDP;
use crate::bytes::TYPE_IPV4;
use crate::bytes::TYPE_IPV6;
use crate::bytes::UDP;
use crate::bytes::add;
use crate::bytes::octets;
use crate::bytes::pseudo_sum;
use crate::bytes::put_u16;
use crate::bytes::slice;
use crate::bytes::sum;
use crate::bytes::u16_at;
use crate::bytes::v4_at;
use crate::bytes::v6_at;
use crate::icmp::TTL;
use crate::ip::Family;
use crate::out::MadeUp;
use crate::transport::SYN;

const ACK: u8 = 0x10;
/// This bit marks the source port of a probe's GUE header: by it backends tell probes from clients'
/// packets.
pub const PROBE_BIT: u16 = 1 << 10;

/// An address and a port; port 0 matches any.
pub type End = (IpAddr, u16);

/// The outer sources of probes.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// This host's own addresses.
    Own(Ipv4Addr, Ipv6Addr),
    /// Made up, as for clients' packets.
    MadeUp(MadeUp),
}

/// The path of health checks.
#[derive(Clone, Debug)]
pub struct Probes {
    /// How probes are wrapped.
    pub encapsulation: Encapsulation,
    /// The UDP port of GUE.
    pub gue_port: u16,
    /// Outer sources.
    pub source: Source,
    /// The longest frame of a probe before encapsulation; 0: any.
    pub max_packet: usize,
    /// The router's MAC address.
    pub gateway_mac: [u8; 6],
    /// The router's MAC address for IPv6 reals.
    pub gateway_mac_v6: [u8; 6],
    /// Reals by socket mark.
    pub marks: BTreeMap<u32, IpAddr>,
    /// Reals by destination.
    pub destinations: BTreeMap<End, IpAddr>,
    /// Reals by source.
    pub sources: BTreeMap<End, IpAddr>,
    /// The keys of probes' counters: destination and protocol.
    pub keys: BTreeSet<(IpAddr, u16, u8)>,
    /// The real of TCP connections with marked packets, by source and destination.
    pub connections: BTreeMap<(End, End), IpAddr>,
    /// Counters of the group `healthcheck`.
    pub counters: Counters,
    /// Probes by key.
    pub of_keys: BTreeMap<(IpAddr, u16, u8), u64>,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is no probe, and leaves unchanged, with its mark.
    AsItIs,
    /// The frame that leaves instead, without a mark.
    Wrapped(Vec<u8>),
    /// It cannot be sent to its real.
    Dropped,
}

/// A parsed packet.
struct Packet {
    family: Family,
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    /// For TCP and UDP, unless in a later fragment.
    ports: Option<(u16, u16)>,
    /// Where the header behind IP's begins in the frame.
    transport: usize,
    /// Its sum, if its checksum implies it.
    sum: Option<u16>,
}

impl Packet {
    fn parse(frame: &[u8]) -> Option<Self> {
        let ip = &frame[ETHERNET..];
        let (family, protocol, source, destination, header, length, first, whole);
        match u16_at(frame, 12) {
            TYPE_IPV4 if ip.len() >= IPV4 => {
                family = Family::V4;
                protocol = ip[9];
                (source, destination) = (v4_at(ip, 12), v4_at(ip, 16));
                header = usize::from(ip[0] & 0xf) * 4;
                length = u16_at(ip, 2).wrapping_sub(IPV4 as u16);
                // Later fragments have no ports; no fragment's sum is known.
                first = u16_at(ip, 6) & 0x1fff == 0;
                whole = header == IPV4 && u16_at(ip, 6) & 0x3fff == 0;
            }
            TYPE_IPV6 if ip.len() >= IPV6 => {
                family = Family::V6;
                protocol = ip[6];
                (source, destination) = (v6_at(ip, 8), v6_at(ip, 24));
                header = IPV6;
                length = u16_at(ip, 4);
                (first, whole) = (true, true);
            }
            _ => return None,
        }
        let transport = ETHERNET + header;
        let has_ports = matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP);
        let ports = slice(frame, transport, 4)
            .filter(|_| first && has_ports)
            .map(|bytes| (u16_at(bytes, 0), u16_at(bytes, 2)));
        let udp = slice(frame, transport, UDP);
        let is_summed = match (protocol, family) {
            (PROTOCOL_TCP, _) | (ICMP, Family::V4) | (ICMPV6, Family::V6) => true,
            (PROTOCOL_UDP, _) => {
                udp.is_some_and(|udp| u16_at(udp, 6) != 0 && u16_at(udp, 4) == length)
            }
            _ => false,
        };
        // The checksum makes what follows the IP header the complement of its pseudo header; ICMP
        // over IPv4 has none.
        let pseudo = match protocol {
            ICMP => 0xffff,
            _ => pseudo_sum(source, destination, protocol, length),
        };
        let header_sum = match family {
            Family::V4 => sum(&ip[..IPV4]),
            Family::V6 => sum(&ip[..IPV6]),
        };
        Some(Self {
            family,
            protocol,
            source,
            destination,
            ports,
            transport,
            sum: (is_summed && whole).then(|| add(header_sum, !pseudo)),
        })
    }

    fn from(&self) -> End {
        (self.source, self.ports.map_or(0, |(from, _)| from))
    }

    fn to(&self) -> End {
        (self.destination, self.ports.map_or(0, |(_, to)| to))
    }

    fn is_connection(&self) -> bool {
        self.protocol == PROTOCOL_TCP && self.ports.is_some()
    }
}

impl Probes {
    /// The result for a frame with this mark; `port` is random, for GUE's header.
    pub fn send(&mut self, frame: &[u8], mark: u32, port: u16) -> Sent {
        let sent = self.decide(frame, mark, port);
        self.count(match sent {
            Sent::AsItIs => "skipped",
            Sent::Wrapped(_) => "processed",
            Sent::Dropped => "dropped",
        });
        sent
    }

    fn count(&mut self, name: &'static str) {
        self.counters.add("healthcheck", name, 1);
    }

    fn decide(&mut self, frame: &[u8], mark: u32, port: u16) -> Sent {
        let Some(packet) = Packet::parse(frame) else {
            return Sent::AsItIs;
        };
        let named = self.named(&packet, mark);
        let late = match named {
            Some(_) => None,
            None => self.late(&packet, frame, mark),
        };
        let Some(real) = named.or(late) else {
            return Sent::AsItIs;
        };
        if self.max_packet != 0 && frame.len() > self.max_packet {
            self.count("too_big");
            return Sent::Dropped;
        }
        let key = (packet.destination, packet.to().1, packet.protocol);
        if late.is_none() && self.keys.contains(&key) {
            *self.of_keys.entry(key).or_default() += 1;
        }
        Sent::Wrapped(self.wrap(&packet, frame, real, port))
    }

    /// A probe's real: by its mark, else by its destination, else by its source.
    fn named(&mut self, packet: &Packet, mark: u32) -> Option<IpAddr> {
        if let Some(real) = self.marks.get(&mark).copied() {
            if packet.is_connection() {
                self.connections.insert((packet.from(), packet.to()), real);
            }
            return Some(real);
        }
        let matched = |matches: &BTreeMap<End, IpAddr>, (address, port): End| {
            let exact = matches.get(&(address, port));
            exact.or_else(|| matches.get(&(address, 0))).copied()
        };
        if let Some(real) = matched(&self.destinations, packet.to()) {
            self.count("dst_matched");
            return Some(real);
        }
        let real = matched(&self.sources, packet.from())?;
        self.count("src_matched");
        Some(real)
    }

    /// The real of a packet's connection, if nothing names the packet: the kernel sends some
    /// without a mark when the socket is gone. An unmapped mark is some socket's. A SYN begins
    /// another connection, which is no probe's.
    fn late(&mut self, packet: &Packet, frame: &[u8], mark: u32) -> Option<IpAddr> {
        if !packet.is_connection() {
            return None;
        }
        let connection = (packet.from(), packet.to());
        let real = *self.connections.get(&connection)?;
        let flags = *frame.get(packet.transport + 13)?;
        if flags & (SYN | ACK) == SYN {
            self.connections.remove(&connection);
            return None;
        }
        if mark != 0 {
            return None;
        }
        self.count("recalled");
        Some(real)
    }

    fn wrap(&self, packet: &Packet, frame: &[u8], real: IpAddr, port: u16) -> Vec<u8> {
        let source: IpAddr = match (self.source, real) {
            (Source::Own(own, _), IpAddr::V4(_)) => own.into(),
            (Source::Own(_, own), IpAddr::V6(_)) => own.into(),
            (Source::MadeUp(made_up), _) => made_up.address(real, packet.source, packet.from().1),
        };
        let inner = &frame[ETHERNET..];
        let (protocol, body) = match (self.encapsulation, packet.family) {
            (Encapsulation::Ipip, Family::V4) => (IPIP, inner.to_vec()),
            (Encapsulation::Ipip, Family::V6) => (IPV6_IN_IP, inner.to_vec()),
            (Encapsulation::Gue, _) => {
                let datagram = self.datagram(packet, inner, (source, real), port | PROBE_BIT);
                (PROTOCOL_UDP, datagram)
            }
        };
        let (gateway, kind) = match real {
            IpAddr::V4(_) => (self.gateway_mac, TYPE_IPV4),
            IpAddr::V6(_) => (self.gateway_mac_v6, TYPE_IPV6),
        };
        let mut out = gateway.to_vec();
        out.extend(&frame[6..12]);
        out.extend(kind.to_be_bytes());
        out.extend(header(source, real, protocol, body.len() as u16));
        out.extend(body);
        out
    }

    /// GUE: a UDP header, and directly the packet. Without a known sum there is no checksum (RFC
    /// 6935).
    fn datagram(
        &self,
        packet: &Packet,
        inner: &[u8],
        ends: (IpAddr, IpAddr),
        port: u16,
    ) -> Vec<u8> {
        let length = (inner.len() + UDP) as u16;
        let mut bytes = port.to_be_bytes().to_vec();
        bytes.extend(self.gue_port.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0]);
        if let Some(inner_sum) = packet.sum {
            let pseudo = pseudo_sum(ends.0, ends.1, PROTOCOL_UDP, length);
            let check = match !add(add(pseudo, sum(&bytes)), inner_sum) {
                0 => 0xffff,
                check => check,
            };
            put_u16(&mut bytes, 6, check);
        }
        bytes.extend(inner);
        bytes
    }
}

/// A probe's outer header, which inherits nothing from the inner one.
fn header(source: IpAddr, real: IpAddr, protocol: u8, payload: u16) -> Vec<u8> {
    let mut header;
    match real {
        IpAddr::V4(_) => {
            header = vec![0x45, 0];
            header.extend(payload.wrapping_add(IPV4 as u16).to_be_bytes());
            header.extend([0, 0, 0, 0, TTL, protocol, 0, 0]);
            header.extend(octets(source));
            header.extend(octets(real));
            let check = !sum(&header);
            put_u16(&mut header, 10, check);
        }
        IpAddr::V6(_) => {
            header = vec![0x60, 0, 0, 0];
            header.extend(payload.to_be_bytes());
            header.extend([protocol, TTL]);
            header.extend(octets(source));
            header.extend(octets(real));
        }
    }
    header
}
