//! Health checks: probes of reals, and what follows from them. Needs the feature `health`.
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
//! health.apply(&state)?;                      // reals are in use, and probed at once
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
//! A TOML document says it all as well: [`Document`], whose keys are in `docs/health.md`.
//!
//! **What follows.** A real is *out* if so many probes in a row have failed, and another one of its VIP has answered
//! after that: failures alone may be the checker's own. One that is out is [marked down](crate::Katran::mark_down): it
//! gets no new flows, and those that it has leave it with their next packets. Its weight stays the operator's. If too few reals
//! work, those in use stay so ([`Policy::panic_threshold`]); if none does, drained ones that work serve
//! ([`Policy::drained_fallback`]). At a start nothing is known of any real, and all stay in use until their first result,
//! which comes at once.
//!
//! **What counts.** Probes go through the tunnel ([`Via::Tunnel`]), as clients' packets do, with a socket mark of the
//! real's. One that did not go through says nothing of the real, by the counters of [`Probes`](crate::probes::Probes).
//!
//! If the process ends, checks end, and packets flow on as the last change has left it.

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
