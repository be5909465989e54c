//! Computes a next hop from the configuration, the kernel's tables, and what was known before. Asks
//! the kernel nothing.

use std::net::IpAddr;

use super::wanted::Wanted;
use crate::rtnetlink::Route;
use crate::types::ByFamily;
use crate::types::Family;
use crate::types::MacAddr;
use crate::types::NextHops;

/// An address on an interface's segment.
pub(super) type Neighbour = (u32, IpAddr);

/// A next hop and its state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Hop {
    pub(super) address: Option<IpAddr>,
    /// The interface towards the address.
    pub(super) interface: u32,
    pub(super) mac: Option<MacAddr>,
    /// The interface that `mac` is behind: another one until the address answers.
    pub(super) mac_interface: u32,
    pub(super) port: u16,
    /// The address does not answer: `mac` is the last known one, or the configured one.
    pub(super) lost: bool,
    /// `mac` is configured, for good or until something better is known.
    pub(super) given: bool,
    /// The real is an address of this host.
    pub(super) here: bool,
}

/// Distinguishes successive owners of a real's number, and successive wishes.
pub(super) type Ticket = u64;

/// A followed real.
#[derive(Clone, Copy, Debug)]
pub(super) struct Followed {
    pub(super) ticket: Ticket,
    pub(super) address: IpAddr,
    pub(super) hop: Hop,
}

impl Hop {
    /// Whether it could still answer.
    pub(super) fn is_open(&self) -> bool {
        self.address.is_some() && (self.lost || self.mac.is_none())
    }

    /// The resolved address.
    pub(super) fn found(&self) -> Option<MacAddr> {
        self.mac.filter(|_| !self.given)
    }

    /// Behind a neighbour with this MAC address if known; else the last one serves.
    fn behind((interface, address): Neighbour, found: Option<MacAddr>, before: &Self) -> Self {
        let mut hop = Self {
            address: Some(address),
            interface,
            mac: found,
            mac_interface: interface,
            ..Self::default()
        };
        if found.is_none() {
            hop.lost = before.found().is_some();
            hop.mac = before.found();
            if hop.lost {
                hop.mac_interface = before.mac_interface;
            }
        }
        hop
    }

    /// The same if it has a MAC address; else with the configured one, or the previously configured
    /// one, which serves until another is known.
    pub(super) fn or_given(mut self, fixed: Option<MacAddr>, before: &Self) -> Self {
        let kept = before.mac.filter(|_| before.given && !self.here);
        if let (None, Some(mac)) = (self.mac, fixed.or(kept)) {
            self.mac = Some(mac);
            self.given = true;
            self.lost = self.address.is_some();
        }
        self
    }

    pub(super) fn text(&self) -> String {
        let mac = self.mac.map_or("unknown".to_owned(), |mac| mac.to_string());
        match self.address {
            Some(address) => format!("{address}, {mac}"),
            None => mac,
        }
    }
}

/// The neighbour whose MAC address is needed for packets to a real; `None` if there is none.
pub(super) fn neighbour_of_real(
    wanted: &Wanted,
    real: IpAddr,
    route: Option<&Route>,
) -> Option<Neighbour> {
    let route = route.filter(|route| !route.local)?;
    // The configured address is that of the routers.
    let given = wanted.mode == NextHops::PerReal && wanted.fixed(Family::of(real)).is_some();
    match route.gateway {
        Some(_) if given => None,
        gateway => Some((route.interface, gateway.unwrap_or(real))),
    }
}

/// The next hop of a real, without the address that serves if nothing is found ([`Hop::or_given`]).
pub(super) fn of_real(
    wanted: &Wanted,
    real: IpAddr,
    route: Option<&Route>,
    found: Option<MacAddr>,
    before: &Hop,
) -> Hop {
    if let Some(neighbour) = neighbour_of_real(wanted, real, route) {
        return Hop::behind(neighbour, found, before);
    }
    match route {
        Some(route) if !route.local => Hop {
            address: route.gateway,
            interface: route.interface,
            mac: wanted.fixed(Family::of(real)),
            given: true,
            ..Hop::default()
        },
        route => Hop {
            here: route.is_some(),
            ..Hop::default()
        },
    }
}

