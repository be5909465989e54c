//! Which entries of flow tables are void: those that name a real which their VIP has given up, or
//! which is down for it.
//!
//! A pair of VIP and real in the kernel's map `down_reals`, and a bit in the word that packets read
//! of the VIP, void the entries at once. A thread of its own then walks through the tables and
//! removes them, a little at a time, and after that takes pair and bit back: the packets of a VIP
//! pay for a look at the map only meanwhile. It ends when there is nothing left to remove.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::process;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use super::KernelCalls;
use super::flows::FlowTable;
use super::flows::FlowTables;
use super::vips::VipCell;
use super::vips::VipCells;
use crate::error::Error;
use crate::error::Result;
use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::rcu::GracePeriod;

/// Between two steps of the thread, each of which takes some tenths of a millisecond.
const PAUSE: Duration = Duration::from_millis(1);
/// Before the thread asks again for what the kernel has refused.
const RETRY: Duration = Duration::from_secs(1);

/// Why a VIP's flows do not go to a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoidReason {
    /// It is down for the VIP.
    Down,
    /// The VIP has it no more.
    Removed,
}

impl VoidReason {
    fn value(self) -> u32 {
        match self {
            Self::Down => types::void_reason::VOID_DOWN.0,
            Self::Removed => types::void_reason::VOID_REMOVED.0,
        }
    }
}

/// What happens to the entries that a real's being down voids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lasting {
    /// They are removed, and not left for their flows' next packets.
    pub(crate) sweep: bool,
    /// The pair stays while the real is down, for more than the ring may lead to it.
    pub(crate) keep: bool,
}

/// Changes of one VIP's void entries.
#[derive(Debug, Default)]
#[must_use = "nothing changes until it is prepared and switched to"]
pub(crate) struct VoidChange {
    /// Reals whose entries are void from now on, by their ids.
    void: Vec<(u32, VoidReason, Lasting)>,
    /// Reals whose entries count again.
    lift: Vec<u32>,
}

impl VoidChange {
    /// Entries of a real that the VIP gives up.
    pub(crate) fn remove(&mut self, id: u32) {
        let lasting = Lasting {
            sweep: true,
            keep: false,
        };
        self.void.push((id, VoidReason::Removed, lasting));
    }

    /// Entries of a real that is down for the VIP.
    pub(crate) fn down(&mut self, id: u32, lasting: Lasting) {
        self.void.push((id, VoidReason::Down, lasting));
    }

    /// Entries of this real count again.
    pub(crate) fn lift(&mut self, id: u32) {
        self.lift.push(id);
    }

    /// Whether anything changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.void.is_empty() && self.lift.is_empty()
    }

    /// What the map is to say of which real.
    fn wanted(&self) -> impl Iterator<Item = (u32, Option<VoidReason>)> {
        let voids = self.void.iter();
        let voids = voids.map(|(id, reason, _)| (*id, Some(*reason)));
        voids.chain(self.lift.iter().map(|id| (*id, None)))
    }
}

/// A real whose entries of a VIP are void.
#[derive(Clone, Copy, Debug)]
struct Void {
    reason: VoidReason,
    keep: bool,
    /// They are to be removed; the number tells this job from others for the same pair.
    job: Option<u64>,
}

#[derive(Debug, Default)]
struct OfVip {
    reals: BTreeMap<u32, Void>,
    /// The VIP is gone, and all its entries are to be removed.
    gone: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// By the VIP's number; each pair in here is in the kernel's map.
    vips: BTreeMap<u16, OfVip>,
    /// How many pairs there are, how many of them stay, and how many jobs there are.
    pairs: usize,
    kept: usize,
    pending: usize,
    last_job: u64,
    /// How many ask the thread to wait.
    held: u32,
    /// A thread is there, or in a child made by fork(2) said to be.
    running: bool,
    stop: bool,
}

/// What is to be removed from tables.
#[derive(Debug, Default)]
struct Jobs {
    pairs: BTreeMap<(u16, u32), u64>,
    vips: BTreeMap<u16, u64>,
}

impl Jobs {
    fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.vips.is_empty()
    }

    fn matches(&self, vip: u16, real: u32) -> bool {
        self.pairs.contains_key(&(vip, real)) || self.vips.contains_key(&vip)
    }
}

impl State {
    fn job(&mut self) -> u64 {
        self.last_job += 1;
        self.last_job
    }

    fn put(&mut self, vip: u16, real: u32, void: Void) {
        self.take(vip, real);
        self.pairs += 1;
        self.kept += usize::from(void.keep);
        self.pending += usize::from(void.job.is_some());
        let of = self.vips.entry(vip).or_default();
        of.reals.insert(real, void);
    }

