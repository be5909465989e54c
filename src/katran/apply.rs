//! The declarative side: making the balancer equal to a [`State`], and describing it as one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Katran;
use super::change::Left;
use super::change::News;
use super::change::Prepared;
use super::reload::Needs;
use super::remember::nothing_else;
use crate::config::BalancerState;
use crate::config::Features;
use crate::config::LiveSetting;
use crate::document::Changes;
use crate::document::DecapState;
use crate::document::MarkState;
use crate::document::ProbeMatch;
use crate::document::ServerIdState;
use crate::document::State;
use crate::error::Error;
use crate::error::Result;
use crate::ledger::Before;
use crate::table::Deltas;
use crate::table::Limits;
use crate::table::NameChange;
use crate::table::Room;
use crate::table::Step;
use crate::types::Family;
use crate::types::VipFlags;

impl Katran {
    /// Makes the balancer equal to `wanted` with the fewest changes, and reports them.
    ///
    /// What `wanted` does not change is not touched: its flows, counters and ring stay. Applying
    /// the same state again changes nothing. Other features are a [`reload`](Self::reload). A state without balancer
    /// settings leaves them alone.
    ///
    /// Other settings that are fixed at load (sizes, tables, encapsulation) are a **replacement**: a second set of programs and maps
    /// is loaded and comes to know all that this one knows, under the same numbers, and all else that `wanted` says. Then each
    /// attachment goes to the new program between two packets (a link is updated, never detached), and the old set goes. Counters
    /// go on, and so do callbacks, monitors and watches. Maps that packets alone write (flow tables, counters, global
    /// flows, events) are those of both sets where they have the same size; entries of a flow table of another size or other
    /// CPUs are entered into the new one, as far as there is room. So connections stay, but where the setting itself says where
    /// flows are: with another `ring_size` or `hash_seed` those move that no flow table knows, as most with
    /// [`FlowTracking::Changed`](crate::FlowTracking), and with another kind of flow table, or tracking, those that are not where their
    /// ring leads. With another `max_vips` flows are hashed as before, which a balancer that is loaded anew with it does not: where
    /// hosts of a fleet have to agree, give all of them a `hash_seed` first. It takes a second or two,
    /// most of it for the verifier, and memory for what cannot be of both. Memory, pins or a kernel that refuses leave all as it was. Who
    /// has attached [`program_fd`](Self::program_fd) puts the new one in its place, as after a reload, and soon: the one before has
    /// the maps of before, so it forwards on as of this call, and VIPs, weights and down marks since then do not reach it.
    ///
    /// A [pinned](crate::Builder::pin) balancer has its new set pinned beside the old one, and one rename makes it the one that
    /// counts: if the process ends meanwhile, [`adopt`](crate::Builder::adopt) finds the state before or that after, and what was counted on
    /// either side.
    ///
    /// A VIP gets all its new reals in one change, so a new one has settled slots only. If you apply states in which a new
    /// VIP's reals come one by one, its slots have a history as after one [`add_real`](Self::add_real) after the other,
    /// which says what that means.
    ///
    /// It blocks for as long as it compares and changes: 0.2 ms with one VIP, 100 ms with 512 of 100 reals each; a new ring of 65,537
    /// slots takes 1 to 3 ms more, and a replacement two to five seconds, most of it the verifier's.
    ///
    /// # Errors
    /// What the calls for VIPs, reals, server ids, source routes and decap
    /// addresses return. The whole state is
    /// checked, and room made for all rings, before the first change. If the kernel then refuses
    /// one, or a [pinned](crate::Builder::pin) balancer has no memory to write one down, those made are undone, as far
    /// as the kernel lets them be (what cannot be is logged; a VIP that had been removed comes back with its counters at
    /// zero).
    ///
    /// For a replacement also what [`Builder::load`](crate::Builder::load) and [`reload`](Self::reload) return;
    /// [`Error::InUse`] if there are more VIPs or reals than the settings have room for, or one whose number lies beyond, or a monitor
    /// listens whose buffer is to be another one; [`Error::Exhausted`] if there are more server ids, routes, marks or decap addresses;
    /// [`Error::InsufficientMemory`] if there is none for both sets. What is to go has to go before, in a call of its
    /// own.
    pub fn apply(&mut self, wanted: &State) -> Result<Changes> {
        let _call = self.call()?;
        match self.replacement(wanted)? {
            Some(config) => self.replace(&config, wanted),
            None => self.apply_in_place(wanted),
        }
    }

