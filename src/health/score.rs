//! The status of one real of a VIP, from the results of its probes.

use std::collections::VecDeque;
use std::time::Instant;

use super::outcome::Outcome;
use super::policy::Thresholds;

/// What probes found about a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// No result yet, or not probed.
    Unknown,
    /// It answers.
    Up,
    /// It fails.
    Down,
}

/// One change of a status.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) at: Instant,
    pub(super) to: Status,
    pub(super) reason: String,
}

/// Results in a row, and the status.
#[derive(Clone, Debug)]
pub(super) struct Score {
    status: Status,
    /// In a row; one of the two is 0.
    passes: u32,
    failures: u32,
    /// How many failures in a row it takes to go down: one for a real that was never up.
    needed: u32,
    last: Option<(Instant, Outcome)>,
    history: VecDeque<Turn>,
    /// The number of changes, forgotten ones included.
    turns: u64,
}

impl Score {
    pub(super) fn new() -> Self {
        Self {
            status: Status::Unknown,
            passes: 0,
            failures: 0,
            needed: 1,
            last: None,
            history: VecDeque::new(),
            turns: 0,
        }
    }

    /// A real that was down when the checks began.
    pub(super) fn found_down() -> Self {
        Self {
            status: Status::Down,
            ..Self::new()
        }
    }

    pub(super) fn status(&self) -> Status {
        self.status
    }

    /// Whether it is down without any doubt about the checker.
    pub(super) fn is_surely_down(&self) -> bool {
        self.status == Status::Down && self.failures >= self.needed
    }

    /// Forgets failures that the checker may have caused.
    pub(super) fn forget_failures(&mut self) {
        self.failures = 0;
    }

    /// The last result of any kind.
    pub(super) fn last(&self) -> Option<&(Instant, Outcome)> {
        self.last.as_ref()
    }

    pub(super) fn turns(&self) -> u64 {
        self.turns
    }

    pub(super) fn history(&self) -> impl Iterator<Item = &Turn> {
        self.history.iter()
    }

    /// Records a result; returns whether the status changed. A probe that was not sent says
    /// nothing.
    pub(super) fn record(
        &mut self,
        outcome: Outcome,
        thresholds: Thresholds,
        remembered: u32,
        now: Instant,
    ) -> bool {
        let passed = match &outcome {
            Outcome::Passed => true,
            Outcome::Failed(..) => false,
            Outcome::NotSent(_) | Outcome::Missed(_) => {
                self.last = Some((now, outcome));
                return false;
            }
        };
        match passed {
            true => (self.passes, self.failures) = (self.passes.saturating_add(1), 0),
            false => (self.passes, self.failures) = (0, self.failures.saturating_add(1)),
        }
        let to = match (self.status, passed) {
            (Status::Unknown, true) => Status::Up,
            (Status::Unknown, false) => Status::Down,
            (Status::Up, false) if self.failures >= thresholds.fall => Status::Down,
            (Status::Down, true) if self.passes >= thresholds.rise => Status::Up,
            (same, _) => same,
        };
        let turned = to != self.status;
        if turned {
            if self.status == Status::Up {
                self.needed = thresholds.fall;
            }
            let turn = Turn {
                at: now,
                to,
                reason: outcome.to_string(),
            };
            self.status = to;
            self.turns += 1;
            self.history.push_back(turn);
        }
        while self.history.len() > remembered as usize {
            self.history.pop_front();
        }
        self.last = Some((now, outcome));
        turned
    }
}
