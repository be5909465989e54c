//! The settings of a balancer, as its user gives them.
//!
//! Setters take anything; all settings are checked together when the balancer is loaded
//! (`validate.rs`), so the order in which they are given does not matter.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::time::Duration;

use super::Features;
use crate::types::Encapsulation;
use crate::types::FlowTableKind;
use crate::types::Gateway;
use crate::types::HashFunction;
use crate::types::MacAddr;
use crate::types::NextHops;
use crate::types::TcHook;

/// The settings a balancer is loaded with.
///
/// Only [`gateway`](Self::gateway) has no default. A setting outside its range is
/// reported when the balancer is loaded, as [`Error::InvalidConfig`](crate::Error::InvalidConfig)
/// or, for an address, [`Error::InvalidAddress`](crate::Error::InvalidAddress); nothing has been
/// loaded then.
///
/// Hosts behind one ECMP group choose the same real for a flow only if their `max_vips` and
/// `ring_size` are the same; the defaults are those of Katran.
///
/// ```
/// use katran::Builder;
/// use katran::MacAddr;
///
/// let builder = Builder::new()
///     .gateway_mac(MacAddr::new([0x0a, 0, 0, 0, 0, 0xfe]))
///     .flow_table_size(100_000);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "nothing is loaded until `load` is called"]
#[doc(alias = "KatranConfig")]
pub struct Builder {
    pub(super) gateway: Option<Gateway>,
    pub(super) gateway_mac_v6: Option<MacAddr>,
    pub(super) next_hops: NextHops,
    pub(super) encapsulation: Encapsulation,
    pub(super) features: Features,
    pub(super) source_v4: Option<Ipv4Addr>,
    pub(super) source_v6: Option<Ipv6Addr>,
    pub(super) ipip_source_v4: Ipv4Addr,
    pub(super) ipip_source_v6: Ipv6Addr,
    pub(super) gue_port: u16,
    pub(super) max_frame: u32,
    pub(super) frags: bool,
    pub(super) max_vips: u32,
    pub(super) max_reals: u32,
    pub(super) ring_size: u32,
    pub(super) hash_function: HashFunction,
    pub(super) flow_table: FlowTableKind,
    pub(super) flow_table_size: u64,
    pub(super) forwarding_cpus: Option<Vec<u32>>,
    pub(super) numa_nodes: Option<Vec<u32>>,
    pub(super) flood_threshold: u32,
    pub(super) udp_timeout: Duration,
    pub(super) global_flow_table_size: u32,
    pub(super) max_source_routes: u32,
    pub(super) max_decap: u32,
    pub(super) max_server_ids: u32,
    pub(super) healthcheck_interface: Option<String>,
    pub(super) healthcheck_priority: u16,
    pub(super) healthcheck_max_packet: u32,
    pub(super) healthcheck_hook: TcHook,
    pub(super) event_buffer: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            gateway: None,
            gateway_mac_v6: None,
            next_hops: NextHops::Gateway,
            encapsulation: Encapsulation::Ipip,
            features: Features::default(),
            source_v4: None,
            source_v6: None,
            ipip_source_v4: Ipv4Addr::new(172, 16, 0, 0),
            ipip_source_v6: Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0),
            gue_port: 6080,
            max_frame: 1514,
            frags: false,
            max_vips: 512,
            max_reals: 4096,
            ring_size: 65_537,
            hash_function: HashFunction::MaglevV2,
            flow_table: FlowTableKind::SetAssociative,
            flow_table_size: 8_000_000,
            forwarding_cpus: None,
            numa_nodes: None,
            flood_threshold: 125_000,
            udp_timeout: Duration::from_secs(30),
            global_flow_table_size: 100_000,
            max_source_routes: 3_000_000,
            max_decap: 6,
            max_server_ids: 1 << 24,
            healthcheck_interface: None,
            healthcheck_priority: 2307,
            healthcheck_max_packet: 0,
            healthcheck_hook: TcHook::Auto,
            event_buffer: 1 << 20,
        }
    }
}

impl Builder {
    /// All settings at their defaults; the gateway's MAC address is still to be given.
    pub fn new() -> Self {
        Self::default()
    }