    fn take(&mut self, vip: u16, real: u32) {
        let of = self.vips.get_mut(&vip);
        if let Some(void) = of.and_then(|of| of.reals.remove(&real)) {
            self.pairs -= 1;
            self.kept -= usize::from(void.keep);
            self.pending -= usize::from(void.job.is_some());
        }
    }

    /// Forgets a VIP of which nothing is void any more; `false`: something is.
    fn tidy(&mut self, vip: u16) -> bool {
        let of = self.vips.get(&vip);
        let idle = of.is_none_or(|of| of.reals.is_empty() && of.gone.is_none());
        if idle {
            self.vips.remove(&vip);
        }
        idle
    }

    /// All that is to be removed, or what is of one VIP.
    fn jobs(&self, of: Option<u16>) -> Jobs {
        let mut jobs = Jobs::default();
        let vips = self.vips.iter();
        for (vip, voids) in vips.filter(|(vip, _)| of.is_none_or(|of| **vip == of)) {
            jobs.vips.extend(voids.gone.map(|job| (*vip, job)));
            let reals = voids.reals.iter();
            let pairs = reals.filter_map(|(real, void)| Some(((*vip, *real), void.job?)));
            jobs.pairs.extend(pairs);
        }
        jobs
    }

    /// Has everything of a VIP removed.
    fn all_gone(&mut self, vip: u16) {
        let job = self.job();
        let of = self.vips.entry(vip).or_default();
        self.pending += usize::from(of.gone.is_none());
        of.gone = Some(job);
        let reals: Vec<u32> = of.reals.keys().copied().collect();
        for real in reals {
            let void = Void {
                reason: VoidReason::Removed,
                keep: false,
                job: Some(job),
            };
            self.put(vip, real, void);
        }
    }
}

/// The void entries of all VIPs.
pub(crate) struct VoidFlows {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The process that the thread is of.
    process: u32,
}

struct Shared {
    map: Typed<types::down_real, u32>,
    /// Pairs that the map has room for.
    room: usize,
    /// Pairs that may stay in it.
    most_kept: usize,
    cells: Arc<VipCells>,
    flows: Arc<FlowTables>,
    counters: Arc<PerCpuArray<types::counters>>,
    grace_period: GracePeriod,
    state: Mutex<State>,
    wake: Condvar,
}

/// While it is there, the thread takes nothing back and begins nothing; what is void is so all the
/// same.
#[must_use]
pub(crate) struct Held(Arc<Shared>);

/// A change that the kernel knows of.
#[must_use = "it is to be switched to, or abandoned"]
pub(crate) struct Prepared {
    change: VoidChange,
    _held: Held,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().held -= 1;
        self.0.wake.notify_all();
    }
}

/// How many pairs the map has room for: as many reals as there can be may be down, and a VIP may
/// give up as many at once.
pub(crate) fn void_pairs(max_reals: u32) -> u32 {
    2 * max_reals
}

