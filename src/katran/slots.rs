//! The history of VIPs' slots: a new ring that moves flows comes with a history, which goes when
//! all slots are settled.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Katran;
use crate::config::Features;
use crate::config::moment_shift;
use crate::config::ticks as ticks_of;
use crate::counters::SlotStats;
use crate::error::Error;
use crate::error::Result;
use crate::maps::Pace;
use crate::maps::PlaneSlots;
use crate::maps::RingSlot;
use crate::maps::TABLES_DECIDE;
use crate::maps::Watched;
use crate::ring::Endpoint;
use crate::ring::Ring;
use crate::ring::history;
use crate::ring::history::At;
use crate::ring::history::Before;
use crate::ring::history::Standings;
use crate::table;
use crate::types::FlowTracking;
use crate::types::HashFunction;
use crate::types::Protocol;
use crate::types::RealNumber;
use crate::types::Vip;
use crate::types::VipFlags;

/// VIPs with these have all flows in the tables, or none.
const TRACKED_OTHERWISE: VipFlags = TABLES_DECIDE.union(VipFlags::LRU_BYPASS);

/// A ring that is written where no packet looks, or the current one; and its slots' history.
#[must_use = "switch packets to it"]
pub(super) struct NewRing {
    pub(super) ring: Option<RingSlot>,
    history: Option<NewHistory>,
    standings: Standings,
}

/// The planes written, and when that was, in ticks.
#[derive(Clone, Copy)]
struct NewHistory {
    planes: PlaneSlots,
    ticks: u32,
}

/// VIPs whose slots are all marked, which packets do not know yet.
#[must_use = "keep the marks or undo them"]
#[derive(Default)]
pub(super) struct Marked(Vec<(Vip, usize, NewHistory)>);

#[derive(Clone, Copy, Debug)]
pub(super) struct History {
    planes: PlaneSlots,
    protocol: Protocol,
}

/// The standings of a VIP's reals; `down` are those that are down.
fn standings(endpoints: &[table::Endpoint], down: &BTreeSet<IpAddr>) -> Standings {
    let alive = endpoints.iter();
    let alive = alive.filter(|endpoint| !down.contains(&endpoint.address));
    Standings::new(alive.map(|endpoint| (endpoint.number.0, endpoint.weight != 0)))
}

/// # Draining
impl Katran {
    /// Whether packets to the VIP look into tables only in unsettled slots.
    pub(super) fn tracks_changes(&self, vip: &Vip, flags: VipFlags) -> bool {
        self.tracks_changes_with(self.config.features, vip, flags)
    }

    fn tracks_changes_with(&self, features: Features, vip: &Vip, flags: VipFlags) -> bool {
        let by_ids = features.contains(Features::TCP_SERVER_ID) && vip.protocol() == Protocol::Tcp;
        self.has_bases(flags) && !by_ids
    }

    /// Whether the VIP's slots can be unsettled, so that packets of flows that tables do not know
    /// go to the bases. With TCP server ids all connections look into tables, which lack
    /// connections that have sent nothing since the ids came.
    pub(super) fn has_bases(&self, flags: VipFlags) -> bool {
        self.config.flow_tracking == FlowTracking::Changed && !flags.intersects(TRACKED_OTHERWISE)
    }

    /// The current ring of the VIP with this number, for a change of its reals that does not affect
    /// the ring.
    pub(super) fn same_ring(
        &self,
        place: usize,
        endpoints: &[table::Endpoint],
        down: &BTreeSet<IpAddr>,
    ) -> Result<NewRing> {
        let mut new = NewRing {
            ring: self.rings[place],
            history: None,
            standings: Standings::default(),
        };
        if let Some(History { planes, .. }) = self.histories[place] {
            let ticks = self.ticks_now()?;
            new.history = Some(NewHistory { planes, ticks });
            new.standings = standings(endpoints, down);
        }
        Ok(new)
    }

