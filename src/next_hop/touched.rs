//! Decides which questions notices of the kernel make it necessary to ask again. Asks the kernel
//! nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;

use super::hop::Neighbour;
use crate::rtnetlink::Interface;
use crate::rtnetlink::Notice;
use crate::types::ByFamily;
use crate::types::Family;

/// More prefixes than these count as all addresses.
const MOST_PREFIXES: usize = 256;

/// What to ask again. Changes of one entry count once, however many notices report them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Touched {
    /// Rules changed, or notices were lost.
    pub(super) everything: bool,
    /// All IPv4 or IPv6 addresses may have another route.
    pub(super) families: ByFamily<bool>,
    /// Addresses that may have another route.
    pub(super) prefixes: BTreeSet<(IpAddr, u8)>,
    pub(super) neighbours: BTreeSet<Neighbour>,
    pub(super) links: BTreeSet<u32>,
}

impl Touched {
    /// Records what a notice touches; `in_use` tells which neighbours matter.
    pub(super) fn note(&mut self, notice: Notice, in_use: impl FnOnce(&Neighbour) -> bool) {
        match notice {
            Notice::Route { length: 0, prefix } => self.family(Family::of(prefix)),
            Notice::Route { prefix, length } => {
                self.prefixes.insert((prefix, length));
                // More are not worth distinguishing.
                if self.prefixes.len() > MOST_PREFIXES {
                    let prefixes = std::mem::take(&mut self.prefixes);
                    for (prefix, _) in prefixes {
                        self.family(Family::of(prefix));
                    }
                }
            }
            Notice::Neighbour { interface, address } => {
                let neighbour = (interface, address);
                if in_use(&neighbour) {
                    self.neighbours.insert(neighbour);
                }
            }
            Notice::Link { index } => {
                self.links.insert(index);
            }
            Notice::AddressGone { family } => self.family(family),
            Notice::Anything => self.everything = true,
        }
    }

    fn family(&mut self, family: Family) {
        self.families[family] = true;
    }

    /// The addresses that may have another route.
    pub(super) fn ranges(&self) -> Vec<RangeInclusive<IpAddr>> {
        let families = Family::ALL.into_iter();
        let families = families.filter(|family| self.everything || self.families[*family]);
        let whole = families.map(|family| match family {
            Family::V4 => range(Ipv4Addr::UNSPECIFIED.into(), 0),
            Family::V6 => range(Ipv6Addr::UNSPECIFIED.into(), 0),
        });
        let prefixes = self.prefixes.iter();
        let prefixes = prefixes.map(|(prefix, length)| range(*prefix, *length));
        whole.chain(prefixes).collect()
    }
}

/// All addresses that begin with the first `length` bits of `prefix`.
fn range(prefix: IpAddr, length: u8) -> RangeInclusive<IpAddr> {
    match prefix {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let first = v4.to_bits() & !host;
            let of = |bits| IpAddr::from(Ipv4Addr::from_bits(bits));
            of(first)..=of(first | host)
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let first = v6.to_bits() & !host;
            let of = |bits| IpAddr::from(Ipv6Addr::from_bits(bits));
            of(first)..=of(first | host)
        }
    }
}

/// What a change of an interface touches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum LinkChange {
    /// No route and no neighbour: at most a name, or something that nobody needs.
    Nothing,
    /// Its own MAC address, the source of frames that are redirected there.
    Address,
    /// Routes through the interface, which the kernel removes without notice.
    OwnWays,
    /// It carries packets again, and so do routes that existed all the time; or it belongs to
    /// others now.
    AllWays,
}

