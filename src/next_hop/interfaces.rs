//! How interfaces lie on each other: VLANs on links, links in bonds and bridges. What was asked once is kept
//! until the next round.

use std::collections::BTreeMap;

use crate::rtnetlink::Interface;
use crate::rtnetlink::Requests;

/// VLANs on VLANs on bonds: no interface lies on more than these.
const MOST_LAYERS: usize = 8;

/// Interfaces by their index; `None`: there is none.
#[derive(Debug, Default)]
pub(super) struct Interfaces(BTreeMap<u32, Option<Interface>>);

impl Interfaces {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn get(&mut self, requests: &mut Requests, index: u32) -> Option<Interface> {
        if index == 0 {
            return None;
        }
        let known = self.0.entry(index);
        known
            .or_insert_with(|| requests.interface(index).ok().flatten())
            .clone()
    }

    /// The link that an interface puts its tags on; itself if it is no VLAN.
    pub(super) fn below_vlans(&mut self, requests: &mut Requests, mut index: u32) -> u32 {
        for _ in 0..MOST_LAYERS {
            match self.get(requests, index) {
                Some(Interface {
                    vlan: true,
                    lower: Some(lower),
                    ..
                }) => index = lower,
                _ => break,
            }
        }
        index
    }

    /// Whether what leaves by one of `attached` comes to the segment of an interface: it is one of them,
    /// lies on one, or is the bond or bridge of one.
    pub(super) fn reach(
        &mut self,
        requests: &mut Requests,
        attached: &[u32],
        mut index: u32,
    ) -> bool {
        for _ in 0..MOST_LAYERS {
            let mut is_member = |of: &u32| {
                let member = self.get(requests, *of);
                member.and_then(|member| member.controller) == Some(index)
            };
            if attached.contains(&index) || attached.iter().any(&mut is_member) {
                return true;
            }
            match self.get(requests, index).and_then(|of| of.lower) {
                Some(lower) => index = lower,
                None => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_walked_down() {
        let link = |vlan, lower, controller| {
            Some(Interface {
                name: String::new(),
                mac: None,
                ethernet: true,
                mtu: 1500,
                up: true,
                carrier: true,
                lower,
                vlan,
                controller,
            })
        };
        // Links 1 and 2 in bond 3, VLAN 4 on it, VLAN 5 on that; link 6; macvlan 7 on it.
        let mut interfaces = Interfaces(BTreeMap::from([
            (1, link(false, None, Some(3))),
            (2, link(false, None, Some(3))),
            (3, link(false, None, None)),
            (4, link(true, Some(3), None)),
            (5, link(true, Some(4), None)),
            (6, link(false, None, None)),
            (7, link(false, Some(6), None)),
            (8, None),
        ]));
        let mut requests = Requests::new().unwrap();
        for (index, below) in [(5, 3), (4, 3), (3, 3), (1, 1), (7, 7), (8, 8)] {
            assert_eq!(interfaces.below_vlans(&mut requests, index), below);
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
            (&[6], 8, false),
        ] {
            let reached = interfaces.reach(&mut requests, attached, index);
            assert_eq!(reached, expected, "{attached:?} {index}");
        }
    }
}
