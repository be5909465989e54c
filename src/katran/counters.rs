//! Counters: the program keeps them per CPU, and reading adds them up. Each accessor returns a
//! snapshot; two snapshots make a rate.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Katran;
use super::flow_count::FlowCount;
use super::handles::USES;
use crate::config::ticks;
use crate::counters::Counters;
use crate::counters::CpuCounters;
use crate::counters::DropReasons;
use crate::counters::EncapFailures;
use crate::counters::EventCounters;
use crate::counters::FlowTableCounters;
use crate::counters::GlobalFlowCounters;
use crate::counters::IcmpCounters;
use crate::counters::InlineDecapCounters;
use crate::counters::InterfaceCounters;
use crate::counters::LibraryCounters;
use crate::counters::OrphanCounters;
use crate::counters::QuicCounters;
use crate::counters::RealCounters;
use crate::counters::RingDrops;
use crate::counters::SlotStats;
use crate::counters::SourceRoutingCounters;
use crate::counters::StableUdpCounters;
use crate::counters::TcpServerIdCounters;
use crate::counters::Totals;
use crate::counters::UdpFlowMigrationCounters;
use crate::counters::VipCounters;
use crate::counters::forwarded;
use crate::error::Error;
use crate::error::Result;
use crate::maps::MapUse;
use crate::maps::runs;
use crate::pins::Home;
use crate::skel::katran::types;
use crate::types::Vip;

/// A balancer's counters by group, and its size: [`Katran::stats`].
///
/// [`Katran::counters`] reads all groups in one snapshot.
///
/// ```no_run
/// # fn example(katran: &katran::Katran, vip: katran::Vip) -> katran::Result<()> {
/// let stats = katran.stats();
/// println!("{} frames dropped", stats.totals()?.drop.packets);
/// println!("{} packets to {vip}", stats.vip(vip)?.forwarded.packets);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct Stats<'a> {
    pub(super) katran: &'a Katran,
}

/// Selects what is counted: [`Katran::stats_mut`].
///
/// ```no_run
/// # fn example(katran: &mut katran::Katran, vip: katran::Vip) -> katran::Result<()> {
/// katran.stats_mut().watch_misses(vip)?;
/// // ... and after a while:
/// for real in katran.reals(vip)? {
///     let misses = katran.stats().real(real.address())?.misses;
///     println!("{misses} new flows to {}", real.address());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct StatsMut<'a> {
    pub(super) katran: &'a mut Katran,
}

