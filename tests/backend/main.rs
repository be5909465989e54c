//! The programs beside the balancer's: the backend's decapsulator and server id option, and the
//! path of health checks, on single packets or on loopback connections.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/mod.rs"]
mod common;
mod decap;
mod decap_pinned;
mod decap_rules;
mod forsaken;
mod health_late;
mod health_pinned;
mod health_wire;
mod server_id_option;
mod server_id_pinned;
