//! Counters: kept per CPU by the program, summed when read. Each accessor returns a snapshot;
//! rates are the reader's affair.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::Katran;
use super::snapshot::Counters;
use super::snapshot::CpuCounters;
use super::snapshot::DropReason;
use super::snapshot::DropReasons;
use super::snapshot::EncapFailures;
use super::snapshot::FlowTableCounters;
use super::snapshot::IcmpCounters;
use super::snapshot::LibraryCounters;
use super::snapshot::MapUse;
use super::snapshot::RealCounters;
use super::snapshot::RingDrops;
use super::snapshot::Totals;
use super::snapshot::VipCounters;
use crate::Error;
use crate::Result;
use crate::Vip;
use crate::config::FALLBACK_FLOWS;
use crate::maps::RINGS_PER_CHUNK;
use crate::maps::max_chunks;
use crate::skel::katran::types;
use crate::skel::katran::types::drop_reason;

impl Katran {
    /// Every frame by its verdict.
    ///
    /// # Errors
    /// [`Error::Kernel`], as for every accessor below.
    pub fn totals(&self) -> Result<Totals> {
        self.per_cpu().map(|records| totals(&records))
    }

    /// What the flow table did.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLruStats")]
    pub fn flow_table_counters(&self) -> Result<FlowTableCounters> {
        self.per_cpu().map(|records| flow_table(&records))
    }

    /// ICMP messages, sent and received.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getIcmpTooBigStats")]
    pub fn icmp_counters(&self) -> Result<IcmpCounters> {
        self.per_cpu().map(|records| icmp(&records))
    }

    /// Packets that the ring had no real for.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getChDropStats")]
    pub fn ring_drops(&self) -> Result<RingDrops> {
        self.drop_reasons().map(|reasons| ring_drops(&reasons))
    }