impl VoidFlows {
    pub(crate) fn new(
        map: Typed<types::down_real, u32>,
        max_reals: u32,
        cells: Arc<VipCells>,
        flows: Arc<FlowTables>,
        counters: Arc<PerCpuArray<types::counters>>,
    ) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                map,
                room: void_pairs(max_reals) as usize,
                most_kept: max_reals as usize,
                cells,
                flows,
                counters,
                grace_period: GracePeriod::new()?,
                state: Mutex::default(),
                wake: Condvar::new(),
            }),
            thread: None,
            process: process::id(),
        })
    }

    /// Pairs in the kernel's map.
    pub(crate) fn pairs(&self) -> usize {
        self.shared.lock().pairs
    }

    /// Why a VIP's entries of a real are void; `None`: they count.
    pub(crate) fn reason(&self, vip: u16, real: u32) -> Option<VoidReason> {
        let state = self.shared.lock();
        state.vips.get(&vip)?.reals.get(&real).map(|of| of.reason)
    }

    /// Whether entries of a real that the VIP had given up are still to be removed.
    pub(crate) fn is_being_removed(&self, vip: u16, real: u32) -> bool {
        self.reason(vip, real) == Some(VoidReason::Removed)
    }

    /// Whether entries of a VIP that had this number are still to be removed.
    pub(crate) fn is_gone(&self, vip: u16) -> bool {
        let state = self.shared.lock();
        state.vips.get(&vip).is_some_and(|of| of.gone.is_some())
    }

    /// Has the thread wait.
    pub(crate) fn hold(&self) -> Held {
        self.shared.lock().held += 1;
        Held(Arc::clone(&self.shared))
    }

    /// Tells the kernel of a change; it counts from the [`switch`](Self::switch) on. Waits for the
    /// removal of what is void, if there is no room otherwise.
    ///
    /// # Errors
    /// If the kernel refuses, or too many reals are down; nothing has changed then.
    pub(crate) fn prepare(
        &self,
        kernel: &KernelCalls,
        vip: u16,
        change: VoidChange,
    ) -> Result<Prepared> {
        let held = self.hold();
        self.check_room(kernel, vip, &change)?;
        let mut done = Vec::new();
        for (id, reason) in change.wanted() {
            let before = self.reason(vip, id);
            if before == reason {
                continue;
            }
            if let Err(error) = self.shared.write(vip, id, reason) {
                self.restore(vip, &done);
                return kernel.check("void the flows of a real in", "down_reals", Err(error));
            }
            done.push((id, before));
        }
        Ok(Prepared {
            change,
            _held: held,
        })
    }

    fn check_room(&self, kernel: &KernelCalls, vip: u16, change: &VoidChange) -> Result<()> {
        let state = self.shared.lock();
        let of = state.vips.get(&vip);
        let known = |id| of.and_then(|of| of.reals.get(id));
        let voids = change.void.iter();
        let new = voids.clone().filter(|(id, ..)| known(id).is_none()).count();
        let keep = voids.filter(|(_, _, lasting)| lasting.keep);
        let keep = keep.filter(|(id, ..)| known(id).is_none_or(|void| !void.keep));
        let keep = keep.count();
        if keep > 0 && state.kept + keep > self.shared.most_kept {
            return Err(Error::Exhausted {
                what: "reals that are down for VIPs with flags that lead to them beside the ring \
                       (max_reals)",
                limit: self.shared.most_kept as u64,
            });
        }
        let full = state.pairs + new > self.shared.room;
        drop(state);
        match full {
            true => self.remove_now(kernel, None),
            false => Ok(()),
        }
    }

    /// Undoes a [`prepare`](Self::prepare) that nothing came of.
    pub(crate) fn abandon(&self, vip: u16, prepared: &Prepared) {
        let ids = prepared.change.wanted().map(|(id, _)| id);
        let before: Vec<_> = ids.map(|id| (id, self.reason(vip, id))).collect();
        self.restore(vip, &before);
    }

    fn restore(&self, vip: u16, before: &[(u32, Option<VoidReason>)]) {
        for (id, reason) in before {
            if let Err(error) = self.shared.write(vip, *id, *reason) {
                log::warn!("down_reals: cannot undo a change: {error}");
            }
        }
    }

    /// Switches what packets see of a VIP, together with a change that was prepared, if one was.
    pub(crate) fn switch(&mut self, vip: u16, mut cell: VipCell, prepared: Option<Prepared>) {
        let mut state = self.shared.lock();
        if let Some(Prepared { change, .. }) = &prepared {
            for (id, reason, lasting) in &change.void {
                let job = lasting.sweep.then(|| state.job());
                let void = Void {
                    reason: *reason,
                    keep: lasting.keep,
                    job,
                };
                state.put(vip, *id, void);
            }
            for id in &change.lift {
                state.take(vip, *id);
            }
            state.tidy(vip);
        }
        let of = state.vips.get(&vip);
        cell.void_flows = of.is_some_and(|of| !of.reals.is_empty());
        self.shared.cells.set(vip, cell);
        drop(state);
        drop(prepared);
        self.start();
    }

    /// No packet finds the VIP any more: has all its entries removed. `any`: some may count again, if
    /// the same VIP comes again and gets the same number.
    pub(crate) fn vip_gone(&mut self, vip: u16, any: bool) {
        let mut state = self.shared.lock();
        if any || state.vips.contains_key(&vip) {
            state.all_gone(vip);
        }
        drop(state);
        self.start();
    }

    /// Removes what is to be removed, of one VIP or of all, before it returns: some tenths of a second
    /// with millions of flows, more with the kernel's LRU hash.
    ///
    /// # Errors
    /// If the kernel refuses; some entries are removed then, and the thread goes on.
    pub(crate) fn remove_now(&self, kernel: &KernelCalls, vip: Option<u16>) -> Result<()> {
        let jobs = self.shared.lock().jobs(vip);
        let removed = self.shared.remove(&jobs, || true);
        let removed = removed.and_then(|_| self.shared.finish(&mut self.shared.lock(), &jobs));
        kernel.check("remove void flows from", "the flow tables", removed)
    }

    /// Starts the thread, if there is something for it and it is not there.
    fn start(&mut self) {
        let mut state = self.shared.lock();
        if state.running || state.pending == 0 {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("katran-sweep".to_owned());
        match thread.spawn(move || shared.follow()) {
            Ok(thread) => {
                state.running = true;
                // The one before has ended.
                self.thread = Some(thread);
            }
            // They are void; the next change tries again.
            Err(error) => log::warn!("void flows stay in the flow tables: {error}"),
        }
    }
}

impl AsFd for VoidFlows {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.map.as_fd()
    }
}

