//! The table of drop reasons. A row gives the reason, the program's name for it (in
//! `bpf/shared.h`), and its name in counters and reports.

use std::collections::BTreeMap;
use std::fmt;

use crate::skel::katran::types::counters;
use crate::skel::katran::types::drop_reason;

macro_rules! drop_reasons {
    ($(
        $(#[doc = $doc:literal])+
        $reason:ident = $number:ident, $name:literal;
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
        }
    };
}

drop_reasons! {
    /// Shorter than an Ethernet header; the only drop that [`Totals`](super::Totals) leaves out.
    FrameTruncated = DROP_FRAME_TRUNCATED, "frame_truncated";
    /// Shorter than an IPv4 header.
    Ipv4Truncated = DROP_IPV4_TRUNCATED, "ipv4_truncated";
    /// IPv4 with options.
    Ipv4Options = DROP_IPV4_OPTIONS, "ipv4_options";
    /// A fragment of an IPv4 packet.
    Ipv4Fragment = DROP_IPV4_FRAGMENT, "ipv4_fragment";
    /// Shorter than an IPv6 header.
    Ipv6Truncated = DROP_IPV6_TRUNCATED, "ipv6_truncated";
    /// A fragment of an IPv6 packet.
    Ipv6Fragment = DROP_IPV6_FRAGMENT, "ipv6_fragment";
    /// An IP length beyond the frame, or shorter than the IP header.
    Length = DROP_LENGTH, "length";
    /// IPv6 extension headers that cannot be walked: more than four, segments left, or cut short.
    ExtensionHeaders = DROP_EXTENSION_HEADERS, "extension_headers";
    /// Shorter than an ICMP header.
    IcmpTruncated = DROP_ICMP_TRUNCATED, "icmp_truncated";
    /// An ICMP error that quotes too little to find the flow.
    QuoteTruncated = DROP_QUOTE_TRUNCATED, "quote_truncated";
    /// An ICMP error that quotes an IPv4 header with options.
    QuoteOptions = DROP_QUOTE_OPTIONS, "quote_options";
    /// Shorter than its TCP or UDP header, by the frame or by the IP length.
    TransportTruncated = DROP_TRANSPORT_TRUNCATED, "transport_truncated";
    /// Above `max_frame`, with `ICMP_TOO_BIG` off.
    TooBig = DROP_TOO_BIG, "too_big";
    /// No real takes new flows of the VIP.
    RingEmpty = DROP_RING_EMPTY, "ring_empty";
    /// The ring names a real out of range.
    RingUnknownReal = DROP_RING_UNKNOWN_REAL, "ring_unknown_real";
    /// No headroom for an outer IPv4 header.
    EncapV4 = DROP_ENCAP_V4, "encap_v4";
    /// No headroom for an outer IPv6 header.
    EncapV6 = DROP_ENCAP_V6, "encap_v6";
    /// No room for the balancer's ICMP message.
    ReplyFailed = DROP_REPLY_FAILED, "reply_failed";
    /// The QUIC connection id names a server whose real is being removed.
    QuicRealGone = DROP_QUIC_REAL_GONE, "quic_real_gone";
    /// The id of stable UDP routing names a server whose real is being removed.
    StableUdpRealGone = DROP_STABLE_UDP_REAL_GONE, "stable_udp_real_gone";
    /// A tunnelled packet that is longer than the outer packet's contents.
    InnerTruncated = DROP_INNER_TRUNCATED, "inner_truncated";
    /// A tunnelled packet whose inner time to live has expired.
    InnerExpired = DROP_INNER_EXPIRED, "inner_expired";
    /// The outer headers could not be removed.
    DecapFailed = DROP_DECAP_FAILED, "decap_failed";
    /// Not an IP packet of the family that the outer header names.
    InnerVersion = DROP_INNER_VERSION, "inner_version";
    /// The outer header marks congestion, which the inner packet's ends do not understand (RFC
    /// 6040).
    Ecn = DROP_ECN, "ecn";
    /// A tunnel in a tunnel to an egress address.
    NestedTunnel = DROP_NESTED_TUNNEL, "nested_tunnel";
    /// A tunnel whose source is not in `allow_sources`.
    OuterSource = DROP_OUTER_SOURCE, "outer_source";
    /// A packet to leave an egress address whose source is not in `egress_sources`.
    EgressSource = DROP_EGRESS_SOURCE, "egress_source";
    /// The VLAN tags could not be removed or put back.
    VlanFailed = DROP_VLAN_FAILED, "vlan_failed";
    /// The Ethernet address of the real's next hop is not known.
    NextHopUnknown = DROP_NEXT_HOP_UNKNOWN, "next_hop_unknown";
    /// The packet could not leave by the interface that leads to the real.
    RedirectFailed = DROP_REDIRECT_FAILED, "redirect_failed";
    /// A program that continues the walk is missing: something emptied `special_programs`.
    ProgramMissing = DROP_PROGRAM_MISSING, "program_missing";
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