    /// Writes a new ring and its history for the VIP with this number where no packet reads; none
    /// if no endpoint has any weight, and none may have flows.
    pub(super) fn write_ring(
        &mut self,
        vip: &Vip,
        flags: VipFlags,
        place: usize,
        function: HashFunction,
        endpoints: &[table::Endpoint],
        down: &BTreeSet<IpAddr>,
    ) -> Result<NewRing> {
        let weighted: Vec<Endpoint> = endpoints
            .iter()
            .filter(|endpoint| endpoint.weight != 0)
            .map(|endpoint| Endpoint::new(endpoint.number.0, endpoint.address, endpoint.weight))
            .collect();
        let mut new = NewRing {
            ring: None,
            history: None,
            standings: Standings::default(),
        };
        // Drained ones may be bases, now or later.
        let keeps_flows =
            self.config.flow_tracking == FlowTracking::Changed && !endpoints.is_empty();
        if weighted.is_empty() && !keeps_flows {
            return Ok(new);
        }
        let before = self.rings[place].filter(|_| self.has_bases(flags));
        let mut slots = match weighted.is_empty() {
            true => vec![0; self.ring_size.get() as usize],
            false => Ring::build(function, self.ring_size, &weighted)?
                .slots()
                .to_vec(),
        };
        if let Some(before) = before {
            new.standings = standings(endpoints, down);
            let words = self.maps.rings.words(before);
            if history::needs_history(words, &slots, &new.standings) {
                new.history =
                    Some(self.mark_slots(vip, place, before, &mut slots, &new.standings)?);
            }
        }
        let planes = new.history.map(|history| history.planes);
        let reserved = match self.rings[place] {
            Some(_) => Ok(()),
            None => self.maps.rings.reserve(&self.kernel, 1),
        };
        match reserved.and_then(|()| self.maps.rings.write(&self.kernel, &slots, planes)) {
            Ok(ring) => new.ring = Some(ring),
            Err(error) => {
                self.abandon_planes(place, planes);
                return Err(error);
            }
        }
        Ok(new)
    }

    fn mark_slots(
        &mut self,
        vip: &Vip,
        place: usize,
        before: RingSlot,
        slots: &mut [u16],
        standings: &Standings,
    ) -> Result<NewHistory> {
        let ticks = self.ticks_now()?;
        let planes = match self.histories[place] {
            Some(history) => history.planes,
            None => self.maps.rings.take_planes(&self.kernel)?,
        };
        let now = At::of_ticks(ticks, self.moment_shift(vip.protocol()));
        let rings = &self.maps.rings;
        let _halted = self.settler.halt();
        let marked = history::mark(
            rings.words(before),
            slots,
            rings.planes(planes),
            standings,
            now,
        );
        log::debug!("{vip}: {marked} unsettled slots");
        Ok(NewHistory { planes, ticks })
    }

    /// Frees planes that were taken for a failed change.
    fn abandon_planes(&mut self, place: usize, planes: Option<PlaneSlots>) {
        if self.histories[place].is_none()
            && let Some(planes) = planes
        {
            planes
                .0
                .into_iter()
                .for_each(|plane| self.maps.rings.put_back(plane));
        }
    }

    pub(super) fn switch_history(&mut self, vip: &Vip, place: usize, new: &NewRing) {
        let (Some(ring), Some(history)) = (new.ring, new.history) else {
            self.drop_history(place);
            return;
        };
        let rings = &self.maps.rings;
        let halted = self.settler.halt();
        history::refresh(
            rings.words(ring),
            rings.planes(history.planes),
            &new.standings,
        );
        drop(halted);
        self.watch(vip, place, history);
    }

