//! Changes of the table, computed before they are made.
//!
//! Each `stage_` call borrows the table, checks everything that can be checked, and returns what to
//! tell the kernel together with the change itself (`staged.rs`), to be committed afterwards.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::checks::real_flags;
use super::records::Edit;
use super::records::RealEntry;
use super::records::Table;
use super::records::VipEntry;
use super::staged::Adjusted;
use super::staged::Endpoint;
use super::staged::StagedHashFunction;
use super::staged::StagedRealFlags;
use super::staged::StagedReals;
use super::staged::StagedReferences;
use super::staged::StagedRemoval;
use super::staged::StagedVip;
use super::staged::StagedVipFlags;
use super::staged::Turned;
use super::staged::record;
use super::step::Step;
use crate::error::Error;
use crate::error::Result;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::RealNumber;
use crate::types::Vip;
use crate::types::VipFlags;
use crate::types::VipNumber;
use crate::types::check_real;
use crate::types::check_vip;
use crate::types::check_vip_flags;

impl Table {
    /// Adds a VIP without reals.
    pub(crate) fn stage_add_vip(
        &self,
        vip: Vip,
        flags: VipFlags,
        hash_function: HashFunction,
    ) -> Result<StagedVip> {
        check_vip(&vip)?;
        check_vip_flags(&vip, flags)?;
        if self.vips.contains_key(&vip) {
            return Err(Error::AlreadyExists {
                what: format!("VIP {vip}"),
            });
        }
        let taken = self.vip_ids.peek(0).ok_or(Error::Exhausted {
            what: "VIPs (max_vips)",
            limit: self.vip_ids.count().into(),
        })?;
        let number = VipNumber(taken.id);
        let entry = VipEntry {
            number,
            flags,
            hash_function,
            reals: BTreeMap::new(),
            down: BTreeSet::new(),
        };
        let mut edit = self.edit();
        edit.vip = Some((vip, Some(entry)));
        edit.vip_ids.taken = 1;
        Ok(StagedVip {
            number,
            unsettled: taken.unsettled,
            edit,
        })
    }

    /// Removes a VIP, and the reals that only it names.
    pub(crate) fn stage_remove_vip(&self, vip: &Vip) -> Result<StagedRemoval> {
        let entry = self.entry(vip)?;
        let mut edit = self.edit();
        edit.vip = Some((*vip, None));
        edit.vip_ids.returned.push(entry.number.0);
        let deltas = entry.reals.keys().map(|address| (*address, -1));
        let Adjusted { released, .. } = self.adjust(&mut edit, deltas, &mut BTreeMap::new())?;
        Ok(StagedRemoval {
            number: entry.number,
            released,
            edit,
        })
    }

