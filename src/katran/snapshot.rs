//! The snapshots that counters are read into: plain values, a struct per group, every field with
//! its unit.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::healthcheck::HealthcheckCounters;
use crate::maps::MapUse;
use crate::skel::katran::types;
use crate::skel::katran::types::drop_reason;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes. Of frames for [`Totals`], Ethernet header included; for VIPs and reals the length
    /// field of the IP header: the total length of IPv4, the payload length of IPv6.
    pub bytes: u64,
}

impl Count {
    pub(super) fn add(&mut self, other: &types::count) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Every frame by its verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Totals {
    /// All frames: the sum of the three below.
    pub total: Count,
    /// Sent out of the interface: encapsulated, or an ICMP message of the balancer's own.
    pub tx: Count,
    /// Dropped; [`DropReasons`] says why.
    pub drop: Count,
    /// Passed to the host's stack.
    pub pass: Count,
}

/// What the flow table did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FlowTableCounters {
    /// Packets of any VIP.
    pub packets: u64,
    /// Packets whose flow was new: the ring chose the real.
    pub misses: u64,
    /// TCP packets of new flows that open a connection.
    pub miss_syn: u64,
    /// TCP packets of new flows in the middle of a connection.
    pub miss_non_syn: u64,
    /// Packets on a CPU that has no flow table and used the small shared one.
    pub fallback: u64,
}

/// ICMP messages, sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct IcmpCounters {
    /// Fragmentation-needed messages sent for IPv4 frames above `max_frame`.
    pub too_big_v4: u64,
    /// Packet-too-big messages sent for IPv6 frames above `max_frame`.
    pub too_big_v6: u64,
    /// Fragmentation-needed messages received, for any destination.
    pub ptb_v4: u64,
    /// Those among them that announce an MTU below 1280 bytes.
    pub ptb_v4_small: u64,
    /// Packet-too-big messages received, for any destination.
    pub ptb_v6: u64,
    /// Those among them that announce an MTU below 1280 bytes.
    pub ptb_v6_small: u64,
    /// Echo requests over IPv4 answered.
    pub echo_v4: u64,
    /// Echo requests over IPv6 answered.
    pub echo_v6: u64,
}

/// Packets that the ring had no real for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RingDrops {
    /// The slot names a real out of range: somebody else wrote to the map.
    pub unknown_real: u64,
    /// The VIP has no real that takes new flows.
    pub empty: u64,
}

/// Packets that could not be encapsulated for want of headroom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct EncapFailures {
    /// For an IPv4 real.
    pub v4: u64,
    /// For an IPv6 real.
    pub v6: u64,
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DropReason {
    /// Shorter than an Ethernet header; the only drop that [`Totals`] leaves out.
    FrameTruncated,
    /// Shorter than an IPv4 header.
    Ipv4Truncated,
    /// IPv4 with options.
    Ipv4Options,
    /// A fragment of an IPv4 packet.
    Ipv4Fragment,
    /// Shorter than an IPv6 header.
    Ipv6Truncated,
    /// A fragment of an IPv6 packet.
    Ipv6Fragment,
    /// Shorter than an ICMP header.
    IcmpTruncated,
    /// An ICMP error that quotes too little to find the flow.
    QuoteTruncated,
    /// An ICMP error that quotes an IPv4 header with options.
    QuoteOptions,
    /// Shorter than its TCP or UDP header.
    TransportTruncated,
    /// Above `max_frame`, with ICMP_TOO_BIG off.
    TooBig,
    /// No real takes new flows of the VIP.
    RingEmpty,
    /// The ring names a real out of range.
    RingUnknownReal,
    /// No headroom for an outer IPv4 header.
    EncapV4,
    /// No headroom for an outer IPv6 header.
    EncapV6,
    /// No room for an ICMP message of the balancer's own.
    ReplyFailed,
    /// The QUIC connection id names a server whose real is just going.
    QuicRealGone,
    /// The id of stable UDP routing names a server whose real is just going.
    StableUdpRealGone,
    /// A tunnelled packet whose inner IP header is not complete.
    InnerTruncated,
    /// A tunnelled packet whose inner time to live is used up.
    InnerExpired,
    /// The outer headers could not be removed.
    DecapFailed,
    /// The VLAN tags could not be taken off or put back.
    VlanFailed,
    /// Nothing is known of how to reach the real on its segment.
    NextHopUnknown,
    /// The packet could not leave by the interface that leads to the real.
    RedirectFailed,
}