    /// The same with the programs and maps that there are.
    pub(super) fn apply_in_place(&mut self, wanted: &State) -> Result<Changes> {
        let before = self.state();
        let watch = self.watch.clone();
        let planned = self.note(self.table.way(&before, wanted, self.limits()))?;
        self.note(self.rehearse_names(wanted, &planned.steps))?;
        self.rehearse_probes(wanted, &planned.steps)?;
        self.reserve_rings(wanted)?;
        // So that flows of reals that come back, if all is undone, are where they were.
        let held = self.maps.voids.hold();
        let many = match planned.steps.len() > 1 {
            true => self.begin_many(),
            false => Ok(None),
        };
        let many = match many {
            Ok(many) => many,
            Err(error) => {
                drop(held);
                self.free_rings();
                return Err(error);
            }
        };
        let mut news = News::default();
        let mut steps = planned.steps.iter();
        let mut holds = None;
        let taken = steps.try_for_each(|step| {
            news.add(self.take(step)?);
            if let Step::Hold(reals) = step {
                holds = holds.xor(Some(reals));
            }
            Ok(())
        });
        if taken.is_err() {
            let undoing = self.begin_undoing();
            self.note_way_back();
            self.undo(&before, &mut news);
            if let Some(watch) = watch {
                self.watch_again(watch.vip, Some(&watch));
            }
            if let Some(reals) = holds {
                let let_go = reals.iter().map(|(real, delta)| (*real, -delta)).collect();
                match self.hold(&let_go) {
                    Ok(undone) => news.add(undone),
                    Err(error) => log::error!("reals stay that nothing names: {error}"),
                }
            }
            drop(undoing);
        }
        self.end_many();
        drop((many, held));
        self.free_rings();
        self.tell(news.net());
        taken.map(|()| planned.changes)
    }

    /// Whether ids, routes and decap addresses are possible, one change after the other.
    pub(super) fn rehearse_names(&self, wanted: &State, steps: &[Step]) -> Result<()> {
        let flags = wanted.vips.iter().map(|state| state.flags);
        // Those at the end, which is when features are switched off.
        let flags = flags.fold(VipFlags::empty(), VipFlags::union);
        let mut ids = self.server_ids.counts();
        let mut routes = self.source_routes.counts();
        let mut ends: BTreeSet<IpAddr> = self.decap.keys().copied().collect();
        let mut features = self.config.features;
        for step in steps {
            match step {
                Step::Set(LiveSetting::features(wanted)) => {
                    let off = features.difference(*wanted);
                    let needs = Needs {
                        routes: routes.iter().sum(),
                        ends: ends.len(),
                        ids: ids.iter().sum(),
                        flags,
                    };
                    self.check_unused(off, &needs)?;
                    features = *wanted;
                }
                Step::ServerIds(NameChange { remove, add, .. }) => {
                    self.server_ids.count(&mut ids, remove, add)?;
                }
                Step::SourceRoutes(NameChange { remove, add, .. }) => {
                    if !features.contains(Features::SOURCE_ROUTING) {
                        return Err(Self::no_source_routing());
                    }
                    self.source_routes.count(&mut routes, remove, add)?;
                }
                Step::SetDecap(address, _) => {
                    if !features.contains(Features::INLINE_DECAP) {
                        return Err(Self::no_inline_decap());
                    }
                    ends.insert(*address);
                    self.check_decap_room(*address, ends.len())?;
                }
                Step::RemoveDecap(address) => drop(ends.take(address)),
                _ => {}
            }
        }
        // On the way there may be more, up to twice as many: what takes the place of another comes first.
        self.server_ids.fits(ids)?;
        self.source_routes.fits(routes)
    }

