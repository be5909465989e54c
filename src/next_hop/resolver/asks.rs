//! The resolver's questions, and what it makes of the answers.

use std::fmt;
use std::net::IpAddr;

use super::Ask;
use super::Resolver;
use crate::next_hop::hop;
use crate::next_hop::hop::Hop;
use crate::next_hop::hop::Neighbour;
use crate::next_hop::neighbours::User;
use crate::next_hop::probes::way_of_probes;
use crate::next_hop::touched::LinkChange;
use crate::next_hop::touched::link_change;
use crate::types::Family;
use crate::types::NextHops;

/// The number of warnings of one kind between two rounds of confirmation.
const MOST_COMPLAINTS: u64 = 20;

impl Resolver {
    pub(super) fn ask_link(&mut self, index: u32) {
        let now = match self.requests.interface(index) {
            Ok(now) => now,
            Err(error) => {
                log::warn!("cannot look up interface {index}: {error}");
                return;
            }
        };
        let before = self.interfaces.set(index, now.clone());
        if before != now {
            self.names_changed = true;
            self.ways.renew(&self.interfaces);
        }
        if now.is_none() {
            self.look_at_probes_interface();
        }
        let change = link_change(before.as_ref(), now.as_ref());
        // It may have left the network namespace and returned, which costs it its port.
        self.renew_port(index);
        let neighbours = self.neighbours.all().filter(|(of, _)| *of == index);
        let neighbours: Vec<_> = neighbours.collect();
        for family in Family::ALL {
            // The kernel removes routes with a link and restores them, without notice; the link may
            // have gone and come back since.
            if change == LinkChange::AllWays || self.has_default_by(family, index) {
                self.forget_defaults(family);
                self.searches[family].begin();
            }
        }
        match change {
            LinkChange::AllWays => {
                self.all_ways();
                let asked = neighbours
                    .into_iter()
                    .map(|neighbour| (neighbour, Ask::Neighbour));
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
                self.begin_searches();
                for neighbour in neighbours {
                    self.pending.neighbours.entry(neighbour).or_default();
                }
            }
            LinkChange::Address | LinkChange::Nothing => {}
        }
    }

