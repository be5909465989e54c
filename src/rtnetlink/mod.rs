//! What the kernel's routing, neighbour, interface and filter tables say, by rtnetlink (rtnetlink(7)).
//!
//! Sockets that ask, and one that hears of changes. The module knows nothing of balancers; those that
//! follow next hops, attach, or diagnose stand above it.

mod filters;
mod requests;

pub(crate) use filters::TcProgram;
pub(crate) use requests::Interface;
pub(crate) use requests::Notices;
pub(crate) use requests::Requests;
pub(crate) use requests::Route;
