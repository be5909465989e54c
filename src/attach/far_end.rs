//! Whether a virtual Ethernet link (veth) carries natively sent frames. The driver puts them into
//! the far end's XDP queue, which exists only if that end has a native program or GRO. With GRO
//! alone nothing wakes the queue, so frames wait there until other traffic does (Linux 6.18).

use std::fmt;
use std::io;

use crate::rtnetlink::Requests;
use crate::sys::link;
use crate::sys::link::XDP_ACT_NDO_XMIT;
use crate::sys::release;
use crate::sys::release::TELLS_XDP_FEATURES;

/// The far end of a virtual Ethernet link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FarEnd {
    /// It accepts natively sent frames.
    Takes,
    /// It does not, because it has no native program; with its name, if known.
    TakesNone { name: Option<String> },
    /// It is in a network namespace that this process cannot inspect.
    Unknown,
}

impl FarEnd {
    /// For an interface of the calling thread's network namespace; `None` if it is no such link.
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
            // The driver's features here depend on the far end: without a program and GRO it
            // accepts nothing.
            Ok(None) | Err(_) => match link::present(index)?.features & XDP_ACT_NDO_XMIT {
                0 if release::is_at_least(TELLS_XDP_FEATURES) => Self::TakesNone { name: None },
                _ => Self::Unknown,
            },
        }))
    }
}

/// Its name within a sentence.
impl fmt::Display for FarEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other end of this virtual link")?;
        match self {
            Self::TakesNone { name: Some(name) } => write!(f, ", {name},"),
            _ => Ok(()),
        }
    }
}
