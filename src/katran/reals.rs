//! Reals: adding, removing, weights and flags, and the rings that follow from them.

use std::mem;
use std::net::IpAddr;

use super::Katran;
use super::change::Left;
use super::change::News;
use super::change::Prepared;
use super::remember::nothing_else;
use super::slots::NewRing;
use crate::error::Error;
use crate::error::Result;
use crate::maps::RingSlot;
use crate::maps::VipCell;
use crate::maps::Voiding;
use crate::skel::katran::types;
use crate::table::RealRecord;
use crate::types::Encapsulation;
use crate::types::HashFunction;
use crate::types::Health;
use crate::types::Real;
use crate::types::RealChange;
use crate::types::RealFlags;
use crate::types::RealNumber;
use crate::types::Vip;
use crate::types::VipFlags;

const _: () = {
    assert!(RealFlags::IPV6.bits() as i64 == types::real_flag::REAL_IPV6.0 as i64);
    assert!(RealFlags::LOCAL_REAL.bits() as i64 == types::real_flag::REAL_LOCAL.0 as i64);
};

/// # Reals
impl Katran {
    /// Adds a real to a VIP, or updates the weight of one that it has.
    ///
    /// Weight 0 drains the real: the ring sends it no new flows, and flows in the flow table stay.
    /// That includes a SYN whose flow entry was used in the last five seconds, so a client that
    /// reconnects at once from the same port returns to the real. New UDP flows can still join it
    /// for `udp_timeout`, in slots that were its own ([`Real::weight`]).
    ///
    /// Give a new VIP all its reals in one change, by [`modify_reals`](Self::modify_reals) or
    /// [`apply`](Self::apply). If you add them one by one, each takes slots from the earlier ones,
    /// and with [`FlowTracking::Changed`](crate::FlowTracking::Changed) these slots are unsettled.
    /// Until they settle, packets without a flow entry that are not SYNs go to the real that was
    /// added first: for at least `flow_idle_timeout` this concerns connections older than the
    /// balancer, and for `udp_timeout` UDP flows.
    /// [`FlowsMut::purge`](crate::flows::FlowsMut::purge) settles all slots of a VIP at once.
    ///
    /// # Errors
    /// As [`modify_reals`](Self::modify_reals).
    #[doc(alias = "addRealForVip")]
    pub fn add_real(&mut self, vip: Vip, real: Real) -> Result<()> {
        self.modify_reals(vip, &[RealChange::Add(real)])
    }

    /// Removes a real from a VIP.
    ///
    /// The VIP's flows leave it at once, even if something else still names the real: their next
    /// packets follow the ring. Their flow entries are void from then on; the library removes them
    /// in the background. A VIP that loses its last real drops all its packets.
    ///
    /// # Errors
    /// As [`modify_reals`](Self::modify_reals).
    #[doc(alias = "delRealForVip")]
    pub fn remove_real(&mut self, vip: Vip, address: IpAddr) -> Result<()> {
        self.modify_reals(vip, &[RealChange::Remove(address)])
    }

    /// Changes a VIP's reals in one step: packets see the ring before all changes or after all of
    /// them.
    ///
    /// The library takes the changes in order; if several name one address, the last one counts.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such VIP, or if it lacks a real to be removed;
    /// [`Error::Exhausted`] beyond `max_reals` (the call cannot use numbers that it frees);
    /// [`Error::InvalidAddress`]; [`Error::InvalidConfig`] for a real of a family for which GUE has
    /// no source address; [`Error::Kernel`]. Nothing has changed then.
    ///
    /// ```no_run
    /// use katran::Real;
    /// use katran::RealChange;
    ///
    /// # fn example(katran: &mut katran::Katran, vip: katran::Vip) -> katran::Result<()> {
    /// let new = Real::new("198.51.100.3".parse().unwrap()).weight(2);
    /// let old = "198.51.100.1".parse().unwrap();
    /// katran.modify_reals(vip, &[RealChange::Add(new), RealChange::Remove(old)])?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "modifyRealsForVip")]
    pub fn modify_reals(&mut self, vip: Vip, changes: &[RealChange]) -> Result<()> {
        let _call = self.call()?;
        self.change_reals_and_tell(vip, changes, &[])
    }

