//! The calls of the library against the kernel: what they change, what they refuse and why, and the
//! events that come back. `make test` runs all of it with both flow table types.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

mod adopted;
mod apply;
mod apply_names;
mod captures;
mod changes;
#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/mod.rs"]
mod common;
mod cut_off;
mod differences;
mod documents;
mod failures;
mod given_up;
mod handed_over;
mod library;
mod lives;
mod monitor;
mod monitor_ends;
mod pinned;
mod pins;
mod refusals;
mod relaid;
mod replaced;
mod swaps;
mod threads;
mod ways;
