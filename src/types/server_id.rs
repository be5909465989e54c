//! Numbers that lead packets to a real: server ids, which a server puts into packets, and marks.

use std::fmt;
use std::net::IpAddr;

use crate::error::Error;

/// A number in packets that names a real: in QUIC connection ids, a TCP option or stable UDP
/// routing.
///
/// QUIC connection ids of version 1 hold 16 bits of it, those of version 2 and stable UDP routing
/// 24, those of version 3 and the TCP option all 32.
///
/// ```no_run
/// use katran::ServerId;
///
/// # fn example(katran: &mut katran::Katran) -> katran::Result<()> {
/// let real = "198.51.100.1".parse().unwrap();
/// katran.server_ids_mut().add(&[ServerId::new(1000, real)])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "QuicReal")]
pub struct ServerId {
    id: u32,
    real: IpAddr,
}

/// # Id and real
impl ServerId {
    /// Names the real at `real` by `id`: 1 to 4,294,967,295. Several ids may name one real.
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

/// Refuses 0, which is not a server id.
pub(crate) fn check_server_id(id: u32) -> Result<(), Error> {
    match id {
        0 => Err(Error::InvalidConfig {
            setting: "server_id",
            value: "0".to_owned(),
            reason: "0 means no id: use 1 to 4294967295".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Refuses 0, which is not a mark.
pub(crate) fn check_mark(mark: u32) -> Result<(), Error> {
    match mark {
        0 => Err(Error::InvalidConfig {
            setting: "mark",
            value: "0".to_owned(),
            reason: "packets without a mark have this one: choose another".to_owned(),
        }),
        _ => Ok(()),
    }
}
