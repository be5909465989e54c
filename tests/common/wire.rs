//! Expected frames, computed byte by byte without the library.

use std::net::IpAddr;

use super::GATEWAY;
use super::frames::ETHERNET;
use super::frames::pseudo_sum;
use super::frames::sum;

/// The prefixes of outer source addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefixes {
    pub(crate) v4: [u8; 2],
    pub(crate) v6: [u8; 12],
}

impl Default for Prefixes {
    fn default() -> Self {
        Self {
            v4: [172, 16],
            v6: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// The frame in IP-in-IP for `real`. `source` and `port` are the flow's, where they matter.
pub(crate) fn ipip(frame: &[u8], source: Option<IpAddr>, port: u16, real: IpAddr) -> Vec<u8> {
    ipip_from(Prefixes::default(), frame, source, port, real)
}

pub(crate) fn ipip_from(
    prefixes: Prefixes,
    frame: &[u8],
    source: Option<IpAddr>,
    port: u16,
    real: IpAddr,
) -> Vec<u8> {
    let inner = &frame[ETHERNET..];
    let v6 = inner[0] >> 4 == 6;
    let (length, tos) = if v6 {
        let payload = u16::from_be_bytes([inner[4], inner[5]]);
        (payload + 40, inner[0] << 4 | inner[1] >> 4)
    } else {
        (u16::from_be_bytes([inner[2], inner[3]]), inner[1])
    };
    let protocol = if v6 { 41 } else { 4 };
    let [port_high, port_low] = port.to_be_bytes();
    // The last four bytes of the flow's source address.
    let tail: [u8; 4] = match source {
        None => [0; 4],
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(v6)) => v6.octets()[12..].try_into().unwrap(),
    };
    let mut out = GATEWAY.octets().to_vec();
    out.extend(&frame[..6]);
    match real {
        IpAddr::V4(real) => {
            out.extend([0x08, 0x00]);
            let mut outer = vec![0x45, tos];
            outer.extend((length + 20).to_be_bytes());
            outer.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            outer.extend(prefixes.v4);
            outer.extend(usable([port_low ^ tail[2], port_high ^ tail[3]]));
            outer.extend(real.octets());
            let check = (!sum(&outer)).to_be_bytes();
            outer[10..12].copy_from_slice(&check);
            out.extend(outer);
        }
        IpAddr::V6(real) => {
            out.extend([0x86, 0xdd, 0x60 | tos >> 4, tos << 4, 0, 0]);
            out.extend(length.to_be_bytes());
            out.extend([protocol, 64]);
            out.extend(prefixes.v6);
            let host = [tail[0] ^ port_high, tail[1] ^ port_low, tail[2], tail[3]];
            out.extend(usable(host));
            out.extend(real.octets());
        }
    }
    out.extend(inner);
    out
}

/// The host part of an address, with its lowest bit flipped if it is all zeros or all ones.
fn usable<const BYTES: usize>(mut host: [u8; BYTES]) -> [u8; BYTES] {
    if host == [0; BYTES] || host == [0xff; BYTES] {
        host[BYTES - 1] ^= 1;
    }
    host
}

/// The frame in GUE for `real`, from the balancer's own address of that family. The checksum is
/// computed over everything sent, or 0 if the packet has none.
pub(crate) fn gue(
    frame: &[u8],
    source: Option<IpAddr>,
    port: u16,
    real: IpAddr,
    own: IpAddr,
    checked: bool,
) -> Vec<u8> {
    const GUE_PORT: [u8; 2] = 6080u16.to_be_bytes();
    let inner = &frame[ETHERNET..];
    let v6 = inner[0] >> 4 == 6;
    let (length, tos) = if v6 {
        let payload = u16::from_be_bytes([inner[4], inner[5]]);
        (payload + 40, inner[0] << 4 | inner[1] >> 4)
    } else {
        (u16::from_be_bytes([inner[2], inner[3]]), inner[1])
    };
    let [high, low] = port.to_be_bytes();
    let s: Vec<u8> = match source {
        None => vec![0; 16],
        Some(IpAddr::V4(v4)) => v4.octets().to_vec(),
        Some(IpAddr::V6(v6)) => v6.octets().to_vec(),
    };
    let from = match (real, v6) {
        (IpAddr::V4(_), false) => [low ^ s[2], high ^ s[3]],
        (IpAddr::V6(_), false) => [s[2] ^ high, s[3] ^ low],
        (IpAddr::V6(_), true) => [s[12] ^ high, s[13] ^ low],
        (IpAddr::V4(_), true) => [low ^ s[14], high ^ s[15]],
    };
    let from = if from == [0, 0] { [0xff; 2] } else { from };
    let mut udp = [from, GUE_PORT, (length + 8).to_be_bytes(), [0, 0]].concat();
    udp.extend(&inner[..usize::from(length)]);
    if checked {
        let check = match !pseudo_sum(own, real, 17, &udp) {
            0 => 0xffff,
            check => check,
        };
        udp[6..8].copy_from_slice(&check.to_be_bytes());
    }
    let mut out = GATEWAY.octets().to_vec();
    out.extend(&frame[..6]);
    match (own, real) {
        (IpAddr::V4(own), IpAddr::V4(real)) => {
            out.extend([0x08, 0x00]);
            let mut outer = vec![0x45, tos];
            outer.extend((length + 28).to_be_bytes());
            outer.extend([0, 0, 0, 0, 64, 17, 0, 0]);
            outer.extend(own.octets());
            outer.extend(real.octets());
            let check = (!sum(&outer)).to_be_bytes();
            outer[10..12].copy_from_slice(&check);
            out.extend(outer);
        }
        (IpAddr::V6(own), IpAddr::V6(real)) => {
            out.extend([0x86, 0xdd, 0x60 | tos >> 4, tos << 4, 0, 0]);
            out.extend((length + 8).to_be_bytes());
            out.extend([17, 64]);
            out.extend(own.octets());
            out.extend(real.octets());
        }
        _ => panic!("{own} cannot send to {real}"),
    }
    out.extend(udp);
    // The bytes behind the packet.
    out.extend(&inner[usize::from(length)..]);
    out
}