impl Drop for VoidFlows {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        // So that the tables are gone with the handle. A child of the process has no such thread.
        if let Some(thread) = self.thread.take()
            && process::id() == self.process
        {
            // A panic there has been reported.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in between leaves pairs that are void a little longer.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, vip: u16, real: u32, reason: Option<VoidReason>) -> io::Result<()> {
        let key = types::down_real {
            vip: vip.into(),
            real,
        };
        match reason {
            Some(reason) => self.map.update(&key, &reason.value()),
            None => self.map.delete(&key).map(drop),
        }
    }

    /// The thread: removes what is void for as long as there is something.
    fn follow(&self) {
        let mut refused = false;
        loop {
            let mut state = self.unheld();
            if state.stop || state.pending == 0 {
                // Another thread comes for the next job.
                state.running = false;
                return;
            }
            let jobs = state.jobs(None);
            drop(state);
            let removed = self.remove(&jobs, || !self.wait(self.lock(), PAUSE).stop);
            let mut state = self.unheld();
            if state.stop {
                continue;
            }
            let done = removed.and_then(|_| self.finish(&mut state, &jobs));
            if let Err(error) = done {
                if !refused {
                    log::warn!("void flows stay in the flow tables for now: {error}");
                }
                refused = true;
                drop(self.wait(state, RETRY));
            }
        }
    }

    /// The state, when nobody asks the thread to wait any more, or it is to stop.
    fn unheld(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.held > 0 && !state.stop {
            state = self.wait(state, RETRY);
        }
        state
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.wake.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Removes the entries that jobs are of from all tables; `false`: `go_on`, which is asked after
    /// each step, said to stop.
    ///
    /// Packets go on meanwhile, but none makes such an entry once a grace period has passed. They
    /// may move one, by splitting its set: into a set behind all others, which is gone through
    /// afterwards.
    fn remove(&self, jobs: &Jobs, mut go_on: impl FnMut() -> bool) -> io::Result<bool> {
        if jobs.is_empty() {
            return Ok(true);
        }
        self.grace_period.wait()?;
        let tables = self.flows.all();
        let mut from: Vec<u32> = vec![0; tables.len()];
        let mut before = self.sets_in_use(&tables)?;
        let matches = |vip, real| jobs.matches(vip, real);
        loop {
            for ((_, table), (first, end)) in tables.iter().zip(from.iter().zip(&before)) {
                let mut walk = table.walk()?;
                let mut next = Some(*first);
                while let Some(first) = next {
                    next = walk.step(first, *end, &matches)?;
                    if !go_on() {
                        return Ok(false);
                    }
                }
            }
            // Sets that were being split when they were gone through, are split now.
            self.grace_period.wait()?;
            let now = self.sets_in_use(&tables)?;
            // A set that one of these entries has come into is split when twice as many are in use.
            let settled = from
                .iter()
                .zip(&now)
                .all(|(from, now)| *from > 0 && now / 2 < *from);
            if settled || now == before {
                return Ok(true);
            }
            from = std::mem::replace(&mut before, now);
        }
    }

    /// How many sets of each table packets use.
    fn sets_in_use(&self, tables: &[(Option<u32>, &FlowTable)]) -> io::Result<Vec<u32>> {
        let records = self.counters.get(0)?;
        let of = |cpu: &Option<u32>| {
            let record = cpu.and_then(|cpu| records.get(cpu as usize));
            record.map_or(u32::MAX, |record| record.active_sets)
        };
        Ok(tables.iter().map(|(cpu, _)| of(cpu)).collect())
    }

    /// Takes back what voided the entries that are removed; not where another job has come since.
    fn finish(&self, state: &mut State, jobs: &Jobs) -> io::Result<()> {
        let mut touched = BTreeSet::new();
        let mut refused = Ok(());
        for ((vip, real), job) in &jobs.pairs {
            let of = state.vips.get(vip);
            let void = of.and_then(|of| of.reals.get(real)).copied();
            let Some(void) = void.filter(|void| void.job == Some(*job)) else {
                continue;
            };
            if void.keep {
                state.put(*vip, *real, Void { job: None, ..void });
            } else if let Err(error) = self.write(*vip, *real, None) {
                refused = Err(error);
            } else {
                state.take(*vip, *real);
                touched.insert(*vip);
            }
        }
        for (vip, job) in &jobs.vips {
            let of = state.vips.get_mut(vip);
            if let Some(of) = of.filter(|of| of.gone == Some(*job) && of.reals.is_empty()) {
                of.gone = None;
                state.pending -= 1;
                touched.insert(*vip);
            }
        }
        for vip in touched {
            if state.tidy(vip) {
                self.cells.clear_void_flows(vip);
            }
        }
        refused
    }
}
