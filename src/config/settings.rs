//! The table of settings. A row holds everything about a setting; `table.rs` makes the rest: the
//! setter of [`Builder`] with its documentation, the field of [`BalancerState`], the key of the
//! document, the range check, the default, and whether it changes after load.
//!
//! - `set` names setter and argument, and how the argument becomes the value.
//! - `default` is `(value)`, `(by text)` where `validate.rs` derives it from other settings, `none`
//!   or `required`.
//! - `range` is `any`, `(low to high)` or a text with a check.
//! - `key` is how the document writes the value.
//! - `changes` is `never` for a load-time setting and `live` for one that `Katran::set_live`
//!   changes (`katran/apply.rs`); `(live through between)` if it has an intermediate value, made of
//!   the previous and the wanted one, while the rest of a state changes.
//! - `constants` names the constants of `bpf/config.h` that the setting is written into at load:
//!   `(name)`, or with a function of the value and the kernel's tick.
//!
//! `docs/configuration.md` comes from this table, too: `make docs`.
//!
//! The file is longer than others, so that the settings are one table.

use std::convert::Infallible;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::constants::encapsulation;
use super::constants::flow_table_kind;
use super::constants::flow_tracking;
use super::constants::moment_shift;
use super::constants::prefix_v4;
use super::constants::prefix_v6;
use super::constants::ticks;
use super::constants::write_by;
use super::cpus::ForwardingCpu;
use super::features::Features;
use super::keys::AutoOr;
use super::keys::FirstOf;
use super::keys::Form;
use super::keys::Seconds;
use super::keys::Set;
use super::keys::Text;
use super::keys::Texts;
use super::keys::Whole;
use super::ranges::check_event_buffer;
use super::ranges::check_gateway;
use super::ranges::check_gateway_mac;
use super::ranges::check_idle_timeout;
use super::ranges::check_interface_name;
use super::ranges::check_ipip_source_v4;
use super::ranges::check_ipip_source_v6;
use super::ranges::check_max_frame;
use super::ranges::check_orphan_limit;
use super::ranges::check_prefixes;
use super::ranges::check_ring_size;
use super::ranges::check_source;
use super::ranges::check_udp_timeout;
use super::ranges::checked;
use super::ranges::missing;
use super::ranges::narrow;
use super::ranges::within;
#[cfg(feature = "serde")]
use super::read::Value;
#[cfg(feature = "serde")]
use super::read::Wrong;
#[cfg(feature = "serde")]
use super::read::in_range;
#[cfg(feature = "serde")]
use super::read::read_as;
#[cfg(all(test, feature = "serde"))]
use super::table::Row;
use super::table::settings;
use crate::error::Result;
use crate::maps::max_server_id_chunks;
use crate::skel::katran::types;
use crate::types::Encapsulation;
use crate::types::FlowTableKind;
use crate::types::FlowTracking;
use crate::types::Gateway;
use crate::types::HashFunction;
use crate::types::MacAddr;
use crate::types::MaxFrame;
use crate::types::NextHops;
use crate::types::OuterDontFragment;
use crate::types::Prefix;
use crate::types::ProbeSource;
use crate::types::TcHook;

/// The settings a balancer is loaded with.
///
/// Only [`gateway`](Self::gateway) has no default. Loading reports a setting outside its range as
/// [`Error::InvalidConfig`](crate::Error::InvalidConfig) or, for an address,
/// [`Error::InvalidAddress`](crate::Error::InvalidAddress), and loads nothing then.
///
/// Hosts behind one ECMP group choose the same real for a flow only if they have the same
/// `ring_size`, and the same `max_vips` or `hash_seed`. The defaults are Katran's.
///
/// ```
/// use katran::Builder;
/// use katran::MacAddr;
///
/// let builder = Builder::new()
///     .gateway_mac(MacAddr::new([0x0a, 0, 0, 0, 0, 0xfe]))
///     .flow_table_size(100_000);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "nothing is loaded until `load` is called"]
#[doc(alias = "KatranConfig")]
pub struct Builder {
    given: BalancerState,
    /// The directory to pin it in, which no document contains.
    pub(super) pin: Option<PathBuf>,
    /// How long to wait for its owner.
    pub(super) take_over: Option<Duration>,
}