    /// The same, which also marks some of them down or up.
    pub(super) fn change_reals_and_tell(
        &mut self,
        vip: Vip,
        changes: &[RealChange],
        health: &[(IpAddr, Health)],
    ) -> Result<()> {
        let news = self.change_reals(vip, changes, health)?;
        self.tell(news);
        Ok(())
    }

    /// The same, but leaves the callbacks for later.
    pub(super) fn change_reals(
        &mut self,
        vip: Vip,
        changes: &[RealChange],
        health: &[(IpAddr, Health)],
    ) -> Result<News> {
        self.collect();
        let mut staged = self.note(self.table.stage_reals(&vip, changes, health))?;
        let turned = mem::take(&mut staged.turned);
        let place = usize::from(staged.number.0);
        let (flags, function) = (staged.flags, staged.hash_function);
        let endpoints = mem::take(&mut staged.endpoints);
        // Reals without new flows have slots, too, where slots have a history; without reals there
        // is no ring.
        let ring_changed =
            staged.ring_changed || self.rings[place].is_none() != endpoints.is_empty();
        let reflagged = mem::take(&mut staged.reflagged);
        let mut down = self.entry(vip)?.down.clone();
        down.extend(turned.down.iter().map(|real| real.address));
        for real in &turned.up {
            down.remove(&real.address);
        }
        let written = Prepared::new(staged, nothing_else).write(self, |katran| {
            let voiding = katran.prepare_voids(vip, flags, &turned)?;
            let ring = match ring_changed {
                true => katran.write_ring(&vip, flags, place, function, &endpoints, &down),
                false => katran.same_ring(place, &endpoints, &down),
            };
            if ring.is_err()
                && let Some(voiding) = &voiding
            {
                katran.maps.voids.abandon(place as u16, voiding);
            }
            Ok((ring?, voiding))
        })?;
        let switched = written.switch(self, |katran, (new, voiding)| {
            let ring = new.ring;
            for record in &reflagged {
                katran.write_real_flags(record);
            }
            let cell = VipCell {
                flags,
                has_reals: !endpoints.is_empty(),
                void_flows: false,
                ring,
            };
            let before = katran.switch(place, cell, voiding);
            katran.switch_history(&vip, place, &new);
            if before.is_some() && ring.is_none() {
                katran.maps.rings.trim_later();
            }
            Left::Ring(before)
        });
        Ok(switched.retire(self))
    }

    /// A VIP's reals with weights and flags, sorted by address.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    #[doc(alias = "getRealsForVip")]
    pub fn reals(&self, vip: Vip) -> Result<Vec<Real>> {
        let entry = self.entry(vip)?;
        Ok(entry
            .reals
            .iter()
            .map(|(address, weight)| {
                let flags = self.table.real(*address).map(|entry| entry.flags);
                Real::new(*address)
                    .weight(*weight)
                    .flags(flags.unwrap_or_default())
            })
            .collect())
    }

    /// The number by which counters and callbacks know a real; `None` if nothing names this
    /// address.
    #[doc(alias = "getIndexForReal")]
    pub fn real_index(&self, address: IpAddr) -> Option<RealNumber> {
        self.table.real_index(address)
    }

    /// Every real with its number, sorted by address.
    #[doc(alias = "getNumToRealMap")]
    pub fn real_numbers(&self) -> Vec<(IpAddr, RealNumber)> {
        self.table
            .reals()
            .map(|(address, entry)| (address, entry.number))
            .collect()
    }

    /// Replaces a real's flags, for all VIPs that use it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing names this address.
    #[doc(alias = "modifyReal")]
    pub fn set_real_flags(&mut self, address: IpAddr, flags: RealFlags) -> Result<()> {
        let _call = self.call()?;
        let news = self.change_real_flags(address, flags)?;
        self.tell(news);
        Ok(())
    }

    pub(super) fn change_real_flags(&mut self, address: IpAddr, flags: RealFlags) -> Result<News> {
        let staged = self.table.stage_set_real_flags(address, flags)?;
        let (record, changed) = (staged.record, staged.changed);
        let written = Prepared::new(staged, nothing_else).write(self, |_| Ok(()))?;
        let switched = written.switch(self, |katran, ()| {
            if changed {
                katran.write_real_flags(&record);
            }
            Left::Nothing
        });
        Ok(switched.retire(self))
    }