    /// Records the history of the VIP with this number.
    fn watch(&mut self, vip: &Vip, place: usize, NewHistory { planes, ticks }: NewHistory) {
        let protocol = vip.protocol();
        self.histories[place] = Some(History { planes, protocol });
        let rings = &self.maps.rings;
        let ring = self.rings[place].and_then(|ring| rings.held_words(ring));
        let held = planes.0.map(|plane| rings.held_plane(plane));
        let ([Some(a), Some(b), Some(c), Some(d)], Some(ring)) = (held, ring) else {
            // Places that are taken have memory.
            return;
        };
        let shift = self.moment_shift(protocol);
        let idle = (ticks_of(self.idle_time(protocol), self.fixed.tick) >> shift) + 1;
        let watched = Watched {
            ring,
            planes: [a, b, c, d],
            pace: Pace {
                shift,
                idle: idle as u16,
                moment: self.fixed.tick * (1 << shift),
            },
        };
        self.settler.watch(place as u16, watched, ticks);
    }

    /// Takes over the VIP's ring and history from another balancer with the same slots.
    pub(super) fn copy_ring(&mut self, before: &Katran, vip: &Vip, place: usize) -> Result<()> {
        let Some(ring) = before.rings[place] else {
            return Ok(());
        };
        self.maps.rings.reserve(&self.kernel, 1)?;
        let mut planes = None;
        if before.histories[place].is_some() {
            planes = Some(self.maps.rings.take_planes(&self.kernel)?);
        }
        let words = before.maps.rings.words(ring).iter();
        let slots: Vec<u16> = words.map(|word| word.load(Ordering::Relaxed)).collect();
        let own = self.maps.rings.write(&self.kernel, &slots, planes)?;
        self.rings[place] = Some(own);
        if let (Some(history), Some(planes)) = (before.histories[place], planes) {
            let ticks = self.ticks_now()?;
            let rings = &self.maps.rings;
            let copied = rings.planes(planes);
            copied.take_over(before.maps.rings.planes(history.planes));
            let shift = self.moment_shift(vip.protocol());
            if shift != before.moment_shift(vip.protocol()) {
                history::begin_again(rings.words(own), copied, At::of_ticks(ticks, shift));
            }
            self.watch(vip, place, NewHistory { planes, ticks });
        }
        Ok(())
    }

    /// Gives the VIP with this number the history that its ring names, if it has one and not all of
    /// its slots are settled.
    pub(super) fn resume_history(&mut self, vip: &Vip, place: usize, ring: RingSlot) -> Result<()> {
        if history::is_settled(self.maps.rings.words(ring)) {
            return Ok(());
        }
        if let Some(planes) = self.maps.rings.occupy_planes(ring) {
            let ticks = self.ticks_now()?;
            self.watch(vip, place, NewHistory { planes, ticks });
        }
        Ok(())
    }

