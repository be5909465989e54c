//! The routes of packets that leave the balancer's interfaces: by the main table, or by the rules
//! and tables that the kernel has for those interfaces (VRFs, policy routing).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use super::interfaces::Interfaces;
use crate::rtnetlink::MAIN_TABLE;
use crate::rtnetlink::Requests;
use crate::rtnetlink::Route;
use crate::types::NextHops;

/// The kernel's routing tables.
pub(super) trait Tables {
    /// The routes to some addresses, for packets that leave through an interface, or one of a VRF.
    fn routes(
        &mut self,
        addresses: &[IpAddr],
        by: Option<u32>,
    ) -> io::Result<Vec<io::Result<Option<Route>>>>;
}

impl Tables for Requests {
    fn routes(
        &mut self,
        addresses: &[IpAddr],
        by: Option<u32>,
    ) -> io::Result<Vec<io::Result<Option<Route>>>> {
        Requests::routes(self, addresses, by)
    }
}

/// The interfaces to ask for after the main question; the first answer counts.
enum Besides {
    Nothing,
    Each(Vec<u32>),
    /// The first one whose route leads where the balancer's packets can go.
    EachThatReaches(Vec<u32>),
}

impl Besides {
    fn nth(&self, nth: usize) -> Option<u32> {
        match self {
            Self::Nothing => None,
            Self::Each(all) | Self::EachThatReaches(all) => all.get(nth).copied(),
        }
    }
}

/// Where packets start.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// The indices of the balancer's interfaces, if known.
    attached: Vec<u32>,
    /// Those, and others through which packets from there may leave.
    above: Vec<u32>,
    /// VRFs among them, with their tables.
    vrfs: Vec<(u32, u32)>,
    rules: Rules,
    mode: NextHops,
}

/// The kernel's rules for packets that leave through some interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rules {
    /// None: the route does not depend on the interface.
    #[default]
    Plain,
    /// Some, or unknown: ask for the interface.
    ByInterface,
}

impl Ways {
    pub(super) fn new(mode: NextHops) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Sets the balancer's interfaces; returns whether they changed.
    pub(super) fn attach(&mut self, attached: Vec<u32>, interfaces: &Interfaces) -> bool {
        let changed = self.attached != attached;
        self.attached = attached;
        self.renew(interfaces);
        changed
    }

    /// The balancer's interfaces, if known; some may be gone.
    pub(super) fn attached(&self) -> &[u32] {
        &self.attached
    }

