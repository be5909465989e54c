//! The example programs, run as a user would: the binaries that `cargo test` built, on test hosts,
//! with signals, files and exit statuses.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod alerts;
mod captures;
mod commands;
mod decap_prefixes;
mod examples;
mod exporter;
mod exporter_docs;
mod exposition;
mod faults;
mod guide;
mod healthcheck;
mod killed;
mod killed_backends;
mod killed_pinned;
#[path = "../e2e/links.rs"]
mod links;
mod lost;
mod monitor;
mod next_build;
#[allow(dead_code, reason = "these tests use a part")]
#[path = "../common/pins.rs"]
mod objects;
mod operations;
mod page;
mod pages;
mod place;
mod program;
#[path = "../common/seed.rs"]
mod seed;
mod shell;
mod simulate;
mod taken_over;
mod terminal;
mod top;
mod top_screens;
mod top_view;
mod traced;
#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "../common/traffic.rs"]
mod traffic;
mod tutorial;
mod upgraded;
