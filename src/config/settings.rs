//! The table of settings. A row has everything about a setting; `table.rs` makes the rest from it:
//! the setter of [`Builder`] with its documentation, the field of [`BalancerState`], the key of the
//! document, the range check, the default, and whether it is fixed at load. `make docs` writes the
//! table of `docs/configuration.md` from the rows too.
//!
//! - `set`: the setter, its argument, and how the argument becomes the value.
//! - `default`: `(value)`, `(by text)` if `validate.rs` derives it from other settings, `none` or
//!   `required`.
//! - `range`: `any`, `(low to high)`, or a text with a check.
//! - `key`: the form in a document.
//! - `changes`: `never` if the setting is fixed at load, `live` if `Katran::set_live` changes it
//!   (`katran/apply.rs`). `(live through between)` computes, from the old and the new value, the
//!   value to have while the rest of a state changes.
//! - `constants`: the constants of `bpf/config.h` that the setting is written to at load; `(name)`,
//!   or an expression of the value and the kernel's tick.
//!
//! This file is longer than others because the settings are one table.

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
/// Only [`gateway`](Self::gateway) has no default. Loading refuses a setting outside its range with
/// [`Error::InvalidConfig`](crate::Error::InvalidConfig) or, for an address,
/// [`Error::InvalidAddress`](crate::Error::InvalidAddress), and then loads nothing.
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
    /// The directory to pin the balancer in; not part of a document.
    pub(super) pin: Option<PathBuf>,
    /// How long to wait for the current owner.
    pub(super) take_over: Option<Duration>,
}

/// # A new builder
impl Builder {
    /// All settings at their defaults. You must still set the gateway.
    pub fn new() -> Self {
        Self::default()
    }

    /// The MAC address of the router that gets every encapsulated frame: short for
    /// [`gateway`](Self::gateway) with [`Gateway::Mac`].
    #[doc(alias = "defaultMac")]
    pub fn gateway_mac(self, mac: MacAddr) -> Self {
        self.gateway(Gateway::Mac(mac))
    }
}

