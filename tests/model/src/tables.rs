//! What the host application puts in: VIPs with their rings, reals, and what else names a real.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::Flow;
use crate::history::Unsettled;

/// A VIP's name in this model; no two have the same, not even one after the other.
pub type VipNumber = u32;
/// A real's; one that is removed and added again is another real.
pub type RealId = u32;

/// What a VIP does differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipFlags {
    /// The client's port does not count.
    pub no_src_port: bool,
    /// The flow table is neither read nor written.
    pub lru_bypass: bool,
    /// QUIC connection ids count.
    pub quic: bool,
    /// Only the destination port counts.
    pub dport_hash: bool,
    /// The client's prefix may choose the real.
    pub src_routing: bool,
    /// Packets may be delivered to this host.
    pub local_vip: bool,
    /// The global flow table is asked.
    pub global_lru: bool,
    /// Both ports count, also where the VIP has any port.
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
    /// The length of its prefix; none: it is one address.
    pub prefix: Option<u8>,
    /// Its port; 0: any.
    pub port: u16,
    /// TCP or UDP, by number.
    pub protocol: u8,
    /// What it does differently.
    pub flags: VipFlags,
    /// The real of each slot; none: no real takes new flows.
    pub ring: Option<Arc<[Option<RealId>]>>,
    /// Its reals, also those that take no new flows.
    pub reals: BTreeSet<RealId>,
    /// Those among them that are down.
    pub down: BTreeSet<RealId>,
    /// Those among them that take no new flows, for their weight is 0.
    pub drained: BTreeSet<RealId>,
    /// What slots were before that are unsettled.
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

/// Where frames for a real go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The next station's address.
    pub mac: [u8; 6],
    /// The interface that they leave by; none: the one that they came in on.
    pub by: Option<Port>,
}

/// Another interface than the one that frames come in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its own address, which frames come from then.
    pub mac: [u8; 6],
    /// Whether the kernel has it; it may have gone a moment ago.
    pub there: bool,
}

/// What becomes of packets in tunnels to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecapMode {
    /// They are walked like others.
    Inline,
    /// They are sent back out.
    Egress,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// The services.
    pub vips: BTreeMap<VipNumber, Vip>,
    /// The backends that anything names.
    pub reals: BTreeMap<RealId, Real>,
    /// Reals by the ids that their servers put into packets.
    pub server_ids: BTreeMap<u32, RealId>,
    /// Reals by the client's prefix.
    pub source_routes: Vec<(IpAddr, u8, RealId)>,
    /// Where tunnels end.
    pub decap: BTreeMap<IpAddr, DecapMode>,
    /// Prefixes of outer sources of tunnels; none: any.
    pub allow_sources: Vec<(IpAddr, u8)>,
    /// Prefixes of inner sources of what leaves an egress address; none: any.
    pub egress_sources: Vec<(IpAddr, u8)>,
    /// The global flow table of this CPU, or the one that CPUs without one share.
    pub global_flows: BTreeMap<(VipNumber, Flow), RealId>,
    /// Next hops of reals; one without is not known.
    pub hops: BTreeMap<RealId, Hop>,
    /// The VIP whose misses are counted by real.
    pub watched: Option<VipNumber>,
    /// Whether the host application wants to know of events.
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

/// Whether a list of prefixes lets an address through: an empty one lets all.
pub fn allowed(prefixes: &[(IpAddr, u8)], address: IpAddr) -> bool {
    prefixes.is_empty()
        || prefixes
            .iter()
            .any(|&(p, length)| covers(p, length, address))
}