    /// Changes a VIP's reals, all or none.
    ///
    /// Changes apply in order: of several for one address the last one counts, but each must be
    /// possible in its place. A new real needs a number that is free before the batch: numbers of
    /// reals that the same batch releases are still in the current ring.
    ///
    /// After that, `health` says which reals go down or up.
    pub(crate) fn stage_reals(
        &self,
        vip: &Vip,
        changes: &[RealChange],
        health: &[(IpAddr, Health)],
    ) -> Result<StagedReals> {
        let entry = self.entry(vip)?;
        let before = |address: &IpAddr| entry.reals.get(address).copied();
        // The weights of the reals that the batch names, `None` for those that are gone after it.
        // The others matter only if the whole ring is due.
        let mut after: BTreeMap<IpAddr, Option<u32>> = BTreeMap::new();
        let mut flags = BTreeMap::new();
        for change in changes {
            match change {
                RealChange::Add(real) => {
                    check_real(real.address())?;
                    after.insert(real.address(), Some(real.get_weight()));
                    if let Some(wanted) = real.get_flags() {
                        flags.insert(real.address(), real_flags(real.address(), wanted));
                    }
                }
                RealChange::Remove(address) => {
                    let address = address.to_canonical();
                    let named = after.get(&address).copied();
                    if named.unwrap_or_else(|| before(&address)).is_none() {
                        return Err(Error::NotFound {
                            what: format!("real {address} of VIP {vip}"),
                        });
                    }
                    after.insert(address, None);
                }
            }
        }

        let mut turned: BTreeMap<IpAddr, Health> = BTreeMap::new();
        for (address, health) in health {
            let address = address.to_canonical();
            let named = after.get(&address).copied();
            if named.unwrap_or_else(|| before(&address)).is_none() {
                return Err(Error::NotFound {
                    what: format!("real {address} of VIP {vip}"),
                });
            }
            turned.insert(address, *health);
        }
        turned.retain(|address, health| entry.down.contains(address) != health.is_down());
        let is_down = |address: &IpAddr| {
            let known = || entry.down.contains(address);
            turned
                .get(address)
                .map_or_else(known, |health| health.is_down())
        };

        let mut edit = self.edit();
        let deltas = after.iter().filter_map(|(address, weight)| {
            match (before(address).is_some(), weight.is_some()) {
                (false, true) => Some((*address, 1)),
                (true, false) => Some((*address, -1)),
                _ => None,
            }
        });
        let Adjusted {
            added,
            unsettled,
            released,
        } = self.adjust(&mut edit, deltas, &mut flags)?;
        // What is left in `flags` is for reals that neither arrive nor were new: those that stay
        // here, and those that were added and removed again but that another VIP names.
        for (address, flags) in flags {
            self.reflag(&mut edit, address, flags);
        }
        let reflagged = edit
            .reals
            .iter()
            .filter_map(|(address, entry)| {
                let (old, new) = (self.reals.get(address)?, entry.as_ref()?);
                (old.flags != new.flags).then(|| record(*address, new))
            })
            .collect();

        let staying = entry.reals.iter();
        let staying = staying.filter(|(address, _)| !after.contains_key(address));
        let named = after
            .iter()
            .filter_map(|(address, weight)| Some((address, weight.as_ref()?)));
        let mut endpoints: Vec<Endpoint> = staying
            .chain(named)
            .filter_map(|(&address, &weight)| {
                let number = match self.reals.get(&address) {
                    Some(entry) => entry.number,
                    None => edit.reals.get(&address)?.as_ref()?.number,
                };
                Some(Endpoint {
                    number,
                    address,
                    weight: if is_down(&address) { 0 } else { weight },
                })
            })
            .collect();
        // Two sorted runs.
        endpoints.sort_by_key(|endpoint| endpoint.address);
        let slots = |address: &IpAddr| match is_down(address) {
            true => 0,
            false => {
                let named = after.get(address).copied();
                named.unwrap_or_else(|| before(address)).unwrap_or(0)
            }
        };
        let ring_changed = after
            .keys()
            .chain(turned.keys())
            .any(|address| entry.ring_weight(address) != slots(address));
        let known = |address: &IpAddr| Some(record(*address, self.reals.get(address)?));
        let given_up = after
            .iter()
            .filter(|(address, weight)| weight.is_none() && before(address).is_some())
            .filter_map(|(address, _)| {
                let released = matches!(edit.reals.get(address), Some(None));
                Some((known(address)?, !released))
            })
            .collect();
        let joined = after
            .iter()
            .filter(|(address, weight)| weight.is_some() && before(address).is_none())
            .filter_map(|(address, _)| known(address))
            .collect();
        let records = |wanted: Health| {
            let turned = turned.iter().filter(|(_, health)| **health == wanted);
            turned
                .filter_map(|(address, _)| match edit.reals.get(address) {
                    Some(Some(entry)) => Some(record(*address, entry)),
                    _ => known(address),
                })
                .collect()
        };
        let (down, up) = (records(Health::Down), records(Health::Up));
        let (number, flags, hash_function) = (entry.number, entry.flags, entry.hash_function);
        edit.weights = Some((*vip, after));
        edit.health = turned;
        Ok(StagedReals {
            number,
            flags,
            hash_function,
            added,
            unsettled,
            reflagged,
            released,
            endpoints,
            ring_changed,
            turned: Turned {
                given_up,
                joined,
                down,
                up,
            },
            edit,
        })
    }

