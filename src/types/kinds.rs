//! Choices: how packets are wrapped, how flows are remembered, to whom frames go, how a tc program is attached.

use std::fmt;
use std::str::FromStr;

use super::Family;
use super::MacAddr;
use crate::error::Error;

/// How packets travel to the reals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encapsulation {
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213). The default.
    #[default]
    Ipip,
    /// Generic UDP encapsulation, variant 1 (draft-ietf-intarea-gue-09, section 4): UDP, then the
    /// inner packet at once. It needs an outer source address of each family that reals have.
    Gue,
}

impl Encapsulation {
    /// Bytes that come around a packet on its way to a real of a family.
    pub(crate) fn overhead(self, outer: Family) -> u32 {
        let udp = match self {
            Self::Ipip => 0,
            Self::Gue => 8,
        };
        udp + outer.header_bytes()
    }
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        })
    }
}

impl FromStr for Encapsulation {
    type Err = Error;

    /// `ipip` or `gue`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "ipip" => Ok(Self::Ipip),
            "gue" => Ok(Self::Gue),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "an encapsulation, `ipip` or `gue`",
            }),
        }
    }
}

/// The longest frame that is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MaxFrame {
    /// What the interfaces that the balancer is attached to can send, less what the encapsulation adds: by the
    /// smallest MTU, as it changes. The default. It is 1,514 bytes while nothing is attached, and for
    /// packets of root programs and of those who attach the program by other means.
    #[default]
    Auto,
    /// So many bytes, Ethernet header included and before encapsulation.
    Bytes(u32),
}

impl From<u32> for MaxFrame {
    fn from(bytes: u32) -> Self {
        Self::Bytes(bytes)
    }
}

impl fmt::Display for MaxFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

/// Whether the IPv4 packets around clients' packets may be fragmented on their way to the reals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OuterDontFragment {
    /// They always may, as in Katran: the DF bit is clear, the identification 0. The default.
    ///
    /// For networks in which nothing is fragmented, because there is room: fragments of packets with one
    /// identification can be put together wrongly.
    #[default]
    Clear,
    /// As the packets inside: the DF bit is theirs, and that of IPv6 is taken to be set. Where it is clear the
    /// identification of packets differs.
    ///
    /// A router drops what is too long for its next link then, if DF is set. Its ICMP error goes to the outer
    /// source, where with IP in IP nobody is, so `max_frame` has to be right.
    Inherit,
}

impl fmt::Display for OuterDontFragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clear => "clear",
            Self::Inherit => "inherit",
        })
    }
}

impl FromStr for OuterDontFragment {
    type Err = Error;

    /// `clear` or `inherit`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "clear" => Ok(Self::Clear),
            "inherit" => Ok(Self::Inherit),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "what becomes of the DF bit, `clear` or `inherit`",
            }),
        }
    }
}

/// Which flows are remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlowTracking {
    /// All of them, as in Katran: each packet asks the flow table.
    All,
    /// Those that are not where the ring leads them: packets ask the flow table only in slots of a ring
    /// that have changed hands since some flow in them may have begun.
    ///
    /// A flow without an entry belongs to the real that its slot had before it changed, while that real is there: so
    /// connections survive a table that is too small for all flows.
    /// VIPs whose flows something else than the ring may place (`QUIC`, `UDP_STABLE_ROUTING`, `SRC_ROUTING`, `GLOBAL_LRU`,
    /// `UDP_FLOW_MIGRATION`, and TCP while [`TCP_SERVER_ID`](crate::Features::TCP_SERVER_ID) is on) have all of
    /// theirs remembered all the same.
    #[default]
    Changed,
}

impl fmt::Display for FlowTracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Changed => "changed",
        })
    }
}

impl FromStr for FlowTracking {
    type Err = Error;

    /// `all` or `changed`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "all" => Ok(Self::All),
            "changed" => Ok(Self::Changed),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "which flows are remembered, `all` or `changed`",
            }),
        }
    }
}

/// How the flow table is built.
///
/// Both kinds have one table for each forwarding CPU on that CPU's NUMA node, and one small table
/// that all other CPUs share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlowTableKind {
    /// Sets of eight entries in a plain array, without locks: 32 bytes a flow. The default.
    ///
    /// Every flow belongs to one set, chosen by a hash whose keys are drawn at load; in a set the
    /// entry unused for longest (to a tick of the kernel's clock, 1 to 10 ms) makes room. There
    /// are two entries for each flow of
    /// [`flow_table_size`](crate::Builder::flow_table_size), so that a set is seldom full while
    /// the table is not.
    ///
    /// An entry holds a fingerprint of its flow, the real, and when it was last used. It can tell
    /// whether a given flow is known, to which real it goes and how old it is; it cannot tell
    /// which flow, or which VIP, it is of, so entries cannot be listed by address.
    #[default]
    SetAssociative,
    /// An LRU hash map of the kernel: 112 to 128 bytes a flow.
    ///
    /// The kernel evicts in an order near to least recently used over the whole table, and takes
    /// a lock to insert. An entry holds the flow's addresses and ports, so entries can be listed;
    /// of TCP flows it does not tell when they were last used.
    KernelLru,
}

