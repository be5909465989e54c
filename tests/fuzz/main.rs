//! The loaded program against the model of the walk (`tests/model`): recorded packets, cases from
//! operators' reports, and random and mutated frames. `KATRAN_FRAMES` sets the number of random
//! frames, `KATRAN_SEED` chooses them; `make soak FRAMES=...` sets them. A frame on which the two
//! disagree is minimised and printed, with the balancer's document, so that `examples/simulate` can
//! play it.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

mod balancers;
mod cases;
mod changes;
#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/mod.rs"]
mod common;
mod decap;
mod generate;
mod global;
mod hops;
mod mutate;
mod pair;
mod probes;
mod random;
#[allow(dead_code, reason = "the other half is for tests of the walk")]
#[path = "../walk/recording.rs"]
mod recording;
mod settling;
mod shrink;
mod sound;
mod stations;
mod vectors;
