//! What happens to packets in tunnels that end at the balancer.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// What happens to a packet that came through a tunnel to an address of
/// [`InlineDecapMut::add`](crate::routing::InlineDecapMut::add).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DecapMode {
    /// It is balanced like any other packet: another site's balancer has forwarded it.
    Inline,
    /// It goes back out through the interface it arrived on: a backend's answer to a client.
    Egress,
}

impl fmt::Display for DecapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline => "inline",
            Self::Egress => "egress",
        })
    }
}

impl FromStr for DecapMode {
    type Err = Error;

    /// `inline` or `egress`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "inline" => Ok(Self::Inline),
            "egress" => Ok(Self::Egress),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "a decapsulation mode (`inline` or `egress`)",
            }),
        }
    }
}
