//! The configuration of a load.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

/// The encapsulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP in IP.
    Ipip,
    /// Generic UDP encapsulation, variant 1.
    Gue,
}

/// The optional features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Source routing.
    pub source_routing: bool,
    /// Tunnels may end here.
    pub inline_decap: bool,
    /// Of tunnels to unlisted addresses, only those to this host's own end here.
    pub strict_destination: bool,
    /// Frames that are too long are answered.
    pub icmp_too_big: bool,
    /// A TCP option may name the real.
    pub tcp_server_id: bool,
    /// An id at a datagram's start may name the real.
    pub udp_stable_routing: bool,
    /// The host application fills a table of flows.
    pub global_flow_table: bool,
    /// Packets for a real on this host go to its stack.
    pub local_delivery: bool,
    /// The host application may receive events.
    pub introspection: bool,
}

/// Which flows are remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tracking {
    /// All.
    #[default]
    All,
    /// Those in slots that have changed.
    Changed,
}

/// The settings. A MAC address is six bytes as in a frame.
#[derive(Clone, Debug)]
pub struct Config {
    /// The encapsulation.
    pub encapsulation: Encapsulation,
    /// The enabled features.
    pub features: Features,
    /// The longest frame that is forwarded, in bytes, with its Ethernet header.
    pub max_frame: usize,
    /// The limit of VIPs, which seeds the flow hash.
    pub max_vips: u32,
    /// Slots of a ring.
    pub ring_size: u32,
    /// The seed of the flow hash instead.
    pub hash_seed: Option<u64>,
    /// The router's MAC address.
    pub gateway_mac: [u8; 6],
    /// The router's MAC address for IPv6 reals.
    pub gateway_mac_v6: [u8; 6],
    /// Whether reals have their own next hops ([`Tables::hops`](crate::Tables::hops)).
    pub next_hops: bool,
    /// The interface's MAC addresses; none: it is not attached.
    pub own_macs: Vec<[u8; 6]>,
    /// This host's IPv4 address: the outer source of GUE.
    pub source_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// The UDP port of GUE.
    pub gue_port: u16,
    /// The first half of IP in IP's outer source.
    pub ipip_source_v4: [u8; 2],
    /// The first three quarters of IP in IP's outer source.
    pub ipip_source_v6: [u8; 12],
    /// Whether outer IPv4 headers inherit the inner packet's DF bit.
    pub outer_dont_fragment: bool,
    /// Which flows are remembered.
    pub tracking: Tracking,
    /// How long a TCP connection may be silent before it is given up, in milliseconds.
    pub flow_idle_timeout: u64,
    /// How long an entry of a UDP flow counts, in milliseconds.
    pub udp_timeout: u64,
    /// Whether SYNs of VIPs are counted.
    pub counts_syns: bool,
    /// How many pairs of VIP and real are counted.
    pub max_vip_reals: usize,
    /// Whether the last sign of life is older than the limit.
    pub orphaned: bool,
    /// New flows a second on a CPU above which the flood guard acts.
    pub flood_threshold: u64,
    /// Whether this CPU has its own flow table.
    pub has_flow_table: bool,
    /// Whether this CPU has its own global flow table.
    pub has_global_table: bool,
}