impl DropReason {
    /// All reasons, in the order of the walk.
    pub const ALL: [Self; drop_reason::DROP_REASONS.0 as usize - 1] = [
        Self::FrameTruncated,
        Self::Ipv4Truncated,
        Self::Ipv4Options,
        Self::Ipv4Fragment,
        Self::Ipv6Truncated,
        Self::Ipv6Fragment,
        Self::IcmpTruncated,
        Self::QuoteTruncated,
        Self::QuoteOptions,
        Self::TransportTruncated,
        Self::TooBig,
        Self::RingEmpty,
        Self::RingUnknownReal,
        Self::EncapV4,
        Self::EncapV6,
        Self::ReplyFailed,
        Self::QuicRealGone,
        Self::StableUdpRealGone,
        Self::InnerTruncated,
        Self::InnerExpired,
        Self::DecapFailed,
        Self::VlanFailed,
        Self::NextHopUnknown,
        Self::RedirectFailed,
    ];

    /// The program's number for it.
    pub(super) const fn number(self) -> usize {
        let reason = match self {
            Self::FrameTruncated => drop_reason::DROP_FRAME_TRUNCATED,
            Self::Ipv4Truncated => drop_reason::DROP_IPV4_TRUNCATED,
            Self::Ipv4Options => drop_reason::DROP_IPV4_OPTIONS,
            Self::Ipv4Fragment => drop_reason::DROP_IPV4_FRAGMENT,
            Self::Ipv6Truncated => drop_reason::DROP_IPV6_TRUNCATED,
            Self::Ipv6Fragment => drop_reason::DROP_IPV6_FRAGMENT,
            Self::IcmpTruncated => drop_reason::DROP_ICMP_TRUNCATED,
            Self::QuoteTruncated => drop_reason::DROP_QUOTE_TRUNCATED,
            Self::QuoteOptions => drop_reason::DROP_QUOTE_OPTIONS,
            Self::TransportTruncated => drop_reason::DROP_TRANSPORT_TRUNCATED,
            Self::TooBig => drop_reason::DROP_TOO_BIG,
            Self::RingEmpty => drop_reason::DROP_RING_EMPTY,
            Self::RingUnknownReal => drop_reason::DROP_RING_UNKNOWN_REAL,
            Self::EncapV4 => drop_reason::DROP_ENCAP_V4,
            Self::EncapV6 => drop_reason::DROP_ENCAP_V6,
            Self::ReplyFailed => drop_reason::DROP_REPLY_FAILED,
            Self::QuicRealGone => drop_reason::DROP_QUIC_REAL_GONE,
            Self::StableUdpRealGone => drop_reason::DROP_STABLE_UDP_REAL_GONE,
            Self::InnerTruncated => drop_reason::DROP_INNER_TRUNCATED,
            Self::InnerExpired => drop_reason::DROP_INNER_EXPIRED,
            Self::DecapFailed => drop_reason::DROP_DECAP_FAILED,
            Self::VlanFailed => drop_reason::DROP_VLAN_FAILED,
            Self::NextHopUnknown => drop_reason::DROP_NEXT_HOP_UNKNOWN,
            Self::RedirectFailed => drop_reason::DROP_REDIRECT_FAILED,
        };
        reason.0 as usize
    }

    pub(super) fn from_number(number: usize) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.number() == number)
    }

    /// Its name in counters and reports, such as `ipv4_fragment`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FrameTruncated => "frame_truncated",
            Self::Ipv4Truncated => "ipv4_truncated",
            Self::Ipv4Options => "ipv4_options",
            Self::Ipv4Fragment => "ipv4_fragment",
            Self::Ipv6Truncated => "ipv6_truncated",
            Self::Ipv6Fragment => "ipv6_fragment",
            Self::IcmpTruncated => "icmp_truncated",
            Self::QuoteTruncated => "quote_truncated",
            Self::QuoteOptions => "quote_options",
            Self::TransportTruncated => "transport_truncated",
            Self::TooBig => "too_big",
            Self::RingEmpty => "ring_empty",
            Self::RingUnknownReal => "ring_unknown_real",
            Self::EncapV4 => "encap_v4",
            Self::EncapV6 => "encap_v6",
            Self::ReplyFailed => "reply_failed",
            Self::QuicRealGone => "quic_real_gone",
            Self::StableUdpRealGone => "stable_udp_real_gone",
            Self::InnerTruncated => "inner_truncated",
            Self::InnerExpired => "inner_expired",
            Self::DecapFailed => "decap_failed",
            Self::VlanFailed => "vlan_failed",
            Self::NextHopUnknown => "next_hop_unknown",
            Self::RedirectFailed => "redirect_failed",
        }
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
    pub(super) frames: BTreeMap<DropReason, u64>,
}

