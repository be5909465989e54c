//! Counters: kept per CPU by the program, summed when read. Each accessor returns a snapshot;
//! rates are the reader's affair.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::Katran;
use crate::Error;
use crate::Result;
use crate::Vip;
use crate::config::FALLBACK_FLOWS;
use crate::maps::RINGS_PER_CHUNK;
use crate::maps::max_chunks;
use crate::skel::katran::types;
use crate::skel::katran::types::drop_reason;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes. Of frames for [`Totals`], Ethernet header included; for VIPs and reals the length
    /// field of the IP header: the total length of IPv4, the payload length of IPv6.
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
    /// Sent out of the interface: encapsulated, or an ICMP message of the balancer's own.
    pub tx: Count,
    /// Dropped; [`DropReasons`] says why.
    pub drop: Count,
    /// Passed to the host's stack.
    pub pass: Count,
}

/// What the flow table did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FlowTableCounters {
    /// Packets of any VIP.
    pub packets: u64,
    /// Packets whose flow was new: the ring chose the real.
    pub misses: u64,
    /// TCP packets of new flows that open a connection.
    pub miss_syn: u64,
    /// TCP packets of new flows in the middle of a connection.
    pub miss_non_syn: u64,
    /// Packets on a CPU that has no flow table and used the small shared one.
    pub fallback: u64,
}

/// ICMP messages, sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct IcmpCounters {
    /// Fragmentation-needed messages sent for IPv4 frames above `max_frame`.
    pub too_big_v4: u64,
    /// Packet-too-big messages sent for IPv6 frames above `max_frame`.
    pub too_big_v6: u64,
    /// Fragmentation-needed messages received, for any destination.
    pub ptb_v4: u64,
    /// Those among them that announce an MTU below 1280 bytes.
    pub ptb_v4_small: u64,
    /// Packet-too-big messages received, for any destination.
    pub ptb_v6: u64,
    /// Those among them that announce an MTU below 1280 bytes.
    pub ptb_v6_small: u64,
    /// Echo requests over IPv4 answered.
    pub echo_v4: u64,
    /// Echo requests over IPv6 answered.
    pub echo_v6: u64,
}

/// Packets that the ring had no real for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RingDrops {
    /// The slot names a real out of range: somebody else wrote to the map.
    pub unknown_real: u64,
    /// The VIP has no real that takes new flows.
    pub empty: u64,
}

/// Packets that could not be encapsulated for want of headroom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct EncapFailures {
    /// For an IPv4 real.
    pub v4: u64,
    /// For an IPv6 real.
    pub v6: u64,
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DropReason {
    /// Shorter than an Ethernet header; the only drop that [`Totals`] leaves out.
    FrameTruncated,
    /// Shorter than an IPv4 header.
    Ipv4Truncated,
    /// IPv4 with options.
    Ipv4Options,
    /// A fragment of an IPv4 packet.
    Ipv4Fragment,
    /// Shorter than an IPv6 header.
    Ipv6Truncated,
    /// A fragment of an IPv6 packet.
    Ipv6Fragment,
    /// Shorter than an ICMP header.
    IcmpTruncated,
    /// An ICMP error that quotes too little to find the flow.
    QuoteTruncated,
    /// An ICMP error that quotes an IPv4 header with options.
    QuoteOptions,
    /// Shorter than its TCP or UDP header.
    TransportTruncated,
    /// Above `max_frame`, with ICMP_TOO_BIG off.
    TooBig,
    /// No real takes new flows of the VIP.
    RingEmpty,
    /// The ring names a real out of range.
    RingUnknownReal,
    /// No headroom for an outer IPv4 header.
    EncapV4,
    /// No headroom for an outer IPv6 header.
    EncapV6,
    /// No room for an ICMP message of the balancer's own.
    ReplyFailed,
}

impl DropReason {
    /// All reasons, in the order of the walk.
    pub const ALL: [Self; drop_reason::DROP_REASONS.0 as usize - 1] = [
        Self::FrameTruncated,
        Self::Ipv4Truncated,
        Self::Ipv4Options,
        Self::Ipv4Fragment,
        Self::Ipv6Truncated,
        Self::Ipv6Fragment,
        Self::IcmpTruncated,
        Self::QuoteTruncated,
        Self::QuoteOptions,
        Self::TransportTruncated,
        Self::TooBig,
        Self::RingEmpty,
        Self::RingUnknownReal,
        Self::EncapV4,
        Self::EncapV6,
        Self::ReplyFailed,
    ];

    /// The program's number for it.
    const fn number(self) -> usize {
        let reason = match self {
            Self::FrameTruncated => drop_reason::DROP_FRAME_TRUNCATED,
            Self::Ipv4Truncated => drop_reason::DROP_IPV4_TRUNCATED,
            Self::Ipv4Options => drop_reason::DROP_IPV4_OPTIONS,
            Self::Ipv4Fragment => drop_reason::DROP_IPV4_FRAGMENT,
            Self::Ipv6Truncated => drop_reason::DROP_IPV6_TRUNCATED,
            Self::Ipv6Fragment => drop_reason::DROP_IPV6_FRAGMENT,
            Self::IcmpTruncated => drop_reason::DROP_ICMP_TRUNCATED,
            Self::QuoteTruncated => drop_reason::DROP_QUOTE_TRUNCATED,
            Self::QuoteOptions => drop_reason::DROP_QUOTE_OPTIONS,
            Self::TransportTruncated => drop_reason::DROP_TRANSPORT_TRUNCATED,
            Self::TooBig => drop_reason::DROP_TOO_BIG,
            Self::RingEmpty => drop_reason::DROP_RING_EMPTY,
            Self::RingUnknownReal => drop_reason::DROP_RING_UNKNOWN_REAL,
            Self::EncapV4 => drop_reason::DROP_ENCAP_V4,
            Self::EncapV6 => drop_reason::DROP_ENCAP_V6,
            Self::ReplyFailed => drop_reason::DROP_REPLY_FAILED,
        };
        reason.0 as usize
    }

