//! Which Ethernet address each next hop has: what the tables say, and what is made of it where they say
//! nothing. Without cells to write into it tells what would be, and asks nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::NextHop;
use super::interfaces::Interfaces;
use super::ports::Ports;
use super::probe_way;
use super::wanted::Wanted;
use crate::maps::HopCells;
use crate::maps::Live;
use crate::maps::ProbeCells;
use crate::rtnetlink::Interface;
use crate::rtnetlink::Requests;
use crate::rtnetlink::Route;
use crate::types::Gateway;
use crate::types::MacAddr;
use crate::types::NextHops;

/// What packets read.
pub(crate) struct Cells {
    pub(crate) live: Arc<Live>,
    pub(crate) hops: Option<Arc<HopCells>>,
    pub(crate) probes: Option<Arc<ProbeCells>>,
}

/// Whom a round asks for Ethernet addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ask {
    /// Next hops that are new.
    New,
    /// Next hops that do not answer, too.
    Unknown,
    /// All of them, so that the kernel confirms what it knows.
    All,
}

/// A next hop and what is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Hop {
    address: Option<IpAddr>,
    /// The interface that leads to the address.
    interface: u32,
    mac: Option<MacAddr>,
    /// The interface that `mac` is behind: another one while the address has not answered yet.
    mac_interface: u32,
    port: u16,
    /// The address does not answer: `mac` is the last one that was known, or the one that was given.
    lost: bool,
    /// `mac` is the one that the user has given.
    given: bool,
    /// The real is an address of this host.
    here: bool,
}

impl Hop {
    /// Whether somebody could still answer.
    fn is_open(&self) -> bool {
        self.address.is_some() && (self.lost || self.mac.is_none())
    }
}

pub(super) struct Resolver {
    requests: Requests,
    wanted: Wanted,
    /// `None`: it only looks.
    cells: Option<Cells>,
    /// The indexes of the interfaces that the balancer is attached to, if that is known.
    attached: Vec<u32>,
    reals: BTreeMap<u16, IpAddr>,
    /// Reals that have come since the last round.
    new: Vec<u16>,
    of_reals: BTreeMap<u16, Hop>,
    /// Of IPv4 and of IPv6.
    gateways: [Hop; 2],
    /// Whether they are those of a real, and not of the default route.
    of_a_real: [bool; 2],
    ports: Ports,
    interfaces: Interfaces,
    /// What is wanted has changed since the last round.
    stale: bool,
}

impl Resolver {
    pub(super) fn new(requests: Requests, wanted: Wanted, cells: Option<Cells>) -> Self {
        Self {
            requests,
            wanted,
            cells,
            attached: Vec::new(),
            reals: BTreeMap::new(),
            new: Vec::new(),
            of_reals: BTreeMap::new(),
            gateways: [Hop::default(); 2],
            of_a_real: [false; 2],
            ports: Ports::default(),
            interfaces: Interfaces::default(),
            stale: true,
        }
    }

    pub(super) fn into_requests(self) -> Requests {
        self.requests
    }

    pub(super) fn set_wanted(&mut self, wanted: Wanted) {
        self.wanted = wanted;
        for hop in self.of_reals.values_mut().filter(|hop| hop.given) {
            hop.mac = None;
        }
        self.stale = true;
    }

    pub(super) fn set_attached(&mut self, interfaces: Vec<u32>) {
        if self.attached != interfaces {
            self.attached = interfaces;
            self.stale = true;
        }
    }

    pub(super) fn set_probes(&mut self, probes: Arc<ProbeCells>) {
        if let Some(cells) = &mut self.cells {
            cells.probes = Some(probes);
        }
        self.stale = true;
    }

    /// Nothing is known of a new real; of one that is there already, nothing changes.
    pub(super) fn add(&mut self, number: u16, address: IpAddr) {
        if self.reals.insert(number, address) != Some(address) {
            self.of_reals.remove(&number);
            self.write_hop(number, Hop::default());
            self.new.push(number);
        }
    }

