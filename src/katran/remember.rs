//! What a balancer that is to outlive its process writes down of its changes, in a ledger; one that is not has none, and
//! writes nothing.
//!
//! The phases of a change (`change.rs`) call this: what it will be is written before anything that packets may see, and
//! that it is made, or undone, after. `docs/architecture.md` lists where each field of [`Katran`] is found again.

use std::io;
use std::time::Duration;

use super::Katran;
use super::object::Fixed;
use crate::config::Config;
use crate::document::ProbeMatchState;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::ledger::Change;
use crate::ledger::Drawn;
use crate::ledger::Ground;
use crate::ledger::Intent;
use crate::ledger::Kept;
use crate::ledger::Ledger;
use crate::ledger::Small;
use crate::ledger::Steps;
use crate::ledger::View;
use crate::maps::FlowHashKeys;
use crate::maps::ServerIdKeys;
use crate::maps::VipHash;
use crate::maps::VipKinds;
use crate::ring::FlowHasher;
use crate::ring::RingSize;
use crate::table::Paper;

/// What a change makes of what the ledger keeps besides the table; asked for only if there is a ledger.
pub(super) trait Also: FnOnce(&Katran) -> Result<Vec<Change>> {}

impl<F: FnOnce(&Katran) -> Result<Vec<Change>>> Also for F {}

/// Nothing: the change is one of the table alone, or of something that is found again in the kernel, or ends with the
/// process.
pub(super) fn nothing_else(_: &Katran) -> Result<Vec<Change>> {
    Ok(Vec::new())
}

/// One thing.
pub(super) fn only(change: Change) -> impl Also {
    move |_: &Katran| Ok(vec![change])
}

/// Other settings.
pub(super) fn settings(config: &Config) -> impl Also {
    move |_: &Katran| Ok(vec![Change::Settings(written(config)?)])
}

fn written(config: &Config) -> Result<Vec<u8>> {
    config.stored().map_err(|reason| Error::InvalidConfig {
        setting: "balancer",
        value: "(its settings)".to_owned(),
        reason,
    })
}

fn not_written(error: io::Error) -> Error {
    kernel_error("write down a change in", "the ledger", error)
}

impl Katran {
    /// Has changes written down from now on, in memory that outlives the process.
    ///
    /// # Errors
    /// [`Error::Kernel`] if there is no memory for what there is now, or it cannot be published.
    pub(super) fn keep(&mut self, ground: Box<dyn Ground>) -> Result<()> {
        let view = self.view()?;
        let ledger = Ledger::create(ground, &view).map_err(not_written)?;
        self.ledger = Some(ledger);
        Ok(())
    }

    /// Goes on with the ledger of the owner before.
    pub(super) fn go_on(&mut self, ledger: Ledger) {
        self.ledger = Some(ledger);
    }

    /// Takes over what the ledger has kept, but for the settings, which it was made with; returns what others hold.
    /// The VIPs are counted by kind, and no number that was given back is settled.
    pub(super) fn take_kept(&mut self, kept: Kept) -> Small {
        self.table = kept.table;
        self.server_ids = kept.server_ids;
        self.invalid_ids = kept.invalid_ids;
        self.source_routes = kept.source_routes;
        self.decap = kept.decap;
        self.kinds = VipKinds::of(self.table.vips().map(|(vip, _)| vip));
        let moment = self.maps.rings.retire(None);
        self.given_back.push_back((moment, self.table.given_back()));
        kept.small
    }

    /// Writes down what a change will be, if the ledger keeps any of it.
    pub(super) fn intend(&mut self, paper: Option<&Paper>, also: impl Also) -> Result<()> {
        let Some(mut ledger) = self.ledger.take() else {
            return Ok(());
        };
        let mut intended = self.write_intent(&mut ledger, paper, also);
        if intended.is_err() && ledger.is_going_back() {
            ledger.fall_behind();
            intended = Ok(());
        }
        self.ledger = Some(ledger);
        intended
    }

    /// The same for a change that is made in any case.
    pub(super) fn intend_surely(&mut self, also: impl Also) {
        if let Err(error) = self.intend(None, also)
            && let Some(ledger) = &mut self.ledger
        {
            log::error!(
                "if this process ends before its next change, this one is forgotten: {error}"
            );
            ledger.fall_behind();
        }
    }

