//! Counters: kept per CPU by the program, summed when read. Each accessor returns a snapshot;
//! rates are the reader's affair.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::Katran;
use crate::counters::Counters;
use crate::counters::CpuCounters;
use crate::counters::DropReasons;
use crate::counters::EncapFailures;
use crate::counters::EventCounters;
use crate::counters::FlowTableCounters;
use crate::counters::GlobalFlowCounters;
use crate::counters::IcmpCounters;
use crate::counters::InlineDecapCounters;
use crate::counters::LibraryCounters;
use crate::counters::QuicCounters;
use crate::counters::RealCounters;
use crate::counters::RingDrops;
use crate::counters::SourceRoutingCounters;
use crate::counters::StableUdpCounters;
use crate::counters::TcpServerIdCounters;
use crate::counters::Totals;
use crate::counters::UdpFlowMigrationCounters;
use crate::counters::VipCounters;
use crate::counters::forwarded;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::maps::FALLBACK_FLOWS;
use crate::maps::MapUse;
use crate::maps::RINGS_PER_CHUNK;
use crate::maps::max_chunks;
use crate::maps::runs;
use crate::maps::void_pairs;
use crate::skel::katran::types;
use crate::types::Vip;

impl Katran {
    /// Every frame by its verdict.
    ///
    /// # Errors
    /// [`Error::Kernel`], as for every accessor below.
    pub fn totals(&self) -> Result<Totals> {
        self.counted().map(|records| Totals::sum(&records))
    }

    /// What the flow table did.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLruStats")]
    pub fn flow_table_counters(&self) -> Result<FlowTableCounters> {
        self.counted()
            .map(|records| FlowTableCounters::sum(&records))
    }

    /// ICMP messages, sent and received.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getIcmpTooBigStats")]
    pub fn icmp_counters(&self) -> Result<IcmpCounters> {
        self.counted().map(|records| IcmpCounters::sum(&records))
    }

    /// Packets that the ring had no real for.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getChDropStats")]
    pub fn ring_drops(&self) -> Result<RingDrops> {
        self.counted().map(|records| RingDrops::sum(&records))
    }

