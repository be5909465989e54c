//! A table and its changes in a form that outlives the process: a change can be written before it
//! is committed, and a table can be restored, number by number.
//!
//! Another version may have written what is read, so everything is checked: a restored table has
//! the properties that the rest of the code assumes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;

use super::pool::IdPool;
use super::records::Draft;
use super::records::Edit;
use super::records::RealEntry;
use super::records::Table;
use super::records::VipEntry;
use super::staged::Paper;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::Nonsense;
use crate::types::RealFlags;
use crate::types::RealNumber;
use crate::types::StoredVip;
use crate::types::Vip;
use crate::types::VipFlags;
use crate::types::VipNumber;
use crate::types::canonical;

/// A VIP's entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredEntry {
    number: u16,
    flags: u32,
    hash: u8,
    reals: Vec<(IpAddr, u32)>,
    down: Vec<IpAddr>,
}

/// A real's entry.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredReal {
    number: u16,
    generation: u16,
    flags: u8,
    references: u32,
}

/// Numbers in use or free: of VIPs, then of reals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredNumbers {
    fresh: [u32; 2],
    returned: [Vec<u16>; 2],
    /// Last generations of numbers that no real has, or has with an earlier one.
    generations: Vec<(u16, u16)>,
}

/// What a pool gives and takes: how many numbers, and which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StoredDraft {
    taken: u32,
    returned: Vec<u16>,
}

/// Weights of some reals of a VIP; `None`: it no longer has them.
type Weights = Vec<(IpAddr, Option<u32>)>;

/// The new values of what a change touches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredEdit {
    vip: Option<(StoredVip, Option<StoredEntry>)>,
    weights: Option<(StoredVip, Weights)>,
    health: Vec<(IpAddr, bool)>,
    reals: Vec<(IpAddr, Option<StoredReal>)>,
    vips: StoredDraft,
    numbers: StoredDraft,
}

impl StoredEntry {
    fn of(entry: &VipEntry) -> Self {
        let reals = entry.reals.iter();
        Self {
            number: entry.number.0,
            flags: entry.flags.bits(),
            hash: entry.hash_function.stored(),
            reals: reals.map(|(real, weight)| (*real, *weight)).collect(),
            down: entry.down.iter().copied().collect(),
        }
    }

    fn entry(self) -> Result<VipEntry, Nonsense> {
        let flags = VipFlags::from_bits(self.flags);
        let (of_reals, of_down) = (self.reals.len(), self.down.len());
        let entry = VipEntry {
            number: VipNumber(self.number),
            flags: flags.ok_or(Nonsense("a VIP has flags that this version does not have"))?,
            hash_function: HashFunction::of_stored(self.hash)?,
            reals: self.reals.into_iter().collect(),
            down: self.down.into_iter().collect(),
        };
        let is_once = entry.reals.len() == of_reals && entry.down.len() == of_down;
        match is_once && entry.down.iter().all(|real| entry.reals.contains_key(real)) {
            true => Ok(entry),
            false => Err(Nonsense(
                "a VIP names a real twice, or one that is down alone",
            )),
        }
    }
}

impl StoredReal {
    fn of(entry: &RealEntry) -> Self {
        Self {
            number: entry.number.0,
            generation: entry.generation,
            flags: entry.flags.bits(),
            references: entry.references,
        }
    }

    fn entry(self, address: IpAddr) -> Result<RealEntry, Nonsense> {
        canonical(address)?;
        let entry = RealEntry {
            number: RealNumber(self.number),
            generation: self.generation,
            flags: RealFlags::from_bits_retain(self.flags),
            references: self.references,
        };
        let is_v6 = entry.flags.contains(RealFlags::IPV6);
        match is_v6 == address.is_ipv6() && entry.generation != 0 && entry.references != 0 {
            true => Ok(entry),
            false => Err(Nonsense("a real contradicts itself")),
        }
    }
}

impl StoredDraft {
    fn of(draft: &Draft) -> Self {
        Self {
            taken: draft.taken as u32,
            returned: draft.returned.clone(),
        }
    }

