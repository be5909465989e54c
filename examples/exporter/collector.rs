//! One scrape: a snapshot of everything that the balancer counts, and its text for Prometheus. A
//! function for each group of counters, called from `Collector::encode`, those of features in
//! `features.rs`. A new group is a function and its call here, and its rows in `docs/metrics.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::attachments::Attachment;
use katran::stats::Counters;
use katran::stats::CpuCounters;
use katran::stats::DropReasons;
use katran::stats::EncapFailures;
use katran::stats::FlowTableCounters;
use katran::stats::IcmpCounters;
use katran::stats::LibraryCounters;
use katran::stats::MapUse;
use katran::stats::RealCounters;
use katran::stats::RingDrops;
use katran::stats::Totals;
use katran::stats::VipCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::features;
use crate::page::Format;
use crate::page::Page;
use crate::page::families;
use crate::page::plain;

/// The crate's version goes out with the metrics.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// All that one request is told.
#[derive(Debug)]
pub(crate) struct Scrape {
    counters: Counters,
    weights: Vec<(Vip, Vec<Real>)>,
    attachments: Vec<Attachment>,
    /// Root programs' arrays, and positions in them.
    shared: Vec<(PathBuf, u32)>,
    /// Bytes that the kernel accounts to the maps.
    memory: u64,
}

impl Scrape {
    pub(crate) fn take(katran: &Katran) -> Result<Self> {
        let mut weights = Vec::new();
        for vip in katran.vips() {
            weights.push((vip, katran.reals(vip)?));
        }
        let mut counters = katran.counters()?;
        // The mean of the others is what balance is measured by: CPUs that are not meant to forward, and
        // do not, have no part in it.
        let forwarding = katran.forwarding_cpus();
        counters
            .cpus
            .retain(|cpu| cpu.forwarded > 0 || forwarding.contains(&cpu.cpu));
        Ok(Self {
            counters,
            weights,
            attachments: katran.interfaces(),
            shared: katran.shared_entries(),
            memory: katran.memory_in_use()?,
        })
    }

    pub(crate) fn text(self, format: Format) -> Result<String> {
        // One for each scrape: a snapshot that fails is then an answer of its own, not half a page.
        let mut registry = Registry::with_prefix("katran");
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(match format {
            Format::OpenMetrics => page,
            Format::Plain => plain(&page),
        })
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let page = &mut Page::new(encoder);
        let counters = &self.counters;
        totals(page, &counters.totals)?;
        drop_reasons(page, &counters.drop_reasons)?;
        vips(page, &counters.vips)?;
        reals(page, &counters.reals)?;
        weights(page, &self.weights)?;
        flow_table(page, &counters.flow_table)?;
        cpus(page, &counters.cpus)?;
        icmp(page, &counters.icmp)?;
        ring_drop(page, &counters.ring_drop)?;
        encap_fail(page, &counters.encap_fail)?;
        features::source_routing(page, &counters.source_routing)?;
        features::global_flows(page, &counters.global_lru)?;
        features::events(page, &counters.events)?;
        features::healthcheck(page, &counters.healthcheck, &counters.probes)?;
        features::decap(page, &counters.decap)?;
        features::quic(page, &counters.quic)?;
        features::tcp_server_id(page, &counters.tcp_server_id)?;
        features::stable_udp(page, &counters.stable_udp)?;
        features::migration(page, &counters.udp_flow_migration)?;
        library(page, &counters.library)?;
        host(page, &self.attachments, &self.shared, self.memory)
    }
}

fn totals(page: &mut Page<'_>, totals: &Totals) -> fmt::Result {
    // Without their sum, which would be counted twice wherever somebody adds them up.
    let verdicts = [
        ("tx", totals.tx),
        ("pass", totals.pass),
        ("drop", totals.drop),
    ];
    page.counters(
        "frames",
        "Frames by verdict: sent, passed to the host's stack, or dropped.",
        "verdict",
        verdicts.map(|(verdict, count)| (verdict, count.packets)),
    )?;
    page.counters(
        "frame_bytes",
        "Bytes of frames by verdict, as they came in: Ethernet headers included, no outer headers.",
        "verdict",
        verdicts.map(|(verdict, count)| (verdict, count.bytes)),
    )
}

