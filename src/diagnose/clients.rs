//! Where a backend's answers to clients go.

use crate::types::Family;

/// Clients of one address family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    pub(crate) family: Family,
    pub(crate) way_back: WayBack,
    /// The longest packets that they are asked to send, by the default route's MTU or MSS; bytes.
    pub(crate) longest: u32,
}

/// Where answers leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WayBack {
    /// By the interface that tunnels come by.
    Here,
    Elsewhere,
    /// There is no default route, but routes to some.
    Partial,
    None,
}
