//! The packet walk: crafted and recorded frames through the loaded program, and the tables behind
//! it: what they hold, remember and weigh. `make test` runs all of it with both flow table types.

#![allow(clippy::unwrap_used, reason = "what panics has failed the test")]

mod attacks;
#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/mod.rs"]
mod common;
mod crowded_slots;
mod details;
mod differences;
mod flow_table_model;
mod flows;
mod global_flows;
mod gue;
mod handed_back;
mod icmp;
mod ids_and_health;
mod ignored_ports;
mod inline_decap;
mod loads;
mod lookup;
#[allow(dead_code, reason = "the bench uses more of it")]
#[path = "../../benches/instructions/machine/mod.rs"]
mod machine;
mod manners;
mod migration;
mod orphan;
mod outer_fragments;
mod packets;
mod property;
mod quic_headers;
mod recording;
mod ring_memory;
mod rings;
mod scaling;
mod server_ids;
mod sizes;
mod source_routes;
mod tail_calls;
mod tracking;
mod translated;
mod tunnel_rules;
mod twins;
mod vectors;
mod vlan;
mod void_flows;
