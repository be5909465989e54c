//! Flows: what the balancer keeps together.

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::error::Error;

/// A transport protocol that a VIP can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, protocol number 6.
    Tcp = 6,
    /// UDP, protocol number 17.
    Udp = 17,
}

impl Protocol {
    /// The protocol number assigned by IANA, as in an IP header.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Error;

    /// `tcp` or `udp`, in lower case.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "a protocol, `tcp` or `udp`",
            }),
        }
    }
}

/// A flow as the client sends it: source, destination and protocol of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "KatranFlow")]
pub struct Flow {
    /// The client's address and port.
    pub source: SocketAddr,
    /// The VIP's address and the port the client talks to.
    pub destination: SocketAddr,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl Flow {
    /// A TCP flow from `source` to `destination`.
    pub const fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            protocol: Protocol::Tcp,
        }
    }

    /// A UDP flow from `source` to `destination`.
    pub const fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            protocol: Protocol::Udp,
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {}/{}",
            self.source, self.destination, self.protocol
        )
    }
}

/// The 16 bytes under which the program keeps an address: IPv4 in the first four, the rest zero.
pub(crate) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}
