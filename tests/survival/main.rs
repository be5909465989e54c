//! What outlives the process of a pinned balancer: it is killed, at random moments and after each of the things that it does, and
//! whatever else can become of it. Tests of it run one after the other, for they count what there is.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

mod changes;
#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/mod.rs"]
mod common;
mod ending;
mod everywhere;
mod group;
mod kills;
mod model;
mod owner;
