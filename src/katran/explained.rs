//! The answers about a frame and a flow.

use std::fmt;
use std::net::IpAddr;

use crate::counters::DropReason;
use crate::types::Prefix;
use crate::types::Vip;

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "UPPERCASE"))]
pub enum Verdict {
    /// Sent through the interface it arrived on, or the one that leads to its real.
    Tx,
    /// Passed to the host's network stack.
    Pass,
    /// Dropped.
    Drop,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tx => "TX",
            Self::Pass => "PASS",
            Self::Drop => "DROP",
        })
    }
}

/// The step of the program that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Passed: addressed to another station, or to a group of them.
    OtherStation,
    /// Passed: neither IPv4 nor IPv6, or not the version that its EtherType names.
    NotIp,
    /// Answered: an ICMP echo request to a VIP's address.
    IcmpEcho,
    /// Passed: another kind of ICMP message, an error about a packet that its receiver did not
    /// send, or an echo request whose source or destination is not a single station.
    IcmpOther,
    /// Passed: neither TCP nor UDP.
    NotTransport,
    /// Passed: no VIP with this address, port and protocol. For a packet that cannot be parsed and
    /// an echo request: no VIP with this address.
    NotAVip,
    /// Answered with an ICMP message: longer than `max_frame`.
    TooBig,
    /// The flow table named the real.
    FlowTable,
    /// The ring named the real, after the flow table had no answer.
    Ring,
    /// The ring named the real in a settled slot
    /// ([`FlowTracking::Changed`](crate::FlowTracking::Changed)), without a flow table lookup.
    SettledSlot,
    /// The base named the real, in an unsettled slot without a flow entry.
    Base,
    /// The QUIC connection id named the real.
    ConnectionId,
    /// The server id in a TCP option named the real.
    TcpServerId,
    /// The server id of stable UDP routing named the real.
    StableUdp,
    /// The global flow table named the real.
    GlobalFlowTable,
    /// The client's prefix named the real.
    SourceRoute,
    /// Passed: in a tunnel that does not end here (`STRICT_DESTINATION`).
    DecapForeign,
    /// In a tunnel that ended here: the inner packet passed to the host.
    DecapToHost,
    /// In a tunnel that ended here: the inner packet was sent back out.
    DecapEgress,
    /// Passed: in a second tunnel, inside one that ended here.
    TunnelInTunnel,
    /// Passed: no owner has given a sign of life within
    /// [`Builder::orphan_limit`](crate::Builder::orphan_limit).
    Orphan,
    /// Dropped, for this reason.
    Dropped(DropReason),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherStation => f.write_str("for another station"),
            Self::NotIp => f.write_str("not IP"),
            Self::IcmpEcho => f.write_str("ICMP echo"),
            Self::IcmpOther => f.write_str("other ICMP"),
            Self::NotTransport => f.write_str("neither TCP nor UDP"),
            Self::NotAVip => f.write_str("not a VIP"),
            Self::TooBig => f.write_str("too big"),
            Self::FlowTable => f.write_str("flow table"),
            Self::Ring => f.write_str("ring"),
            Self::SettledSlot => f.write_str("settled slot"),
            Self::Base => f.write_str("base"),
            Self::ConnectionId => f.write_str("QUIC connection id"),
            Self::TcpServerId => f.write_str("TCP server id"),
            Self::StableUdp => f.write_str("stable UDP routing"),
            Self::GlobalFlowTable => f.write_str("global flow table"),
            Self::SourceRoute => f.write_str("source route"),
            Self::DecapForeign => f.write_str("a tunnel that ends elsewhere"),
            Self::DecapToHost => f.write_str("unwrapped for the host"),
            Self::DecapEgress => f.write_str("unwrapped and sent out"),
            Self::TunnelInTunnel => f.write_str("a tunnel in a tunnel"),
            Self::Orphan => f.write_str("no sign of life of an owner"),
            Self::Dropped(reason) => write!(f, "dropped: {reason}"),
        }
    }
}

/// What the program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Simulation {
    /// What happened to it.
    pub verdict: Verdict,
    /// The frame as it left the program, or as it was when it was dropped.
    pub frame: Vec<u8>,
    /// The VIP it belongs to, if any.
    pub vip: Option<Vip>,
    /// The real it was sent to, if any.
    pub real: Option<IpAddr>,
    /// The step that decided.
    pub reason: Reason,
}

/// How a flow's real is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Choice {
    /// This CPU's flow table has it.
    FlowTable {
        /// The CPU.
        cpu: u32,
    },
    /// The fallback table has it.
    FallbackTable,
    /// This CPU's global flow table has it; `None`: the one that CPUs without a table share.
    GlobalFlowTable {
        /// The CPU.
        cpu: Option<u32>,
    },
    /// The longest prefix that covers the client.
    SourceRoute {
        /// The prefix.
        prefix: Prefix,
    },
    /// The ring.
    Ring,
    /// The ring, in a settled slot ([`FlowTracking::Changed`](crate::FlowTracking::Changed)),
    /// without a flow table lookup.
    SettledSlot,
    /// The base of an unsettled slot, because no table knows the flow.
    Base,
}

/// The real of a flow, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Answer {
    /// The VIP.
    pub vip: Vip,
    /// The real; `None` if the VIP has no real for new flows.
    pub real: Option<IpAddr>,
    /// What decided.
    pub choice: Choice,
    /// Why packets are dropped, if there is no real.
    pub drop: Option<DropReason>,
}