impl DropReasons {
    /// Frames dropped for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.frames.get(&reason).copied().unwrap_or(0)
    }

    /// Every reason with its frames, those without any included.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        self.frames
            .iter()
            .map(|(reason, frames)| (*reason, *frames))
    }
}

/// One VIP's traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct VipCounters {
    /// Packets sent to a real, or delivered to this host.
    pub forwarded: Count,
    /// Packets that open a connection, after which packets may carry a server id.
    pub server_id_new: u64,
    /// Flows that a server id took to another real than the flow table had.
    pub server_id_moved: u64,
    /// Packets for it that came through a GUE tunnel that ends at this host, and were unwrapped for
    /// the host's own network stack.
    pub decap: u64,
}

/// Routing by QUIC connection ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[doc(alias = "lb_quic_packets_stats")]
pub struct QuicCounters {
    /// Packets without a server id, or with an unknown one: they went by flow table and ring.
    pub ch_routed: u64,
    /// Initial and 0-RTT packets, whose ids are the client's: they went by flow table and ring.
    pub cid_initial: u64,
    /// Packets with a server id that nobody has.
    pub cid_invalid_server_id: u64,
    /// One of those ids, for a look at what is wrong; 0: none yet.
    pub cid_invalid_server_id_sample: u64,
    /// Packets that went by their server id.
    pub cid_routed: u64,
    /// Packets whose server id's real was just going: dropped.
    pub cid_unknown_real_dropped: u64,
    /// Packets with an id of version 0, which holds no server id.
    pub cid_v0: u64,
    /// Packets with an id of version 1 (16 bits of server id).
    pub cid_v1: u64,
    /// Packets with an id of version 2 (24 bits).
    pub cid_v2: u64,
    /// Packets with an id of version 3 (32 bits).
    pub cid_v3: u64,
    /// Packets that went by their id to where the flow table would have sent them.
    pub dst_match_in_lru: u64,
    /// Packets that went by their id, and the flow table's entry has been corrected.
    pub dst_mismatch_in_lru: u64,
    /// Packets that went by their id and were new to the flow table.
    pub dst_not_found_in_lru: u64,
    /// ICMP errors about flows of QUIC VIPs.
    pub icmp: u64,
    /// Those among them that a QUIC server takes no notice of: port or host unreachable.
    pub icmp_ignored: u64,
}

/// Routing TCP by the server id in an option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[doc(alias = "tpr_packets_stats")]
pub struct TcpServerIdCounters {
    /// Packets without an id, or with one that leads nowhere: they went by flow table and ring.
    pub ch_routed: u64,
    /// Packets that went by their id, and the flow table's entry has been corrected.
    pub dst_mismatch_in_lru: u64,
    /// Packets that went by their id.
    pub sid_routed: u64,
    /// SYNs, which are never routed by it.
    pub syn: u64,
}

/// Stable routing of UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StableUdpCounters {
    /// Packets without an id, or with an unknown one: they went by flow table and ring.
    pub ch_routed: u64,
    /// Packets that went by their id.
    pub cid_routed: u64,
    /// Packets with an id that nobody has.
    pub cid_invalid_server_id: u64,
    /// Packets whose id's real was just going: dropped.
    pub cid_unknown_real_dropped: u64,
    /// Packets whose first byte is another one, or that are too short.
    pub invalid_packet_type: u64,
}

/// New flows at VIPs with [`VipFlags::SRC_ROUTING`](crate::VipFlags::SRC_ROUTING).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SourceRoutingCounters {
    /// No prefix covers the client: they went by the ring.
    pub unmatched: u64,
    /// The client's prefix chose the real.
    pub matched: u64,
}

