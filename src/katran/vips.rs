//! VIPs: adding, removing, flags.

use super::Katran;
use super::change::Left;
use super::change::News;
use super::change::Prepared;
use super::remember::nothing_else;
use super::slots::Marked;
use crate::error::Error;
use crate::error::Result;
use crate::ledger::Change;
use crate::maps::ChainFull;
use crate::maps::Entries;
use crate::maps::VipCell;
use crate::maps::VipKinds;
use crate::skel::katran::types;
use crate::types::Family;
use crate::types::HashFunction;
use crate::types::Vip;
use crate::types::VipFlags;
use crate::types::VipNumber;
use crate::types::address_bytes;

// The library's own bits must not overlap the public flags.
const _: () = {
    let own = types::vip_flag::VIP_NO_REALS.0
        | types::vip_flag::VIP_VOID_FLOWS.0
        | types::vip_flag::VIP_TRACKS_CHANGES.0
        | types::vip_flag::VIP_HANDS_BACK.0
        | types::vip_flag::VIP_IN_DETAIL.0;
    assert!(VipFlags::all().bits() & own == 0);
};

/// # VIPs
impl Katran {
    /// Adds a VIP without reals. The program drops and counts its packets until it has one.
    ///
    /// The balancer's hash function fills its ring. Takes less than a millisecond.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; [`Error::Exhausted`] beyond `max_vips`; [`Error::InvalidAddress`];
    /// [`Error::Unsupported`] for a flag that this version lacks; [`Error::InvalidConfig`] for a
    /// flag that does not fit the VIP; [`Error::Kernel`].
    #[doc(alias = "addVip")]
    pub fn add_vip(&mut self, vip: Vip, flags: VipFlags) -> Result<()> {
        let _call = self.call()?;
        let news = self.add_vip_with(vip, flags, self.config.hash_function)?;
        self.tell(news);
        Ok(())
    }

    pub(super) fn add_vip_with(
        &mut self,
        vip: Vip,
        flags: VipFlags,
        hash: HashFunction,
    ) -> Result<News> {
        self.collect();
        let staged = self.note(self.table.stage_add_vip(vip, flags, hash))?;
        let number = staged.number;
        let written = Prepared::new(staged, nothing_else).write(self, |katran| {
            if katran.maps.voids.is_gone(number.0) {
                // One walk serves all: many may come back.
                katran.maps.voids.remove_gone(&katran.kernel)?;
            }
            katran.kernel.check(
                "clear the counters of",
                "vip_counters",
                katran.maps.vip_counters.clear(number.0.into()),
            )?;
            if let Some(details) = &katran.maps.details {
                let vips = katran.table.vips();
                let in_use = || vips.map(|(_, of)| of.number.0.into()).collect();
                let cleared = details.clear(number.0, in_use);
                katran
                    .kernel
                    .check("clear the counters of", "vip_details", cleared)?;
            }
            let cell = VipCell {
                flags,
                has_reals: false,
                void_flows: false,
                ring: None,
            };
            // No packet finds it yet.
            katran.maps.voids.switch(number.0, cell, None);
            // If the switch is refused, it is freed there.
            let addressed = katran.maps.vip_addresses.add(&vip);
            katran
                .kernel
                .check("add the address of", &vip.to_string(), addressed)
        })?;
        let (switched, ()) = written.try_switch(self, |katran, ()| {
            // Before the VIP can be found, so that packets look for it.
            let kinds = katran.kinds.with(&vip);
            katran.maps.live.set_vip_kinds(kinds);
            if let Err(error) = katran.insert(&vip, number) {
                katran.maps.live.set_vip_kinds(katran.kinds);
                katran.free_address(&vip);
                return Err(error);
            }
            katran.kinds = kinds;
            Ok((Left::Nothing, ()))
        })?;
        Ok(switched.retire(self))
    }

    /// Removes a VIP with all its reals. Its packets then pass to the host's network stack.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "delVip")]
    pub fn remove_vip(&mut self, vip: Vip) -> Result<()> {
        let _call = self.call()?;
        let news = self.remove_vip_only(vip)?;
        self.free_rings();
        self.tell(news);
        Ok(())
    }

