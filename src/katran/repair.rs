//! Repair after a change that was cut off. The kernel may have any part of it, so everything that
//! it touches is written again as it was before.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Katran;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::ledger::Intent;
use crate::ledger::Kept;
use crate::maps::real_id;
use crate::table::VipEntry;
use crate::types::Prefix;
use crate::types::Vip;

/// The state after the change; compared with the state before, it shows what packets may see.
pub(super) struct CutOff(Kept);

impl CutOff {
    /// Gives up a change that was under way.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn give_up(kept: &mut Kept, intent: Intent) -> std::result::Result<Self, String> {
        let mut finished = kept.clone();
        finished.finish(intent.clone())?;
        kept.give_up(intent, true)?;
        Ok(Self(finished))
    }
}

impl Katran {
    /// Makes the kernel match the records wherever a change may have altered it.
    pub(super) fn repair(&mut self, CutOff(finished): CutOff) -> Result<()> {
        self.repair_reals(&finished);
        self.repair_vips(&finished)?;
        self.repair_names(&finished)?;
        if let Some(checks) = &mut self.healthchecks {
            let small = &finished.small;
            checks.repair(&self.kernel, &small.marks, &small.matches, &small.probes)?;
        }
        let live = &self.maps.live;
        live.set_own_addresses(self.config.source_v4, self.config.source_v6);
        if let Some(cells) = self.probe_cells() {
            cells.set_own_addresses(self.config.source_v4, self.config.source_v6);
        }
        live.set_vip_kinds(self.kinds);
        self.settle()
    }

    fn repair_reals(&mut self, finished: &Kept) {
        for (address, entry) in self.table.reals() {
            let (number, generation) = (entry.number.0, entry.generation);
            let cells = &self.maps.real_cells;
            cells.publish(number, address, generation, entry.flags);
        }
        let known: BTreeSet<u16> = self.table.reals().map(|(_, of)| of.number.0).collect();
        for (_, entry) in finished.table.reals() {
            if !known.contains(&entry.number.0) {
                self.maps.real_cells.withdraw(entry.number.0);
            }
        }
    }

    fn repair_vips(&mut self, finished: &Kept) -> Result<()> {
        for (vip, _) in finished.table.vips() {
            if self.table.vip(vip).is_none() {
                self.unfind(vip)?;
            }
        }
        let touched: Vec<(Vip, VipEntry)> = self
            .table
            .vips()
            .filter(|(vip, entry)| finished.table.vip(vip) != Some(*entry))
            .map(|(vip, entry)| (*vip, entry.clone()))
            .collect();
        for (vip, entry) in touched {
            self.rebuild(&vip, &entry)?;
            self.find_again(&vip, entry.number)?;
        }
        Ok(())
    }

    /// Switches packets to a ring made from the records.
    fn rebuild(&mut self, vip: &Vip, entry: &VipEntry) -> Result<()> {
        let place = usize::from(entry.number.0);
        let endpoints = self.table.endpoints(entry);
        let (flags, function) = (entry.flags, entry.hash_function);
        let new = self.write_ring(vip, flags, place, function, &endpoints, &entry.down)?;
        let before = self.switch_to(vip, place, flags, !endpoints.is_empty(), &new);
        self.maps.rings.retire(before);
        Ok(())
    }

    fn repair_names(&mut self, finished: &Kept) -> Result<()> {
        let mut set = Vec::new();
        let mut unset = Vec::new();
        let ids: BTreeSet<u32> = (self.server_ids.iter().map(|(id, _)| id))
            .chain(finished.server_ids.iter().map(|(id, _)| id))
            .collect();
        for id in ids {
            let is_valid = !self.invalid_ids.contains(&id);
            let known = self.server_ids.get(id).filter(|_| is_valid);
            let then = finished.server_ids.get(id);
            let then = then.filter(|_| !finished.invalid_ids.contains(&id));
            if known == then {
                continue;
            }
            let real = known.and_then(|real| self.table.address_of(real));
            match real.and_then(|real| self.table.real(real)) {
                Some(real) => set.push((id, real_id(real.number.0, real.generation))),
                None => unset.push(id),
            }
        }
        let live = &self.maps.live;
        let inserted = self.maps.server_ids.insert(live, &set);
        let kernel = &self.kernel;
        kernel.check("make room for", "server_ids", inserted)?;
        self.maps.server_ids.remove(live, unset);

        let prefixes: BTreeSet<Prefix> = (self.source_routes.iter().map(|(prefix, _)| prefix))
            .chain(finished.source_routes.iter().map(|(prefix, _)| prefix))
            .collect();
        let turned = prefixes.into_iter().filter(|prefix| {
            self.source_routes.get(*prefix) != finished.source_routes.get(*prefix)
        });
        if let Ok(maps) = self.source_route_maps() {
            self.restore_source_routes(maps, turned);
        }
        let ends: BTreeSet<IpAddr> = (self.decap.keys().chain(finished.decap.keys()))
            .copied()
            .collect();
        for address in ends {
            let known = self.decap.get(&address);
            if known != finished.decap.get(&address) {
                self.write_decap(address, known.copied())?;
            }
        }
        Ok(())
    }
}

/// The error for an unreadable change that was cut off.
pub(super) fn spoiled(why: String) -> Error {
    kernel_error("read", "the ledger", std::io::Error::other(why))
}
