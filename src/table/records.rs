//! The VIPs and reals of a balancer, and their numbers in the program.
//!
//! This file holds the table and how a change gets into it; `stage.rs` computes changes. A change
//! is a set of new values for the touched entries: committing it assigns them, and dropping it does
//! nothing.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::pool::IdPool;
use crate::document::VipState;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::Prefix;
use crate::types::Protocol;
use crate::types::Real;
use crate::types::RealFlags;
use crate::types::RealNumber;
use crate::types::Vip;
use crate::types::VipFlags;
use crate::types::VipNumber;

/// A VIP of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VipEntry {
    /// Its number.
    pub(crate) number: VipNumber,
    /// Its flags.
    pub(crate) flags: VipFlags,
    /// How its ring is filled.
    pub(crate) hash_function: HashFunction,
    /// Its reals and their weights.
    pub(crate) reals: BTreeMap<IpAddr, u32>,
    /// Those of them that are down.
    pub(crate) down: BTreeSet<IpAddr>,
}

impl VipEntry {
    /// A real's weight in the ring: 0 while it is down.
    pub(crate) fn ring_weight(&self, address: &IpAddr) -> u32 {
        match self.down.contains(address) {
            true => 0,
            false => self.reals.get(address).copied().unwrap_or(0),
        }
    }
}

/// A real of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RealEntry {
    /// Its number.
    pub(crate) number: RealNumber,
    /// How often the number was given to an address, including this time; never 0.
    pub(crate) generation: u16,
    /// Its flags, with the bit of its family.
    pub(crate) flags: RealFlags,
    /// How many VIPs, server ids and source routes name it; never 0.
    pub(crate) references: u32,
}

/// The VIP that a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Resolved<'a> {
    pub(crate) vip: Vip,
    pub(crate) entry: &'a VipEntry,
    /// The VIP names the packet's own address and port. Otherwise the flow's destination port
    /// counts as 0, unless the VIP's flags keep it.
    pub(crate) exact: bool,
}

/// The VIPs and reals of a balancer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    pub(super) vips: BTreeMap<Vip, VipEntry>,
    pub(super) reals: BTreeMap<IpAddr, RealEntry>,
    addresses: BTreeMap<RealNumber, IpAddr>,
    /// The last generation of each number that was ever used. A real's own may be earlier, if
    /// packets have met a later one in another balancer.
    generations: BTreeMap<RealNumber, u16>,
    pub(super) vip_ids: IdPool,
    pub(super) real_ids: IdPool,
    /// Counts commits: a change can only be committed to the table it was staged for.
    revision: u64,
}

/// How many numbers of VIPs and reals had ever been returned at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GivenBack {
    vips: u64,
    reals: u64,
}

/// A computed change.
#[derive(Clone, Debug)]
#[must_use = "nothing changes until it is committed"]
pub(crate) struct Edit {
    revision: u64,
    pub(super) vip: Option<(Vip, Option<VipEntry>)>,
    /// Weights of some of a VIP's reals; `None` for those that it no longer has.
    pub(super) weights: Option<(Vip, BTreeMap<IpAddr, Option<u32>>)>,
    /// Reals of that VIP that go down or up.
    pub(super) health: BTreeMap<IpAddr, Health>,
    pub(super) reals: BTreeMap<IpAddr, Option<RealEntry>>,
    pub(super) vip_ids: Draft,
    pub(super) real_ids: Draft,
}

impl Edit {
    /// Whether numbers are returned.
    pub(super) fn gives_back(&self) -> bool {
        !self.vip_ids.returned.is_empty() || !self.real_ids.returned.is_empty()
    }
}

/// What a change does to a pool of numbers: it takes some, then returns some.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) taken: usize,
    pub(super) returned: Vec<u16>,
}

impl Table {
    /// An empty table with room for `max_vips` VIPs (numbers from 0) and `max_reals` reals (numbers
    /// from 1).
    pub(crate) fn new(max_vips: u16, max_reals: u16) -> Self {
        Self {
            vips: BTreeMap::new(),
            reals: BTreeMap::new(),
            addresses: BTreeMap::new(),
            generations: BTreeMap::new(),
            vip_ids: IdPool::new(0, max_vips),
            real_ids: IdPool::new(1, max_reals),
            revision: 0,
        }
    }

    /// All VIPs, in their order.
    pub(crate) fn vips(&self) -> impl ExactSizeIterator<Item = (&Vip, &VipEntry)> {
        self.vips.iter()
    }

