//! Random frames that know the formats: packets of few clients to few services, so that they meet
//! entries, tunnels and ids; and what else routers, peers and attackers send.

mod ids;

use std::net::IpAddr;

use fastrand::Rng;
use katran_model::bytes::ICMP;
use katran_model::bytes::ICMPV6;
use katran_model::bytes::IPIP;
use katran_model::bytes::IPV6_IN_IP;
use katran_model::bytes::PROTOCOL_TCP;
use katran_model::bytes::PROTOCOL_UDP;
use katran_model::bytes::add;
use katran_model::bytes::octets;
use katran_model::bytes::pseudo_sum;
use katran_model::bytes::put_u16;
use katran_model::bytes::sum;

use crate::balancers::EGRESS;
use crate::balancers::INLINE;
use crate::common::frames::OWN_MAC;
use crate::common::frames::ROUTER_MAC;
use crate::common::ip;
use crate::mutate;
use crate::stations::SECOND_MAC;

/// What frames are generated for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) gue_port: u16,
    pub(crate) max_frame: usize,
    /// The longest frame that a test run accepts.
    pub(crate) longest: usize,
}

pub(crate) struct Generator {
    pub(crate) rng: Rng,
    target: Target,
    /// Recent flows, as packets come in flows.
    recent: Vec<Ends>,
    /// Services that most flows go to.
    hot: Vec<Service>,
}

/// A flow's destination: address, port, and whether it is TCP.
pub(crate) type Service = (IpAddr, u16, bool);

/// A flow's addresses and ports.
#[derive(Clone, Copy, Debug)]
struct Ends {
    client: IpAddr,
    service: IpAddr,
    ports: (u16, u16),
    tcp: bool,
}

