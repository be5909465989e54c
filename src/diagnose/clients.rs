//! The way from a backend to its clients.

use crate::types::Family;

/// Clients of one address family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    pub(crate) family: Family,
    pub(crate) way_back: WayBack,
    /// The longest packets that clients are asked to send, in bytes: the default route's MTU or
    /// MSS.
    pub(crate) longest: u32,
}

/// The interface that answers leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WayBack {
    /// That of the tunnels.
    Here,
    Elsewhere,
    /// There are routes to some clients, but no default route.
    Partial,
    None,
}