    /// The Ethernet address of the router that every encapsulated frame is sent to.
    ///
    /// Required, or [`gateway`](Self::gateway): there is no default. Range: a unicast address.
    #[doc(alias = "defaultMac")]
    pub fn gateway_mac(self, mac: MacAddr) -> Self {
        self.gateway(Gateway::Mac(mac))
    }

    /// The router that every encapsulated frame is sent to: by its Ethernet address, or
    /// [`Gateway::Auto`] to have it found out and followed. In the TOML form: `gateway_mac`.
    ///
    /// It is looked for in the network namespace of the thread that attaches the balancer first.
    pub fn gateway(mut self, gateway: Gateway) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// The Ethernet address of the router for reals with IPv6 addresses, if it is another one than
    /// for those with IPv4 addresses.
    ///
    /// Default: that of [`gateway_mac`](Self::gateway_mac). Range: a unicast address.
    pub fn gateway_mac_v6(mut self, mac: MacAddr) -> Self {
        self.gateway_mac_v6 = Some(mac);
        self
    }

    /// To whom encapsulated frames are sent. Default: [`NextHops::Gateway`], which is the fastest.
    ///
    /// With the others, an Ethernet address that was given by [`gateway_mac`](Self::gateway_mac) is
    /// that of the routers; it also serves while a real's own is not known. Without one
    /// ([`Gateway::Auto`]) such packets are dropped and counted as `next_hop_unknown`.
    pub fn next_hops(mut self, next_hops: NextHops) -> Self {
        self.next_hops = next_hops;
        self
    }

    /// How packets travel to the reals.
    ///
    /// Default: [`Encapsulation::Ipip`].
    pub fn encapsulation(mut self, encapsulation: Encapsulation) -> Self {
        self.encapsulation = encapsulation;
        self
    }

    /// The optional parts of the program: exactly these are on.
    ///
    /// Default: [`Features::default`]. Range: those that say "Not in this
    /// version" are refused with [`Error::Unsupported`](crate::Error::Unsupported).
    pub fn features(mut self, features: Features) -> Self {
        self.features = features;
        self
    }

    /// This host's own IPv4 address: the outer source of GUE packets, and what
    /// [`Features::STRICT_DESTINATION`] goes by.
    ///
    /// Default: none; then GUE cannot be used for IPv4 reals. Range: an address of one host.
    /// [`Katran::set_source`](crate::Katran::set_source) changes it later.
    #[doc(alias = "katranSrcV4")]
    pub fn source_v4(mut self, address: Ipv4Addr) -> Self {
        self.source_v4 = Some(address);
        self
    }

    /// This host's own IPv6 address: the outer source of GUE packets, and what
    /// [`Features::STRICT_DESTINATION`] goes by.
    ///
    /// Default: none; then GUE cannot be used for IPv6 reals. Range: an address of one host.
    /// [`Katran::set_source`](crate::Katran::set_source) changes it later.
    #[doc(alias = "katranSrcV6")]
    pub fn source_v6(mut self, address: Ipv6Addr) -> Self {
        self.source_v6 = Some(address);
        self
    }

    /// The first address of the /16 prefix that IPIP packets to IPv4 reals come from.
    ///
    /// The last 16 bits are made up for each flow, so that a backend's receive-side scaling
    /// spreads flows over its queues. A network with source filtering needs a prefix of its own.
    ///
    /// Default: 172.16.0.0, which is what Katran uses. Range: the first address of a /16 prefix
    /// (no other length) of host addresses.
    #[doc(alias = "IPIP_V4_PREFIX")]
    pub fn ipip_source_v4(mut self, first: Ipv4Addr) -> Self {
        self.ipip_source_v4 = first;
        self
    }

    /// The first address of the /96 prefix that IPIP packets to IPv6 reals come from.
    ///
    /// The last 32 bits are made up for each flow, as with
    /// [`ipip_source_v4`](Self::ipip_source_v4).
    ///
    /// Default: 100::, which is what Katran uses. Range: the first address of a /96 prefix (no
    /// other length) of host addresses.
    #[doc(alias = "IPIP_V6_PREFIX1")]
    pub fn ipip_source_v6(mut self, first: Ipv6Addr) -> Self {
        self.ipip_source_v6 = first;
        self
    }

    /// The UDP destination port of GUE packets.
    ///
    /// Default: 6080. Range: 1 to 65,535.
    #[doc(alias = "GUE_DPORT")]
    pub fn gue_port(mut self, port: u16) -> Self {
        self.gue_port = port;
        self
    }

