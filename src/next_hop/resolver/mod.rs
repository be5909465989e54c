//! Resolves the MAC address of each next hop from the kernel's tables. Keeps the answers, and asks
//! again only for what notices touch. Without a board it computes a preview and asks no neighbour.

mod asks;
mod gateways;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use gateways::Defaults;
use gateways::Search;

use super::NextHop;
use super::board::Board;
use super::board::Findings;
use super::board::News;
use super::board::Told;
use super::hop;
use super::hop::Hop;
use super::hop::Neighbour;
use super::hop::Ticket;
use super::interfaces::Interfaces;
use super::list;
use super::list::Names;
use super::neighbours::Neighbours;
use super::neighbours::User;
use super::touched::Touched;
use super::wanted::Wanted;
use super::ways::Rules;
use super::ways::Ways;
use crate::rtnetlink::MOST_QUESTIONS;
use crate::rtnetlink::Requests;
use crate::rtnetlink::Route;
use crate::types::ByFamily;
use crate::types::Family;
use crate::types::NextHops;

/// Questions between two looks at commands.
const QUESTIONS: usize = MOST_QUESTIONS;

/// Up to this many neighbours can all be asked for every few seconds.
const FEW: usize = 16;

/// Takes out as many as are asked for at once.
fn some_of(numbers: &mut BTreeSet<u16>) -> Vec<u16> {
    std::iter::from_fn(|| numbers.pop_first())
        .take(QUESTIONS)
        .collect()
}

#[derive(Clone, Copy, Debug)]
struct Real {
    address: IpAddr,
    ticket: Ticket,
}

/// Where a neighbour's MAC address is looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ask {
    /// The kernel's table.
    #[default]
    Kernel,
    /// The kernel, then the neighbour, so that the table becomes right.
    Neighbour,
}

/// Open questions.
#[derive(Debug, Default)]
struct Pending {
    /// Routes to reals that the owner waits for, and to others.
    urgent: BTreeSet<u16>,
    reals: BTreeSet<u16>,
    /// Reals whose routes could not be asked for; tried again soon.
    again: BTreeSet<u16>,
    probed_again: BTreeSet<IpAddr>,
    neighbours: BTreeMap<Neighbour, Ask>,
    /// Reals of probes; the owner waits for the routes to the first.
    urgent_probed: BTreeSet<IpAddr>,
    probed: BTreeSet<IpAddr>,
}

pub(super) struct Resolver {
    requests: Requests,
    /// The network namespace of the requests.
    namespace: u64,
    wanted: Wanted,
    wish: Ticket,
    /// `None` for a preview.
    board: Option<Arc<Board>>,
    ways: Ways,
    interfaces: Interfaces,
    reals: BTreeMap<u16, Real>,
    by_address: BTreeMap<IpAddr, u16>,
    /// The known routes to reals.
    routes: BTreeMap<u16, Option<Route>>,
    hops: BTreeMap<u16, Hop>,
    gateways: ByFamily<Hop>,
    routers: ByFamily<Option<Neighbour>>,
    searches: ByFamily<Search>,
    defaults: ByFamily<Option<Defaults>>,
    /// Warnings since the last round of confirmation.
    complaints: u64,
    neighbours: Neighbours,
    pending: Pending,
    /// Hops that changed since the last report.
    changed: BTreeSet<u16>,
    names_changed: bool,
}

impl Resolver {
    pub(super) fn new(
        requests: Requests,
        namespace: u64,
        wanted: Wanted,
        board: Option<Arc<Board>>,
    ) -> Self {
        // Hops may refer to the ports of a previous follower, for which indices may have meant
        // other interfaces.
        let hops = board.as_ref().and_then(|board| board.hop_cells());
        if let Some(hops) = hops {
            hops.numbers().forget_all();
        }
        Self {
            requests,
            namespace,
            wanted,
            wish: 0,
            board,
            ways: Ways::new(wanted.mode),
            interfaces: Interfaces::default(),
            reals: BTreeMap::new(),
            by_address: BTreeMap::new(),
            routes: BTreeMap::new(),
            hops: BTreeMap::new(),
            gateways: ByFamily::default(),
            routers: ByFamily::default(),
            searches: ByFamily::default(),
            defaults: ByFamily::default(),
            complaints: 0,
            neighbours: Neighbours::default(),
            pending: Pending::default(),
            changed: BTreeSet::new(),
            names_changed: false,
        }
    }