    /// Changes the flags of a VIP.
    pub(crate) fn stage_set_vip_flags(&self, vip: &Vip, flags: VipFlags) -> Result<StagedVipFlags> {
        let entry = self.entry(vip)?;
        check_vip_flags(vip, flags)?;
        let mut edit = self.edit();
        edit.vip = Some((
            *vip,
            Some(VipEntry {
                flags,
                ..entry.clone()
            }),
        ));
        Ok(StagedVipFlags {
            number: entry.number,
            changed: entry.flags != flags,
            edit,
        })
    }

    /// Changes the hash function of a VIP.
    pub(crate) fn stage_set_hash_function(
        &self,
        vip: &Vip,
        hash_function: HashFunction,
    ) -> Result<StagedHashFunction> {
        let entry = self.entry(vip)?;
        let mut edit = self.edit();
        edit.vip = Some((
            *vip,
            Some(VipEntry {
                hash_function,
                ..entry.clone()
            }),
        ));
        Ok(StagedHashFunction {
            number: entry.number,
            flags: entry.flags,
            endpoints: self.endpoints(entry),
            changed: entry.hash_function != hash_function,
            edit,
        })
    }

    /// Changes the flags of a real, for all VIPs that name it.
    pub(crate) fn stage_set_real_flags(
        &self,
        address: IpAddr,
        flags: RealFlags,
    ) -> Result<StagedRealFlags> {
        let address = address.to_canonical();
        let before = self.reals.get(&address).ok_or_else(|| Error::NotFound {
            what: format!("real {address}"),
        })?;
        let after = RealEntry {
            flags: real_flags(address, flags),
            ..*before
        };
        let mut edit = self.edit();
        edit.reals.insert(address, Some(after));
        Ok(StagedRealFlags {
            record: record(address, &after),
            changed: before.flags != after.flags,
            edit,
        })
    }

    /// The reals of a VIP as its ring's input, by address.
    pub(crate) fn endpoints(&self, entry: &VipEntry) -> Vec<Endpoint> {
        entry
            .reals
            .keys()
            .filter_map(|&address| {
                Some(Endpoint {
                    number: self.real_index(address)?,
                    address,
                    weight: entry.ring_weight(&address),
                })
            })
            .collect()
    }

    /// Stages and commits one step, as if the kernel had accepted it.
    pub(crate) fn take_step(&mut self, step: &Step) -> Result<()> {
        let edit: Edit = match step {
            Step::AddVip { vip, flags, hash } => self.stage_add_vip(*vip, *flags, *hash)?.into(),
            Step::RemoveVip(vip) => self.stage_remove_vip(vip)?.into(),
            Step::SetVipFlags(vip, flags) => self.stage_set_vip_flags(vip, *flags)?.into(),
            Step::SetHashFunction(vip, hash) => self.stage_set_hash_function(vip, *hash)?.into(),
            Step::ModifyReals {
                vip,
                changes,
                health,
            } => self.stage_reals(vip, changes, health)?.into(),
            Step::SetRealFlags(address, flags) => {
                self.stage_set_real_flags(*address, *flags)?.into()
            }
            Step::Hold(references) => self.stage_references(references)?.into(),
            Step::ServerIds(change) => self.stage_references(&change.references)?.into(),
            Step::SourceRoutes(change) => self.stage_references(&change.references)?.into(),
            Step::Set(_)
            | Step::Invalidate(_)
            | Step::Revalidate(_)
            | Step::SetDecap(..)
            | Step::RemoveDecap(_)
            | Step::MapMark(..)
            | Step::UnmapMark(_)
            | Step::SetProbeMatch(..)
            | Step::RemoveProbeMatch(_)
            | Step::RegisterProbe(_)
            | Step::UnregisterProbe(_) => return Ok(()),
        };
        self.commit(edit);
        Ok(())
    }