/// Packets in tunnels that end at the balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[doc(alias = "decap_stats")]
pub struct InlineDecapCounters {
    /// Those to an address of [`Katran::add_decap`](crate::Katran::add_decap).
    pub remote_encap: u64,
    /// Unwrapped from outer IPv4.
    pub v4: u64,
    /// Unwrapped from outer IPv6.
    pub v6: u64,
    /// Inner IPv4 packets that were then balanced.
    pub xpop_v4: u64,
    /// Inner IPv6 packets that were then balanced.
    pub xpop_v6: u64,
    /// Inner IPv4 packets that were sent back out.
    pub egress_v4: u64,
    /// Inner IPv6 packets that were sent back out.
    pub egress_v6: u64,
}

/// Packets that asked the global flow tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct GlobalFlowCounters {
    /// Packets on a CPU that has no table of its own and asked the shared one.
    pub no_table: u64,
    /// Packets that a table sent to a real.
    pub hits: u64,
}

/// UDP flows that left a real that is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct UdpFlowMigrationCounters {
    /// Packets whose flow was remembered on a real that is down.
    pub invalidated: u64,
}

/// One real's traffic, of all VIPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RealCounters {
    /// Packets sent to the real, or delivered to this host.
    pub forwarded: Count,
    /// New flows of the watched VIP that went to this real since
    /// [`Katran::watch_misses`](crate::Katran::watch_misses); 0 while none is watched.
    pub misses: u64,
}

/// One CPU's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CpuCounters {
    /// The CPU's number.
    pub cpu: u32,
    /// Packets that it sent to reals, or delivered to this host.
    pub forwarded: u64,
    /// New flows that it counted in the last window of one second in which there was one.
    pub new_flows: u64,
    /// Whether that was more than `flood_threshold`, so that new flows were not remembered.
    pub under_flood: bool,
}

/// The library's own counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LibraryCounters {
    /// Kernel calls that failed since load.
    pub failed_kernel_calls: u64,
    /// Addresses that were refused since load.
    pub rejected_addresses: u64,
    /// Capacity and use of every map that holds entries, flow tables of all CPUs together.
    pub maps: Vec<MapUse>,
}

/// What became of events, by the program; see [`Katran::monitor`](crate::Katran::monitor).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct EventCounters {
    /// TCP packets other than a SYN of flows that no table knew: handed over.
    pub tcp_non_syn_miss: u64,
    /// Frames above `max_frame`: handed over.
    pub packet_too_big: u64,
    /// QUIC packets whose real is just going: handed over.
    pub quic_real_gone: u64,
    /// Left out by the rate limit.
    pub limited: u64,
    /// Left out because the buffer was full: the monitor did not keep up.
    pub lost: u64,
}

/// All groups in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Counters {
    /// Every frame by its verdict.
    pub totals: Totals,
    /// What the flow table did.
    pub flow_table: FlowTableCounters,
    /// ICMP messages.
    pub icmp: IcmpCounters,
    /// Packets that the ring had no real for.
    pub ring_drop: RingDrops,
    /// Packets that could not be encapsulated.
    pub encap_fail: EncapFailures,
    /// Dropped frames by reason.
    pub drop_reasons: DropReasons,
    /// Routing by QUIC connection ids.
    pub quic: QuicCounters,
    /// Routing TCP by the server id in an option.
    pub tcp_server_id: TcpServerIdCounters,
    /// Stable routing of UDP.
    pub stable_udp: StableUdpCounters,
    /// Packets that asked the global flow tables.
    pub global_lru: GlobalFlowCounters,
    /// New flows that the client's prefix may have led.
    pub source_routing: SourceRoutingCounters,
    /// Packets in tunnels that end at the balancer.
    pub decap: InlineDecapCounters,
    /// UDP flows that left a real that is down.
    pub udp_flow_migration: UdpFlowMigrationCounters,
    /// Events for a monitor.
    pub events: EventCounters,
    /// Health checks.
    pub healthcheck: HealthcheckCounters,
    /// Probes that were sent for each registered key, under its text form.
    pub probes: BTreeMap<String, u64>,
    /// Every VIP's traffic, under its text form.
    pub vips: BTreeMap<String, VipCounters>,
    /// Every real's traffic.
    pub reals: BTreeMap<IpAddr, RealCounters>,
    /// Every possible CPU.
    pub cpus: Vec<CpuCounters>,
    /// The library's own.
    pub library: LibraryCounters,
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