    /// The longest frame that is forwarded, in bytes, Ethernet header included and before
    /// encapsulation.
    ///
    /// Longer ones are answered with an ICMP error that names `max_frame` - 14 as the MTU, or
    /// dropped without [`Features::ICMP_TOO_BIG`].
    ///
    /// Default: 1514. Range: 590 (an MTU of 576) to 65,549 (the longest IPv4 packet).
    #[doc(alias = "MAX_PCKT_SIZE")]
    pub fn max_frame(mut self, bytes: u32) -> Self {
        self.max_frame = bytes;
        self
    }

    /// Whether the program accepts frames that the driver keeps in several buffers.
    ///
    /// Needed for native mode on interfaces with a large MTU. Default: off.
    pub fn frags(mut self, on: bool) -> Self {
        self.frags = on;
        self
    }

    /// The largest number of VIPs. It is part of the flow hash.
    ///
    /// Default: 512. Range: 1 to 65,535. **Hosts behind one ECMP group must agree**: any other
    /// number than Katran's leaves a Katran fleet.
    #[doc(alias = "maxVips")]
    pub fn max_vips(mut self, vips: u32) -> Self {
        self.max_vips = vips;
        self
    }

    /// The largest number of reals, over all VIPs; each address counts once.
    ///
    /// Default: 4096. Range: 1 to 65,535.
    #[doc(alias = "maxReals")]
    pub fn max_reals(mut self, reals: u32) -> Self {
        self.max_reals = reals;
        self
    }

    /// The number of slots in each VIP's ring. It is part of the flow hash.
    ///
    /// Default: 65,537. Range: a prime, 3 to 16,777,213. **Hosts behind one ECMP group must
    /// agree**: any other size than Katran's leaves a Katran fleet. Shares follow weights the
    /// better the more slots there are for each real; 100 for each is a good rule.
    #[doc(alias = "chRingSize")]
    pub fn ring_size(mut self, slots: u32) -> Self {
        self.ring_size = slots;
        self
    }

    /// How the rings of VIPs are filled that are added without a choice of their own.
    ///
    /// Default: [`HashFunction::MaglevV2`]. Mixed with Katran hosts it must be what they use.
    #[doc(alias = "hashFunction")]
    pub fn hash_function(mut self, function: HashFunction) -> Self {
        self.hash_function = function;
        self
    }

    /// How the flow table is built. Default: [`FlowTableKind::SetAssociative`].
    pub fn flow_table(mut self, kind: FlowTableKind) -> Self {
        self.flow_table = kind;
        self
    }

    /// The number of flows that are remembered, over all forwarding CPUs.
    ///
    /// Each CPU has a table of its own with an equal part, rounded up.
    ///
    /// Default: 8,000,000. Range: at least 1, and at most 134,217,728 for each forwarding CPU.
    #[doc(alias = "LruSize")]
    pub fn flow_table_size(mut self, flows: u64) -> Self {
        self.flow_table_size = flows;
        self
    }

    /// The CPUs that receive the interface's packets; each gets a flow table.
    ///
    /// A packet that arrives on another CPU is forwarded too, with a small table that all such
    /// CPUs share.
    ///
    /// Default: all CPUs that are online. Range: at least one, none twice, each one that the
    /// kernel could ever bring up.
    #[doc(alias = "forwardingCores")]
    pub fn forwarding_cpus(mut self, cpus: impl IntoIterator<Item = u32>) -> Self {
        self.forwarding_cpus = Some(cpus.into_iter().collect());
        self
    }

    /// The NUMA node on which each forwarding CPU's flow table lies, in the order of
    /// [`forwarding_cpus`](Self::forwarding_cpus).
    ///
    /// Default: each CPU's own node. Range: as many as there are forwarding CPUs, each a node
    /// that is online.
    #[doc(alias = "numaNodes")]
    pub fn numa_nodes(mut self, nodes: impl IntoIterator<Item = u32>) -> Self {
        self.numa_nodes = Some(nodes.into_iter().collect());
        self
    }

