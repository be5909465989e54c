//! What the balancer counts, as plain values: one struct per group, every field with its unit, and
//! the same as metrics.
//!
//! Most groups are rows of `table.rs`; this file holds those computed from several counters, or
//! from what the library knows. Needs no kernel.

mod drop_reason;
mod interface;
mod metric;
mod next_hops;
#[cfg(test)]
mod rows;
mod table;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

pub use drop_reason::DropReason;
pub use drop_reason::DropReasons;
pub use interface::InterfaceCounters;
pub use metric::Metric;
pub use metric::MetricKind;
pub use metric::Sample;
pub use next_hops::NextHopCounts;
#[cfg(test)]
#[cfg(all(feature = "health", feature = "serde"))]
pub(crate) use rows::rows_of;
pub use table::EncapFailures;
pub use table::EventCounters;
pub use table::FlowTableCounters;
pub use table::GlobalFlowCounters;
pub use table::HealthcheckCounters;
pub use table::IcmpCounters;
pub use table::InlineDecapCounters;
pub use table::OrphanCounters;
pub use table::QuicCounters;
pub use table::RealCounters;
pub use table::RingDrops;
pub use table::SourceRoutingCounters;
pub use table::StableUdpCounters;
pub use table::TcpServerIdCounters;
pub use table::UdpFlowMigrationCounters;
pub use table::VipCounters;
pub use table::VipDetails;
pub use table::VipRealCounters;

use metric::by_label;
use metric::of_each;
use metric::of_many;
use metric::of_one;

use crate::maps::MapUse;
use crate::skel::katran::types;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes. For [`Totals`], of frames, Ethernet header included. For VIPs and reals, by the IP
    /// header's length field: the total length of IPv4, the payload length of IPv6.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, other: &types::count) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }

    fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Every frame by its verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Totals {
    /// All frames: the sum of the three below.
    pub total: Count,
    /// Sent: encapsulated packets, and the balancer's ICMP messages.
    pub tx: Count,
    /// Dropped; [`DropReasons`] says why.
    pub drop: Count,
    /// Passed to the host's stack.
    pub pass: Count,
}

impl Totals {
    /// The sum over all CPUs.
    pub(crate) fn sum(records: &[types::counters]) -> Self {
        let mut totals = Self::default();
        for record in records {
            totals.tx.add(&record.tx);
            totals.drop.add(&record.drop);
            totals.pass.add(&record.pass);
        }
        totals.total = totals.tx.plus(totals.drop).plus(totals.pass);
        totals
    }
}

/// One CPU's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CpuCounters {
    /// The CPU's number.
    pub cpu: u32,
    /// Packets that it sent to reals, or delivered to this host.
    pub forwarded: u64,
    /// New flows to remember, in the last one-second window with new flows.
    pub new_flows: u64,
    /// Whether the flood guard acts now: the current window has more than `flood_threshold` new
    /// flows, so the program does not remember new ones.
    pub under_flood: bool,
}

/// Packets forwarded or delivered, which the program need not count: everything sent or passed,
/// except its own messages.
pub(crate) fn forwarded(record: &types::counters) -> u64 {
    let own = record.echo_v4 + record.echo_v6 + record.too_big_v4 + record.too_big_v6;
    // A message that could not be sent was counted, then dropped.
    let failed = record.drops[DropReason::ReplyFailed.number()];
    (record.tx.packets + record.local).saturating_sub(own.saturating_sub(failed))
}

