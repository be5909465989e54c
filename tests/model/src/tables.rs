//! What the host application sets: VIPs with their rings, reals, and what else names a real.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::Flow;
use crate::history::Unsettled;

/// A VIP's name in this model, never reused.
pub type VipNumber = u32;
/// A real's name; one that is removed and added again is another real.
pub type RealId = u32;

/// A VIP's flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipFlags {
    /// The client's port is ignored.
    pub no_src_port: bool,
    /// The flow table is bypassed.
    pub lru_bypass: bool,
    /// QUIC connection ids count.
    pub quic: bool,
    /// Only the destination port counts.
    pub dport_hash: bool,
    /// Source routes may choose the real.
    pub src_routing: bool,
    /// Packets may be delivered to this host.
    pub local_vip: bool,
    /// The global flow table is used.
    pub global_lru: bool,
    /// Both ports count, even if the VIP has any port.
    pub src_dst_port: bool,
    /// The id at the start of datagrams counts.
    pub udp_stable_routing: bool,
    /// Datagrams leave a real that is down, and are counted.
    pub udp_flow_migration: bool,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Vip {
    /// Its address, or the first of its prefix.
    pub address: IpAddr,
    /// The prefix's length; none: a single address.
    pub prefix: Option<u8>,
    /// Its port; 0: any.
    pub port: u16,
    /// TCP or UDP, by number.
    pub protocol: u8,
    /// Its flags.
    pub flags: VipFlags,
    /// Each slot's real; none: no real takes new flows.
    pub ring: Option<Arc<[Option<RealId>]>>,
    /// Its reals, including drained ones.
    pub reals: BTreeSet<RealId>,
    /// Its reals that are down.
    pub down: BTreeSet<RealId>,
    /// Its reals that take no new flows, as their weight is 0.
    pub drained: BTreeSet<RealId>,
    /// The history of its unsettled slots.
    pub unsettled: Unsettled,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Real {
    /// Its address.
    pub address: IpAddr,
    /// Whether it is this host.
    pub local: bool,
}

/// A real's next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The MAC address.
    pub mac: [u8; 6],
    /// The interface to send from; none: the one that the frame arrived on.
    pub by: Option<Port>,
}

/// Another interface than the one that the frame arrived on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its MAC address, which becomes the frame's source.
    pub mac: [u8; 6],
    /// Whether it still exists.
    pub there: bool,
}

/// What happens to packets in tunnels to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecapMode {
    /// They are walked like others.
    Inline,
    /// They are sent back out.
    Egress,
}

/// All tables.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// The services.
    pub vips: BTreeMap<VipNumber, Vip>,
    /// The backends that anything names.
    pub reals: BTreeMap<RealId, Real>,
    /// Reals by server id.
    pub server_ids: BTreeMap<u32, RealId>,
    /// Reals by client prefix.
    pub source_routes: Vec<(IpAddr, u8, RealId)>,
    /// Tunnel ends.
    pub decap: BTreeMap<IpAddr, DecapMode>,
    /// Allowed outer source prefixes of tunnels; none: any.
    pub allow_sources: Vec<(IpAddr, u8)>,
    /// Allowed inner source prefixes of what leaves an egress address; none: any.
    pub egress_sources: Vec<(IpAddr, u8)>,
    /// The global flow table of this CPU, or the shared one.
    pub global_flows: BTreeMap<(VipNumber, Flow), RealId>,
    /// Reals' next hops; missing: unknown.
    pub hops: BTreeMap<RealId, Hop>,
    /// The VIP whose misses are counted by real.
    pub watched: Option<VipNumber>,
    /// Whether the host application listens for events.
    pub listens: bool,
}

/// Whether a prefix covers an address of its family.
pub fn covers(prefix: IpAddr, length: u8, address: IpAddr) -> bool {
    let same = |a: &[u8], b: &[u8]| {
        (0..usize::from(length)).all(|bit| {
            let mask = 0x80 >> (bit % 8);
            a[bit / 8] & mask == b[bit / 8] & mask
        })
    };
    match (prefix, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(&a.octets(), &b.octets()),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(&a.octets(), &b.octets()),
        _ => false,
    }
}

/// Whether a list of prefixes allows an address; an empty one allows all.
pub fn allowed(prefixes: &[(IpAddr, u8)], address: IpAddr) -> bool {
    prefixes.is_empty()
        || prefixes
            .iter()
            .any(|&(p, length)| covers(p, length, address))
}
