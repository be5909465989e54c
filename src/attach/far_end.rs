//! Whether a virtual Ethernet link (veth) carries what an XDP program sends natively. The driver hands such frames
//! to the other end's queue for XDP, which is there only if that end has a native program, or GRO; and with
//! GRO alone nothing wakes it to take them, so they lie there until something else does (Linux 6.18).

use std::fmt;
use std::io;

use crate::rtnetlink::Requests;
use crate::sys::link;
use crate::sys::link::XDP_ACT_NDO_XMIT;
use crate::sys::release;
use crate::sys::release::TELLS_XDP_FEATURES;

/// The other end of a virtual Ethernet link, as one that takes frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FarEnd {
    /// It takes what native XDP sends.
    Takes,
    /// It does not, for it has no native program: its name, if that can be told.
    TakesNone { name: Option<String> },
    /// It is in a network namespace that this process may not look into.
    Unknown,
}

impl FarEnd {
    /// Of an interface of the calling thread's network namespace; `None`: it is no such link.
    pub(crate) fn of(index: u32) -> io::Result<Option<Self>> {
        let mut requests = Requests::new()?;
        let near = requests.sending(None, index)?;
        let Some(other) = near.and_then(|near| near.other_end) else {
            return Ok(None);
        };
        Ok(Some(match requests.sending(other.namespace, other.index) {
            Ok(Some(far)) if far.has_native => Self::Takes,
            Ok(Some(far)) => Self::TakesNone {
                name: Some(far.name),
            },
            // What the driver can do here depends on the other end: without program and GRO it takes nothing at all.
            Ok(None) | Err(_) => match link::present(index)?.features & XDP_ACT_NDO_XMIT {
                0 if release::is_at_least(TELLS_XDP_FEATURES) => Self::TakesNone { name: None },
                _ => Self::Unknown,
            },
        }))
    }
}

/// As it is called in a sentence.
impl fmt::Display for FarEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other end of this virtual link")?;
        match self {
            Self::TakesNone { name: Some(name) } => write!(f, ", {name},"),
            _ => Ok(()),
        }
    }
}
