//! Reals that are marked down for a VIP, so that its UDP flows leave them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Katran;
use crate::error::Error;
use crate::error::Result;
use crate::maps::real_id;
use crate::skel::katran::types;
use crate::table::Endpoint;
use crate::types::Vip;
use crate::types::VipFlags;

impl Katran {
    /// Marks a real down for a VIP with [`VipFlags::UDP_FLOW_MIGRATION`]: its UDP flows that flow
    /// tables remember there go by the ring at their next packet, and are remembered where that
    /// leads.
    ///
    /// New flows still go where the ring says: drain the real (weight 0) or remove it as well. The
    /// mark goes with the real when the VIP has it no more. A real that is marked stays so.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the VIP is not there or does not have the real;
    /// [`Error::InvalidConfig`] if the VIP has not the flag; [`Error::Exhausted`] beyond `max_reals`
    /// marks; [`Error::Kernel`].
    #[doc(alias = "addDownRealForUdpFlowMigration")]
    pub fn mark_down(&mut self, vip: Vip, real: IpAddr) -> Result<()> {
        let real = real.to_canonical();
        let key = self.down_key(vip, real)?;
        let flags = self.entry(vip)?.flags;
        if !flags.contains(VipFlags::UDP_FLOW_MIGRATION) {
            return Err(Error::InvalidConfig {
                setting: "flags",
                value: format!("{flags} of VIP {vip}"),
                reason: "only a VIP with udp-flow-migration looks at marks: set the flag first"
                    .to_owned(),
            });
        }
        if self.down.contains(&(vip, real)) {
            return Ok(());
        }
        let limit = self.config.max_reals;
        if self.down.len() >= usize::from(limit) {
            return Err(Error::Exhausted {
                what: "reals marked down (max_reals)",
                limit: limit.into(),
            });
        }
        let marked = self.maps.down_reals.update(&key, &1);
        self.kernel
            .check("mark down", &format!("{real} of {vip}"), marked)?;
        self.down.insert((vip, real));
        Ok(())
    }

    /// Takes the mark of [`mark_down`](Self::mark_down) away; a real without one stays so.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the VIP is not there or does not have the real; [`Error::Kernel`].
    #[doc(alias = "removeDownRealForUdpFlowMigration")]
    pub fn mark_up(&mut self, vip: Vip, real: IpAddr) -> Result<()> {
        let real = real.to_canonical();
        let key = self.down_key(vip, real)?;
        if !self.down.contains(&(vip, real)) {
            return Ok(());
        }
        let removed = self.maps.down_reals.delete(&key);
        self.kernel
            .check("mark up", &format!("{real} of {vip}"), removed)?;
        self.down.remove(&(vip, real));
        Ok(())
    }

    /// Whether a real is marked down for a VIP.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the VIP is not there or does not have the real.
    #[doc(alias = "queryRealForUdpFlowMigration")]
    pub fn is_down(&self, vip: Vip, real: IpAddr) -> Result<bool> {
        let real = real.to_canonical();
        self.down_key(vip, real)?;
        Ok(self.down.contains(&(vip, real)))
    }

    /// Every real that is marked down for a VIP, in the order of their addresses.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn down_reals(&self, vip: Vip) -> Result<Vec<IpAddr>> {
        self.entry(vip)?;
        let marks = self.down.iter().filter(|(of, _)| *of == vip);
        Ok(marks.map(|(_, real)| *real).collect())
    }

    /// Takes all marks of a VIP away.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`]: some may have gone then.
    #[doc(alias = "removeAllDownRealsForUdpFlowMigration")]
    pub fn clear_down(&mut self, vip: Vip) -> Result<()> {
        for real in self.down_reals(vip)? {
            self.mark_up(vip, real)?;
        }
        Ok(())
    }

    /// Forgets marks of reals that a VIP is about to lose. Their kernel entries name a real's number
    /// and generation, so one that the kernel would not let go of can match no other real.
    pub(super) fn forget_marks(&mut self, vip: Vip, gone: impl IntoIterator<Item = IpAddr>) {
        for real in gone {
            if !self.down.contains(&(vip, real)) {
                continue;
            }
            if let Ok(key) = self.down_key(vip, real) {
                let removed = self.maps.down_reals.delete(&key);
                // Counted and logged there.
                let _ = self
                    .kernel
                    .check("forget the mark of", &real.to_string(), removed);
            }
            self.down.remove(&(vip, real));
        }
    }

    /// The same for all reals of a VIP but these, which it keeps.
    pub(super) fn forget_marks_but(&mut self, vip: Vip, kept: &[Endpoint]) {
        if self.down.is_empty() {
            return;
        }
        let kept: BTreeSet<_> = kept.iter().map(|real| real.address).collect();
        let marks = self.down.iter().filter(|(of, _)| *of == vip);
        let gone = marks.map(|(_, real)| *real);
        let gone: Vec<_> = gone.filter(|real| !kept.contains(real)).collect();
        self.forget_marks(vip, gone);
    }

    fn down_key(&self, vip: Vip, real: IpAddr) -> Result<types::down_real> {
        let entry = self.entry(vip)?;
        let known = entry.reals.contains_key(&real);
        let record = self.table.real(real).filter(|_| known);
        let record = record.ok_or_else(|| Error::NotFound {
            what: format!("real {real} of VIP {vip}"),
        })?;
        Ok(types::down_real {
            vip: entry.number.0.into(),
            real: real_id(record.number.0, record.generation),
        })
    }
}
