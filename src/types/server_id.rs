//! Server ids: numbers that a server puts into packets, so that they find back to it.

use std::fmt;
use std::net::IpAddr;

/// A number that names a real in packets: QUIC connection ids, a TCP option, stable UDP routing.
///
/// QUIC connection ids of version 1 hold 16 bits of it, those of version 2 and stable UDP routing
/// 24, those of version 3 and the TCP option all 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "QuicReal")]
pub struct ServerId {
    id: u32,
    real: IpAddr,
}

impl ServerId {
    /// The real at `real` is named by `id`: 1 to 4,294,967,295. Several ids may name one real.
    pub fn new(id: u32, real: IpAddr) -> Self {
        Self {
            id,
            real: real.to_canonical(),
        }
    }

    /// The number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The real's address.
    pub fn real(&self) -> IpAddr {
        self.real
    }
}

impl fmt::Display for ServerId {
    /// `1000 -> 198.51.100.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.id, self.real)
    }
}