/// The gateway of a family; the last known one serves until this one answers.
pub(super) fn of_gateway(
    neighbour: Option<Neighbour>,
    found: Option<MacAddr>,
    before: &Hop,
) -> Hop {
    let hop = match neighbour {
        Some(neighbour) => Hop::behind(neighbour, found, before),
        // Packets may still arrive.
        None => Hop {
            mac: before.found(),
            mac_interface: before.mac_interface,
            lost: true,
            ..Hop::default()
        },
    };
    let lost = hop.lost;
    let hop = hop.or_given(None, before);
    Hop {
        lost: hop.lost || lost,
        ..hop
    }
}

/// The gateways after a change of the configuration: a previously configured address serves until
/// another is known.
pub(super) fn gateways_from(
    before: &Wanted,
    wanted: &Wanted,
    gateways: ByFamily<Hop>,
) -> ByFamily<Hop> {
    ByFamily::of(|family| {
        let hop = gateways[family];
        match (before.fixed(family), wanted.fixed(family)) {
            _ if !wanted.finds_gateway() => hop,
            (Some(mac), None) if hop.found().is_none() || !before.finds_gateway() => Hop {
                mac: Some(mac),
                given: true,
                lost: true,
                ..Hop::default()
            },
            _ => hop,
        }
    })
}

/// The MAC address for packets of a family. If none was ever known, the other family's gateway is
/// most likely the same router.
pub(super) fn gateway(
    wanted: &Wanted,
    gateways: &ByFamily<Hop>,
    family: Family,
) -> Option<MacAddr> {
    let own = &gateways[family];
    let other = &gateways[family.other()];
    // A configured one serves while this family's own may still answer, and if nothing is known.
    let may_answer = own.mac.filter(|_| own.address.is_some());
    let fixed = wanted.fixed(family);
    let known = fixed.or(own.found()).or(may_answer).or(other.found());
    known.or(own.mac)
}

