//! What became of a probe.

use std::fmt;

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// Why.
    Failed(String),
    /// It was never sent, or not by the way that it has to go: that says nothing of the real.
    NotSent(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => write!(f, "answers"),
            Self::Failed(why) => write!(f, "{why}"),
            Self::NotSent(why) => write!(f, "not sent: {why}"),
        }
    }
}
