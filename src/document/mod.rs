//! What a balancer is to do, as a document that can be written down, compared and applied.
//!
//! [`State`] is its settings, VIPs and reals in the words of the public API; the differences of two say
//! what a change amounts to. Everything here is pure; `table` holds what runs.

mod diff;
#[cfg(feature = "serde")]
mod page;
#[cfg(feature = "serde")]
mod pieces;
#[cfg(feature = "serde")]
mod placed;
#[cfg(test)]
#[cfg(feature = "serde")]
mod placed_tests;
#[cfg(feature = "serde")]
mod places;
#[cfg(test)]
#[cfg(feature = "serde")]
mod reference;
#[cfg(feature = "serde")]
mod room;
#[cfg(feature = "serde")]
mod sections;
mod state;
#[cfg(test)]
#[cfg(feature = "serde")]
mod toml_errors;
#[cfg(feature = "serde")]
mod toml_keys;
#[cfg(feature = "serde")]
mod toml_read;
#[cfg(test)]
#[cfg(feature = "serde")]
mod toml_tests;
#[cfg(feature = "serde")]
mod toml_vip;
#[cfg(feature = "serde")]
mod toml_write;

pub use diff::Changes;
pub(crate) use diff::live_changes;
pub(crate) use diff::settings_changed;
#[cfg(feature = "serde")]
pub use placed::Document;
pub use state::DecapState;
pub use state::MarkState;
pub use state::ProbeMatch;
pub use state::ProbeMatchState;
pub use state::ServerIdState;
pub use state::State;
pub use state::VipState;
pub(crate) use state::stated_flags;