fn drop_reasons(page: &mut Page<'_>, reasons: &DropReasons) -> fmt::Result {
    page.counters(
        "dropped_frames",
        "Dropped frames by reason.",
        "reason",
        reasons.iter(),
    )
}

fn vips(page: &mut Page<'_>, vips: &BTreeMap<String, VipCounters>) -> fmt::Result {
    let mut each = |name, help, field: fn(&VipCounters) -> u64| {
        let series = vips.iter().map(|(vip, counters)| (vip, field(counters)));
        page.counters(name, help, "vip", series)
    };
    each(
        "vip_packets",
        "Packets to the VIP that went to a real or were delivered to this host.",
        |vip| vip.forwarded.packets,
    )?;
    each(
        "vip_bytes",
        "Bytes of packets to the VIP that went on: total length of IPv4, payload length of IPv6.",
        |vip| vip.forwarded.bytes,
    )?;
    each(
        "vip_decap_packets",
        "Packets to the VIP that were unwrapped from GUE for this host's own stack.",
        |vip| vip.decap,
    )?;
    each(
        "vip_server_id_new_packets",
        "Packets that open a connection, after which packets may carry a server id.",
        |vip| vip.server_id_new,
    )?;
    each(
        "vip_server_id_moved_flows",
        "Flows that a server id took to another real than the flow table had.",
        |vip| vip.server_id_moved,
    )
}

fn reals(page: &mut Page<'_>, reals: &BTreeMap<IpAddr, RealCounters>) -> fmt::Result {
    let mut each = |name, help, field: fn(&RealCounters) -> u64| {
        let series = reals.iter().map(|(real, counters)| (real, field(counters)));
        page.counters(name, help, "real", series)
    };
    each(
        "real_packets",
        "Packets of all VIPs that went to the real.",
        |real| real.forwarded.packets,
    )?;
    each(
        "real_bytes",
        "Bytes of packets that went to the real: total length of IPv4, payload length of IPv6.",
        |real| real.forwarded.bytes,
    )?;
    each(
        "real_watched_misses",
        "New flows of the watched VIP that went to the real; 0 while none is watched.",
        |real| real.misses,
    )
}

fn weights(page: &mut Page<'_>, vips: &[(Vip, Vec<Real>)]) -> fmt::Result {
    let series = vips.iter().flat_map(|(vip, reals)| {
        reals.iter().map(move |real| {
            let labels = [
                ("vip", vip.to_string()),
                ("real", real.address().to_string()),
            ];
            (labels, real.get_weight().into())
        })
    });
    page.family(
        MetricType::Gauge,
        "vip_real_weight",
        "The real's weight at the VIP; 0: it takes no new flows.",
        series,
    )
}

fn flow_table(page: &mut Page<'_>, flows: &FlowTableCounters) -> fmt::Result {
    page.counter("flow_table_packets", "Packets to any VIP.", flows.packets)?;
    page.counter(
        "flow_table_misses",
        "Packets whose flow was new: the ring chose the real.",
        flows.misses,
    )?;
    page.counters(
        "flow_table_tcp_misses",
        "TCP packets of new flows: those that open a connection (syn), and those within one.",
        "kind",
        [("syn", flows.miss_syn), ("non_syn", flows.miss_non_syn)],
    )?;
    page.counter(
        "flow_table_fallback_packets",
        "Packets on a CPU without a flow table, which used the small shared one.",
        flows.fallback,
    )
}

fn cpus(page: &mut Page<'_>, cpus: &[CpuCounters]) -> fmt::Result {
    let each = |field: fn(&CpuCounters) -> u64| {
        let series = cpus.iter().map(move |cpu| (cpu.cpu, field(cpu)));
        series.collect::<Vec<_>>()
    };
    page.counters(
        "cpu_packets",
        "Packets that the CPU sent to reals or delivered to this host.",
        "cpu",
        each(|cpu| cpu.forwarded),
    )?;
    page.gauges(
        "cpu_new_flows",
        "New flows in the CPU's last window of one second in which there was one.",
        "cpu",
        each(|cpu| cpu.new_flows),
    )?;
    page.gauges(
        "cpu_under_flood",
        "1 while these are above the flood threshold, so that new flows are not remembered; else 0.",
        "cpu",
        each(|cpu| cpu.under_flood.into()),
    )
}

