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
use super::snapshot::EventCounters;
use super::snapshot::FlowTableCounters;
use super::snapshot::GlobalFlowCounters;
use super::snapshot::IcmpCounters;
use super::snapshot::InlineDecapCounters;
use super::snapshot::LibraryCounters;
use super::snapshot::QuicCounters;
use super::snapshot::RealCounters;
use super::snapshot::RingDrops;
use super::snapshot::SourceRoutingCounters;
use super::snapshot::StableUdpCounters;
use super::snapshot::TcpServerIdCounters;
use super::snapshot::Totals;
use super::snapshot::UdpFlowMigrationCounters;
use super::snapshot::VipCounters;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::maps::FALLBACK_FLOWS;
use crate::maps::MapUse;
use crate::maps::RINGS_PER_CHUNK;
use crate::maps::max_chunks;
use crate::maps::void_pairs;
use crate::monitor::EventKind;
use crate::skel::katran::types;
use crate::skel::katran::types::drop_reason;
use crate::types::Vip;

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

    /// Routing by QUIC connection ids.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLbQuicPacketsStats")]
    pub fn quic_counters(&self) -> Result<QuicCounters> {
        self.per_cpu().map(|records| quic(&records))
    }

    /// Routing TCP by the server id in an option.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getTcpServerIdRoutingStats")]
    pub fn tcp_server_id_counters(&self) -> Result<TcpServerIdCounters> {
        self.per_cpu().map(|records| tcp_server_id(&records))
    }

    /// Stable routing of UDP.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getUdpStableRoutingStats")]
    pub fn stable_udp_counters(&self) -> Result<StableUdpCounters> {
        self.per_cpu().map(|records| stable_udp(&records))
    }

    /// Packets that asked the global flow tables.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getGlobalLruStats")]
    pub fn global_flow_counters(&self) -> Result<GlobalFlowCounters> {
        self.per_cpu().map(|records| global_flows(&records))
    }

    /// New flows that the client's prefix may have led.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLpmSrcStats")]
    pub fn source_routing_counters(&self) -> Result<SourceRoutingCounters> {
        self.per_cpu().map(|records| source_routing(&records))
    }

    /// Packets in tunnels that end at the balancer.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getInlineDecapStats")]
    #[doc(alias = "getDecapStats")]
    pub fn decap_counters(&self) -> Result<InlineDecapCounters> {
        self.per_cpu().map(|records| decap(&records))
    }

    /// UDP flows that left a real that is down.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getUdpFlowMigrationStats")]
    pub fn udp_flow_migration_counters(&self) -> Result<UdpFlowMigrationCounters> {
        self.per_cpu().map(|records| migration(&records))
    }

    /// Events that were handed over to a monitor, and those that were left out.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getKatranMonitorStats")]
    pub fn event_counters(&self) -> Result<EventCounters> {
        self.per_cpu().map(|records| events(&records))
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
        for value in &values {
            sum.forwarded.add(&value.forwarded);
            sum.server_id_new += value.server_id_new;
            sum.server_id_moved += value.server_id_moved;
            sum.decap += value.decap;
        }
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
        let (routes, max_routes) = (self.source_routes.counts(), self.config.max_source_routes);
        let of_probes = self.healthchecks.iter();
        Ok(LibraryCounters {
            failed_kernel_calls: self.kernel.failed(),
            rejected_addresses: self.rejected_addresses.load(Ordering::Relaxed),
            maps: [
                use_of("vips", max_vips, exact),
                use_of("prefix_vips", max_vips, prefixes),
                use_of(
                    "reals",
                    self.config.max_reals.into(),
                    self.table.reals().len() as u32,
                ),
                use_of(
                    "server_ids",
                    self.config.max_server_ids,
                    self.maps.server_ids.len(),
                ),
                use_of("source_routes_v4", max_routes, routes[0] as u32),
                use_of("source_routes_v6", max_routes, routes[1] as u32),
                use_of(
                    "decap_destinations",
                    self.config.max_decap,
                    self.decap.len() as u32,
                ),
                use_of(
                    "down_reals",
                    void_pairs(self.config.max_reals.into()),
                    self.maps.voids.pairs() as u32,
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
            ]
            .into_iter()
            .chain(of_probes.flat_map(HealthChecks::use_of_maps))
            .collect(),
        })
    }

    /// Kernel memory that the program's maps take now, in bytes, as the kernel accounts it.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn memory_in_use(&self) -> Result<u64> {
        let special = [self.programs.special.as_fd()];
        let named = self
            .maps
            .named()
            .into_iter()
            .chain(self.healthchecks.iter().flat_map(HealthChecks::maps))
            .map(|(_, map)| map)
            .chain(special);
        let memory = |map| {
            let bytes = crate::sys::map::memory(map);
            self.kernel.check("read the memory of", "a map", bytes)
        };
        let mut all = named.chain(self.maps.inner());
        let sum = all.try_fold(0, |sum, map| Ok::<u64, Error>(sum + memory(map)?))?;
        // The chunks of the server-id table are all alike, and only one of them is at hand.
        let like_that = match self.maps.server_ids.chunks() {
            Some((count, chunk)) => (count as u64 - 1) * memory(chunk)?,
            None => 0,
        };
        Ok(sum + like_that)
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
            quic: quic(&records),
            tcp_server_id: tcp_server_id(&records),
            stable_udp: stable_udp(&records),
            global_lru: global_flows(&records),
            source_routing: source_routing(&records),
            decap: decap(&records),
            udp_flow_migration: migration(&records),
            events: events(&records),
            healthcheck: self.healthcheck_counters()?,
            probes: self
                .probes()
                .into_iter()
                .map(|vip| Ok((vip.to_string(), self.probe_counter(vip)?)))
                .collect::<Result<_>>()?,
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

fn quic(records: &[types::counters]) -> QuicCounters {
    let sum = |field: fn(&types::quic_counters) -> u64| sum(records, |record| field(&record.quic));
    QuicCounters {
        ch_routed: sum(|quic| quic.no_id),
        cid_initial: sum(|quic| quic.initial),
        cid_invalid_server_id: sum(|quic| quic.unknown_id),
        // Any CPU's will do.
        cid_invalid_server_id_sample: records
            .iter()
            .map(|record| record.quic.unknown_id_sample)
            .find(|sample| *sample != 0)
            .unwrap_or(0),
        cid_routed: sum(|quic| quic.routed),
        cid_unknown_real_dropped: sum(|quic| quic.real_gone),
        cid_v0: sum(|quic| quic.versions[0]),
        cid_v1: sum(|quic| quic.versions[1]),
        cid_v2: sum(|quic| quic.versions[2]),
        cid_v3: sum(|quic| quic.versions[3]),
        dst_match_in_lru: sum(|quic| quic.r#match),
        dst_mismatch_in_lru: sum(|quic| quic.mismatch),
        dst_not_found_in_lru: sum(|quic| quic.not_found),
        icmp: sum(|quic| quic.icmp),
        icmp_ignored: sum(|quic| quic.icmp_ignored),
    }
}

fn tcp_server_id(records: &[types::counters]) -> TcpServerIdCounters {
    TcpServerIdCounters {
        ch_routed: sum(records, |record| record.tcp_server_id.no_id),
        dst_mismatch_in_lru: sum(records, |record| record.tcp_server_id.mismatch),
        sid_routed: sum(records, |record| record.tcp_server_id.routed),
        syn: sum(records, |record| record.tcp_server_id.syn),
    }
}

fn source_routing(records: &[types::counters]) -> SourceRoutingCounters {
    SourceRoutingCounters {
        unmatched: sum(records, |record| record.source_unmatched),
        matched: sum(records, |record| record.source_matched),
    }
}

fn decap(records: &[types::counters]) -> InlineDecapCounters {
    let sum = |field: fn(&types::inline_decap_counters) -> u64| {
        sum(records, |record| field(&record.decap))
    };
    InlineDecapCounters {
        remote_encap: sum(|decap| decap.remote),
        v4: sum(|decap| decap.v4),
        v6: sum(|decap| decap.v6),
        xpop_v4: sum(|decap| decap.walked_v4),
        xpop_v6: sum(|decap| decap.walked_v6),
        egress_v4: sum(|decap| decap.egress_v4),
        egress_v6: sum(|decap| decap.egress_v6),
    }
}

fn global_flows(records: &[types::counters]) -> GlobalFlowCounters {
    GlobalFlowCounters {
        no_table: sum(records, |record| record.global_no_table),
        hits: sum(records, |record| record.global_hits),
    }
}

fn events(records: &[types::counters]) -> EventCounters {
    let kind = |kind: EventKind| sum(records, |record| record.events[kind.number()]);
    EventCounters {
        tcp_non_syn_miss: kind(EventKind::TcpNonSynMiss),
        packet_too_big: kind(EventKind::PacketTooBig),
        quic_real_gone: kind(EventKind::QuicRealGone),
        limited: sum(records, |record| record.events_limited),
        lost: sum(records, |record| record.events_lost),
    }
}

fn migration(records: &[types::counters]) -> UdpFlowMigrationCounters {
    UdpFlowMigrationCounters {
        invalidated: sum(records, |record| record.migrated),
    }
}

fn stable_udp(records: &[types::counters]) -> StableUdpCounters {
    StableUdpCounters {
        ch_routed: sum(records, |record| record.stable_udp.no_id),
        cid_routed: sum(records, |record| record.stable_udp.routed),
        cid_invalid_server_id: sum(records, |record| record.stable_udp.unknown_id),
        cid_unknown_real_dropped: sum(records, |record| record.stable_udp.real_gone),
        invalid_packet_type: sum(records, |record| record.stable_udp.invalid_type),
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