    /// Packets that could not be encapsulated.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn encap_failures(&self) -> Result<EncapFailures> {
        self.counted().map(|records| EncapFailures::sum(&records))
    }

    /// Dropped frames by reason.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn drop_reasons(&self) -> Result<DropReasons> {
        self.counted().map(|records| DropReasons::sum(&records))
    }

    /// Routing by QUIC connection ids.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLbQuicPacketsStats")]
    pub fn quic_counters(&self) -> Result<QuicCounters> {
        self.counted().map(|records| QuicCounters::sum(&records))
    }

    /// Routing TCP by the server id in an option.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getTcpServerIdRoutingStats")]
    pub fn tcp_server_id_counters(&self) -> Result<TcpServerIdCounters> {
        self.counted()
            .map(|records| TcpServerIdCounters::sum(&records))
    }

    /// Stable routing of UDP.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getUdpStableRoutingStats")]
    pub fn stable_udp_counters(&self) -> Result<StableUdpCounters> {
        self.counted()
            .map(|records| StableUdpCounters::sum(&records))
    }

    /// Packets that asked the global flow tables.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getGlobalLruStats")]
    pub fn global_flow_counters(&self) -> Result<GlobalFlowCounters> {
        self.counted()
            .map(|records| GlobalFlowCounters::sum(&records))
    }

    /// New flows that the client's prefix may have led.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLpmSrcStats")]
    pub fn source_routing_counters(&self) -> Result<SourceRoutingCounters> {
        self.counted()
            .map(|records| SourceRoutingCounters::sum(&records))
    }

    /// Packets in tunnels that end at the balancer.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getInlineDecapStats")]
    #[doc(alias = "getDecapStats")]
    pub fn decap_counters(&self) -> Result<InlineDecapCounters> {
        self.counted()
            .map(|records| InlineDecapCounters::sum(&records))
    }

    /// UDP flows that left a real that is down.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getUdpFlowMigrationStats")]
    pub fn udp_flow_migration_counters(&self) -> Result<UdpFlowMigrationCounters> {
        self.counted()
            .map(|records| UdpFlowMigrationCounters::sum(&records))
    }

    /// Events that were handed over to a monitor, and those that were left out.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getKatranMonitorStats")]
    pub fn event_counters(&self) -> Result<EventCounters> {
        self.counted().map(|records| EventCounters::sum(&records))
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
        Ok(VipCounters::sum(&values))
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

    /// The traffic of many reals, in the order asked for. Those with numbers close together are read by
    /// one call to the kernel, and nearly nothing else is read.
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
        let mut wanted = numbers.clone();
        wanted.sort_unstable();
        wanted.dedup();
        let mut sums = vec![RealCounters::default(); wanted.len()];
        self.read_real_counters(&wanted, |number, values| {
            let Ok(at) = wanted.binary_search(&number) else {
                return;
            };
            sums[at] = RealCounters::sum(values);
            sums[at].misses = self.misses_since_watch(number, sums[at].misses);
        })?;
        let sum = |number| {
            let at = wanted.binary_search(number);
            at.map(|at| sums[at]).unwrap_or_default()
        };
        Ok(numbers.iter().map(sum).collect())
    }

    /// Shows the counters of the reals with these numbers, ascending, to `see`: a value per CPU; and
    /// those of some between them.
    pub(super) fn read_real_counters(
        &self,
        numbers: &[u32],
        mut see: impl FnMut(u32, &[types::real_counters]),
    ) -> Result<()> {
        let counters = &self.maps.real_counters;
        for run in runs(numbers, counters.element_bytes()) {
            let read = counters.range(&run, &mut see);
            self.kernel.check("read the counters of", "reals", read)?;
        }
        Ok(())
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
            panicked_callbacks: self.callbacks.panicked,
            waits_for_packets: self.maps.waits(),
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
        let inner = self.maps.inner();
        let mut all = named.map(|map| (1, map)).chain(inner);
        all.try_fold(0, |sum, (count, map)| {
            Ok::<u64, Error>(sum + count as u64 * memory(map)?)
        })
    }

    /// All groups in one snapshot; as slow as [`library_counters`](Self::library_counters).
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn counters(&self) -> Result<Counters> {
        let records = self.per_cpu()?;
        let counted: Vec<_> = records.iter().map(|record| record.counters).collect();
        let mut vips = BTreeMap::new();
        for (vip, _) in self.table.vips() {
            vips.insert(vip.to_string(), self.vip_counters(*vip)?);
        }
        let addresses: Vec<IpAddr> = self.table.reals().map(|(address, _)| address).collect();
        let reals = self.reals_stats(&addresses)?;
        Ok(Counters {
            totals: Totals::sum(&counted),
            flow_table: FlowTableCounters::sum(&counted),
            icmp: IcmpCounters::sum(&counted),
            ring_drop: RingDrops::sum(&counted),
            encap_fail: EncapFailures::sum(&counted),
            drop_reasons: DropReasons::sum(&counted),
            quic: QuicCounters::sum(&counted),
            tcp_server_id: TcpServerIdCounters::sum(&counted),
            stable_udp: StableUdpCounters::sum(&counted),
            global_lru: GlobalFlowCounters::sum(&counted),
            source_routing: SourceRoutingCounters::sum(&counted),
            decap: InlineDecapCounters::sum(&counted),
            udp_flow_migration: UdpFlowMigrationCounters::sum(&counted),
            events: EventCounters::sum(&counted),
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

    /// The record of each possible CPU.
    pub(super) fn per_cpu(&self) -> Result<Vec<types::cpu>> {
        self.kernel.check("read", "cpus", self.maps.cpus.get(0))
    }

    fn counted(&self) -> Result<Vec<types::counters>> {
        let records = self.per_cpu()?;
        Ok(records.iter().map(|record| record.counters).collect())
    }

    fn cpus(&self, records: &[types::cpu]) -> Vec<CpuCounters> {
        let threshold = u64::from(self.config.flood_threshold);
        (0..)
            .zip(records)
            .map(|(cpu, record)| CpuCounters {
                cpu,
                forwarded: forwarded(&record.counters),
                new_flows: record.flood.new_flows,
                under_flood: record.flood.new_flows > threshold,
            })
            .collect()
    }
}
