//! The backend's end: the outer header is stripped, and the stack gets the packet as the client
//! sent it. Packets in no tunnel pass unchanged.

use std::net::IpAddr;
use std::ops::Range;

use crate::Counters;
use crate::Verdict;
use crate::bytes::ETHERNET;
use crate::bytes::IPIP;
use crate::bytes::IPV4;
use crate::bytes::IPV6;
use crate::bytes::IPV6_IN_IP;
use crate::bytes::PROTOCOL_TCP;
use crate::bytes::PROTOCOL_UDP;
use crate::bytes::TYPE_IPV4;
use crate::bytes::TYPE_IPV6;
use crate::bytes::put_u16;
use crate::bytes::u16_at;
use crate::bytes::v4_at;
use crate::bytes::v6_at;
use crate::ids::tcp_option;
use crate::ip::Family;
use crate::tables::allowed;
use crate::transport::SYN;
use crate::transport::TCP;
use crate::tunnel::in_gue;
use crate::tunnel::own_length;
use crate::tunnel::pass_on_mark;

/// A decapsulator.
#[derive(Clone, Debug, Default)]
pub struct Decap {
    /// Outer destinations where tunnels end; none: all.
    pub destinations: Vec<IpAddr>,
    /// Allowed prefixes of outer sources; none: any.
    pub allow_sources: Vec<(IpAddr, u8)>,
    /// Allowed prefixes of inner destinations; none: any.
    pub allow_destinations: Vec<(IpAddr, u8)>,
    /// The UDP port of GUE; 0: GUE is not stripped.
    pub gue_port: u16,
    /// This server's id in TCP options; 0: ids are ignored.
    pub server_id: u32,
    /// It cannot strip an outer header of another family than the inner one's, as at tc before
    /// Linux 6.3.
    pub one_family: bool,
    /// Counters of the group `decap`.
    pub counters: Counters,
}

/// An outer header.
struct Outer {
    family: Family,
    source: IpAddr,
    destination: IpAddr,
    tos: u8,
    protocol: u8,
    options: bool,
    fragment: bool,
    /// Where its payload begins in the frame.
    payload: usize,
    /// Where its packet ends by the length field. Bytes behind it are padding.
    end: usize,
}

fn outer_of(frame: &[u8]) -> Option<Outer> {
    let ip = &frame[ETHERNET..];
    match u16_at(frame, 12) {
        TYPE_IPV4 if ip.len() >= IPV4 && ip[0] >> 4 == 4 => Some(Outer {
            family: Family::V4,
            source: v4_at(ip, 12),
            destination: v4_at(ip, 16),
            tos: ip[1],
            protocol: ip[9],
            options: ip[0] & 0xf != 5,
            fragment: u16_at(ip, 6) & 0x3fff != 0,
            payload: ETHERNET + IPV4,
            end: ETHERNET + own_length(ip, Family::V4),
        }),
        TYPE_IPV6 if ip.len() >= IPV6 && ip[0] >> 4 == 6 => Some(Outer {
            family: Family::V6,
            source: v6_at(ip, 8),
            destination: v6_at(ip, 24),
            tos: ip[0] << 4 | ip[1] >> 4,
            protocol: ip[6],
            options: false,
            fragment: false,
            payload: ETHERNET + IPV6,
            end: ETHERNET + own_length(ip, Family::V6),
        }),
        _ => None,
    }
}

impl Decap {
    /// The verdict on a frame, and the frame afterwards.
    pub fn take(&mut self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut frame = frame.to_vec();
        self.count("total");
        let verdict = self.take_out(&mut frame);
        (verdict, frame)
    }

    fn count(&mut self, name: &'static str) {
        self.counters.add("decap", name, 1);
    }

    fn drop(&mut self, reason: &'static str) -> Verdict {
        self.count(reason);
        Verdict::Drop
    }

