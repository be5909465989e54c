//! The table of drop reasons. A row gives the reason, the program's name for it (in
//! `bpf/shared.h`), its name in counters and reports, and the remedy, if you have one. `make docs`
//! writes the rows to `docs/metrics.md`.

use std::collections::BTreeMap;
use std::fmt;

use crate::skel::katran::types::counters;
use crate::skel::katran::types::drop_reason;

macro_rules! drop_reasons {
    ($(
        $(#[doc = $doc:literal])+
        $reason:ident = $number:ident, $name:literal $(=> $remedy:literal)?;
    )+) => {
        /// Why a frame was dropped. The program drops a frame that it cannot parse only if the
        /// destination is an address of a VIP; others pass.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub enum DropReason {
            $(
                $(#[doc = $doc])+
                #[cfg_attr(feature = "serde", serde(rename = $name))]
                $reason,
            )+
        }

        impl DropReason {
            /// All reasons, in the order of the walk.
            pub const ALL: [Self; drop_reason::DROP_REASONS.0 as usize - 1] = [$(Self::$reason),+];

            /// The program's number for it.
            pub(crate) const fn number(self) -> usize {
                match self {
                    $(Self::$reason => drop_reason::$number.0 as usize,)+
                }
            }

            /// Its name in counters and reports, such as `ipv4_fragment`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)+
                }
            }

            /// What to do about it; empty if only the sender can do something.
            pub(crate) const fn remedy(self) -> &'static str {
                match self {
                    $(Self::$reason => concat!($($remedy)?),)+
                }
            }

            /// The first paragraph of its documentation.
            #[cfg(test)]
            pub(super) fn meaning(self) -> String {
                let doc = match self {
                    $(Self::$reason => concat!($($doc, "\n"),+),)+
                };
                let lines = doc.lines().take_while(|line| !line.is_empty());
                lines.map(str::trim).collect::<Vec<_>>().join(" ")
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its Ethernet header or VLAN tags.
    ///
    /// [`Totals`](super::Totals) leaves out frames without an Ethernet header.
    FrameTruncated = DROP_FRAME_TRUNCATED, "frame_truncated";
    /// Shorter than its IPv4 header.
    Ipv4Truncated = DROP_IPV4_TRUNCATED, "ipv4_truncated";
    /// IPv4 with options.
    Ipv4Options = DROP_IPV4_OPTIONS, "ipv4_options";
    /// An IPv4 fragment.
    Ipv4Fragment = DROP_IPV4_FRAGMENT, "ipv4_fragment" => "have backends announce a smaller MSS";
    /// Shorter than its IPv6 header.
    Ipv6Truncated = DROP_IPV6_TRUNCATED, "ipv6_truncated";
    /// An IPv6 fragment.
    Ipv6Fragment = DROP_IPV6_FRAGMENT, "ipv6_fragment" => "have backends announce a smaller MSS";
    /// An IP length beyond the frame, or shorter than the IP header.
    Length = DROP_LENGTH, "length";
    /// More than four IPv6 extension headers, or some that cannot be read.
    ExtensionHeaders = DROP_EXTENSION_HEADERS, "extension_headers";
    /// Shorter than its ICMP header.
    IcmpTruncated = DROP_ICMP_TRUNCATED, "icmp_truncated";
    /// An ICMP error that quotes too little to find the flow.
    QuoteTruncated = DROP_QUOTE_TRUNCATED, "quote_truncated";
    /// An ICMP error that quotes IPv4 options.
    QuoteOptions = DROP_QUOTE_OPTIONS, "quote_options";
    /// Shorter than its TCP or UDP header.
    TransportTruncated = DROP_TRANSPORT_TRUNCATED, "transport_truncated";
    /// Longer than `max_frame`, without an ICMP answer.
    TooBig = DROP_TOO_BIG, "too_big" => "raise max_frame with the MTU, or switch icmp-too-big on";
    /// No real of the VIP takes new flows.
    RingEmpty = DROP_RING_EMPTY, "ring_empty"
        => "add reals, repair those that are down, or give drained ones a weight";
    /// The ring names a real out of range.
    RingUnknownReal = DROP_RING_UNKNOWN_REAL, "ring_unknown_real"
        => "find what else writes to the balancer's maps";
    /// No headroom for an outer IPv4 header.
    EncapV4 = DROP_ENCAP_V4, "encap_v4" => "attach in generic mode, which gives more headroom";
    /// No headroom for an outer IPv6 header.
    EncapV6 = DROP_ENCAP_V6, "encap_v6" => "attach in generic mode, which gives more headroom";
    /// No headroom for an ICMP answer.
    ReplyFailed = DROP_REPLY_FAILED, "reply_failed"
        => "attach in generic mode, which gives more headroom";
    /// The QUIC connection id names a real that is being removed.
    QuicRealGone = DROP_QUIC_REAL_GONE, "quic_real_gone";
    /// The id in the datagram names a real that is being removed.
    StableUdpRealGone = DROP_STABLE_UDP_REAL_GONE, "stable_udp_real_gone";
    /// An inner packet that is longer than its tunnel packet.
    InnerTruncated = DROP_INNER_TRUNCATED, "inner_truncated";
    /// An inner packet without hops left.
    InnerExpired = DROP_INNER_EXPIRED, "inner_expired" => "look for a routing loop";
    /// The outer headers could not be removed.
    DecapFailed = DROP_DECAP_FAILED, "decap_failed";
    /// An inner packet that is not of the family in the outer header.
    InnerVersion = DROP_INNER_VERSION, "inner_version";
    /// The outer header marks congestion, and the inner packet cannot (RFC 6040).
    Ecn = DROP_ECN, "ecn";
    /// A tunnel within a tunnel to an `egress` address.
    NestedTunnel = DROP_NESTED_TUNNEL, "nested_tunnel" => "look for a routing loop";
    /// A tunnel from outside `allow_sources`.
    OuterSource = DROP_OUTER_SOURCE, "outer_source" => "if the sender is yours, add it";
    /// An inner source outside `egress_sources`, at an `egress` address.
    EgressSource = DROP_EGRESS_SOURCE, "egress_source" => "if it is a VIP, add it";
    /// No headroom for the VLAN tags.
    VlanFailed = DROP_VLAN_FAILED, "vlan_failed" => "attach in generic mode, which gives more headroom";
    /// The MAC address of the real's next hop is unknown.
    NextHopUnknown = DROP_NEXT_HOP_UNKNOWN, "next_hop_unknown"
        => "find the silent next hop with `ip neighbour`";
    /// The interface that leads to the real refused the frame.
    RedirectFailed = DROP_REDIRECT_FAILED, "redirect_failed"
        => "the interface to the real needs native XDP, and with some drivers a program";
    /// A program that continues the walk is missing.
    ProgramMissing = DROP_PROGRAM_MISSING, "program_missing"
        => "find what else writes to the balancer's maps";
}

impl DropReason {
    pub(crate) fn from_number(number: usize) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.number() == number)
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Dropped frames by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct DropReasons {
    frames: BTreeMap<DropReason, u64>,
}

impl DropReasons {
    /// The sum over all CPUs.
    pub(crate) fn sum(records: &[counters]) -> Self {
        let sum = |reason: DropReason| {
            let of_cpus = records.iter().map(|record| record.drops[reason.number()]);
            (reason, of_cpus.sum())
        };
        Self {
            frames: DropReason::ALL.into_iter().map(sum).collect(),
        }
    }

    /// Frames dropped for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.frames.get(&reason).copied().unwrap_or(0)
    }

    /// Every reason with its frames, including reasons without any.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL
            .into_iter()
            .map(|reason| (reason, self.get(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_has_a_number_of_its_own() {
        for (number, reason) in (1..).zip(DropReason::ALL) {
            assert_eq!(DropReason::from_number(number), Some(reason));
        }
        assert_eq!(DropReason::from_number(0), None);
        assert_eq!(DropReason::from_number(DropReason::ALL.len() + 1), None);
    }
}
