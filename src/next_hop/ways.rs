//! Which way packets take that leave where the balancer is attached: by the main table, or by the rules and
//! tables that the kernel has for those interfaces (VRFs, policy routing).

use std::io;
use std::net::IpAddr;

use super::interfaces::Interfaces;
use crate::rtnetlink::MAIN_TABLE;
use crate::rtnetlink::Requests;
use crate::rtnetlink::Route;

/// The kernel's routing tables.
pub(super) trait Tables {
    /// Where packets for an address go.
    fn route(&mut self, address: IpAddr) -> io::Result<Option<Route>>;

    /// Where they go if they have to leave by an interface, or by one of a VRF.
    fn route_by(&mut self, address: IpAddr, interface: u32) -> io::Result<Option<Route>>;
}

impl Tables for Requests {
    fn route(&mut self, address: IpAddr) -> io::Result<Option<Route>> {
        Requests::route(self, address)
    }

    fn route_by(&mut self, address: IpAddr, interface: u32) -> io::Result<Option<Route>> {
        Requests::route_by(self, address, interface)
    }
}

/// Where packets start.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// The indexes of the interfaces that the balancer is attached to, if that is known.
    attached: Vec<u32>,
    /// With those that packets from there may leave by.
    above: Vec<u32>,
    /// VRFs among them, with their tables.
    vrfs: Vec<(u32, u32)>,
    /// The kernel has rules for packets that leave by some interface.
    rules: bool,
    /// Packets leave by whatever interface leads to their real.
    redirects: bool,
}

impl Ways {
    pub(super) fn new(redirects: bool) -> Self {
        Self {
            redirects,
            ..Self::default()
        }
    }

    /// Whether the balancer is attached elsewhere than before.
    pub(super) fn attach(&mut self, attached: Vec<u32>, interfaces: &Interfaces) -> bool {
        let changed = self.attached != attached;
        self.attached = attached;
        self.renew(interfaces);
        changed
    }

    /// The interfaces that the balancer is attached to, if that is known; some may be gone.
    pub(super) fn attached(&self) -> &[u32] {
        &self.attached
    }

    /// Interfaces have changed.
    pub(super) fn renew(&mut self, interfaces: &Interfaces) {
        self.above = interfaces.above(&self.attached);
        self.vrfs = interfaces.vrfs(&self.above);
    }

    pub(super) fn set_rules(&mut self, rules: bool) {
        self.rules = rules;
    }

    /// Whether packets that leave where the balancer is attached come to the segment of an interface.
    pub(super) fn reach(&self, interfaces: &Interfaces, index: u32) -> bool {
        interfaces.reach(&self.attached, index)
    }

    /// The way to an address; `None`: there is none.
    pub(super) fn route(
        &self,
        tables: &mut impl Tables,
        interfaces: &Interfaces,
        address: IpAddr,
    ) -> io::Result<Option<Route>> {
        let plain = tables.route(address)?;
        let is_local = plain.is_some_and(|route| route.local);
        if self.attached.is_empty() || is_local {
            return Ok(plain);
        }
        // A refusal is as good as no answer: there is the plain one.
        let mut by = |interface| tables.route_by(address, interface).ok().flatten();
        if self.redirects {
            let mut vrfs = self.vrfs.iter();
            return Ok(vrfs.find_map(|(vrf, _)| by(*vrf)).or(plain));
        }
        if let Some(route) = plain {
            if self.attached.contains(&route.interface) {
                let of_rules = self.rules.then(|| by(route.interface)).flatten();
                return Ok(of_rules.or(plain));
            }
            if self.vrfs.is_empty() && self.reach(interfaces, route.interface) {
                return Ok(plain);
            }
        }
        let mut above = self.above.iter().filter_map(|index| by(*index));
        let found = above.find(|route| self.reach(interfaces, route.interface));
        Ok(found.or(plain))
    }

    /// The best default route by a router: by where the balancer is attached, if there is one.
    /// Default routes come with their tables' numbers, the best of each table first.
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::rtnetlink::Interface;

    /// Routes by what is asked: `None` for the plain question.
    #[derive(Default)]
    struct Kernel {
        routes: BTreeMap<Option<u32>, Route>,
    }

    impl Tables for Kernel {
        fn route(&mut self, _: IpAddr) -> io::Result<Option<Route>> {
            Ok(self.routes.get(&None).copied())
        }

        fn route_by(&mut self, _: IpAddr, interface: u32) -> io::Result<Option<Route>> {
            match self.routes.get(&Some(interface)) {
                Some(route) => Ok(Some(*route)),
                None => Err(io::Error::from(io::ErrorKind::Unsupported)),
            }
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

    fn ways(attached: &[u32], rules: bool, redirects: bool) -> Ways {
        let mut ways = Ways::new(redirects);
        ways.set_rules(rules);
        assert!(ways.attach(attached.to_vec(), &interfaces()));
        ways
    }

    #[test]
    fn the_interface_of_the_attachment_is_asked_for() {
        let plain = |interface| (None, by(interface, 1));
        for (attached, rules, redirects, routes, expected) in [
            // The main table leads where the balancer is attached, or to a VLAN there.
            (
                2,
                false,
                false,
                &[plain(2), (Some(2), by(2, 9))][..],
                Some((2, 1)),
            ),
            (
                2,
                false,
                false,
                &[plain(3), (Some(2), by(2, 9))],
                Some((3, 1)),
            ),
            // There is a rule for packets that leave there.
            (
                2,
                true,
                false,
                &[plain(2), (Some(2), by(2, 9))],
                Some((2, 9)),
            ),
            (2, true, false, &[plain(2)], Some((2, 1))),
            // It leads elsewhere, or nowhere.
            (
                2,
                false,
                false,
                &[plain(4), (Some(2), by(2, 9))],
                Some((2, 9)),
            ),
            (
                2,
                false,
                false,
                &[plain(4), (Some(3), by(3, 9))],
                Some((3, 9)),
            ),
            (2, false, false, &[(Some(2), by(2, 9))], Some((2, 9))),
            (2, false, false, &[plain(4)], Some((4, 1))),
            (2, false, false, &[], None),
            // In a VRF that table counts.
            (
                1,
                true,
                false,
                &[plain(4), (Some(1), by(1, 9))],
                Some((1, 9)),
            ),
            (
                1,
                true,
                false,
                &[plain(4), (Some(8), by(1, 9))],
                Some((1, 9)),
            ),
            (
                1,
                true,
                true,
                &[plain(4), (Some(8), by(5, 9))],
                Some((5, 9)),
            ),
            (1, true, true, &[plain(4)], Some((4, 1))),
            // What is redirected leaves by any interface.
            (
                2,
                true,
                true,
                &[plain(4), (Some(2), by(2, 9))],
                Some((4, 1)),
            ),
        ] {
            let ways = ways(&[attached], rules, redirects);
            assert_eq!(way(&ways, routes), expected, "{attached} {routes:?}");
        }
        // An address of this host is one wherever it is; and nobody knows where an embedder attaches.
        let local = Route {
            local: true,
            gateway: None,
            ..by(7, 0)
        };
        let routes = [(None, local), (Some(2), by(2, 9))];
        assert_eq!(way(&ways(&[2], true, false), &routes), Some((7, 0)));
        let routes = [plain(4), (Some(2), by(2, 9))];
        assert_eq!(way(&Ways::new(false), &routes), Some((4, 1)));
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
            let ways = ways(&[attached], false, false);
            let route = ways.default_route(defaults, &interfaces());
            assert_eq!(route, expected, "{attached} {defaults:?}");
        }
    }
}
