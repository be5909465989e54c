//! What names reals besides VIPs: server ids and source routes. Computes changes before they are
//! made.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Table;
use crate::error::Error;
use crate::error::Result;
use crate::types::Prefix;
use crate::types::RealNumber;
use crate::types::check_real;
use crate::types::check_server_id;

/// Something that names a real.
pub(crate) trait Name: Copy + Ord {
    /// What has a limit, for errors.
    const WHAT: &'static str;

    /// Its name in errors.
    fn describe(self) -> String;

    /// Refuses an invalid one.
    fn check(self) -> Result<()>;

    /// Which list it counts for; each has the same limit.
    fn list(self) -> usize;
}

/// A server id.
impl Name for u32 {
    const WHAT: &'static str = "server ids (max_server_ids)";

    fn describe(self) -> String {
        format!("server id {self}")
    }

    fn check(self) -> Result<()> {
        check_server_id(self)
    }

    fn list(self) -> usize {
        0
    }
}

/// The clients of a source route.
impl Name for Prefix {
    const WHAT: &'static str = "source routes of an address family (max_source_routes)";

    fn describe(self) -> String {
        format!("source route {self}")
    }

    fn check(self) -> Result<()> {
        Ok(())
    }

    fn list(self) -> usize {
        usize::from(self.address().is_ipv6())
    }
}

/// All of one type, with their reals: by number, because there may be millions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Names<K> {
    reals: BTreeMap<K, RealNumber>,
    counts: [usize; 2],
    limit: u32,
}

/// How many names there may be after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Up to the limit.
    Limited,
    /// More, in the middle of a plan that ends within the limit: up to twice as many.
    Passing,
}

/// Changes of the number of references to reals.
pub(crate) type Deltas = BTreeMap<IpAddr, i64>;

impl Table {
    /// The references to reals that come neither from a VIP nor from these names, as a change that
    /// returns them.
    pub(crate) fn named_by_none(&self, names: impl Iterator<Item = RealNumber>) -> Deltas {
        let known = self.reals();
        let mut surplus: Deltas = known
            .map(|(address, entry)| (address, -i64::from(entry.references)))
            .collect();
        let of_vips = self.vips().flat_map(|(_, entry)| entry.reals.keys());
        let of_names = names.filter_map(|number| self.address_of(number));
        for address in of_vips.copied().chain(of_names) {
            if let Some(references) = surplus.get_mut(&address) {
                *references += 1;
            }
        }
        surplus.retain(|_, references| *references < 0);
        surplus
    }
}

impl<K: Name> Names<K> {
    /// No names, with room for `limit` in each list.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            reals: BTreeMap::new(),
            counts: [0; 2],
            limit,
        }
    }

    /// The same with room for `limit` in each list; `None`: there are more.
    pub(crate) fn with_limit(&self, limit: u32) -> Option<Self> {
        let fits = self.counts.iter().all(|count| *count <= limit as usize);
        fits.then(|| Self {
            limit,
            ..self.clone()
        })
    }

    /// Each name with its real, in order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (K, RealNumber)> + '_ {
        self.reals.iter().map(|(name, real)| (*name, *real))
    }

    pub(crate) fn get(&self, name: K) -> Option<RealNumber> {
        self.reals.get(&name).copied()
    }

    /// How many names each list has.
    pub(crate) fn counts(&self) -> [usize; 2] {
        self.counts
    }

    /// Checks that names in `remove` can go and those in `add` come, in one change, and returns
    /// what that means for the reals. A name in both gets another real.
    pub(crate) fn stage(
        &self,
        remove: &[K],
        add: &[(K, IpAddr)],
        room: Room,
        table: &Table,
    ) -> Result<Deltas> {
        let mut deltas = Deltas::new();
        let mut going = BTreeSet::new();
        for name in remove {
            let real = self.known(*name)?;
            if !going.insert(*name) {
                return Err(not_found(*name));
            }
            if let Some(address) = table.address_of(real) {
                *deltas.entry(address).or_insert(0) -= 1;
            }
        }
        let mut coming = BTreeSet::new();
        for (name, real) in add {
            let there = self.reals.contains_key(name) && !going.contains(name);
            if there || !coming.insert(*name) {
                return Err(Error::AlreadyExists {
                    what: name.describe(),
                });
            }
            *deltas.entry(*real).or_insert(0) += 1;
        }
        let mut counts = self.counts;
        self.count(&mut counts, remove, add)?;
        if room == Room::Limited {
            self.fits(counts)?;
        }
        Ok(deltas)
    }

    /// Refuses invalid names and reals; `counts` are those before the change, and afterwards those
    /// after it if it is possible.
    pub(crate) fn count(
        &self,
        counts: &mut [usize; 2],
        remove: &[K],
        add: &[(K, IpAddr)],
    ) -> Result<()> {
        for (name, real) in add {
            name.check()?;
            check_real(*real)?;
            counts[name.list()] += 1;
        }
        for name in remove {
            let count = &mut counts[name.list()];
            *count = count.saturating_sub(1);
        }
        Ok(())
    }

    /// Refuses more than the limit.
    pub(crate) fn fits(&self, counts: [usize; 2]) -> Result<()> {
        match counts.iter().any(|count| *count > self.limit as usize) {
            false => Ok(()),
            true => Err(Error::Exhausted {
                what: K::WHAT,
                limit: self.limit.into(),
            }),
        }
    }

    /// Makes a staged change.
    pub(crate) fn commit(&mut self, remove: &[K], add: impl IntoIterator<Item = (K, RealNumber)>) {
        for name in remove {
            if self.reals.remove(name).is_some() {
                self.counts[name.list()] -= 1;
            }
        }
        for (name, real) in add {
            if self.reals.insert(name, real).is_none() {
                self.counts[name.list()] += 1;
            }
        }
    }

    /// Adds many, in order, to a list that is being restored.
    pub(crate) fn extend(&mut self, add: impl IntoIterator<Item = (K, RealNumber)>) {
        let mut more: BTreeMap<K, RealNumber> = add.into_iter().collect();
        self.reals.append(&mut more);
        self.counts = [0; 2];
        for name in self.reals.keys() {
            self.counts[name.list()] += 1;
        }
    }

    pub(crate) fn known(&self, name: K) -> Result<RealNumber> {
        self.get(name).ok_or_else(|| not_found(name))
    }
}

