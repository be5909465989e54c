//! Results of probes.

use std::fmt;

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// The real failed, with the cause and a text.
    Failed(Cause, String),
    /// The probe was never sent, which says nothing about the real.
    NotSent(String),
    /// The probe did not go through the tunnel, nor do others of its VIP.
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
    /// Whether it says something about the real.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self, Self::Passed | Self::Failed(..))
    }
}

/// The cause of a failed probe; failures are counted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Cause {
    /// No complete answer within the timeout.
    Timeout,
    /// The port is closed.
    Refused,
    /// A router, or this host's neighbour table, has no way to the real.
    Unreachable,
    /// The real closed the connection before its answer was complete.
    Closed,
    /// The TLS or QUIC handshake failed, for example because of the certificate.
    Handshake,
    /// The answer, or a command's exit status, was not the expected one.
    Answer,
    /// Anything else.
    Other,
}

impl Cause {
    /// All causes.
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
    /// One word, as in the metrics' labels.
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
