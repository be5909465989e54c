//! The flow hash, the VIP lookup and the choice by the ring, a second time and apart from the
//! program, to compare it with.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use katran::Flow;
use katran::Katran;
use katran::Vip;
use katran::VipFlags;
use katran::ring::Endpoint;
use katran::ring::Ring;
use katran::ring::RingSize;

use crate::common::MAX_VIPS;
use crate::common::RING_SIZE;

fn finish(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

/// lookup3 of two or four words.
fn lookup3(words: &[u32], initval: u32) -> u32 {
    let start = 0xdead_beef_u32
        .wrapping_add(words.len() as u32 * 4)
        .wrapping_add(initval);
    let [mut a, mut b, mut c] = [start; 3];
    let mut last = words;
    if let [x, y, z, rest @ ..] = words {
        a = a.wrapping_add(*x);
        b = b.wrapping_add(*y);
        c = c.wrapping_add(*z);
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        last = rest;
    }
    a = a.wrapping_add(last.first().copied().unwrap_or(0));
    b = b.wrapping_add(last.get(1).copied().unwrap_or(0));
    finish(a, b, c)
}

/// The slot of a flow in a ring of `RING_SIZE` slots.
pub(crate) fn slot(source: IpAddr, source_port: u16, destination_port: u16) -> usize {
    let seed = MAX_VIPS * RING_SIZE;
    let ports =
        u32::from(source_port.swap_bytes()) | u32::from(destination_port.swap_bytes()) << 16;
    let word = match source {
        IpAddr::V4(v4) => u32::from_le_bytes(v4.octets()),
        IpAddr::V6(v6) => {
            let words: Vec<u32> = v6
                .octets()
                .chunks(4)
                .map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
                .collect();
            lookup3(&words, MAX_VIPS)
        }
    };
    (lookup3(&[word, ports], seed) % RING_SIZE) as usize
}

/// What the walk makes of a new flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Expected {
    pub(crate) vip: Vip,
    pub(crate) flags: VipFlags,
    /// None: the ring is empty.
    pub(crate) real: Option<IpAddr>,
    /// The source port, as the flags of the VIP leave it.
    pub(crate) port: u16,
    /// The source for the outer header; none where it does not count.
    pub(crate) source: Option<IpAddr>,
}

/// What a balancer of the sizes of this module does with the first packet of a flow; `None` if no
/// VIP covers it.
pub(crate) fn new_flow(katran: &Katran, flow: &Flow) -> Option<Expected> {
    let destination = flow.destination;
    let covering = |vip: &Vip, prefix: bool, port: u16| {
        vip.is_prefix() == prefix
            && vip.port() == port
            && vip.protocol() == flow.protocol
            && vip.covers(destination.ip())
    };
    let vips = katran.vips();
    let best = |prefix, port| {
        vips.iter()
            .filter(|vip| covering(vip, prefix, port))
            .max_by_key(|vip| vip.prefix_length())
            .copied()
    };
    let port = destination.port();
    let exact = best(false, port);
    let vip = exact
        .or_else(|| best(true, port))
        .or_else(|| best(false, 0))
        .or_else(|| best(true, 0))?;
    let flags = katran.vip_flags(vip).unwrap();
    let keep = VipFlags::DPORT_HASH | VipFlags::SRC_DST_PORT;
    let destination_port = if exact.is_some() || flags.intersects(keep) {
        port
    } else {
        0
    };
    let source_port = if flags.contains(VipFlags::NO_SRC_PORT) {
        0
    } else {
        flow.source.port()
    };
    let by_port = flags.contains(VipFlags::DPORT_HASH);
    let none: IpAddr = match flow.source.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let slot = if by_port {
        slot(none, destination_port, destination_port)
    } else {
        slot(flow.source.ip(), source_port, destination_port)
    };
    let numbers = katran.real_numbers();
    let endpoints: Vec<Endpoint> = katran
        .reals(vip)
        .unwrap()
        .into_iter()
        .map(|real| {
            let number = katran.real_index(real.address()).unwrap();
            Endpoint::new(number.get() as u16, real.address(), real.get_weight())
        })
        .collect();
    let size = RingSize::try_from(RING_SIZE).unwrap();
    let ring = Ring::build(katran.hash_function(vip).unwrap(), size, &endpoints).unwrap();
    let chosen = u32::from(ring.slots()[slot]);
    let real = numbers
        .iter()
        .find(|(_, number)| number.get() == chosen)
        .map(|(address, _)| *address);
    Some(Expected {
        vip,
        flags,
        real,
        port: source_port,
        source: (!by_port).then_some(flow.source.ip()),
    })
}
