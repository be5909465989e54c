//! The table of what a balancer runs: VIPs, their reals, and their numbers in the program.
//!
//! Everything here is pure. The `Table` computes what a call would change (*stages* it), the
//! library changes the kernel, and only then the table (*commits* the change); so a failed kernel
//! call leaves both unchanged. A plan is the steps from one document to another.

mod checks;
mod met;
mod names;
mod plan;
mod plan_names;
mod pool;
#[cfg(test)]
mod proptests;
mod records;
mod stage;
mod staged;
mod step;
mod stored;
#[cfg(test)]
mod tests;

pub(crate) use met::Met;
pub(crate) use names::Deltas;
pub(crate) use names::Name;
pub(crate) use names::Names;
pub(crate) use names::Room;
pub(crate) use plan::Limits;
#[cfg(test)]
pub(crate) use plan::Plan;
pub(crate) use records::GivenBack;
pub(crate) use records::RealEntry;
pub(crate) use records::Resolved;
pub(crate) use records::Table;
pub(crate) use records::VipEntry;
pub(crate) use staged::Endpoint;
pub(crate) use staged::Paper;
pub(crate) use staged::RealRecord;
pub(crate) use staged::StagedReferences;
pub(crate) use staged::Turned;
pub(crate) use step::NameChange;
pub(crate) use step::Step;
pub(crate) use stored::StoredEdit;
pub(crate) use stored::StoredEntry;
pub(crate) use stored::StoredNumbers;
pub(crate) use stored::StoredReal;
