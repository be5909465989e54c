//! Removes void entries from the flow tables: what to remove, and the thread that does it. It walks
//! through the tables in small steps while packets continue, then withdraws what voided the
//! entries, and ends when nothing is left.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::flows::FlowTable;
use super::flows::FlowTables;
use super::vips::VipCells;
use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::rcu::GracePeriod;
use crate::sys::tenure::Tenure;

/// The pause between two steps of the thread, each of which takes some tenths of a millisecond.
const PAUSE: Duration = Duration::from_millis(1);
/// The time before the thread repeats what the kernel has refused.
const RETRY: Duration = Duration::from_secs(1);

/// Why a VIP's flows must not go to a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoidReason {
    /// It is down for the VIP.
    Down,
    /// The VIP no longer has it.
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

/// A real whose entries of a VIP are void.
#[derive(Clone, Copy, Debug)]
pub(super) struct Void {
    pub(super) reason: VoidReason,
    pub(super) keep: bool,
    /// Remove the entries; the number tells this job from others for the same pair.
    pub(super) job: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct OfVip {
    pub(super) reals: BTreeMap<u32, Void>,
    /// The VIP is gone; remove all its entries.
    pub(super) gone: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// By the VIP's number; each pair in here is in the kernel's map.
    pub(super) vips: BTreeMap<u16, OfVip>,
    /// The numbers of pairs, of those that stay, and of jobs.
    pub(super) pairs: usize,
    pub(super) kept: usize,
    pub(super) pending: usize,
    pub(super) last_job: u64,
    /// How many callers want the thread to wait.
    pub(super) held: u32,
    /// There is a thread; in a child made by fork(2) this may be set without one.
    pub(super) running: bool,
    pub(super) stop: bool,
}

/// Entries to remove from tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Jobs {
    pub(super) pairs: BTreeMap<(u16, u32), u64>,
    pub(super) vips: BTreeMap<u16, u64>,
}

impl Jobs {
    /// Leaves out what must no longer be removed, because such entries are valid again.
    fn keep_current(&mut self, state: &State) {
        self.pairs.retain(|(vip, real), job| {
            let void = state.vips.get(vip).and_then(|of| of.reals.get(real));
            void.is_some_and(|void| void.job == Some(*job))
        });
        self.vips.retain(|vip, job| {
            let of = state.vips.get(vip);
            of.is_some_and(|of| of.gone == Some(*job))
        });
    }

    /// Only those of VIPs that are gone.
    pub(super) fn of_gone(mut self) -> Self {
        self.pairs.retain(|(vip, _), _| self.vips.contains_key(vip));
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.vips.is_empty()
    }

    fn matches(&self, vip: u16, real: u32) -> bool {
        self.pairs.contains_key(&(vip, real)) || self.vips.contains_key(&vip)
    }
}

impl State {
    pub(super) fn job(&mut self) -> u64 {
        self.last_job += 1;
        self.last_job
    }

    pub(super) fn put(&mut self, vip: u16, real: u32, void: Void) {
        self.take(vip, real);
        self.pairs += 1;
        self.kept += usize::from(void.keep);
        self.pending += usize::from(void.job.is_some());
        let of = self.vips.entry(vip).or_default();
        of.reals.insert(real, void);
    }

    pub(super) fn take(&mut self, vip: u16, real: u32) {
        let of = self.vips.get_mut(&vip);
        if let Some(void) = of.and_then(|of| of.reals.remove(&real)) {
            self.pairs -= 1;
            self.kept -= usize::from(void.keep);
            self.pending -= usize::from(void.job.is_some());
        }
    }

    /// Forgets a VIP that has no void entries any more; `false`: it has some.
    pub(super) fn tidy(&mut self, vip: u16) -> bool {
        let of = self.vips.get(&vip);
        let idle = of.is_none_or(|of| of.reals.is_empty() && of.gone.is_none());
        if idle {
            self.vips.remove(&vip);
        }
        idle
    }

    /// All jobs, or those of one VIP.
    pub(super) fn jobs(&self, of: Option<u16>) -> Jobs {
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

    /// Marks everything of a VIP for removal.
    pub(super) fn all_gone(&mut self, vip: u16) {
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

/// What the handle and its thread share.
pub(super) struct Shared {
    pub(super) map: Typed<types::down_real, u32>,
    /// Pairs that the map has room for.
    pub(super) room: usize,
    /// Pairs that may stay in it.
    pub(super) most_kept: usize,
    pub(super) cells: Arc<VipCells>,
    pub(super) flows: Arc<FlowTables>,
    pub(super) cpus: Arc<PerCpuArray<types::cpu>>,
    pub(super) tenure: Arc<Tenure>,
    pub(super) grace_period: GracePeriod,
    pub(super) state: Mutex<State>,
    pub(super) wake: Condvar,
    /// Held during each step through a table, and taken before the state.
    pub(super) step: Mutex<()>,
    /// How often entries to be removed became valid again.
    pub(super) cancelled: AtomicU64,
}

/// The thread, while it runs: after a panic another one starts for the next job.
struct Running<'a>(&'a Mutex<State>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            log::error!(
                "the thread that removes void flows has panicked: the next change starts another"
            );
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = false;
        }
    }
}