/// # Counters by group
impl Stats<'_> {
    /// All frames by verdict.
    ///
    /// # Errors
    /// [`Error::Kernel`], as for every accessor below.
    pub fn totals(&self) -> Result<Totals> {
        self.sum(Totals::sum)
    }

    /// Lookups in the flow table, and their results.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLruStats")]
    pub fn flow_table(&self) -> Result<FlowTableCounters> {
        self.sum(FlowTableCounters::sum)
    }

    /// How many slots of a VIP's ring are settled. With
    /// [`FlowTracking::Changed`](crate::FlowTracking::Changed) only packets in unsettled slots look
    /// into the flow table.
    ///
    /// The thread that settles slots keeps the count, so it is at most some milliseconds old. The
    /// first call after a change or a purge counts itself: some hundred microseconds for a ring of
    /// 65,537. The thread settles a slot at most a 64th of `flow_idle_timeout` or `udp_timeout`
    /// late (0.1 to 60 s).
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    pub fn slots(&self, vip: Vip) -> Result<SlotStats> {
        let number = self.katran.entry(vip)?.number;
        self.katran.slots_of(number.0.into())
    }

    /// ICMP messages received and sent.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getIcmpTooBigStats")]
    pub fn icmp(&self) -> Result<IcmpCounters> {
        self.sum(IcmpCounters::sum)
    }

    /// Packets for which the ring had no real.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getChDropStats")]
    pub fn ring_drops(&self) -> Result<RingDrops> {
        self.sum(RingDrops::sum)
    }

    /// Packets that could not be encapsulated.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn encap_failures(&self) -> Result<EncapFailures> {
        self.sum(EncapFailures::sum)
    }

    /// Dropped frames by reason.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn drop_reasons(&self) -> Result<DropReasons> {
        self.sum(DropReasons::sum)
    }

    /// Routing by QUIC connection id.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLbQuicPacketsStats")]
    pub fn quic(&self) -> Result<QuicCounters> {
        self.sum(QuicCounters::sum)
    }

    /// Routing by the server id in a TCP option.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getTcpServerIdRoutingStats")]
    pub fn tcp_server_id(&self) -> Result<TcpServerIdCounters> {
        self.sum(TcpServerIdCounters::sum)
    }

    /// Stable UDP routing.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getUdpStableRoutingStats")]
    pub fn stable_udp(&self) -> Result<StableUdpCounters> {
        self.sum(StableUdpCounters::sum)
    }

    /// Lookups in the global flow tables.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getGlobalLruStats")]
    pub fn global_flows(&self) -> Result<GlobalFlowCounters> {
        self.sum(GlobalFlowCounters::sum)
    }

    /// New flows at VIPs with source routing.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getLpmSrcStats")]
    pub fn source_routing(&self) -> Result<SourceRoutingCounters> {
        self.sum(SourceRoutingCounters::sum)
    }

    /// Packets in tunnels that end at the balancer.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getInlineDecapStats")]
    #[doc(alias = "getDecapStats")]
    pub fn decap(&self) -> Result<InlineDecapCounters> {
        self.sum(InlineDecapCounters::sum)
    }

    /// UDP flows that left a real that is down.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getUdpFlowMigrationStats")]
    pub fn udp_flow_migration(&self) -> Result<UdpFlowMigrationCounters> {
        self.sum(UdpFlowMigrationCounters::sum)
    }

    /// Frames that passed because no owner had given a sign of life within
    /// [`Builder::orphan_limit`](crate::Builder::orphan_limit).
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn orphan(&self) -> Result<OrphanCounters> {
        self.sum(OrphanCounters::sum)
    }

    /// Events delivered to a monitor, and events left out.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getKatranMonitorStats")]
    pub fn events(&self) -> Result<EventCounters> {
        self.sum(EventCounters::sum)
    }

    /// What each interface has sent and failed to send since the program was attached to it, by the
    /// counters of the kernel and the driver. A driver can lose a frame that the program has
    /// counted in [`Totals::tx`].
    ///
    /// Only attached interfaces in the calling thread's network namespace are listed. Each takes
    /// some tens of microseconds, more with drivers that have many counters.
    pub fn interfaces(&self) -> Vec<InterfaceCounters> {
        self.katran.attachments.sent()
    }

    /// The packets that each possible CPU forwarded, and whether its flood guard acts.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getPerCorePacketsStats")]
    pub fn cpus(&self) -> Result<Vec<CpuCounters>> {
        self.katran
            .per_cpu()
            .and_then(|records| self.katran.cpus(&records))
    }

    /// A VIP's traffic since it was added.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "getStatsForVip")]
    pub fn vip(&self, vip: Vip) -> Result<VipCounters> {
        let katran = self.katran;
        let number = katran.entry(vip)?.number;
        let values = katran.kernel.check(
            "read the counters of",
            &vip.to_string(),
            katran.maps.vip_counters.get(number.0.into()),
        )?;
        Ok(VipCounters::sum(&values))
    }

    /// A real's traffic since it was first named.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "getRealStats")]
    pub fn real(&self, address: IpAddr) -> Result<RealCounters> {
        self.reals(&[address])
            .map(|all| all.first().copied().unwrap_or_default())
    }

    /// The traffic of many reals, in the order of `addresses`. One kernel call reads those with
    /// numbers close together.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing names one of them; [`Error::Kernel`].
    #[doc(alias = "getRealsStats")]
    pub fn reals(&self, addresses: &[IpAddr]) -> Result<Vec<RealCounters>> {
        let katran = self.katran;
        let numbers: Vec<u32> = addresses
            .iter()
            .map(|address| {
                let number = katran.table.real_index(*address);
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
        katran.read_real_counters(&wanted, |number, values| {
            let Ok(at) = wanted.binary_search(&number) else {
                return;
            };
            sums[at] = RealCounters::sum(values);
            sums[at].misses = katran.misses_since_watch(number, sums[at].misses);
        })?;
        let sum = |number| {
            let at = wanted.binary_search(number);
            at.map(|at| sums[at]).unwrap_or_default()
        };
        Ok(numbers.iter().map(sum).collect())
    }

    /// Reads and remembers the counters that [`Katran::diagnose`] compares with. If you diagnose
    /// less often than every minute, call this every ten seconds or so: the recent past of a
    /// diagnosis is the last minute, or the time since the last sample or diagnosis if that is
    /// longer ago.
    ///
    /// It reads a record for each CPU, and [what interfaces sent](Self::interfaces).
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn sample(&self) -> Result<()> {
        self.katran.sample_counters()
    }

    /// The library's own counters. They include the number of flow entries, which takes as long as
    /// [`Flows::count`](crate::flows::Flows::count).
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn library(&self) -> Result<LibraryCounters> {
        let pairs = self.vip_reals()?;
        let places = pairs.values().map(BTreeMap::len).sum::<usize>() as u64;
        self.library_with(&self.katran.flows().count()?, places)
    }

    /// The same with given counts of entries, and of pairs of VIPs and reals.
    fn library_with(&self, flows: &FlowCount, pairs: u64) -> Result<LibraryCounters> {
        let katran = self.katran;
        let machine = katran.machine();
        let uses = USES.iter().map(|row| {
            let entries = (row.entries)(katran, flows);
            let entries = katran
                .kernel
                .check("count the entries of", row.label, entries)?;
            Ok(MapUse {
                name: row.label,
                ..machine.use_of(row.map, entries)
            })
        });
        let mut maps = uses.collect::<Result<Vec<_>>>()?;
        if katran.config.max_vip_reals != 0 {
            maps.push(machine.use_of("vip_reals", pairs));
        }
        let of_probes = katran.healthchecks.iter();
        maps.extend(of_probes.flat_map(|checks| checks.use_of_maps(&machine)));
        Ok(LibraryCounters {
            failed_kernel_calls: katran.kernel.failed(),
            rejected_addresses: katran.rejected_addresses.load(Ordering::Relaxed),
            panicked_callbacks: katran.callbacks.panicked,
            waits_for_packets: katran.maps.waits(),
            sign_of_life_age: katran.home.as_ref().and_then(Home::silence),
            maps,
        })
    }

    fn sum<T>(&self, sum: impl FnOnce(&[types::counters]) -> T) -> Result<T> {
        self.katran.counted().map(|records| sum(&records))
    }
}

/// # Counters
impl Katran {
    /// Counters by group, sizes and memory.
    pub fn stats(&self) -> Stats<'_> {
        Stats { katran: self }
    }

    /// Selects the VIP whose misses are counted for each real.
    pub fn stats_mut(&mut self) -> StatsMut<'_> {
        StatsMut { katran: self }
    }

    /// All groups of counters in one snapshot. They include the number of flow entries, which takes
    /// as long as [`Flows::count`](crate::flows::Flows::count): 25 ms for each CPU with 4,000,000
    /// flows.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn counters(&self) -> Result<Counters> {
        self.counters_with(&self.flows().count()?)
    }

    /// The same with flow entries counted earlier, so that the number of flows does not slow it:
    /// for a snapshot every second, or a caller that must not wait. [`Counters::flow_entries_age`]
    /// is the age of the count.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn counters_with(&self, flows: &FlowCount) -> Result<Counters> {
        let records = self.per_cpu()?;
        let stats = self.stats();
        let counted: Vec<_> = records.iter().map(|record| record.counters).collect();
        let mut vips = BTreeMap::new();
        for (vip, _) in self.table.vips() {
            vips.insert(vip.to_string(), stats.vip(*vip)?);
        }
        let mut slots = BTreeMap::new();
        for (vip, entry) in self.table.vips() {
            if self.has_bases(entry.flags) {
                slots.insert(vip.to_string(), stats.slots(*vip)?);
            }
        }
        let addresses: Vec<IpAddr> = self.table.reals().map(|(address, _)| address).collect();
        let reals = stats.reals(&addresses)?;
        let vip_details = stats.vip_details()?.into_iter();
        let pairs = stats.vip_reals()?;
        let places = pairs.values().map(BTreeMap::len).sum::<usize>() as u64;
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
            orphan: OrphanCounters::sum(&counted),
            events: EventCounters::sum(&counted),
            healthcheck: self.probes().counters()?,
            probes: self
                .probes()
                .list()
                .into_iter()
                .map(|vip| Ok((vip.to_string(), self.probes().counter(vip)?)))
                .collect::<Result<_>>()?,
            vips,
            vip_details: vip_details.map(|(vip, of)| (vip.to_string(), of)).collect(),
            vip_reals: pairs
                .into_iter()
                .map(|(vip, of)| (vip.to_string(), of))
                .collect(),
            slots,
            flow_entries: flows
                .vips()
                .filter(|(vip, _)| self.table.vip(vip).is_some())
                .map(|(vip, entries)| (vip.to_string(), entries))
                .collect(),
            flow_entries_age: flows.age(),
            reals: addresses.into_iter().zip(reals).collect(),
            cpus: self.cpus(&records)?,
            // After the totals, so that the interfaces have sent all that those count.
            interfaces: self.attachments.sent(),
            next_hops: stats.next_hops(),
            library: stats.library_with(flows, places)?,
        })
    }

    /// Passes to `see` the counters of the reals with these ascending numbers, a value per CPU, and
    /// of some numbers between them.
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

    pub(super) fn per_cpu(&self) -> Result<Vec<types::cpu>> {
        self.kernel.check("read", "cpus", self.maps.cpus.get(0))
    }

    fn counted(&self) -> Result<Vec<types::counters>> {
        let records = self.per_cpu()?;
        Ok(records.iter().map(|record| record.counters).collect())
    }

    pub(super) fn cpus(&self, records: &[types::cpu]) -> Result<Vec<CpuCounters>> {
        let threshold = u64::from(self.config.flood_threshold.unwrap_or(u32::MAX));
        let is_flooded = |record: &types::cpu| record.flood.new_flows > threshold;
        // A window stays in the record after its end; only then is the clock worth a call.
        let now = match records.iter().any(is_flooded) {
            true => self.ticks_now()?,
            false => 0,
        };
        let second = ticks(Duration::from_secs(1), self.fixed.tick);
        let acts = |record: &types::cpu| {
            // The lower half of each clock, which wraps around.
            let left = (record.flood.until as u32).wrapping_sub(now);
            is_flooded(record) && (1..=second).contains(&left)
        };
        let each = (0..).zip(records).map(|(cpu, record)| CpuCounters {
            cpu,
            forwarded: forwarded(&record.counters),
            new_flows: record.flood.new_flows,
            under_flood: acts(record),
        });
        Ok(each.collect())
    }
}
