//! The neighbours of next hops: each is asked for once, however many reals are behind it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::hop::Neighbour;
use crate::rtnetlink;
use crate::types::Family;
use crate::types::MacAddr;

/// A user of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum User {
    /// The gateway of a family; true: IPv6.
    Gateway(Family),
    /// A real, by its number.
    Real(u16),
}

/// A neighbour's state, and its users.
#[derive(Debug, Default)]
struct Known {
    found: Option<rtnetlink::Neighbour>,
    users: BTreeSet<User>,
}

#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: BTreeMap<Neighbour, Known>,
    of_users: BTreeMap<User, Neighbour>,
}

impl Neighbours {
    /// Puts a user behind a neighbour or none. True if no user was behind it before.
    pub(super) fn assign(&mut self, user: User, neighbour: Option<Neighbour>) -> bool {
        let before = self.of_users.get(&user).copied();
        if before == neighbour {
            return false;
        }
        if let Some(before) = before {
            self.of_users.remove(&user);
            if let Some(known) = self.known.get_mut(&before) {
                known.users.remove(&user);
                if known.users.is_empty() {
                    self.known.remove(&before);
                }
            }
        }
        let Some(neighbour) = neighbour else {
            return false;
        };
        self.of_users.insert(user, neighbour);
        let known = self.known.entry(neighbour).or_default();
        known.users.insert(user);
        known.users.len() == 1
    }

    pub(super) fn contains(&self, neighbour: &Neighbour) -> bool {
        self.known.contains_key(neighbour)
    }

    /// The MAC address of a user's neighbour.
    pub(super) fn found(&self, user: User) -> Option<MacAddr> {
        let neighbour = self.of_users.get(&user)?;
        let found = self.known.get(neighbour)?.found?;
        Some(found.mac)
    }

    /// Whether any user needs it to be resolved or confirmed.
    pub(super) fn is_asked(&self, neighbour: &Neighbour) -> bool {
        let known = self.known.get(neighbour);
        known.is_some_and(|known| !known.found.is_some_and(|found| found.is_fixed))
    }

    /// Records a neighbour's state and returns the previous one.
    pub(super) fn learn(
        &mut self,
        neighbour: &Neighbour,
        found: Option<rtnetlink::Neighbour>,
    ) -> Option<rtnetlink::Neighbour> {
        let known = self.known.get_mut(neighbour)?;
        std::mem::replace(&mut known.found, found)
    }

    pub(super) fn users(&self, neighbour: &Neighbour) -> Vec<User> {
        let known = self.known.get(neighbour);
        known.map_or_else(Vec::new, |known| known.users.iter().copied().collect())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Neighbour> + '_ {
        self.known.keys().copied()
    }

    /// Neighbours without a known MAC address.
    pub(super) fn unknown(&self) -> impl Iterator<Item = Neighbour> + '_ {
        let unknown = self.known.iter().filter(|(_, known)| known.found.is_none());
        unknown.map(|(neighbour, _)| *neighbour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_known_while_somebody_is_behind_it() {
        let neighbour = |last: u8| (3, std::net::IpAddr::from([192, 0, 2, last]));
        let (one, two) = (neighbour(1), neighbour(2));
        let mut neighbours = Neighbours::default();
        assert!(neighbours.assign(User::Real(1), Some(one)));
        assert!(!neighbours.assign(User::Real(2), Some(one)));
        assert!(!neighbours.assign(User::Real(2), Some(one)));
        assert!(neighbours.assign(User::Gateway(Family::V6), Some(two)));
        let found = rtnetlink::Neighbour {
            mac: MacAddr::new([2; 6]),
            is_fixed: false,
        };
        assert_eq!(neighbours.learn(&one, Some(found)), None);
        assert_eq!(neighbours.found(User::Real(2)), Some(found.mac));
        assert_eq!(neighbours.users(&one), [User::Real(1), User::Real(2)]);
        assert_eq!(neighbours.unknown().collect::<Vec<_>>(), [two]);
        assert!(!neighbours.assign(User::Real(1), Some(two)));
        assert!(!neighbours.assign(User::Real(2), None));
        assert!(!neighbours.contains(&one));
        assert_eq!(neighbours.learn(&one, Some(found)), None);
        assert_eq!(neighbours.all().collect::<Vec<_>>(), [two]);
        // A known address is asked for again when a new user comes.
        assert!(neighbours.assign(User::Real(2), Some(one)));
        assert_eq!(neighbours.found(User::Real(2)), None);
        // Nobody asks for a permanent entry of an operator.
        let fixed = rtnetlink::Neighbour {
            is_fixed: true,
            ..found
        };
        assert!(neighbours.is_asked(&two));
        neighbours.learn(&two, Some(fixed));
        assert!(!neighbours.is_asked(&two) && !neighbours.is_asked(&neighbour(9)));
    }
}
