//! How many next hops are known, of those that the library finds out.

use super::Metric;
use super::MetricKind;
use super::metric::by_label;

/// The [next hops](crate::attachments::Gateways::next_hops) that packets may take, by what is known of them: one for each family of which
/// there are reals, or one for each real. All are 0 where nothing is to be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NextHopCounts {
    /// They answer, or their Ethernet address was given.
    pub answering: u64,
    /// They do not answer; packets go to the last address that was known, or to the one that was given.
    pub silent: u64,
    /// Packets are dropped, for no Ethernet address is known.
    pub unknown: u64,
    /// Reals that are this host.
    pub here: u64,
}

impl NextHopCounts {
    pub(super) fn metric(&self) -> Metric {
        by_label(
            MetricKind::Gauge,
            ("next_hops", "next hops", "state"),
            "Next hops that the library finds out, by state: they answer; they are silent, and packets go to the last \
             address that was known; none is known, and packets are dropped; or the real is this host.",
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
