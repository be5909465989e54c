//! What few balancers count: more of each VIP than packets and bytes, and the packets of each pair of a VIP and a real. Packets
//! make the pairs; the library forgets those whose VIP or real is there no more.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::PerCpuHash;

/// The maps of what is counted on demand.
pub(crate) struct Details {
    of_vips: PerCpuArray<types::vip_details>,
    /// `None`: no pairs are counted.
    pairs: Option<PerCpuHash<types::vip_real, types::vip_real_counters>>,
}

impl Details {
    pub(crate) fn new(of_vips: OwnedFd, pairs: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            of_vips: PerCpuArray::new(of_vips)?,
            pairs: pairs.map(PerCpuHash::new).transpose()?,
        })
    }

    /// What is counted of the VIP with a number, on each possible CPU.
    pub(crate) fn of_vip(&self, number: u16) -> io::Result<Vec<types::vip_details>> {
        self.of_vips.get(number.into())
    }

    /// Shows all pairs to `see`: the VIP's number, the real's id, and what is counted on each possible CPU.
    pub(crate) fn pairs(
        &self,
        mut see: impl FnMut(u32, u32, &[types::vip_real_counters]),
    ) -> io::Result<()> {
        self.pairs.as_ref().map_or(Ok(()), |pairs| {
            pairs.each(|pair, counted| see(pair.vip, pair.real, counted))
        })
    }

    /// Begins at 0 for the VIP that gets a number.
    pub(crate) fn clear(&self, number: u16) -> io::Result<()> {
        self.of_vips.clear(number.into())?;
        let mut former = Vec::new();
        self.pairs(|vip, real, _| {
            if vip == u32::from(number) {
                former.push((vip, real));
            }
        })?;
        self.forget(&former)
    }

    /// Gives the places of pairs back: numbers of VIPs, and ids of reals.
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