    /// The range of the tunnel's payload in the frame, its family, and whether the tunnel is GUE.
    fn tunnel(&self, frame: &[u8], outer: &Outer) -> Option<(Range<usize>, Family, bool)> {
        match outer.protocol {
            IPIP => Some((outer.payload..outer.end, Family::V4, false)),
            IPV6_IN_IP => Some((outer.payload..outer.end, Family::V6, false)),
            // Behind options or in fragments it cannot be recognised.
            PROTOCOL_UDP if self.gue_port != 0 && !outer.options && !outer.fragment => {
                let there = outer.end.min(frame.len());
                let datagram = frame.get(outer.payload..there)?;
                let (inner, place) = in_gue(datagram, self.gue_port)?;
                let (from, to) = (outer.payload + place.start, outer.payload + place.end);
                Some((from..to, inner, true))
            }
            _ => None,
        }
    }

    fn take_out(&mut self, frame: &mut Vec<u8>) -> Verdict {
        let Some(outer) = outer_of(frame) else {
            return Verdict::Pass;
        };
        let Some((carried, inner, gue)) = self.tunnel(frame, &outer) else {
            return Verdict::Pass;
        };
        if !self.destinations.is_empty() && !self.destinations.contains(&outer.destination) {
            self.count("foreign");
            return Verdict::Pass;
        }
        if !allowed(&self.allow_sources, outer.source) {
            return self.drop("drop_source");
        }
        if outer.options {
            return self.drop("drop_options");
        }
        if outer.fragment {
            return self.drop("drop_fragment");
        }
        let (size, version, kind) = match inner {
            Family::V4 => (IPV4, 4, TYPE_IPV4),
            Family::V6 => (IPV6, 6, TYPE_IPV6),
        };
        let at = carried.start;
        if frame.len() < outer.end || carried.len() < size {
            return self.drop("drop_truncated");
        }
        if frame[at] >> 4 != version {
            return self.drop("drop_version");
        }
        if own_length(&frame[at..], inner) > carried.len() {
            return self.drop("drop_truncated");
        }
        let destination = match inner {
            Family::V4 => v4_at(frame, at + 16),
            Family::V6 => v6_at(frame, at + 24),
        };
        if !allowed(&self.allow_destinations, destination) {
            return self.drop("drop_destination");
        }
        if !pass_on_mark(&mut frame[at..], inner, outer.tos) {
            return self.drop("drop_ecn");
        }
        self.look_for_id(&frame[at..], inner, size);
        if self.one_family && outer.family != inner {
            return self.drop("drop_head");
        }
        frame.drain(ETHERNET..at);
        put_u16(frame, 12, kind);
        self.count(match (outer.family, gue) {
            (Family::V4, false) => "ipip_v4",
            (Family::V6, false) => "ipip_v6",
            (Family::V4, true) => "gue_v4",
            (Family::V6, true) => "gue_v6",
        });
        Verdict::Pass
    }

    /// Counts packets with a server id, and those with another server's.
    fn look_for_id(&mut self, ip: &[u8], family: Family, size: usize) {
        let protocol = match family {
            Family::V4 if ip[0] & 0xf != 5 || u16_at(ip, 6) & 0x3fff != 0 => return,
            Family::V4 => ip[9],
            Family::V6 => ip[6],
        };
        let bytes = own_length(ip, family).saturating_sub(size);
        if self.server_id == 0 || protocol != PROTOCOL_TCP || bytes < TCP {
            return;
        }
        // A header longer than its packet is none.
        if usize::from(ip[size + 12] >> 4) * 4 > bytes {
            return;
        }
        // A SYN answers no packet of ours: its option is an earlier connection's.
        if ip[size + 13] & SYN != 0 {
            return;
        }
        if let Some(id) = tcp_option(ip, size).filter(|id| *id != 0) {
            self.count("server_ids");
            if id != self.server_id {
                self.count("other_server_ids");
            }
        }
    }
}
