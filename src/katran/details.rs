//! Counts made on demand: details of each VIP, its traffic to each real, and next hops.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Katran;
use super::counters::Stats;
use crate::counters::NextHopCounts;
use crate::counters::VipDetails;
use crate::counters::VipRealCounters;
use crate::error::Result;
use crate::maps::real_id;
use crate::types::Family;
use crate::types::Vip;

/// # Counts on demand
impl Stats<'_> {
    /// Details of every VIP, above all its SYNs. Empty without
    /// [`Builder::count_syns`](crate::Builder::count_syns) and
    /// [`Builder::max_vip_reals`](crate::Builder::max_vip_reals).
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel).
    pub fn vip_details(&self) -> Result<BTreeMap<Vip, VipDetails>> {
        let katran = self.katran;
        let Some(details) = &katran.maps.details else {
            return Ok(BTreeMap::new());
        };
        let of_vip = |vip: &Vip, number| {
            let counted = details.of_vip(number);
            let counted = katran
                .kernel
                .check("read the counters of", &vip.to_string(), counted)?;
            Ok((*vip, VipDetails::sum(&counted)))
        };
        let vips = katran.table.vips();
        vips.map(|(vip, entry)| of_vip(vip, entry.number.0))
            .collect()
    }

    /// Every VIP's traffic to every real that its packets have reached. Empty without
    /// [`Builder::max_vip_reals`](crate::Builder::max_vip_reals).
    ///
    /// It includes reals outside the VIP that ids in packets or source routes led to, and reals
    /// that the VIP has lost, until nothing names them any more. Reading all pairs takes some
    /// milliseconds for 10,000, and frees the places of pairs whose VIP or real is gone.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel).
    pub fn vip_reals(&self) -> Result<BTreeMap<Vip, BTreeMap<IpAddr, VipRealCounters>>> {
        let katran = self.katran;
        let Some(details) = &katran.maps.details else {
            return Ok(BTreeMap::new());
        };
        let vips = katran.table.vips();
        let vips: BTreeMap<u32, Vip> = vips
            .map(|(vip, entry)| (entry.number.0.into(), *vip))
            .collect();
        let reals = katran.table.reals();
        let reals: BTreeMap<u32, IpAddr> = reals
            .map(|(address, entry)| (real_id(entry.number.0, entry.generation), address))
            .collect();
        let mut pairs = BTreeMap::<Vip, BTreeMap<_, _>>::new();
        let mut former = BTreeSet::new();
        let read = details.pairs(
            |vip, real, counted| match (vips.get(&vip), reals.get(&real)) {
                (Some(of_vip), Some(address)) => {
                    let of_vip = pairs.entry(*of_vip).or_default();
                    of_vip.insert(*address, VipRealCounters::sum(counted));
                }
                _ => {
                    former.insert((vip, real));
                }
            },
        );
        katran
            .kernel
            .check("read the counters of", "vip_reals", read)?;
        katran.forget_pairs(&former.into_iter().collect::<Vec<_>>());
        Ok(pairs)
    }

    /// The [next hops](crate::attachments::Gateways::next_hops) that packets may take, counted by
    /// status.
    pub fn next_hops(&self) -> NextHopCounts {
        let katran = self.katran;
        let mut counts = NextHopCounts::default();
        for hop in &katran.gateways().next_hops() {
            let mut reals = katran.table.reals();
            // No packet goes to the gateway of a family without reals.
            if hop.real.is_none() && !reals.any(|(real, _)| Family::of(real) == hop.family) {
                continue;
            }
            let count = match (hop.here, hop.mac) {
                (true, _) => &mut counts.here,
                (false, None) => &mut counts.unknown,
                (false, Some(_)) if hop.is_silent() => &mut counts.silent,
                (false, Some(_)) => &mut counts.answering,
            };
            *count += 1;
        }
        counts
    }
}

impl Katran {
    /// Frees the places of pairs that no longer exist. Only while this process is the owner,
    /// because another owner may know them.
    fn forget_pairs(&self, former: &[(u32, u32)]) {
        if former.is_empty() {
            return;
        }
        let (Some(details), Ok(_call)) = (&self.maps.details, self.call()) else {
            return;
        };
        if let Err(error) = details.forget(former) {
            log::warn!("cannot free the counters of former pairs of VIP and real: {error}");
        }
    }
}
