//! Which Ethernet address each next hop has: what the tables say, and what is made of it where they say
//! nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::NextHop;
use super::netlink::Interface;
use super::netlink::Requests;
use super::netlink::Route;
use super::probe_way;
use crate::Gateway;
use crate::MacAddr;
use crate::NextHops;
use crate::maps::HopCells;
use crate::maps::Live;
use crate::maps::MAX_PORTS;
use crate::maps::ProbeCells;

/// What the user has said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) gateway: Gateway,
    /// For reals with IPv6 addresses, if it is another one.
    pub(crate) gateway_v6: Option<MacAddr>,
    pub(crate) mode: NextHops,
}

impl Wanted {
    /// The address that the user has given for a family.
    pub(crate) fn fixed(&self, v6: bool) -> Option<MacAddr> {
        let of_family = self.gateway_v6.filter(|_| v6);
        of_family.or(match self.gateway {
            Gateway::Mac(mac) => Some(mac),
            Gateway::Auto => None,
        })
    }

    /// Whether anything has to be found out.
    pub(crate) fn needs_watching(&self) -> bool {
        self.gateway == Gateway::Auto || self.mode != NextHops::Gateway
    }
}

/// What packets read.
pub(crate) struct Cells {
    pub(crate) live: Arc<Live>,
    pub(crate) hops: Option<Arc<HopCells>>,
    pub(crate) probes: Option<Arc<ProbeCells>>,
}

/// A next hop and what is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Hop {
    address: Option<IpAddr>,
    interface: u32,
    mac: Option<MacAddr>,
    port: u16,
    /// The tables do not know the address any more; the last known one is used.
    lost: bool,
}

pub(super) struct Resolver {
    requests: Requests,
    wanted: Wanted,
    cells: Cells,
    reals: BTreeMap<u16, IpAddr>,
    of_reals: BTreeMap<u16, Hop>,
    /// Of IPv4 and of IPv6.
    gateways: [Hop; 2],
    /// Numbers of ports, by the interface's index.
    ports: BTreeMap<u32, (u16, MacAddr)>,
    interfaces: BTreeMap<u32, Interface>,
    /// What is wanted has changed since.
    stale: bool,
}

impl Resolver {
    pub(super) fn new(requests: Requests, wanted: Wanted, cells: Cells) -> Self {
        Self {
            requests,
            wanted,
            cells,
            reals: BTreeMap::new(),
            of_reals: BTreeMap::new(),
            gateways: [Hop::default(); 2],
            ports: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            stale: true,
        }
    }

    pub(super) fn set_wanted(&mut self, wanted: Wanted) {
        self.wanted = wanted;
        self.of_reals.clear();
        self.stale = true;
    }

    pub(super) fn set_probes(&mut self, probes: Arc<ProbeCells>) {
        self.cells.probes = Some(probes);
        self.stale = true;
    }

    /// Nothing is known of a new real; of one that is there already, nothing changes.
    pub(super) fn add(&mut self, number: u16, address: IpAddr) {
        if self.reals.insert(number, address) != Some(address) {
            self.of_reals.remove(&number);
            self.write_hop(number, Hop::default());
        }
    }

    pub(super) fn remove(&mut self, number: u16) {
        self.reals.remove(&number);
        self.of_reals.remove(&number);
        self.write_hop(number, Hop::default());
    }

    /// Asks for everything again, and writes what has changed; to be called in the network namespace. Those that are not known are looked
    /// for if they are new; `solicit`: all of them, and the others are confirmed.
    pub(super) fn settle(&mut self, solicit: bool) {
        // A name or an address may have changed, too.
        self.interfaces.clear();
        self.stale = false;
        if self.wanted.gateway == Gateway::Auto {
            self.settle_gateways(solicit);
        }
        if self.wanted.mode != NextHops::Gateway {
            for number in self.reals.keys().copied().collect::<Vec<_>>() {
                self.settle_real(number, solicit);
            }
        }
        if let Some(probes) = &self.cells.probes {
            let (requests, wanted) = (&mut self.requests, &self.wanted);
            probes.refresh_ways(|real| probe_way(requests, wanted, real).ok());
        }
    }