/// The effect of a change of an interface from `before` to `now`; `None`: it does not exist.
pub(super) fn link_change(before: Option<&Interface>, now: Option<&Interface>) -> LinkChange {
    let (before, now) = match (before, now) {
        // Routes through it come later, with their own notices.
        (None, _) => return LinkChange::Nothing,
        (Some(_), None) => return LinkChange::OwnWays,
        (Some(before), Some(now)) => (before, now),
    };
    let works = |of: &Interface| of.up && of.carrier;
    let place = |of: &Interface| (of.lower, of.vlan, of.controller, of.vrf_table);
    if place(before) != place(now) || !works(before) && works(now) {
        return LinkChange::AllWays;
    }
    if works(before) != works(now) || before.up != now.up {
        return LinkChange::OwnWays;
    }
    match before.mac == now.mac {
        true => LinkChange::Nothing,
        false => LinkChange::Address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn covers(ranges: &[RangeInclusive<IpAddr>], address: IpAddr) -> bool {
        ranges.iter().any(|range| range.contains(&address))
    }

    #[test]
    fn a_notice_touches_what_it_names() {
        let mut touched = Touched::default();
        let used = (3, ip("192.0.2.1"));
        for notice in [
            Notice::Neighbour {
                interface: 3,
                address: used.1,
            },
            // On another interface, and another one on this.
            Notice::Neighbour {
                interface: 4,
                address: used.1,
            },
            Notice::Neighbour {
                interface: 3,
                address: ip("192.0.2.2"),
            },
        ] {
            touched.note(notice, |neighbour| *neighbour == used);
        }
        assert_eq!(touched.neighbours, BTreeSet::from([used]));
        assert_eq!(touched.ranges(), []);
        let route = |prefix: &str, length| Notice::Route {
            prefix: ip(prefix),
            length,
        };
        touched.note(route("198.51.100.0", 24), |_| false);
        touched.note(route("2001:db8::", 32), |_| false);
        let ranges = touched.ranges();
        for (address, expected) in [
            ("198.51.100.0", true),
            ("198.51.100.255", true),
            ("198.51.101.0", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
        ] {
            assert_eq!(covers(&ranges, ip(address)), expected, "{address}");
        }
        touched.note(route("0.0.0.0", 0), |_| false);
        assert!(covers(&touched.ranges(), ip("203.0.113.1")));
        assert!(!covers(&touched.ranges(), ip("2001:db9::")));
        touched.note(Notice::AddressGone { family: Family::V6 }, |_| false);
        assert!(covers(&touched.ranges(), ip("2001:db9::")));
        assert!(!touched.everything);
        touched.note(Notice::Anything, |_| false);
        assert!(touched.everything);
    }

    #[test]
    fn many_prefixes_are_all_addresses() {
        let mut touched = Touched::default();
        for third in 0..=255 {
            for second in 0..2 {
                let prefix = Ipv4Addr::new(10, second, third, 0).into();
                touched.note(Notice::Route { prefix, length: 24 }, |_| false);
            }
        }
        assert!(touched.prefixes.len() <= MOST_PREFIXES);
        let expected = ByFamily {
            v4: true,
            v6: false,
        };
        assert_eq!(touched.families, expected);
    }

    #[test]
    fn a_link_touches_its_own_ways_or_all() {
        let up = Interface {
            name: "eth0".to_owned(),
            mac: None,
            ethernet: true,
            mtu: 1500,
            up: true,
            carrier: true,
            lower: None,
            vlan: false,
            controller: None,
            vrf_table: None,
            peer: None,
        };
        let change = |change: fn(&mut Interface)| {
            let mut now = up.clone();
            change(&mut now);
            now
        };
        let renamed = change(|of| of.name = "eth9".to_owned());
        let down = change(|of| of.up = false);
        let off = change(|of| of.carrier = false);
        let member = change(|of| of.controller = Some(9));
        let moved = change(|of| of.mac = Some(crate::types::MacAddr::new([2; 6])));
        for (before, now, expected) in [
            (None, Some(&up), LinkChange::Nothing),
            (None, None, LinkChange::Nothing),
            (Some(&up), None, LinkChange::OwnWays),
            (Some(&up), Some(&up), LinkChange::Nothing),
            (Some(&up), Some(&renamed), LinkChange::Nothing),
            (Some(&up), Some(&moved), LinkChange::Address),
            (Some(&up), Some(&down), LinkChange::OwnWays),
            (Some(&up), Some(&off), LinkChange::OwnWays),
            (Some(&down), Some(&up), LinkChange::AllWays),
            (Some(&off), Some(&up), LinkChange::AllWays),
            (Some(&up), Some(&member), LinkChange::AllWays),
            (Some(&down), Some(&off), LinkChange::OwnWays),
        ] {
            assert_eq!(link_change(before, now), expected, "{before:?} {now:?}");
        }
    }

    proptest! {
        /// A range contains exactly the addresses with the prefix.
        #[test]
        fn ranges_are_prefixes(bits in any::<u128>(), other in any::<u128>(), length in 0u8..=128) {
            // Addresses with some common bits, so that both cases occur.
            let near = bits ^ other.checked_shr(u32::from(length) & 0x7f).unwrap_or(0);
            let [a, b] = [bits, near].map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits)));
            let same = length == 0 || (bits ^ near) >> (128 - u32::from(length)) == 0;
            prop_assert_eq!(range(a, length).contains(&b), same);
            let length = length.min(32);
            let four = |bits: u128| Ipv4Addr::from_bits((bits >> 96) as u32);
            let [a, b] = [bits, near].map(four);
            let difference = u64::from(a.to_bits() ^ b.to_bits());
            let same = difference >> (32 - u32::from(length)) == 0;
            prop_assert_eq!(range(a.into(), length).contains(&IpAddr::from(b)), same);
        }
    }
}