    /// As [`remove_vip`](Self::remove_vip), but leaves the memory of rings to
    /// [`free_rings`](Self::free_rings).
    pub(super) fn remove_vip_only(&mut self, vip: Vip) -> Result<News> {
        self.collect();
        let staged = self.table.stage_remove_vip(&vip)?;
        let number = staged.number;
        // An entry whose real is still known would count for the next VIP with this number.
        let entries = match self.table.reals().len() - staged.released.len() {
            0 => Entries::Void,
            _ => Entries::MayCount,
        };
        let kept = move |katran: &Katran| match katran.stats().watched_vip() == Some(vip) {
            true => Ok(vec![Change::Watched(None)]),
            false => Ok(Vec::new()),
        };
        let written = Prepared::new(staged, kept).write(self, |_| Ok(()))?;
        let (switched, ()) = written.try_switch(self, |katran, ()| {
            katran.delete(&vip)?;
            katran.free_address(&vip);
            katran.kinds = katran.kinds.without(&vip);
            katran.maps.live.set_vip_kinds(katran.kinds);
            if katran.stats().watched_vip() == Some(vip) {
                katran.end_watch();
            }
            katran.maps.voids.vip_gone(number.0, entries);
            if let Some(details) = &katran.maps.details {
                details.vip_gone();
            }
            katran.drop_history(usize::from(number.0));
            let ring = katran.rings[usize::from(number.0)].take();
            Ok((Left::Ring(ring), ()))
        })?;
        Ok(switched.retire(self))
    }

    /// Counts one VIP less with this address.
    fn free_address(&mut self, vip: &Vip) {
        if let Err(error) = self.maps.vip_addresses.remove(vip) {
            log::warn!("cannot stop dropping fragments to the address of {vip}: {error}");
        }
    }

    /// Returns memory when rings have left chunks empty. The VIPs are gone either way, so a refusal
    /// is only logged; later VIPs that need the places free them.
    pub(super) fn free_rings(&mut self) {
        if !self.maps.rings.has_surplus() {
            return;
        }
        let freed = self
            .settle()
            .and_then(|()| self.maps.rings.trim(&self.kernel));
        if let Err(error) = freed {
            log::warn!("cannot free the memory of unused rings: {error}");
        }
    }

    /// All VIPs, sorted by address.
    #[doc(alias = "getAllVips")]
    pub fn vips(&self) -> Vec<Vip> {
        self.table.vips().map(|(vip, _)| *vip).collect()
    }

    /// A VIP's flags.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    #[doc(alias = "getVipFlags")]
    pub fn vip_flags(&self, vip: Vip) -> Result<VipFlags> {
        self.entry(vip).map(|entry| entry.flags)
    }

    /// Replaces a VIP's flags. Its flows keep their entries, and [down](Self::mark_down) reals stay
    /// down.
    ///
    /// Flags can make the balancer remember all flows of a VIP instead of only those that changes
    /// move ([`FlowTracking`](crate::FlowTracking)). Flows without an entry then follow the ring.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unsupported`] and [`Error::InvalidConfig`] as for
    /// [`add_vip`](Self::add_vip); if reals of the VIP are down, also [`Error::Exhausted`] and
    /// [`Error::Kernel`] as for [`mark_down`](Self::mark_down). Nothing has changed then.
    #[doc(alias = "modifyVip")]
    pub fn set_vip_flags(&mut self, vip: Vip, flags: VipFlags) -> Result<()> {
        let _call = self.call()?;
        let news = self.change_vip_flags(vip, flags)?;
        self.tell(news);
        Ok(())
    }

    pub(super) fn change_vip_flags(&mut self, vip: Vip, flags: VipFlags) -> Result<News> {
        let staged = self.table.stage_set_vip_flags(&vip, flags)?;
        let (number, changed) = (staged.number, staged.changed);
        let cell = VipCell {
            flags,
            ..self.cell_of(self.entry(vip)?)
        };
        let place = usize::from(number.0);
        let before = self.has_bases(self.entry(vip)?.flags);
        let after = self.has_bases(flags);
        let written = Prepared::new(staged, nothing_else).write(self, |katran| {
            if !changed {
                return Ok((None, Marked::default()));
            }
            let voiding = katran.prepare_down(vip, flags)?;
            let turned: &[Vip] = if after && !before { &[vip] } else { &[] };
            let marked = katran.mark_all(turned);
            if marked.is_err()
                && let Some(voiding) = &voiding
            {
                katran.maps.voids.abandon(number.0, voiding);
            }
            Ok((voiding, marked?))
        })?;
        let switched = written.switch(self, |katran, (voiding, marked)| {
            if changed {
                katran.maps.voids.switch(number.0, cell, voiding);
                katran.keep_marks(marked);
                if before && !after {
                    katran.settle_all(place);
                }
            }
            Left::Nothing
        });
        Ok(switched.retire(self))
    }