    /// The real is not followed any more. Its hop stays: packets under way may still read it.
    pub(super) fn remove(&mut self, number: u16) {
        // The gateway may have been this one's.
        self.stale |= self.reals.remove(&number).is_some() && self.wanted.mode == NextHops::Gateway;
        self.of_reals.remove(&number);
    }

    /// Looks at everything again, and writes what has changed; to be called in the network namespace.
    pub(super) fn settle(&mut self, ask: Ask) {
        // A name or an address may have changed, too.
        self.interfaces.clear();
        self.stale = false;
        self.new.clear();
        if self.wanted.mode == NextHops::Gateway {
            return self.settle_gateways([false, true], ask);
        }
        let given_back = self.renew_ports();
        for number in self.reals.keys().copied().collect::<Vec<_>>() {
            self.settle_real(number, ask);
        }
        // No hop leads there any more.
        self.ports.give_back(given_back);
        if let Some(probes) = self.cells.as_ref().and_then(|cells| cells.probes.as_ref()) {
            let (requests, wanted) = (&mut self.requests, &self.wanted);
            probes.refresh_ways(|real| probe_way(requests, wanted, real).ok());
        }
    }

    /// Looks at what is new.
    pub(super) fn settle_new(&mut self) {
        if self.stale || self.is_waiting() {
            return self.settle(Ask::New);
        }
        let new = std::mem::take(&mut self.new);
        if self.wanted.mode != NextHops::Gateway {
            new.into_iter()
                .for_each(|number| self.settle_real(number, Ask::New));
            return;
        }
        for v6 in [false, true] {
            let mut of_new = new.iter().filter_map(|number| self.reals.get(number));
            // One of these may be the first behind a router.
            if of_new.any(|real| real.is_ipv6() == v6) && !self.of_a_real[usize::from(v6)] {
                self.settle_gateways([v6], Ask::New);
            }
        }
    }

