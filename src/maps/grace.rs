//! Grace periods of RCU that pass while the library goes on: what packets may still be reading is
//! given a moment, and used again once that moment has passed for every packet.
//!
//! The kernel offers to wait for a grace period, not to be told of one. So a thread of its own
//! waits, for as long as there is something to wait for, and ends then: an idle balancer has none.
//!
//! Why it is right, whatever the order of threads. All that is shared is `State`, behind one mutex, so an
//! order is an order of the sections that hold it: `begin`, both of `follow`'s round (it reads `begun`,
//! waits, writes) and both of `wait`.
//!
//! 1. *No moment passes too early.* `passed` becomes `m` or more only by `pass(n)` with `n >= m`, where `n`
//!    was read from `begun` before a wait began that has ended. `begun` is `m` or more only since
//!    the `begin` that returned `m`, and its caller had taken out of packets' reach before what the moment is for;
//!    the mutex hands these stores on to the thread that waits, and the wait is a full barrier on every CPU. So a
//!    packet that can still see it had begun before the wait did, and is through when it ends.
//! 2. *None goes back.* `passed` is a maximum.
//! 3. *None is forgotten.* While `waited_for` is set, a thread is before the end of a round, and every round's
//!    end compares with `begun` in the section in which it clears `waited_for`. A `begin` before that section
//!    makes it go round again, a `begin` after it finds `waited_for` clear and starts another thread.
//! 4. *Where there is no thread* (it cannot be started, the kernel refuses to wait, a child made by fork(2))
//!    moments pass late, not early: what is needed again is waited for by `wait`, whose caller is told of
//!    a refusal. The thread gives up early only if it holds the last reference: then nobody can ask.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;

use crate::sys::rcu::GracePeriod;

/// A point between two changes; later ones are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(super) u64);

/// Tells which moments have passed: no packet is under way any more that was then. Copies share them.
#[derive(Clone, Debug)]
pub(crate) struct GracePeriods {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    grace_period: GracePeriod,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last moment that has begun.
    begun: u64,
    /// The last moment that has passed.
    passed: u64,
    /// A thread waits. In a child made by fork(2) it may be said to and not be there; then nothing
    /// passes but what `wait` waits for.
    waited_for: bool,
}

impl State {
    fn pass(&mut self, moment: u64) {
        self.passed = self.passed.max(moment);
    }
}

impl GracePeriods {
    /// By whatever means this machine has to wait for one.
    pub(crate) fn new() -> io::Result<Self> {
        GracePeriod::new().map(Self::by)
    }

    fn by(grace_period: GracePeriod) -> Self {
        Self {
            shared: Arc::new(Shared {
                grace_period,
                state: Mutex::default(),
            }),
        }
    }

    /// Now: what was taken out of packets' reach before this call, none sees once the moment has
    /// passed.
    pub(crate) fn begin(&self) -> Moment {
        let mut state = self.shared.lock();
        state.begun += 1;
        if !state.waited_for {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("katran-grace".to_owned());
            // Without a thread moments pass as well, when somebody waits for them.
            state.waited_for = thread.spawn(move || follow(&shared)).is_ok();
        }
        Moment(state.begun)
    }

    /// The last moment that has passed, and with it all before.
    pub(crate) fn passed(&self) -> Moment {
        Moment(self.shared.lock().passed)
    }

    /// Waits until every moment has passed that has begun. Takes milliseconds.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let begun = self.shared.lock().begun;
        self.shared.grace_period.wait()?;
        self.shared.lock().pass(begun);
        Ok(())
    }
}

/// Waits for grace periods until the last moment has passed, or nobody asks any more.
fn follow(shared: &Arc<Shared>) {
    loop {
        let begun = shared.lock().begun;
        let waited = shared.grace_period.wait();
        let mut state = shared.lock();
        if waited.is_ok() {
            state.pass(begun);
        }
        // If the kernel refuses: whatever call needs it waits, and is told.
        let done = state.passed >= state.begun || Arc::strong_count(shared) == 1;
        if done || waited.is_err() {
            state.waited_for = false;
            return;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Three plain values: right even if somebody panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;
    use std::time::Instant;

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "membarrier(2) is the kernel's")]
    fn moments_pass_in_their_order_without_anyone_waiting() {
        moments_pass(GracePeriods::new().unwrap());
    }

    #[test]
    #[cfg_attr(miri, ignore = "bpf(2) is the kernel's")]
    fn they_also_pass_without_membarrier() {
        moments_pass(GracePeriods::by(GracePeriod::by_map().unwrap()));
    }

    fn moments_pass(grace_periods: GracePeriods) {
        assert_eq!(grace_periods.passed(), Moment(0));
        let mut last = Moment(0);
        let began = Instant::now();
        for _ in 0..50 {
            let before = Instant::now();
            let moment = grace_periods.begin();
            let passed = grace_periods.passed();
            // It takes longer than that, unless others had the CPU in between.
            let at_once = before.elapsed() < Duration::from_micros(100);
            assert!(moment > last && (passed < moment || !at_once));
            last = moment;
            thread::sleep(Duration::from_millis(1));
        }
        while grace_periods.passed() < last {
            assert!(began.elapsed() < Duration::from_secs(60), "{last:?}");
            thread::sleep(Duration::from_millis(1));
        }
        // The thread has ended, and another one comes for the next moment.
        assert!(!grace_periods.shared.lock().waited_for);
        let moment = grace_periods.begin();
        grace_periods.wait().unwrap();
        assert_eq!(grace_periods.passed(), moment);
    }
}
