//! Replacement: load-time settings change by a second set of programs and maps, which is filled
//! before any packet meets it. Then one update each gives every attachment the new program, and the
//! old set goes when no packet is in it.
//!
//! Until then the second set is a balancer in its own right, so any failure ends with it. A pinned
//! one is pinned whole beside the first, with its own ledger, and one rename makes it current:
//! whenever the process ends, the next owner finds the state before the call or after it. A program
//! in the kernel carries over what packets count on either side meanwhile (`maps/carry.rs`).

mod cut_off;
mod fill;
mod hand_back;
mod met;
mod share;

use std::mem;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Katran;
use super::change::News;
use super::change::RealNews;
use super::ground::Reason;
use crate::config::BalancerState;
use crate::config::Builder;
use crate::config::Config;
use crate::document::Changes;
use crate::document::State;
use crate::document::settings_changed;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::kernel::kernel_error;
use crate::maps::Carrier;
use crate::maps::Counted;
use crate::maps::Reader;
use crate::maps::no_carrier;
use crate::pins::Home;
use crate::pins::Seat;
use crate::table::Limits;
use crate::types::RealNumber;

/// # Dry run
impl Katran {
    /// The settings of a replacement for `wanted`; `None`: none is needed.
    ///
    /// # Errors
    /// As [`Builder::load`](crate::Builder::load) for settings.
    pub(super) fn replacement(&self, wanted: &State) -> Result<Option<Config>> {
        let present = BalancerState::of(&self.config);
        let reloaded = wanted.balancer.as_ref();
        let reloaded = reloaded.and_then(|wanted| present.reloaded(wanted));
        let config = reloaded.map(|state| state.builder().validate());
        config.transpose()
    }

    /// The changes that [`apply`](Self::apply) would make for `wanted`, without making them.
    ///
    /// # Errors
    /// Those of [`apply`](Self::apply) that are known before the first change: contradictions,
    /// values out of range, and limits. It does not check memory, pins or the kernel.
    pub fn changes_to(&self, wanted: &State) -> Result<Changes> {
        let before = self.state();
        let Some(config) = self.replacement(wanted)? else {
            let planned = self.table.way(&before, wanted, self.limits())?;
            self.rehearse_names(wanted, &planned.steps)?;
            self.rehearse_probes(wanted, &planned.steps)?;
            return Ok(planned.changes);
        };
        let reloaded = State {
            balancer: Some(BalancerState::of(&config)),
            ..before.clone()
        };
        let limits = Limits {
            max_vips: config.max_vips.into(),
            max_reals: config.max_reals.into(),
        };
        let table = fill::table_for(self, &config)?;
        let mut changes = table.way(&reloaded, wanted, limits)?.changes;
        changes.settings_changed = settings_changed(&before, wanted);
        Ok(changes)
    }

    /// Makes the balancer equal to `wanted` by replacing it with one that has other settings.
    ///
    /// # Errors
    /// As [`apply`](Self::apply). Nothing has changed then.
    pub(super) fn replace(&mut self, config: &Config, wanted: &State) -> Result<Changes> {
        Builder::check_place(config, self.pinned_in())?;
        let before = self.state();
        let reals = self.real_numbers();
        // So that no number waits for packets.
        self.settle()?;
        // Only this balancer knows what it must still remove.
        self.maps.voids.remove_gone(&self.kernel)?;
        let table = fill::table_for(self, config)?;
        if self.events().is_running() && config.event_buffer != self.config.event_buffer {
            return Err(Error::InUse {
                what: "the buffer of events".to_owned(),
                by: "a monitor: stop it first",
            });
        }
        let reloaded = State {
            balancer: Some(BalancerState::of(config)),
            ..before.clone()
        };
        let limits = Limits {
            max_vips: config.max_vips.into(),
            max_reals: config.max_reals.into(),
        };
        let _ = self.note(table.way(&reloaded, wanted, limits))?;

        let mut next = self.load_beside(config)?;
        next.check_clock()?;
        // Both may share the flow tables.
        let held = next.maps.voids.hold();
        let hands_back = self.hands_flows_to(&next);
        if hands_back {
            next.maps.vip_cells.begin_handing_back();
        }
        let copied_since = next.ticks_now()?;
        next.fill_from(self, table)?;
        next.maps.vip_cells.all_were_set();
        let mut changes = next.apply_in_place(wanted)?;
        if hands_back {
            next.programs.hand_back_to(self.programs.main.as_fd())?;
        }
        changes.settings_changed = settings_changed(&before, wanted);
        let carriers = self.carriers_to(&next)?;
        let seat = next.stage_beside(self)?;
        let old = self.switch_to_next(next, seat)?;
        self.let_go_of(old, carriers, copied_since);
        // Void entries are removed once no more come from the earlier tables.
        drop(held);
        self.tell_of(&reals);
        Ok(changes)
    }

