//! What the kernel's routing, neighbour, interface and filter tables say, by rtnetlink (rtnetlink(7)).
//!
//! Sockets that ask, and one that hears of changes. The module knows nothing of balancers; those that
//! follow next hops, attach, or diagnose stand above it.

mod answers;
mod exchange;
mod filters;
mod frames;
mod notices;
mod requests;
mod sending;
#[cfg(test)]
mod tests;
mod tunnels;

pub(crate) use answers::Interface;
pub(crate) use answers::Neighbour;
pub(crate) use answers::Peer;
pub(crate) use answers::Route;
pub(crate) use exchange::exchange;
pub(crate) use filters::TcProgram;
pub(crate) use notices::Notice;
pub(crate) use notices::Notices;
pub(crate) use requests::MAIN_TABLE;
pub(crate) use requests::MOST_QUESTIONS;
pub(crate) use requests::Requests;
pub(crate) use tunnels::TunnelDevice;
