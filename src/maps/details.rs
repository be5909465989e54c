//! Optional counters: more about each VIP than packets and bytes, and the packets of each pair of a
//! VIP and a real. Packets make the pairs; the library removes those whose VIP or real is gone.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::PerCpuHash;

/// The maps of optional counters.
pub(crate) struct Details {
    of_vips: PerCpuArray<types::vip_details>,
    /// `None`: pairs are not counted.
    pairs: Option<PerCpuHash<types::vip_real, types::vip_real_counters>>,
    /// There may be pairs of VIPs that are gone.
    may_have_former: AtomicBool,
}

impl Details {
    pub(crate) fn new(of_vips: OwnedFd, pairs: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            of_vips: PerCpuArray::new(of_vips)?,
            pairs: pairs.map(PerCpuHash::new).transpose()?,
            // The previous owner may have left some.
            may_have_former: AtomicBool::new(true),
        })
    }

    /// The counters of a VIP, by its number, on each possible CPU.
    pub(crate) fn of_vip(&self, number: u16) -> io::Result<Vec<types::vip_details>> {
        self.of_vips.get(number.into())
    }

    /// Passes all pairs to `see`: the VIP's number, the real's id, and the counters on each
    /// possible CPU.
    pub(crate) fn pairs(
        &self,
        mut see: impl FnMut(u32, u32, &[types::vip_real_counters]),
    ) -> io::Result<()> {
        self.pairs.as_ref().map_or(Ok(()), |pairs| {
            pairs.each(|pair, counted| see(pair.vip, pair.real, counted))
        })
    }

    /// A VIP is gone: its pairs stay until a VIP comes, or until they are read.
    pub(crate) fn vip_gone(&self) {
        self.may_have_former.store(true, Ordering::Relaxed);
    }

    /// Zeroes the counters for a new VIP with this number. If VIPs have gone since, one walk
    /// removes the pairs of all unused numbers.
    pub(crate) fn clear(
        &self,
        number: u16,
        in_use: impl FnOnce() -> BTreeSet<u32>,
    ) -> io::Result<()> {
        self.of_vips.clear(number.into())?;
        if !self.may_have_former.load(Ordering::Relaxed) {
            return Ok(());
        }
        let in_use = in_use();
        let mut former = Vec::new();
        self.pairs(|vip, real, _| {
            if vip == u32::from(number) || !in_use.contains(&vip) {
                former.push((vip, real));
            }
        })?;
        self.forget(&former)?;
        self.may_have_former.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Removes pairs: numbers of VIPs, and ids of reals.
    pub(crate) fn forget(&self, pairs: &[(u32, u32)]) -> io::Result<()> {
        let Some(map) = &self.pairs else {
            return Ok(());
        };
        let mut pairs = pairs.iter();
        pairs.try_for_each(|&(vip, real)| map.delete(&types::vip_real { vip, real }))
    }

    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let pairs = self.pairs.as_ref();
        let pairs = pairs.map(|pairs| ("vip_reals", pairs.as_fd()));
        [("vip_details", self.of_vips.as_fd())]
            .into_iter()
            .chain(pairs)
    }
}