/// The library's own counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LibraryCounters {
    /// Kernel calls that failed since load.
    pub failed_kernel_calls: u64,
    /// Addresses that were refused since load.
    pub rejected_addresses: u64,
    /// Callbacks of [`Katran::on_real_added`](crate::Katran::on_real_added) and
    /// [`on_real_removed`](crate::Katran::on_real_removed) that have panicked since load. The
    /// library does not call them again.
    pub panicked_callbacks: u64,
    /// Grace periods that calls have waited for since load while the kernel put maps into maps:
    /// rings, server ids, and tables of CPUs. Before Linux 6.8 each takes some milliseconds, for up
    /// to 256 maps; later releases wait at most as often.
    pub waits_for_packets: u64,
    /// How long ago this process gave the last sign of life of a [pinned](crate::Builder::pin)
    /// balancer, which [`pinned`](crate::pinned) shows to others; about a second at most. `None`:
    /// it is not pinned.
    pub sign_of_life_age: Option<Duration>,
    /// Capacity and use of every map with entries; flow tables of all CPUs count together.
    pub maps: Vec<MapUse>,
}

/// The slots of a VIP's ring: [`Stats::slots`](crate::stats::Stats::slots).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SlotStats {
    /// Slots whose live flows all belong to the real that the ring names.
    pub settled: u32,
    /// Slots with flows that may belong to another real; their packets look into the flow table.
    pub unsettled: u32,
    /// How long the oldest of those has been unsettled, accurate to a 64th of the idle time after
    /// which a flow is over; `None` if all slots are settled.
    pub oldest: Option<Duration>,
}

/// All groups in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Counters {
    /// Every frame by its verdict.
    pub totals: Totals,
    /// What the flow table did.
    pub flow_table: FlowTableCounters,
    /// ICMP messages.
    pub icmp: IcmpCounters,
    /// Packets that the ring had no real for.
    pub ring_drop: RingDrops,
    /// Packets without headroom for outer headers.
    pub encap_fail: EncapFailures,
    /// Dropped frames by reason.
    pub drop_reasons: DropReasons,
    /// Routing by QUIC connection ids.
    pub quic: QuicCounters,
    /// Routing TCP by the server id in an option.
    pub tcp_server_id: TcpServerIdCounters,
    /// Stable routing of UDP.
    pub stable_udp: StableUdpCounters,
    /// Packets that looked into the global flow tables.
    pub global_lru: GlobalFlowCounters,
    /// New flows of VIPs with source routing.
    pub source_routing: SourceRoutingCounters,
    /// Packets in tunnels that end at the balancer.
    pub decap: InlineDecapCounters,
    /// UDP flows that left a real that is down.
    pub udp_flow_migration: UdpFlowMigrationCounters,
    /// Frames that passed because the owner gave no sign of life.
    pub orphan: OrphanCounters,
    /// Events for a monitor.
    pub events: EventCounters,
    /// Health checks.
    pub healthcheck: HealthcheckCounters,
    /// Probes sent for each registered key, by its text form.
    pub probes: BTreeMap<String, u64>,
    /// Every VIP's traffic, by its text form.
    pub vips: BTreeMap<String, VipCounters>,
    /// More about every VIP, by its text form, if [`count_syns`](crate::Builder::count_syns) or
    /// [`max_vip_reals`](crate::Builder::max_vip_reals) is set.
    pub vip_details: BTreeMap<String, VipDetails>,
    /// Every VIP's traffic to every real, by the VIP's text form, as in
    /// [`Stats::vip_reals`](crate::stats::Stats::vip_reals).
    pub vip_reals: BTreeMap<String, BTreeMap<IpAddr, VipRealCounters>>,
    /// Ring slots of every VIP that remembers only changed flows, by its text form.
    pub slots: BTreeMap<String, SlotStats>,
    /// Flow table entries of every VIP, by its text form, as in
    /// [`FlowCount`](crate::flows::FlowCount).
    pub flow_entries: BTreeMap<String, u64>,
    /// The age of that count, from its beginning.
    pub flow_entries_age: Duration,
    /// Every real's traffic.
    pub reals: BTreeMap<IpAddr, RealCounters>,
    /// Every possible CPU.
    pub cpus: Vec<CpuCounters>,
    /// Every interface that the program is attached to, as in
    /// [`Stats::interfaces`](crate::stats::Stats::interfaces).
    pub interfaces: Vec<InterfaceCounters>,
    /// The next hops that the library discovers.
    pub next_hops: NextHopCounts,
    /// The library's own counters.
    pub library: LibraryCounters,
}

