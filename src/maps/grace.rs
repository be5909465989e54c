//! RCU grace periods that pass in the background. What packets may still be reading gets a moment,
//! and can be reused once that moment has passed for every packet.
//!
//! The kernel offers to wait for a grace period, but not to report one. So a thread waits while
//! there is something to wait for, and then ends: an idle balancer has none.
//!
//! Why it is correct, whatever the order of threads. All shared data is `State`, behind one mutex,
//! so what matters is the order of the sections that hold it: `begin`, both of `follow`'s round (it
//! reads `begun`, waits, writes) and both of `wait`.
//!
//! 1. *No moment passes too early.* `passed` becomes `m` or more only by `pass(n)` with `n >= m`,
//!    where `n` was read from `begun` before a wait began that has ended. `begun` is `m` or more
//!    only since the `begin` that returned `m`, and its caller had put the moment's object out of
//!    packets' reach before. The mutex passes these stores on to the waiting thread, and the wait
//!    is a full barrier on every CPU. So a packet that can still see the object had begun before
//!    the wait did, and has finished when the wait ends.
//! 2. *No moment goes back.* `passed` is a maximum.
//! 3. *No moment is forgotten.* While `waited_for` is set, a thread is before the end of a round,
//!    and every round's end compares with `begun` in the section that clears `waited_for`. A
//!    `begin` before that section causes another round; a `begin` after it finds `waited_for` clear
//!    and starts another thread.
//! 4. *Without a thread* (it cannot be started, the kernel refuses to wait, a child made by
//!    fork(2)) moments pass late, not early: a caller that needs something again calls `wait`,
//!    which reports a refusal. The thread gives up early only if it holds the last reference: then
//!    nothing can ask.

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

/// Reports which moments have passed, so that no packet from before is under way. Copies share
/// them.
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
    /// A thread waits. In a child made by fork(2) this may be set without a thread; then only
    /// `wait` makes moments pass.
    waited_for: bool,
}

impl State {
    fn pass(&mut self, moment: u64) {
        self.passed = self.passed.max(moment);
    }
}

impl GracePeriods {
    /// Uses whatever way to wait this machine has.
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

    /// A new moment. Once it has passed, no packet sees what was put out of reach before this call.
    pub(crate) fn begin(&self) -> Moment {
        let mut state = self.shared.lock();
        state.begun += 1;
        if !state.waited_for {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("katran-grace".to_owned());
            // Without a thread, moments pass when a caller waits for them.
            state.waited_for = thread.spawn(move || follow(&shared)).is_ok();
        }
        Moment(state.begun)
    }

    /// The last moment that has passed, and with it all before.
    pub(crate) fn passed(&self) -> Moment {
        Moment(self.shared.lock().passed)
    }

    /// Waits until every moment that has begun has passed. Takes milliseconds.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let begun = self.shared.lock().begun;
        self.shared.grace_period.wait()?;
        self.shared.lock().pass(begun);
        Ok(())
    }
}

/// Waits for grace periods until the last moment has passed, or no caller is left to ask.
fn follow(shared: &Arc<Shared>) {
    loop {
        let begun = shared.lock().begun;
        let waited = shared.grace_period.wait();
        let mut state = shared.lock();
        if waited.is_ok() {
            state.pass(begun);
        }
        // If the kernel refuses, the call that needs it waits itself, and gets the error.
        let done = state.passed >= state.begun || Arc::strong_count(shared) == 1;
        if done || waited.is_err() {
            state.waited_for = false;
            return;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Three plain values, valid even after a panic.
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
            // It takes longer than that, unless other work had the CPU in between.
            let at_once = before.elapsed() < Duration::from_micros(100);
            assert!(moment > last && (passed < moment || !at_once));
            last = moment;
            thread::sleep(Duration::from_millis(1));
        }
        while grace_periods.passed() < last {
            assert!(began.elapsed() < Duration::from_secs(60), "{last:?}");
            thread::sleep(Duration::from_millis(1));
        }
        // The thread has ended, and another starts for the next moment.
        assert!(!grace_periods.shared.lock().waited_for);
        let moment = grace_periods.begin();
        grace_periods.wait().unwrap();
        assert_eq!(grace_periods.passed(), moment);
    }
}
