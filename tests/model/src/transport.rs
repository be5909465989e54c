//! Step 4: ports and TCP flags. An ICMP error has the quoted packet's ports, reversed, as that
//! packet went from the VIP to the client.

use crate::End;
use crate::Flow;
use crate::Step;
use crate::bytes::PROTOCOL_TCP;
use crate::bytes::PROTOCOL_UDP;
use crate::bytes::UDP;
use crate::bytes::u16_at;
use crate::icmp::Error;
use crate::ip::Header;
use crate::ip::refuse;
use crate::walk::Run;

/// A TCP header without options.
pub const TCP: usize = 20;
/// The flag that opens a connection.
pub const SYN: u8 = 0x02;
const FIN: u8 = 0x01;
const RST: u8 = 0x04;

/// What later steps need to know of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// The IP header.
    pub header: Header,
    /// The packet's flow. Steps 5 and 7 set ignored ports to 0.
    pub flow: Flow,
    /// Both original ports.
    pub ports: (u16, u16),
    /// An ICMP error, not a packet of the flow itself.
    pub error: Option<Error>,
    /// It opens a connection.
    pub syn: bool,
    /// It closes its direction.
    pub fin: bool,
    /// It resets a connection.
    pub rst: bool,
    /// A datagram without a checksum.
    pub unchecked: bool,
}

pub(crate) fn parse(run: &Run<'_>, header: &Header, error: Option<Error>) -> Step<Packet> {
    if let Some(error) = error {
        return parse_quoted(run, header, error);
    }
    let segment = &run.frame[header.payload..];
    let needed = match header.protocol {
        PROTOCOL_TCP => TCP,
        PROTOCOL_UDP => UDP,
        _ => return Err(End::Pass("neither TCP nor UDP")),
    };
    if !header.has(needed) {
        return Err(refuse(run, header.destination, "transport_truncated"));
    }
    let ports = (u16_at(segment, 0), u16_at(segment, 2));
    let flags = match header.protocol {
        PROTOCOL_TCP => segment[13],
        _ => 0,
    };
    Ok(Packet {
        header: *header,
        flow: Flow {
            source: header.source,
            destination: header.destination,
            source_port: ports.0,
            destination_port: ports.1,
            protocol: header.protocol,
        },
        ports,
        error: None,
        syn: flags & SYN != 0,
        fin: flags & FIN != 0,
        rst: flags & RST != 0,
        unchecked: header.protocol == PROTOCOL_UDP && u16_at(segment, 6) == 0,
    })
}

fn parse_quoted(run: &Run<'_>, header: &Header, error: Error) -> Step<Packet> {
    if error.protocol != PROTOCOL_TCP && error.protocol != PROTOCOL_UDP {
        return Err(End::Pass("neither TCP nor UDP"));
    }
    // Eight bytes are all that RFC 792 promises.
    if error.transport + 8 > header.end {
        return Err(refuse(run, header.destination, "quote_truncated"));
    }
    let ports = (
        u16_at(&run.frame, error.transport + 2),
        u16_at(&run.frame, error.transport),
    );
    Ok(Packet {
        header: *header,
        flow: Flow {
            source: error.destination,
            destination: error.source,
            source_port: ports.0,
            destination_port: ports.1,
            protocol: error.protocol,
        },
        ports,
        error: Some(error),
        syn: false,
        fin: false,
        rst: false,
        unchecked: false,
    })
}
