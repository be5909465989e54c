//! How a set of this version replaces one of another layout; and what the old one must know if it
//! does not.

use std::io;
use std::os::fd::AsFd;

use super::Shared;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Katran;
use crate::kernel::kernel_error;
use crate::ledger::Ledger;
use crate::maps::FlowTables;
use crate::maps::Reader;
use crate::pins::Home;
use crate::pins::Seat;
use crate::sys::ticks::ticks;
use crate::table::Table;

/// The set that is current until then.
pub(super) struct Former {
    pub(super) ledger: Ledger,
    /// Its records.
    pub(super) table: Table,
    /// Its flow tables, where they are not shared.
    pub(super) flows: Option<FlowTables>,
    /// Packets see the same of it as of the coming set.
    pub(super) has_state: bool,
    /// A change was cut off.
    pub(super) is_open: bool,
}

impl Former {
    /// Packets have met another set's numbers, in shared flow tables: this set's next owner must
    /// not give them out as new.
    fn meet(&mut self, other: &Table) -> Result<()> {
        let met = self.table.met_in(other);
        if met.is_empty() {
            return Ok(());
        }
        if self.is_open && !self.has_state {
            // That owner must undo what packets see of this set, so the set must stay as it is.
            log::warn!(
                "if this adoption fails, later reals may get numbers that packets still use"
            );
            return Ok(());
        }
        // It is undone by now.
        self.ledger.undone(true);
        let written = self.ledger.meet(met);
        written.map_err(|error| kernel_error("record numbers in", "the ledger", error))
    }
}

impl Katran {
    /// Ends a replacement that was cut off: packets use the current set, and the other one goes.
    pub(super) fn go_back_to(&mut self, home: &Home, former: &mut Former) -> Result<()> {
        let kept = Self::kept_beside(home)?;
        let set = home.set();
        let entrances = set.entrances()?;
        let entrance = entrances.first().ok_or_else(|| set.missing("program"))?;
        let switched = self.attachments.switch(entrance.main.as_fd());
        let _for_good = switched.map_err(|(error, _)| error)?;
        let switched = self.shared.switch(entrance.entry_set());
        let _for_good = switched.map_err(|(error, _)| error)?;
        if let (Some(checks), Some(program)) = (&mut self.healthchecks, set.probe()?) {
            let switched = checks.switch(program.as_fd());
            let _for_good = switched.map_err(|(error, _)| error)?;
        }
        if let Some(kept) = &kept {
            former.meet(&kept.table)?;
        }
        self.end_replacement_of(home, kept)?;
        // Only this one knows which entries are void; the next owner may continue with the current
        // set.
        match former.has_state {
            true => Ok(()),
            false => self.maps.voids.remove_now(&self.kernel, None),
        }
    }

    /// Does what can fail or takes time after attaching, before packets are on this one.
    pub(super) fn be_ready(&mut self, shared: &Shared) -> Result<()> {
        if shared.state {
            return Ok(());
        }
        if self.wanted().needs_watching() {
            let reasons = self.reasons();
            match self.follow_for_all(&reasons) {
                // The previous owner has let go: better an owner without a gateway than none.
                Err(error @ Error::NoNextHop { .. }) => {
                    log::error!("packets are dropped until the gateway answers: {error}")
                }
                followed => followed?,
            }
        }
        self.note_attached();
        self.maps.live.show_life(ticks(self.fixed.tick));
        Ok(())
    }

    /// Gives all attachments this one's programs, and makes its set the current one.
    ///
    /// # Errors
    /// What refuses it; the old set works on.
    pub(super) fn take_the_place(
        &mut self,
        home: &Home,
        seat: &Seat,
        former: &mut Former,
    ) -> Result<()> {
        let Err((error, strays)) = self.switch_and_commit(home, seat) else {
            return Ok(());
        };
        // Programs that packets may still meet stay pinned, so that the next owner knows them.
        if !strays {
            self.outlast(Vec::new());
            match self.give_back(home, former) {
                Ok(()) => home.unstage_next(),
                Err(error) => {
                    log::warn!(
                        "counts and flows since the replacement wait for the next owner: {error}"
                    )
                }
            }
        }
        Err(error)
    }

    /// Gives what packets have counted and remembered in this one's own maps to the set that it has
    /// not replaced.
    fn give_back(&self, home: &Home, former: &mut Former) -> Result<()> {
        former.meet(&self.table)?;
        if let Some(flows) = &former.flows {
            let entered = self.enter_into(flows);
            (self.kernel).check("enter flows into", "flow_tables", entered)?;
        }
        Self::carry_back(home)
    }

    fn enter_into(&self, flows: &FlowTables) -> io::Result<()> {
        let own = &self.maps.flows;
        for (cpu, table) in &flows.of_cpus {
            let from = own.of_cpus.iter().find(|(of, _)| of == cpu);
            let from = from.map_or(&own.fallback, |(_, table)| table);
            let active = Some(table.sets_in_use()?);
            table.enter_all_of(from, active, Reader::Packets { since: None })?;
        }
        (flows.fallback).enter_all_of(&own.fallback, None, Reader::Packets { since: None })?;
        Ok(())
    }

    fn switch_and_commit(
        &mut self,
        home: &Home,
        seat: &Seat,
    ) -> std::result::Result<(), (Error, bool)> {
        let commit = || home.commit_set(seat).map_err(|error| (error, false));
        let switch_checks = || match &mut self.healthchecks {
            Some(own) => own.switch_to_own_then(commit),
            None => commit(),
        };
        (self.attachments).switch_then(self.programs.main.as_fd(), || {
            (self.shared).switch_then(self.programs.entry_set(), switch_checks)
        })
    }
}