    /// Changes the hash function of a VIP and fills its ring again.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "changeHashFunctionForVip")]
    pub fn set_hash_function(&mut self, vip: Vip, function: HashFunction) -> Result<()> {
        let _call = self.call()?;
        let news = self.change_hash_function(vip, function)?;
        self.tell(news);
        Ok(())
    }

    pub(super) fn change_hash_function(
        &mut self,
        vip: Vip,
        function: HashFunction,
    ) -> Result<News> {
        self.collect();
        let mut staged = self.table.stage_set_hash_function(&vip, function)?;
        let place = usize::from(staged.number.0);
        let (flags, changed) = (staged.flags, staged.changed);
        let endpoints = mem::take(&mut staged.endpoints);
        let down = self.entry(vip)?.down.clone();
        let written = Prepared::new(staged, nothing_else).write(self, |katran| match changed {
            true => katran.write_ring(&vip, flags, place, function, &endpoints, &down),
            false => katran.same_ring(place, &endpoints, &down),
        })?;
        let switched = written.switch(self, |katran, new| {
            Left::Ring(katran.switch_to(&vip, place, flags, !endpoints.is_empty(), &new))
        });
        Ok(switched.retire(self))
    }

    /// Switches packets to a written ring, and returns the previous one.
    pub(super) fn switch_to(
        &mut self,
        vip: &Vip,
        place: usize,
        flags: VipFlags,
        has_reals: bool,
        new: &NewRing,
    ) -> Option<RingSlot> {
        let cell = VipCell {
            flags,
            has_reals,
            void_flows: false,
            ring: new.ring,
        };
        let before = self.switch(place, cell, None);
        self.switch_history(vip, place, new);
        before
    }

    /// Clears the counters of reals that nothing names yet.
    pub(super) fn clear_real_counters(&self, added: &[RealRecord]) -> Result<()> {
        for record in added {
            self.kernel.check(
                "clear the counters of",
                &record.address.to_string(),
                self.maps.real_counters.clear(record.number.get()),
            )?;
        }
        Ok(())
    }

    fn write_real_flags(&self, record: &RealRecord) {
        let (number, address) = (record.number.0, record.address);
        self.maps
            .real_cells
            .set_flags(number, address, record.flags);
    }

    /// Publishes reals before anything names them.
    pub(super) fn publish_reals(&mut self, added: &[RealRecord]) {
        let of_v6 = added.iter().filter(|record| record.address.is_ipv6());
        self.links.count_reals(of_v6.count(), 0);
        self.reach(added);
        for record in added {
            self.maps.real_cells.publish(
                record.number.0,
                record.address,
                record.generation,
                record.flags,
            );
        }
    }

    /// Withdraws reals after their last name is gone.
    pub(super) fn withdraw_reals(&mut self, released: &[(IpAddr, RealNumber)]) {
        for (_, real) in released {
            self.maps.real_cells.withdraw(real.0);
        }
        let of_v6 = released.iter().filter(|(address, _)| address.is_ipv6());
        self.links.count_reals(0, of_v6.count());
        self.forget(released.iter().map(|(_, real)| real.0));
    }

    /// GUE needs an outer source address of the real's family.
    pub(super) fn check_reachable(&self, address: IpAddr) -> Result<()> {
        let (setting, source) = match address {
            IpAddr::V4(_) => ("source_v4", self.config.source_v4.map(IpAddr::V4)),
            IpAddr::V6(_) => ("source_v6", self.config.source_v6.map(IpAddr::V6)),
        };
        if self.config.encapsulation != Encapsulation::Gue || source.is_some() {
            return Ok(());
        }
        Err(Error::InvalidConfig {
            setting,
            value: "(not set)".to_owned(),
            reason: format!(
                "GUE to the real {address} needs an outer source address of its family: set it"
            ),
        })
    }

    /// Switches packets to a VIP's new ring and to what voids its entries; returns the ring that
    /// packets leave.
    pub(super) fn switch(
        &mut self,
        place: usize,
        cell: VipCell,
        voiding: Option<Voiding>,
    ) -> Option<RingSlot> {
        self.maps.voids.switch(place as u16, cell, voiding);
        let before = mem::replace(&mut self.rings[place], cell.ring);
        before.filter(|before| cell.ring != Some(*before))
    }
}
