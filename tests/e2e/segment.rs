//! Networks beyond the ready-made lab: a balancer and its backends on one segment, a balancer with
//! two interfaces, and links with VLAN tags.
//!
//! On the segment (10.20.0.0/24, 2001:db8:20::/64; a bridge) are the router (.1), the balancer (.2)
//! and the backends (.11 and on). A balancer with two interfaces also has the lab's link to the
//! router.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use katran::Builder;
use katran::Decap;
use katran::Gateway;
use katran::Katran;
use katran::NextHops;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpServer;
use katran_lab::require_root;
use katran_lab::veth;

use crate::site;
use crate::site::PORT;

pub(crate) const BACKENDS: usize = 2;

/// How packets for the VIPs reach the balancer.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Arrival {
    Segment,
    /// By the balancer's own link to the router.
    OwnLink,
}

/// The network, with servers and decapsulators on the backends, and a balancer that is not
/// attached.
pub(crate) struct Segment {
    pub(crate) katran: Katran,
    decaps: Vec<Decap>,
    servers: Vec<TcpServer>,
    pub(crate) lab: Lab,
    pub(crate) backends: Vec<Host>,
    switch: Host,
}

pub(crate) fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, 0, last)
}

pub(crate) fn v6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, last.into())
}

impl Segment {
    /// One whose balancer discovers its gateways and whose main routing table leads to the segment:
    /// another table leads to the router by the balancer's own link, `eth0`.
    pub(crate) fn with_another_table(next_hops: NextHops) -> Self {
        let network = Self::new(Arrival::OwnLink, |builder| {
            builder.gateway(Gateway::Auto).next_hops(next_hops)
        });
        let host = &network.lab.balancers[0].host;
        for family in ["-4", "-6"] {
            host.ip(&format!("{family} route del default")).unwrap();
        }
        host.ip(&format!("route add default via {} dev eth1", v4(1)))
            .unwrap();
        network
    }

    pub(crate) fn new(arrival: Arrival, settings: impl FnOnce(Builder) -> Builder) -> Self {
        require_root();
        let config = LabConfig {
            backends: 0,
            ..LabConfig::default()
        };
        let lab = Lab::new(config).unwrap();
        let switch = Host::new("switch").unwrap();
        switch
            .ip("link add bridge0 type bridge mcast_snooping 0")
            .unwrap();
        switch.ip("link set bridge0 mtu 1600 up").unwrap();
        let join = |host: &Host, interface: &str, port: &str, last: u8| {
            join(&switch, host, interface, port, last);
        };
        join(&lab.router, "segment", "router", 1);
        let balancer = &lab.balancers[0].host;
        join(balancer, "eth1", "balancer", 2);
        let mut backends = Vec::new();
        for index in 0..BACKENDS {
            let last = 11 + index as u8;
            let backend = Host::new(format!("backend{index}")).unwrap();
            join(&backend, "eth0", &format!("backend{index}"), last);
            for gateway in [IpAddr::from(v4(1)), v6(1).into()] {
                let route = format!("route add default via {gateway} mtu 1500");
                backend.ip(&route).unwrap();
            }
            for vip in &lab.vips {
                site::add_to_lo(&backend, *vip);
            }
            backends.push(backend);
        }
        if arrival == Arrival::Segment {
            lab.router
                .ip(&format!("route replace {}/32 via {}", lab.vip4(), v4(2)))
                .unwrap();
            lab.router
                .ip(&format!("route replace {}/128 via {}", lab.vip6(), v6(2)))
                .unwrap();
            // All of the balancer's traffic goes over the segment.
            balancer.ip("link del eth0").unwrap();
            for gateway in [IpAddr::from(v4(1)), IpAddr::from(v6(1))] {
                balancer
                    .ip(&format!("route add default via {gateway}"))
                    .unwrap();
            }
        }
        let decaps = backends
            .iter()
            .map(|backend| {
                let mut decap = Decap::builder().load().unwrap();
                backend.run(|| decap.attach("eth0", XdpMode::Native).unwrap());
                decap
            })
            .collect();
        let servers = backends
            .iter()
            .map(|backend| TcpServer::start(backend, PORT, backend.name()).unwrap())
            .collect();
        let gateway = katran::MacAddr::new([2, 0, 0, 0, 0, 0x99]);
        let katran = settings(site::small(gateway)).load().unwrap();
        Self {
            katran,
            decaps,
            servers,
            lab,
            backends,
            switch,
        }
    }

    /// Replaces a removed interface of the balancer to the segment.
    pub(crate) fn join_again(&self) {
        let balancer = &self.lab.balancers[0].host;
        join(&self.switch, balancer, "eth1", "balancer", 2);
    }

    /// The addresses of all backends in the family of `like`.
    pub(crate) fn reals(&self, like: IpAddr) -> Vec<IpAddr> {
        (11..11 + BACKENDS as u8)
            .map(|last| match like {
                IpAddr::V4(_) => v4(last).into(),
                IpAddr::V6(_) => v6(last).into(),
            })
            .collect()
    }

    /// Adds both VIPs: an IPv4 one with IPv6 reals and vice versa.
    pub(crate) fn serve(&mut self) -> [Vip; 2] {
        let vips = [
            Vip::tcp((self.lab.vip4(), PORT).into()),
            Vip::tcp((self.lab.vip6(), PORT).into()),
        ];
        for (vip, like) in [(vips[0], vips[1]), (vips[1], vips[0])] {
            self.katran.add_vip(vip, VipFlags::empty()).unwrap();
            for real in self.reals(like.address()) {
                self.katran.add_real(vip, Real::new(real)).unwrap();
            }
        }
        vips
    }

    /// Makes connections until every backend has answered on each VIP.
    pub(crate) fn check(&self, vips: &[Vip]) {
        for vip in vips {
            let mut answered = std::collections::BTreeSet::new();
            site::eventually("every backend answers", || {
                let client = katran_lab::TcpClient::connect(&self.lab.client, site::service(*vip));
                let mut client =
                    client.unwrap_or_else(|error| panic!("{error}: {}", self.report()));
                answered.insert(client.ask("who").unwrap());
                answered.len() == self.servers.len()
            });
        }
    }

    /// What to add to the message of a failure.
    fn report(&self) -> String {
        let decaps: Vec<_> = self.decaps.iter().map(Decap::counters).collect();
        let hops = self.katran.gateways().next_hops();
        let counters = self.katran.counters();
        format!("balancer: {counters:#?}\nnext hops: {hops:#?}\nbackends: {decaps:#?}")
    }
}

/// Connects a host to the segment: its addresses end with `last`.
fn join(switch: &Host, host: &Host, interface: &str, port: &str, last: u8) {
    veth(host.port(interface), switch.port(port).takes_xdp_tx(), 1600).unwrap();
    switch
        .ip(&format!("link set {port} master bridge0"))
        .unwrap();
    let (v4, v6) = (v4(last), v6(last));
    host.ip(&format!("addr add {v4}/24 dev {interface}"))
        .unwrap();
    host.ip(&format!("addr add {v6}/64 dev {interface} nodad"))
        .unwrap();
}