    /// The same for what nothing is known of.
    pub(super) fn settle_new(&mut self) {
        if self.stale || self.missing().is_some() {
            return self.settle(false);
        }
        // A new real may be the first behind a router.
        if self.wanted.gateway == Gateway::Auto {
            self.settle_gateways(false);
        }
        if self.wanted.mode == NextHops::Gateway {
            return;
        }
        for number in self.reals.keys().copied().collect::<Vec<_>>() {
            if !self.of_reals.contains_key(&number) {
                self.settle_real(number, false);
            }
        }
    }

    fn settle_gateways(&mut self, solicit: bool) {
        for v6 in [false, true] {
            let before = self.gateways[usize::from(v6)];
            let hop = match self.gateway_route(v6) {
                Some(route) => self.look(route.gateway, &route, before, solicit),
                None => Hop {
                    // Packets may still find their way.
                    mac: before.mac,
                    lost: true,
                    ..Hop::default()
                },
            };
            if hop.mac != before.mac {
                let name = if v6 { "IPv6" } else { "IPv4" };
                log::info!("the gateway of {name} reals: {}", text(&hop));
            }
            self.gateways[usize::from(v6)] = hop;
        }
        for v6 in [false, true] {
            if let Some(mac) = self.gateway(v6) {
                self.cells.live.set_gateway_mac(v6, mac);
                if let Some(probes) = &self.cells.probes {
                    probes.set_gateway_mac(v6, mac);
                }
            }
        }
    }

    /// The route of the first real of the family that is behind a router; if there is none, the
    /// default route.
    fn gateway_route(&mut self, v6: bool) -> Option<Route> {
        let of_family = |address: &&IpAddr| address.is_ipv6() == v6;
        let reals: Vec<_> = self.reals.values().filter(of_family).copied().collect();
        for real in reals {
            let route = self.route(real);
            if route.is_some_and(|route| route.gateway.is_some()) {
                return route;
            }
        }
        self.requests.default_route(v6).unwrap_or_else(|error| {
            log::warn!("cannot ask for the default route: {error}");
            None
        })
    }

    fn route(&mut self, address: IpAddr) -> Option<Route> {
        self.requests.route(address).unwrap_or_else(|error| {
            log::warn!("cannot ask for the route to {address}: {error}");
            None
        })
    }

    fn settle_real(&mut self, number: u16, solicit: bool) {
        let Some(real) = self.reals.get(&number).copied() else {
            return;
        };
        let known = self.of_reals.get(&number).copied();
        let before = known.unwrap_or_default();
        let fixed = self.wanted.fixed(real.is_ipv6());
        let mut hop = match self.route(real) {
            // The address that was given is that of the routers.
            Some(Route {
                gateway: Some(gateway),
                interface,
                ..
            }) if fixed.is_some() && self.wanted.mode == NextHops::PerReal => Hop {
                address: Some(gateway),
                interface,
                mac: fixed,
                ..Hop::default()
            },
            Some(route) if !route.local => {
                let address = route.gateway.unwrap_or(real);
                let mut hop = self.look(Some(address), &route, before, solicit || known.is_none());
                if self.wanted.mode == NextHops::Redirect {
                    hop.port = self.port(route.interface).unwrap_or(0);
                }
                hop
            }
            _ => Hop::default(),
        };
        // Better than nothing: where there is a router, it knows a way.
        if hop.mac.is_none() {
            hop.mac = fixed;
            hop.port = 0;
        }
        if known != Some(hop) {
            if (hop.mac, hop.port) != (before.mac, before.port) {
                log::info!("the next hop of real {real}: {}", text(&hop));
                self.write_hop(number, hop);
            }
            self.of_reals.insert(number, hop);
        }
    }

    /// What the neighbour table knows of `address`; what was known before, if it has forgotten.
    fn look(&mut self, address: Option<IpAddr>, route: &Route, before: Hop, solicit: bool) -> Hop {
        let mut hop = Hop {
            address,
            interface: route.interface,
            ..Hop::default()
        };
        let Some(address) = address else {
            return hop;
        };
        let same = (before.address, before.interface) == (hop.address, hop.interface);
        hop.mac = self
            .requests
            .neighbour(route.interface, address)
            .unwrap_or_else(|error| {
                log::warn!("cannot ask for the neighbour {address}: {error}");
                None
            });
        if hop.mac.is_none() && same {
            hop.mac = before.mac;
            hop.lost = before.mac.is_some();
            if hop.lost && !before.lost {
                log::warn!("{address} does not answer any more: its last address stays in use");
            }
        }
        if (solicit || !same)
            && let Err(error) = self.requests.solicit(route.interface, address)
        {
            log::debug!("cannot ask {address} for its Ethernet address: {error}");
        }
        hop
    }