    /// The hash function that fills a VIP's ring.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn hash_function(&self, vip: Vip) -> Result<HashFunction> {
        self.entry(vip).map(|entry| entry.hash_function)
    }

    pub(super) fn entry(&self, vip: Vip) -> Result<&crate::table::VipEntry> {
        self.table.vip(&vip).ok_or_else(|| Error::NotFound {
            what: format!("VIP {vip}"),
        })
    }

    /// Ensures that no packet finds this VIP, wherever its change was cut off.
    pub(super) fn unfind(&mut self, vip: &Vip) -> Result<()> {
        self.delete(vip)?;
        let forgotten = self.maps.vip_addresses.forget(vip);
        self.kernel
            .check("forget the address of", &vip.to_string(), forgotten)
    }

    /// Ensures that packets find this VIP, wherever its change was cut off.
    pub(super) fn find_again(&mut self, vip: &Vip, number: VipNumber) -> Result<()> {
        let written = self.maps.vip_addresses.write(vip);
        self.kernel
            .check("write the address of", &vip.to_string(), written)?;
        if !vip.is_prefix() && self.maps.vip_cells.has(&key(vip), number.0) {
            return Ok(());
        }
        self.insert(vip, number)
    }

    pub(super) fn insert(&self, vip: &Vip, number: VipNumber) -> Result<()> {
        if vip.is_prefix() {
            let number = u32::from(number.0);
            let added = self.maps.prefix_vips.update(&prefix_key(vip), &number);
            return self.kernel.check("add", &vip.to_string(), added);
        }
        let added = self.maps.vip_cells.insert(&key(vip), number.0);
        added.map_err(|ChainFull| Error::Exhausted {
            what: "VIPs whose hashes collide (raise max_vips)",
            limit: types::vip_constant::VIP_CHAIN.0.into(),
        })
    }

    fn delete(&self, vip: &Vip) -> Result<()> {
        if vip.is_prefix() {
            let removed = self.maps.prefix_vips.delete(&prefix_key(vip));
            self.kernel.check("remove", &vip.to_string(), removed)?;
        } else {
            self.maps.vip_cells.remove(&key(vip));
        }
        Ok(())
    }
}

impl VipKinds {
    /// Counts the kinds of these VIPs.
    pub(super) fn of<'a>(vips: impl Iterator<Item = &'a Vip>) -> Self {
        vips.fold(Self::default(), Self::with)
    }

    fn with(mut self, vip: &Vip) -> Self {
        if let Some(count) = self.count_of(vip) {
            *count += 1;
        }
        self
    }

    fn without(mut self, vip: &Vip) -> Self {
        if let Some(count) = self.count_of(vip) {
            *count -= 1;
        }
        self
    }

    /// The count of a VIP's kind; `None` if it is found by address and port alone.
    fn count_of(&mut self, vip: &Vip) -> Option<&mut u32> {
        match (vip.port(), vip.is_prefix()) {
            (0, true) => Some(&mut self.any_port_prefix),
            (0, false) => Some(&mut self.any_port),
            (_, true) => Some(&mut self.prefix),
            (_, false) => None,
        }
    }
}

fn key(vip: &Vip) -> types::vip_key {
    types::vip_key {
        address: address_bytes(vip.address()),
        port: vip.port().to_be(),
        protocol: vip.protocol().number(),
        family: Family::of(vip.address()).number(),
    }
}

fn prefix_key(vip: &Vip) -> types::vip_prefix_key {
    types::vip_prefix_key {
        prefix_length: 32 + u32::from(vip.prefix_length()),
        port: vip.port().to_be(),
        protocol: vip.protocol().number(),
        family: Family::of(vip.address()).number(),
        address: address_bytes(vip.address()),
    }
}