    /// Carries counters over to maps that are not shared.
    fn carriers_to(&self, next: &Self) -> Result<Vec<Carrier>> {
        let mut carriers = Vec::new();
        for (name, from) in self.counting_maps() {
            let mut to = next.counting_maps();
            if let Some((_, to)) = to.find(|(of, _)| *of == name) {
                carriers.extend(Carrier::between(name, from, to).map_err(no_carrier)?);
            }
        }
        Ok(carriers)
    }

    fn counting_maps(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let of_probes = self.healthchecks.iter().flat_map(HealthChecks::maps);
        let all = self.maps.named().into_iter().chain(of_probes);
        all.filter(|(name, _)| Counted::of(name).is_some())
    }

    /// Pins this one beside another one's pins, if that is pinned, with a ledger.
    fn stage_beside(&mut self, before: &Self) -> Result<Option<Seat>> {
        let home = before.home.as_ref();
        home.map(|home| self.stage_in(home)).transpose()
    }

    /// Pins this one as the next set of a directory, with a ledger.
    pub(super) fn stage_in(&mut self, home: &Home) -> Result<Seat> {
        home.stage_next(&self.content())?;
        let ground = home.next_set().movable_ground();
        let ground = ground.map_err(|error| kernel_error("make", "the ledger", error));
        let kept = ground.and_then(|(ground, seat)| self.keep(ground).map(|()| seat));
        kept.inspect_err(|_| home.unstage_next())
    }

    /// Removes the pins of a set that is not, or is no longer, the balancer's.
    pub(super) fn unstage_set(&self) {
        if let Some(home) = &self.home {
            home.unstage_next();
        }
    }

    /// Does what can fail after attaching, before packets are on this one.
    fn be_ready_for(&mut self, before: &Self) -> Result<()> {
        let reasons = before.reasons();
        if self.config.next_hops != before.config.next_hops && self.wanted().needs_watching() {
            self.follow_for_all(&reasons)?;
        }
        let mains = before.attachments.places();
        let is_there = reasons
            .iter()
            .any(|held| !matches!(held.reason, Reason::Embedder));
        let moves = match (&before.healthchecks, &self.healthchecks) {
            (Some(before), Some(_)) => !before.stays_in_place(&self.config),
            (None, Some(_)) => true,
            _ => false,
        };
        match &mut self.healthchecks {
            Some(checks) if moves && is_there => checks.attach(&mains),
            _ => Ok(()),
        }
    }

    /// Switches packets to another balancer, everywhere or nowhere, and becomes that one. Returns
    /// the rest of this one.
    fn switch_to_next(&mut self, mut next: Self, seat: Option<Seat>) -> Result<Self> {
        if let Some(keeper) = &self.keeper {
            keeper.also(&next.maps.live);
        }
        // What reports on attachments knows the earlier programs.
        self.following.take();
        let ready = next.be_ready_for(self);
        let met = ready.is_ok();
        let switched = match ready {
            Ok(()) => self.switch_all(&next, seat.as_ref()),
            Err(error) => Err((error, false)),
        };
        let Err((error, strays)) = switched else {
            return Ok(self.become_next(next));
        };
        // The new health-check program must not stay in place of the current balancer's.
        if let Some(checks) = &mut next.healthchecks {
            checks.detach();
        }
        self.outlive(next, met, strays);
        self.note_attached();
        Err(error)
    }

    /// Gives all attachments another balancer's programs, and makes that one the pinned one;
    /// otherwise returns the failure, and whether packets still meet its programs somewhere.
    fn switch_all(
        &mut self,
        next: &Self,
        seat: Option<&Seat>,
    ) -> std::result::Result<(), (Error, bool)> {
        let commit = || match (&self.home, seat) {
            (Some(home), Some(seat)) => home.commit_set(seat).map_err(|error| (error, false)),
            _ => Ok(()),
        };
        let switch_checks = || match (&mut self.healthchecks, &next.healthchecks) {
            (Some(own), Some(next_checks)) if own.stays_in_place(&next.config) => {
                own.switch_then(next_checks.program(), commit)
            }
            _ => commit(),
        };
        (self.attachments).switch_then(next.programs.main.as_fd(), || {
            (self.shared).switch_then(next.programs.entry_set(), switch_checks)
        })
    }