    pub(super) fn from_number(number: usize) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.number() == number)
    }

    /// Its name in counters and reports, such as `ipv4_fragment`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FrameTruncated => "frame_truncated",
            Self::Ipv4Truncated => "ipv4_truncated",
            Self::Ipv4Options => "ipv4_options",
            Self::Ipv4Fragment => "ipv4_fragment",
            Self::Ipv6Truncated => "ipv6_truncated",
            Self::Ipv6Fragment => "ipv6_fragment",
            Self::IcmpTruncated => "icmp_truncated",
            Self::QuoteTruncated => "quote_truncated",
            Self::QuoteOptions => "quote_options",
            Self::TransportTruncated => "transport_truncated",
            Self::TooBig => "too_big",
            Self::RingEmpty => "ring_empty",
            Self::RingUnknownReal => "ring_unknown_real",
            Self::EncapV4 => "encap_v4",
            Self::EncapV6 => "encap_v6",
            Self::ReplyFailed => "reply_failed",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Dropped frames by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct DropReasons {
    frames: BTreeMap<DropReason, u64>,
}

impl DropReasons {
    /// Frames dropped for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.frames.get(&reason).copied().unwrap_or(0)
    }

    /// Every reason with its frames, those without any included.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        self.frames
            .iter()
            .map(|(reason, frames)| (*reason, *frames))
    }
}

/// One VIP's traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct VipCounters {
    /// Packets sent to a real, or delivered to this host.
    pub forwarded: Count,
}

/// One real's traffic, of all VIPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RealCounters {
    /// Packets sent to the real, or delivered to this host.
    pub forwarded: Count,
    /// New flows of the watched VIP that went to this real since
    /// [`Katran::watch_misses`]; 0 while none is watched.
    pub misses: u64,
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
    /// New flows that it counted in the last window of one second in which there was one.
    pub new_flows: u64,
    /// Whether that was more than `flood_threshold`, so that new flows were not remembered.
    pub under_flood: bool,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MapUse {
    /// The map's name, as in [`MemoryEstimate`](crate::MemoryEstimate).
    pub name: &'static str,
    /// Elements it can hold.
    pub capacity: u64,
    /// Elements in use.
    pub entries: u64,
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
    /// Capacity and use of every map that holds entries, flow tables of all CPUs together.
    pub maps: Vec<MapUse>,
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
    /// Packets that could not be encapsulated.
    pub encap_fail: EncapFailures,
    /// Dropped frames by reason.
    pub drop_reasons: DropReasons,
    /// Every VIP's traffic, under its text form.
    pub vips: BTreeMap<String, VipCounters>,
    /// Every real's traffic.
    pub reals: BTreeMap<IpAddr, RealCounters>,
    /// Every possible CPU.
    pub cpus: Vec<CpuCounters>,
    /// The library's own.
    pub library: LibraryCounters,
}

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
    /// flows this takes seconds.
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
        for table in &self.maps.flow_tables {
            let count = table.map.count(table.entries);
            flows += u64::from(self.kernel.check("count the entries of", "flows", count)?);
        }
        let fallback = self.kernel.check(
            "count the entries of",
            "fallback_flows",
            self.maps.fallback_flows.count(FALLBACK_FLOWS),
        )?;
        let prefixes = self.table.vips().filter(|(vip, _)| vip.is_prefix()).count() as u32;
        let exact = self.table.vips().len() as u32 - prefixes;
        let (rings, _) = self.maps.rings.occupancy();
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
                        * self.maps.flow_tables.len() as u64,
                    entries: flows,
                },
                use_of("fallback_flows", FALLBACK_FLOWS, fallback),
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
            maps.vips.as_fd(),
            maps.prefix_vips.as_fd(),
            maps.vip_cells.as_fd(),
            maps.real_cells.as_fd(),
            maps.rings.outer().as_fd(),
            maps.live.as_fd(),
            maps.counters.as_fd(),
            maps.vip_counters.as_fd(),
            maps.real_counters.as_fd(),
            maps.explanations.as_fd(),
            maps.flow_tables_outer.as_fd(),
            maps.fallback_flows.as_fd(),
        ];
        all.extend(maps.rings.chunks().map(AsFd::as_fd));
        all.extend(maps.flow_tables.iter().map(|table| table.map.as_fd()));
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

    fn per_cpu(&self) -> Result<Vec<types::counters>> {
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
    fn every_drop_reason_has_a_number_of_its_own() {
        for (number, reason) in (1..).zip(DropReason::ALL) {
            assert_eq!(DropReason::from_number(number), Some(reason));
        }
        assert_eq!(DropReason::from_number(0), None);
        assert_eq!(DropReason::from_number(DropReason::ALL.len() + 1), None);
    }

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
