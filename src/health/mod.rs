//! Health checks: probes of reals, and their effects on the balancer. Needs the feature `health`.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::sync::Mutex;
//! use std::time::Duration;
//! use katran::Katran;
//! use katran::State;
//! use katran::XdpMode;
//! use katran::health::Health;
//! use katran::health::Settings;
//!
//! # fn example(state: State) -> katran::Result<()> {
//! let katran = Arc::new(Mutex::new(state.builder()?.load()?));
//! let health = Health::start(&katran, Settings::default())?;
//! health.apply(&state)?;                      // reals are in use and probed at once
//! health.wait(Duration::from_secs(5));        // dead ones are out
//! katran.lock().unwrap().attach("eth0", XdpMode::Auto)?;
//! // later, after the file has changed:
//! health.apply(&state)?;
//! for vip in health.report().vips {
//!     println!("{vip:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A TOML document can have the settings too: [`Document`], with the keys in `docs/health.md`.
//!
//! **Effects.** A real is *out* if enough probes in a row failed and another real of its VIP has
//! answered since: failures alone may be the checker's own. A real that is out is [marked
//! down](crate::Katran::mark_down): it gets no new flows, and its flows leave it with their next
//! packets. It keeps its weight. If too few reals work, no more are taken out
//! ([`Policy::panic_threshold`]); if none works, packets go to drained ones that work
//! ([`Policy::drained_fallback`]). At the start all reals stay in use until their first result,
//! which comes at once.
//!
//! **Validity.** Probes go through the tunnel ([`Via::Tunnel`]), as clients' packets do, with a
//! socket mark for the real. If the counters of [`Probes`](crate::probes::Probes) show that a probe
//! missed the tunnel, its result is ignored.
//!
//! When the process ends, checks end, and the balancer forwards in its last state.

mod board;
#[cfg(test)]
mod board_tests;
mod check;
#[cfg(feature = "serde")]
mod document;
#[cfg(test)]
#[cfg(feature = "serde")]
mod document_tests;
mod driver;
#[cfg(feature = "serde")]
mod given;
mod handle;
#[cfg(feature = "serde")]
mod keys;
mod metrics;
mod outcome;
mod plan;
mod policy;
mod probe;
#[cfg(test)]
mod probe_kinds_tests;
#[cfg(test)]
mod probe_tests;
#[cfg(feature = "serde")]
mod read_check;
#[cfg(test)]
#[cfg(feature = "serde")]
mod reference;
mod report;
mod runner;
#[cfg(test)]
mod runner_tests;
mod schedule;
mod score;
mod service;
mod settings;
#[cfg(feature = "serde")]
mod table;
mod tally;

pub use self::check::Answer;
pub use self::check::Check;
pub use self::check::Command;
pub use self::check::Dns;
pub use self::check::Http;
pub use self::check::Method;
pub use self::check::Quic;
pub use self::check::Tls;
pub use self::check::Trust;
pub use self::check::Udp;
#[cfg(feature = "serde")]
pub use self::document::Document;
pub use self::handle::Health;
pub use self::outcome::Cause;
pub use self::policy::Policy;
pub use self::policy::RealPolicy;
pub use self::policy::Via;
pub use self::report::Event;
pub use self::report::RealHealth;
pub use self::report::Report;
pub use self::report::Transition;
pub use self::report::VipHealth;
pub use self::score::Status;
pub use self::settings::Settings;
pub use self::tally::Tally;
