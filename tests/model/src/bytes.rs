//! Fields of packets, and the Internet checksum (RFC 1071).

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6: usize = 40;
/// Bytes of a UDP header.
pub const UDP: usize = 8;

/// Protocol numbers.
pub const ICMP: u8 = 1;
/// IPv4 in IP.
pub const IPIP: u8 = 4;
/// The number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// The number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IPv6 in IP.
pub const IPV6_IN_IP: u8 = 41;
/// ICMP of IPv6.
pub const ICMPV6: u8 = 58;

/// The EtherType of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// The EtherType of IPv6.
pub const TYPE_IPV6: u16 = 0x86dd;

/// `length` bytes at `at`, if the frame has them.
pub fn slice(frame: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    frame.get(at..at.checked_add(length)?)
}

/// A big-endian number of two bytes; 0 beyond the end, so check lengths first.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

/// Writes a big-endian number of two bytes.
pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// An IPv4 address at `at`.
pub fn v4_at(bytes: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 4];
    octets.copy_from_slice(&bytes[at..at + 4]);
    Ipv4Addr::from(octets).into()
}

/// An IPv6 address at `at`.
pub fn v6_at(bytes: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    Ipv6Addr::from(octets).into()
}

/// An address's bytes.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The ones' complement sum of two sums.
pub fn add(a: u16, b: u16) -> u16 {
    let sum = u32::from(a) + u32::from(b);
    (sum & 0xffff) as u16 + (sum >> 16) as u16
}

/// The ones' complement sum of 16-bit words.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header of TCP, UDP and ICMPv6 (RFC 768, RFC 8200).
pub fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: u16) -> u16 {
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    bytes.extend([0, protocol]);
    bytes.extend(length.to_be_bytes());
    sum(&bytes)
}

/// A checksum after one of the words it covers has changed (RFC 1624, equation 3).
pub fn replaced(check: u16, from: u16, to: u16) -> u16 {
    !add(add(!check, !from), to)
}