settings! {
    /// The router for encapsulated frames: its MAC address, or [`Gateway::Auto`] to resolve and
    /// follow it.
    ///
    /// [`gateway_mac`](Self::gateway_mac) is short for a MAC address. In a document, the key is
    /// `gateway_mac`. The library looks for the router in the network namespace of the thread that
    /// first attaches the balancer.
    gateway_mac: Gateway {
        set: gateway(gateway: Gateway) = gateway,
        default: required,
        range: ("a unicast address, or `auto`", |gateway| check_gateway(*gateway)),
        unit: "MAC address",
        key: text,
        changes: live,
    }

    /// The router's MAC address for frames to IPv6 reals, if it differs.
    gateway_mac_v6: MacAddr {
        set: gateway_mac_v6(mac: MacAddr) = mac,
        default: none,
        range: ("a unicast address", |mac| check_gateway_mac(*mac)),
        unit: "MAC address",
        key: text,
        changes: live,
    }

    /// Where encapsulated frames go: to one router (fastest), to each real's own next hop, or to
    /// that next hop through its own interface.
    ///
    /// With the last two, a configured [`gateway_mac`](Self::gateway_mac) is the address of
    /// the routers, and of reals that are not resolved yet. With [`Gateway::Auto`] the program
    /// drops packets to those reals and counts them as `next_hop_unknown`.
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

    /// How packets travel to reals.
    encapsulation: Encapsulation {
        set: encapsulation(encapsulation: Encapsulation) = encapsulation,
        default: (Encapsulation::Ipip, "`ipip`"),
        range: ("`ipip` or `gue`"),
        unit: "choice",
        key: text,
        changes: never,
        constants: (encapsulation = |kind, _| encapsulation(*kind)),
    }

    /// Whether outer IPv4 headers copy the inner packet's DF bit.
    outer_dont_fragment: OuterDontFragment {
        set: outer_dont_fragment(bit: OuterDontFragment) = bit,
        default: (OuterDontFragment::Clear, "`clear`"),
        range: ("`clear` or `inherit`"),
        unit: "choice",
        key: text,
        changes: never,
        constants: (
            inherit_dont_fragment = |bit, _| (*bit == OuterDontFragment::Inherit).into(),
        ),
    }

    /// The optional parts of the program to use; all others are off.
    ///
    /// With `inline-decap`, name `strict-destination` too. **Without it every tunnel that reaches
    /// this host is unwrapped**: see [`Features::STRICT_DESTINATION`].
    ///
    /// Features that say "Not in this version" are refused with
    /// [`Error::Unsupported`](crate::Error::Unsupported). [`Katran::reload`](crate::Katran::reload)
    /// changes features later.
    features: Features {
        set: features(features: Features) = features,
        default: (Features::default(), "`strict-destination`, `icmp-too-big` and `local-delivery`"),
        range: ("those of this version", |features| features.check()),
        unit: "list of features",
        key: set,
        // New features come before what needs them; old ones stay until nothing needs them.
        changes: (live through |before: &Features, wanted: &Features| *before | *wanted),
        constants: (features = |on, _| on.bits()),
    }

    /// This host's IPv4 address: the outer source of GUE packets and probes. With
    /// [`Features::INLINE_DECAP`], tunnels end there too.
    ///
    /// IPv4 reals need it with GUE.
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

    /// This host's IPv6 address, used like [`source_v4`](Self::source_v4).
    ///
    /// IPv6 reals need it with GUE.
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

    /// The outer sources of IPIP packets to IPv4 reals.
    ///
    /// The argument is the first address of a /16 prefix. The last 16 bits differ by flow, so that
    /// a backend's receive-side scaling spreads flows over its queues. If your network filters by
    /// source, use a prefix that it lets through.
    #[doc(alias = "IPIP_V4_PREFIX")]
    ipip_source_v4: Ipv4Addr {
        set: ipip_source_v4(first: Ipv4Addr) = first,
        default: (Ipv4Addr::new(172, 16, 0, 0), "172.16.0.0/16"),
        range: ("a /16 prefix of host addresses", |first| check_ipip_source_v4(*first)),
        unit: "prefix",
        key: (prefix 16),
        changes: never,
        constants: (ipip_source_v4 = |first, _| prefix_v4(*first)),
    }

    /// The outer sources of IPIP packets to IPv6 reals.
    ///
    /// The argument is the first address of a /96 prefix. The last 32 bits differ by flow, as with
    /// [`ipip_source_v4`](Self::ipip_source_v4).
    #[doc(alias = "IPIP_V6_PREFIX1")]
    ipip_source_v6: Ipv6Addr {
        set: ipip_source_v6(first: Ipv6Addr) = first,
        default: (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), "100::/96"),
        range: ("a /96 prefix of host addresses", |first| check_ipip_source_v6(*first)),
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

    /// The longest forwarded frame, with its Ethernet header and before encapsulation.
    ///
    /// The program answers longer frames with an ICMP error that names `max_frame` - 14 as the MTU
    /// (for IPv6 at least 1,280), or drops them without [`Features::ICMP_TOO_BIG`].
    ///
    /// [`MaxFrame::Auto`] follows the MTU of the balancer's interfaces: the smallest one, less 20
    /// bytes for the outer header, 40 if there are IPv6 reals, and 8 more with GUE. Interfaces that
    /// frames are only redirected to ([`NextHops::Redirect`]) do not count. A fixed 590 is an MTU
    /// of 576; 65,549 is the longest IPv4 packet.
    #[doc(alias = "MAX_PCKT_SIZE")]
    max_frame: MaxFrame {
        set: max_frame(bytes: impl Into<MaxFrame>) = bytes.into(),
        default: (MaxFrame::Auto, "`auto`"),
        range: ("`auto`, or 590 to 65_549", |longest| check_max_frame(*longest)),
        unit: "bytes",
        key: auto,
        changes: never,
    }

    /// Accept frames that the driver keeps in several buffers.
    ///
    /// Native mode on an interface with a large MTU needs it.
    frags: bool {
        set: frags(on: bool) = on,
        default: (false, "false"),
        range: any,
        unit: "true or false",
        key: plain,
        changes: never,
        constants: (frags),
    }

    /// The largest number of VIPs; part of the flow hash.
    ///
    /// **Hosts behind one ECMP group must agree**, Katran's included.
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

    /// The largest number of reals over all VIPs; each address counts once.
    ///
    /// More than 32,767 need `flow_tracking = "all"`.
    #[doc(alias = "maxReals")]
    max_reals: u32 => u16 {
        set: max_reals(reals: u32) = reals,
        default: (4_096),
        range: (1 to 65_535),
        unit: "reals",
        key: plain,
        changes: never,
        constants: (max_reals),
    }

    /// The number of slots in each VIP's ring; part of the flow hash.
    ///
    /// **Hosts behind one ECMP group must agree**, Katran's included. The more slots there are for
    /// each real, the closer shares follow weights; 100 for each is a good rule.
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

    /// A secret for the flow hash, instead of the public `max_vips` and `ring_size`: attackers
    /// cannot aim flows at one real.
    ///
    /// **Hosts behind one ECMP group must agree**; Katran has no such setting. The seed is part of
    /// the state and of the document, so keep both secret.
    ///
    /// It only makes an attack harder: for IPv4 it amounts to 32 bits, so an attacker who sees
    /// where enough flows go finds an equivalent seed in 2^32 tries.
    hash_seed: u64 {
        set: hash_seed(seed: u64) = seed,
        default: none,
        range: (0 to 9_223_372_036_854_775_807),
        unit: "number",
        key: whole,
        changes: never,
    }

    /// How rings are filled, for VIPs without `hash`.
    ///
    /// Beside Katran hosts, use what they use.
    #[doc(alias = "hashFunction")]
    hash_function: HashFunction {
        set: hash_function(function: HashFunction) = function,
        default: (HashFunction::MaglevV2, "`maglev-v2`"),
        range: ("`maglev` or `maglev-v2`"),
        unit: "choice",
        key: text,
        changes: never,
    }

    /// Which flows are remembered: all, or only those that their ring would now send elsewhere.
    /// `changed` allows up to 32,767 reals.
    flow_tracking: FlowTracking {
        set: flow_tracking(tracking: FlowTracking) = tracking,
        default: (FlowTracking::Changed, "`changed`"),
        range: ("`all` or `changed`"),
        unit: "choice",
        key: text,
        changes: never,
        constants: (flow_tracking = |tracking, _| flow_tracking(*tracking)),
    }

    /// How long a TCP connection may be silent and still keep its slot unsettled, with
    /// `flow_tracking = "changed"`.
    ///
    /// A slot is settled when no packet has left its ring's way for this long.
    flow_idle_timeout: Duration {
        set: flow_idle_timeout(timeout: Duration) = timeout,
        default: (Duration::from_secs(3600), "1 hour"),
        range: ("1 second to 7 days", |timeout| check_idle_timeout(*timeout)),
        unit: "seconds",
        key: seconds,
        changes: never,
        constants: (tcp_moment_shift = |timeout, tick| moment_shift(*timeout, tick)),
    }

    /// The flow table's type.
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
    /// The default with [`FlowTracking::Changed`] suits services whose flows can all be tracked
    /// that way; a VIP that needs all of its flows remembered takes as much room as with
    /// [`FlowTracking::All`]. Do not make the table too small with `changed`: a connection that
    /// loses its entry goes where its slot led before the last change.
    #[doc(alias = "LruSize")]
    flow_table_size: u64 {
        set: flow_table_size(flows: u64) = flows,
        default: (by "8,000,000 with `all`, 4,000,000 with `changed`"),
        range: ("1 to 134_217_728 for each forwarding CPU"),
        unit: "flows",
        key: whole,
        changes: never,
    }

    /// The CPUs that receive the interface's packets; each gets a flow table.
    ///
    /// Packets on other CPUs are forwarded too, with a small table that those CPUs share.
    #[doc(alias = "forwardingCores")]
    forwarding_cpus: Vec<u32> {
        set: forwarding_cpus(cpus: impl IntoIterator<Item = u32>) = cpus.into_iter().collect(),
        default: (by "all online CPUs"),
        range: ("at least one, no duplicates, only possible CPUs"),
        unit: "list of CPUs",
        key: list,
        changes: never,
    }

    /// The NUMA node of each flow table, in the order of
    /// [`forwarding_cpus`](Self::forwarding_cpus).
    #[doc(alias = "numaNodes")]
    numa_nodes: Vec<u32> {
        set: numa_nodes(nodes: impl IntoIterator<Item = u32>) = nodes.into_iter().collect(),
        default: (by "each CPU's node"),
        range: ("one online node for each forwarding CPU"),
        unit: "list of nodes",
        key: list,
        changes: never,
    }

    /// Above this rate, a CPU remembers no new flows, except in unsettled slots.
    ///
    /// The limit keeps a flood of made-up flows from displacing real ones. Only flows that would be
    /// remembered count.
    ///
    /// At the default rate, a flow's second packet still arrives before its entry is displaced;
    /// 125,000 is Katran's limit. The largest number means never. CPUs without a flow table share
    /// one of 4,096 flows with the same threshold, which does not protect that table.
    #[doc(alias = "MAX_CONN_RATE")]
    flood_threshold: u32 {
        set: flood_threshold(flows: u32) = flows,
        default: (by "the size of the CPU's flow table, at most 125,000"),
        range: (1 to 4_294_967_295),
        unit: "flows a second",
        key: plain,
        changes: never,
        // Checked settings have a value.
        constants: (flood_threshold = |flows, _| flows.unwrap_or(u32::MAX).into()),
    }

    /// How long a UDP flow is remembered without a packet.
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

    /// How long a [pinned](Self::pin) balancer forwards without a sign of life from its owner; then
    /// it passes all frames until an owner returns.
    ///
    /// Set it on hosts that should rather stop balancing than follow a stale configuration, for
    /// example behind a router that then chooses another host. The owner gives a sign of life each
    /// second, from a thread, and with each change; a stopped or hanging owner gives none. Adoption
    /// gives one when it succeeds, which may take seconds. A flood can keep a thread from running
    /// for seconds, so choose 30 seconds or more. Time while the machine is suspended does not
    /// count. The program counts these frames ([`Stats::orphan`](crate::stats::Stats::orphan)) but
    /// does not examine them: pings of VIPs pass, and tunnels are not unwrapped.
    ///
    /// With a limit, each packet reads the clock that stamps flows, and the program with all
    /// features is attached, as for `source-routing`. It requires [`pin`](Self::pin).
    orphan_limit: Duration {
        set: orphan_limit(limit: Duration) = limit,
        default: (Duration::ZERO, "0: no limit"),
        range: ("0, or 5 seconds to 1 day", |limit| check_orphan_limit(*limit)),
        unit: "seconds",
        key: seconds,
        changes: never,
        constants: (orphan_limit = |limit, tick| ticks(*limit, tick).into()),
    }

    /// Count SYNs for each VIP, to estimate opened connections.
    ///
    /// [`Stats::vip_details`](crate::stats::Stats::vip_details) returns the counts.
    ///
    /// It costs 36 instructions a packet, of about 380. [`max_vip_reals`](Self::max_vip_reals)
    /// counts SYNs too.
    count_syns: bool {
        set: count_syns(on: bool) = on,
        default: (false, "false"),
        range: any,
        unit: "true or false",
        key: plain,
        changes: never,
    }

    /// The largest number of pairs of a VIP and a real with their own counters.
    ///
    /// [`Stats::vip_reals`](crate::stats::Stats::vip_reals) returns the counts.
    ///
    /// A pair's first packet takes a place; the place is free again when the VIP or the real has
    /// gone. So provide one place for each real of each VIP, drained ones included. For VIPs whose
    /// packets choose their real by an id ([`VipFlags::QUIC`](crate::VipFlags::QUIC) and such),
    /// provide one for each real with an id. The program forwards and counts packets of further
    /// pairs as usual, and also counts them as packets without a pair. Each costs a lookup more,
    /// and one in 256 searches for a place under a lock: clients that send ids of all reals can
    /// cause that.
    ///
    /// A place takes 24 bytes for each possible CPU, and some 80 more. Packets of all VIPs take 61
    /// instructions more and a hash lookup. Changing the number resets the counts of pairs.
    max_vip_reals: u32 {
        set: max_vip_reals(pairs: u32) = pairs,
        default: (0, "0"),
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

    /// The largest number of source routes of each address family.
    ///
    /// While [`Katran::apply`](crate::Katran::apply) replaces routes there may briefly be twice as
    /// many, because it adds new ones before it removes old ones. Used with
    /// [`Features::SOURCE_ROUTING`].
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

    /// Accept tunnels only from these prefixes: other balancers, and backends that use
    /// [`DecapMode::Egress`](crate::DecapMode::Egress) addresses.
    ///
    /// Both families are mixed in one list.
    ///
    /// A balancer's outer sources are its `ipip_source_v4` and `ipip_source_v6`, or `source_v4` and
    /// `source_v6` with GUE. The program drops other tunnels and counts them as `outer_source`.
    /// Used with [`Features::INLINE_DECAP`].
    ///
    /// Anybody can forge a source address unless your network prevents it: filter these sources at
    /// its edge.
    allow_sources: Vec<Prefix> {
        set: allow_sources(prefixes: impl IntoIterator<Item = Prefix>) = prefixes.into_iter().collect(),
        default: (Vec::new(), "any source"),
        range: ("at most 65_536", |prefixes| check_prefixes("allow_sources", prefixes)),
        unit: "list of prefixes",
        key: texts,
        changes: never,
        constants: (limit_outer_sources = |prefixes, _| (!prefixes.is_empty()).into()),
    }

    /// At [`DecapMode::Egress`](crate::DecapMode::Egress) addresses, send out only packets from
    /// these prefixes: list the VIPs, which backends answer from.
    ///
    /// Both families are mixed in one list.
    ///
    /// The program drops others and counts them as `egress_source`. **Without this setting such an
    /// address sends out whatever anybody puts into a tunnel, from any source to any destination.**
    /// Used with [`Features::INLINE_DECAP`].
    egress_sources: Vec<Prefix> {
        set: egress_sources(prefixes: impl IntoIterator<Item = Prefix>) = prefixes.into_iter().collect(),
        default: (Vec::new(), "any source"),
        range: ("at most 65_536", |prefixes| check_prefixes("egress_sources", prefixes)),
        unit: "list of prefixes",
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

    /// The interface that probes leave through; a tc program there encapsulates them.
    ///
    /// The program is attached with the balancer, in the network namespace of the thread that does
    /// so. Only packets that the host sends through this interface can be probes, so the routes to
    /// the VIPs must lead there; it must have Ethernet headers. Encapsulated probes leave through
    /// the balancer's first interface. Their source is [`source_v4`](Self::source_v4) or
    /// [`source_v6`](Self::source_v6), unless [`healthcheck_source`](Self::healthcheck_source)
    /// changes it.
    #[doc(alias = "hcInterface")]
    healthcheck_interface: String {
        set: healthcheck_interface(name: impl Into<String>) = name.into(),
        default: none,
        range: ("an interface name: 1 to 15 bytes without `/`, `:` and spaces", |name| check_interface_name(name)),
        unit: "interface",
        key: plain,
        changes: never,
    }

    /// The priority of the probes' tc filter; lower numbers run first.
    ///
    /// It has an effect only with [`TcHook::Clsact`]: a tcx link runs before all filters.
    #[doc(alias = "priority")]
    healthcheck_priority: u16 {
        set: healthcheck_priority(priority: u16) = priority,
        default: (2307),
        range: (1 to 65_535),
        unit: "tc priority",
        key: plain,
        changes: never,
    }

    /// The longest probe, measured like `max_frame`; longer ones are dropped and counted.
    ///
    /// For a packet that is segmented later (GSO), the size of its segments counts.
    #[doc(alias = "maxHcPacketSize")]
    healthcheck_max_packet: u32 {
        set: healthcheck_max_packet(bytes: u32) = bytes,
        default: (0, "0: no limit"),
        range: any,
        unit: "bytes",
        key: plain,
        changes: never,
    }

    /// The outer source of IPIP probes: this host's address, or one made up as for clients'
    /// packets.
    ///
    /// If the network blocks made-up sources, it then blocks the probes too.
    /// With [`ProbeSource::MadeUp`] and IPIP, probes need no address of this host.
    healthcheck_source: ProbeSource {
        set: healthcheck_source(source: ProbeSource) = source,
        default: (ProbeSource::Own, "`own`"),
        range: ("`own` or `made-up`"),
        unit: "choice",
        key: text,
        changes: never,
    }

    /// How the probes' program is attached.
    healthcheck_hook: TcHook {
        set: healthcheck_hook(hook: TcHook) = hook,
        default: (TcHook::Auto, "`auto`"),
        range: ("`auto`, `tcx` or `clsact`"),
        unit: "choice",
        key: text,
        changes: never,
    }

    /// The size of the event buffer; an event takes 160 bytes.
    ///
    /// [`Katran::events`](crate::Katran::events) empties it.
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
    /// The same settings with CPUs and nodes ascending by CPU.
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

    /// The settings for another load that `wanted` needs; `None` if the current load suffices.
    /// Settings that change live keep their values, but the wanted features are added.
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

    /// A builder with these settings, and defaults for the rest.
    pub(crate) fn builder(&self) -> Builder {
        Builder {
            given: self.clone(),
            pin: None,
            take_over: None,
        }
    }
}

/// A change of a setting after load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LiveChange {
    /// Its key.
    pub(crate) setting: &'static str,
    /// The value before anything else of a state changes, if it differs from the current one.
    pub(crate) between: Option<LiveSetting>,
    /// The value after everything else, if it differs from `between`.
    pub(crate) end: Option<LiveSetting>,
}

/// The values on the way from `current` to `wanted`, if they differ: the one that `between`
/// computes, and the last one.
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
