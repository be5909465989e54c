//! The balancer at work: real connections between test hosts, through the attached program.
//!
//! Every test has its own network. It fails, rather than skips, if the kernel lacks something, and
//! reads counters, so it cannot pass unless the program has run.

#![allow(clippy::unwrap_used)]

mod attach;
mod attachments;
mod control;
mod decap;
mod decap_tc;
mod diagnose;
mod diagnose_live;
mod ecmp;
#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/faults.rs"]
mod faults;
mod follow;
mod follow_edges;
mod following;
mod fork;
mod frame;
mod health;
mod health_late;
mod health_places;
mod kernel_tunnels;
mod links;
mod local;
mod losses;
mod manners;
mod moving_on;
mod mtu;
mod next_hop;
#[allow(dead_code, reason = "these tests use a part")]
#[path = "../common/pins.rs"]
mod objects;
mod pinned;
#[cfg(feature = "health")]
mod probed;
mod quic;
mod reals;
mod reload;
mod reload_edges;
mod replace;
mod root_pinned;
mod routing;
mod segment;
mod sending;
mod server_ids;
mod shared;
mod site;
mod switch;
mod traffic;
mod tunnels;
mod vlan;
mod vrf;
