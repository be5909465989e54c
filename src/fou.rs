//! The kernel's own tunnel ends in UDP (foo over UDP: ip-fou(8), linux/fou.h), by generic netlink.

use std::io;

use netlink_packet_core::DecodeError;
use netlink_packet_core::DefaultNla;
use netlink_packet_core::Emitable;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_core::NetlinkDeserializable;
use netlink_packet_core::NetlinkHeader;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_core::NetlinkSerializable;
use netlink_packet_core::NlasIterator;
use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::libc;

use crate::rtnetlink::exchange;
use crate::types::Family;

/// The protocol's name, FOU_GENL_NAME, for which the kernel has a number.
const NAME: &str = "fou";
/// FOU_CMD_GET, and its version.
const GET: u8 = 3;
const VERSION: u8 = 1;
/// FOU_ATTR_PORT, big-endian; FOU_ATTR_AF; and FOU_ATTR_TYPE with its FOU_ENCAP_GUE.
const PORT: u16 = 1;
const FAMILY: u16 = 2;
const TYPE: u16 = 4;
const GUE: u8 = 2;

/// genl_ctrl's number and version, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID and
/// CTRL_ATTR_FAMILY_NAME (linux/genetlink.h).
const CONTROL: u16 = libc::GENL_ID_CTRL as u16;
const CONTROL_VERSION: u8 = 2;
const GET_FAMILY: u8 = libc::CTRL_CMD_GETFAMILY as u8;
const FAMILY_ID: u16 = libc::CTRL_ATTR_FAMILY_ID as u16;
const FAMILY_NAME: u16 = libc::CTRL_ATTR_FAMILY_NAME as u16;

/// A UDP port at which the kernel ends tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpTunnel {
    pub(crate) port: u16,
    pub(crate) outer: Family,
    /// GUE, and not a protocol's bare packets.
    pub(crate) gue: bool,
}

/// The ports of the calling thread's network namespace; none if the kernel lacks the protocol.
pub(crate) fn udp_tunnels() -> io::Result<Vec<UdpTunnel>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut name = NAME.as_bytes().to_vec();
    name.push(0);
    let question = Generic {
        kind: CONTROL,
        command: [GET_FAMILY, CONTROL_VERSION],
        attributes: vec![(FAMILY_NAME, name)],
    };
    let answers = match ask(&socket, question, 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        answers => answers?,
    };
    let number = |answer: &Generic| answer.number(FAMILY_ID).map(u16::from_ne_bytes);
    let Some(kind) = answers.iter().find_map(number) else {
        return Ok(Vec::new());
    };
    let question = Generic {
        kind,
        command: [GET, VERSION],
        attributes: Vec::new(),
    };
    let answers = ask(&socket, question, NLM_F_DUMP)?;
    Ok(answers.iter().filter_map(udp_tunnel).collect())
}

fn udp_tunnel(answer: &Generic) -> Option<UdpTunnel> {
    let outer = match i32::from(answer.number::<1>(FAMILY)?[0]) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    Some(UdpTunnel {
        port: u16::from_be_bytes(answer.number(PORT)?),
        outer,
        gue: answer.number::<1>(TYPE) == Some([GUE]),
    })
}

fn ask(socket: &Socket, question: Generic, flags: u16) -> io::Result<Vec<Generic>> {
    let mut message = NetlinkMessage::from(question);
    message.header.flags = NLM_F_REQUEST | flags;
    let mut answers = Vec::new();
    exchange(socket, message, |frame| frame.parse_whole(), &mut answers)?;
    Ok(answers)
}

/// A message of generic netlink: its header's command and version, and attributes.
#[derive(Clone, Debug)]
struct Generic {
    kind: u16,
    command: [u8; 2],
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Generic {
    /// The bytes of an attribute that has this length.
    fn number<const BYTES: usize>(&self, wanted: u16) -> Option<[u8; BYTES]> {
        let mut attributes = self.attributes.iter();
        let (_, value) = attributes.find(|(kind, _)| *kind == wanted)?;
        value.as_slice().try_into().ok()
    }

    fn nlas(&self) -> Vec<DefaultNla> {
        let attributes = self.attributes.iter();
        attributes
            .map(|(kind, value)| DefaultNla::new(*kind, value.clone()))
            .collect()
    }
}

/// genlmsghdr: command, version, and two bytes that nothing uses.
const HEADER: usize = 4;

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.nlas().as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER);
        header.copy_from_slice(&[self.command[0], self.command[1], 0, 0]);
        self.nlas().as_slice().emit(attributes);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let Some(([command, version, ..], rest)) = payload.split_first_chunk::<HEADER>() else {
            return Err(DecodeError::from(
                "shorter than a header of generic netlink",
            ));
        };
        let attributes = NlasIterator::new(rest).map(|attribute| {
            let attribute = attribute?;
            Ok((attribute.kind(), attribute.value().to_vec()))
        });
        Ok(Self {
            kind: header.message_type,
            command: [*command, *version],
            attributes: attributes.collect::<Result<_, DecodeError>>()?,
        })
    }
}

impl From<Generic> for NetlinkPayload<Generic> {
    fn from(message: Generic) -> Self {
        Self::InnerMessage(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_written_as_they_are_read() {
        let attributes = vec![
            (PORT, 6080_u16.to_be_bytes().to_vec()),
            (FAMILY, vec![libc::AF_INET6 as u8]),
            (TYPE, vec![GUE]),
        ];
        let question = Generic {
            kind: 30,
            command: [GET, VERSION],
            attributes,
        };
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        let header = NetlinkHeader::default();
        let read = Generic::deserialize(&header, &bytes).unwrap();
        let wanted = UdpTunnel {
            port: 6080,
            outer: Family::V6,
            gue: true,
        };
        assert_eq!(udp_tunnel(&read), Some(wanted));
        // Cut off anywhere: an error, or a message without its last attributes, and no panic.
        let padding = 3;
        for end in 0..bytes.len() - padding {
            let read = Generic::deserialize(&header, &bytes[..end]);
            assert_ne!(
                read.ok().as_ref().and_then(udp_tunnel),
                Some(wanted),
                "{end}"
            );
        }
    }

    #[test]
    fn a_kernel_without_such_tunnels_has_none() {
        // The tests' namespace has none, whether the kernel has the protocol or not.
        assert_eq!(udp_tunnels().unwrap(), []);
    }
}