    /// Asks for the routes to these reals at once.
    pub(super) fn ask_reals(&mut self, numbers: &[u16]) {
        let asked = numbers.iter().filter_map(|number| {
            let real = self.reals.get(number)?;
            Some((*number, real.address))
        });
        let (numbers, addresses): (Vec<_>, Vec<_>) = asked.unzip();
        let answers = self
            .ways
            .routes(&mut self.requests, &self.interfaces, &addresses);
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                self.complain(format_args!("cannot look up routes: {error}"));
                self.pending.again.extend(numbers);
                return;
            }
        };
        for ((number, address), route) in numbers.into_iter().zip(addresses).zip(answers) {
            match route {
                Ok(route) => {
                    self.routes.insert(number, route);
                    self.update_real(number);
                }
                Err(error) => {
                    self.complain(format_args!(
                        "cannot look up the route to {address}: {error}"
                    ));
                    self.pending.again.insert(number);
                }
            }
        }
    }

    /// Computes a real's next hop from what is known.
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
                // No host on the segment of the incoming interface has this address.
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

    /// Puts a user behind this neighbour; asks for a neighbour that had none.
    pub(super) fn assign(&mut self, user: User, neighbour: Option<Neighbour>) {
        if self.neighbours.assign(user, neighbour)
            && let Some(neighbour) = neighbour
        {
            self.look_up(neighbour, Ask::Neighbour);
        }
    }

    /// Reads the neighbour table, for everything behind a neighbour.
    pub(super) fn ask_neighbour(&mut self, neighbour: Neighbour, ask: Ask) {
        self.look_up(neighbour, ask);
        for user in self.neighbours.users(&neighbour) {
            match user {
                User::Gateway(family) => self.update_gateway(family),
                User::Real(number) => self.update_real(number),
            }
        }
    }

    fn look_up(&mut self, neighbour: Neighbour, ask: Ask) {
        let (interface, address) = neighbour;
        let found = self.requests.neighbour(interface, address);
        let found = found.unwrap_or_else(|error| {
            self.complain(format_args!(
                "cannot look up the neighbour {address}: {error}"
            ));
            None
        });
        let before = self.neighbours.learn(&neighbour, found);
        // Nobody can be asked while the interface is down.
        let is_up = self.interfaces.get(interface).is_none_or(|of| of.up);
        let is_lost = is_up && before.is_some() && found.is_none();
        if is_lost {
            self.complain(format_args!(
                "{address} no longer answers: its last MAC address stays in use"
            ));
        }
        // The kernel does not maintain neighbours that only XDP sends to.
        if (ask == Ask::Neighbour || is_lost)
            && is_up
            && self.board.is_some()
            && self.neighbours.is_asked(&neighbour)
            && let Err(error) = self.requests.solicit(interface, address)
        {
            // Most likely the neighbour table is full.
            self.complain(format_args!(
                "cannot ask {address} for its MAC address: {error} (if there are more reals than \
                     net.ipv4.neigh.default.gc_thresh3, or that of ipv6, raise it)"
            ));
        }
    }

    /// Probes take the path of clients' packets, by the rules and tables of the balancer's
    /// interfaces.
    pub(super) fn ask_probe_way(&mut self, real: IpAddr) {
        let probes = self.board.as_ref().and_then(|board| board.probe_cells());
        let Some(probes) = probes else {
            return;
        };
        match self.ways.route(&mut self.requests, &self.interfaces, real) {
            Ok(route) => probes.set_way(real, way_of_probes(&self.wanted, real, route)),
            Err(error) => {
                self.complain(format_args!(
                    "cannot look up the route of probes to {real}: {error}"
                ));
                self.pending.probed_again.insert(real);
            }
        }
    }

    /// If the interface of probes is gone, they leave through the balancer's next one, or their
    /// own.
    pub(super) fn look_at_probes_interface(&mut self) {
        let probes = self.board.as_ref().and_then(|board| board.probe_cells());
        let Some(probes) = probes else {
            return;
        };
        let index = match probes.leaves_by(self.namespace) {
            Some(index) if self.interfaces.get(index).is_none() => index,
            _ => return,
        };
        let attached = self.ways.attached().iter();
        let next = attached.copied().find_map(|index| {
            let mac = self.interfaces.get(index)?.mac?;
            Some((index, mac))
        });
        if probes.interface_gone((self.namespace, index), next) {
            let name = next.map(|(index, _)| self.interfaces.name(index));
            let by = name.unwrap_or_else(|| "their own interface".to_owned());
            log::warn!("the interface of probes is gone: probes leave through {by}");
        }
    }

    /// Logs what may go wrong for thousands of reals at once, but not too often.
    fn complain(&mut self, complaint: fmt::Arguments<'_>) {
        match self.complaints < MOST_COMPLAINTS {
            true => log::warn!("{complaint}"),
            false => log::debug!("{complaint}"),
        }
        self.complaints += 1;
    }

    /// Resets the number of warnings.
    pub(super) fn count_complaints(&mut self) {
        let left_out = self.complaints.saturating_sub(MOST_COMPLAINTS);
        if left_out > 0 {
            log::warn!("next hops: {left_out} more warnings like these (see level debug)");
        }
        self.complaints = 0;
    }

    /// Renews a port. The kernel removes the port of an interface that leaves the network
    /// namespace, even if it returns.
    pub(super) fn renew_port(&mut self, index: u32) {
        let hops = self.board.as_ref().and_then(|board| board.hop_cells());
        let Some(hops) = hops else {
            return;
        };
        let Some(port) = hops.numbers().get(index) else {
            return;
        };
        match self.interfaces.get(index).and_then(|of| of.mac) {
            Some(mac) => {
                if let Err(error) = hops.set_port(port, index, mac) {
                    log::error!("cannot redirect to interface {index} again: {error}");
                }
            }
            None => {
                // The interface is gone; its number becomes free when no hop refers to it.
                hops.numbers().forget(index);
                let refers = self.hops.iter().filter(|(_, hop)| hop.port == port);
                let refers: Vec<_> = refers.map(|(number, _)| *number).collect();
                self.pending.reals.extend(refers);
            }
        }
    }

    /// The number of the interface's port; makes one if needed.
    fn port(&mut self, index: u32) -> Option<u16> {
        let hops = self.board.as_ref().and_then(|board| board.hop_cells())?;
        // Frames keep their tags, so the tagged link is the interface to send through.
        let index = self.interfaces.below_vlans(index);
        let mut numbers = hops.numbers();
        if let Some(port) = numbers.get(index) {
            return Some(port);
        }
        let name = self.interfaces.name(index);
        let Some(mac) = self.interfaces.get(index)?.mac else {
            log::error!("{name} has no MAC address: reals behind it cannot be reached");
            return None;
        };
        let port = match numbers.free() {
            Ok(Some(port)) => port,
            Ok(None) => {
                log::error!("too many interfaces lead to reals: cannot redirect to {name}");
                return None;
            }
            Err(error) => {
                log::error!("cannot wait for packets before redirecting to {name}: {error}");
                return None;
            }
        };
        if let Err(error) = hops.set_port(port, index, mac) {
            log::error!("cannot redirect to {name}: {error}");
            return None;
        }
        numbers.take(index, port);
        Some(port)
    }
}
