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

/// # Whole configurations
impl Katran {
    /// Makes the balancer equal to `wanted` by the fewest changes, and reports them.
    ///
    /// Whatever `wanted` does not change keeps its flows, counters and rings. Applying the same
    /// state again changes nothing. Different features cause a [`reload`](Self::reload). A state
    /// without balancer settings leaves the settings alone.
    ///
    /// # Replacement
    /// A change to other load-time settings (sizes, tables, encapsulation) is a **replacement**.
    /// The library loads a second set of programs and maps and fills it with everything that the
    /// first one knows, under the same numbers, and with the rest of `wanted`. It then gives each
    /// attachment the new program between two packets (it updates links and never detaches them),
    /// and frees the old set. Counters, callbacks, monitors and watches continue.
    ///
    /// - Both sets share the maps that packets write (flow tables, counters, global flows, events)
    ///   if their sizes are equal. The library copies a flow table's entries if its size or CPUs
    ///   change, where there is room.
    /// - Connections stay, unless the setting itself decides where flows go. With another
    ///   `ring_size` or `hash_seed`, flows that no flow table knows move: most of them with
    ///   [`FlowTracking::Changed`](crate::FlowTracking). With another flow table type or tracking,
    ///   flows move whose real is not the ring's.
    /// - With another `max_vips` this balancer hashes flows as before, unlike one newly loaded with
    ///   that value. If the hosts of a fleet must agree, give all of them a `hash_seed` first.
    /// - If you attached [`program_fd`](Self::program_fd) yourself, attach the new one soon. The
    ///   old one forwards by the old maps: it never sees later VIPs, weights and down marks.
    ///
    /// A [pinned](crate::Builder::pin) balancer pins the new set beside the old one, and one rename
    /// makes it current. If the process dies meanwhile, [`adopt`](crate::Builder::adopt) finds the
    /// state before or after, with the counts of both sets.
    ///
    /// # Time
    /// The call blocks while it compares and changes: 0.2 ms with one VIP, 100 ms with 512 VIPs of
    /// 100 reals each. Each new ring of 65,537 slots adds 1 to 3 ms. A replacement takes two to
    /// five seconds, mostly in the verifier, and memory for the maps that the sets do not share.
    /// Flow tables that they do not share are copied after the switch, in 0.1 s for each million
    /// flows or so; until then flows stay even on reals that the same call removes or marks down.
    ///
    /// A VIP gets all its new reals in one change, so all slots of a new VIP are settled. If you
    /// apply a series of states that add a new VIP's reals one by one, its slots become unsettled,
    /// as [`add_real`](Self::add_real) explains.
    ///
    /// # Errors
    /// Those of the calls for VIPs, reals, server ids, source routes and decap addresses. Before
    /// the first change the library checks the whole state and makes room for all rings. If the
    /// kernel then refuses a change, or the memory to log one for a [pinned](crate::Builder::pin)
    /// balancer is missing, the library undoes the earlier ones. It logs what the kernel does not
    /// let it undo; a VIP that was removed comes back with its counters at zero.
    ///
    /// For a replacement also those of [`Builder::load`](crate::Builder::load) and
    /// [`reload`](Self::reload); [`Error::InUse`] if there are more VIPs or reals than the settings
    /// have room for, or one has a number that is too large, or a monitor listens and
    /// `event_buffer` changes; [`Error::Exhausted`] if there are more server ids, routes, marks or
    /// decap addresses; [`Error::InsufficientMemory`] if both sets do not fit. Remove what has no
    /// room first, in a separate call.
    ///
    /// ```no_run
    /// # #[cfg(feature = "serde")]
    /// # fn example() -> katran::Result<()> {
    /// use katran::State;
    ///
    /// let mut katran = State::from_toml_file("lb.toml")?.builder()?.load()?;
    /// // ... and whenever the file has changed:
    /// let changes = katran.apply(&State::from_toml_file("lb.toml")?)?;
    /// println!("{changes}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply(&mut self, wanted: &State) -> Result<Changes> {
        let _call = self.call()?;
        match self.replacement(wanted)? {
            Some(config) => self.replace(&config, wanted),
            None => self.apply_in_place(wanted),
        }
    }

    /// The same with the current programs and maps.
    pub(super) fn apply_in_place(&mut self, wanted: &State) -> Result<Changes> {
        let before = self.state();
        let watch = self.watch.clone();
        let planned = self.note(self.table.way(&before, wanted, self.limits()))?;
        self.note(self.rehearse_names(wanted, &planned.steps))?;
        self.rehearse_probes(wanted, &planned.steps)?;
        self.reserve_rings(wanted)?;
        // If all is undone, reals return, and their flows must be where they were.
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
                    Err(error) => log::error!("cannot remove unused reals: {error}"),
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

    /// Checks that the changes of ids, routes and decap addresses are possible, one after the
    /// other.
    pub(super) fn rehearse_names(&self, wanted: &State, steps: &[Step]) -> Result<()> {
        let flags = wanted.vips.iter().map(|state| state.flags);
        // The flags at the end, which is when features are switched off.
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
        // Up to twice as many exist for a moment, because replacements are made before the old ones
        // are removed.
        self.server_ids.fits(ids)?;
        self.source_routes.fits(routes)
    }

    /// Makes room for all new rings at once, because the kernel takes a grace period each time.
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

    /// The current configuration. Applied to a balancer loaded from the same settings, it makes an
    /// equal one.
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

    /// Makes one whole change; its callbacks wait for the end of all changes.
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

    /// Holds reals, so that they stay while names move from one kind to another; or releases them.
    fn hold(&mut self, reals: &Deltas) -> Result<News> {
        let staged = self.table.stage_references(reals)?;
        let written = Prepared::new(staged, nothing_else).write(self, |_| Ok(()))?;
        let switched = written.switch(self, |_, ()| Left::Nothing);
        Ok(switched.retire(self))
    }

    /// Changes a live setting: each row of the table of settings marked `live` has an arm here.
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

    /// Goes back to the state before an `apply` that was cut off by the end of its process.
    pub(super) fn undo_group(&mut self, before: &Before) {
        let mut news = News::default();
        let undoing = self.begin_undoing();
        self.undo(&before.state, &mut news);
        if let Some(vip) = before.watched {
            self.watch_again(vip, None);
        }
        // What it held while names moved from one kind to another.
        let ids = self.server_ids.iter().map(|(_, real)| real);
        let routes = self.source_routes.iter().map(|(_, real)| real);
        let held = self.table.named_by_none(ids.chain(routes));
        if !held.is_empty() {
            match self.hold(&held) {
                Ok(undone) => news.add(undone),
                Err(error) => log::error!("cannot remove unused reals: {error}"),
            }
        }
        drop(undoing);
        self.end_many();
        self.free_rings();
        self.tell(news.net());
    }

    /// Steps count as undoing until the returned value is dropped, even by a panic.
    fn begin_undoing(&mut self) -> Arc<()> {
        let undoing = Arc::new(());
        self.undoing = Arc::downgrade(&undoing);
        undoing
    }

    pub(super) fn is_undoing(&self) -> bool {
        self.undoing.strong_count() > 0
    }

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
        // Steps leave alone what a state does not mention.
        let settings = before.balancer.clone().unwrap_or_default();
        for unset in BalancerState::of(&self.config).live_unset(&settings) {
            if let Err(error) = self.set_live(unset) {
                not_undone(&error);
            }
        }
    }
}

pub(super) fn not_undone(error: &Error) {
    log::error!("cannot undo a change of a partly applied state: {error}");
}
