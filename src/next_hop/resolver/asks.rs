//! The questions of the resolver, and what it makes of the answers.

use std::net::IpAddr;

use super::Resolver;
use crate::next_hop::hop;
use crate::next_hop::hop::Hop;
use crate::next_hop::hop::Neighbour;
use crate::next_hop::neighbours::User;
use crate::next_hop::probe_way;
use crate::next_hop::touched::LinkChange;
use crate::next_hop::touched::link_change;
use crate::rtnetlink::Route;
use crate::types::ByFamily;
use crate::types::Family;
use crate::types::NextHops;

impl Resolver {
    pub(super) fn ask_link(&mut self, index: u32) {
        let now = match self.requests.interface(index) {
            Ok(now) => now,
            Err(error) => {
                log::warn!("cannot ask about interface {index}: {error}");
                return;
            }
        };
        let before = self.interfaces.set(index, now.clone());
        if before != now {
            self.names_changed = true;
            self.ways.renew(&self.interfaces);
        }
        let change = link_change(before.as_ref(), now.as_ref());
        // It may have left the network namespace and come back, which costs it its port.
        self.renew_port(index);
        let neighbours = self.neighbours.all().filter(|(of, _)| *of == index);
        let neighbours: Vec<_> = neighbours.collect();
        match change {
            LinkChange::AllWays => {
                self.all_ways();
                let asked = neighbours.into_iter().map(|neighbour| (neighbour, true));
                self.pending.neighbours.extend(asked);
            }
            LinkChange::OwnWays => {
                let is_by = |of: u32| of == index;
                let by_it = self.reals.keys().filter(|number| {
                    let route = self.routes.get(number).copied().flatten();
                    let hop = self.hops.get(number);
                    route.is_some_and(|route| is_by(route.interface))
                        || hop.is_some_and(|hop| is_by(hop.mac_interface))
                });
                let by_it: Vec<_> = by_it.copied().collect();
                self.ways_of(&by_it);
                self.pending.gateways = ByFamily::both(true);
                for neighbour in neighbours {
                    self.pending.neighbours.entry(neighbour).or_default();
                }
            }
            LinkChange::Address | LinkChange::Nothing => {}
        }
    }

    pub(super) fn ask_real(&mut self, number: u16) {
        let Some(real) = self.reals.get(&number) else {
            return;
        };
        let address = real.address;
        let route = self
            .ways
            .route(&mut self.requests, &self.interfaces, address);
        match route {
            Ok(route) => {
                self.routes.insert(number, route);
                self.update_real(number);
            }
            Err(error) => log::warn!("cannot ask for the route to {address}: {error}"),
        }
    }

    /// Puts together what is known of a real's next hop.
    pub(super) fn update_real(&mut self, number: u16) {
        let (Some(real), Some(route)) = (self.reals.get(&number), self.routes.get(&number)) else {
            return;
        };
        let (real, route, wanted) = (real.address, *route, self.wanted);
        if wanted.mode == NextHops::Gateway {
            return;
        }
        let neighbour = hop::neighbour_of_real(&wanted, real, route.as_ref());
        self.assign(User::Real(number), neighbour);
        let fixed = wanted.fixed(Family::of(real));
        let first = Hop::default().or_given(fixed, &Hop::default());
        let before = self.hops.get(&number).copied().unwrap_or(first);
        let found = self.neighbours.found(User::Real(number));
        let mut hop = hop::of_real(&wanted, real, route.as_ref(), found, &before);
        if wanted.mode == NextHops::Redirect && hop.found().is_some() && self.board.is_some() {
            match self.port(hop.mac_interface) {
                Some(port) => hop.port = port,
                // On the segment of the interface that it came in on nobody has this address.
                None => hop.mac = None,
            }
        }
        let hop = hop.or_given(fixed, &before);
        if (hop.mac, hop.port) != (before.mac, before.port) {
            log::info!("the next hop of real {real}: {}", hop.text());
        }
        if self.hops.insert(number, hop) != Some(hop) {
            self.changed.insert(number);
        }
    }

    pub(super) fn ask_gateway(&mut self, family: Family) {
        if !self.wanted.finds_gateway() {
            return;
        }
        self.pending.gateways[family] = false;
        let route = self.gateway_route(family);
        let router = route.and_then(|route| Some((route.interface, route.gateway?)));
        self.routers[family] = router;
        self.update_gateway(family);
    }

    /// The route of the first real of the family that is behind a router, else the default route; those
    /// by an interface that the balancer is attached to come first.
    fn gateway_route(&mut self, family: Family) -> Option<Route> {
        let mut elsewhere = None;
        let of_family = self.reals.iter();
        let of_family = of_family.filter(|(_, real)| Family::of(real.address) == family);
        for (number, real) in of_family {
            let route = match self.routes.get(number) {
                Some(route) => *route,
                None => {
                    let (requests, address) = (&mut self.requests, real.address);
                    match self.ways.route(requests, &self.interfaces, address) {
                        Ok(route) => {
                            self.routes.insert(*number, route);
                            route
                        }
                        Err(error) => {
                            log::warn!("cannot ask for the route to {address}: {error}");
                            None
                        }
                    }
                }
            };
            let Some(route) = route.filter(|route| route.gateway.is_some()) else {
                continue;
            };
            if self.ways.reach(&self.interfaces, route.interface) {
                return Some(route);
            }
            elsewhere.get_or_insert(route);
        }
        let default = self
            .ways
            .default_route(&mut self.requests, &self.interfaces, family);
        let default = default.unwrap_or_else(|error| {
            log::warn!("cannot ask for the default routes: {error}");
            None
        });
        let here = default.filter(|route| self.ways.reach(&self.interfaces, route.interface));
        here.or(elsewhere).or(default)
    }

