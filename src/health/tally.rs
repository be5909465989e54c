//! How many probes of a VIP's reals have ended how, and how long answers took.

use std::collections::BTreeMap;
use std::time::Duration;

use super::outcome::Cause;
use super::outcome::Outcome;

/// What came of the probes of a VIP's reals, since the checks have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Those that were answered.
    pub passed: u64,
    /// Those that were not, by cause.
    pub failed: BTreeMap<Cause, u64>,
    /// Those that say nothing of a real: they could not be sent, or did not go through the tunnel.
    pub not_sent: u64,
    /// How long all answers took together, from the first packet to the end of the answer.
    pub took: Duration,
    /// How many of them took as long as each of [`LIMITS`](Self::LIMITS) at most.
    pub within: [u64; 6],
}

impl Tally {
    /// What answers are sorted by.
    pub const LIMITS: [Duration; 6] = [
        Duration::from_millis(1),
        Duration::from_millis(5),
        Duration::from_millis(25),
        Duration::from_millis(100),
        Duration::from_millis(500),
        Duration::from_millis(2500),
    ];

    pub(super) fn count(&mut self, outcome: &Outcome, took: Duration) {
        match outcome {
            Outcome::Passed => {
                self.passed += 1;
                self.took += took;
                for (count, limit) in self.within.iter_mut().zip(Self::LIMITS) {
                    *count += u64::from(took <= limit);
                }
            }
            Outcome::Failed(cause, _) => *self.failed.entry(*cause).or_default() += 1,
            Outcome::NotSent(_) | Outcome::Missed(_) => self.not_sent += 1,
        }
    }
}
