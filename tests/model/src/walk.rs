//! The walk: from an arriving frame to its verdict. Each step learns something or ends the walk;
//! this module has their order, and what applies to all frames.

use crate::Balancer;
use crate::End;
use crate::Outcome;
use crate::RealId;
use crate::Step;
use crate::Time;
use crate::VipNumber;
use crate::bytes::ETHERNET;
use crate::bytes::TYPE_IPV4;
use crate::bytes::TYPE_IPV6;
use crate::bytes::u16_at;
use crate::choose;
use crate::icmp;
use crate::ip;
use crate::ip::Family;
use crate::out;
use crate::too_big;
use crate::transport;
use crate::tunnel;
use crate::vip;

/// A frame on its walk.
pub(crate) struct Run<'a> {
    pub(crate) balancer: &'a mut Balancer,
    /// The current frame: without VLAN tags, after decapsulation, with an outer header.
    pub(crate) frame: Vec<u8>,
    pub(crate) now: Time,
    /// Whether it came in a tunnel that ended here.
    pub(crate) unwrapped: bool,
    pub(crate) vip: Option<VipNumber>,
    pub(crate) real: Option<RealId>,
    /// What chose the real, by its name in `simulate`.
    pub(crate) chosen: Option<&'static str>,
}

impl Balancer {
    /// The result for a frame that arrives now.
    pub fn walk(&mut self, frame: &[u8], now: Time) -> Outcome {
        let arrived = frame.len();
        let mut run = Run {
            balancer: self,
            frame: frame.to_vec(),
            now,
            unwrapped: false,
            vip: None,
            real: None,
            chosen: None,
        };
        let end = run.all_steps().unwrap_or_else(|end| end);
        let Run {
            frame,
            vip,
            real,
            chosen,
            ..
        } = run;
        if let End::Drop(reason) = end {
            self.count("drop_reasons", reason);
        }
        // Network cards deliver no frame without an Ethernet header: it is in no total.
        if arrived >= ETHERNET {
            self.count_frame(end, arrived as u64);
        }
        Outcome {
            end,
            frame,
            vip,
            real,
            chosen,
        }
    }

    /// Every frame counts in *total*, and in exactly one other counter.
    fn count_frame(&mut self, end: End, bytes: u64) {
        let (packets_of, bytes_of) = match end {
            End::Tx(_) | End::Redirect(_) => {
                self.sent += 1;
                ("tx.packets", "tx.bytes")
            }
            End::Pass(_) => ("pass.packets", "pass.bytes"),
            End::Drop(_) => ("drop.packets", "drop.bytes"),
        };
        self.counters.add("totals", packets_of, 1);
        self.counters.add("totals", bytes_of, bytes);
        self.counters.add("totals", "total.packets", 1);
        self.counters.add("totals", "total.bytes", bytes);
    }
}

impl Run<'_> {
    /// Counts a packet that looks at the flow table.
    pub(crate) fn count_table(&mut self) {
        self.balancer.count("flow_table", "packets");
        if !self.balancer.config.has_flow_table {
            self.balancer.count("flow_table", "fallback");
        }
    }

    fn all_steps(&mut self) -> Step<End> {
        if self.frame.len() < ETHERNET {
            return Err(End::Drop("frame_truncated"));
        }
        if self.balancer.config.orphaned {
            self.balancer.count("orphan", "passed");
            return Err(End::Pass("no owner"));
        }
        if !self.is_for_this_station() {
            return Err(End::Pass("another station"));
        }
        let tags = self.take_off_tags()?;
        let end = self.walk_ip().unwrap_or_else(|end| end);
        // A frame leaves with the tags it came with.
        self.frame.splice(12..12, tags);
        Ok(end)
    }

    /// A group address is never ours. Unattached, the balancer has no address.
    fn is_for_this_station(&self) -> bool {
        let destination = &self.frame[..6];
        let own = &self.balancer.config.own_macs;
        destination[0] & 1 == 0 && (own.is_empty() || own.iter().any(|mac| mac == destination))
    }

    /// Sets aside one or two tags (IEEE 802.1Q, 802.1ad) of an IP packet, so that later steps need
    /// not know of them. A frame without an IP packet stays unchanged.
    fn take_off_tags(&mut self) -> Step<Vec<u8>> {
        let mut at = 12;
        for _ in 0..2 {
            if !matches!(u16_at(&self.frame, at), 0x8100 | 0x88a8) {
                break;
            }
            at += 4;
            if self.frame.len() < at + 2 {
                return Err(End::Drop("frame_truncated"));
            }
        }
        match u16_at(&self.frame, at) {
            TYPE_IPV4 | TYPE_IPV6 => Ok(self.frame.drain(12..at).collect()),
            _ => Err(End::Pass("not IP")),
        }
    }

    /// Steps 1 to 9, and again for the contents of a tunnel that ended here.
    fn walk_ip(&mut self) -> Step<End> {
        let header = loop {
            let family = match u16_at(&self.frame, 12) {
                TYPE_IPV4 => Family::V4,
                _ => Family::V6,
            };
            let header = ip::parse(self, family)?;
            if !tunnel::unwrap(self, &header)? {
                break header;
            }
        };
        let error = icmp::parse(self, &header)?;
        let packet = transport::parse(self, &header, error)?;
        let (number, packet) = vip::find(self, packet)?;
        self.vip = Some(number);
        too_big::check(self, &header, packet.error.is_some())?;
        let choice = choose::real(self, number, &packet)?;
        self.real = Some(choice.real);
        out::send(self, number, &packet, &choice)
    }
}
