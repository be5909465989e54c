//! Whether the flow tables have room for all flows that go on: one that has not forgets them.

use std::time::Duration;

use super::Diagnosis;
use super::Subject;

/// What a sample of full tables says. A set is crowded if all its entries are of flows of which several packets were seen: a
/// new flow takes the place of one of those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowTableFacts {
    /// The setting, over all tables.
    pub(crate) flows: u64,
    /// Sets that were looked at; 0: no table has all its sets in use.
    pub(crate) sets: usize,
    /// Those of them that are crowded.
    pub(crate) crowded: usize,
    /// In the middle one of these, for how long the flow has been silent that is forgotten next.
    pub(crate) silent: Duration,
    /// For how long a silent flow is to be remembered.
    pub(crate) wanted: Duration,
    /// CPUs that forward new flows without remembering them, and above how many a second they do.
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
                "{flooded} {are} under flood: of more than {threshold} new flows a second the others are forwarded and not \
                 remembered"
            ),
            "if they are no attack: a larger flow_table_size, or flood_threshold",
        );
    }
    if 2 * crowded < sets.max(1) || silent >= wanted {
        return found.ok(about, format!("there is room for {flows} flows"));
    }
    let percent = 100 * crowded / sets;
    found.warn(
        about,
        format!(
            "too small: {percent} % of the places for {flows} flows are full, so a flow is forgotten after {} s of silence, \
             and not after {} s: those that a change would have moved break",
            silent.as_secs(),
            wanted.as_secs()
        ),
        format!(
            "flow_table_size of {} or more, in the document: a reload makes larger tables under traffic",
            flows.saturating_mul(4)
        ),
    );
}
