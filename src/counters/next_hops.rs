//! How many of the next hops that the library discovers are known.

use super::Metric;
use super::MetricKind;
use super::metric::by_label;

/// The [next hops](crate::attachments::Gateways::next_hops) that packets may take, by their state:
/// one for each family that has reals, or one for each real. All are 0 if there is nothing to
/// discover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NextHopCounts {
    /// They answer, or their Ethernet address was given.
    pub answering: u64,
    /// They do not answer; packets go to their last known address, or to the given one.
    pub silent: u64,
    /// No Ethernet address is known, so packets are dropped.
    pub unknown: u64,
    /// Reals that are this host.
    pub here: u64,
}

impl NextHopCounts {
    pub(super) fn metric(&self) -> Metric {
        by_label(
            MetricKind::Gauge,
            ("next_hops", "next hops", "state"),
            "Next hops that the library discovers, by state; `silent`: packets go to the last known address; `unknown`: \
             they are dropped; `here`: the real is this host.",
            &[
                "next_hops.answering",
                "next_hops.silent",
                "next_hops.unknown",
                "next_hops.here",
            ],
            [
                ("answering", self.answering),
                ("silent", self.silent),
                ("unknown", self.unknown),
                ("here", self.here),
            ]
            .into_iter(),
        )
    }
}
