//! What a balancer shares with its replacement: maps that packets alone write, where their sizes
//! are the same. So flow tables and counters continue, and need memory only once.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::config::Config;
use crate::config::Features;
use crate::config::ForwardingCpu;
use crate::config::Machine;
use crate::config::estimate;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::healthcheck::Hops;
use crate::katran::Katran;
use crate::katran::load::Taken;
use crate::katran::load::assemble;
use crate::katran::load::available_or;
use crate::katran::load::flow_table;
use crate::katran::load::global_table;
use crate::katran::object::InnerTables;
use crate::katran::object::flow_sets;
use crate::kernel::kernel_error;
use crate::kernel::map_error;
use crate::maps::FlowTable;
use crate::maps::create_chunk;
use crate::skel::katran::types;
use crate::sys::map::Typed;
use crate::types::FlowTableKind;

/// What two balancers' settings let them share.
struct Common<'a> {
    before: &'a Config,
    after: &'a Config,
    /// The most sets of a flow table in use.
    active: u32,
}

impl Common<'_> {
    fn same<T: PartialEq>(&self, of: impl Fn(&Config) -> T) -> bool {
        of(self.before) == of(self.after)
    }

    fn has(&self, map: &str) -> bool {
        match map {
            "vip_counters" => self.same(|of| of.max_vips),
            "vip_details" => self.same(|of| (of.counts_in_detail(), of.max_vips)),
            "vip_reals" => self.same(|of| of.max_vip_reals),
            "real_counters" => self.same(|of| of.max_reals),
            "events" => self.same(|of| of.event_buffer),
            "flow_tables" => {
                self.same(|of| (of.flow_table, of.flows_per_cpu, of.placement.clone()))
            }
            "fallback_flows" => self.same(|of| of.flow_table),
            // Otherwise each program uses sets that the other's tables lack, for good or for a
            // time.
            "cpus" => {
                self.sets_fit()
                    && (!self.same(|of| of.flow_table) || self.same(|of| of.flows_per_cpu))
            }
            "global_flows" => self.same(|of| (of.global_flow_table_size, of.placement.clone())),
            "global_fallback" => true,
            _ => false,
        }
    }

    /// Whether what a CPU's record says about its table holds for the other table, too.
    fn sets_fit(&self) -> bool {
        let before = match self.before.flow_table {
            // They may come into use while packets move from one table to the other.
            FlowTableKind::SetAssociative => flow_sets(self.before),
            FlowTableKind::KernelLru => self.active,
        };
        match self.after.flow_table {
            FlowTableKind::SetAssociative => flow_sets(self.after) >= before,
            FlowTableKind::KernelLru => true,
        }
    }

    fn has_table(&self, place: &ForwardingCpu) -> bool {
        self.same(|of| (of.flow_table, of.flows_per_cpu)) && self.before.placement.contains(place)
    }

    fn has_global(&self, place: &ForwardingCpu) -> bool {
        self.same(|of| of.global_flow_table_size) && self.before.placement.contains(place)
    }

    /// Bytes of maps that both need at once.
    fn needed(&self, cpus: u32, ring_chunks: u64) -> u64 {
        let tables = self.after.placement.len() as u64;
        let (flows, global) = (
            self.after
                .placement
                .iter()
                .filter(|place| !self.has_table(place))
                .count() as u64,
            self.after
                .placement
                .iter()
                .filter(|place| !self.has_global(place))
                .count() as u64,
        );
        let estimate = estimate(self.after, cpus.into());
        let maps = estimate.maps().iter().map(|map| match map.name {
            "flows" => map.at_load / tables * flows,
            "global_flows" => map.at_load / tables * global,
            "ring_chunk" => map.at_load * ring_chunks.max(1),
            name if self.has(name) => 0,
            _ => map.at_load,
        });
        maps.sum()
    }
}

impl Katran {
    /// Loads a balancer of other settings that shares what it can with this one and is otherwise
    /// empty.
    ///
    /// # Errors
    /// As [`Builder::load`](crate::Builder::load).
    pub(super) fn load_beside(&self, config: &Config) -> Result<Self> {
        let active = self.per_cpu()?.iter().map(|of| of.sets.count).max();
        let common = Common {
            before: &self.config,
            after: config,
            active: active.unwrap_or(1),
        };
        let cpus = self.fixed.possible_cpus;
        let chunks = self.maps.rings.chunks().0 as u64;
        let needed = available_or(common.needed(cpus, chunks))?;
        let fixed = self.fixed.for_settings(&self.config, config)?;
        let placement = config.placement.iter();
        let flows = placement
            .clone()
            .map(|place| self.flow_table_of(&common, place));
        let global = match config.features.contains(Features::GLOBAL_FLOW_TABLE) {
            true => placement
                .map(|place| self.global_table_of(&common, place))
                .collect::<Result<_>>()?,
            false => Vec::new(),
        };
        let inner = InnerTables {
            first_chunk: create_chunk(config.ring_size)
                .map(Some)
                .map_err(|error| map_error("ring_chunk", needed, error))?,
            flows: flows.collect::<Result<_>>()?,
            global,
            tenure: Arc::clone(self.maps.live.tenure()),
        };
        let maps = self.maps.named().into_iter();
        let taken = Taken {
            maps: maps.filter(|(name, _)| common.has(name)).collect(),
            sets: Some(common.active),
        };
        let mut next = assemble(config.clone(), fixed, inner, needed, &taken)?;
        let machine = Machine { config, cpus };
        let hops = Hops {
            wanted: next.wanted(),
            follower: None,
        };
        let checks = match (&self.healthchecks, &config.healthcheck_interface) {
            (Some(checks), _) => {
                Some(checks.successor(&machine, &self.config, &next.kernel, &hops)?)
            }
            (None, Some(_)) => Some(HealthChecks::load(&machine)?),
            (None, None) => None,
        };
        next.put_healthchecks(checks);
        Ok(next)
    }

    fn flow_table_of(
        &self,
        common: &Common<'_>,
        place: &ForwardingCpu,
    ) -> Result<(u32, FlowTable)> {
        let mut own = self.maps.flows.of_cpus.iter();
        match own.find(|(cpu, _)| *cpu == place.cpu) {
            Some((cpu, table)) if common.has_table(place) => {
                let config = common.after;
                let map = table.as_fd().try_clone_to_owned();
                let table = map
                    .and_then(|map| FlowTable::new(config.flow_table, config.flows_per_cpu, map));
                Ok((*cpu, table.map_err(not_taken)?))
            }
            _ => flow_table(common.after, place),
        }
    }

    fn global_table_of(
        &self,
        common: &Common<'_>,
        place: &ForwardingCpu,
    ) -> Result<(u32, Typed<types::flow_key, u32>)> {
        let own = self.maps.features.global_flows.as_ref();
        let mut own = own.into_iter().flat_map(|maps| &maps.of_cpus);
        match own.find(|(cpu, _)| *cpu == place.cpu) {
            Some((cpu, table)) if common.has_global(place) => {
                let table = table.as_fd().try_clone_to_owned().and_then(Typed::new);
                Ok((*cpu, table.map_err(not_taken)?))
            }
            _ => global_table(common.after, place),
        }
    }
}

fn not_taken(error: std::io::Error) -> crate::error::Error {
    kernel_error("open", "a flow table", error)
}

pub(super) fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> std::io::Result<bool> {
    Ok(crate::sys::map::info(one)?.id == crate::sys::map::info(other)?.id)
}