    /// Packets are on the other balancer: moves what belongs to the handle to it, too.
    fn become_next(&mut self, next: Self) -> Self {
        let mut old = mem::replace(self, next);
        self.attachments = mem::take(&mut old.attachments);
        self.shared = mem::take(&mut old.shared);
        self.lost = mem::take(&mut old.lost);
        self.callbacks = mem::take(&mut old.callbacks);
        self.keeper = old.keeper.take();
        self.home = old.home.take();
        self.replaced = old.replaced.take();
        mem::swap(&mut self.recent, &mut old.recent);
        self.stranded = mem::take(&mut old.stranded);
        self.carriers = mem::take(&mut old.carriers);
        mem::swap(&mut self.kernel, &mut old.kernel);
        mem::swap(&mut self.rejected_addresses, &mut old.rejected_addresses);
        self.events_switch = Arc::clone(&old.events_switch);
        self.events_switch.move_to(&self.maps.live);
        let has_settings = |of: &Config| (of.max_frame, of.encapsulation);
        if has_settings(&self.config) == has_settings(&old.config) {
            mem::swap(&mut self.links, &mut old.links);
            self.links.move_to(&self.maps.live);
            let of_v6 = |katran: &Self| {
                let reals = katran.table.reals();
                reals.filter(|(address, _)| address.is_ipv6()).count()
            };
            let (come, gone) = (of_v6(self), of_v6(&old));
            self.links.count_reals(come, gone);
        }
        let embedder = old.following.embedder;
        match self.config.next_hops == old.config.next_hops {
            true => {
                self.following = mem::take(&mut old.following);
                self.following.start_again();
            }
            false => self.following.embedder = embedder,
        }
        let mains = self.attachments.places();
        match (&mut self.healthchecks, &mut old.healthchecks) {
            (Some(own), Some(before)) if before.stays_in_place(&self.config) => {
                own.succeed(before, &mains);
            }
            (_, Some(before)) => before.detach(),
            _ => {}
        }
        self.note_attached();
        old
    }

    /// Frees the rest of the old one when no packet is in it, and keeps what it has counted and
    /// remembered. `copied_since`: the tick at which its flows were first copied, if they were.
    fn let_go_of(&mut self, mut old: Self, carriers: Vec<Carrier>, copied_since: u32) {
        let lost =
            |error| log::warn!("some flows are lost, and their connections may break: {error}");
        let hands_back = self.maps.vip_cells.hands_back();
        if hands_back {
            // Attached programs no longer lead packets to the old one; new entries there come only
            // from packets that are handed back.
            self.outlast(Vec::new());
            self.catch_up(Some(&old.maps.flows)).unwrap_or_else(lost);
        }
        self.carriers.extend(carriers);
        let mut gone = mem::take(&mut self.stranded);
        gone.extend(self.replaced.take());
        match old.handed_out.load(Ordering::Relaxed) {
            true => {
                old.programs.lives_by = Some(Arc::clone(&old.maps.live));
                self.replaced = Some(old.programs);
            }
            false => gone.push(old.programs),
        }
        self.outlast(gone);
        if !hands_back {
            let since = Some(copied_since);
            let entered = self.enter_flows(&old.maps.flows, Reader::Packets { since });
            entered.unwrap_or_else(lost);
        }
        if self.carriers.is_empty() || self.replaced.is_some() {
            self.unstage_set();
        }
    }

    /// Tells callbacks which reals were added and removed.
    fn tell_of(&mut self, before: &[(IpAddr, RealNumber)]) {
        let after = self.real_numbers();
        let gone = before.iter().filter(|real| !after.contains(real));
        let gone = gone.map(|(address, number)| RealNews::Removed(*address, *number));
        let come = after.iter().filter(|real| !before.contains(real));
        let come = come.map(|(address, number)| RealNews::Added(*address, *number));
        let reals = come.chain(gone).collect();
        self.tell(News { reals });
    }

    /// Carries earlier programs' counters over to the current ones.
    pub(super) fn carry_counters(&mut self) {
        for carrier in &self.carriers {
            if let Err(error) = carrier.carry() {
                log::warn!("cannot carry over the counters of earlier programs yet: {error}");
                return;
            }
        }
        // Packets may still enter those that were handed out.
        if self.replaced.is_none() {
            self.carriers.clear();
        }
    }
}