    fn update_gateway(&mut self, family: Family) {
        let router = self.routers[family];
        self.assign(User::Gateway(family), router);
        let before = self.gateways[family];
        let found = self.neighbours.found(User::Gateway(family));
        let hop = hop::of_gateway(router, found, &before);
        if hop.mac != before.mac {
            log::info!("the gateway of {family} reals: {}", hop.text());
        }
        if hop.interface != before.interface && !self.ways.reach(&self.interfaces, hop.interface) {
            log::warn!(
                "the gateway of {family} reals is behind {}, where the balancer is not attached",
                self.interfaces.name(hop.interface)
            );
        }
        self.gateways[family] = hop;
    }

    /// A user is behind this neighbour from now on; one that nobody was behind is asked.
    fn assign(&mut self, user: User, neighbour: Option<Neighbour>) {
        if self.neighbours.assign(user, neighbour)
            && let Some(neighbour) = neighbour
        {
            self.look_up(neighbour, true);
        }
    }

    /// What the neighbour table knows, for all who are behind a neighbour.
    pub(super) fn ask_neighbour(&mut self, neighbour: Neighbour, solicit: bool) {
        self.look_up(neighbour, solicit);
        for user in self.neighbours.users(&neighbour) {
            match user {
                User::Gateway(family) => self.update_gateway(family),
                User::Real(number) => self.update_real(number),
            }
        }
    }

    fn look_up(&mut self, neighbour: Neighbour, solicit: bool) {
        let (interface, address) = neighbour;
        let found = self.requests.neighbour(interface, address);
        let found = found.unwrap_or_else(|error| {
            log::warn!("cannot ask for the neighbour {address}: {error}");
            None
        });
        let before = self.neighbours.learn(&neighbour, found);
        // Nobody can be asked where the interface is down.
        let is_up = self.interfaces.get(interface).is_none_or(|of| of.up);
        let is_lost = is_up && before.is_some() && found.is_none();
        if is_lost {
            log::warn!("{address} does not answer any more: its last address stays in use");
        }
        // The kernel does not look after neighbours that only XDP sends to.
        if (solicit || is_lost)
            && is_up
            && self.board.is_some()
            && self.neighbours.is_asked(&neighbour)
            && let Err(error) = self.requests.solicit(interface, address)
        {
            // The neighbour table is full, if anything.
            log::warn!(
                "cannot ask {address} for its Ethernet address: {error} (more reals than \
                 net.ipv4.neigh.default.gc_thresh3, or that of ipv6?)"
            );
        }
    }

    pub(super) fn ask_probe_way(&mut self, real: IpAddr) {
        let probes = self.board.as_ref().and_then(|board| board.probe_cells());
        if let Some(probes) = probes
            && let Ok(way) = probe_way(&mut self.requests, &self.wanted, real)
        {
            probes.set_way(real, way);
        }
    }

    /// A port as it is in the kernel, where an interface that leaves the network namespace loses its own,
    /// even if it comes back.
    pub(super) fn renew_port(&mut self, index: u32) {
        let Some(port) = self.ports.get(index) else {
            return;
        };
        let mac = self.interfaces.get(index).and_then(|of| of.mac);
        let hops = self.board.as_ref().and_then(|board| board.hop_cells());
        match (mac, hops) {
            (Some(mac), Some(hops)) => {
                if let Err(error) = hops.set_port(port, index, mac) {
                    log::error!("cannot renew the port of interface {index}: {error}");
                }
            }
            _ => self.leave_port(index),
        }
    }

    /// The interface is gone; its number is free when no hop refers to it any more.
    fn leave_port(&mut self, index: u32) {
        if let Some(port) = self.ports.get(index) {
            self.ports.forget(index);
            self.left_ports.push(port);
            let refers = self.hops.iter().filter(|(_, hop)| hop.port == port);
            let refers: Vec<_> = refers.map(|(number, _)| *number).collect();
            self.pending.reals.extend(refers);
        }
    }

    /// The number of the port for an interface; a new one, if it has none.
    fn port(&mut self, index: u32) -> Option<u16> {
        let hops = self.board.as_ref().and_then(|board| board.hop_cells())?;
        // Frames keep the tags that they came with, so the tagged link is what leads there.
        let index = self.interfaces.below_vlans(index);
        if let Some(port) = self.ports.get(index) {
            return Some(port);
        }
        let name = self.interfaces.name(index);
        let Some(mac) = self.interfaces.get(index)?.mac else {
            log::error!("{name} has no Ethernet address: reals behind it are not reached");
            return None;
        };
        let Some(port) = self.ports.free() else {
            log::error!("too many interfaces lead to reals: there is no port for {name}");
            return None;
        };
        if let Err(error) = hops.set_port(port, index, mac) {
            log::error!("cannot make a port of {name}: {error}");
            return None;
        }
        self.ports.take(index, port);
        Some(port)
    }
}