    /// The same, if the pool can take it.
    fn draft(self, pool: &IdPool) -> Result<Draft, Nonsense> {
        let taken = self.taken as usize;
        if taken > usize::from(pool.count()) || taken != 0 && pool.peek(taken - 1).is_none() {
            return Err(Nonsense("a change takes more numbers than there are"));
        }
        let gone = self.returned.iter();
        let gone: BTreeSet<u16> = gone.filter(|id| pool.is_out(**id)).copied().collect();
        match gone.len() == self.returned.len() {
            true => Ok(Draft {
                taken,
                returned: self.returned,
            }),
            false => Err(Nonsense("a number is given back that nothing has")),
        }
    }
}

impl Paper {
    /// What it will change in the table.
    pub(crate) fn stored(&self) -> StoredEdit {
        self.edit.stored()
    }
}

impl Edit {
    pub(crate) fn stored(&self) -> StoredEdit {
        let entry = |entry: &Option<VipEntry>| entry.as_ref().map(StoredEntry::of);
        let vip = self.vip.as_ref();
        let weights = self.weights.as_ref();
        let reals = self.reals.iter();
        let health = self.health.iter();
        StoredEdit {
            vip: vip.map(|(vip, of)| ((*vip).into(), entry(of))),
            weights: weights.map(|(vip, weights)| {
                let weights = weights.iter().map(|(real, weight)| (*real, *weight));
                ((*vip).into(), weights.collect())
            }),
            health: health
                .map(|(real, health)| (*real, health.is_down()))
                .collect(),
            reals: reals
                .map(|(real, entry)| (*real, entry.as_ref().map(StoredReal::of)))
                .collect(),
            vips: StoredDraft::of(&self.vip_ids),
            numbers: StoredDraft::of(&self.real_ids),
        }
    }
}

