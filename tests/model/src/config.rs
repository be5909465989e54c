//! What is chosen when a balancer is loaded.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

/// How packets are wrapped for their reals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP in IP.
    Ipip,
    /// Generic UDP encapsulation, variant 1.
    Gue,
}

/// The optional parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The client's prefix may choose the real.
    pub source_routing: bool,
    /// Tunnels may end here.
    pub inline_decap: bool,
    /// Of tunnels to addresses that nobody has named, only those to this host's own end here.
    pub strict_destination: bool,
    /// Frames that are too long are answered.
    pub icmp_too_big: bool,
    /// TCP is routed by an option.
    pub tcp_server_id: bool,
    /// UDP is routed by an id at its start.
    pub udp_stable_routing: bool,
    /// There is a table of flows that the host application fills.
    pub global_flow_table: bool,
    /// Packets for a real on this host are handed to its stack.
    pub local_delivery: bool,
    /// The host application may be told of events.
    pub introspection: bool,
}

/// Which flows are remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tracking {
    /// All.
    #[default]
    All,
    /// Those in slots of the ring that have changed hands.
    Changed,
}

/// The settings. A MAC address is six bytes as in a frame.
#[derive(Clone, Debug)]
pub struct Config {
    /// How packets are wrapped.
    pub encapsulation: Encapsulation,
    /// The optional parts that are on.
    pub features: Features,
    /// The longest frame that is forwarded, in bytes, Ethernet header included.
    pub max_frame: usize,
    /// Limits of VIPs, which the flow hash starts from.
    pub max_vips: u32,
    /// Slots of a ring.
    pub ring_size: u32,
    /// What the flow hash starts from instead.
    pub hash_seed: Option<u64>,
    /// The router's address.
    pub gateway_mac: [u8; 6],
    /// The router's for reals with IPv6 addresses.
    pub gateway_mac_v6: [u8; 6],
    /// Whether reals have next hops of their own ([`Tables::hops`](crate::Tables::hops)).
    pub next_hops: bool,
    /// The interface's own addresses; none: it is attached to none.
    pub own_macs: Vec<[u8; 6]>,
    /// This host's own address of each family: the outer source of GUE.
    pub source_v4: Option<Ipv4Addr>,
    /// The same of IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// The UDP port of GUE.
    pub gue_port: u16,
    /// The first half of the outer source of IP in IP.
    pub ipip_source_v4: [u8; 2],
    /// The first three quarters of it.
    pub ipip_source_v6: [u8; 12],
    /// Whether outer IPv4 headers inherit the inner packet's DF bit.
    pub outer_dont_fragment: bool,
    /// Which flows are remembered.
    pub tracking: Tracking,
    /// For how long a TCP connection may be silent before it is given up, in milliseconds.
    pub flow_idle_timeout: u64,
    /// For how long an entry of a UDP flow counts, in milliseconds.
    pub udp_timeout: u64,
    /// Whether SYNs of VIPs are counted.
    pub counts_syns: bool,
    /// How many pairs of a VIP and a real are counted.
    pub max_vip_reals: usize,
    /// Whether nobody has given a sign of life for longer than is allowed.
    pub orphaned: bool,
    /// New flows a second and CPU from which on the flood guard acts.
    pub flood_threshold: u64,
    /// Whether this CPU has a flow table of its own.
    pub has_flow_table: bool,
    /// Whether this CPU has a global flow table of its own.
    pub has_global_table: bool,
}
