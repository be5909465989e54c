//! What leads the follower's thread from one network namespace to the next: its owner, who knows for what
//! reasons next hops are followed, and where.

use std::time::Duration;

use super::Sockets;

/// Where next hops are followed: a network namespace.
pub(crate) struct Site {
    pub(crate) sockets: Sockets,
    /// The kernel's number of the namespace.
    pub(crate) namespace: u64,
    /// The interfaces there that the balancer is attached to; none: not known.
    pub(crate) attached: Vec<u32>,
}

/// Where the thread goes.
pub(crate) enum Look {
    /// It stays, and looks again after this time at the latest.
    Stay(Duration),
    /// No reason is left where it is: it follows next hops in another namespace from now on.
    MoveOn(Site),
    /// No reason is left anywhere: it ends.
    Leave,
}

/// Asked by the thread itself, when links have changed and from time to time.
pub(crate) trait Guide: Send {
    /// Looks whether the thread is still wanted where it is; `is_there` says whether there is an interface with an
    /// index. It may lead the thread into another network namespace.
    fn look(&mut self, is_there: &dyn Fn(u32) -> bool) -> Look;
}