    /// New flows per second and CPU above which further ones are forwarded but not remembered.
    ///
    /// It keeps a flood of made-up flows from pushing real ones out of the flow table.
    ///
    /// Default: 125,000. Range: 1 to 4,294,967,295 (never).
    #[doc(alias = "MAX_CONN_RATE")]
    pub fn flood_threshold(mut self, flows: u32) -> Self {
        self.flood_threshold = flows;
        self
    }

    /// How long a UDP flow is remembered without a packet.
    ///
    /// Default: 30 seconds. Range: 1 second to 1 day.
    #[doc(alias = "LRU_UDP_TIMEOUT")]
    pub fn udp_timeout(mut self, timeout: Duration) -> Self {
        self.udp_timeout = timeout;
        self
    }

    /// The number of flows in each CPU's global flow table.
    ///
    /// Default: 100,000. Range: 1 to 134,217,728. Used by
    /// [`Features::GLOBAL_FLOW_TABLE`] when it is on.
    #[doc(alias = "globalLruSize")]
    pub fn global_flow_table_size(mut self, flows: u32) -> Self {
        self.global_flow_table_size = flows;
        self
    }

    /// The largest number of source routes, for each address family.
    ///
    /// Default: 3,000,000. Range: 1 to 134,217,728. Used by [`Features::SOURCE_ROUTING`] when it
    /// is on.
    #[doc(alias = "maxLpmSrcSize")]
    pub fn max_source_routes(mut self, routes: u32) -> Self {
        self.max_source_routes = routes;
        self
    }

    /// The largest number of addresses whose tunnelled packets are unwrapped.
    ///
    /// Default: 6. Range: 1 to 65,535. Used by [`Features::INLINE_DECAP`] when it is on.
    #[doc(alias = "maxDecapDst")]
    pub fn max_decap(mut self, addresses: u32) -> Self {
        self.max_decap = addresses;
        self
    }

    /// The largest number of server ids.
    ///
    /// Default and largest: 16,777,216 (2^24). Range: from 1.
    #[doc(alias = "MAX_QUIC_REALS")]
    pub fn max_server_ids(mut self, ids: u32) -> Self {
        self.max_server_ids = ids;
        self
    }

    /// The interface through which health checks leave, where the tc program is attached that
    /// sends them through the tunnel.
    ///
    /// Default: none. Range: a valid interface name (1 to 15 bytes).
    ///
    /// It is attached with the balancer, in the network namespace of the thread that does that.
    /// Only what the host sends by this interface can be a probe, so the routes to the VIPs have to
    /// lead there; it must have Ethernet headers. Probes leave by the interface that the balancer
    /// was attached to first. They come from [`source_v4`](Self::source_v4) and
    /// [`source_v6`](Self::source_v6), also with IP in IP.
    #[doc(alias = "hcInterface")]
    pub fn healthcheck_interface(mut self, name: impl Into<String>) -> Self {
        self.healthcheck_interface = Some(name.into());
        self
    }

    /// The priority of the health checks' tc filter: filters with a lower number run first.
    ///
    /// Default: 2307. Range: 1 to 65,535. It counts with
    /// [`TcHook::Clsact`] only: a tcx link comes before all filters.
    #[doc(alias = "priority")]
    pub fn healthcheck_priority(mut self, priority: u16) -> Self {
        self.healthcheck_priority = priority;
        self
    }

    /// The longest packet that is sent as a probe, in bytes, Ethernet header included and before it
    /// is wrapped; longer ones are dropped and counted. Of a packet that is cut into segments later
    /// (GSO), the segments count.
    ///
    /// Default: 0, any length.
    #[doc(alias = "maxHcPacketSize")]
    pub fn healthcheck_max_packet(mut self, bytes: u32) -> Self {
        self.healthcheck_max_packet = bytes;
        self
    }

    /// By what mechanism health checks are attached. Default: [`TcHook::Auto`].
    pub fn healthcheck_hook(mut self, hook: TcHook) -> Self {
        self.healthcheck_hook = hook;
        self
    }

    /// Bytes of the buffer in which events wait for [`Katran::monitor`](crate::Katran::monitor); an
    /// event takes 160.
    ///
    /// Default: 1,048,576. Range: a power of two, 4,096 to 1,073,741,824. Used by
    /// [`Features::INTROSPECTION`] when it is on.
    pub fn event_buffer(mut self, bytes: u32) -> Self {
        self.event_buffer = bytes;
        self
    }
}