    /// Interfaces changed.
    pub(super) fn renew(&mut self, interfaces: &Interfaces) {
        self.above = interfaces.above(&self.attached);
        self.vrfs = interfaces.vrfs(&self.above);
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Whether packets that leave the balancer's interfaces reach the segment of an interface.
    pub(super) fn reach(&self, interfaces: &Interfaces, index: u32) -> bool {
        interfaces.reach(&self.attached, index)
    }

    /// The route to an address; `None` without one.
    pub(super) fn route(
        &self,
        tables: &mut impl Tables,
        interfaces: &Interfaces,
        address: IpAddr,
    ) -> io::Result<Option<Route>> {
        let mut routes = self.routes(tables, interfaces, &[address])?;
        routes.pop().unwrap_or(Ok(None))
    }

    /// The routes to several addresses, with one request for all.
    pub(super) fn routes(
        &self,
        tables: &mut impl Tables,
        interfaces: &Interfaces,
        addresses: &[IpAddr],
    ) -> io::Result<Vec<io::Result<Option<Route>>>> {
        let mut routes = tables.routes(addresses, None)?;
        // Positions of those that may have another route, by the next question.
        let mut open: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
        let besides = routes.iter().map(|plain| match plain {
            Ok(plain) => self.besides(interfaces, plain.as_ref()),
            Err(_) => Besides::Nothing,
        });
        let besides: Vec<_> = besides.collect();
        let ask = |open: &mut BTreeMap<u32, Vec<_>>, position: usize, nth: usize| {
            if let Some(index) = besides[position].nth(nth) {
                open.entry(index).or_default().push((position, nth));
            }
        };
        (0..addresses.len()).for_each(|position| ask(&mut open, position, 0));
        while let Some((interface, asked)) = open.pop_first() {
            let of_these: Vec<_> = asked.iter().map(|(at, _)| addresses[*at]).collect();
            // A refusal counts as no answer: the plain one is there.
            let answers = tables
                .routes(&of_these, Some(interface))
                .unwrap_or_default();
            let mut answers = answers.into_iter().map(|answer| answer.ok().flatten());
            for (position, nth) in asked {
                let found = answers.next().flatten();
                let counts = |route: &Route| match besides[position] {
                    Besides::EachThatReaches(_) => self.reach(interfaces, route.interface),
                    _ => true,
                };
                match found.filter(counts) {
                    Some(route) => routes[position] = Ok(Some(route)),
                    None => ask(&mut open, position, nth + 1),
                }
            }
        }
        Ok(routes)
    }

    /// What else to ask, given this answer to the main question.
    fn besides(&self, interfaces: &Interfaces, plain: Option<&Route>) -> Besides {
        if self.attached.is_empty() || plain.is_some_and(|route| route.local) {
            return Besides::Nothing;
        }
        // Packets leave through whatever interface leads to their real.
        if self.mode == NextHops::Redirect {
            return Besides::Each(self.vrfs.iter().map(|(vrf, _)| *vrf).collect());
        }
        match plain {
            Some(route) if self.attached.contains(&route.interface) => match self.rules {
                Rules::ByInterface => Besides::Each(vec![route.interface]),
                Rules::Plain => Besides::Nothing,
            },
            Some(route) if self.vrfs.is_empty() && self.reach(interfaces, route.interface) => {
                Besides::Nothing
            }
            _ => Besides::EachThatReaches(self.above.clone()),
        }
    }

    /// The best default route through a router, preferring the balancer's interfaces. Default
    /// routes come with their tables' numbers, the best of each table first.
    pub(super) fn default_route(
        &self,
        defaults: &[(u32, Route)],
        interfaces: &Interfaces,
    ) -> Option<Route> {
        let is_own = |table: &u32| self.vrfs.iter().any(|(_, of)| of == table);
        let mut routes = defaults.to_vec();
        routes.retain(|(table, route)| {
            let usable = is_own(table) || *table == MAIN_TABLE;
            route.gateway.is_some() && (usable || self.attached.contains(&route.interface))
        });
        routes.sort_by_key(|(table, _)| (!is_own(table), *table != MAIN_TABLE));
        let here = routes
            .iter()
            .find(|(_, route)| self.reach(interfaces, route.interface));
        here.or(routes.first()).map(|(_, route)| *route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtnetlink::Interface;

    /// Routes by question: `None` for the plain one.
    #[derive(Default)]
    struct Kernel {
        routes: BTreeMap<Option<u32>, Route>,
    }

    impl Tables for Kernel {
        fn routes(
            &mut self,
            addresses: &[IpAddr],
            by: Option<u32>,
        ) -> io::Result<Vec<io::Result<Option<Route>>>> {
            let route = self.routes.get(&by).copied();
            let answer = |_| match (by, route) {
                (Some(_), None) => Err(io::Error::from(io::ErrorKind::Unsupported)),
                (_, route) => Ok(route),
            };
            Ok(addresses.iter().map(answer).collect())
        }
    }

    fn by(interface: u32, gateway: u8) -> Route {
        Route {
            mtu: None,
            interface,
            gateway: Some(IpAddr::from([192, 0, 2, gateway])),
            local: false,
        }
    }

    /// Link 1 in VRF 8 with table 100, link 2, VLAN 3 on it, link 4.
    fn interfaces() -> Interfaces {
        let link = |lower, controller, vrf_table| Interface {
            name: String::new(),
            mac: None,
            ethernet: true,
            mtu: 1500,
            up: true,
            carrier: true,
            lower,
            vlan: false,
            controller,
            vrf_table,
            peer: None,
        };
        let mut interfaces = Interfaces::default();
        interfaces.replace(BTreeMap::from([
            (1, link(None, Some(8), None)),
            (2, link(None, None, None)),
            (3, link(Some(2), None, None)),
            (4, link(None, None, None)),
            (8, link(None, None, Some(100))),
        ]));
        interfaces
    }

    /// The interface and the router's last byte.
    fn way(ways: &Ways, routes: &[(Option<u32>, Route)]) -> Option<(u32, u8)> {
        let mut kernel = Kernel {
            routes: routes.iter().copied().collect(),
        };
        let address = IpAddr::from([198, 51, 100, 1]);
        let route = ways.route(&mut kernel, &interfaces(), address).unwrap()?;
        let Some(IpAddr::V4(gateway)) = route.gateway else {
            return Some((route.interface, 0));
        };
        Some((route.interface, gateway.octets()[3]))
    }

    fn ways(attached: &[u32], rules: Rules, mode: NextHops) -> Ways {
        let mut ways = Ways::new(mode);
        ways.set_rules(rules);
        assert!(ways.attach(attached.to_vec(), &interfaces()));
        ways
    }

    #[test]
    fn the_interface_of_the_attachment_is_asked_for() {
        let plain = |interface| (None, by(interface, 1));
        for (attached, rules, mode, routes, expected) in [
            // The main table leads to the balancer's interface, or to a VLAN on it.
            (
                2,
                Rules::Plain,
                NextHops::PerReal,
                &[plain(2), (Some(2), by(2, 9))][..],
                Some((2, 1)),
            ),
            (
                2,
                Rules::Plain,
                NextHops::PerReal,
                &[plain(3), (Some(2), by(2, 9))],
                Some((3, 1)),
            ),
            // A rule exists for packets that leave there.
            (
                2,
                Rules::ByInterface,
                NextHops::PerReal,
                &[plain(2), (Some(2), by(2, 9))],
                Some((2, 9)),
            ),
            (
                2,
                Rules::ByInterface,
                NextHops::PerReal,
                &[plain(2)],
                Some((2, 1)),
            ),
            // It leads elsewhere, or nowhere.
            (
                2,
                Rules::Plain,
                NextHops::PerReal,
                &[plain(4), (Some(2), by(2, 9))],
                Some((2, 9)),
            ),
            (
                2,
                Rules::Plain,
                NextHops::PerReal,
                &[plain(4), (Some(3), by(3, 9))],
                Some((3, 9)),
            ),
            (
                2,
                Rules::Plain,
                NextHops::PerReal,
                &[(Some(2), by(2, 9))],
                Some((2, 9)),
            ),
            (
                2,
                Rules::Plain,
                NextHops::PerReal,
                &[plain(4)],
                Some((4, 1)),
            ),
            (2, Rules::Plain, NextHops::PerReal, &[], None),
            // In a VRF, its table counts.
            (
                1,
                Rules::ByInterface,
                NextHops::PerReal,
                &[plain(4), (Some(1), by(1, 9))],
                Some((1, 9)),
            ),
            (
                1,
                Rules::ByInterface,
                NextHops::PerReal,
                &[plain(4), (Some(8), by(1, 9))],
                Some((1, 9)),
            ),
            (
                1,
                Rules::ByInterface,
                NextHops::Redirect,
                &[plain(4), (Some(8), by(5, 9))],
                Some((5, 9)),
            ),
            (
                1,
                Rules::ByInterface,
                NextHops::Redirect,
                &[plain(4)],
                Some((4, 1)),
            ),
            // Redirected packets leave through any interface.
            (
                2,
                Rules::ByInterface,
                NextHops::Redirect,
                &[plain(4), (Some(2), by(2, 9))],
                Some((4, 1)),
            ),
        ] {
            let ways = ways(&[attached], rules, mode);
            assert_eq!(way(&ways, routes), expected, "{attached} {routes:?}");
        }
        // An address of this host is local everywhere; and the library does not know where an
        // embedder attaches.
        let local = Route {
            local: true,
            gateway: None,
            ..by(7, 0)
        };
        let routes = [(None, local), (Some(2), by(2, 9))];
        assert_eq!(
            way(&ways(&[2], Rules::ByInterface, NextHops::PerReal), &routes),
            Some((7, 0))
        );
        let routes = [plain(4), (Some(2), by(2, 9))];
        assert_eq!(way(&Ways::new(NextHops::PerReal), &routes), Some((4, 1)));
    }

    #[test]
    fn default_routes_of_the_attachment_come_first() {
        for (attached, defaults, expected) in [
            (
                2,
                &[(MAIN_TABLE, by(4, 1)), (MAIN_TABLE, by(2, 2))][..],
                Some(by(2, 2)),
            ),
            (
                2,
                &[(MAIN_TABLE, by(4, 1)), (77, by(2, 2)), (77, by(4, 3))],
                Some(by(2, 2)),
            ),
            (2, &[(77, by(2, 2)), (MAIN_TABLE, by(2, 1))], Some(by(2, 1))),
            (2, &[(MAIN_TABLE, by(4, 1))], Some(by(4, 1))),
            (2, &[(77, by(4, 1))], None),
            (
                1,
                &[(MAIN_TABLE, by(1, 1)), (100, by(1, 2))],
                Some(by(1, 2)),
            ),
            (
                1,
                &[(MAIN_TABLE, by(4, 1)), (100, by(1, 2))],
                Some(by(1, 2)),
            ),
            (2, &[(100, by(1, 2))], None),
        ] {
            let ways = ways(&[attached], Rules::Plain, NextHops::PerReal);
            let route = ways.default_route(defaults, &interfaces());
            assert_eq!(route, expected, "{attached} {defaults:?}");
        }
    }
}