fn icmp(page: &mut Page<'_>, icmp: &IcmpCounters) -> fmt::Result {
    page.counters(
        "icmp_too_big_sent",
        "Too-big messages sent for frames above the largest accepted size.",
        "family",
        families(icmp.too_big_v4, icmp.too_big_v6),
    )?;
    page.counters(
        "icmp_too_big_received",
        "Too-big messages received, for any destination.",
        "family",
        families(icmp.ptb_v4, icmp.ptb_v6),
    )?;
    page.counters(
        "icmp_too_big_small_received",
        "Too-big messages received that announce an MTU below 1280 bytes.",
        "family",
        families(icmp.ptb_v4_small, icmp.ptb_v6_small),
    )?;
    page.counters(
        "icmp_echo_replies",
        "Echo requests that the balancer answered.",
        "family",
        families(icmp.echo_v4, icmp.echo_v6),
    )
}

fn ring_drop(page: &mut Page<'_>, drops: &RingDrops) -> fmt::Result {
    page.counters(
        "ring_dropped_packets",
        "Packets that the ring had no real for; also among the dropped frames.",
        "reason",
        [("unknown_real", drops.unknown_real), ("empty", drops.empty)],
    )
}

fn encap_fail(page: &mut Page<'_>, failures: &EncapFailures) -> fmt::Result {
    page.counters(
        "encap_failed_packets",
        "Packets without headroom for outer headers of this family; also among the dropped frames.",
        "family",
        families(failures.v4, failures.v6),
    )
}

fn library(page: &mut Page<'_>, library: &LibraryCounters) -> fmt::Result {
    page.counter(
        "failed_kernel_calls",
        "Kernel calls of the library that failed.",
        library.failed_kernel_calls,
    )?;
    page.counter(
        "rejected_addresses",
        "Addresses that the library refused.",
        library.rejected_addresses,
    )?;
    page.counter(
        "panicked_callbacks",
        "Callbacks of the library that have panicked and are not called again.",
        library.panicked_callbacks,
    )?;
    let each = |field: fn(&MapUse) -> u64| {
        let maps = library.maps.iter();
        maps.map(move |map| (map.name, field(map)))
            .collect::<Vec<_>>()
    };
    page.gauges(
        "map_capacity",
        "Elements that the map can hold.",
        "map",
        each(|map| map.capacity),
    )?;
    page.gauges(
        "map_entries",
        "Elements of the map in use.",
        "map",
        each(|map| map.entries),
    )
}

/// What is no counter of the balancer's, but explains them.
fn host(
    page: &mut Page<'_>,
    attachments: &[Attachment],
    shared: &[(PathBuf, u32)],
    memory: u64,
) -> fmt::Result {
    page.gauge(
        "maps_memory_bytes",
        "Kernel memory that the maps take, as the kernel accounts it.",
        memory,
    )?;
    let series = attachments.iter().map(|attachment| {
        let labels = [
            ("interface", attachment.interface.clone()),
            ("mode", attachment.mode.to_string()),
        ];
        (labels, 1)
    });
    page.family(
        MetricType::Gauge,
        "interface_info",
        "An interface on which packets are balanced, and the XDP mode in force.",
        series,
    )?;
    let series = shared.iter().map(|(path, position)| {
        let labels = [
            ("path", path.display().to_string()),
            ("position", position.to_string()),
        ];
        (labels, 1)
    });
    page.family(
        MetricType::Gauge,
        "shared_entry_info",
        "An entry of a root program by which packets are balanced.",
        series,
    )?;
    page.gauges(
        "build_info",
        "The version of the crate.",
        "version",
        [(VERSION, 1)],
    )
}
