//! Congestion marks at a tunnel's end, by RFC 6040 (section 4.2, figure 4).

use std::net::IpAddr;

use katran::Flow;

use super::frames::Packet;
use super::frames::packet;

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Marks of the inner and outer header, and the resulting mark of the packet that leaves the
/// tunnel; `None`: dropped.
#[rustfmt::skip]
pub(crate) const RFC6040: [(u8, u8, Option<u8>); 16] = [
    (NOT_ECT, NOT_ECT, Some(NOT_ECT)), (NOT_ECT, ECT_0, Some(NOT_ECT)), (NOT_ECT, ECT_1, Some(NOT_ECT)), (NOT_ECT, CE, None),
    (ECT_0, NOT_ECT, Some(ECT_0)), (ECT_0, ECT_0, Some(ECT_0)), (ECT_0, ECT_1, Some(ECT_1)), (ECT_0, CE, Some(CE)),
    (ECT_1, NOT_ECT, Some(ECT_1)), (ECT_1, ECT_0, Some(ECT_1)), (ECT_1, ECT_1, Some(ECT_1)), (ECT_1, CE, Some(CE)),
    (CE, NOT_ECT, Some(CE)), (CE, ECT_0, Some(CE)), (CE, ECT_1, Some(CE)), (CE, CE, Some(CE)),
];

/// The other six bits of the inner and outer traffic class.
const INNER_CLASS: u8 = 0xb8;
const OUTER_CLASS: u8 = 0x28;

/// A packet of the flow with this mark.
pub(crate) fn marked(flow: Flow, mark: u8) -> Vec<u8> {
    Packet::new(flow).tos(INNER_CLASS | mark).ip()
}

/// That packet in a tunnel whose outer header has this mark: GUE to a port, or IP in IP.
pub(crate) fn in_tunnel(inner: &[u8], mark: u8, end: IpAddr, gue: Option<u16>) -> Vec<u8> {
    let source: IpAddr = match end.is_ipv4() {
        true => [172, 16, 1, 1].into(),
        false => [0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1].into(),
    };
    let tos = OUTER_CLASS | mark;
    match gue {
        Some(port) => {
            let flow = Flow::udp((source, 31337).into(), (end, port).into());
            Packet::new(flow).data(inner).tos(tos).ip()
        }
        None => {
            let protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
            packet(source, end, protocol, tos, inner)
        }
    }
}
