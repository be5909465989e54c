//! A frame for simulations; they ignore its checksums.

use std::net::SocketAddr;
use std::net::SocketAddrV4;

/// A SYN, over IPv4.
///
/// # Panics
/// If an address is of IPv6.
pub(crate) fn syn(from: SocketAddrV4, to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(to) = to else {
        panic!("{to} is no IPv4 address");
    };
    let mut frame = vec![2; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(from.ip().octets());
    frame.extend(to.ip().octets());
    frame.extend(from.port().to_be_bytes());
    frame.extend(to.port().to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
    frame
}
