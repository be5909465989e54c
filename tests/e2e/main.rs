//! End to end: real traffic between network namespaces, through the attached program, the tunnel
//! and the decapsulator. Every test makes its own hosts, and checks counters too, so that none
//! can pass without the program having run.

#![allow(clippy::unwrap_used)]

mod attach;
mod backends;
mod ecmp;
mod mtu;
mod traffic;
mod world;