/// # A new builder
impl Builder {
    /// All settings at their defaults; the gateway is still missing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the router that every encapsulated frame goes to, by its MAC address: short for
    /// [`gateway`](Self::gateway) with [`Gateway::Mac`].
    #[doc(alias = "defaultMac")]
    pub fn gateway_mac(self, mac: MacAddr) -> Self {
        self.gateway(Gateway::Mac(mac))
    }
}

settings! {
    /// The router that every encapsulated frame goes to: its MAC address, or [`Gateway::Auto`] to
    /// discover and follow it. In the TOML form: `gateway_mac`.
    ///
    /// With [`Gateway::Auto`] the library looks in the network namespace of the thread that first
    /// attaches the balancer. [`gateway_mac`](Self::gateway_mac) is short for a MAC address.
    gateway_mac: Gateway {
        set: gateway(gateway: Gateway) = gateway,
        default: required,
        range: ("an address of one station, or `auto`", |gateway| check_gateway(*gateway)),
        unit: "Ethernet address",
        key: text,
        changes: live,
    }

    /// The router's MAC address for IPv6 reals, if it differs from that for IPv4 reals.
    gateway_mac_v6: MacAddr {
        set: gateway_mac_v6(mac: MacAddr) = mac,
        default: none,
        range: ("an address of one station", |mac| check_gateway_mac(*mac)),
        unit: "Ethernet address",
        key: text,
        changes: live,
    }

    /// Where encapsulated frames go: to the gateway, or to each real's own next hop.
    /// [`NextHops::Gateway`] is the fastest.
    ///
    /// With the others, the address set by [`gateway_mac`](Self::gateway_mac) is the routers', and
    /// also serves while a real's own is unknown. Without one ([`Gateway::Auto`]) such packets are
    /// dropped and counted as `next_hop_unknown`.
    next_hops: NextHops {
        set: next_hops(next_hops: NextHops) = next_hops,
        default: (NextHops::Gateway, "`gateway`"),
        range: ("`gateway`, `per-real` or `redirect`"),
        unit: "choice",
        key: text,
        changes: never,
        constants: (
            next_hops = |hops, _| (*hops != NextHops::Gateway).into(),
            redirect = |hops, _| (*hops == NextHops::Redirect).into(),
        ),
    }

    /// How packets are wrapped for the reals.
    encapsulation: Encapsulation {
        set: encapsulation(encapsulation: Encapsulation) = encapsulation,
        default: (Encapsulation::Ipip, "`ipip`"),
        range: ("`ipip` or `gue`"),
        unit: "choice",
        key: text,
        changes: never,
        constants: (encapsulation = |kind, _| encapsulation(*kind)),
    }

    /// Whether outer IPv4 headers inherit the DF bit of the inner packet.
    outer_dont_fragment: OuterDontFragment {
        set: outer_dont_fragment(bit: OuterDontFragment) = bit,
        default: (OuterDontFragment::Clear, "`clear`, as in Katran"),
        range: ("`clear` or `inherit`"),
        unit: "choice",
        key: text,
        changes: never,
        constants: (
            inherit_dont_fragment = |bit, _| (*bit == OuterDontFragment::Inherit).into(),
        ),
    }

    /// The optional parts of the program: exactly these are on.
    ///
    /// With `inline-decap` name `strict-destination`, too. **Without it the program unwraps every
    /// tunnel that reaches this host**: see [`Features::STRICT_DESTINATION`].
    ///
    /// Features marked "Not in this version" cause
    /// [`Error::Unsupported`](crate::Error::Unsupported). [`Katran::reload`](crate::Katran::reload)
    /// changes features later.
    features: Features {
        set: features(features: Features) = features,
        default: (Features::default(), "`strict-destination`, `icmp-too-big` and `local-delivery`"),
        range: ("those of this version", |features| features.check()),
        unit: "features",
        key: set,
        // New features are on before anything needs them, the others until nothing does.
        changes: (live through |before: &Features, wanted: &Features| *before | *wanted),
        constants: (features = |on, _| on.bits()),
    }

    /// This host's own IPv4 address: the outer source of GUE packets, and the address that
    /// [`Features::STRICT_DESTINATION`] compares with.
    ///
    /// GUE to IPv4 reals requires it.
    /// [`GatewaysMut::set_source`](crate::attachments::GatewaysMut::set_source) changes it later.
    #[doc(alias = "katranSrcV4")]
    source_v4: Ipv4Addr {
        set: source_v4(address: Ipv4Addr) = address,
        default: none,
        range: ("an address of one host", |address| check_source((*address).into())),
        unit: "address",
        key: text,
        changes: live,
    }

    /// This host's own IPv6 address: the outer source of GUE packets, and the address that
    /// [`Features::STRICT_DESTINATION`] compares with.
    ///
    /// GUE to IPv6 reals requires it.
    /// [`GatewaysMut::set_source`](crate::attachments::GatewaysMut::set_source) changes it later.
    #[doc(alias = "katranSrcV6")]
    source_v6: Ipv6Addr {
        set: source_v6(address: Ipv6Addr) = address,
        default: none,
        range: ("an address of one host", |address| check_source((*address).into())),
        unit: "address",
        key: text,
        changes: live,
    }

    /// The first address of the /16 prefix for the outer sources of IPIP packets to IPv4 reals.
    ///
    /// The program makes up the last 16 bits for each flow, so that a backend's receive-side
    /// scaling spreads flows over its queues. A network that filters by source needs a dedicated
    /// prefix.
    #[doc(alias = "IPIP_V4_PREFIX")]
    ipip_source_v4: Ipv4Addr {
        set: ipip_source_v4(first: Ipv4Addr) = first,
        default: (Ipv4Addr::new(172, 16, 0, 0), "172.16.0.0, as in Katran"),
        range: ("the first address of a /16 prefix (no other length) of host addresses", |first| check_ipip_source_v4(*first)),
        unit: "prefix",
        key: (prefix 16),
        changes: never,
        constants: (ipip_source_v4 = |first, _| prefix_v4(*first)),
    }

    /// The first address of the /96 prefix for the outer sources of IPIP packets to IPv6 reals.
    ///
    /// The program makes up the last 32 bits for each flow, as with
    /// [`ipip_source_v4`](Self::ipip_source_v4).
    #[doc(alias = "IPIP_V6_PREFIX1")]
    ipip_source_v6: Ipv6Addr {
        set: ipip_source_v6(first: Ipv6Addr) = first,
        default: (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), "100::, as in Katran"),
        range: ("the first address of a /96 prefix (no other length) of host addresses", |first| check_ipip_source_v6(*first)),
        unit: "prefix",
        key: (prefix 96),
        changes: never,
        constants: (ipip_source_v6 = |first, _| prefix_v6(*first)),
    }

    /// The UDP destination port of GUE packets.
    #[doc(alias = "GUE_DPORT")]
    gue_port: u16 {
        set: gue_port(port: u16) = port,
        default: (6080),
        range: (1 to 65_535),
        unit: "UDP port",
        key: plain,
        changes: never,
        constants: (gue_port),
    }

    /// The longest frame that is forwarded, in bytes, with the Ethernet header and before
    /// encapsulation.
    ///
    /// The program answers longer ones with an ICMP error that names `max_frame` - 14 as the MTU
    /// (for IPv6 at least 1,280), or drops them without [`Features::ICMP_TOO_BIG`].
    ///
    /// [`MaxFrame::Auto`] follows the MTU of the interface that the balancer is attached to, the
    /// smallest if there are several; interfaces that packets are only redirected to
    /// ([`NextHops::Redirect`]) do not count. It leaves 20 bytes for the outer header, 40 once
    /// there is an IPv6 real, and 8 more with GUE. A number stays as it is; 590 is an MTU of 576,
    /// and 65,549 the longest IPv4 packet.
    #[doc(alias = "MAX_PCKT_SIZE")]
    max_frame: MaxFrame {
        set: max_frame(bytes: impl Into<MaxFrame>) = bytes.into(),
        default: (MaxFrame::Auto, "`auto`"),
        range: ("`auto`, or 590 to 65_549", |longest| check_max_frame(*longest)),
        unit: "bytes",
        key: auto,
        changes: never,
    }

    /// Whether the program accepts frames that the driver keeps in several buffers.
    ///
    /// Native mode requires it on interfaces with a large MTU.
    frags: bool {
        set: frags(on: bool) = on,
        default: (false, "off"),
        range: any,
        unit: "on or off",
        key: plain,
        changes: never,
        constants: (frags),
    }

    /// The largest number of VIPs. It is part of the flow hash.
    ///
    /// **Hosts behind one ECMP group must agree.** A Katran fleet requires Katran's number.
    #[doc(alias = "maxVips")]
    max_vips: u32 => u16 {
        set: max_vips(vips: u32) = vips,
        default: (512),
        range: (1 to 65_535),
        unit: "VIPs",
        key: plain,
        changes: never,
        constants: (max_vips),
    }

    /// The largest number of reals, over all VIPs; each address counts once.
    ///
    /// More than 32,767 require `flow_tracking = "all"`.
    #[doc(alias = "maxReals")]
    max_reals: u32 => u16 {
        set: max_reals(reals: u32) = reals,
        default: (4096),
        range: (1 to 65_535),
        unit: "reals",
        key: plain,
        changes: never,
        constants: (max_reals),
    }

    /// The number of slots in each VIP's ring. It is part of the flow hash.
    ///
    /// **Hosts behind one ECMP group must agree.** A Katran fleet requires Katran's size. The more
    /// slots each real has, the closer its share comes to its weight; 100 for each is a good rule.
    #[doc(alias = "chRingSize")]
    ring_size: u32 {
        set: ring_size(slots: u32) = slots,
        default: (65_537),
        range: ("a prime, 3 to 16_777_213", |slots| check_ring_size(*slots)),
        unit: "slots",
        key: plain,
        changes: never,
        constants: (ring_size),
    }

    /// A secret seed of the flow hash, instead of `max_vips` and `ring_size`, which are public:
    /// without it anyone can compute flows that all go to one real.
    ///
    /// **Hosts behind one ECMP group must agree.** Katran has no such setting, so all hosts must
    /// run this crate. The seed is part of the state and the document, so keep these secret, too.
    ///
    /// It deters and is not cryptography: for IPv4 it amounts to 32 bits of seed, so an attacker
    /// who sees where enough flows go finds an equivalent seed by 2^32 tries.
    hash_seed: u64 {
        set: hash_seed(seed: u64) = seed,
        default: none,
        range: (0 to 9_223_372_036_854_775_807),
        unit: "number",
        key: whole,
        changes: never,
    }

    /// The hash function for the rings of VIPs that have none of their own.
    ///
    /// Hosts that share a fleet with Katran must use Katran's.
    #[doc(alias = "hashFunction")]
    hash_function: HashFunction {
        set: hash_function(function: HashFunction) = function,
        default: (HashFunction::MaglevV2, "`maglev-v2`"),
        range: ("`maglev` or `maglev-v2`"),
        unit: "choice",
        key: text,
        changes: never,
    }

    /// Which flows the flow table remembers: all, or only those that are not where the ring leads.
    ///
    /// With `changed`, `max_reals` is at most 32,767.
    flow_tracking: FlowTracking {
        set: flow_tracking(tracking: FlowTracking) = tracking,
        default: (FlowTracking::Changed, "`changed`"),
        range: ("`all` or `changed`"),
        unit: "choice",
        key: text,
        changes: never,
        constants: (flow_tracking = |tracking, _| flow_tracking(*tracking)),
    }

    /// How long a TCP connection may be silent and still continue, where only changed flows are
    /// remembered: a slot settles so long after the last packet that went elsewhere than the ring
    /// leads.
    flow_idle_timeout: Duration {
        set: flow_idle_timeout(timeout: Duration) = timeout,
        default: (Duration::from_secs(3600), "1 hour"),
        range: ("1 second to 7 days", |timeout| check_idle_timeout(*timeout)),
        unit: "seconds",
        key: seconds,
        changes: never,
        constants: (tcp_moment_shift = |timeout, tick| moment_shift(*timeout, tick)),
    }

    /// The flow table type.
    flow_table: FlowTableKind {
        set: flow_table(kind: FlowTableKind) = kind,
        default: (FlowTableKind::SetAssociative, "`set-associative`"),
        range: ("`set-associative` or `kernel-lru`"),
        unit: "choice",
        key: text,
        changes: never,
        constants: (flow_table_kind = |kind, _| flow_table_kind(*kind)),
    }

    /// The number of flows to remember, over all forwarding CPUs.
    ///
    /// Each CPU's table has an equal part, rounded up.
    ///
    /// With [`FlowTracking::Changed`] the default suits services whose flows can all be tracked
    /// that way. A VIP that remembers all its flows takes as much room as with
    /// [`FlowTracking::All`]. A table that is too small harms more with `Changed`: a connection
    /// that has lost its entry goes where its slot led before it changed.
    #[doc(alias = "LruSize")]
    flow_table_size: u64 {
        set: flow_table_size(flows: u64) = flows,
        default: (by "8,000,000 with `all`, 4,000,000 with `changed`"),
        range: ("1 to 134_217_728 for each forwarding CPU"),
        unit: "flows",
        key: whole,
        changes: never,
    }

    /// The CPUs that receive the interface's packets; each gets a flow table. By default all online
    /// CPUs.
    ///
    /// Packets on other CPUs are forwarded, too, with a small table that all those CPUs share.
    #[doc(alias = "forwardingCores")]
    forwarding_cpus: Vec<u32> {
        set: forwarding_cpus(cpus: impl IntoIterator<Item = u32>) = cpus.into_iter().collect(),
        default: none,
        range: ("at least one, none twice, each a possible CPU"),
        unit: "CPU numbers",
        key: list,
        changes: never,
    }

    /// The NUMA node of each forwarding CPU's flow table, in the order of
    /// [`forwarding_cpus`](Self::forwarding_cpus). By default each CPU's own node.
    #[doc(alias = "numaNodes")]
    numa_nodes: Vec<u32> {
        set: numa_nodes(nodes: impl IntoIterator<Item = u32>) = nodes.into_iter().collect(),
        default: none,
        range: ("as many as there are forwarding CPUs, each a node that is online"),
        unit: "node numbers",
        key: list,
        changes: never,
    }

    /// New flows per second and CPU above which the program forwards further ones without
    /// remembering them. By default the size of a CPU's flow table, at most 125,000.
    ///
    /// It keeps a flood of made-up flows from pushing real ones out of the flow table. Only flows
    /// that would be remembered count.
    ///
    /// A CPU's flow table holds `flow_table_size` divided by the number of forwarding CPUs. Up to
    /// the default rate a flow's second packet comes before the table needs its entry for another.
    /// 125,000 is Katran's limit. The largest number means never. CPUs without a table share one of
    /// 4,096 flows with the same threshold, which does not protect that table.
    #[doc(alias = "MAX_CONN_RATE")]
    flood_threshold: u32 {
        set: flood_threshold(flows: u32) = flows,
        default: none,
        range: (1 to 4_294_967_295),
        unit: "new flows a second and CPU",
        key: plain,
        changes: never,
        // Checked settings have one.
        constants: (flood_threshold = |flows, _| flows.unwrap_or(u32::MAX).into()),
    }

    /// How long a silent UDP flow is remembered.
    #[doc(alias = "LRU_UDP_TIMEOUT")]
    udp_timeout: Duration {
        set: udp_timeout(timeout: Duration) = timeout,
        default: (Duration::from_secs(30), "30 seconds"),
        range: ("1 second to 1 day", |timeout| check_udp_timeout(*timeout)),
        unit: "seconds",
        key: seconds,
        changes: never,
        constants: (
            udp_timeout = |timeout, tick| ticks(*timeout, tick),
            udp_moment_shift = |timeout, tick| moment_shift(*timeout, tick),
        ),
    }

    /// How long a [pinned](Self::pin) balancer forwards without a sign of life of its owner. After
    /// that all frames pass to the host's network stack, as if there were no program, until an
    /// owner gives a sign.
    ///
    /// It suits hosts that should rather stop than balance by a configuration that nothing updates,
    /// such as behind a router that then chooses another host. An owner gives a sign of life once a
    /// second, by a thread, and with each change; a stopped or hanging one gives none. Adoption
    /// gives one when it has succeeded, which may take seconds. In a flood CPUs may be too busy to
    /// run the thread for seconds, and a short limit makes that worse: choose 30 seconds or more.
    /// Only time while the machine is awake counts. The program counts such frames
    /// ([`Stats::orphan`](crate::stats::Stats::orphan)) without looking at them: pings to VIPs
    /// pass, tunnels stay wrapped.
    ///
    /// A limit costs each packet a look at the clock that stamps flows, and attaches the program
    /// with all optional parts, as `source-routing` does. It requires [`pin`](Self::pin).
    orphan_limit: Duration {
        set: orphan_limit(limit: Duration) = limit,
        default: (Duration::ZERO, "0: it keeps forwarding"),
        range: ("0, or 5 seconds to 1 day", |limit| check_orphan_limit(*limit)),
        unit: "seconds",
        key: seconds,
        changes: never,
        constants: (orphan_limit = |limit, tick| ticks(*limit, tick).into()),
    }

    /// Whether SYNs are counted for each VIP
    /// ([`Stats::vip_details`](crate::stats::Stats::vip_details)), which is about the number of
    /// connections opened, even if few are remembered.
    ///
    /// It adds 36 instructions to the some 380 of every packet to a VIP. Counting pairs
    /// ([`max_vip_reals`](Self::max_vip_reals)) includes it.
    count_syns: bool {
        set: count_syns(on: bool) = on,
        default: (false, "off"),
        range: any,
        unit: "on or off",
        key: plain,
        changes: never,
    }

    /// The largest number of pairs of a VIP and a real whose packets are counted
    /// ([`Stats::vip_reals`](crate::stats::Stats::vip_reals)); 0: none are.
    ///
    /// A pair takes a place with its first packet, and frees it when the VIP or the real is gone.
    /// Set as many places as the VIPs have reals together, including drained ones. Where ids in
    /// packets choose reals ([`VipFlags::QUIC`](crate::VipFlags::QUIC) and the like), count for
    /// each of these VIPs all reals that have ids.
    ///
    /// Packets of further pairs are forwarded and counted as usual, and also counted as without a
    /// pair. Each takes one more lookup, and one in 256 looks for a place under a lock. Clients
    /// that send ids for all reals can cause that.
    ///
    /// A place takes 24 bytes for each possible CPU, and some 80 more. Every packet to a VIP takes
    /// 61 more instructions and a hash lookup. Changing the number restarts the counts of pairs at
    /// 0.
    max_vip_reals: u32 {
        set: max_vip_reals(pairs: u32) = pairs,
        default: (0, "0: none are counted"),
        range: (0 to 1_048_576),
        unit: "pairs",
        key: plain,
        changes: never,
        constants: (max_vip_reals),
    }

    /// The number of flows in each CPU's global flow table.
    ///
    /// Used with [`Features::GLOBAL_FLOW_TABLE`].
    #[doc(alias = "globalLruSize")]
    global_flow_table_size: u32 {
        set: global_flow_table_size(flows: u32) = flows,
        default: (100_000),
        range: (1 to 134_217_728),
        unit: "flows a CPU",
        key: plain,
        changes: never,
    }

    /// The largest number of source routes, for each address family.
    ///
    /// While [`Katran::apply`](crate::Katran::apply) replaces routes there may briefly be twice as
    /// many: new ones come before old ones go. Used with [`Features::SOURCE_ROUTING`].
    #[doc(alias = "maxLpmSrcSize")]
    max_source_routes: u32 {
        set: max_source_routes(routes: u32) = routes,
        default: (3_000_000),
        range: (1 to 134_217_728),
        unit: "routes a family",
        key: plain,
        changes: never,
    }

    /// The largest number of addresses at which tunnels end.
    ///
    /// Used with [`Features::INLINE_DECAP`].
    #[doc(alias = "maxDecapDst")]
    max_decap: u32 {
        set: max_decap(addresses: u32) = addresses,
        default: (6),
        range: (1 to 65_535),
        unit: "addresses",
        key: plain,
        changes: never,
    }

    /// The prefixes of both families from which tunnels may come that end at this host: the outer
    /// sources of other balancers (their `ipip_source_v4` and `ipip_source_v6`, or `source_v4` and
    /// `source_v6` with GUE), and of the backends at addresses of
    /// [`DecapMode::Egress`](crate::DecapMode::Egress).
    ///
    /// Others are dropped and counted as `outer_source`. Used with [`Features::INLINE_DECAP`].
    ///
    /// Addresses can be forged wherever the network does not prevent it: filter these sources at
    /// its edge.
    allow_sources: Vec<Prefix> {
        set: allow_sources(prefixes: impl IntoIterator<Item = Prefix>) = prefixes.into_iter().collect(),
        default: (Vec::new(), "none: from anywhere"),
        range: ("at most 65_536 prefixes", |prefixes| check_prefixes("allow_sources", prefixes)),
        unit: "prefixes",
        key: texts,
        changes: never,
        constants: (limit_outer_sources = |prefixes, _| (!prefixes.is_empty()).into()),
    }

    /// The prefixes of both families from which packets may come that leave by an address of
    /// [`DecapMode::Egress`](crate::DecapMode::Egress): the VIPs' addresses, as which backends
    /// answer.
    ///
    /// Others are dropped and counted as `egress_source`. **Without them such an address sends out
    /// whatever anybody puts into a tunnel, from any source to any destination.** Used with
    /// [`Features::INLINE_DECAP`].
    egress_sources: Vec<Prefix> {
        set: egress_sources(prefixes: impl IntoIterator<Item = Prefix>) = prefixes.into_iter().collect(),
        default: (Vec::new(), "none: from anywhere"),
        range: ("at most 65_536 prefixes", |prefixes| check_prefixes("egress_sources", prefixes)),
        unit: "prefixes",
        key: texts,
        changes: never,
        constants: (limit_egress_sources = |prefixes, _| (!prefixes.is_empty()).into()),
    }

    /// The largest number of server ids.
    #[doc(alias = "MAX_QUIC_REALS")]
    max_server_ids: u32 {
        set: max_server_ids(ids: u32) = ids,
        default: (16_777_216),
        range: (1 to 16_777_216),
        unit: "server ids",
        key: plain,
        changes: never,
        constants: (server_id_chunks = |ids, _| max_server_id_chunks(*ids)),
    }

    /// The interface by which a checker's packets leave: the tc program attached there sends them
    /// through the tunnel.
    ///
    /// The program is attached with the balancer, in the same thread's network namespace. Only
    /// packets that the host sends by this interface can be probes, so route the VIPs to it; it
    /// must have Ethernet headers. Probes then leave by the interface that the balancer was
    /// attached to first. They come from [`source_v4`](Self::source_v4) and
    /// [`source_v6`](Self::source_v6), or as [`healthcheck_source`](Self::healthcheck_source) says.
    #[doc(alias = "hcInterface")]
    healthcheck_interface: String {
        set: healthcheck_interface(name: impl Into<String>) = name.into(),
        default: none,
        range: ("an interface name: 1 to 15 bytes without `/`, `:` and spaces", |name| check_interface_name(name)),
        unit: "interface",
        key: plain,
        changes: never,
    }

    /// The priority of the health checks' tc filter: filters with a lower number run first.
    ///
    /// Used with [`TcHook::Clsact`] only: a tcx link comes before all filters.
    #[doc(alias = "priority")]
    healthcheck_priority: u16 {
        set: healthcheck_priority(priority: u16) = priority,
        default: (2307),
        range: (1 to 65_535),
        unit: "tc priority",
        key: plain,
        changes: never,
    }

    /// The longest packet sent as a probe, in bytes, with the Ethernet header and before
    /// encapsulation; longer ones are dropped and counted. If a packet is split into segments later
    /// (GSO), the segments count.
    #[doc(alias = "maxHcPacketSize")]
    healthcheck_max_packet: u32 {
        set: healthcheck_max_packet(bytes: u32) = bytes,
        default: (0, "0, any length"),
        range: any,
        unit: "bytes",
        key: plain,
        changes: never,
    }

    /// The outer sources of probes with IP in IP: this host's own addresses, or made-up ones as for
    /// clients' packets, so that a network that filters by source treats both alike.
    ///
    /// With [`ProbeSource::MadeUp`] and IP in IP probes need no address of this host.
    healthcheck_source: ProbeSource {
        set: healthcheck_source(source: ProbeSource) = source,
        default: (ProbeSource::Own, "`own`, as in Katran"),
        range: ("`own` or `made-up`"),
        unit: "choice",
        key: text,
        changes: never,
    }

    /// The hook by which the health checks' program is attached.
    healthcheck_hook: TcHook {
        set: healthcheck_hook(hook: TcHook) = hook,
        default: (TcHook::Auto, "`auto`"),
        range: ("`auto`, `tcx` or `clsact`"),
        unit: "choice",
        key: text,
        changes: never,
    }

    /// The size of the buffer for events, which wait there for
    /// [`Katran::events`](crate::Katran::events); an event takes 160 bytes.
    ///
    /// Used with [`Features::INTROSPECTION`].
    event_buffer: u32 {
        set: event_buffer(bytes: u32) = bytes,
        default: (1_048_576),
        range: ("a power of two, 4_096 to 1_073_741_824", |bytes| check_event_buffer(*bytes)),
        unit: "bytes",
        key: plain,
        changes: never,
    }
}