    /// Packets that could not be encapsulated.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn encap_failures(&self) -> Result<EncapFailures> {
        self.drop_reasons().map(|reasons| encap_failures(&reasons))
    }

    /// Dropped frames by reason.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn drop_reasons(&self) -> Result<DropReasons> {
        self.per_cpu().map(|records| drop_reasons(&records))
    }

    /// What each possible CPU forwarded, and whether it is under flood.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getPerCorePacketsStats")]
    pub fn cpu_counters(&self) -> Result<Vec<CpuCounters>> {
        self.per_cpu().map(|records| self.cpus(&records))
    }

    /// One VIP's traffic since it was added.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "getStatsForVip")]
    pub fn vip_counters(&self, vip: Vip) -> Result<VipCounters> {
        let number = self.entry(vip)?.number;
        let values = self.kernel.check(
            "read the counters of",
            &vip.to_string(),
            self.maps.vip_counters.get(number.0.into()),
        )?;
        let mut sum = VipCounters::default();
        values
            .iter()
            .for_each(|value| sum.forwarded.add(&value.forwarded));
        Ok(sum)
    }

    /// One real's traffic since something first named it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "getRealStats")]
    pub fn real_counters(&self, address: IpAddr) -> Result<RealCounters> {
        self.reals_stats(&[address])
            .map(|all| all.first().copied().unwrap_or_default())
    }

    /// The traffic of many reals, in the order asked for, by one batch call to the kernel.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing names one of them; [`Error::Kernel`].
    #[doc(alias = "getRealsStats")]
    pub fn reals_stats(&self, addresses: &[IpAddr]) -> Result<Vec<RealCounters>> {
        let numbers: Vec<u32> = addresses
            .iter()
            .map(|address| {
                let number = self.table.real_index(*address);
                number
                    .map(|number| number.get())
                    .ok_or_else(|| Error::NotFound {
                        what: format!("real {address}"),
                    })
            })
            .collect::<Result<_>>()?;
        let (Some(first), Some(last)) = (numbers.iter().min(), numbers.iter().max()) else {
            return Ok(Vec::new());
        };
        let values = self.kernel.check(
            "read the counters of",
            "reals",
            self.maps.real_counters.range(*first, *last),
        )?;
        Ok(numbers
            .iter()
            .map(|number| {
                let mut sum = RealCounters::default();
                for value in &values[(number - first) as usize] {
                    sum.forwarded.add(&value.forwarded);
                    sum.misses += value.misses;
                }
                sum.misses = self.misses_since_watch(*number, sum.misses);
                sum
            })
            .collect())
    }

    /// The library's own counters. Counting a flow table's entries walks it: with millions of
    /// flows this takes tens of milliseconds, and seconds if it is a
    /// [`KernelLru`](crate::FlowTableKind::KernelLru).
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn library_counters(&self) -> Result<LibraryCounters> {
        let max_vips = u32::from(self.config.max_vips);
        let use_of = |name, capacity: u32, entries: u32| MapUse {
            name,
            capacity: capacity.into(),
            entries: entries.into(),
        };
        let mut flows = 0u64;
        for (_, table) in &self.maps.flows.of_cpus {
            flows += self
                .kernel
                .check("count the entries of", "flows", table.count())?;
        }
        let fallback = self.kernel.check(
            "count the entries of",
            "fallback_flows",
            self.maps.flows.fallback.count(),
        )?;
        let prefixes = self.table.vips().filter(|(vip, _)| vip.is_prefix()).count() as u32;
        let exact = self.table.vips().len() as u32 - prefixes;
        let rings = self.maps.rings.in_use();
        Ok(LibraryCounters {
            failed_kernel_calls: self.kernel.failed(),
            rejected_addresses: self.rejected_addresses.load(Ordering::Relaxed),
            maps: vec![
                use_of("vips", max_vips, exact),
                use_of("prefix_vips", max_vips, prefixes),
                use_of(
                    "reals",
                    self.config.max_reals.into(),
                    self.table.reals().len() as u32,
                ),
                use_of("ring_chunk", max_chunks(max_vips) * RINGS_PER_CHUNK, rings),
                MapUse {
                    name: "flows",
                    capacity: u64::from(self.config.flows_per_cpu)
                        * self.maps.flows.of_cpus.len() as u64,
                    entries: flows,
                },
                MapUse {
                    name: "fallback_flows",
                    capacity: FALLBACK_FLOWS.into(),
                    entries: fallback,
                },
            ],
        })
    }

    /// Kernel memory that the program's maps take now, in bytes, as the kernel accounts it.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn memory_in_use(&self) -> Result<u64> {
        let maps = &self.maps;
        let mut all = vec![
            maps.prefix_vips.as_fd(),
            maps.vip_cells.heads_fd(),
            maps.vip_cells.infos_fd(),
            maps.real_cells.as_fd(),
            maps.rings.outer().as_fd(),
            maps.live.as_fd(),
            maps.counters.as_fd(),
            maps.vip_counters.as_fd(),
            maps.real_counters.as_fd(),
            maps.explanations.as_fd(),
            maps.flows.outer.as_fd(),
            maps.flows.fallback.as_fd(),
        ];
        all.extend(maps.rings.chunks().map(AsFd::as_fd));
        all.extend(maps.flows.of_cpus.iter().map(|(_, table)| table.as_fd()));
        all.into_iter().try_fold(0, |sum, map| {
            let bytes = crate::sys::map::memory(map);
            Ok(sum + self.kernel.check("read the memory of", "a map", bytes)?)
        })
    }

    /// All groups in one snapshot; as slow as [`library_counters`](Self::library_counters).
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn counters(&self) -> Result<Counters> {
        let records = self.per_cpu()?;
        let reasons = drop_reasons(&records);
        let mut vips = BTreeMap::new();
        for (vip, _) in self.table.vips() {
            vips.insert(vip.to_string(), self.vip_counters(*vip)?);
        }
        let addresses: Vec<IpAddr> = self.table.reals().map(|(address, _)| address).collect();
        let reals = self.reals_stats(&addresses)?;
        Ok(Counters {
            totals: totals(&records),
            flow_table: flow_table(&records),
            icmp: icmp(&records),
            ring_drop: ring_drops(&reasons),
            encap_fail: encap_failures(&reasons),
            drop_reasons: reasons,
            vips,
            reals: addresses.into_iter().zip(reals).collect(),
            cpus: self.cpus(&records),
            library: self.library_counters()?,
        })
    }

    pub(super) fn per_cpu(&self) -> Result<Vec<types::counters>> {
        self.kernel
            .check("read", "counters", self.maps.counters.get(0))
    }

    fn cpus(&self, records: &[types::counters]) -> Vec<CpuCounters> {
        let threshold = u64::from(self.config.flood_threshold);
        (0..)
            .zip(records)
            .map(|(cpu, record)| CpuCounters {
                cpu,
                forwarded: forwarded(record),
                new_flows: record.window_flows,
                under_flood: record.window_flows > threshold,
            })
            .collect()
    }
}

