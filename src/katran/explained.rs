//! What is said of a frame, and of a flow, when somebody asks.

use std::fmt;
use std::net::IpAddr;

use crate::counters::DropReason;
use crate::types::Prefix;
use crate::types::Vip;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "UPPERCASE"))]
pub enum Verdict {
    /// Sent out of the interface it came in on, or of the one that leads to its real.
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

/// Which step of the walk decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// For another station, by its Ethernet destination, or for a group of them: passed.
    OtherStation,
    /// Neither IPv4 nor IPv6, or of another version than its EtherType says: passed.
    NotIp,
    /// An ICMP echo request to an address of a VIP: answered.
    IcmpEcho,
    /// ICMP of another kind, an error about what its receiver has not sent, or an echo request from or to
    /// no single station: passed.
    IcmpOther,
    /// Neither TCP nor UDP: passed.
    NotTransport,
    /// No VIP at this address, port and protocol: passed. If it cannot be parsed, or asks for an echo: no
    /// VIP at this address.
    NotAVip,
    /// Above `max_frame`: answered with an ICMP message.
    TooBig,
    /// The flow table named the real.
    FlowTable,
    /// The ring named the real, and the flow table had nothing to say.
    Ring,
    /// The ring named the real in a settled slot ([`FlowTracking::Changed`](crate::FlowTracking::Changed)): the flow
    /// table was not asked.
    SettledSlot,
    /// In an unsettled slot no entry was found, and the base named the real: the one that the slot had when
    /// it was last settled.
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
    /// In a tunnel that does not end here (`STRICT_DESTINATION`): passed.
    DecapForeign,
    /// In a tunnel that ended here: what was in it is passed to the host.
    DecapToHost,
    /// In a tunnel that ended here: what was in it is sent back out.
    DecapEgress,
    /// In a second tunnel, inside one that ended here: passed.
    TunnelInTunnel,
    /// No owner has given a sign of life for too long ([`Builder::orphan_limit`](crate::Builder::orphan_limit)): passed.
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

/// What the program made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Simulation {
    /// What became of it.
    pub verdict: Verdict,
    /// The frame as it left the program; of a dropped one, as it was when it was dropped.
    pub frame: Vec<u8>,
    /// The VIP it belongs to, if any.
    pub vip: Option<Vip>,
    /// The real it was sent to, if any.
    pub real: Option<IpAddr>,
    /// Which step decided.
    pub reason: Reason,
}

/// How the real of a flow is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Choice {
    /// The flow table of this CPU remembers it.
    FlowTable {
        /// The CPU.
        cpu: u32,
    },
    /// The table that CPUs without one of their own share remembers it.
    FallbackTable,
    /// The global flow table of this CPU names it; `None`: the one that CPUs without a table share.
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
    /// The ring, in a settled slot ([`FlowTracking::Changed`](crate::FlowTracking::Changed)): no table is asked.
    SettledSlot,
    /// The base of an unsettled slot: the real that it had when it was last settled, for no table knows the
    /// flow.
    Base,
}

/// Which real a flow belongs to, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Answer {
    /// The VIP.
    pub vip: Vip,
    /// The real; `None` if no real takes new flows of the VIP.
    pub real: Option<IpAddr>,
    /// What decided.
    pub choice: Choice,
    /// Why packets are dropped, if there is no real.
    pub drop: Option<DropReason>,
}