impl Table {
    /// All VIPs in the form of a snapshot.
    pub(crate) fn stored_vips(&self) -> impl Iterator<Item = (StoredVip, StoredEntry)> + '_ {
        let vips = self.vips.iter();
        vips.map(|(vip, entry)| ((*vip).into(), StoredEntry::of(entry)))
    }

    /// All reals.
    pub(crate) fn stored_reals(&self) -> impl Iterator<Item = (IpAddr, StoredReal)> + '_ {
        let reals = self.reals.iter();
        reals.map(|(address, entry)| (*address, StoredReal::of(entry)))
    }

    /// All numbers.
    pub(crate) fn stored_numbers(&self) -> StoredNumbers {
        let free = self.generations().iter();
        let own = |number| self.real(self.address_of(number)?);
        let free = free
            .filter(|(number, last)| own(**number).is_none_or(|real| real.generation != **last));
        StoredNumbers {
            fresh: [&self.vip_ids, &self.real_ids].map(IdPool::fresh),
            returned: [&self.vip_ids, &self.real_ids].map(|pool| pool.returned().collect()),
            generations: free
                .map(|(number, generation)| (number.0, *generation))
                .collect(),
        }
    }

    pub(crate) fn restore_vip(
        &mut self,
        (vip, entry): (StoredVip, StoredEntry),
    ) -> Result<(), Nonsense> {
        match self.vips.insert(vip.try_into()?, entry.entry()?) {
            None => Ok(()),
            Some(_) => Err(Nonsense("a VIP is there twice")),
        }
    }

    pub(crate) fn restore_real(
        &mut self,
        (address, real): (IpAddr, StoredReal),
    ) -> Result<(), Nonsense> {
        match self.put_real(address, real.entry(address)?) {
            true => Ok(()),
            false => Err(Nonsense("a real or its number is there twice")),
        }
    }

    pub(crate) fn restore_numbers(&mut self, numbers: StoredNumbers) -> Result<(), Nonsense> {
        let [vips, reals] = numbers.fresh;
        let [free_vips, free_reals] = numbers.returned;
        let whole = Nonsense("numbers are free that cannot be");
        self.vip_ids.restore(vips, free_vips).ok_or(whole)?;
        self.real_ids.restore(reals, free_reals).ok_or(whole)?;
        let free = numbers.generations.into_iter();
        self.put_generations(free.map(|(number, last)| (RealNumber(number), last)));
        Ok(())
    }

    /// Makes a change that was recorded and then committed.
    pub(crate) fn restore_edit(&mut self, stored: StoredEdit) -> Result<(), Nonsense> {
        let edit = self.edit_of(stored)?;
        self.commit(edit);
        Ok(())
    }

    /// The same for one that was abandoned.
    pub(crate) fn restore_abandoned(&mut self, stored: StoredEdit) -> Result<(), Nonsense> {
        let edit = self.edit_of(stored)?;
        self.abandon(edit);
        Ok(())
    }

    fn edit_of(&self, stored: StoredEdit) -> Result<Edit, Nonsense> {
        let mut edit = self.edit();
        edit.vip_ids = stored.vips.draft(&self.vip_ids)?;
        edit.real_ids = stored.numbers.draft(&self.real_ids)?;
        if let Some((vip, entry)) = stored.vip {
            let vip = vip.try_into()?;
            let entry = entry.map(StoredEntry::entry).transpose()?;
            let number = match self.vips.get(&vip) {
                Some(before) => Some(before.number.0),
                None => self.vip_ids.peek(0).map(|taken| taken.id),
            };
            let is_new = usize::from(!self.vips.contains_key(&vip));
            let fits = match &entry {
                Some(entry) => edit.vip_ids.taken == is_new && Some(entry.number.0) == number,
                None => is_new == 0 && edit.vip_ids.returned.iter().copied().eq(number),
            };
            if !fits {
                return Err(Nonsense("a VIP has a number that it cannot have"));
            }
            edit.vip = Some((vip, entry));
        }
        if let Some((vip, weights)) = stored.weights {
            let vip: Vip = vip.try_into()?;
            if !self.vips.contains_key(&vip) {
                return Err(Nonsense("reals change of a VIP that is not there"));
            }
            edit.weights = Some((vip, weights.into_iter().collect()));
        }
        let health = stored
            .health
            .into_iter()
            .map(|(real, is_down)| match is_down {
                true => (real, Health::Down),
                false => (real, Health::Up),
            });
        edit.health = health.collect();
        let mut reals = BTreeMap::new();
        let mut taken: BTreeSet<u16> = (0..edit.real_ids.taken)
            .filter_map(|nth| Some(self.real_ids.peek(nth)?.id))
            .collect();
        for (address, real) in stored.reals {
            let real = real.map(|real| real.entry(address)).transpose()?;
            let fits = match (self.reals.get(&address), &real) {
                (Some(before), Some(after)) => {
                    (before.number, before.generation) == (after.number, after.generation)
                }
                (None, Some(new)) => {
                    taken.remove(&new.number.0)
                        && new.generation == self.next_generation(new.number)
                }
                (Some(_), None) => true,
                (None, None) => false,
            };
            if !fits {
                return Err(Nonsense("a real has a number that it cannot have"));
            }
            reals.insert(address, real);
        }
        edit.reals = reals;
        Ok(edit)
    }

    /// Checks that a restored table has the properties that the rest of the code assumes.
    pub(crate) fn check_whole(&self) -> Result<(), Nonsense> {
        let mut vips = self.vip_ids.in_hand();
        for entry in self.vips.values() {
            let is_its_own = vips.remove(&entry.number.0);
            if !is_its_own || !entry.reals.keys().all(|real| self.reals.contains_key(real)) {
                return Err(Nonsense("a VIP has a number or a real that it cannot have"));
            }
        }
        let mut reals = self.real_ids.in_hand();
        for entry in self.reals.values() {
            let is_its_own = reals.remove(&entry.number.0);
            if !is_its_own || self.last_generation(entry.number) < entry.generation {
                return Err(Nonsense("a real has a number that it cannot have"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
