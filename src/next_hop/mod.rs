//! Resolves where encapsulated packets go next: the MAC addresses of gateways or of each real, from
//! the kernel's routing and neighbour tables, and follows their changes.
//!
//! A thread (`follower`, `thread`) receives notices of changes and asks again for what they touch
//! (`resolver`, `touched`). Its findings (`hop`) go onto a board for getters and into memory that
//! packets read (`board`). A balancer with a configured gateway address has no such thread.

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

/// What the tables say about next hops now, without asking neighbours: the first state of a
/// balancer that will be attached to these interfaces.
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
    // A family without its own gateway uses the other's.
    list.retain(|hop| hop.real.is_some() || hop.address.is_some());
    Ok(list)
}

/// The sockets for requests and, while a [`Watcher`] has them, notices; of the network namespace in
/// which they were opened.
pub(crate) struct Sockets {
    requests: Requests,
    notices: Notices,
}

impl Sockets {
    /// Opens them in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let failed = |error| kernel_error("open", "a netlink socket", error);
        Ok(Self {
            requests: Requests::new().map_err(failed)?,
            notices: Notices::new().map_err(failed)?,
        })
    }
}
