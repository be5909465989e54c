//! Settles slots in place, on a thread that exists only while some VIP has unsettled ones. It
//! examines some thousand slots at a time, with pauses, and so uses at most a hundredth of a CPU.
//!
//! Any other writer of a history (a change of the VIP) holds the lock meanwhile, and tells the
//! thread about the new ring before it gives up the place of the old one.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::chunks::Chunk;
use super::rings::HeldWords;
use super::task::Task;
use crate::ring::history;
use crate::ring::history::At;
use crate::ring::history::PLANES;
use crate::ring::history::Planes;
use crate::ring::history::Unsettled;
use crate::sys::tenure::Tenure;

/// Slots examined under one lock: some tens of microseconds.
const AT_ONCE: usize = 8192;
/// The pause between two of these steps.
const PAUSE: Duration = Duration::from_millis(2);
/// The least and most time from one round through all slots to the next.
const ROUND: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(60);

/// How a VIP's slots settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// The shift from ticks to moments.
    pub(crate) shift: u32,
    /// A slot is settled this many moments after its last deviation.
    pub(crate) idle: u16,
    /// How long a moment lasts.
    pub(crate) moment: Duration,
}

/// The words of a VIP's history.
#[derive(Debug)]
pub(crate) struct Watched<C> {
    pub(crate) ring: HeldWords<C>,
    pub(crate) planes: [HeldWords<C>; PLANES],
    pub(crate) pace: Pace,
}

impl<C: Chunk> Watched<C> {
    fn planes(&self) -> Planes<'_> {
        Planes(self.planes.each_ref().map(HeldWords::words))
    }
}

#[derive(Debug)]
struct OfVip<C> {
    watched: Watched<C>,
    /// What was left at the last count of its slots, and when that was; `None`: they have changed
    /// since.
    left: Option<(Unsettled, Instant)>,
    /// What the current round has found so far, and where it continues.
    seen: Unsettled,
    next: usize,
}

/// The kernel's clock when it was last read.
#[derive(Clone, Copy, Debug)]
struct Clock {
    ticks: u32,
    at: Instant,
}

#[derive(Debug)]
struct State<C> {
    /// By the VIP's number.
    vips: BTreeMap<u16, OfVip<C>>,
    clock: Clock,
    running: bool,
    stop: bool,
}

#[derive(Debug)]
struct Shared<C> {
    state: Mutex<State<C>>,
    wake: Condvar,
    tick: Duration,
    tenure: Arc<Tenure>,
}

/// Settles slots of the VIPs that it watches.
#[derive(Debug)]
pub(crate) struct Settler<C> {
    shared: Arc<Shared<C>>,
    task: Task,
}

/// While this lives the thread does not touch slots.
#[must_use = "the thread continues when it is dropped"]
pub(crate) struct Halted<'a, C>(
    #[expect(dead_code, reason = "it is held")] Option<MutexGuard<'a, State<C>>>,
);

impl<C> Shared<C> {
    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ticks(&self, clock: Clock) -> u32 {
        let elapsed = clock.at.elapsed().as_nanos() / self.tick.as_nanos().max(1);
        clock.ticks.wrapping_add(elapsed as u32)
    }
}

impl<C: Chunk + Send + Sync + 'static> Shared<C> {
    /// Goes through all slots, again and again, until nothing is left to settle.
    fn follow(&self) {
        loop {
            let began = Instant::now();
            let numbers: Vec<u16> = self.lock().vips.keys().copied().collect();
            for vip in numbers {
                while self.look(vip) {
                    thread::sleep(PAUSE);
                }
            }
            let mut state = self.lock();
            let unsettled = state.vips.values().filter(|of| !of.is_settled());
            let Some(moment) = unsettled.map(|of| of.watched.pace.moment).min() else {
                state.running = false;
                return;
            };
            let round = moment.clamp(ROUND.start, ROUND.end);
            while !state.stop
                && let Some(left) = round.checked_sub(began.elapsed())
                && left > Duration::ZERO
            {
                let waited = self.wake.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.stop || self.tenure.is_over() {
                state.running = false;
                return;
            }
        }
    }

    /// Examines the next slots of a VIP; `false`: there are no more.
    fn look(&self, vip: u16) -> bool {
        let Ok(_permit) = self.tenure.permit() else {
            return false;
        };
        let mut state = self.lock();
        let now = self.ticks(state.clock);
        let stop = state.stop;
        let Some(of) = state.vips.get_mut(&vip).filter(|_| !stop) else {
            return false;
        };
        let pace = of.watched.pace;
        let ring = of.watched.ring.words();
        let end = ring.len().min(of.next + AT_ONCE);
        let now = At::of_ticks(now, pace.shift);
        let planes = of.watched.planes();
        let found = history::settle(ring, planes, of.next..end, pace.idle, now);
        of.seen = of.seen.and(found);
        of.next = end;
        let more = end < ring.len();
        if !more {
            of.left = Some((mem::take(&mut of.seen), Instant::now()));
            of.next = 0;
        }
        more
    }
}

