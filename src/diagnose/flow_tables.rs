//! Judges whether the flow tables have room for all live flows. A table without room forgets some.

use std::time::Duration;

use super::Diagnosis;
use super::Subject;

/// A sample of full tables. A set is crowded if each of its entries belongs to a flow with several
/// packets, so that a new flow must displace one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowTableFacts {
    /// The setting, over all tables.
    pub(crate) flows: u64,
    /// Sampled sets; 0 if no table has all its sets in use.
    pub(crate) sets: usize,
    /// How many of the sampled sets are crowded.
    pub(crate) crowded: usize,
    /// The median over sets: how long the flow that is forgotten next has been silent.
    pub(crate) silent: Duration,
    /// How long a silent flow should be remembered.
    pub(crate) wanted: Duration,
    /// CPUs that do not remember new flows because of a flood, and the rate (flows a second) above
    /// which they do not.
    pub(crate) flooded: usize,
    pub(crate) threshold: u32,
}

pub(super) fn judge(facts: &FlowTableFacts, found: &mut Diagnosis) {
    let about = Subject::FlowTable;
    let FlowTableFacts {
        flows,
        sets,
        crowded,
        silent,
        wanted,
        flooded,
        threshold,
    } = *facts;
    if flooded > 0 {
        let are = if flooded == 1 { "CPU is" } else { "CPUs are" };
        return found.warn(
            about,
            format!(
            "{flooded} {are} under flood: new flows above {threshold} a second are forwarded but not \
             remembered"
            ),
            "if this is no attack: raise flow_table_size, or flood_threshold",
        );
    }
    if 2 * crowded < sets.max(1) || silent >= wanted {
        return found.ok(about, format!("there is room for {flows} flows"));
    }
    let percent = 100 * crowded / sets;
    found.warn(
        about,
        format!(
            "too small: {percent} % of the places for {flows} flows are full, so a flow is forgotten after {} s of \
             silence instead of {} s: connections that a change of the reals would have moved break",
            silent.as_secs(),
            wanted.as_secs()
        ),
        format!(
            "set flow_table_size = {} or more in the document and apply it: the tables grow under traffic",
            flows.saturating_mul(4)
        ),
    );
}