    /// One VIP.
    pub(crate) fn vip(&self, vip: &Vip) -> Option<&VipEntry> {
        self.vips.get(vip)
    }

    /// All reals, by address.
    pub(crate) fn reals(&self) -> impl ExactSizeIterator<Item = (IpAddr, &RealEntry)> {
        self.reals.iter().map(|(address, entry)| (*address, entry))
    }

    /// The real at an address; an IPv4-mapped one is the IPv4 address.
    pub(crate) fn real(&self, address: IpAddr) -> Option<&RealEntry> {
        self.reals.get(&address.to_canonical())
    }

    /// The number of the real at an address.
    pub(crate) fn real_index(&self, address: IpAddr) -> Option<RealNumber> {
        self.real(address).map(|entry| entry.number)
    }

    /// The address of the real with a number.
    pub(crate) fn address_of(&self, number: RealNumber) -> Option<IpAddr> {
        self.addresses.get(&number).copied()
    }

    /// How many more reals there is room for.
    #[cfg(test)]
    pub(crate) fn free_reals(&self) -> usize {
        self.real_ids.free()
    }

    /// How many more VIPs there is room for.
    #[cfg(test)]
    pub(crate) fn free_vips(&self) -> usize {
        self.vip_ids.free()
    }

    /// The VIP that a packet to this address, port and protocol belongs to. In this order: the
    /// exact address and port; the longest prefix with the port; the address with port 0; the
    /// longest prefix with port 0.
    pub(crate) fn resolve(
        &self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Option<Resolved<'_>> {
        let address = address.to_canonical();
        let exact = |port| {
            let vip = Vip::new((address, port).into(), protocol);
            self.vips.get_key_value(&vip)
        };
        let longest_prefix = |port| {
            let prefixes = Prefix::all_of(address);
            let mut vips = prefixes.filter_map(|prefix| {
                let vip = Vip::new((prefix.address(), port).into(), protocol);
                vip.with_prefix(prefix.length()).ok()
            });
            vips.find_map(|vip| self.vips.get_key_value(&vip).filter(|_| vip.is_prefix()))
        };
        let resolved = |exact| {
            move |(vip, entry): (&Vip, _)| Resolved {
                vip: *vip,
                entry,
                exact,
            }
        };
        exact(port).map(resolved(true)).or_else(|| {
            longest_prefix(port)
                .or_else(|| exact(0))
                .or_else(|| longest_prefix(0))
                .map(resolved(false))
        })
    }

    /// The table as a list of VIPs to compare and write.
    pub(crate) fn vip_states(&self) -> Vec<VipState> {
        self.vips
            .iter()
            .map(|(vip, entry)| VipState {
                vip: *vip,
                flags: entry.flags,
                hash: Some(entry.hash_function),
                reals: entry
                    .reals
                    .iter()
                    .map(|(address, weight)| self.describe(*address, *weight))
                    .collect(),
                down: entry.down.iter().copied().collect(),
            })
            .collect()
    }

    fn describe(&self, address: IpAddr, weight: u32) -> Real {
        let real = Real::new(address).weight(weight);
        let flags = self
            .reals
            .get(&address)
            .map(|entry| entry.flags.difference(RealFlags::IPV6))
            .unwrap_or_default();
        match flags.is_empty() {
            true => real,
            false => real.flags(flags),
        }
    }

