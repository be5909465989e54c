//! The global flow table has a few flows of VIPs that use it.

use std::net::SocketAddr;

use katran::Flow;
use katran::Katran;
use katran_model as model;
use katran_model::Balancer;

use crate::balancers::real;
use crate::common::ip;

/// Fills the CPU's global table, in balancer and model.
pub(crate) fn fill(katran: &mut Katran, model: &mut Balancer, cpu: u32) {
    for (port, tcp) in [(80, true), (53, false)] {
        for (client, service) in [
            ("100.64.0.", "203.0.113.4"),
            ("2001:db8:c:0:0:0:4000:", "2001:db8:1::4"),
        ] {
            for host in 0..12u16 {
                let client = match client.contains(':') {
                    true => format!("{client}{:x}", host << 8),
                    false => format!("{client}{host}"),
                };
                let source = SocketAddr::new(ip(&client), 1024 + host % 6);
                let destination = SocketAddr::new(ip(service), port);
                let flow = match tcp {
                    true => Flow::tcp(source, destination),
                    false => Flow::udp(source, destination),
                };
                let address = real(host);
                let Some(number) = katran.real_index(address) else {
                    continue;
                };
                katran.global_flows_mut().set(cpu, &flow, address).unwrap();
                let vip = katran.vips().into_iter().position(|vip| {
                    vip.address() == destination.ip()
                        && vip.port() == port
                        && vip.protocol() == flow.protocol
                });
                let key = model::Flow {
                    source: source.ip(),
                    destination: destination.ip(),
                    source_port: source.port(),
                    destination_port: port,
                    protocol: flow.protocol.number(),
                };
                let key = (vip.unwrap() as u32, key);
                model.tables.global_flows.insert(key, number.get());
            }
        }
    }
}
