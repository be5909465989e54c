//! After a replacement that was cut off: there are two sets, and packets may have gone by either. What the one that does not
//! count has counted and remembered comes to the other, and it goes.

use std::io;
use std::os::fd::AsFd;

use super::share::is_same;
use crate::config::Config;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Katran;
use crate::katran::adopt::inner_tables;
use crate::kernel::kernel_error;
use crate::ledger::Kept;
use crate::ledger::Ledger;
use crate::maps::Carrier;
use crate::maps::Counted;
use crate::maps::FALLBACK_FLOWS;
use crate::maps::FlowTable;
use crate::maps::FlowTables;
use crate::maps::Reader;
use crate::pins::PinnedSet;
use crate::sys::nested::MapArray;

impl Katran {
    /// Ends a replacement that the owner before has begun, in favour of the set that counts: all attachments have its
    /// programs.
    pub(in crate::katran) fn end_replacement(&mut self) -> Result<()> {
        let Some(other) = self.home.as_ref().map(|home| home.next_set()) else {
            return Ok(());
        };
        if !other.is_there() {
            return Ok(());
        }
        log::info!("a replacement of the balancer was cut off: what is left of it goes");
        if let Some(checks) = &mut self.healthchecks {
            let program = checks.program().try_clone_to_owned();
            let program = program.map_err(|error| kernel_error("open", "healthcheck", error))?;
            let switched = checks.switch(program.as_fd());
            let _for_good = switched.map_err(|(error, _)| error)?;
        }
        // Packets may still be in the other one's programs.
        self.outlast(Vec::new());
        let kept = kept_of(&other)?;
        if let Some(kept) = &kept {
            self.burn_numbers_of(&kept.table);
        }
        match self.carriers_from(&other) {
            Ok(carriers) => {
                self.carriers = carriers;
                self.carry_counters();
            }
            Err(error) => {
                log::warn!("what was counted in the meantime waits for the next owner: {error}");
                return Ok(());
            }
        }
        if let Some(kept) = kept {
            let flows = flows_of(&other, &kept.config);
            let entered = flows.and_then(|flows| self.enter_flows(&flows, Reader::Packets));
            if let Err(error) = entered {
                log::warn!("some flows of the meantime are not known: {error}");
            }
            self.void_entries_of(&kept.table);
        }
        if self.carriers.is_empty() {
            self.unstage_set();
        }
        Ok(())
    }

    /// What carries the counters of another set's maps that are not those of this one.
    fn carriers_from(&self, other: &PinnedSet) -> Result<Vec<Carrier>> {
        let failed = |error| kernel_error("load", "what carries counters", error);
        let mut carriers = Vec::new();
        for (name, to) in self.counting_maps() {
            let Some(counted) = Counted::of(name) else {
                continue;
            };
            let from = match name {
                "probe_counters" => other.probe_map(name),
                _ => other.map(name),
            };
            let from = match from {
                // It was not filled to the end, so no packet was in it.
                Err(Error::NotFound { .. }) => continue,
                from => from?,
            };
            if is_same(from.as_fd(), to).map_err(failed)? {
                continue;
            }
            match Carrier::new(counted, from.as_fd(), to) {
                Ok(carrier) => carriers.push(carrier),
                // No owner could ever carry it, and a whole balancer's memory would wait for one.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => log::warn!(
                    "what was counted in {name} in the meantime is lost: another version of the crate counts in \
                     another form"
                ),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(carriers)
    }
}

/// What the ledger of a set has kept; `None`: the set was not filled to the end, so no packet has met it.
fn kept_of(set: &PinnedSet) -> Result<Option<Kept>> {
    let ground = set.ground();
    let ground = ground.map_err(|error| kernel_error("open", "the ledger", error))?;
    let read = ground.and_then(|ground| Ledger::read(ground).ok());
    Ok(read.map(|(_, replayed)| replayed.kept))
}

/// The flow tables of a set.
fn flows_of(set: &PinnedSet, config: &Config) -> Result<FlowTables> {
    let failed = |error| kernel_error("open", "flow tables", error);
    let inner = inner_tables(set, config)?;
    let fallback = set.map("fallback_flows")?;
    let fallback = FlowTable::new(config.flow_table, FALLBACK_FLOWS, fallback);
    let outer = MapArray::new(set.map("flow_tables")?);
    Ok(FlowTables {
        of_cpus: inner.flows,
        fallback: fallback.map_err(failed)?,
        outer: outer.map_err(failed)?,
    })
}
