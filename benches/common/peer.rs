//! Katran's own program beside our balancer: with the same VIPs, reals, rings and server ids, so
//! that both treat packets alike.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;

use katran::HashFunction;
use katran::Katran;
use katran::Protocol;
use katran::ring::Endpoint;
use katran::ring::Ring;
use katran::ring::RingSize;
use katran_yardstick::Peer;
use katran_yardstick::PeerVip;

use crate::common::GATEWAY;
use crate::common::TCP;
use crate::common::UDP;

/// Katran's program from an object file, configured as `katran` is now, for packets on one CPU.
/// `quic`: UDP VIPs use QUIC connection ids.
pub(crate) fn peer(
    object: &Path,
    katran: &Katran,
    cpu: u32,
    flows: u32,
    quic: bool,
) -> io::Result<Peer> {
    let mut peer = Peer::load(object, cpu, flows, GATEWAY)?;
    let numbers: HashMap<IpAddr, u32> = katran
        .real_numbers()
        .into_iter()
        .map(|(address, number)| (address, number.get()))
        .collect();
    for (address, number) in &numbers {
        peer.set_real(*number, *address)?;
    }
    for (number, vip) in katran.vips().into_iter().enumerate() {
        let reals = katran.reals(vip).map_err(io::Error::other)?;
        let endpoints: Vec<_> = reals
            .iter()
            .map(|real| {
                let number = numbers[&real.address()] as u16;
                Endpoint::new(number, real.address(), real.get_weight())
            })
            .collect();
        let ring = Ring::build(HashFunction::Maglev, RingSize::DEFAULT, &endpoints);
        let (protocol, datagrams) = match vip.protocol() {
            Protocol::Udp => (UDP, true),
            _ => (TCP, false),
        };
        let vip = PeerVip {
            number: number as u32,
            address: SocketAddr::new(vip.address(), vip.port()),
            protocol,
            quic: quic && datagrams,
        };
        peer.add_vip(vip, ring.map_err(io::Error::other)?.slots())?;
    }
    for id in katran.server_ids().list() {
        peer.set_server_id(id.id(), numbers[&id.real()])?;
    }
    Ok(peer)
}
