//! Choices: encapsulation, flow tables, next hops, and the hooks of tc programs.

use std::fmt;
use std::str::FromStr;

use super::Family;
use super::MacAddr;
use crate::error::Error;

/// How packets are wrapped for the reals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encapsulation {
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213). The default.
    #[default]
    Ipip,
    /// Generic UDP encapsulation, variant 1 (draft-ietf-intarea-gue-09, section 4): UDP, directly
    /// followed by the inner packet. It needs an outer source address of each family that reals
    /// have.
    Gue,
}

impl Encapsulation {
    /// The bytes that a packet gains on its way to a real of a family.
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
                expected: "an encapsulation (`ipip` or `gue`)",
            }),
        }
    }
}

/// The longest frame that is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MaxFrame {
    /// What the attached interfaces can send, less the encapsulation: follows their smallest MTU.
    /// The default. It is 1,514 bytes while nothing is attached, for packets of root programs, and
    /// where you attach the program yourself.
    #[default]
    Auto,
    /// A number of bytes, with the Ethernet header and before encapsulation.
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

/// Whether routers may fragment the outer IPv4 packets on their way to the reals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OuterDontFragment {
    /// Always, as in Katran: the DF bit is clear and the identification is 0. The default.
    ///
    /// For networks with room for the outer header, where nothing is fragmented: fragments of
    /// packets with the same identification can be reassembled wrongly.
    #[default]
    Clear,
    /// As the inner packet: the outer packet takes its DF bit. An IPv6 packet counts as having it
    /// set. If it is clear, identifications differ between packets.
    ///
    /// With DF set a router drops packets that are too long for its next link. Its ICMP error goes
    /// to the outer source, where with IP in IP there is no host, so `max_frame` must be right.
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
                expected: "a treatment of the DF bit (`clear` or `inherit`)",
            }),
        }
    }
}

/// Which flows are remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlowTracking {
    /// All, as in Katran: each packet looks into the flow table.
    All,
    /// Only flows whose real the ring would now choose differently. A packet looks into the flow
    /// table only if its slot is unsettled: the slot's real has changed, and flows from before the
    /// change may still be alive.
    ///
    /// In an unsettled slot, a flow without an entry goes to the base, the real that the slot had
    /// before the change, while that real exists. Connections therefore survive a table that is too
    /// small for all flows. The balancer remembers all flows of VIPs that may place them other than
    /// by the ring: `QUIC`, `UDP_STABLE_ROUTING`, `SRC_ROUTING`, `GLOBAL_LRU`,
    /// `UDP_FLOW_MIGRATION`, and TCP while [`TCP_SERVER_ID`](crate::Features::TCP_SERVER_ID) is on.
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
                expected: "a choice of flows to remember (`all` or `changed`)",
            }),
        }
    }
}

/// The flow table type.
///
/// Both types have one table for each forwarding CPU, on that CPU's NUMA node, and a small fallback
/// table that all other CPUs share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlowTableKind {
    /// Sets of eight entries in a plain array, without locks: 32 bytes a flow. The default.
    ///
    /// A hash with random keys, drawn at load, assigns every flow to one set. In a full set a new
    /// flow replaces the least recently used entry (to a tick of the kernel's clock, 1 to 10 ms).
    /// There are two entries for each flow of [`flow_table_size`](crate::Builder::flow_table_size),
    /// so that few sets are full while the table is not.
    ///
    /// An entry holds a fingerprint of its flow, the real, and the time of its last use. It answers
    /// questions about a given flow, but does not reveal the flow's addresses or VIP, so entries
    /// cannot be listed.
    #[default]
    SetAssociative,
    /// The kernel's LRU hash map: 112 to 128 bytes a flow.
    ///
    /// The kernel evicts approximately the least recently used entry of the whole table, and takes
    /// a lock to insert. An entry holds the flow's addresses and ports, so entries can be listed.
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
                expected: "a flow table type (`set-associative` or `kernel-lru`)",
            }),
        }
    }
}

/// The router that encapsulated frames go to.
///
/// ```
/// use katran::Gateway;
/// use katran::Katran;
///
/// let found = Katran::builder().gateway(Gateway::Auto);
/// let fixed = Katran::builder().gateway(Gateway::Mac("0a:00:00:00:00:fe".parse()?));
/// # Ok::<(), katran::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gateway {
    /// The station with this MAC address.
    Mac(MacAddr),
    /// Discovered in the kernel's routing and neighbour tables, for each address family, and
    /// followed as they change: the router that leads to the first real behind one, or else that of
    /// the default route. A family without one uses the other's. Permanent neighbour entries are
    /// used and left alone.
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

/// A real's health, for a VIP.
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

/// Where encapsulated frames go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NextHops {
    /// To one router for all reals of a family, through the interface that the packet arrived on.
    /// The default.
    #[default]
    Gateway,
    /// To each real's own next hop in the kernel's routing and neighbour tables, through the
    /// interface that the packet arrived on: reals on the same segment get frames at their own MAC
    /// address, others through their routers. For networks without a router between balancer and
    /// reals.
    PerReal,
    /// As `PerReal`, but through the interface that leads to the real. That interface needs native
    /// XDP, and some drivers send only if it has an XDP program (veth: if its peer has one).
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
                expected: "a choice of next hops (`gateway`, `per-real` or `redirect`)",
            })
    }
}

/// The outer sources of probes with IP in IP. (GUE always uses the host's own addresses.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProbeSource {
    /// The host's own addresses, [`Builder::source_v4`](crate::Builder::source_v4) and
    /// [`source_v6`](crate::Builder::source_v6), as in Katran.
    #[default]
    Own,
    /// Addresses made up for each flow, as for clients' packets: a network that blocks those
    /// packets blocks the probes, too.
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
                expected: "a source of probes (`own` or `made-up`)",
            })
    }
}

/// How a tc program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TcHook {
    /// [`Tcx`](Self::Tcx) where the kernel has it, else [`Clsact`](Self::Clsact).
    #[default]
    Auto,
    /// A tcx link, which ends with the process. It runs after the tcx programs attached earlier,
    /// and before all filters. Needs Linux 6.6.
    Tcx,
    /// A filter of the clsact queueing discipline, which the library adds if it is missing. For
    /// hosts with tc programs that must run first, by a lower priority number.
    ///
    /// A process that is killed leaves the filter, and the discipline if it added that. The next
    /// process recognises the filter by the program's name and takes it over, even if its owner is
    /// still running: of two processes on one interface the later one gets the filter.
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
                expected: "a tc hook (`auto`, `tcx` or `clsact`)",
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
