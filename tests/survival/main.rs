//! What outlives a pinned balancer's process. The process is killed at random moments under
//! traffic, and after each thing that it does; whatever happens to it, its interfaces and its pins
//! has a clear outcome.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

mod cases;
mod changes;
#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/mod.rs"]
mod common;
mod ending;
mod everywhere;
mod group;
mod kills;
mod met;
mod model;
mod owner;
mod relaid;
#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/traffic.rs"]
mod traffic;
