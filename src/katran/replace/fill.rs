//! Fills a balancer that will replace another with everything that one knows, under the same
//! numbers, before packets are on it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::share::is_same;
use crate::config::Config;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Katran;
use crate::kernel::kernel_error;
use crate::maps::FlowTables;
use crate::maps::Reader;
use crate::maps::VipKinds;
use crate::maps::real_id;
use crate::skel::katran::types;
use crate::sys::map::Typed;
use crate::table::Table;
use crate::table::VipEntry;
use crate::types::Family;
use crate::types::FlowTracking;
use crate::types::Vip;

/// A balancer's records under other limits.
///
/// # Errors
/// [`Error::InUse`] if there is more than these settings have room for, or a number too large for
/// them.
pub(super) fn table_for(before: &Katran, config: &Config) -> Result<Table> {
    let too_few = |setting: &str, value: u16, by| Error::InUse {
        what: format!("room for more than {setting} = {value}"),
        by,
    };
    let (vips, reals) = (config.max_vips, config.max_reals);
    let table = &before.table;
    if table.with_room(vips, before.config.max_reals).is_none() {
        return Err(too_few(
            "max_vips",
            vips,
            "VIPs, or the number of one: remove VIPs first; if a number is too large, remove that \
            VIP and add it again",
        ));
    }
    table.with_room(vips, reals).ok_or_else(|| {
        too_few(
            "max_reals",
            reals,
            "reals, or the number of one: remove reals first; if a number is too large, remove \
            that real and add it again",
        )
    })
}

impl Katran {
    /// Takes over everything that another balancer knows.
    ///
    /// # Errors
    /// [`Error::InUse`] and [`Error::Exhausted`] if there is no room for it all, and the kernel's
    /// refusals.
    pub(super) fn fill_from(&mut self, before: &Self, table: Table) -> Result<()> {
        self.table = table;
        self.take_names(before)?;
        self.take_reals(before)?;
        let vips = self.enter_vips()?;
        self.write_names()?;
        self.maps.live.take_over(&before.maps.live);
        self.monitored = Arc::clone(&before.monitored);
        self.watch.clone_from(&before.watch);
        let watched = self.watch.as_ref().map(|watch| watch.vip);
        let watched = watched.and_then(|vip| self.table.vip(&vip));
        self.maps
            .live
            .set_watched_vip(watched.map(|entry| entry.number.0));
        self.enter_global_flows(before)?;
        // Data that packets keep changing comes last. Where packets are handed back, flows come
        // after the switch: a connection that replaces one with the same ports on its base removes
        // an entry there, and a copy of that would catch it here.
        if !self.maps.vip_cells.hands_back() {
            self.enter_flows(&before.maps.flows, Reader::Nobody)?;
        }
        for (vip, entry) in &vips {
            self.take_ring(before, vip, entry)?;
        }
        if !self.has_slots_of(before) {
            // Everything that tables know of flows counts.
            self.ask_tables(&vips)?;
        }
        let found = before.maps.voids.found();
        let found = found.map_err(|error| kernel_error("read", "down_reals", error))?;
        self.void_again(&found)
    }

    /// Makes packets find the current VIPs, which have no rings yet.
    pub(in crate::katran) fn enter_vips(&mut self) -> Result<Vec<(Vip, VipEntry)>> {
        let vips = self.table.vips();
        let vips: Vec<(Vip, VipEntry)> = vips.map(|(vip, entry)| (*vip, entry.clone())).collect();
        self.kinds = VipKinds::of(vips.iter().map(|(vip, _)| vip));
        self.maps.live.set_vip_kinds(self.kinds);
        for (vip, entry) in &vips {
            let addressed = self.maps.vip_addresses.add(vip);
            self.kernel
                .check("add the address of", &vip.to_string(), addressed)?;
            self.insert(vip, entry.number)?;
        }
        Ok(vips)
    }

    fn take_names(&mut self, before: &Self) -> Result<()> {
        let exhausted = |what, limit: u32| Error::Exhausted {
            what,
            limit: limit.into(),
        };
        let limit = self.config.max_server_ids;
        let ids = before.server_ids.with_limit(limit);
        self.server_ids = ids.ok_or_else(|| exhausted("server ids (max_server_ids)", limit))?;
        self.invalid_ids.clone_from(&before.invalid_ids);
        let limit = self.config.max_source_routes;
        let routes = before.source_routes.with_limit(limit);
        self.source_routes =
            routes.ok_or_else(|| exhausted("source routes (max_source_routes)", limit))?;
        let limit = self.config.max_decap;
        if before.decap.len() > limit as usize {
            return Err(exhausted("decap addresses (max_decap)", limit));
        }
        self.decap.clone_from(&before.decap);
        Ok(())
    }

    fn take_reals(&mut self, before: &Self) -> Result<()> {
        let mut of_v6 = 0;
        for (address, entry) in self.table.reals() {
            self.check_reachable(address)?;
            let (number, generation) = (entry.number.0, entry.generation);
            let cells = &self.maps.real_cells;
            cells.publish(number, address, generation, entry.flags);
            of_v6 += usize::from(address.is_ipv6());
        }
        self.links.count_reals(of_v6, 0);
        let Some(hops) = &self.maps.next_hops else {
            return Ok(());
        };
        let wanted = self.wanted();
        if let Some(known) = &before.maps.next_hops {
            let numbers = self.table.reals().map(|(_, entry)| entry.number.0);
            let taken = hops.take_over(known, numbers);
            return self.kernel.check("write the next hops in", "hops", taken);
        }
        for (address, entry) in self.table.reals() {
            let family = Family::of(address);
            let mac = wanted.fixed(family);
            if let Some(mac) = mac.or_else(|| before.maps.live.gateway_mac(family)) {
                hops.set(entry.number.0, mac, 0);
            }
        }
        Ok(())
    }

