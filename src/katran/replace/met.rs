//! What is to be done about a balancer that packets have met, and that has not taken this one's place: flow tables are those of
//! both, or what the other's know has been entered here, so their entries name its VIPs and reals by numbers that mean nothing here yet.

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
use crate::table::Table;

impl Katran {
    /// Lets another balancer go, which has not taken this one's place. `met`: packets may have been on it; `strays`: some still
    /// get there.
    pub(super) fn outlive(&mut self, next: Self, met: bool, strays: bool) {
        if met {
            match next.carriers_to(self) {
                Ok(carriers) => self.carriers.extend(carriers),
                Err(error) => log::warn!("what was counted in the meantime is not: {error}"),
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
            if let Err(error) = self.enter_flows(&maps.flows, Reader::Packets) {
                log::warn!("flows of the meantime are not known: {error}");
            }
            self.void_entries_of(&table);
        }
        // Until here the next owner finds it.
        if !strays && (self.carriers.is_empty() || self.replaced.is_some()) {
            self.unstage_set();
        }
    }

    /// Numbers that another balancer alone has are given out late, and under other generations; by the next owner, too.
    pub(super) fn burn_numbers_of(&mut self, other: &Table) {
        let met = self.table.met_in(other);
        if met.is_empty() {
            return;
        }
        self.intend_surely(only(Change::Met(met.clone())));
        if let Err(what) = self.table.take_met(&met) {
            log::error!("numbers of a balancer that is gone may be given out again: {what:?}");
        }
        self.note_done();
        self.let_go(Left::Nothing, Numbers::GivenBack);
    }

    /// Entries that another balancer, where no packet is any more, has made for reals which their VIP does not have here are
    /// void.
    pub(super) fn void_entries_of(&mut self, other: &Table) {
        for (number, ids) in self.entries_of(other) {
            let mut vips = self.table.vips();
            let of = vips.find(|(_, entry)| entry.number.0 == number);
            let Some((_, entry)) = of else {
                self.maps.voids.vip_gone(number, Entries::MayCount);
                continue;
            };
            let cell = self.cell_of(entry);
            let mut change = VoidChange::default();
            ids.into_iter().for_each(|id| change.remove(id));
            match self.maps.voids.prepare(&self.kernel, number, change) {
                Ok(prepared) => self.maps.voids.switch(number, cell, Some(prepared)),
                Err(error) => log::warn!(
                    "connections that a replacement has led to reals which their VIP does not have may stay there: {error}"
                ),
            }
        }
    }

    /// Numbers of VIPs, and the ids of reals that are known here, which a VIP of that number has in the other table alone.
    fn entries_of(&self, other: &Table) -> Vec<(u16, Vec<u32>)> {
        let is_here = |number, generation| {
            let real = self.table.address_of(number);
            let entry = real.and_then(|real| self.table.real(real));
            let entry = entry.filter(|entry| entry.generation == generation);
            real.filter(|_| entry.is_some())
        };
        let mut found = Vec::new();
        for (_, its) in other.vips() {
            let mut vips = self.table.vips();
            let own = vips.find(|(_, own)| own.number == its.number);
            let reals = its.reals.keys().filter_map(|real| other.real(*real));
            let ids: Vec<u32> = reals
                .filter_map(|entry| {
                    let here = is_here(entry.number, entry.generation)?;
                    let is_own = own.is_some_and(|(_, own)| own.reals.contains_key(&here));
                    (!is_own).then(|| real_id(entry.number.0, entry.generation))
                })
                .collect();
            if !ids.is_empty() {
                found.push((its.number.0, ids));
            }
        }
        found
    }
}
