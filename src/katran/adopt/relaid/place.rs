//! How a set of this version's comes to count in the place of one of another layout; and what that one is to know if it does
//! not.

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

/// The set that counts until then.
pub(super) struct Former {
    pub(super) ledger: Ledger,
    /// What that tells of.
    pub(super) table: Table,
    /// Its flow tables, where they are not those of both.
    pub(super) flows: Option<FlowTables>,
    /// What packets see of it is what they see of the one that is to come, too.
    pub(super) has_state: bool,
    /// A change was cut off.
    pub(super) is_open: bool,
}

impl Former {
    /// Packets have met numbers of another set, in flow tables of both: whoever goes on with this one does not give them out
    /// as if they were new.
    fn meet(&mut self, other: &Table) -> Result<()> {
        let met = self.table.met_in(other);
        if met.is_empty() {
            return Ok(());
        }
        if self.is_open && !self.has_state {
            // That owner is to undo what packets see of it, for which it has to stay as it is.
            log::warn!(
                "numbers that packets have met may be given out again if this adoption fails"
            );
            return Ok(());
        }
        // It is, by now.
        self.ledger.undone(true);
        let written = self.ledger.meet(met);
        written.map_err(|error| kernel_error("write down numbers in", "the ledger", error))
    }
}

impl Katran {
    /// Ends a replacement that was cut off before: packets go by the set that counts, and the other one goes.
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
        // Only this one knows which entries are void: the next owner may go on with the set that counts.
        match former.has_state {
            true => Ok(()),
            false => self.maps.voids.remove_now(&self.kernel, None),
        }
    }

    /// What can fail, or takes its time, of what follows attachments, before packets are on this one.
    pub(super) fn be_ready(&mut self, shared: &Shared) -> Result<()> {
        if shared.state {
            return Ok(());
        }
        if self.wanted().needs_watching() {
            let reasons = self.reasons();
            match self.follow_for_all(&reasons) {
                // The owner before has let go: better one that looks on than none.
                Err(error @ Error::NoNextHop { .. }) => {
                    log::error!("packets are dropped until it answers: {error}")
                }
                followed => followed?,
            }
        }
        self.note_attached();
        self.maps.live.show_life(ticks(self.fixed.tick));
        Ok(())
    }

    /// Gives all attachments the programs of this one, and makes its set the one that counts.
    ///
    /// # Errors
    /// What refuses it; what was there works on.
    pub(super) fn take_the_place(
        &mut self,
        home: &Home,
        seat: &Seat,
        former: &mut Former,
    ) -> Result<()> {
        let Err((error, strays)) = self.switch_and_commit(home, seat) else {
            return Ok(());
        };
        // What packets may still meet stays pinned, by which the next owner knows it.
        if !strays {
            self.outlast(Vec::new());
            match self.give_back(home, former) {
                Ok(()) => home.unstage_next(),
                Err(error) => log::warn!(
                    "what packets have done in the meantime waits for the next owner: {error}"
                ),
            }
        }
        Err(error)
    }

    /// What packets have counted and remembered in maps of this one alone comes to the set whose place it has not taken.
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
            table.enter_all_of(from, active, Reader::Packets)?;
        }
        (flows.fallback).enter_all_of(&own.fallback, None, Reader::Packets)?;
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