    /// Tells packets what names reals.
    pub(in crate::katran) fn write_names(&mut self) -> Result<()> {
        let id_of = |real| {
            let address = self.table.address_of(real)?;
            let of = self.table.real(address)?;
            Some(real_id(of.number.0, of.generation))
        };
        let ids = self.server_ids.iter();
        let ids: Vec<_> = ids
            .filter(|(id, _)| !self.invalid_ids.contains(id))
            .filter_map(|(id, real)| Some((id, id_of(real)?)))
            .collect();
        let inserted = self.maps.server_ids.insert(&self.maps.live, &ids);
        self.kernel.check("make room for", "server_ids", inserted)?;
        if let Some(maps) = &self.maps.features.source_routes {
            let routes = self.source_routes.iter();
            let routes: Vec<_> = routes.map(|(prefix, real)| (prefix, real.get())).collect();
            let inserted = maps.insert(&routes);
            self.kernel.check("write", "the source routes", inserted)?;
        }
        let ends = self.decap.iter();
        ends.into_iter()
            .try_for_each(|(address, mode)| self.write_decap(*address, Some(*mode)))
    }

    /// Whether flows have the same ring slots as in the other balancer.
    fn has_slots_of(&self, before: &Self) -> bool {
        self.fixed.hasher == before.fixed.hasher
            && self.config.flow_tracking == before.config.flow_tracking
    }

    fn take_ring(&mut self, before: &Self, vip: &Vip, entry: &VipEntry) -> Result<()> {
        let place = usize::from(entry.number.0);
        if !self.has_slots_of(before) {
            return self.make_ring(vip, entry);
        }
        self.copy_ring(before, vip, place)?;
        let cell = self.cell_of(entry);
        self.switch(place, cell, None);
        Ok(())
    }

    /// Gives a VIP without a ring the one that the records describe.
    pub(in crate::katran) fn make_ring(&mut self, vip: &Vip, entry: &VipEntry) -> Result<()> {
        let place = usize::from(entry.number.0);
        let endpoints = self.table.endpoints(entry);
        let (flags, function) = (entry.flags, entry.hash_function);
        let new = self.write_ring(vip, flags, place, function, &endpoints, &entry.down)?;
        self.switch_to(vip, place, flags, !endpoints.is_empty(), &new);
        Ok(())
    }

    /// Everything that flow tables know of these VIPs counts.
    pub(in crate::katran) fn ask_tables(&mut self, vips: &[(Vip, VipEntry)]) -> Result<()> {
        if self.config.flow_tracking == FlowTracking::All {
            return Ok(());
        }
        let tracked = vips.iter();
        let tracked = tracked.filter(|(vip, entry)| self.tracks_changes(vip, entry.flags));
        let tracked: Vec<Vip> = tracked.map(|(vip, _)| *vip).collect();
        let marked = self.mark_all(&tracked)?;
        self.keep_marks(marked);
        Ok(())
    }

    /// Copies another balancer's flow entries, where the tables are not shared.
    pub(in crate::katran) fn enter_flows(&self, its: &FlowTables, reader: Reader) -> Result<()> {
        let records = self.per_cpu()?;
        let own = &self.maps.flows;
        let mut pairs = Vec::new();
        for (cpu, table) in &own.of_cpus {
            let active = records.get(*cpu as usize).map(|of| of.sets.count);
            let from = its.of_cpus.iter().find(|(of, _)| of == cpu);
            let from = from.map_or(&its.fallback, |(_, table)| table);
            pairs.push((table, active, from));
        }
        let left = its.of_cpus.iter();
        let left = left.filter(|(cpu, _)| own.of_cpus.iter().all(|(of, _)| of != cpu));
        let left = left.map(|(_, table)| table).chain([&its.fallback]);
        pairs.extend(left.map(|table| (&own.fallback, None, table)));
        for (table, active, from) in pairs {
            let entered = is_same(table.as_fd(), from.as_fd()).and_then(|same| match same {
                true => Ok(true),
                false => table.enter_all_of(from, active, reader),
            });
            if !self
                .kernel
                .check("enter flows into", "flow_tables", entered)?
            {
                log::warn!(
                    "a flow table of another type starts empty: connections move to the reals \
                     that the rings pick"
                );
                return Ok(());
            }
        }
        Ok(())
    }

    fn enter_global_flows(&self, before: &Self) -> Result<()> {
        let (Some(own), Some(its)) = (
            &self.maps.features.global_flows,
            &before.maps.features.global_flows,
        ) else {
            return Ok(());
        };
        for (cpu, table) in &its.of_cpus {
            let into = own.of_cpus.iter().find(|(of, _)| of == cpu);
            let into = into.map_or(&own.fallback, |(_, table)| table);
            let entered = is_same(table.as_fd(), into.as_fd()).and_then(|same| match same {
                true => Ok(()),
                false => copy(table, into),
            });
            self.kernel
                .check("enter flows into", "global_flows", entered)?;
        }
        Ok(())
    }
}

const A_STEP: u32 = 4096;

fn copy(from: &Typed<types::flow_key, u32>, into: &Typed<types::flow_key, u32>) -> io::Result<()> {
    let mut at = None;
    loop {
        let met = from.elements(at, A_STEP)?;
        for (key, value) in met.keys.iter().zip(&met.values) {
            into.update(key, value)?;
        }
        at = met.next;
        if at.is_none() {
            return Ok(());
        }
    }
}
