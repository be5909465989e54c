//! Frames as received, built field by field, with right lengths and checksums.

use std::net::IpAddr;

use katran::Flow;
use katran::Protocol;

/// The MAC addresses of the frames' source and of the balancer.
pub(crate) const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub(crate) const OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const TTL: u8 = 57;

pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4: usize = 20;
pub(crate) const IPV6: usize = 40;

/// A TCP or UDP packet; by default TCP has only ACK set.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    flow: Flow,
    flags: u8,
    payload: Vec<u8>,
    tos: u8,
    checksum: bool,
    options: Vec<u8>,
}

impl Packet {
    pub(crate) fn new(flow: Flow) -> Self {
        Self {
            flow,
            flags: ACK,
            payload: b"hello".to_vec(),
            tos: 0,
            checksum: true,
            options: Vec::new(),
        }
    }

    pub(crate) fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// This many bytes of payload.
    pub(crate) fn payload(mut self, bytes: usize) -> Self {
        self.payload = (0..bytes).map(|i| (i * 31) as u8).collect();
        self
    }

    /// This payload.
    pub(crate) fn data(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// TCP options, padded to whole words.
    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// UDP without a checksum: 0.
    pub(crate) fn without_checksum(mut self) -> Self {
        self.checksum = false;
        self
    }

    /// The IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let (source, destination) = (self.flow.source, self.flow.destination);
        let mut body = source.port().to_be_bytes().to_vec();
        body.extend(destination.port().to_be_bytes());
        let check_at = match self.flow.protocol {
            Protocol::Tcp => {
                let words = 5 + self.options.len() as u8 / 4;
                body.extend([
                    0,
                    0,
                    0,
                    1,
                    0,
                    0,
                    0,
                    2,
                    words << 4,
                    self.flags,
                    1,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]);
                body.extend(&self.options);
                16
            }
            Protocol::Udp => {
                body.extend((8 + self.payload.len() as u16).to_be_bytes());
                body.extend([0, 0]);
                6
            }
        };
        body.extend(&self.payload);
        let protocol = self.flow.protocol.number();
        if self.checksum {
            let check = !pseudo_sum(source.ip(), destination.ip(), protocol, &body);
            body[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
        }
        packet(source.ip(), destination.ip(), protocol, self.tos, &body)
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        ethernet(&self.ip())
    }
}

/// The frame of a plain packet of a flow.
pub(crate) fn frame(flow: Flow) -> Vec<u8> {
    Packet::new(flow).frame()
}

/// The frame that opens a flow's connection.
pub(crate) fn syn(flow: Flow) -> Vec<u8> {
    Packet::new(flow).flags(SYN).frame()
}

/// An IP packet with this body.
pub(crate) fn packet(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    tos: u8,
    body: &[u8],
) -> Vec<u8> {
    let mut bytes = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = ((IPV4 + body.len()) as u16).to_be_bytes();
            let mut header = vec![0x45, tos, length[0], length[1], 0x12, 0x34, 0x40, 0];
            header.extend([TTL, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let check = (!sum(&header)).to_be_bytes();
            header[10..12].copy_from_slice(&check);
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60 | tos >> 4, tos << 4 | 0x5, 0x43, 0x21];
            header.extend((body.len() as u16).to_be_bytes());
            header.extend([protocol, TTL]);
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => panic!("{source} and {destination} are of two families"),
    };
    bytes.extend(body);
    bytes
}

/// The frame of an IP packet.
pub(crate) fn ethernet(ip: &[u8]) -> Vec<u8> {
    let mut bytes = OWN_MAC.to_vec();
    bytes.extend(ROUTER_MAC);
    let kind: u16 = if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    bytes.extend(kind.to_be_bytes());
    bytes.extend(ip);
    bytes
}

/// The frame cut to this many bytes of its IP packet, with the length field to match.
pub(crate) fn cut(frame: &[u8], ip: usize) -> Vec<u8> {
    let mut frame = frame[..ETHERNET + ip].to_vec();
    let (at, length) = match frame[ETHERNET] >> 4 {
        4 => (ETHERNET + 2, ip),
        _ => (ETHERNET + 4, ip - IPV6),
    };
    frame[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
    frame
}

/// An IPv6 frame with extension headers inserted, the first of which has this number.
pub(crate) fn extended(frame: &[u8], first: u8, headers: &[u8]) -> Vec<u8> {
    let (ip, rest) = frame.split_at(ETHERNET + IPV6);
    let mut bytes = [ip, headers, rest].concat();
    bytes[ETHERNET + 6] = first;
    let length = (bytes.len() - ETHERNET - IPV6) as u16;
    bytes[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// An ICMP message of the addresses' family, as a frame.
pub(crate) fn icmp(
    source: IpAddr,
    destination: IpAddr,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    body: &[u8],
) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    message.extend(body);
    let (protocol, total) = match source {
        IpAddr::V4(_) => (ICMP, sum(&message)),
        IpAddr::V6(_) => (ICMPV6, pseudo_sum(source, destination, ICMPV6, &message)),
    };
    message[2..4].copy_from_slice(&(!total).to_be_bytes());
    ethernet(&packet(source, destination, protocol, 0, &message))
}

/// "Port unreachable" from the flow's client to the VIP, about a packet from the VIP to the client,
/// quoting `transport` bytes behind its IP header.
pub(crate) fn unreachable(flow: Flow, transport: usize) -> Vec<u8> {
    icmp_about(flow, Packet::new(reverse(flow)).ip(), transport)
}

/// The same, quoting any packet of the flow's families.
pub(crate) fn icmp_about(flow: Flow, quoted: Vec<u8>, transport: usize) -> Vec<u8> {
    let (client, vip) = (flow.source.ip(), flow.destination.ip());
    let (kind, code, header) = match client {
        IpAddr::V4(_) => (3, 3, IPV4),
        IpAddr::V6(_) => (1, 4, IPV6),
    };
    icmp(
        client,
        vip,
        kind,
        code,
        [0; 4],
        &quoted[..header + transport],
    )
}

/// "Fragmentation needed" or "packet too big" with this MTU, about a packet from the VIP.
pub(crate) fn too_big(flow: Flow, mtu: u16) -> Vec<u8> {
    let (client, vip) = (flow.source.ip(), flow.destination.ip());
    let quoted = Packet::new(reverse(flow)).ip();
    let [high, low] = mtu.to_be_bytes();
    let (kind, code) = if client.is_ipv4() { (3, 4) } else { (2, 0) };
    icmp(client, vip, kind, code, [0, 0, high, low], &quoted)
}

/// An echo request with this body.
pub(crate) fn echo(source: IpAddr, destination: IpAddr, body: &[u8]) -> Vec<u8> {
    let kind = if source.is_ipv4() { 8 } else { 128 };
    icmp(source, destination, kind, 0, [0x77, 0x77, 0, 1], body)
}

pub(crate) fn reverse(flow: Flow) -> Flow {
    Flow {
        source: flow.destination,
        destination: flow.source,
        ..flow
    }
}

/// The ones' complement sum of the 16-bit words (RFC 1071); 0xffff if it includes a right checksum.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum with the pseudo header of TCP, UDP and ICMPv6 (RFC 8200, 8.1).
pub(crate) fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(body);
    sum(&bytes)
}

/// Changes the length field at the start of `bytes` so that the packet ends this many bytes
/// earlier; with `datagram` the UDP datagram's, not the packet's.
pub(crate) fn ends_earlier(bytes: &mut [u8], by: usize, datagram: bool) {
    let (header, length) = if bytes[0] >> 4 == 4 {
        (IPV4, 2)
    } else {
        (IPV6, 4)
    };
    let at = if datagram { header + 4 } else { length };
    let said = u16::from_be_bytes([bytes[at], bytes[at + 1]]) - by as u16;
    bytes[at..at + 2].copy_from_slice(&said.to_be_bytes());
}
