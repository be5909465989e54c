//! Counts of a VIP's probes by result, and of how long answers took.

use std::collections::BTreeMap;
use std::time::Duration;

use super::outcome::Cause;
use super::outcome::Outcome;

/// The counts of the probes of a VIP's reals, since the checks know the VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Probes that passed.
    pub passed: u64,
    /// Probes that failed, by cause.
    pub failed: BTreeMap<Cause, u64>,
    /// Probes that say nothing about a real: not sent, or not through the tunnel.
    pub not_sent: u64,
    /// The total time of all answers, each from the first packet to the end of the answer.
    pub took: Duration,
    /// Answers that took at most as long as each of [`LIMITS`](Self::LIMITS).
    pub within: [u64; 6],
}

impl Tally {
    /// The limits of `within`.
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
