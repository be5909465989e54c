//! What the balancer is told to do: VIPs, their reals, and the numbers the program knows them by.
//!
//! Everything here is pure. The `Table` says what a call would change (it is *staged*), the
//! kernel is changed, and only then the table (the change is *committed*); so a failed kernel call
//! leaves both as they were. [`State`] is the same as a document that can be compared.

mod checks;
mod diff;
mod document;
mod names;
mod plan;
mod plan_names;
mod pool;
#[cfg(test)]
mod proptests;
mod stage;
mod table;
#[cfg(test)]
mod tests;
#[cfg(feature = "serde")]
mod toml_form;
#[cfg(feature = "serde")]
mod toml_keys;

pub use diff::Changes;
pub use document::BalancerState;
pub use document::DecapState;
pub use document::MarkState;
pub use document::ProbeMatch;
pub use document::ProbeMatchState;
pub use document::ServerIdState;
pub use document::State;
pub use document::VipState;
pub(crate) use names::Deltas;
pub(crate) use names::Name;
pub(crate) use names::Names;
pub(crate) use plan::Limits;
#[cfg(test)]
pub(crate) use plan::Plan;
pub(crate) use plan::Step;
pub(crate) use plan::plan;
pub(crate) use plan_names::NameChange;
pub(crate) use stage::Endpoint;
pub(crate) use stage::RealRecord;
pub(crate) use stage::StagedReals;
pub(crate) use table::GivenBack;
pub(crate) use table::Resolved;
pub(crate) use table::Table;
pub(crate) use table::VipEntry;