    /// Numbers that VIPs have had, and that none has now.
    pub(crate) fn former_vips(&self) -> impl Iterator<Item = u16> + '_ {
        self.vip_ids.returned()
    }

    /// How many numbers have been returned so far.
    pub(crate) fn given_back(&self) -> GivenBack {
        GivenBack {
            vips: self.vip_ids.given_back(),
            reals: self.real_ids.given_back(),
        }
    }

    /// A grace period has passed since the table returned `given_back`: numbers returned by then
    /// are as good as new.
    pub(crate) fn settle(&mut self, given_back: GivenBack) {
        self.vip_ids.settle(given_back.vips);
        self.real_ids.settle(given_back.reals);
    }

    /// Makes a staged change. It cannot fail, but must be the next commit after staging.
    pub(crate) fn commit(&mut self, staged: impl Into<Edit>) {
        let edit = staged.into();
        // The change chose numbers for this revision; committing it to another would give one out
        // twice.
        assert_eq!(edit.revision, self.revision, "another change came between");
        self.revision += 1;
        match edit.vip {
            Some((vip, Some(entry))) => {
                self.vips.insert(vip, entry);
            }
            Some((vip, None)) => {
                self.vips.remove(&vip);
            }
            None => {}
        }
        if let Some((vip, weights)) = edit.weights
            && let Some(entry) = self.vips.get_mut(&vip)
        {
            for (address, weight) in weights {
                match weight {
                    Some(weight) => entry.reals.insert(address, weight),
                    None => entry.reals.remove(&address),
                };
                if weight.is_none() {
                    entry.down.remove(&address);
                }
            }
            for (address, health) in edit.health {
                match health {
                    Health::Down => entry.down.insert(address),
                    Health::Up => entry.down.remove(&address),
                };
            }
        }
        for (address, entry) in edit.reals {
            match entry {
                Some(entry) => {
                    self.addresses.insert(entry.number, address);
                    self.use_up(entry.number, entry.generation);
                    self.reals.insert(address, entry);
                }
                None => {
                    if let Some(entry) = self.reals.remove(&address) {
                        self.addresses.remove(&entry.number);
                    }
                }
            }
        }
        edit.vip_ids.apply(&mut self.vip_ids);
        edit.real_ids.apply(&mut self.real_ids);
    }

    /// Abandons a staged change whose new reals packets may have seen: its numbers count as given
    /// out and returned, so they are not used before a grace period has passed, nor with that
    /// generation.
    pub(crate) fn abandon(&mut self, staged: impl Into<Edit>) {
        let edit = staged.into();
        assert_eq!(edit.revision, self.revision, "another change came between");
        self.revision += 1;
        for _ in 0..edit.real_ids.taken {
            self.real_ids.take();
        }
        for (address, entry) in edit.reals {
            let Some(entry) = entry.filter(|_| !self.reals.contains_key(&address)) else {
                continue;
            };
            self.use_up(entry.number, entry.generation);
            if entry.generation < u16::MAX {
                self.real_ids.give_back(entry.number.0);
            }
        }
    }

    /// The last generation of each number that was ever used.
    pub(super) fn generations(&self) -> &BTreeMap<RealNumber, u16> {
        &self.generations
    }

    /// Puts numbers and their last generations into a table that is being restored.
    pub(super) fn put_generations(&mut self, free: impl Iterator<Item = (RealNumber, u16)>) {
        for (number, generation) in free {
            self.use_up(number, generation);
        }
    }

    /// Notes that a number has had this generation, here or elsewhere.
    pub(super) fn use_up(&mut self, number: RealNumber, generation: u16) {
        let last = self.generations.entry(number).or_default();
        *last = generation.max(*last);
    }

    /// Puts a real into a table that is being restored; `false`: it or its number is there.
    pub(super) fn put_real(&mut self, address: IpAddr, entry: RealEntry) -> bool {
        self.use_up(entry.number, entry.generation);
        let is_first = self.reals.insert(address, entry).is_none();
        self.addresses.insert(entry.number, address).is_none() && is_first
    }

    /// The same with other limits; `None`: there is more, or a number is beyond.
    pub(crate) fn with_room(&self, max_vips: u16, max_reals: u16) -> Option<Self> {
        let mut table = self.clone();
        table.vip_ids = self.vip_ids.with_count(max_vips)?;
        table.real_ids = self.real_ids.with_count(max_reals)?;
        Some(table)
    }

    /// The same table in another process, where nothing is settled yet.
    #[cfg(test)]
    pub(crate) fn unsettled(&self) -> Self {
        let mut table = self.clone();
        for pool in [&mut table.vip_ids, &mut table.real_ids] {
            let (fresh, returned) = (pool.fresh(), pool.returned().collect());
            pool.restore(fresh, returned).unwrap();
        }
        table.revision = 0;
        table
    }

    /// An empty change, to be filled in.
    pub(super) fn edit(&self) -> Edit {
        Edit {
            revision: self.revision,
            vip: None,
            weights: None,
            health: BTreeMap::new(),
            reals: BTreeMap::new(),
            vip_ids: Draft::default(),
            real_ids: Draft::default(),
        }
    }

    /// The generation that a number gets when it is given out next.
    pub(super) fn next_generation(&self, number: RealNumber) -> u16 {
        self.last_generation(number).saturating_add(1)
    }

    /// The last generation that a number has had. After `u16::MAX` it is never given out again.
    pub(super) fn last_generation(&self, number: RealNumber) -> u16 {
        self.generations.get(&number).copied().unwrap_or(0)
    }
}

