//! Leads the follower's thread from one network namespace to the next. The balancer implements it,
//! because it knows why and where next hops are followed.

use std::time::Duration;

use super::Sockets;

/// A network namespace in which to follow next hops.
pub(crate) struct Site {
    pub(crate) sockets: Sockets,
    /// The kernel's id of the namespace.
    pub(crate) namespace: u64,
    /// The balancer's interfaces there; empty if unknown.
    pub(crate) attached: Vec<u32>,
}

/// Where the thread should go.
pub(crate) enum Look {
    /// Stay, and ask again after this time at the latest.
    Stay(Duration),
    /// Nothing keeps it where it is: follow next hops in another namespace.
    MoveOn(Site),
    /// Nothing keeps it anywhere: end.
    Leave,
}

/// Called by the thread, when links change and from time to time.
pub(crate) trait Guide: Send {
    /// Returns whether the thread is still needed where it is; `is_there` returns whether an
    /// interface with an index exists. May move the thread into another network namespace.
    fn look(&mut self, is_there: &dyn Fn(u32) -> bool) -> Look;
}
