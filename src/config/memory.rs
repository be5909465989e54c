//! The memory of maps, estimated before loading from the rows of `map_table.rs`.

use std::fmt;

use super::Builder;
use super::Config;
use super::accounting::Takes;
use super::map_table::MAPS;
use super::map_table::Machine;
use super::map_table::MapRow;
use super::map_table::PROBE_MAPS;
use crate::error::Result;

/// Memory of one map, or of all maps of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapMemory {
    /// The map's name, as `bpftool map` shows it.
    pub name: &'static str,
    /// The elements it can have, over all maps of this name.
    pub entries: u64,
    /// Bytes right after loading.
    pub at_load: u64,
    /// Bytes when it is full.
    pub at_capacity: u64,
}

/// The memory that a balancer's maps will take, by map.
///
/// Its `Display` is a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    maps: Vec<MapMemory>,
}

/// # Totals and maps
impl MemoryEstimate {
    /// The maps, largest first, without those of features that are off.
    pub fn maps(&self) -> &[MapMemory] {
        &self.maps
    }

    /// Bytes of all maps right after loading.
    pub fn at_load(&self) -> u64 {
        self.maps.iter().map(|map| map.at_load).sum()
    }

    /// Bytes of all maps when everything is full.
    pub fn at_capacity(&self) -> u64 {
        self.maps.iter().map(|map| map.at_capacity).sum()
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: u64 = 1024;
        writeln!(
            f,
            "{:<16} {:>10} {:>14} {:>14}",
            "map", "entries", "at load, KiB", "when full, KiB"
        )?;
        for map in &self.maps {
            writeln!(
                f,
                "{:<16} {:>10} {:>14} {:>14}",
                map.name,
                map.entries,
                map.at_load.div_ceil(KIB),
                map.at_capacity.div_ceil(KIB)
            )?;
        }
        write!(
            f,
            "{:<16} {:>10} {:>14} {:>14}",
            "total",
            "",
            self.at_load().div_ceil(KIB),
            self.at_capacity().div_ceil(KIB)
        )
    }
}

/// # Memory
impl Builder {
    /// Estimates the memory of all maps, before anything is loaded.
    ///
    /// It includes the maps of health checks with
    /// [`healthcheck_interface`](Builder::healthcheck_interface); otherwise those are made only
    /// with the first mark, match or probe.
    ///
    /// The figures are kernel memory by the kernel's accounting. The process itself takes a
    /// fraction of that, and about 50 bytes for each server id and source route. Four cases take
    /// more or less:
    ///
    /// - With [`FlowTracking::Changed`](crate::FlowTracking::Changed) a VIP takes 8 bytes a slot
    ///   more (524 kB at 65,537 slots) from a change of its reals until its slots are settled.
    /// - While updates of reals follow each other without a pause, and for some ten seconds after,
    ///   there is room for up to 72 more rings (9 MiB at 65,537 slots) than `when full` says.
    /// - Rings are made eight at a time, and a sixteenth ahead: a slot takes 2.3 bytes with 512
    ///   VIPs, and at most 4 from 12 VIPs on, apart from such updates.
    /// - A server-id table that has just grown has half as much beside it, until the next change of
    ///   ids.
    ///
    /// # Errors
    /// As [`Builder::load`] for settings: [`Error::InvalidConfig`](crate::Error) and
    /// [`Error::Unsupported`](crate::Error).
    ///
    /// ```
    /// use katran::Katran;
    ///
    /// let builder = Katran::builder()
    ///     .gateway_mac("0a:00:00:00:00:fe".parse()?)
    ///     .flow_table_size(1_000_000);
    /// println!("{}", builder.memory_estimate()?);
    /// # Ok::<(), katran::Error>(())
    /// ```
    pub fn memory_estimate(&self) -> Result<MemoryEstimate> {
        Ok(estimate(
            &self.clone().validate()?,
            super::cpus::Topology::read()?.possible.len() as u64,
        ))
    }
}

/// The estimate for checked settings on a machine with so many possible CPUs.
pub(crate) fn estimate(config: &Config, cpus: u64) -> MemoryEstimate {
    let machine = &Machine {
        config,
        // The kernel has at most 8192.
        cpus: cpus as u32,
    };
    let probes: &[MapRow] = match config.healthcheck_interface {
        Some(_) => PROBE_MAPS,
        None => &[],
    };
    let mut maps: Vec<_> = MAPS
        .iter()
        .chain(probes)
        .filter(|row| row.counts(config))
        .map(|row| (row.takes)(machine).of(row.name))
        .collect();
    maps.sort_by_key(|map| std::cmp::Reverse(map.at_capacity));
    MemoryEstimate { maps }
}

impl Takes {
    fn of(self, name: &'static str) -> MapMemory {
        let Self {
            entries,
            at_load,
            at_capacity,
        } = self;
        MapMemory {
            name,
            entries,
            at_load,
            at_capacity,
        }
    }
}
