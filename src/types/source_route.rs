//! Source routes: reals for clients in a prefix.

use std::fmt;
use std::net::IpAddr;

use super::Prefix;

/// A real for new flows of clients in a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "SrcRoutingRule")]
pub struct SourceRoute {
    prefix: Prefix,
    real: IpAddr,
}

/// # Prefix and real
impl SourceRoute {
    /// Sends clients in `prefix` to the real at `real`, of either family.
    pub fn new(prefix: Prefix, real: IpAddr) -> Self {
        Self {
            prefix,
            real: real.to_canonical(),
        }
    }

    /// The prefix of the clients' addresses.
    pub fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// The real's address.
    pub fn real(&self) -> IpAddr {
        self.real
    }
}

impl fmt::Display for SourceRoute {
    /// `100.64.0.0/10 -> 198.51.100.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.prefix, self.real)
    }
}