/// While this lives, the thread withdraws nothing and begins nothing; void entries stay void.
#[must_use]
pub(crate) struct Held(pub(super) Arc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().held -= 1;
        self.0.wake.notify_all();
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // After a panic in between, pairs stay void a little longer.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self, vip: u16, real: u32, reason: Option<VoidReason>) -> io::Result<()> {
        let key = types::down_real {
            vip: vip.into(),
            real,
        };
        match reason {
            Some(reason) => self.map.update(&key, &reason.value()),
            None => self.map.delete(&key).map(drop),
        }
    }

    /// Cancels the current removal and counts again: when this returns, no step uses the previous
    /// jobs. Do not call it with the state locked.
    pub(super) fn cancel(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
        drop(self.lock_step());
    }

    fn lock_step(&self) -> MutexGuard<'_, ()> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: removes void entries while there are any.
    pub(super) fn follow(&self) {
        let _running = Running(&self.state);
        let mut refused = false;
        loop {
            let mut state = self.unheld();
            if state.stop || state.pending == 0 || self.tenure.is_over() {
                // Another thread starts for the next job.
                state.running = false;
                return;
            }
            let jobs = state.jobs(None);
            drop(state);
            let removed = self.remove(&jobs, || !self.wait(self.lock(), PAUSE).stop);
            // Before the state, because the holder of a permit may ask for that.
            let Ok(permit) = self.tenure.permit() else {
                continue;
            };
            let mut state = self.unheld();
            if state.stop {
                continue;
            }
            let done = removed.and_then(|_| self.finish(&mut state, &jobs));
            if let Err(error) = done {
                if !refused {
                    log::warn!("cannot remove void flow entries yet: {error}");
                }
                refused = true;
                drop(permit);
                drop(self.wait(state, RETRY));
            }
        }
    }

    /// The state, once no caller wants the thread to wait, or it is to stop.
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

    /// Removes the jobs' entries from all tables; `false`: `go_on`, called after each step, said to
    /// stop.
    ///
    /// Packets continue meanwhile, but after a grace period none makes such an entry. A packet may
    /// move one by splitting its set: into a set behind all others, which the walk visits
    /// afterwards.
    pub(super) fn remove(&self, jobs: &Jobs, mut go_on: impl FnMut() -> bool) -> io::Result<bool> {
        if jobs.is_empty() {
            return Ok(true);
        }
        let mut seen = self.cancelled.load(Ordering::Relaxed);
        let mut jobs = jobs.clone();
        jobs.keep_current(&self.lock());
        self.grace_period.wait()?;
        let tables = self.flows.all();
        let mut from: Vec<u32> = vec![0; tables.len()];
        let mut before = self.sets_in_use(&tables)?;
        loop {
            for ((_, table), (first, end)) in tables.iter().zip(from.iter().zip(&before)) {
                let mut walk = table.walk()?;
                let mut next = Some(*first);
                while let Some(first) = next {
                    let Ok(permit) = self.tenure.permit() else {
                        return Ok(false);
                    };
                    let step = self.lock_step();
                    let now = self.cancelled.load(Ordering::Relaxed);
                    if now != seen {
                        seen = now;
                        jobs.keep_current(&self.lock());
                    }
                    next = walk.step(first, *end, &|vip, real| jobs.matches(vip, real))?;
                    drop((step, permit));
                    if !go_on() {
                        return Ok(false);
                    }
                }
            }
            // Sets that were being split during the walk are split now.
            self.grace_period.wait()?;
            let now = self.sets_in_use(&tables)?;
            // A set that has received one of these entries is split once twice as many are in use.
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

    /// The number of sets of each table that packets use.
    fn sets_in_use(&self, tables: &[(Option<u32>, &FlowTable)]) -> io::Result<Vec<u32>> {
        let records = self.cpus.get(0)?;
        let of = |cpu: &Option<u32>| {
            let record = cpu.and_then(|cpu| records.get(cpu as usize));
            record.map_or(u32::MAX, |record| record.sets.count)
        };
        Ok(tables.iter().map(|(cpu, _)| of(cpu)).collect())
    }

    /// Withdraws what voided the removed entries, unless another job has come since.
    pub(super) fn finish(&self, state: &mut State, jobs: &Jobs) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_makes_room_for_the_next() {
        let state = Mutex::new(State {
            running: true,
            ..State::default()
        });
        let panicked = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _running = Running(&state);
                let _locked = state.lock();
                panic!("on purpose");
            });
            thread.join().is_err()
        });
        let running = state.lock().unwrap_or_else(PoisonError::into_inner).running;
        assert_eq!((panicked, running), (true, false));
        // A thread clears this itself before it ends, once nothing is left to do.
        drop(Running(&Mutex::new(State::default())));
    }
}
