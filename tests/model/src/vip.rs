//! Step 5: the VIP. An exact one takes precedence, then a prefix, then any port, then both.

use std::net::IpAddr;

use crate::End;
use crate::Step;
use crate::tables::Tables;
use crate::tables::Vip;
use crate::tables::VipNumber;
use crate::tables::covers;
use crate::transport::Packet;
use crate::walk::Run;

impl Vip {
    /// Whether the VIP covers an address, whatever the port.
    pub fn covers(&self, address: IpAddr) -> bool {
        match self.prefix {
            None => self.address == address,
            Some(length) => covers(self.address, length, address),
        }
    }
}

/// The VIP of a destination, and whether it matches both address and port exactly.
pub fn lookup(
    tables: &Tables,
    destination: IpAddr,
    port: u16,
    protocol: u8,
) -> Option<(VipNumber, bool)> {
    let best = |prefixes: bool, port: u16| {
        tables
            .vips
            .iter()
            .filter(|(_, vip)| {
                vip.prefix.is_some() == prefixes
                    && vip.port == port
                    && vip.protocol == protocol
                    && vip.covers(destination)
            })
            .max_by_key(|(_, vip)| vip.prefix)
            .map(|(number, _)| *number)
    };
    if let Some(number) = best(false, port) {
        return Some((number, true));
    }
    let inexact = best(true, port)
        .or_else(|| best(false, 0))
        .or_else(|| best(true, 0));
    inexact.map(|number| (number, false))
}

/// The packet's VIP. If it does not match exactly, all its ports count as one flow, unless a flag
/// tells them apart.
pub(crate) fn find(run: &Run<'_>, mut packet: Packet) -> Step<(VipNumber, Packet)> {
    let tables = &run.balancer.tables;
    let flow = &mut packet.flow;
    let (number, exact) = lookup(
        tables,
        flow.destination,
        flow.destination_port,
        flow.protocol,
    )
    .ok_or(End::Pass("not a VIP"))?;
    let flags = tables.vips[&number].flags;
    if !exact && !flags.dport_hash && !flags.src_dst_port {
        flow.destination_port = 0;
    }
    Ok((number, packet))
}