impl fmt::Display for FlowTableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SetAssociative => "set-associative",
            Self::KernelLru => "kernel-lru",
        })
    }
}

impl FromStr for FlowTableKind {
    type Err = Error;

    /// `set-associative` or `kernel-lru`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "set-associative" => Ok(Self::SetAssociative),
            "kernel-lru" => Ok(Self::KernelLru),
            _ => Err(Error::Parse {
                input: text.to_owned(),
                expected: "a kind of flow table, `set-associative` or `kernel-lru`",
            }),
        }
    }
}

/// The router that encapsulated frames are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gateway {
    /// The station with this Ethernet address.
    Mac(MacAddr),
    /// Found out from the kernel's routing and neighbour tables, for each address family, and
    /// followed as they change: the router that leads to the first real behind one; where there is
    /// none, that of the default route. A family without one uses the other's.
    Auto,
}

impl From<MacAddr> for Gateway {
    fn from(mac: MacAddr) -> Self {
        Self::Mac(mac)
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => fmt::Display::fmt(mac, f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for Gateway {
    type Err = Error;

    /// A MAC address, or `auto`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            mac => mac.parse().map(Self::Mac).map_err(|_| Error::Parse {
                input: text.to_owned(),
                expected: "a MAC address such as 0a:00:00:00:00:fe, or `auto`",
            }),
        }
    }
}

/// What is known of a real's health, for a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Up,
    /// It gets no new flows, and has none left.
    Down,
}

impl Health {
    pub(crate) const fn is_down(self) -> bool {
        matches!(self, Self::Down)
    }
}

/// To whom encapsulated frames are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NextHops {
    /// To one router for all reals of a family, out of the interface that the packet came in on. The
    /// default.
    #[default]
    Gateway,
    /// To each real's own next hop, as the kernel's routing and neighbour tables have it, out of the
    /// interface that the packet came in on: reals on the same segment get their packets at their
    /// own Ethernet address, the others by their routers. For networks without a router in between.
    PerReal,
    /// The same, out of the interface that leads to the real, if it is another one. An interface that
    /// packets leave by needs native XDP, and some drivers an XDP program of their own on it
    /// before they send (veth: on its peer).
    Redirect,
}

impl fmt::Display for NextHops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::PerReal => "per-real",
            Self::Redirect => "redirect",
        })
    }
}

impl FromStr for NextHops {
    type Err = Error;

    /// `gateway`, `per-real` or `redirect`.
    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Gateway, Self::PerReal, Self::Redirect]
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| Error::Parse {
                input: text.to_owned(),
                expected: "a choice of next hops, `gateway`, `per-real` or `redirect`",
            })
    }
}

/// Where probes come from to the reals, with IP in IP. (GUE comes from the host's own addresses in any case.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProbeSource {
    /// The host's own addresses, [`Builder::source_v4`](crate::Builder::source_v4) and
    /// [`source_v6`](crate::Builder::source_v6), as with Katran.
    #[default]
    Own,
    /// Addresses made up for each flow, as those of clients' packets: what keeps these from a real keeps
    /// its probes from it, too.
    MadeUp,
}

impl fmt::Display for ProbeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own",
            Self::MadeUp => "made-up",
        })
    }
}

impl FromStr for ProbeSource {
    type Err = Error;

    /// `own` or `made-up`.
    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Own, Self::MadeUp]
            .into_iter()
            .find(|source| source.to_string() == text)
            .ok_or_else(|| Error::Parse {
                input: text.to_owned(),
                expected: "where probes come from: `own` or `made-up`",
            })
    }
}

/// By what mechanism a tc program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TcHook {
    /// [`Tcx`](Self::Tcx) where the kernel has it, else [`Clsact`](Self::Clsact).
    #[default]
    Auto,
    /// A tcx link, from Linux 6.6 on: it ends with the process. It comes after the programs that are
    /// attached this way already, and before all filters.
    Tcx,
    /// A filter of the clsact queueing discipline, which is made if there is none. For hosts whose other
    /// tc programs have to come first, by a lower number of priority.
    ///
    /// A process that is killed leaves the filter, and the discipline if it has made it. The next one takes
    /// the filter over by the program's name, which does not tell the dead from the living: of two processes
    /// at one place the second has it.
    Clsact,
}

impl fmt::Display for TcHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

impl FromStr for TcHook {
    type Err = Error;

    /// `auto`, `tcx` or `clsact`.
    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Auto, Self::Tcx, Self::Clsact]
            .into_iter()
            .find(|hook| hook.to_string() == text)
            .ok_or_else(|| Error::Parse {
                input: text.to_owned(),
                expected: "a tc hook: `auto`, `tcx` or `clsact`",
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_have_a_text_form() {
        for text in ["auto", "tcx", "clsact"] {
            assert_eq!(text.parse::<TcHook>().unwrap().to_string(), text);
        }
        assert!("tc".parse::<TcHook>().is_err());
    }
}