impl Names<Prefix> {
    /// The longest of the prefixes that cover an address, and its real.
    pub(crate) fn longest(&self, address: IpAddr) -> Option<(Prefix, RealNumber)> {
        Prefix::all_of(address).find_map(|prefix| Some((prefix, self.get(prefix)?)))
    }
}

fn not_found<K: Name>(name: K) -> Error {
    Error::NotFound {
        what: name.describe(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "198.51.100.1";
    const B: &str = "198.51.100.2";

    fn ids(ids: &[(u32, &str)]) -> Vec<(u32, IpAddr)> {
        let ids = ids.iter().map(|(id, real)| (*id, real.parse().unwrap()));
        ids.collect()
    }

    #[test]
    fn additions_are_checked_together() {
        let mut names = Names::new(3);
        let table = Table::new(1, 3);
        let deltas = names
            .stage(&[], &ids(&[(1, A), (2, A), (3, B)]), Room::Limited, &table)
            .unwrap();
        let delta = |address: &str| deltas[&address.parse::<IpAddr>().unwrap()];
        assert_eq!((delta(A), delta(B)), (2, 1));
        names.commit(&[], [(1, RealNumber(1)), (2, RealNumber(1))]);
        let refused = |wanted: &[(u32, &str)]| {
            names
                .stage(&[], &ids(wanted), Room::Limited, &table)
                .unwrap_err()
        };
        for twice in [&[(3, A), (2, B)], &[(3, A), (3, B)]] {
            assert!(matches!(refused(twice), Error::AlreadyExists { .. }));
        }
        assert!(matches!(
            refused(&[(3, A), (4, B)]),
            Error::Exhausted { limit: 3, .. }
        ));
        assert!(matches!(refused(&[(0, A)]), Error::InvalidConfig { .. }));
        assert!(matches!(
            refused(&[(9, "127.0.0.1")]),
            Error::InvalidAddress { .. }
        ));
        let unknown = names
            .stage(&[2, 2], &[], Room::Limited, &table)
            .unwrap_err();
        assert!(matches!(unknown, Error::NotFound { .. }));
        // Changing a name's real takes no room.
        assert!(
            names
                .stage(&[1], &ids(&[(1, B), (3, B)]), Room::Limited, &table)
                .is_ok()
        );
    }

    #[test]
    fn each_family_has_the_whole_limit() {
        let mut names = Names::new(1);
        let table = Table::new(1, 3);
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let real: IpAddr = A.parse().unwrap();
        let both = [
            (prefix("10.0.0.0/8"), real),
            (prefix("2001:db8::/32"), real),
        ];
        assert!(names.stage(&[], &both, Room::Limited, &table).is_ok());
        names.commit(&[], both.map(|(prefix, _)| (prefix, RealNumber(1))));
        assert_eq!(names.counts(), [1, 1]);
        let more = [(prefix("10.1.0.0/16"), real)];
        assert!(names.stage(&[], &more, Room::Limited, &table).is_err());
        names.commit(&[prefix("2001:db8::/32")], []);
        assert_eq!(names.counts(), [1, 0]);
    }

    #[test]
    fn references_without_a_name_are_given_back() {
        let [one, other] = [A, B].map(|real| real.parse::<IpAddr>().unwrap());
        let mut table = Table::new(1, 3);
        let taken = [(one, 3), (other, 1)].into();
        table.commit(table.stage_references(&taken).unwrap());
        let [first, second] = [one, other].map(|real| table.real_index(real).unwrap());
        let held = table.named_by_none([first, second].into_iter());
        assert_eq!(held, Deltas::from([(one, -2)]));
        table.commit(table.stage_references(&held).unwrap());
        assert_eq!(table.real(one).unwrap().references, 1);
        assert!(table.named_by_none([first, second].into_iter()).is_empty());
    }

    #[test]
    fn the_longest_prefix_is_found() {
        let mut names = Names::new(9);
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let routes = ["0.0.0.0/0", "100.64.0.0/10", "100.64.200.0/24", "::/0"];
        names.commit(
            &[],
            routes.map(prefix).into_iter().zip((1..).map(RealNumber)),
        );
        let longest = |address: &str| {
            let found = names.longest(address.parse().unwrap());
            found.map(|(prefix, _)| prefix.to_string())
        };
        assert_eq!(longest("100.64.200.9").as_deref(), Some("100.64.200.0/24"));
        assert_eq!(longest("100.64.201.9").as_deref(), Some("100.64.0.0/10"));
        assert_eq!(longest("9.9.9.9").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(longest("2001:db8::1").as_deref(), Some("::/0"));
    }
}
