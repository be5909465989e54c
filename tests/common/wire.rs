//! What the specification wants on the wire, worked out byte by byte from its tables and from
//! nothing of the library's.

use std::net::IpAddr;

use super::GATEWAY;
use super::frames::ETHERNET;
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

/// The frame in IP-in-IP for `real`. `source` and `port` are the flow's, as far as they count.
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
            outer.extend([port_low ^ tail[2], port_high ^ tail[3]]);
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
            out.extend([tail[0] ^ port_high, tail[1] ^ port_low, tail[2], tail[3]]);
            out.extend(real.octets());
        }
    }
    out.extend(inner);
    out
}