impl Counters {
    /// Every number of the snapshot as a metric with name, kind, unit, help text and labels, for a
    /// collector such as Prometheus. `docs/metrics.md` in the sources lists them.
    ///
    /// ```no_run
    /// # fn serve(katran: &katran::Katran) -> katran::Result<()> {
    /// for metric in katran.counters()?.metrics() {
    ///     for sample in metric.samples {
    ///         println!("{} {:?} {}", metric.name, sample.labels, sample.value);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn metrics(&self) -> Vec<Metric> {
        let sections = self.sections().into_iter();
        sections.flat_map(|(_, metrics)| metrics).collect()
    }

    /// The metrics by the sections of `docs/metrics.md`.
    fn sections(&self) -> [(&'static str, Vec<Metric>); 6] {
        let vips = self.vips.iter().map(|(vip, of)| (vip.clone(), of));
        let reals = self.reals.iter().map(|(real, of)| (real.to_string(), of));
        let features = [
            of_one(
                "source_routing",
                &self.source_routing,
                SourceRoutingCounters::FAMILIES,
            ),
            of_one("global_lru", &self.global_lru, GlobalFlowCounters::FAMILIES),
            of_one("events", &self.events, EventCounters::FAMILIES),
            of_one(
                "healthcheck",
                &self.healthcheck,
                HealthcheckCounters::FAMILIES,
            ),
            vec![self.probes()],
            of_one("decap", &self.decap, InlineDecapCounters::FAMILIES),
            of_one("quic", &self.quic, QuicCounters::FAMILIES),
            of_one(
                "tcp_server_id",
                &self.tcp_server_id,
                TcpServerIdCounters::FAMILIES,
            ),
            of_one("stable_udp", &self.stable_udp, StableUdpCounters::FAMILIES),
            of_one(
                "udp_flow_migration",
                &self.udp_flow_migration,
                UdpFlowMigrationCounters::FAMILIES,
            ),
            of_one("orphan", &self.orphan, OrphanCounters::FAMILIES),
        ];
        let paths = [
            of_one("icmp", &self.icmp, IcmpCounters::FAMILIES),
            of_one("ring_drop", &self.ring_drop, RingDrops::FAMILIES),
            of_one("encap_fail", &self.encap_fail, EncapFailures::FAMILIES),
        ];
        let mut flows = of_one("flow_table", &self.flow_table, FlowTableCounters::FAMILIES);
        flows.extend(self.flow_entries());
        flows.extend(self.cpus());
        let mut traffic = of_many("vips", "vip", vips, VipCounters::FAMILIES);
        let details = self.vip_details.iter().map(|(vip, of)| (vip.clone(), of));
        traffic.extend(of_many("vip_details", "vip", details, VipDetails::FAMILIES));
        let pairs = self.vip_reals.iter().flat_map(|(vip, reals)| {
            let reals = reals.iter();
            reals.map(move |(real, of)| (vec![vip.clone(), real.to_string()], of))
        });
        let families = VipRealCounters::FAMILIES;
        traffic.extend(of_each("vip_reals", &["vip", "real"], pairs, families));
        traffic.extend(self.slots());
        traffic.extend(of_many("reals", "real", reals, RealCounters::FAMILIES));
        let mut frames = self.frames();
        frames.extend(self.interfaces());
        frames.push(self.next_hops.metric());
        [
            ("frames", frames),
            ("vips and reals", traffic),
            ("flow table and CPUs", flows),
            ("ICMP, rings, encapsulation", paths.concat()),
            ("features", features.concat()),
            ("library", self.library()),
        ]
    }

    fn frames(&self) -> Vec<Metric> {
        // Without the total, which a sum over the metric would count twice.
        let verdicts = [
            ("tx", self.totals.tx),
            ("pass", self.totals.pass),
            ("drop", self.totals.drop),
        ];
        let of = |field: fn(&Count) -> u64| {
            let verdicts = verdicts.iter();
            verdicts.map(move |(verdict, count)| (*verdict, field(count)))
        };
        vec![
            by_label(
                MetricKind::Counter,
                ("frames", "frames", "verdict"),
                "Frames by verdict: sent, passed to the host's stack, or dropped.",
                &[
                    "totals.tx.packets",
                    "totals.pass.packets",
                    "totals.drop.packets",
                    "totals.total.packets",
                ],
                of(|count| count.packets),
            ),
            by_label(
                MetricKind::Counter,
                ("frame_bytes", "bytes", "verdict"),
                "Bytes of frames by verdict, as they arrived, with the Ethernet header.",
                &[
                    "totals.tx.bytes",
                    "totals.pass.bytes",
                    "totals.drop.bytes",
                    "totals.total.bytes",
                ],
                of(|count| count.bytes),
            ),
            by_label(
                MetricKind::Counter,
                ("dropped_frames", "frames", "reason"),
                "Dropped frames by reason.",
                &["drop_reasons"],
                self.drop_reasons.iter(),
            ),
        ]
    }

    fn interfaces(&self) -> Vec<Metric> {
        let of = |field: fn(&InterfaceCounters) -> u64| {
            // Several network namespaces may have an interface of the same name.
            let mut by_name = BTreeMap::new();
            for counters in &self.interfaces {
                *by_name.entry(&counters.interface).or_insert(0) += field(counters);
            }
            by_name.into_iter()
        };
        vec![
            by_label(
                MetricKind::Counter,
                ("interface_sent_frames", "frames", "interface"),
                "Frames sent by the interface since attachment, including the host's; some drivers leave out XDP's.",
                &[
                    "interfaces.sent",
                    "interfaces.interface",
                    "interfaces.index",
                    "interfaces.namespace",
                ],
                of(|counters| counters.sent),
            ),
            by_label(
                MetricKind::Counter,
                ("interface_unsent_frames", "frames", "interface"),
                "Frames lost while sending since attachment, although `tx` counts them; includes the host's, unless the \
                 driver counts native XDP's separately.",
                &["interfaces.unsent"],
                of(|counters| counters.unsent),
            ),
        ]
    }

    fn slots(&self) -> Vec<Metric> {
        let of = |field: fn(&SlotStats) -> u64| {
            let slots = self.slots.iter();
            slots.map(move |(vip, slots)| (vip, field(slots)))
        };
        vec![
            by_label(
                MetricKind::Gauge,
                ("vip_settled_slots", "slots", "vip"),
                "Settled slots of the VIP's ring; no series for VIPs that remember all flows.",
                &["slots.settled"],
                of(|slots| slots.settled.into()),
            ),
            by_label(
                MetricKind::Gauge,
                ("vip_unsettled_slots", "slots", "vip"),
                "Unsettled slots of the VIP's ring, whose flows may belong to another real.",
                &["slots.unsettled"],
                of(|slots| slots.unsettled.into()),
            ),
            by_label(
                MetricKind::Gauge,
                ("vip_oldest_unsettled_slot_seconds", "seconds", "vip"),
                "Time since the VIP's oldest unsettled slot changed; 0: none is unsettled.",
                &["slots.oldest"],
                of(|slots| slots.oldest.map_or(0, |oldest| oldest.as_secs())),
            ),
        ]
    }

    fn flow_entries(&self) -> [Metric; 2] {
        let age = Metric {
            name: "flow_entries_age_seconds",
            kind: MetricKind::Gauge,
            unit: "seconds",
            help: "Age of the last count of flow entries, from its beginning.",
            labels: Vec::new(),
            fields: vec!["flow_entries_age".to_owned()],
            samples: vec![Sample {
                labels: Vec::new(),
                value: self.flow_entries_age.as_secs(),
            }],
        };
        let of_vips = by_label(
            MetricKind::Gauge,
            ("vip_flow_entries", "entries", "vip"),
            "Flow entries of the VIP at the last count; a flow on several CPUs has an entry on each.",
            &["flow_entries"],
            self.flow_entries
                .iter()
                .map(|(vip, entries)| (vip, *entries)),
        );
        [of_vips, age]
    }

    fn probes(&self) -> Metric {
        by_label(
            MetricKind::Counter,
            ("healthcheck_probe_packets", "packets", "vip"),
            "Probes sent for each registered address, port and protocol.",
            &["probes"],
            self.probes.iter().map(|(vip, count)| (vip, *count)),
        )
    }

    fn cpus(&self) -> Vec<Metric> {
        let of = |field: fn(&CpuCounters) -> u64| {
            let cpus = self.cpus.iter();
            cpus.map(move |cpu| (cpu.cpu, field(cpu)))
        };
        vec![
            by_label(
                MetricKind::Counter,
                ("cpu_packets", "packets", "cpu"),
                "Packets that the CPU sent to reals or delivered to this host.",
                &["cpus.forwarded", "cpus.cpu"],
                of(|cpu| cpu.forwarded),
            ),
            by_label(
                MetricKind::Gauge,
                ("cpu_new_flows", "flows", "cpu"),
                "New flows in the CPU's last one-second window with new flows.",
                &["cpus.new_flows"],
                of(|cpu| cpu.new_flows),
            ),
            by_label(
                MetricKind::Gauge,
                ("cpu_under_flood", "0 or 1", "cpu"),
                "1: the CPU gets more new flows than `flood_threshold`, and remembers none outside unsettled slots.",
                &["cpus.under_flood"],
                of(|cpu| cpu.under_flood.into()),
            ),
        ]
    }

    fn library(&self) -> Vec<Metric> {
        let single = |name, unit, help, field: &str, value| Metric {
            name,
            kind: MetricKind::Counter,
            unit,
            help,
            labels: Vec::new(),
            fields: vec![field.to_owned()],
            samples: vec![Sample {
                labels: Vec::new(),
                value,
            }],
        };
        let of = |field: fn(&MapUse) -> u64| {
            let maps = self.library.maps.iter();
            maps.map(move |map| (map.name, field(map)))
        };
        vec![
            single(
                "failed_kernel_calls",
                "calls",
                "Kernel calls of the library that failed.",
                "library.failed_kernel_calls",
                self.library.failed_kernel_calls,
            ),
            single(
                "rejected_addresses",
                "addresses",
                "Addresses that the library refused.",
                "library.rejected_addresses",
                self.library.rejected_addresses,
            ),
            single(
                "panicked_callbacks",
                "callbacks",
                "Callbacks that panicked; the library does not call them again.",
                "library.panicked_callbacks",
                self.library.panicked_callbacks,
            ),
            single(
                "waits_for_packets",
                "grace periods",
                "Grace periods that calls waited for while putting maps into maps.",
                "library.waits_for_packets",
                self.library.waits_for_packets,
            ),
            Metric {
                name: "sign_of_life_age_seconds",
                kind: MetricKind::Gauge,
                unit: "seconds",
                help: "Time since the owner's last sign of life; no series unless the balancer is pinned.",
                labels: Vec::new(),
                fields: vec!["library.sign_of_life_age".to_owned()],
                samples: self
                    .library
                    .sign_of_life_age
                    .iter()
                    .map(|age| Sample {
                        labels: Vec::new(),
                        value: age.as_secs(),
                    })
                    .collect(),
            },
            by_label(
                MetricKind::Gauge,
                ("map_capacity", "elements", "map"),
                "Elements that the map can hold.",
                &["library.maps.capacity", "library.maps.name"],
                of(|map| map.capacity),
            ),
            by_label(
                MetricKind::Gauge,
                ("map_entries", "elements", "map"),
                "Elements in use.",
                &["library.maps.entries"],
                of(|map| map.entries),
            ),
        ]
    }
}
