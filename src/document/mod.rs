//! The wanted state of a balancer: a document that can be written down, compared and applied.
//!
//! [`State`] holds settings, VIPs and reals in the types of the public API. The difference between
//! two states is what a change does. All of this is pure; `table` holds what runs.

#[cfg(feature = "serde")]
mod beside;
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
#[cfg(feature = "serde")]
mod source;
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

#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use beside::Beside;
pub use diff::Changes;
pub(crate) use diff::live_changes;
pub(crate) use diff::settings_changed;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use page::Keys;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use page::Page;
#[cfg(feature = "serde")]
pub use placed::Document;
#[cfg(all(test, feature = "serde", feature = "health"))]
pub(crate) use reference::tables;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use sections::Key;
#[cfg(all(test, feature = "serde", feature = "health"))]
pub(crate) use sections::NEEDED;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use sections::Section;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use sections::key_rows;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use sections::sections;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use source::Source;
pub use state::DecapState;
pub use state::MarkState;
pub use state::ProbeMatch;
pub use state::ProbeMatchState;
pub use state::ServerIdState;
pub use state::State;
pub use state::VipState;
pub(crate) use state::stated_flags;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use toml_read::read_toml;
#[cfg(all(feature = "serde", feature = "health"))]
pub(crate) use toml_read::read_toml_file;