    /// Looks at what has not answered, and asks once more.
    pub(super) fn settle_unknown(&mut self) {
        if self.all_known() {
            return;
        }
        if self.wanted.mode == NextHops::Gateway {
            return self.settle_gateways([false, true], Ask::Unknown);
        }
        let open = self.of_reals.iter().filter(|(_, hop)| hop.is_open());
        for number in open.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.settle_real(number, Ask::Unknown);
        }
    }

    fn settle_gateways<const N: usize>(&mut self, families: [bool; N], ask: Ask) {
        if self.wanted.gateway != Gateway::Auto {
            return;
        }
        for v6 in families {
            let at = usize::from(v6);
            let before = self.gateways[at];
            let hop = match self.gateway_route(v6) {
                Some((route, of_a_real)) => {
                    self.of_a_real[at] = of_a_real;
                    self.look(route.gateway, &route, before, ask)
                }
                None => {
                    self.of_a_real[at] = false;
                    Hop {
                        // Packets may still find their way.
                        mac: before.mac,
                        mac_interface: before.mac_interface,
                        lost: true,
                        ..Hop::default()
                    }
                }
            };
            let name = if v6 { "IPv6" } else { "IPv4" };
            if hop.mac != before.mac {
                log::info!("the gateway of {name} reals: {}", text(&hop));
            }
            if hop.interface != before.interface && !self.is_attached_at(hop.interface) {
                log::warn!(
                    "the gateway of {name} reals is behind {}, where the balancer is not attached",
                    self.name_of(hop.interface)
                );
            }
            self.gateways[at] = hop;
        }
        for v6 in [false, true] {
            if let (Some(mac), Some(cells)) = (self.gateway(v6), &self.cells) {
                cells.live.set_gateway_mac(v6, mac);
                if let Some(probes) = &cells.probes {
                    probes.set_gateway_mac(v6, mac);
                }
            }
        }
    }

    /// The route of the first real of the family that is behind a router, else the default route; those
    /// by an interface that the balancer is attached to come first. And whether it is a real's.
    fn gateway_route(&mut self, v6: bool) -> Option<(Route, bool)> {
        let of_family = |address: &&IpAddr| address.is_ipv6() == v6;
        let reals: Vec<_> = self.reals.values().filter(of_family).copied().collect();
        let mut elsewhere = None;
        for real in reals {
            let route = self.route(real).filter(|route| route.gateway.is_some());
            let Some(route) = route else {
                continue;
            };
            if self.is_attached_at(route.interface) {
                return Some((route, true));
            }
            elsewhere.get_or_insert((route, true));
        }
        let routes = self.requests.default_routes(v6);
        let routes = routes.unwrap_or_else(|error| {
            log::warn!("cannot ask for the default routes: {error}");
            Vec::new()
        });
        for route in routes.into_iter().filter(|route| route.gateway.is_some()) {
            if self.is_attached_at(route.interface) {
                return Some((route, false));
            }
            elsewhere.get_or_insert((route, false));
        }
        elsewhere
    }

    fn route(&mut self, address: IpAddr) -> Option<Route> {
        self.requests.route(address).unwrap_or_else(|error| {
            log::warn!("cannot ask for the route to {address}: {error}");
            None
        })
    }

    fn settle_real(&mut self, number: u16, ask: Ask) {
        let Some(real) = self.reals.get(&number).copied() else {
            return;
        };
        let before = self.of_reals.get(&number).copied().unwrap_or_default();
        let fixed = self.wanted.fixed(real.is_ipv6());
        let route = match self.requests.route(real) {
            Ok(route) => route,
            Err(error) => {
                log::warn!("cannot ask for the route to {real}: {error}");
                return;
            }
        };
        let mut hop = match route {
            // The address that was given is that of the routers.
            Some(Route {
                gateway: Some(gateway),
                interface,
                ..
            }) if fixed.is_some() && self.wanted.mode == NextHops::PerReal => Hop {
                address: Some(gateway),
                interface,
                mac: fixed,
                given: true,
                ..Hop::default()
            },
            Some(route) if !route.local => {
                let address = route.gateway.unwrap_or(real);
                self.look(Some(address), &route, before, ask)
            }
            route => Hop {
                here: route.is_some(),
                ..Hop::default()
            },
        };
        if self.wanted.mode == NextHops::Redirect && hop.mac.is_some() && self.cells.is_some() {
            match self.port(hop.mac_interface) {
                Some(port) => hop.port = port,
                // On the segment of the interface that it came in on nobody has this address.
                None => hop.mac = None,
            }
        }
        // Better than nothing: where there is a router, it knows a way.
        if hop.mac.is_none() && fixed.is_some() {
            hop.mac = fixed;
            hop.given = true;
            hop.lost = hop.address.is_some();
        }
        if (hop.mac, hop.port) != (before.mac, before.port) {
            log::info!("the next hop of real {real}: {}", text(&hop));
        }
        self.write_hop(number, hop);
        self.of_reals.insert(number, hop);
    }

    /// What the neighbour table knows of `address`; what was known before, if it knows nothing.
    fn look(&mut self, address: Option<IpAddr>, route: &Route, before: Hop, ask: Ask) -> Hop {
        let mut hop = Hop {
            address,
            interface: route.interface,
            ..Hop::default()
        };
        let Some(address) = address else {
            return hop;
        };
        let found = self.requests.neighbour(route.interface, address);
        let found = found.unwrap_or_else(|error| {
            log::warn!("cannot ask for the neighbour {address}: {error}");
            None
        });
        hop.mac = found.map(|neighbour| neighbour.mac);
        hop.mac_interface = route.interface;
        let known = hop.mac.is_some();
        let same = (before.address, before.interface) == (hop.address, hop.interface);
        if !known && !before.given && before.mac.is_some() {
            hop.mac = before.mac;
            hop.mac_interface = before.mac_interface;
            hop.lost = true;
            if !before.lost && same {
                log::warn!("{address} does not answer any more: its last address stays in use");
            }
        }
        let asked = match ask {
            Ask::New => !same,
            Ask::Unknown => !same || !known,
            Ask::All => true,
        };
        if asked
            && self.cells.is_some()
            && !found.is_some_and(|neighbour| neighbour.is_fixed)
            && let Err(error) = self.requests.solicit(route.interface, address)
        {
            // The neighbour table is full, if anything.
            log::warn!(
                "cannot ask {address} for its Ethernet address: {error} (more reals than \
                 net.ipv4.neigh.default.gc_thresh3, or that of ipv6?)"
            );
        }
        hop
    }

    /// Ports as they are in the kernel, where an interface that leaves the network namespace loses its
    /// own, even if it comes back. The numbers of those that are gone.
    fn renew_ports(&mut self) -> Vec<u16> {
        let Some(hops) = self.hop_cells() else {
            return Vec::new();
        };
        let mut gone = Vec::new();
        for (index, port) in self.ports.list() {
            let interface = match self.requests.interface(index) {
                Ok(interface) => interface,
                Err(error) => {
                    log::warn!("cannot ask about interface {index}: {error}");
                    continue;
                }
            };
            match interface.and_then(|of| of.mac) {
                Some(mac) => {
                    if let Err(error) = hops.set_port(port, index, mac) {
                        log::error!("cannot renew the port of interface {index}: {error}");
                    }
                }
                None => {
                    self.ports.forget(index);
                    gone.push(port);
                }
            }
        }
        gone
    }

    /// The number of the port for an interface; a new one, if it has none.
    fn port(&mut self, index: u32) -> Option<u16> {
        let hops = self.hop_cells()?;
        // Frames keep the tags that they came with, so the tagged link is what leads there.
        let index = self.interfaces.below_vlans(&mut self.requests, index);
        if let Some(port) = self.ports.get(index) {
            return Some(port);
        }
        let name = self.name_of(index);
        let Some(mac) = self.interface(index)?.mac else {
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

    fn hop_cells(&self) -> Option<Arc<HopCells>> {
        self.cells.as_ref().and_then(|cells| cells.hops.clone())
    }

    fn interface(&mut self, index: u32) -> Option<Interface> {
        self.interfaces.get(&mut self.requests, index)
    }

    fn name_of(&mut self, index: u32) -> String {
        let interface = self.interface(index);
        interface.map_or_else(|| format!("interface {index}"), |interface| interface.name)
    }

    /// Whether packets that leave where the balancer is attached come to the segment of an interface.
    /// True if that cannot be told.
    fn is_attached_at(&mut self, index: u32) -> bool {
        let Self {
            interfaces,
            requests,
            attached,
            ..
        } = self;
        attached.is_empty() || index == 0 || interfaces.reach(requests, attached, index)
    }

    fn write_hop(&self, number: u16, hop: Hop) {
        let Some(hops) = self.cells.as_ref().and_then(|cells| cells.hops.as_ref()) else {
            return;
        };
        match hop.mac {
            Some(mac) => hops.set(number, mac, hop.port),
            None => hops.clear(number),
        }
    }

    /// The Ethernet address of the family's gateway. If none was ever known, the other family's is most
    /// likely the same router.
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

    /// Whether the gateway of a family that has reals may answer in a moment.
    pub(super) fn is_waiting(&self) -> bool {
        let waits = |v6: bool| {
            let hop = &self.gateways[usize::from(v6)];
            let has_reals = self.reals.values().any(|real| real.is_ipv6() == v6);
            has_reals && self.wanted.fixed(v6).is_none() && hop.is_open() && hop.mac.is_none()
        };
        self.missing().is_some()
            || self.wanted.mode == NextHops::Gateway && (waits(false) || waits(true))
    }

    /// Whether nobody is left who could still answer.
    pub(super) fn all_known(&self) -> bool {
        match self.wanted.mode {
            NextHops::Gateway => !self.gateways.iter().any(Hop::is_open),
            _ => !self.of_reals.values().any(Hop::is_open),
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
        } else {
            list.extend(self.reals.iter().map(|(number, real)| {
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
                answers: hop.address.is_some() && !hop.is_open(),
                here: hop.here,
                attached: self.wanted.mode == NextHops::Redirect
                    || self.is_attached_at(hop.interface),
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