impl Draft {
    fn apply(self, pool: &mut IdPool) {
        for _ in 0..self.taken {
            pool.take();
        }
        for id in self.returned {
            pool.give_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_in_the_order_of_the_packet_walk() {
        let mut table = Table::new(16, 16);
        for vip in [
            "203.0.113.1:443/tcp",
            "203.0.113.1:0/tcp",
            "203.0.113.0/24:443/tcp",
            "203.0.0.0/16:443/tcp",
            "203.0.113.0/24:0/tcp",
            "0.0.0.0/0:0/udp",
            "[2001:db8::/96]:443/tcp",
        ] {
            let staged = table
                .stage_add_vip(
                    vip.parse().unwrap(),
                    VipFlags::empty(),
                    HashFunction::MaglevV2,
                )
                .unwrap();
            table.commit(staged);
        }
        let resolve = |address: &str, port, protocol| {
            table
                .resolve(address.parse().unwrap(), port, protocol)
                .map(|found| (found.vip.to_string(), found.exact))
        };
        let found = |vip: &str, exact| Some((vip.to_owned(), exact));
        let tcp = Protocol::Tcp;
        assert_eq!(
            resolve("203.0.113.1", 443, tcp),
            found("203.0.113.1:443/tcp", true)
        );
        assert_eq!(
            resolve("::ffff:203.0.113.1", 443, tcp),
            found("203.0.113.1:443/tcp", true)
        );
        assert_eq!(
            resolve("203.0.113.1", 80, tcp),
            found("203.0.113.1:0/tcp", false)
        );
        assert_eq!(
            resolve("203.0.113.2", 443, tcp),
            found("203.0.113.0/24:443/tcp", false)
        );
        assert_eq!(
            resolve("203.0.5.5", 443, tcp),
            found("203.0.0.0/16:443/tcp", false)
        );
        assert_eq!(
            resolve("203.0.113.2", 80, tcp),
            found("203.0.113.0/24:0/tcp", false)
        );
        assert_eq!(
            resolve("192.0.2.1", 1, Protocol::Udp),
            found("0.0.0.0/0:0/udp", false)
        );
        assert_eq!(
            resolve("2001:db8::7", 443, tcp),
            found("[2001:db8::/96]:443/tcp", false)
        );
        assert_eq!(resolve("2001:db8::7", 80, tcp), None);
        assert_eq!(resolve("192.0.2.1", 443, tcp), None);
        assert_eq!(
            resolve("203.0.113.1", 0, tcp),
            found("203.0.113.1:0/tcp", true)
        );
    }

    #[test]
    fn a_number_is_never_given_out_again_after_its_last_generation() {
        use crate::types::RealChange;
        let vip = "203.0.113.1:443/tcp".parse().unwrap();
        let address = "198.51.100.1".parse().unwrap();
        let mut table = Table::new(1, 2);
        table.commit(
            table
                .stage_add_vip(vip, VipFlags::empty(), HashFunction::default())
                .unwrap(),
        );
        let last = RealNumber(1);
        table.generations.insert(last, u16::MAX - 1);
        let add = [RealChange::Add(Real::new(address))];
        let staged = table.stage_reals(&vip, &add, &[]).unwrap();
        let record = staged.added[0];
        assert_eq!((record.number, record.generation), (last, u16::MAX));
        table.commit(staged);
        let remove = [RealChange::Remove(address)];
        table.commit(table.stage_reals(&vip, &remove, &[]).unwrap());
        assert_eq!(table.real_ids.free(), 1);
        let staged = table.stage_reals(&vip, &add, &[]).unwrap();
        assert_eq!(staged.added[0].number, RealNumber(2));
    }

    #[test]
    fn numbers_of_an_abandoned_change_wait_and_come_back_as_another_generation() {
        let real = |octet| IpAddr::from([198, 51, 100, octet]);
        let mut table = Table::new(1, 2);
        let one = table.stage_references(&[(real(1), 1)].into()).unwrap();
        table.commit(one);
        let abandoned = [(real(1), 1), (real(2), 1)].into();
        let staged = table.stage_references(&abandoned).unwrap();
        assert_eq!(staged.adjusted.added[0].number, RealNumber(2));
        table.abandon(staged);
        assert_eq!(table.real(real(1)).unwrap().references, 1);
        assert_eq!(table.real(real(2)), None);
        let staged = table.stage_references(&[(real(3), 1)].into()).unwrap();
        let added = staged.adjusted.added[0];
        assert_eq!((added.number, added.generation), (RealNumber(2), 2));
        assert!(staged.adjusted.unsettled);
        table.settle(table.given_back());
        let staged = table.stage_references(&[(real(3), 1)].into()).unwrap();
        assert!(!staged.adjusted.unsettled);
    }
}
