//! What became of a probe.

use std::fmt;

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// Why, in a word and in words.
    Failed(Cause, String),
    /// It was never sent: that says nothing of the real.
    NotSent(String),
    /// It did not go by the way that it has to go, as others of its VIP: neither does that.
    Missed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => write!(f, "answers"),
            Self::Failed(_, why) => write!(f, "{why}"),
            Self::NotSent(why) | Self::Missed(why) => write!(f, "not sent: {why}"),
        }
    }
}

impl Outcome {
    /// Whether it says something of the real.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self, Self::Passed | Self::Failed(..))
    }
}

/// Why a probe has failed: what failures are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Cause {
    /// No whole answer in time.
    Timeout,
    /// Nobody listens at the port.
    Refused,
    /// A router, or this host's neighbour table, knows no way to the real.
    Unreachable,
    /// The real has ended the connection before its answer was whole.
    Closed,
    /// There was no handshake of TLS or QUIC, as with a certificate that is not good.
    Handshake,
    /// There was an answer, and not the one that is wanted; of a command, its status.
    Answer,
    /// Something else.
    Other,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Timeout,
        Self::Refused,
        Self::Unreachable,
        Self::Closed,
        Self::Handshake,
        Self::Answer,
        Self::Other,
    ];
}

impl fmt::Display for Cause {
    /// A word, as it is the label of a metric.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::Handshake => "handshake",
            Self::Answer => "answer",
            Self::Other => "other",
        })
    }
}