impl<C> OfVip<C> {
    fn is_settled(&self) -> bool {
        self.left.is_some_and(|(left, _)| left.slots == 0)
    }
}

impl<C: Chunk + Send + Sync + 'static> Settler<C> {
    /// `tick`: how long one of the kernel's ticks lasts.
    pub(crate) fn new(tick: Duration, tenure: Arc<Tenure>) -> Self {
        let clock = Clock {
            ticks: 0,
            at: Instant::now(),
        };
        let state = State {
            vips: BTreeMap::new(),
            clock,
            running: false,
            stop: false,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                wake: Condvar::new(),
                tick,
                tenure,
            }),
            task: Task::new("katran-settle"),
        }
    }

    /// The state shared with the thread; `None` in a child made by fork(2).
    fn state(&self) -> Option<MutexGuard<'_, State<C>>> {
        self.task.is_here().then(|| self.shared.lock())
    }

    /// Makes the thread wait. In a child made by fork(2) there is none.
    pub(crate) fn halt(&self) -> Halted<'_, C> {
        Halted(self.state())
    }

    /// Settles the slots of the VIP with this number from here on; `ticks`: the kernel's clock.
    pub(crate) fn watch(&mut self, vip: u16, watched: Watched<C>, ticks: u32) {
        if !self.task.is_here() {
            return;
        }
        let mut state = self.shared.lock();
        state.clock = Clock {
            ticks,
            at: Instant::now(),
        };
        let of = OfVip {
            watched,
            left: None,
            seen: Unsettled::default(),
            next: 0,
        };
        state.vips.insert(vip, of);
        // After a panic it does not say that it has ended.
        if state.running && !self.task.is_over() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        match self.task.start(move || shared.follow()) {
            Ok(()) => state.running = true,
            // Meanwhile their packets ask the tables; the next change tries again.
            Err(error) => log::warn!("cannot settle slots until the next change: {error}"),
        }
    }

    /// The VIP has no history any more.
    pub(crate) fn forget(&mut self, vip: u16) {
        if let Some(mut state) = self.state() {
            state.vips.remove(&vip);
        }
    }

    /// What was unsettled at the last count of the VIP's slots, and how long ago that was. This is
    /// current: the thread counts what it leaves, and others that settle slots report it. `None`:
    /// there was no count.
    pub(crate) fn left(&self, vip: u16) -> Option<(Unsettled, Duration)> {
        let (left, at) = self.state()?.vips.get(&vip)?.left?;
        Some((left, at.elapsed()))
    }

    /// Reports a count made by another thread, if this one had none.
    pub(crate) fn counted(&self, vip: u16, left: Unsettled) {
        if let Some(mut state) = self.state()
            && let Some(of) = state.vips.get_mut(&vip)
        {
            of.left.get_or_insert((left, Instant::now()));
        }
    }

    /// Another thread has settled slots of the VIP, which makes the last count invalid.
    pub(crate) fn count_again(&self, vip: u16) {
        if let Some(mut state) = self.state()
            && let Some(of) = state.vips.get_mut(&vip)
        {
            of.left = None;
            of.seen = Unsettled::default();
            of.next = 0;
        }
    }

    /// VIPs whose slots are all settled.
    pub(crate) fn settled(&self) -> Vec<u16> {
        let Some(state) = self.state() else {
            return Vec::new();
        };
        let vips = state.vips.iter();
        let settled = vips.filter(|(_, of)| of.is_settled());
        settled.map(|(vip, _)| *vip).collect()
    }
}

impl<C> Drop for Settler<C> {
    fn drop(&mut self) {
        self.task.end(|| {
            self.shared.lock().stop = true;
            self.shared.wake.notify_all();
        });
    }
}