/// What the program need not count: all that was sent or passed, but for its own messages.
fn forwarded(record: &types::counters) -> u64 {
    let own = record.echo_v4 + record.echo_v6 + record.too_big_v4 + record.too_big_v6;
    // A message that could not be sent was counted and then dropped.
    let failed = record.drops[drop_reason::DROP_REPLY_FAILED.0 as usize];
    (record.tx.packets + record.local).saturating_sub(own.saturating_sub(failed))
}

fn totals(records: &[types::counters]) -> Totals {
    let mut totals = Totals::default();
    for record in records {
        totals.tx.add(&record.tx);
        totals.drop.add(&record.drop);
        totals.pass.add(&record.pass);
    }
    totals.total = totals.tx.plus(totals.drop).plus(totals.pass);
    totals
}

fn sum(records: &[types::counters], field: impl Fn(&types::counters) -> u64) -> u64 {
    records.iter().map(field).sum()
}

fn flow_table(records: &[types::counters]) -> FlowTableCounters {
    FlowTableCounters {
        packets: sum(records, |record| record.flow_packets),
        misses: sum(records, |record| record.flow_misses),
        miss_syn: sum(records, |record| record.flow_miss_syn),
        miss_non_syn: sum(records, |record| record.flow_miss_non_syn),
        fallback: sum(records, |record| record.flow_fallback),
    }
}

fn icmp(records: &[types::counters]) -> IcmpCounters {
    IcmpCounters {
        too_big_v4: sum(records, |record| record.too_big_v4),
        too_big_v6: sum(records, |record| record.too_big_v6),
        ptb_v4: sum(records, |record| record.ptb_v4),
        ptb_v4_small: sum(records, |record| record.ptb_v4_small),
        ptb_v6: sum(records, |record| record.ptb_v6),
        ptb_v6_small: sum(records, |record| record.ptb_v6_small),
        echo_v4: sum(records, |record| record.echo_v4),
        echo_v6: sum(records, |record| record.echo_v6),
    }
}

fn drop_reasons(records: &[types::counters]) -> DropReasons {
    let frames = DropReason::ALL
        .into_iter()
        .map(|reason| (reason, sum(records, |record| record.drops[reason.number()])))
        .collect();
    DropReasons { frames }
}

fn ring_drops(reasons: &DropReasons) -> RingDrops {
    RingDrops {
        unknown_real: reasons.get(DropReason::RingUnknownReal),
        empty: reasons.get(DropReason::RingEmpty),
    }
}

fn encap_failures(reasons: &DropReasons) -> EncapFailures {
    EncapFailures {
        v4: reasons.get(DropReason::EncapV4),
        v6: reasons.get(DropReason::EncapV6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_leaves_out_own_messages() {
        let mut record = types::counters::default();
        record.tx.packets = 10;
        record.local = 2;
        record.echo_v6 = 3;
        record.too_big_v4 = 2;
        record.drops[drop_reason::DROP_REPLY_FAILED.0 as usize] = 1;
        assert_eq!(forwarded(&record), 8);
    }
}