    /// An empty resolver for another network namespace and the same reals.
    pub(super) fn elsewhere(&self, requests: Requests, namespace: u64) -> Self {
        let mut other = Self::new(requests, namespace, self.wanted, self.board.clone());
        other.wish = self.wish;
        if let Some(board) = &other.board {
            board.start_over(self.reals.keys().copied());
        }
        other.confirm();
        for (number, real) in &self.reals {
            other.add(*number, real.address, real.ticket);
        }
        other
    }

    pub(super) fn has_interface(&self, index: u32) -> bool {
        self.interfaces.get(index).is_some()
    }

    pub(super) fn into_requests(self) -> Requests {
        self.requests
    }

    pub(super) fn set_wanted(&mut self, wanted: Wanted, wish: Ticket) {
        self.gateways = hop::gateways_from(&self.wanted, &wanted, self.gateways);
        (self.wanted, self.wish) = (wanted, wish);
        self.ask_gateways();
        for number in self.reals.keys().copied().collect::<Vec<_>>() {
            self.update_real(number);
            self.changed.insert(number);
        }
        self.ask_probed_now();
    }

    pub(super) fn set_attached(&mut self, attached: Vec<u32>) {
        if self.ways.attach(attached, &self.interfaces) {
            self.names_changed = true;
            self.all_ways();
            self.pending.urgent = std::mem::take(&mut self.pending.reals);
            self.ask_gateways();
        }
    }

    /// The healthcheck program needs the routes to its reals, and the owner waits.
    pub(super) fn ask_probed_now(&mut self) {
        let probed = self.probed();
        self.pending.urgent_probed.extend(probed);
    }

    /// The same for one of them.
    pub(super) fn ask_probed_one(&mut self, real: IpAddr) {
        self.pending.urgent_probed.insert(real);
    }

    fn probed(&self) -> Vec<IpAddr> {
        let probes = self.board.as_ref().and_then(|board| board.probe_cells());
        probes.map_or_else(Vec::new, |probes| probes.probed())
    }

    /// A new real, of which nothing is known.
    pub(super) fn add(&mut self, number: u16, address: IpAddr, ticket: Ticket) {
        self.remove(number);
        self.reals.insert(number, Real { address, ticket });
        self.by_address.insert(address, number);
        match self.wanted.mode {
            // It may be the first behind a router.
            NextHops::Gateway => self.searches[Family::of(address)].add(number),
            _ => {
                self.pending.urgent.insert(number);
            }
        }
    }

    pub(super) fn remove(&mut self, number: u16) {
        let Some(real) = self.reals.remove(&number) else {
            return;
        };
        if self.by_address.get(&real.address) == Some(&number) {
            self.by_address.remove(&real.address);
        }
        self.routes.remove(&number);
        // The gateway may have been this one's.
        self.searches[Family::of(real.address)].remove(number);
        self.hops.remove(&number);
        self.changed.remove(&number);
        self.neighbours.assign(User::Real(number), None);
    }

    /// Searches the gateways now.
    pub(super) fn ask_gateways(&mut self) {
        for family in Family::ALL {
            self.searches[family].begin_now();
            if let Some(router) = self.routers[family] {
                self.ask_neighbour(router, Ask::Kernel);
            }
        }
    }

    pub(super) fn uses(&self, neighbour: &Neighbour) -> bool {
        self.neighbours.contains(neighbour)
    }

