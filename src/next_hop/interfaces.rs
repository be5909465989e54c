//! How interfaces are stacked: VLANs on links, links in bonds, bridges and VRFs. A copy of the
//! kernel's list that notices keep current.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::rtnetlink::Interface;

/// VLANs on VLANs on bonds: the largest number of layers.
const MOST_LAYERS: usize = 8;

/// Interfaces by their index.
#[derive(Debug, Default)]
pub(super) struct Interfaces(BTreeMap<u32, Interface>);

impl Interfaces {
    pub(super) fn replace(&mut self, all: BTreeMap<u32, Interface>) {
        self.0 = all;
    }

    /// Sets an interface (`None` removes it) and returns the previous one.
    pub(super) fn set(&mut self, index: u32, now: Option<Interface>) -> Option<Interface> {
        match now {
            Some(now) => self.0.insert(index, now),
            None => self.0.remove(&index),
        }
    }

    pub(super) fn get(&self, index: u32) -> Option<&Interface> {
        self.0.get(&index)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &Interface)> {
        self.0.iter().map(|(index, interface)| (*index, interface))
    }

    pub(super) fn name(&self, index: u32) -> String {
        let interface = self.get(index);
        interface.map_or_else(
            || format!("interface {index}"),
            |interface| interface.name.clone(),
        )
    }

    /// The link on which an interface adds its tags; itself if it is no VLAN.
    pub(super) fn below_vlans(&self, mut index: u32) -> u32 {
        for _ in 0..MOST_LAYERS {
            match self.get(index) {
                Some(Interface {
                    vlan: true,
                    lower: Some(lower),
                    ..
                }) => index = *lower,
                _ => break,
            }
        }
        index
    }

    /// Whether frames that leave through one of `attached` reach the segment of an interface: it is
    /// one of them, is on top of one, or is the bond or bridge of one. True if unknown.
    pub(super) fn reach(&self, attached: &[u32], mut index: u32) -> bool {
        if attached.is_empty() || index == 0 {
            return true;
        }
        for _ in 0..MOST_LAYERS {
            let is_member = |of: &u32| self.controller(*of) == Some(index);
            if attached.contains(&index) || attached.iter().any(is_member) {
                return true;
            }
            match self.get(index).and_then(|of| of.lower) {
                Some(lower) => index = lower,
                None => return false,
            }
        }
        false
    }

    fn controller(&self, index: u32) -> Option<u32> {
        self.get(index).and_then(|of| of.controller)
    }

    /// The interfaces of routes that packets from `attached` can take: those themselves, their
    /// bonds, bridges and VRFs, and what is on top of them, with its own.
    pub(super) fn above(&self, attached: &[u32]) -> Vec<u32> {
        let mut above = attached.to_vec();
        let mut known: BTreeSet<_> = attached.iter().copied().collect();
        let mut next = 0;
        while let Some(index) = above.get(next).copied() {
            next += 1;
            let lies_on_it =
                |(of, interface): (u32, &Interface)| (interface.lower == Some(index)).then_some(of);
            let more = self.controller(index).into_iter();
            for index in more.chain(self.all().filter_map(lies_on_it)) {
                if known.insert(index) {
                    above.push(index);
                }
            }
        }
        above
    }

    /// The VRFs among these, with their tables.
    pub(super) fn vrfs(&self, of: &[u32]) -> Vec<(u32, u32)> {
        let tables = of.iter().map(|index| {
            let interface = self.get(*index)?;
            Some((*index, interface.vrf_table?))
        });
        tables.flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_walked_down_and_up() {
        let link = |vlan, lower, controller| Interface {
            name: String::new(),
            mac: None,
            ethernet: true,
            mtu: 1500,
            up: true,
            carrier: true,
            lower,
            vlan,
            controller,
            vrf_table: None,
            peer: None,
        };
        // Links 1 and 2 in bond 3, VLAN 4 on it, VLAN 5 on that; link 6 in VRF 8; macvlan 7 on it.
        let interfaces = Interfaces(BTreeMap::from([
            (1, link(false, None, Some(3))),
            (2, link(false, None, Some(3))),
            (3, link(false, None, None)),
            (4, link(true, Some(3), None)),
            (5, link(true, Some(4), None)),
            (6, link(false, None, Some(8))),
            (7, link(false, Some(6), None)),
            (
                8,
                Interface {
                    vrf_table: Some(100),
                    ..link(false, None, None)
                },
            ),
        ]));
        for (index, below) in [(5, 3), (4, 3), (3, 3), (1, 1), (7, 7), (9, 9)] {
            assert_eq!(interfaces.below_vlans(index), below);
        }
        for (attached, index, expected) in [
            (&[1, 2][..], 5, true),
            (&[1], 3, true),
            (&[1], 1, true),
            (&[3], 4, true),
            (&[1], 6, false),
            (&[6], 7, true),
            (&[6], 5, false),
            (&[4], 3, false),
            (&[6], 8, true),
            (&[6], 9, false),
            (&[], 9, true),
            (&[6], 0, true),
        ] {
            let reached = interfaces.reach(attached, index);
            assert_eq!(reached, expected, "{attached:?} {index}");
        }
        for (attached, above) in [
            (&[1, 2][..], &[1, 2, 3, 4, 5][..]),
            (&[6], &[6, 8, 7]),
            (&[5], &[5]),
            (&[], &[]),
        ] {
            assert_eq!(interfaces.above(attached), above);
        }
        assert_eq!(interfaces.vrfs(&[6, 8, 9]), [(8, 100)]);
        assert_eq!(interfaces.vrfs(&[1, 3]), []);
    }
}