    fn write_intent(
        &self,
        ledger: &mut Ledger,
        paper: Option<&Paper>,
        also: impl Also,
    ) -> Result<()> {
        let intent = Intent {
            edit: paper.map(Paper::stored),
            changes: also(self)?,
        };
        if intent == Intent::default() {
            return Ok(());
        }
        let intended = ledger.intend(intent, || self.view().map_err(io::Error::other));
        intended.map_err(not_written)
    }

    /// The change that was written down is made: packets see it, and the library's records say the same.
    pub(super) fn note_done(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.done();
        }
    }

    /// Nothing is left of it; `met`: packets may have met its new reals.
    pub(super) fn note_undone(&mut self, met: bool) {
        if let Some(ledger) = &mut self.ledger {
            ledger.undone(met);
        }
    }

    /// The changes from now on are one, of which the next owner leaves no part; until
    /// [`end_many`](Self::end_many), before which what is returned must not be dropped.
    pub(super) fn begin_many(&mut self) -> Result<Option<Steps>> {
        let Some(mut ledger) = self.ledger.take() else {
            return Ok(None);
        };
        let begun = ledger.begin(|| self.view().map_err(io::Error::other));
        self.ledger = Some(ledger);
        begun.map(Some).map_err(not_written)
    }

    /// One of them was refused: those from now on undo the others, and cannot be refused by the ledger.
    pub(super) fn note_way_back(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.go_back();
        }
    }

    /// They are made, or undone.
    pub(super) fn end_many(&mut self) {
        if let Some(mut ledger) = self.ledger.take() {
            ledger.end(|| self.view().map_err(io::Error::other));
            self.ledger = Some(ledger);
        }
    }

    /// All that the ledger keeps, as it is.
    fn view(&self) -> Result<View<'_>> {
        Ok(View {
            settings: written(&self.config)?,
            drawn: self.fixed.drawn(),
            table: &self.table,
            server_ids: &self.server_ids,
            invalid_ids: &self.invalid_ids,
            source_routes: &self.source_routes,
            decap: &self.decap,
            small: self.small(),
        })
    }

    fn small(&self) -> Small {
        let probes = self.probes();
        let matches = self.probe_matches().into_iter();
        let matches = matches.map(|ProbeMatchState { by, real, .. }| (by, real));
        Small {
            marks: probes.marks().into_iter().collect(),
            matches: matches.collect(),
            probes: probes.list().into_iter().collect(),
            watched: self.stats().watched_vip(),
        }
    }
}

impl Fixed {
    /// What a later process cannot find out.
    fn drawn(&self) -> Drawn {
        Drawn {
            flow_keys: self.flow_keys.keys().to_vec(),
            vip_keys: self.vip_hash.keys().to_vec(),
            server_id_keys: [self.server_id_keys.key, self.server_id_keys.start],
            hash_seeds: self.hasher.seeds(),
            // A tick is milliseconds.
            tick: self.tick.as_nanos() as u64,
            possible_cpus: self.possible_cpus,
        }
    }

    /// The same again, on a machine with this tick and so many CPUs that there can be.
    ///
    /// # Errors
    /// What is different: the maps are those of another machine, or another version has made them.
    pub(super) fn restored(
        drawn: &Drawn,
        config: &Config,
        tick: Duration,
        possible_cpus: u32,
    ) -> std::result::Result<Self, &'static str> {
        let hasher = FlowHasher::new(config.max_vips.into(), ring_size(config)?);
        if (drawn.tick, drawn.possible_cpus) != (tick.as_nanos() as u64, possible_cpus) {
            return Err("the kernel's tick or the CPUs that there can be are others");
        }
        let keys = "keys of hashes are of another number";
        let [key, start] = drawn.server_id_keys;
        Ok(Self {
            hasher: hasher.with_seeds(drawn.hash_seeds),
            flow_keys: FlowHashKeys::of(&drawn.flow_keys).ok_or(keys)?,
            vip_hash: VipHash::of(&drawn.vip_keys, config.max_vips.into()).ok_or(keys)?,
            server_id_keys: ServerIdKeys { key, start },
            tick,
            possible_cpus,
        })
    }
}

fn ring_size(config: &Config) -> std::result::Result<RingSize, &'static str> {
    RingSize::try_from(config.ring_size).map_err(|_| "the rings have a size that there is not")
}

#[cfg(test)]
pub(super) mod tests;