    /// For how long, at least, no packet of the VIP has gone to a drained real. Wait for a minute
    /// or so before you switch the server off. `None` while the real takes new flows.
    ///
    /// Packets stamp their ring slot and not their real, so packets to other drained reals may make
    /// the time shorter. It never exceeds `flow_idle_timeout` (TCP) or `udp_timeout`, after which
    /// the real's flows are over. Stamps are coarse: the time may be too short by up to a 64th of
    /// that.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unsupported`] where all flows are remembered
    /// ([`FlowTracking`]), or none (`LRU_BYPASS`, `DPORT_HASH`); [`Error::Kernel`].
    ///
    /// ```no_run
    /// use std::thread;
    /// use std::time::Duration;
    ///
    /// use katran::Real;
    ///
    /// # fn example(katran: &mut katran::Katran, vip: katran::Vip) -> katran::Result<()> {
    /// let real = "198.51.100.1".parse().unwrap();
    /// katran.add_real(vip, Real::new(real).weight(0))?;
    /// while katran.drained(vip, real)?.is_none_or(|idle| idle < Duration::from_secs(60)) {
    ///     thread::sleep(Duration::from_secs(1));
    /// }
    /// katran.remove_real(vip, real)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn drained(&self, vip: Vip, real: IpAddr) -> Result<Option<Duration>> {
        let entry = self.entry(vip)?;
        let no_real = || Error::NotFound {
            what: format!("real {real} of VIP {vip}"),
        };
        let weight = entry.reals.get(&real).ok_or_else(no_real)?;
        let number = self.table.real_index(real).ok_or_else(no_real)?;
        if !self.tracks_changes(&vip, entry.flags) {
            return Err(Error::Unsupported {
                what: format!("the time since {vip} last sent a packet to a drained real"),
                reason: "only VIPs with changed-flow tracking have this time: load with `flow_tracking = \
                         \"changed\"` (for TCP also without `tcp-server-id`), and give the VIP none of the \
                         flags `lru-bypass`, `quic`, `dport-hash`, `src-routing`, `global-lru`, \
                         `udp-stable-routing` and `udp-flow-migration`",
            });
        }
        if *weight != 0 && !entry.down.contains(&real) {
            return Ok(None);
        }
        let longest = self.idle_time(vip.protocol());
        let place = usize::from(entry.number.0);
        let (Some(history), Some(ring)) = (self.histories[place], self.rings[place]) else {
            return Ok(Some(longest));
        };
        let shift = self.moment_shift(vip.protocol());
        let now = self.ticks_now()?;
        let rings = &self.maps.rings;
        let planes = rings.planes(history.planes);
        let at = At::of_ticks(now, shift);
        let silence = history::silence_of(rings.words(ring), planes, number.0, at);
        Ok(Some(silence.map_or(longest, |moments| {
            longest.min(self.fixed.tick * history::ticks_after(moments, now, shift))
        })))
    }

    /// The number of the real in a slot of a ring; 0: none.
    pub(super) fn real_in(&self, ring: RingSlot, slot: u32) -> u16 {
        let word = self.maps.rings.slot(ring, slot);
        match self.config.flow_tracking {
            FlowTracking::Changed => history::number_in(word),
            FlowTracking::All => word,
        }
    }

    /// The history of a slot in a VIP's ring; `None`: it is settled.
    pub(super) fn slot_before(&self, place: usize, slot: u32) -> Option<Before> {
        let (history, ring) = (self.histories[place]?, self.rings[place]?);
        let rings = &self.maps.rings;
        history::before(
            rings.words(ring),
            rings.planes(history.planes),
            slot as usize,
        )
    }

    /// The settled and unsettled slots of the VIP with this number.
    pub(super) fn slots_of(&self, place: usize) -> Result<SlotStats> {
        let Some(ring) = self.rings[place] else {
            return Ok(SlotStats::default());
        };
        let mut stats = SlotStats {
            settled: self.ring_size.get(),
            ..SlotStats::default()
        };
        if let Some(History { planes, protocol }) = self.histories[place] {
            let shift = self.moment_shift(protocol);
            let (found, ago) = match self.settler.left(place as u16) {
                Some(left) => left,
                None => {
                    let now = At::of_ticks(self.ticks_now()?, shift);
                    let rings = &self.maps.rings;
                    let found = history::unsettled(rings.words(ring), rings.planes(planes), now);
                    self.settler.counted(place as u16, found);
                    (found, Duration::ZERO)
                }
            };
            stats.settled -= found.slots;
            stats.unsettled = found.slots;
            let moment = self.fixed.tick * (1 << shift);
            stats.oldest = (found.slots != 0).then(|| moment * u32::from(found.oldest) + ago);
        }
        Ok(stats)
    }

    /// Frees a VIP's history, which no packet needs any more.
    pub(super) fn drop_history(&mut self, place: usize) {
        if let Some(history) = self.histories[place].take() {
            self.settler.forget(place as u16);
            for plane in history.planes.0 {
                self.maps.rings.retire(Some(plane));
            }
            self.maps.rings.trim_later();
        }
    }

    /// Settles all of the VIP's slots: its flows go where the ring leads.
    pub(super) fn settle_all(&mut self, place: usize) {
        if let (Some(_), Some(ring)) = (self.histories[place], self.rings[place]) {
            let halted = self.settler.halt();
            history::settle_all(self.maps.rings.words(ring));
            drop(halted);
            self.drop_history(place);
        }
    }

    /// The VIP's flows on this real go where the ring leads from now on.
    pub(super) fn give_up_base(&mut self, place: usize, number: RealNumber) {
        if let (Some(history), Some(ring)) = (self.histories[place], self.rings[place]) {
            let rings = &self.maps.rings;
            let halted = self.settler.halt();
            history::give_up(rings.words(ring), rings.planes(history.planes), number.0);
            drop(halted);
            self.settler.count_again(place as u16);
        }
    }

    /// Marks all slots of VIPs whose flows have all been in the tables, for packets that will look
    /// into tables only in unsettled slots. Afterwards switch packets to that, or undo the marks.
    pub(super) fn mark_all(&mut self, vips: &[Vip]) -> Result<Marked> {
        let mut marked = Marked::default();
        for vip in vips {
            if let Err(error) = self.mark_all_of(vip, &mut marked) {
                self.undo_marks(marked);
                return Err(error);
            }
        }
        Ok(marked)
    }

    fn mark_all_of(&mut self, vip: &Vip, marked: &mut Marked) -> Result<()> {
        let entry = self.entry(*vip)?;
        let place = usize::from(entry.number.0);
        let Some(ring) = self.rings[place] else {
            return Ok(());
        };
        let reals = entry.reals.iter();
        let alive = reals.filter(|(address, _)| !entry.down.contains(*address));
        let numbered = alive.filter_map(|(address, weight)| {
            Some((self.table.real_index(*address)?.0, *weight != 0))
        });
        let standings = Standings::new(numbered);
        let ticks = self.ticks_now()?;
        let known = self.histories[place].map(|history| history.planes);
        let planes = match known {
            Some(planes) => planes,
            None => self.maps.rings.take_planes(&self.kernel)?,
        };
        let now = At::of_ticks(ticks, self.moment_shift(vip.protocol()));
        let rings = &self.maps.rings;
        if known.is_none() {
            rings.point(ring, Some(planes));
        }
        let _halted = self.settler.halt();
        history::mark_all(rings.words(ring), rings.planes(planes), &standings, now);
        marked.0.push((*vip, place, NewHistory { planes, ticks }));
        Ok(())
    }

    /// Packets now look into tables only in unsettled slots.
    pub(super) fn keep_marks(&mut self, marked: Marked) {
        for (vip, place, history) in marked.0 {
            self.watch(&vip, place, history);
        }
    }

    /// Packets were not switched. Histories that exist for other reasons stay, with slots to settle
    /// once more.
    pub(super) fn undo_marks(&mut self, marked: Marked) {
        for (_, place, NewHistory { planes, .. }) in marked.0 {
            if self.histories[place].is_some() {
                self.settler.count_again(place as u16);
                continue;
            }
            if let Some(ring) = self.rings[place] {
                history::settle_all(self.maps.rings.words(ring));
            }
            planes
                .0
                .into_iter()
                .for_each(|plane| self.maps.rings.put_back(plane));
        }
    }

    /// The VIPs that will track changes with the coming features and do not with the current ones.
    pub(super) fn come_to_track(&self, features: Features) -> Vec<Vip> {
        let vips = self.table.vips();
        let come = vips.filter(|(vip, entry)| {
            !self.tracks_changes(vip, entry.flags)
                && self.tracks_changes_with(features, vip, entry.flags)
        });
        come.map(|(vip, _)| *vip).collect()
    }

    pub(super) fn moment_shift(&self, protocol: Protocol) -> u32 {
        moment_shift(self.idle_time(protocol), self.fixed.tick)
    }

    fn idle_time(&self, protocol: Protocol) -> Duration {
        match protocol {
            Protocol::Tcp => self.config.flow_idle_timeout,
            Protocol::Udp => self.config.udp_timeout,
        }
    }

    /// Frees the memory of histories that nothing needs any more.
    pub(super) fn drop_settled(&mut self) {
        for place in self.settler.settled() {
            self.drop_history(place.into());
        }
    }
}
