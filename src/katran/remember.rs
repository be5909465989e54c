//! What a pinned balancer records of its changes, in a ledger. Other balancers have none, and
//! record nothing.
//!
//! The phases of a change (`change.rs`) call this: the intended change is recorded before packets
//! may see any of it, and that it is made, or undone, afterwards. `docs/architecture.md` lists
//! where adoption finds each field of [`Katran`].

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

/// A change's effect on what the ledger keeps besides the table; asked for only if there is a
/// ledger.
pub(super) trait Also: FnOnce(&Katran) -> Result<Vec<Change>> {}

impl<F: FnOnce(&Katran) -> Result<Vec<Change>>> Also for F {}

/// No effect: the change is one of the table alone, or of something that the kernel keeps, or that
/// ends with the process.
pub(super) fn nothing_else(_: &Katran) -> Result<Vec<Change>> {
    Ok(Vec::new())
}

pub(super) fn only(change: Change) -> impl Also {
    move |_: &Katran| Ok(vec![change])
}

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
    kernel_error("record a change in", "the ledger", error)
}

impl Katran {
    /// Records changes from now on, in memory that outlives the process.
    ///
    /// # Errors
    /// [`Error::Kernel`] if there is no memory for the current state, or it cannot be published.
    pub(super) fn keep(&mut self, ground: Box<dyn Ground>) -> Result<()> {
        let view = self.view()?;
        let ledger = Ledger::create(ground, &view).map_err(not_written)?;
        self.ledger = Some(ledger);
        Ok(())
    }

    pub(super) fn go_on(&mut self, ledger: Ledger) {
        self.ledger = Some(ledger);
    }

    /// Takes over what the ledger has kept, except the settings, which the balancer was made with;
    /// returns what others hold. Counts the VIPs by kind, and settles no number that was given
    /// back.
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

    /// Records an intended change, if the ledger keeps any of it.
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

    /// The same for a change that cannot be refused.
    pub(super) fn intend_surely(&mut self, also: impl Also) {
        if let Err(error) = self.intend(None, also)
            && let Some(ledger) = &mut self.ledger
        {
            log::error!(
                "cannot record a change, which is lost if this process ends before the next one: \
                 {error}"
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

    /// The recorded change is made: packets see it, and the library's records match.
    pub(super) fn note_done(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.done();
        }
    }

    /// The change is undone; `met`: packets may have met its new reals.
    pub(super) fn note_undone(&mut self, met: bool) {
        if let Some(ledger) = &mut self.ledger {
            ledger.undone(met);
        }
    }

    /// Joins the following changes into one, of which the next owner leaves all or nothing, until
    /// [`end_many`](Self::end_many). Do not drop the returned value before that.
    pub(super) fn begin_many(&mut self) -> Result<Option<Steps>> {
        let Some(mut ledger) = self.ledger.take() else {
            return Ok(None);
        };
        let begun = ledger.begin(|| self.view().map_err(io::Error::other));
        self.ledger = Some(ledger);
        begun.map(Some).map_err(not_written)
    }

    /// One of the changes was refused: the following ones undo the others, and the ledger cannot
    /// refuse them.
    pub(super) fn note_way_back(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.go_back();
        }
    }

    pub(super) fn end_many(&mut self) {
        if let Some(mut ledger) = self.ledger.take() {
            ledger.end(|| self.view().map_err(io::Error::other));
            self.ledger = Some(ledger);
        }
    }

    /// The current state of all that the ledger keeps.
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

    /// Restores it on a machine with this tick and this number of possible CPUs.
    ///
    /// # Errors
    /// What differs: the maps are another machine's, or another version made them.
    pub(super) fn restored(
        drawn: &Drawn,
        config: &Config,
        tick: Duration,
        possible_cpus: u32,
    ) -> std::result::Result<Self, &'static str> {
        let hasher = FlowHasher::new(config.max_vips.into(), ring_size(config)?);
        if (drawn.tick, drawn.possible_cpus) != (tick.as_nanos() as u64, possible_cpus) {
            return Err("the kernel's tick or the possible CPUs differ");
        }
        let keys = "the number of hash keys differs";
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
    RingSize::try_from(config.ring_size).map_err(|_| "the rings have an impossible size")
}

#[cfg(test)]
pub(super) mod tests;