    /// Makes room for all new rings at once: the kernel takes a grace period each time.
    fn reserve_rings(&mut self, wanted: &State) -> Result<()> {
        let has_ring = |vip| {
            let number = self.table.vip(vip).map(|entry| usize::from(entry.number.0));
            number.is_some_and(|number| self.rings[number].is_some())
        };
        let new = wanted
            .vips
            .iter()
            .filter(|state| {
                let down: BTreeSet<_> = state.down.iter().collect();
                let mut reals = state.reals.iter();
                reals.any(|real| real.get_weight() != 0 && !down.contains(&real.address()))
            })
            .filter(|state| !has_ring(&state.vip))
            .count();
        if new == 0 {
            return Ok(());
        }
        self.maps.rings.reserve(&self.kernel, new as u32)
    }

    /// What is configured now. Applying it to a new `Katran` loaded from the same balancer
    /// settings makes an equal one.
    pub fn state(&self) -> State {
        let balancer = BalancerState::of(&self.config);
        State {
            balancer: Some(balancer),
            vips: self.table.vip_states(),
            server_ids: self
                .server_ids()
                .list()
                .into_iter()
                .map(|id| {
                    let mut state = ServerIdState::new(id);
                    state.valid = !self.invalid_ids.contains(&id.id());
                    state
                })
                .collect(),
            source_routes: self.source_routes().list(),
            decap: self
                .decap()
                .list()
                .into_iter()
                .map(|(address, mode)| DecapState::new(address, mode))
                .collect(),
            marks: self
                .probes()
                .marks()
                .into_iter()
                .map(|(mark, real)| MarkState::new(mark, real))
                .collect(),
            probe_matches: self.probe_matches(),
            probes: self.probes().list(),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_vips: self.config.max_vips.into(),
            max_reals: self.config.max_reals.into(),
        }
    }

    /// Makes one change, whole; what it has to tell waits for the end of them all.
    fn take(&mut self, step: &Step) -> Result<News> {
        match step {
            Step::SetVipFlags(vip, flags) => return self.change_vip_flags(*vip, *flags),
            Step::SetHashFunction(vip, function) => {
                return self.change_hash_function(*vip, *function);
            }
            Step::RemoveVip(vip) => return self.remove_vip_only(*vip),
            Step::AddVip { vip, flags, hash } => return self.add_vip_with(*vip, *flags, *hash),
            Step::ModifyReals {
                vip,
                changes,
                health,
            } => return self.change_reals(*vip, changes, health),
            Step::SetRealFlags(address, flags) => return self.change_real_flags(*address, *flags),
            Step::Hold(reals) => return self.hold(reals),
            Step::ServerIds(change) => {
                return self.change_server_ids(&change.remove, &change.add, Room::Passing);
            }
            Step::SourceRoutes(change) => {
                return self.change_source_routes(&change.remove, &change.add, Room::Passing);
            }
            Step::Set(setting) => self.set_live(setting.clone()),
            Step::Invalidate(ids) => self.server_ids_mut().invalidate(ids),
            Step::Revalidate(ids) => self.server_ids_mut().revalidate(ids),
            Step::SetDecap(address, mode) => self.set_decap(*address, *mode),
            Step::RemoveDecap(address) => self.decap_mut().remove(*address),
            Step::MapMark(mark, real) => self.probes_mut().map_mark(*mark, *real),
            Step::UnmapMark(mark) => self.probes_mut().unmap_mark(*mark),
            Step::SetProbeMatch(ProbeMatch::Destination(address), real) => {
                self.probes_mut().match_destination(*address, *real)
            }
            Step::SetProbeMatch(ProbeMatch::Source(address), real) => {
                self.probes_mut().match_source(*address, *real)
            }
            Step::RemoveProbeMatch(ProbeMatch::Destination(address)) => {
                self.probes_mut().unmatch_destination(*address)
            }
            Step::RemoveProbeMatch(ProbeMatch::Source(address)) => {
                self.probes_mut().unmatch_source(*address)
            }
            Step::RegisterProbe(vip) => self.probes_mut().register(*vip),
            Step::UnregisterProbe(vip) => self.probes_mut().unregister(*vip),
        }?;
        Ok(News::default())
    }