    /// Asks again for what notices touched.
    pub(super) fn touch(&mut self, touched: Touched) {
        if touched.everything {
            self.look_at_everything();
        }
        for family in Family::ALL {
            if touched.everything || touched.families[family] {
                self.forget_defaults(family);
                self.searches[family].begin();
            }
        }
        for index in &touched.links {
            self.ask_link(*index);
        }
        for neighbour in &touched.neighbours {
            self.pending.neighbours.entry(*neighbour).or_default();
        }
        let ranges = touched.ranges();
        let probed: BTreeSet<_> = match ranges.is_empty() {
            true => BTreeSet::new(),
            false => self.probed().into_iter().collect(),
        };
        for range in ranges {
            let reals: Vec<_> = self.by_address.range(range.clone()).collect();
            let reals: Vec<_> = reals.into_iter().map(|(_, number)| *number).collect();
            self.ways_of(&reals);
            self.pending.probed.extend(probed.range(range));
        }
    }

    /// Asks for everything again.
    pub(super) fn look_at_everything(&mut self) {
        match self.requests.interfaces() {
            Ok(all) => self.interfaces.replace(all),
            Err(error) => log::warn!("cannot list the interfaces: {error}"),
        }
        self.ways
            .set_rules(match self.requests.has_rules_by_interface() {
                Ok(false) => Rules::Plain,
                Ok(true) | Err(_) => Rules::ByInterface,
            });
        self.ways.renew(&self.interfaces);
        self.names_changed = true;
        let hops = self.board.as_ref().and_then(|board| board.hop_cells());
        for (index, _) in hops.map_or_else(Vec::new, |hops| hops.numbers().list()) {
            self.renew_port(index);
        }
        self.look_at_probes_interface();
        self.all_ways();
        for neighbour in self.neighbours.all() {
            self.pending.neighbours.entry(neighbour).or_default();
        }
        let probed = self.probed();
        self.pending.probed.extend(probed);
    }

    /// The same, and asks all neighbours to confirm their addresses.
    pub(super) fn confirm(&mut self) {
        self.count_complaints();
        self.confirm_defaults();
        self.look_at_everything();
        let all = self.neighbours.all();
        self.pending
            .neighbours
            .extend(all.map(|neighbour| (neighbour, Ask::Neighbour)));
    }

    /// Confirms only neighbours, and only if they are few.
    pub(super) fn confirm_few(&mut self) {
        if self.neighbours.all().count() > FEW {
            return;
        }
        let all = self.neighbours.all();
        let asked = all.map(|neighbour| (neighbour, Ask::Neighbour));
        self.pending.neighbours.extend(asked);
    }

    /// Asks again for whatever has not answered or could not be asked.
    pub(super) fn ask_unknown(&mut self) {
        let unknown = self.neighbours.unknown();
        let unknown = unknown.map(|neighbour| (neighbour, Ask::Neighbour));
        self.pending.neighbours.extend(unknown);
        let pending = &mut self.pending;
        pending.reals.append(&mut pending.again);
        pending.probed.append(&mut pending.probed_again);
        for family in Family::ALL {
            if self.searches[family].has_failed() {
                self.searches[family].begin();
            }
        }
    }

    /// Whether nobody could still answer.
    pub(super) fn all_known(&self) -> bool {
        self.neighbours.unknown().next().is_none()
            && self.pending.again.is_empty()
            && self.pending.probed_again.is_empty()
            && !self.searches.iter().any(|(_, search)| search.has_failed())
    }

    /// Whether the owner waits for an answer.
    pub(super) fn is_urgent(&self) -> bool {
        !self.pending.urgent.is_empty()
            || !self.pending.urgent_probed.is_empty()
            || self.searches.iter().any(|(_, search)| search.is_urgent())
    }

