//! The kernel's routing, neighbour, interface and filter tables, by rtnetlink(7).
//!
//! Sockets that ask questions, and one that receives notices of changes. The module knows nothing
//! about balancers; the modules that follow next hops, attach, or diagnose use it.

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