    /// The number of the port for an interface; a new one, if it has none.
    fn port(&mut self, index: u32) -> Option<u16> {
        let hops = self.cells.hops.clone()?;
        let mac = self.interface(index)?.mac?;
        let known = self.ports.get(&index).copied();
        let port = known.map_or(self.ports.len() as u16 + 1, |(port, _)| port);
        if known == Some((port, mac)) {
            return Some(port);
        }
        if port > MAX_PORTS {
            log::error!("more than {MAX_PORTS} interfaces lead to reals: no port for {index}");
            return None;
        }
        if let Err(error) = hops.set_port(port, index, mac) {
            log::error!("cannot make a port of interface {index}: {error}");
            return None;
        }
        self.ports.insert(index, (port, mac));
        Some(port)
    }

    fn interface(&mut self, index: u32) -> Option<Interface> {
        if let Some(known) = self.interfaces.get(&index) {
            return Some(known.clone());
        }
        let interface = self.requests.interface(index).ok().flatten()?;
        self.interfaces.insert(index, interface.clone());
        Some(interface)
    }

    fn write_hop(&self, number: u16, hop: Hop) {
        let Some(hops) = &self.cells.hops else {
            return;
        };
        match hop.mac {
            Some(mac) => hops.set(number, mac, hop.port),
            None => hops.clear(number),
        }
    }

    /// The Ethernet address of the family's gateway. If it has none that is known, the other family's
    /// is most likely the same router.
    pub(super) fn gateway(&self, v6: bool) -> Option<MacAddr> {
        let found = |v6| self.gateways[usize::from(v6)].mac;
        let fixed = self.wanted.fixed(v6);
        fixed.or_else(|| found(v6)).or_else(|| found(!v6))
    }

    /// Why no packet can leave, if the gateway is to be found out and is not.
    pub(super) fn missing(&self) -> Option<String> {
        if self.wanted.mode != NextHops::Gateway || self.gateway(false).is_some() {
            return None;
        }
        let gateway = self.gateways.iter().find_map(|hop| hop.address);
        Some(match gateway {
            Some(gateway) => format!("{gateway} does not answer with its Ethernet address"),
            None => "no real is behind a router, and there is no default route".to_owned(),
        })
    }

    /// Whether all that is to be known is.
    pub(super) fn all_known(&self) -> bool {
        let lost = |hop: &Hop| hop.mac.is_none() || hop.lost;
        match self.wanted.mode {
            NextHops::Gateway => !self.gateways.iter().all(lost),
            _ => self.of_reals.len() == self.reals.len() && !self.of_reals.values().any(lost),
        }
    }

    pub(super) fn list(&mut self) -> Vec<NextHop> {
        let mut list = Vec::new();
        if self.wanted.mode == NextHops::Gateway {
            for v6 in [false, true] {
                let mut hop = self.gateways[usize::from(v6)];
                hop.mac = self.gateway(v6);
                list.push((None, hop));
            }
        }
        let reals = self.reals.iter();
        if self.wanted.mode != NextHops::Gateway {
            list.extend(reals.map(|(number, real)| {
                let hop = self.of_reals.get(number).copied().unwrap_or_default();
                (Some(*real), hop)
            }));
        }
        list.into_iter()
            .map(|(real, hop)| NextHop {
                real,
                address: hop.address,
                interface: self
                    .interface(hop.interface)
                    .map(|interface| interface.name),
                mac: hop.mac,
            })
            .collect()
    }
}

fn text(hop: &Hop) -> String {
    let mac = hop
        .mac
        .map_or("not known".to_owned(), |mac| mac.to_string());
    match hop.address {
        Some(address) => format!("{address}, {mac}"),
        None => mac,
    }
}
