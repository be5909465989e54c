//! Where encapsulated packets go next: the Ethernet addresses of gateways, or of each real, found out
//! from the kernel's routing and neighbour tables and followed as they change.
//!
//! A thread of its own (`follower`, `thread`) hears of changes and asks again for what they touch (`resolver`,
//! `touched`); what it finds (`hop`) goes onto a board that getters read and into memory that packets read
//! (`board`). Balancers whose gateway's address is given have no such thread.

mod board;
mod follower;
mod guide;
mod hop;
mod interfaces;
mod list;
mod neighbours;
mod pages;
mod probes;
mod resolver;
mod thread;
mod touched;
mod wanted;
mod ways;

use std::io;
use std::net::IpAddr;

use crate::error::Result;
use crate::kernel::kernel_error;
use crate::rtnetlink::Notices;
use crate::rtnetlink::Requests;

pub(crate) use board::Cells;
pub(crate) use follower::Watcher;
pub(crate) use guide::Guide;
pub(crate) use guide::Look;
pub(crate) use guide::Site;
pub use list::NextHop;
pub use list::NextHopList;
pub(crate) use probes::probe_way;
use resolver::Resolver;
pub(crate) use wanted::Wanted;

/// What the tables say of next hops now, without asking any neighbour: what a balancer would begin with
/// that is attached to these interfaces, but is not yet.
pub(crate) fn preview(
    wanted: Wanted,
    attached: Vec<u32>,
    reals: impl IntoIterator<Item = (u16, IpAddr)>,
) -> io::Result<Vec<NextHop>> {
    let mut resolver = Resolver::new(Requests::new()?, 0, wanted, None);
    resolver.look_at_everything();
    resolver.set_attached(attached);
    for (number, address) in reals {
        resolver.add(number, address, 0);
    }
    while resolver.step() {}
    let mut list = resolver.list();
    // A family without a way of its own takes the other's.
    list.retain(|hop| hop.real.is_some() || hop.address.is_some());
    Ok(list)
}

/// What the kernel is asked by, and told by while a [`Watcher`] has them; of the network namespace in which they were opened.
pub(crate) struct Sockets {
    requests: Requests,
    notices: Notices,
}

impl Sockets {
    /// Of the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let failed = |error| kernel_error("open", "a netlink socket", error);
        Ok(Self {
            requests: Requests::new().map_err(failed)?,
            notices: Notices::new().map_err(failed)?,
        })
    }
}
