//! Flows: packets that the balancer keeps together.

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
                expected: "a protocol (`tcp` or `udp`)",
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
    /// The VIP's address and the port the client connects to.
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

    /// The flow with the addresses that its packets have.
    ///
    /// An IPv4-mapped address is the IPv4 address, unless the other end's is a true IPv6 address:
    /// then the packets are IPv6, with the mapped address in their header.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if no packet can have both addresses.
    pub(crate) fn as_sent(&self) -> Result<Self, Error> {
        let (source, destination) = (self.source.ip(), self.destination.ip());
        let plain = (source.to_canonical(), destination.to_canonical());
        let (source, destination) = match (plain, source, destination) {
            ((IpAddr::V4(_), IpAddr::V4(_)), ..) => plain,
            (_, IpAddr::V6(_), IpAddr::V6(_)) => (source, destination),
            _ => {
                return Err(Error::InvalidConfig {
                    setting: "flow",
                    value: self.to_string(),
                    reason: "source and destination must be of one address family".to_owned(),
                });
            }
        };
        Ok(Self {
            source: (source, self.source.port()).into(),
            destination: (destination, self.destination.port()).into(),
            protocol: self.protocol,
        })
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

/// The 16 bytes by which the program knows an address: IPv4 in the first four, the rest zero.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(source: &str, destination: &str) -> Option<(String, String)> {
        let flow = Flow::tcp(source.parse().unwrap(), destination.parse().unwrap());
        let sent = flow.as_sent().ok()?;
        Some((sent.source.to_string(), sent.destination.to_string()))
    }

    #[test]
    fn packets_have_addresses_of_one_family() {
        let is =
            |source: &str, destination: &str| Some((source.to_owned(), destination.to_owned()));
        let four = is("192.0.2.1:1", "203.0.113.1:80");
        assert_eq!(sent("192.0.2.1:1", "203.0.113.1:80"), four);
        assert_eq!(sent("[::ffff:192.0.2.1]:1", "203.0.113.1:80"), four);
        assert_eq!(
            sent("[::ffff:192.0.2.1]:1", "[::ffff:203.0.113.1]:80"),
            four
        );
        let mapped = ("[::ffff:192.0.2.1]:1", "[2001:db8::1]:80");
        assert_eq!(sent(mapped.0, mapped.1), is(mapped.0, mapped.1));
        assert_eq!(sent(mapped.1, mapped.0), is(mapped.1, mapped.0));
        assert_eq!(sent("192.0.2.1:1", "[2001:db8::1]:80"), None);
        assert_eq!(sent("[2001:db8::1]:80", "192.0.2.1:1"), None);
    }
}