/// Why no packet can leave, if the gateway must be resolved and is not; for reals of these
/// families.
pub(super) fn missing(
    wanted: &Wanted,
    gateways: &ByFamily<Hop>,
    has_reals: ByFamily<bool>,
) -> Option<String> {
    let found = gateways.iter().any(|(_, hop)| hop.found().is_some());
    let is_given = |family: &Family| has_reals[*family] && wanted.fixed(*family).is_some();
    if !wanted.finds_gateway() || found || Family::ALL.iter().any(is_given) {
        return None;
    }
    let gateway = gateways.iter().find_map(|(_, hop)| hop.address);
    Some(match gateway {
        Some(gateway) => format!("{gateway} does not answer with its MAC address"),
        None => "no real is behind a router, and there is no default route".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Gateway;

    const GIVEN: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
    const FOUND: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);
    const OTHER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 3]);

    fn wanted(gateway: Gateway, mode: NextHops) -> Wanted {
        Wanted {
            gateway,
            gateway_v6: None,
            mode,
        }
    }

    fn real() -> IpAddr {
        "198.51.100.1".parse().unwrap()
    }

    fn route(gateway: Option<&str>) -> Route {
        Route {
            mtu: None,
            interface: 3,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            local: false,
        }
    }

    #[test]
    fn the_address_that_was_given_serves_until_one_is_found() {
        for gateway in [None, Some("192.0.2.1")] {
            let given = wanted(Gateway::Mac(GIVEN), NextHops::PerReal);
            let auto = wanted(Gateway::Auto, NextHops::PerReal);
            let route = route(gateway);
            let step = |wanted: &Wanted, found, before: &Hop| {
                let hop = of_real(wanted, real(), Some(&route), found, before);
                hop.or_given(wanted.fixed(Family::V4), before)
            };
            let first = step(&given, None, &Hop::default());
            assert_eq!((first.mac, first.given), (Some(GIVEN), true));
            // Another one is configured, and then none.
            let other = wanted(Gateway::Mac(OTHER), NextHops::PerReal);
            let second = step(&other, None, &first);
            assert_eq!(second.mac, Some(OTHER));
            let third = step(&auto, None, &second);
            assert_eq!((third.mac, third.is_open()), (Some(OTHER), true));
            let fourth = step(&auto, None, &third);
            assert_eq!(fourth, third);
            let found = step(&auto, Some(FOUND), &fourth);
            assert_eq!(
                (found.mac, found.given, found.lost),
                (Some(FOUND), false, false)
            );
            // A resolved address serves when it stops answering, and when routes change.
            let lost = step(&auto, None, &found);
            assert_eq!(
                (lost.mac, lost.lost, lost.given),
                (Some(FOUND), true, false)
            );
        }
    }

    #[test]
    fn a_given_gateway_serves_until_its_familys_own_is_found() {
        let given = wanted(Gateway::Mac(GIVEN), NextHops::Gateway);
        let auto = wanted(Gateway::Auto, NextHops::Gateway);
        let mut gateways = gateways_from(&given, &auto, ByFamily::default());
        let both =
            |gateways: &ByFamily<Hop>| Family::ALL.map(|family| gateway(&auto, gateways, family));
        assert_eq!(both(&gateways), [Some(GIVEN); 2]);
        assert!(missing(&auto, &gateways, ByFamily::of(|_| true)).is_some());
        let neighbour = |address: &str| Some((3, address.parse().unwrap()));
        let [v4, v6] = ["192.0.2.1", "2001:db8::1"].map(neighbour);
        // IPv4 is resolved while IPv6 may still answer.
        gateways.v4 = of_gateway(v4, Some(FOUND), &gateways.v4);
        gateways.v6 = of_gateway(v6, None, &gateways.v6);
        assert_eq!(both(&gateways), [Some(FOUND), Some(GIVEN)]);
        assert_eq!(missing(&auto, &gateways, ByFamily::of(|_| true)), None);
        assert!(gateways.v6.is_open());
        // IPv6 has no route at all.
        gateways.v6 = of_gateway(None, None, &gateways.v6);
        assert_eq!(both(&gateways), [Some(FOUND); 2]);
        gateways.v6 = of_gateway(v6, Some(OTHER), &gateways.v6);
        assert_eq!(both(&gateways), [Some(FOUND), Some(OTHER)]);
        gateways.v6 = of_gateway(None, None, &gateways.v6);
        assert_eq!(both(&gateways), [Some(FOUND), Some(OTHER)]);
    }

    #[test]
    fn a_given_address_is_enough_for_reals_of_its_family() {
        let nobody = ByFamily::default();
        let auto = Wanted {
            gateway_v6: Some(GIVEN),
            ..wanted(Gateway::Auto, NextHops::Gateway)
        };
        for (v4, v6, expected) in [
            (false, true, false),
            (true, true, false),
            (true, false, true),
            (false, false, true),
        ] {
            let reason = missing(&auto, &nobody, ByFamily { v4, v6 });
            assert_eq!(reason.is_some(), expected, "{v4} {v6}");
        }
    }

    fn any_hop() -> impl Strategy<Value = Hop> {
        let mac = prop_oneof![Just(None), Just(Some(GIVEN)), Just(Some(OTHER))];
        (mac, any::<bool>(), any::<bool>()).prop_map(|(mac, given, addressed)| Hop {
            address: addressed.then(real),
            mac,
            given: given && mac.is_some(),
            lost: mac.is_none() || given,
            ..Hop::default()
        })
    }

    proptest! {
        /// An address in use goes away only if there is no route or the real is this host, and a
        /// found address is used, whatever happens.
        #[test]
        fn no_hop_loses_its_address_to_nothing(
            before in any_hop(),
            found in prop_oneof![Just(None), Just(Some(FOUND))],
            router in any::<bool>(),
            mac in prop_oneof![Just(Gateway::Auto), Just(Gateway::Mac(GIVEN))],
            redirect in any::<bool>(),
        ) {
            let mode = if redirect { NextHops::Redirect } else { NextHops::PerReal };
            let wanted = wanted(mac, mode);
            let route = route(router.then_some("192.0.2.1"));
            let hop = of_real(&wanted, real(), Some(&route), found, &before);
            let hop = hop.or_given(wanted.fixed(Family::V4), &before);
            let asked = neighbour_of_real(&wanted, real(), Some(&route)).is_some();
            prop_assert!(hop.mac.is_some() || before.mac.is_none());
            if asked && found.is_some() {
                prop_assert_eq!((hop.mac, hop.is_open()), (found, false));
            }
            let again = of_real(&wanted, real(), Some(&route), found, &hop);
            prop_assert_eq!(again.or_given(wanted.fixed(Family::V4), &hop), hop);
        }
    }
}
