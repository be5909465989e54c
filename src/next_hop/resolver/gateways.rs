//! Searches the gateways: the router of a family's first real behind one, else the router of the
//! default route. Asks one question at a time and keeps the answers, so that another real costs one
//! more question, and commands do not wait for thousands.

use std::time::Duration;
use std::time::Instant;

use super::Resolver;
use crate::next_hop::hop;
use crate::next_hop::hop::Neighbour;
use crate::next_hop::neighbours::User;
use crate::rtnetlink::Route;
use crate::types::Family;

/// The kernel lists default routes only with all other routes. If that takes less than this, repeat
/// it with each round of confirmation; else only after notices.
const QUICK: Duration = Duration::from_millis(10);

/// The search among a family's reals, in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// The first real to examine; none before it is behind a router on the balancer's interfaces.
    /// `None`: the search is over.
    next: Option<u16>,
    /// The owner waits for it.
    urgent: bool,
    /// A question failed: it starts again soon.
    failed: bool,
    /// The first real behind a router on the balancer's interfaces, and the first behind another
    /// router.
    here: Option<u16>,
    elsewhere: Option<u16>,
}

impl Search {
    pub(super) fn is_open(&self) -> bool {
        self.next.is_some()
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.is_open() && self.urgent
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Begins again.
    pub(super) fn begin(&mut self) {
        *self = Self {
            next: Some(0),
            urgent: self.urgent,
            ..Self::default()
        };
    }

    /// The same, and the owner waits.
    pub(super) fn begin_now(&mut self) {
        self.begin();
        self.urgent = true;
    }

    /// Adds a real.
    pub(super) fn add(&mut self, number: u16) {
        match self.next {
            Some(next) => self.next = Some(next.min(number)),
            None if self.here.is_some_and(|here| here < number) => {}
            None => {
                (self.next, self.urgent) = (Some(number), true);
                self.here = None;
            }
        }
    }

    /// Removes a real.
    pub(super) fn remove(&mut self, number: u16) {
        if self.here == Some(number) || self.elsewhere == Some(number) {
            self.begin();
        }
    }

    fn end(&mut self) {
        (self.next, self.urgent) = (None, false);
    }
}

/// The default routes of a family's tables, with the tables' numbers, and how long listing them
/// took.
#[derive(Debug)]
pub(super) struct Defaults {
    routes: Vec<(u32, Route)>,
    took: Duration,
}

impl Resolver {
    /// Continues an open search until it asks one question or knows the gateway.
    pub(super) fn search(&mut self, family: Family) {
        let Some(mut next) = self.searches[family].next else {
            return;
        };
        if !self.wanted.finds_gateway() {
            self.searches[family].end();
            return;
        }
        let mut asked = false;
        loop {
            let mut left = self.reals.range(next..);
            let real = left.find(|(_, real)| Family::of(real.address) == family);
            let Some((number, address)) = real.map(|(number, real)| (*number, real.address)) else {
                break;
            };
            let known = self.routes.get(&number).copied();
            if known.is_none() && asked {
                self.searches[family].next = Some(number);
                return;
            }
            let route = known.unwrap_or_else(|| {
                asked = true;
                let answer = self
                    .ways
                    .route(&mut self.requests, &self.interfaces, address);
                match answer {
                    Ok(route) => {
                        self.routes.insert(number, route);
                        route
                    }
                    Err(error) => {
                        log::warn!("cannot look up the route to {address}: {error}");
                        self.searches[family].failed = true;
                        None
                    }
                }
            });
            if let Some(route) = route.filter(|route| route.gateway.is_some()) {
                let search = &mut self.searches[family];
                if self.ways.reach(&self.interfaces, route.interface) {
                    search.here = Some(number);
                    break;
                }
                let first = search.elsewhere.map_or(number, |first| first.min(number));
                search.elsewhere = Some(first);
            }
            match number.checked_add(1) {
                Some(number) => next = number,
                None => break,
            }
        }
        let router = self.router(family);
        self.searches[family].end();
        self.routers[family] = router;
        self.update_gateway(family);
        if let Some(router) = router {
            // A neighbour that was just asked has often answered a moment later.
            self.pending.neighbours.entry(router).or_default();
        }
    }

    /// The router, once all necessary reals are examined; routes through the balancer's interfaces
    /// take precedence.
    fn router(&mut self, family: Family) -> Option<Neighbour> {
        let search = &self.searches[family];
        let of_real = |number: Option<u16>| self.routes.get(&number?).copied().flatten();
        let (here, elsewhere) = (of_real(search.here), of_real(search.elsewhere));
        let route = here.or_else(|| {
            let default = self.default_route(family);
            let here = default.filter(|route| self.ways.reach(&self.interfaces, route.interface));
            here.or(elsewhere).or(default)
        })?;
        Some((route.interface, route.gateway?))
    }

    fn default_route(&mut self, family: Family) -> Option<Route> {
        if self.defaults[family].is_none() {
            let began = Instant::now();
            match self.requests.default_routes_of_tables(family) {
                Ok(routes) => {
                    let took = began.elapsed();
                    self.defaults[family] = Some(Defaults { routes, took });
                }
                Err(error) => {
                    log::warn!("cannot look up the default routes: {error}");
                    self.searches[family].failed = true;
                }
            }
        }
        let defaults = self.defaults[family].as_ref()?;
        self.ways.default_route(&defaults.routes, &self.interfaces)
    }

    /// Whether there is a known default route through an interface.
    pub(super) fn has_default_by(&self, family: Family, index: u32) -> bool {
        let defaults = self.defaults[family].as_ref();
        let mut routes = defaults.into_iter().flat_map(|defaults| &defaults.routes);
        routes.any(|(_, route)| route.interface == index)
    }

    /// Default routes may have changed.
    pub(super) fn forget_defaults(&mut self, family: Family) {
        self.defaults[family] = None;
    }

    /// Lists quick ones again, because there may have been no notice.
    pub(super) fn confirm_defaults(&mut self) {
        for family in Family::ALL {
            let defaults = &mut self.defaults[family];
            *defaults = defaults.take().filter(|defaults| defaults.took > QUICK);
        }
    }

    pub(super) fn update_gateway(&mut self, family: Family) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_real_is_looked_at_alone() {
        let mut search = Search::default();
        search.add(5);
        assert_eq!((search.next, search.is_urgent()), (Some(5), true));
        search.add(3);
        search.add(9);
        assert_eq!(search.next, Some(3));
        search.end();
        assert!(!search.is_urgent());
        // Nobody is behind a router.
        search.add(12);
        assert_eq!(search.next, Some(12));
        search.here = Some(12);
        search.end();
        search.add(20);
        assert!(!search.is_open());
        search.add(2);
        assert_eq!((search.next, search.here), (Some(2), None));
        search.here = Some(12);
        search.end();
        search.remove(2);
        assert!(!search.is_open());
        // All must be examined again; nobody waits.
        search.remove(12);
        assert_eq!((search.next, search.is_urgent()), (Some(0), false));
        search.begin_now();
        search.begin();
        assert!(search.is_urgent());
    }
}
