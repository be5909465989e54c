//! The state of a link, and how to ask the kernel for it.

use std::collections::BTreeSet;
use std::io;

use super::Place;
use crate::rtnetlink::Interface;
use crate::rtnetlink::Requests;
use crate::sys::namespace::network_namespace;
use crate::types::MacAddr;

/// The largest number of layers: members of bonds that are ports of bridges.
const MOST_LAYERS: usize = 3;

/// The destination addresses of frames for this host on a link: its own, and those of its bonds and
/// bridges, because routers send there.
pub(super) type Stations = BTreeSet<MacAddr>;

/// The state of an existing link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) mtu: u32,
    pub(super) stations: Stations,
    /// The interfaces that this depends on: the link and what it belongs to.
    pub(super) touched: Vec<u32>,
}

/// Asks for a link; `None` if it does not exist. `namespace` is the number that its network
/// namespace has in that of the requests, if it is another one.
pub(super) fn ask(
    requests: &mut Requests,
    namespace: Option<i32>,
    index: u32,
) -> io::Result<Option<Found>> {
    found_by(index, |of| requests.interface_in(namespace, of))
}

/// The MTU of a link in the calling thread's namespace, when changes cannot be followed. It leaves
/// out the address: one that may change unnoticed is worse than none.
pub(super) fn ask_once(place: Place) -> Option<Found> {
    let is_here = network_namespace().is_ok_and(|here| here == place.0);
    let mut requests = Requests::new().ok().filter(|_| is_here)?;
    let found = ask(&mut requests, None, place.1).ok()??;
    Some(Found {
        stations: Stations::new(),
        ..found
    })
}

/// The same as `ask`; `interface` finds the link and those above it.
fn found_by(
    index: u32,
    mut interface: impl FnMut(u32) -> io::Result<Option<Interface>>,
) -> io::Result<Option<Found>> {
    let mut mtu = None;
    let mut stations = Stations::new();
    let mut touched = Vec::new();
    let mut next = Some(index);
    for _ in 0..MOST_LAYERS {
        let Some(of) = next else {
            break;
        };
        touched.push(of);
        let Some(link) = interface(of)? else {
            break;
        };
        mtu = mtu.or(Some(link.mtu));
        stations.extend(address(&link));
        next = link.controller;
    }
    Ok(mtu.map(|mtu| Found {
        mtu,
        stations,
        touched,
    }))
}

/// The MAC address of frames for a link. No host uses a VRF's, and loopback has none.
fn address(link: &Interface) -> Option<MacAddr> {
    let mac = link.mac?;
    (link.ethernet && link.vrf_table.is_none() && mac.octets() != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn link(mac: u8, controller: Option<u32>) -> Interface {
        Interface {
            name: String::new(),
            ethernet: true,
            up: true,
            carrier: true,
            mtu: 1500 + u32::from(mac),
            mac: Some(MacAddr::new([2, 0, 0, 0, 0, mac])),
            lower: None,
            vlan: false,
            controller,
            vrf_table: None,
            peer: None,
        }
    }

    /// The state of link 1 among links with these indices, addresses and controllers.
    fn found(links: &[(u32, Interface)]) -> Option<Found> {
        let links: BTreeMap<_, _> = links.iter().cloned().collect();
        found_by(1, |index| Ok(links.get(&index).cloned())).unwrap()
    }

    #[test]
    fn addresses_are_those_of_a_link_its_bond_and_its_bridge() {
        let addresses = |links: &[(u32, Interface)]| {
            let found = found(links).unwrap();
            assert_eq!(found.mtu, 1501, "its own");
            let last = found
                .stations
                .iter()
                .map(|mac| mac.octets()[5])
                .collect::<Vec<_>>();
            (last, found.touched)
        };
        assert_eq!(addresses(&[(1, link(1, None))]), (vec![1], vec![1]));
        let all = [
            (1, link(1, Some(2))),
            (2, link(2, Some(3))),
            (3, link(3, Some(4))),
            (4, link(4, None)),
        ];
        assert_eq!(addresses(&all), (vec![1, 2, 3], vec![1, 2, 3]));
        // A cycle, which may appear during a change.
        let circle = [(1, link(1, Some(2))), (2, link(2, Some(1)))];
        assert_eq!(addresses(&circle), (vec![1, 2], vec![1, 2, 1]));
        // A notice will report one that has gone.
        assert_eq!(addresses(&[(1, link(1, Some(7)))]), (vec![1], vec![1, 7]));
        // A VRF's addresses are not its own.
        let vrf = Interface {
            vrf_table: Some(10),
            ..link(2, None)
        };
        let in_vrf = [(1, link(1, Some(2))), (2, vrf)];
        assert_eq!(addresses(&in_vrf), (vec![1], vec![1, 2]));
        let none = Interface {
            mac: Some(MacAddr::new([0; 6])),
            ..link(1, None)
        };
        assert_eq!(addresses(&[(1, none)]), (vec![], vec![1]));
        assert_eq!(found(&[(2, link(2, None))]), None);
    }
}
