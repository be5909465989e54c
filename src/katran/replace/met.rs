//! After a failed replacement whose balancer packets have met: shared flow tables, or entries
//! copied here, name its VIPs and reals by numbers that mean nothing here yet.

use std::collections::HashMap;
use std::sync::Arc;

use crate::katran::Katran;
use crate::katran::change::Left;
use crate::katran::change::Numbers;
use crate::katran::remember::only;
use crate::ledger::Change;
use crate::maps::Entries;
use crate::maps::Reader;
use crate::maps::VoidChange;
use crate::maps::real_id;
use crate::table::RealEntry;
use crate::table::Table;
use crate::table::VipEntry;
use crate::types::Vip;

impl Katran {
    /// Lets go of a balancer that has not replaced this one. `met`: packets may have been on it;
    /// `strays`: some still get there.
    pub(super) fn outlive(&mut self, next: Self, met: bool, strays: bool) {
        if met {
            match next.carriers_to(self) {
                Ok(carriers) => self.carriers.extend(carriers),
                Err(error) => log::warn!("counts of a failed replacement are lost: {error}"),
            }
        }
        let Self {
            mut programs,
            maps,
            table,
            ..
        } = next;
        match strays {
            true => {
                programs.lives_by = Some(Arc::clone(&maps.live));
                self.stranded.push(programs);
            }
            false => self.outlast(vec![programs]),
        }
        if met {
            self.burn_numbers_of(&table);
            if let Err(error) = self.enter_flows(&maps.flows, Reader::Packets { since: None }) {
                log::warn!("flows of a failed replacement are lost: {error}");
            }
            self.void_entries_of(&table);
        }
        // Until here the next owner would find it.
        if !strays && (self.carriers.is_empty() || self.replaced.is_some()) {
            self.unstage_set();
        }
    }

    /// Delays numbers that only another balancer has, and gives them other generations; for the
    /// next owner, too.
    pub(super) fn burn_numbers_of(&mut self, other: &Table) {
        let met = self.table.met_in(other);
        if met.is_empty() {
            return;
        }
        self.intend_surely(only(Change::Met(met.clone())));
        if let Err(what) = self.table.take_met(&met) {
            log::error!(
                "later reals may get numbers of a balancer that is gone: {}",
                what.0
            );
        }
        self.note_done();
        self.let_go(Left::Nothing, Numbers::GivenBack);
    }

    /// Voids entries that another balancer, where no packet is any more, has made for reals that
    /// their VIP does not have here.
    pub(super) fn void_entries_of(&mut self, other: &Table) {
        for (number, own, ids) in self.entries_of(other) {
            let Some(entry) = own.and_then(|vip| self.table.vip(&vip)) else {
                self.maps.voids.vip_gone(number, Entries::MayCount);
                continue;
            };
            let cell = self.cell_of(entry);
            let mut change = VoidChange::default();
            ids.into_iter().for_each(|id| change.remove(id));
            match self.maps.voids.prepare(&self.kernel, number, change) {
                Ok(prepared) => self.maps.voids.switch(number, cell, Some(prepared)),
                Err(error) => log::warn!(
                    "connections that a replacement sent to reals outside their VIP may stay \
                    there: {error}"
                ),
            }
        }
    }

    /// VIP numbers, the VIPs that have them here, and the ids of reals known here that only the
    /// other table has for a VIP of that number.
    fn entries_of(&self, other: &Table) -> Vec<(u16, Option<Vip>, Vec<u32>)> {
        let own = self.table.vips();
        let own: HashMap<u16, (&Vip, &VipEntry)> = own.map(|of| (of.1.number.0, of)).collect();
        let here = |entry: &RealEntry| {
            let address = self.table.address_of(entry.number)?;
            let own = self.table.real(address)?;
            (own.generation == entry.generation).then_some(address)
        };
        let found = other.vips().filter_map(|(_, its)| {
            let own = own.get(&its.number.0);
            let reals = its.reals.keys().filter_map(|real| other.real(*real));
            let alone = reals.filter(|entry| {
                let here = here(entry);
                here.is_some_and(|real| own.is_none_or(|(_, own)| !own.reals.contains_key(&real)))
            });
            let ids: Vec<u32> = alone
                .map(|entry| real_id(entry.number.0, entry.generation))
                .collect();
            (!ids.is_empty()).then(|| (its.number.0, own.map(|(vip, _)| **vip), ids))
        });
        found.collect()
    }
}