    /// Asks some open questions, urgent ones first; false if there was none.
    pub(super) fn step(&mut self) -> bool {
        for _ in 0..QUESTIONS {
            if !self.pending.urgent.is_empty() {
                let numbers = some_of(&mut self.pending.urgent);
                self.ask_reals(&numbers);
                return true;
            } else if let Some(family) = self.open_search() {
                self.search(family);
            } else if let Some(real) = self.pending.urgent_probed.pop_first() {
                self.ask_probe_way(real);
            } else if let Some((neighbour, ask)) = self.pending.neighbours.pop_first() {
                self.ask_neighbour(neighbour, ask);
            } else if !self.pending.reals.is_empty() {
                let numbers = some_of(&mut self.pending.reals);
                self.ask_reals(&numbers);
                return true;
            } else if let Some(real) = self.pending.probed.pop_first() {
                self.ask_probe_way(real);
            } else {
                return false;
            }
        }
        true
    }

    fn open_search(&self) -> Option<Family> {
        let mut all = Family::ALL.into_iter();
        all.find(|family| self.searches[*family].is_open())
    }

    fn begin_searches(&mut self) {
        for family in Family::ALL {
            self.searches[family].begin();
        }
    }

    /// Makes the routes to all reals open questions.
    fn all_ways(&mut self) {
        let all: Vec<_> = self.reals.keys().copied().collect();
        self.ways_of(&all);
        self.begin_searches();
    }

    /// Makes the routes to these open questions. Gateways need those of some reals only.
    fn ways_of(&mut self, numbers: &[u16]) {
        if self.wanted.mode != NextHops::Gateway {
            self.pending.reals.extend(numbers);
            return;
        }
        for number in numbers {
            if self.routes.remove(number).is_some()
                && let Some(real) = self.reals.get(number)
            {
                self.searches[Family::of(real.address)].begin();
            }
        }
    }

    /// Reports what changed, and up to which command everything is done.
    pub(super) fn tell(&mut self, done: Option<u64>) {
        let Some(board) = self.board.clone() else {
            return;
        };
        let changed = std::mem::take(&mut self.changed);
        let changed = changed.into_iter().filter_map(|number| {
            let ticket = self.reals.get(&number)?.ticket;
            Some((number, ticket, *self.hops.get(&number)?))
        });
        let told = board.tell(Findings {
            reals: changed.collect(),
            gateways: &self.gateways,
            wish: self.wish,
            names: std::mem::take(&mut self.names_changed).then(|| self.names()),
            news: self.news(),
            done,
        });
        let pending = &self.pending;
        let all_told = pending.reals.is_empty()
            && pending.urgent.is_empty()
            && pending.again.is_empty()
            && told == Told::All;
        if all_told && let Some(hops) = board.hop_cells() {
            hops.numbers().give_back();
        }
    }

    fn names(&self) -> Names {
        let all = self.interfaces.all().map(|(index, interface)| {
            let attached = self.ways.reach(&self.interfaces, index);
            (index, (interface.name.as_str().into(), attached))
        });
        all.collect()
    }

    fn news(&self) -> News {
        let has_reals = ByFamily::of(|family| {
            let any = match family {
                Family::V4 => self.by_address.first_key_value(),
                Family::V6 => self.by_address.last_key_value(),
            };
            any.is_some_and(|(real, _)| Family::of(*real) == family)
        });
        let missing = hop::missing(&self.wanted, &self.gateways, has_reals);
        let waits = |family: Family| {
            let hop = &self.gateways[family];
            has_reals[family]
                && self.wanted.fixed(family).is_none()
                && hop.is_open()
                && hop.found().is_none()
        };
        let waiting = self.wanted.finds_gateway() && Family::ALL.into_iter().any(waits);
        News {
            waiting: waiting || missing.is_some(),
            missing,
        }
    }

    /// The current list.
    pub(super) fn list(&self) -> Vec<NextHop> {
        let reals = self.reals.iter().map(|(number, real)| {
            let hop = self.hops.get(number).copied().unwrap_or_default();
            (real.address, hop)
        });
        list::list(&self.wanted, &self.gateways, reals, &self.names())
    }
}