    /// Checks that steps are possible, one after the other, so that the first one is not made if
    /// the last one cannot be.
    pub(crate) fn rehearse(&self, steps: &[Step]) -> Result<()> {
        let mut table = self.clone();
        steps.iter().try_for_each(|step| table.take_step(step))
    }

    fn entry(&self, vip: &Vip) -> Result<&VipEntry> {
        self.vips.get(vip).ok_or_else(|| Error::NotFound {
            what: format!("VIP {vip}"),
        })
    }

    /// References to reals that something other than a VIP takes (above 0) or returns (below):
    /// server ids, source routes.
    pub(crate) fn stage_references(
        &self,
        deltas: &BTreeMap<IpAddr, i64>,
    ) -> Result<StagedReferences> {
        let mut edit = self.edit();
        let deltas = deltas.iter().map(|(address, delta)| (*address, *delta));
        let adjusted = self.adjust(&mut edit, deltas, &mut BTreeMap::new())?;
        let records = edit
            .reals
            .iter()
            .filter_map(|(address, entry)| Some((*address, record(*address, entry.as_ref()?))))
            .collect();
        Ok(StagedReferences {
            adjusted,
            records,
            edit,
        })
    }

    /// Changes the number of references to reals. A new real gets a number, and its flags from
    /// `flags`; a real without references returns its number.
    fn adjust(
        &self,
        edit: &mut Edit,
        deltas: impl Iterator<Item = (IpAddr, i64)>,
        flags: &mut BTreeMap<IpAddr, RealFlags>,
    ) -> Result<Adjusted> {
        let mut adjusted = Adjusted::default();
        for (address, delta) in deltas.filter(|(_, delta)| *delta != 0) {
            let known = self.reals.get(&address);
            let references = known.map_or(0, |entry| i64::from(entry.references)) + delta;
            let entry = match (known, u32::try_from(references).unwrap_or(0)) {
                (None, 0) => continue,
                (Some(entry), 0) => {
                    adjusted.released.push((address, entry.number));
                    // After its last generation a number is never given out again.
                    if self.last_generation(entry.number) < u16::MAX {
                        edit.real_ids.returned.push(entry.number.0);
                    }
                    None
                }
                (Some(entry), references) => Some(RealEntry {
                    references,
                    flags: match delta > 0 {
                        true => flags.remove(&address).unwrap_or(entry.flags),
                        false => entry.flags,
                    },
                    ..*entry
                }),
                (None, references) => {
                    let taken = self.real_ids.peek(edit.real_ids.taken);
                    let taken = taken.ok_or(Error::Exhausted {
                        what: "reals (max_reals)",
                        limit: self.real_ids.count().into(),
                    })?;
                    edit.real_ids.taken += 1;
                    adjusted.unsettled |= taken.unsettled;
                    let number = RealNumber(taken.id);
                    let entry = RealEntry {
                        number,
                        generation: self.next_generation(number),
                        flags: flags
                            .remove(&address)
                            .unwrap_or_else(|| real_flags(address, RealFlags::empty())),
                        references,
                    };
                    adjusted.added.push(record(address, &entry));
                    Some(entry)
                }
            };
            edit.reals.insert(address, entry);
        }
        Ok(adjusted)
    }

    /// Changes the flags of an existing real that stays, in its entry in `edit` or a new one.
    fn reflag(&self, edit: &mut Edit, address: IpAddr, flags: RealFlags) {
        match (edit.reals.get_mut(&address), self.reals.get(&address)) {
            (Some(Some(entry)), _) => entry.flags = flags,
            (None, Some(entry)) => {
                let entry = RealEntry { flags, ..*entry };
                edit.reals.insert(address, Some(entry));
            }
            (Some(None), _) | (None, None) => {}
        }
    }
}