    /// Names reals, so that they stay while names go from one kind to another; or does so no more.
    fn hold(&mut self, reals: &Deltas) -> Result<News> {
        let staged = self.table.stage_references(reals)?;
        let written = Prepared::new(staged, nothing_else).write(self, |_| Ok(()))?;
        let switched = written.switch(self, |_, ()| Left::Nothing);
        Ok(switched.retire(self))
    }

    /// Gives a setting that changes after load its value: each row of the table of settings that says
    /// `live` has an arm here.
    fn set_live(&mut self, setting: LiveSetting) -> Result<()> {
        match setting {
            LiveSetting::gateway_mac(gateway) => self.gateways_mut().set(gateway),
            LiveSetting::gateway_mac_v6(mac) => self.gateways_mut().set_mac_v6(mac),
            LiveSetting::features(features) => self.reload(features),
            LiveSetting::source_v4(address) => {
                self.change_source(Family::V4, address.map(IpAddr::V4))
            }
            LiveSetting::source_v6(address) => {
                self.change_source(Family::V6, address.map(IpAddr::V6))
            }
        }
    }

    /// Goes back to the state before one that was being applied when its process ended.
    pub(super) fn undo_group(&mut self, before: &Before) {
        let mut news = News::default();
        let undoing = self.begin_undoing();
        self.undo(&before.state, &mut news);
        if let Some(vip) = before.watched {
            self.watch_again(vip, None);
        }
        // What it held while names went from one kind to another.
        let ids = self.server_ids.iter().map(|(_, real)| real);
        let routes = self.source_routes.iter().map(|(_, real)| real);
        let held = self.table.named_by_none(ids.chain(routes));
        if !held.is_empty() {
            match self.hold(&held) {
                Ok(undone) => news.add(undone),
                Err(error) => log::error!("reals stay that nothing names: {error}"),
            }
        }
        drop(undoing);
        self.end_many();
        self.free_rings();
        self.tell(news.net());
    }

    /// Steps are those back until what is returned is dropped, be it by a panic.
    fn begin_undoing(&mut self) -> Arc<()> {
        let undoing = Arc::new(());
        self.undoing = Arc::downgrade(&undoing);
        undoing
    }

    pub(super) fn is_undoing(&self) -> bool {
        self.undoing.strong_count() > 0
    }

    /// Goes back to `before`, as far as the kernel lets it.
    fn undo(&mut self, before: &State, news: &mut News) {
        match self.table.way(&self.state(), before, self.limits()) {
            Ok(back) => {
                for step in &back.steps {
                    match self.take(step) {
                        Ok(undone) => news.add(undone),
                        Err(error) => not_undone(&error),
                    }
                }
            }
            Err(error) => not_undone(&error),
        }
        // What a state does not say is left alone by its steps.
        let settings = before.balancer.clone().unwrap_or_default();
        for unset in BalancerState::of(&self.config).live_unset(&settings) {
            if let Err(error) = self.set_live(unset) {
                not_undone(&error);
            }
        }
    }
}

pub(super) fn not_undone(error: &Error) {
    log::error!("cannot undo a change of a state that was applied in part: {error}");
}
