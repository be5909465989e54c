//! The balancer at work: real connections between test hosts, through the attached program.
//!
//! Every test has a network of its own and fails, rather than skips, where the kernel does not
//! do what is needed. Each also reads counters, so none can pass unless the program has run.

#![allow(clippy::unwrap_used)]

mod attach;
mod control;
mod decap;
mod ecmp;
mod local;
mod mtu;
mod quic;
mod reals;
mod routing;
mod server_ids;
mod site;
mod switch;
mod traffic;
mod tunnels;