impl BalancerState {
    /// The same settings with CPUs and their nodes ascending by CPU.
    pub(super) fn in_order(&self) -> Self {
        let mut cpus = self.forwarding_cpus.clone();
        let mut nodes = self.numa_nodes.clone();
        if let (Some(cpus), Some(nodes)) = (&cpus, &mut nodes)
            && cpus.len() == nodes.len()
        {
            let mut pairs: Vec<_> = cpus.iter().zip(nodes.iter()).collect();
            pairs.sort();
            *nodes = pairs.into_iter().map(|(_, node)| *node).collect();
        }
        if let Some(cpus) = &mut cpus {
            cpus.sort_unstable();
        }
        Self {
            forwarding_cpus: cpus,
            numa_nodes: nodes,
            ..self.clone()
        }
    }

    /// The settings to load for `wanted`; `None`: the current ones include all of it. What changes
    /// after load stays as it is, except that wanted features are on.
    pub(crate) fn reloaded(&self, wanted: &Self) -> Option<Self> {
        let changes = self.load_changes(wanted);
        if changes.is_empty() {
            return None;
        }
        let mut merged = self.with_loaded(wanted);
        if changes.contains(&"forwarding_cpus") && wanted.numa_nodes.is_none() {
            merged.numa_nodes = None;
        }
        if let (Some(present), Some(wanted)) = (self.features, wanted.features) {
            merged.features = Some(present | wanted);
        }
        Some(merged)
    }

    /// Loads these settings; the rest keeps its default.
    pub(crate) fn builder(&self) -> Builder {
        Builder {
            given: self.clone(),
            pin: None,
            take_over: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LiveChange {
    /// Its key.
    pub(crate) setting: &'static str,
    /// Its first value, before anything else of a state changes, if it changes then.
    pub(crate) between: Option<LiveSetting>,
    /// Its last value, after everything else, if it changes then.
    pub(crate) end: Option<LiveSetting>,
}

/// The values on the way from `current` to `wanted`, if they differ: what `between` makes of them,
/// and the last one.
fn way<T: Clone + PartialEq>(
    current: &Option<T>,
    wanted: &Option<T>,
    between: impl Fn(&T, &T) -> T,
) -> Option<[Option<T>; 2]> {
    let wanted = wanted.as_ref()?;
    if current.as_ref() == Some(wanted) {
        return None;
    }
    let first = match current {
        Some(current) => between(current, wanted),
        None => wanted.clone(),
    };
    let end = (first != *wanted).then(|| wanted.clone());
    Some([
        Some(first).filter(|first| current.as_ref() != Some(first)),
        end,
    ])
}