impl Generator {
    pub(crate) fn new(seed: u64, target: Target) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            target,
            recent: Vec::new(),
            hot: Vec::new(),
        }
    }

    /// From here on most flows go to these.
    pub(crate) fn prefer(&mut self, services: Vec<Service>) {
        self.hot = services;
    }

    /// The next frame, often with an error.
    pub(crate) fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.right_frame();
        if self.one_in(3) {
            for _ in 0..self.rng.usize(1..4) {
                mutate::once(&mut self.rng, &mut frame);
            }
        }
        frame.truncate(self.target.longest);
        frame
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(0..from.len())]
    }

    fn right_frame(&mut self) -> Vec<u8> {
        let packet = self.packet(0);
        let mut frame = match self.rng.u32(0..40) {
            0 => vec![0x01, 0x00, 0x5e, 0, 0, 1],
            1 => vec![0xff; 6],
            2 => SECOND_MAC.to_vec(),
            _ => OWN_MAC.to_vec(),
        };
        frame.extend(ROUTER_MAC);
        if self.one_in(8) {
            for _ in 0..self.pick(&[1, 1, 1, 2, 2, 3]) {
                let identifier: u16 = self.pick(&[0x8100, 0x8100, 0x88a8]);
                frame.extend(identifier.to_be_bytes());
                frame.extend(self.rng.u16(..).to_be_bytes());
            }
        }
        let kind: u16 = match packet[0] >> 4 {
            4 => 0x0800,
            _ => 0x86dd,
        };
        let kind = if self.one_in(100) {
            self.pick(&[0x0800, 0x86dd, 0x0806, 0x8847, 0x0000])
        } else {
            kind
        };
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        if frame.len() < 60 && self.one_in(3) {
            // As a network card pads short frames.
            frame.resize(60, 0);
        } else if frame.len() < self.target.max_frame && self.one_in(150) {
            // The maximum length, or a byte more.
            frame.resize(self.target.max_frame + self.rng.usize(0..2), 0);
        }
        frame
    }

    fn packet(&mut self, depth: usize) -> Vec<u8> {
        let v6 = self.rng.bool();
        match self.rng.u32(0..20) {
            0..=11 => self.flow_packet(v6),
            12 => self.echo(v6),
            13 | 14 => self.icmp_error(v6, depth),
            15 => {
                let (source, to) = (self.client(v6), self.service(v6));
                let protocol = self.pick(&[1, 2, 4, 41, 47, 50, 51, 58, 59, 132, 255]);
                let body = self.bytes(40);
                self.ip(source, to, protocol, &body)
            }
            _ if depth < 4 => self.tunnel(v6, depth),
            _ => self.flow_packet(v6),
        }
    }

    fn client(&mut self, v6: bool) -> IpAddr {
        if self.one_in(30) {
            let special: &[&str] = match v6 {
                false => &[
                    "0.0.0.0",
                    "255.255.255.255",
                    "224.0.0.5",
                    "127.0.0.1",
                    "203.0.113.1",
                ],
                true => &["::", "::1", "ff02::1", "fe80::1", "2001:db8:1::1"],
            };
            return ip(self.pick(special));
        }
        let (third, fourth) = (self.pick(&[0, 7, 9]), self.rng.u8(0..12));
        match v6 {
            false => [100, 64, third, fourth].into(),
            true => [
                0x2001,
                0xdb8,
                0xc,
                third.into(),
                0,
                0,
                0x4000 + u16::from(fourth),
                u16::from(fourth) << 8,
            ]
            .into(),
        }
    }

    fn client_port(&mut self) -> u16 {
        match self.rng.u32(0..20) {
            0 => self.rng.u16(..),
            1 => self.pick(&[0, 53, 0xffff, self.target.gue_port]),
            // XOR with the clients' addresses is sometimes zero.
            2 => self.pick(&[0x0007, 0x0700, 0x0900, 0x0109, 0x4000, 0x4001]),
            _ => 1024 + self.rng.u16(0..6),
        }
    }

    fn service(&mut self, v6: bool) -> IpAddr {
        let host = self.rng.u16(1..9);
        match (self.rng.u32(0..24), v6) {
            (0, false) => [203, 0, 112, host as u8].into(),
            (0, true) => [0x2001, 0xdb8, 0xffaa, 0, 0, 0, 0, host].into(),
            (1, false) => [203, 0, 113, 200].into(),
            (1, true) => [0x2001, 0xdb8, 1, 0, 9, 9, 9, host].into(),
            (2, false) => [198, 18, 0, 1].into(),
            (2, true) => [0x2001, 0xdb9, 0, 0, 0, 0, 0, 1].into(),
            (3, _) => self.end(v6),
            (_, false) => [203, 0, 113, host as u8].into(),
            (_, true) => [0x2001, 0xdb8, 1, 0, 0, 0, 0, host].into(),
        }
    }

    fn service_port(&mut self) -> u16 {
        match self.rng.u32(0..20) {
            0 => self.rng.u16(..),
            1 => 0,
            2 => self.target.gue_port,
            _ => self.pick(&[80, 443, 53, 5000, 8080]),
        }
    }

    /// An address where a tunnel may end.
    fn end(&mut self, v6: bool) -> IpAddr {
        let i = usize::from(v6);
        let own = ["10.10.10.10", "2001:db8:ffff::1"][i];
        let foreign = ["192.0.2.77", "2001:db8:9::77"][i];
        let none = ["0.0.0.0", "::"][i];
        ip(self.pick(&[
            INLINE[i], INLINE[i], INLINE[i], EGRESS[i], EGRESS[i], own, own, foreign, none,
        ]))
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.rng.usize(0..=most);
        let mut bytes = vec![0; length];
        self.rng.fill(&mut bytes);
        bytes
    }

    /// A payload, sometimes for the longest frame, or beyond.
    fn payload(&mut self) -> Vec<u8> {
        let max_frame = self.target.max_frame;
        let length = match self.rng.u32(0..60) {
            0 => self.rng.usize(0..1500),
            1 | 2 => (max_frame - 60 + self.rng.usize(0..60)).saturating_sub(self.rng.usize(0..40)),
            3 => self.rng.usize(0..self.target.longest),
            _ => self.rng.usize(0..40),
        };
        let mut bytes = vec![0; length];
        let random = length.min(48);
        self.rng.fill(&mut bytes[..random]);
        bytes
    }

    /// A recent flow, or a new one.
    fn ends(&mut self, v6: bool) -> Ends {
        const RECENT: usize = 24;
        let recent = self.recent.iter().copied();
        let of_family: Vec<Ends> = recent.filter(|ends| ends.client.is_ipv6() == v6).collect();
        if !of_family.is_empty() && self.rng.u32(0..10) < 8 {
            return self.pick(&of_family);
        }
        let mut ends = Ends {
            client: self.client(v6),
            service: self.service(v6),
            ports: (self.client_port(), self.service_port()),
            tcp: self.rng.bool(),
        };
        let hot = self.hot.iter().copied();
        let hot: Vec<Service> = hot
            .filter(|(address, ..)| address.is_ipv6() == v6)
            .collect();
        if !hot.is_empty() && !self.one_in(4) {
            let (service, port, tcp) = self.pick(&hot);
            (ends.service, ends.ports.1, ends.tcp) = (service, port, tcp);
        }
        match self.recent.len() < RECENT {
            true => self.recent.push(ends),
            false => self.recent[self.rng.usize(0..RECENT)] = ends,
        }
        ends
    }

    fn flow_packet(&mut self, v6: bool) -> Vec<u8> {
        let ends = self.ends(v6);
        match ends.tcp {
            true => self.tcp(ends.client, ends.service, ends.ports),
            false => self.udp(ends.client, ends.service, ends.ports),
        }
    }

    fn tcp(&mut self, source: IpAddr, to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
        let mut options = Vec::new();
        if self.one_in(3) {
            options = self.tcp_options();
            while !options.len().is_multiple_of(4) {
                options.push(self.pick(&[0, 1]));
            }
        }
        let flags = match self.rng.u32(0..10) {
            0 | 1 => 0x02,
            2 => 0x04,
            3 => self.pick(&[0x12, 0x14, 0x06, 0x11, 0]),
            _ => 0x10,
        };
        let mut segment = ports.0.to_be_bytes().to_vec();
        segment.extend(ports.1.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 2]);
        segment.extend([(5 + options.len() as u8 / 4) << 4, flags, 1, 0, 0, 0, 0, 0]);
        segment.extend(options);
        segment.extend(self.payload());
        checked(source, to, PROTOCOL_TCP, &mut segment, 16);
        self.ip(source, to, PROTOCOL_TCP, &segment)
    }

    fn udp(&mut self, source: IpAddr, to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
        let payload = match self.rng.u32(0..8) {
            0..=3 => self.quic(),
            4 | 5 => self.stable_udp(),
            _ => self.payload(),
        };
        let datagram = self.datagram(source, to, ports, &payload);
        self.ip(source, to, PROTOCOL_UDP, &datagram)
    }

    fn datagram(
        &mut self,
        source: IpAddr,
        to: IpAddr,
        ports: (u16, u16),
        payload: &[u8],
    ) -> Vec<u8> {
        let mut datagram = ports.0.to_be_bytes().to_vec();
        datagram.extend(ports.1.to_be_bytes());
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        if !self.one_in(6) {
            checked(source, to, PROTOCOL_UDP, &mut datagram, 6);
        }
        datagram
    }

    fn icmp(&mut self, v6: bool, kind: u8, code: u8, body: &[u8], to: IpAddr) -> Vec<u8> {
        let source = self.client(v6);
        let mut message = vec![kind, code, 0, 0];
        message.extend(body);
        let protocol = if v6 { ICMPV6 } else { ICMP };
        match v6 {
            true => checked(source, to, protocol, &mut message, 2),
            false => {
                let check = !sum(&message);
                put_u16(&mut message, 2, check);
            }
        }
        self.ip(source, to, protocol, &message)
    }

    fn echo(&mut self, v6: bool) -> Vec<u8> {
        let mut body = vec![0; 4];
        if !self.one_in(4) {
            body = self.rng.u32(..).to_be_bytes().to_vec();
            body.extend(self.payload());
        }
        if self.one_in(4) {
            // Makes the reply's checksum 0, as its type is 0.
            put_u16(&mut body, 0, 0);
            let identifier = !sum(&body);
            put_u16(&mut body, 0, identifier);
        }
        let to = match (self.rng.u32(0..6), v6) {
            (0, false) => ip(self.pick(&["255.255.255.255", "224.0.0.1", "198.51.100.7"])),
            (0, true) => ip(self.pick(&["ff02::1", "2001:db8:77::1"])),
            _ => self.service(v6),
        };
        let request = if v6 { 128 } else { 8 };
        let kind = self.pick(&[request, request, request, request + 1]);
        self.icmp(v6, kind, 0, &body, to)
    }

    /// An error about a service's packet to a client, or about anything else.
    fn icmp_error(&mut self, v6: bool, depth: usize) -> Vec<u8> {
        let ends = self.ends(v6);
        let (from, to) = (ends.service, ends.client);
        let ports = (ends.ports.1, ends.ports.0);
        let mut quoted = match self.one_in(12) {
            true => self.packet(depth + 1),
            false if ends.tcp => self.tcp(from, to, ports),
            false => self.udp(from, to, ports),
        };
        let most = self.pick(&[0, 20, 27, 28, 40, 47, 48, 60, 80, 128, 500, 9000]);
        quoted.truncate(most.max(if self.one_in(6) { 0 } else { 48 }));
        let kind = match v6 {
            false => self.pick(&[3, 3, 3, 3, 11, 12, 4, 5]),
            true => self.pick(&[1, 1, 2, 2, 3, 4, 135]),
        };
        let code = self.rng.u8(0..6);
        let mtu = self.pick(&[0, 1279, 1280, 1400, 576, 0x1_0000]);
        let mut body = u32::to_be_bytes(mtu).to_vec();
        body.extend(quoted);
        let destination = match self.one_in(5) {
            true => self.service(v6),
            false => from,
        };
        self.icmp(v6, kind, code, &body, destination)
    }

    fn tunnel(&mut self, v6: bool, depth: usize) -> Vec<u8> {
        let inner = self.packet(depth + 1);
        // A nested tunnel may be for a service.
        let to = match depth > 0 && self.rng.bool() {
            true => self.service(v6),
            false => self.end(v6),
        };
        let source = self.client(v6);
        if self.rng.bool() {
            let protocol = match inner.first().map(|first| first >> 4) {
                Some(4) => IPIP,
                _ => IPV6_IN_IP,
            };
            return self.ip(source, to, protocol, &inner);
        }
        let ports = (self.client_port(), self.target.gue_port);
        let datagram = self.datagram(source, to, ports, &inner);
        self.ip(source, to, PROTOCOL_UDP, &datagram)
    }

    /// An IP packet, sometimes a fragment, with options or extension headers, or with a low TTL.
    fn ip(&mut self, source: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
        let tos = match self.rng.u32(0..4) {
            0 => self.rng.u8(..),
            1 => self.rng.u8(0..4),
            _ => 0,
        };
        let ttl = self.pick(&[64, 64, 64, 64, 255, 2, 1, 0]);
        let mut header;
        if source.is_ipv4() {
            let options = match self.one_in(40) {
                true => 4 * self.rng.usize(1..11),
                false => 0,
            };
            let fragment: u16 = match self.rng.u32(0..40) {
                0 => self.pick(&[0x2000, 0x0001, 0x1fff, 0x2010]),
                1..=20 => 0x4000,
                21 => 0x8000,
                _ => 0,
            };
            let length = self.said_length(20 + options + body.len());
            header = vec![0x45 + (options / 4) as u8, tos];
            if self.one_in(80) {
                header[0] = self.pick(&[0x40, 0x44, 0x46, 0x4f]);
            }
            header.extend(length.to_be_bytes());
            header.extend(self.rng.u16(..).to_be_bytes());
            header.extend(fragment.to_be_bytes());
            header.extend([ttl, protocol, 0, 0]);
            header.extend(octets(source));
            header.extend(octets(to));
            header.resize(20 + options, 1);
            let check = !sum(&header);
            put_u16(&mut header, 10, check);
        } else {
            let (first, extensions) = match self.one_in(12) {
                true => self.extension_headers(protocol),
                false => (protocol, Vec::new()),
            };
            let label = self.rng.u16(..).to_be_bytes();
            let length = self.said_length(extensions.len() + body.len());
            header = vec![0x60 | tos >> 4, tos << 4 | 0x3, label[0], label[1]];
            header.extend(length.to_be_bytes());
            header.extend([first, ttl]);
            header.extend(octets(source));
            header.extend(octets(to));
            header.extend(extensions);
        }
        header.extend(body);
        header
    }

    /// The length that a header claims, sometimes a wrong one, in tunnels, too.
    fn said_length(&mut self, length: usize) -> u16 {
        let length = length.min(0xffff) as u16;
        match self.one_in(60) {
            true => self.pick(&[
                0,
                8,
                19,
                20,
                28,
                length.wrapping_sub(1),
                length.wrapping_add(1),
            ]),
            false => length,
        }
    }

    /// Some extension headers, and the number of the first.
    fn extension_headers(&mut self, protocol: u8) -> (u8, Vec<u8>) {
        let count = self.pick(&[1, 1, 1, 2, 3, 4, 5]);
        let mut kinds: Vec<u8> = Vec::new();
        for _ in 0..count {
            let kind = self.pick(&[0, 0, 60, 60, 43, 43, 44, 51, 135]);
            kinds.push(kind);
        }
        kinds.push(protocol);
        let mut bytes = Vec::new();
        for pair in kinds.windows(2) {
            let words = self.pick(&[0, 0, 0, 1, 2]);
            let announced = match self.one_in(20) {
                true => self.rng.u8(..),
                false => words,
            };
            let third = self.pick(&[0, 0, 0, 1]);
            let mut header = vec![pair[1], announced, 1, third];
            header.resize(8 * (usize::from(words) + 1), 0);
            bytes.extend(header);
        }
        (kinds[0], bytes)
    }
}

/// Writes a transport header's checksum; 0xffff instead of 0.
fn checked(source: IpAddr, to: IpAddr, protocol: u8, body: &mut [u8], at: usize) {
    let pseudo = pseudo_sum(source, to, protocol, body.len() as u16);
    let check = match !add(pseudo, sum(body)) {
        0 => 0xffff,
        check => check,
    };
    put_u16(body, at, check);
}
