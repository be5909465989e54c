//! The turn to listen, because a balancer's ring buffer has one reader; and the switch for events.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::maps::Live;
use crate::sys::tenure::Tenure;

/// Switches events on and off, for whatever programs the balancer has at the time.
#[derive(Debug)]
pub(crate) struct Switch(Mutex<Arc<Live>>);

impl Switch {
    pub(crate) fn new(live: &Arc<Live>) -> Self {
        Self(Mutex::new(Arc::clone(live)))
    }

    /// As [`Live::set_events`].
    pub(crate) fn set(&self, kinds: u32, limit: u32) {
        let live = self.lock();
        live.tenure().while_ours(|| live.set_events(kinds, limit));
    }

    /// The time for which this process may listen.
    pub(crate) fn tenure(&self) -> Arc<Tenure> {
        Arc::clone(self.lock().tenure())
    }

    /// Other programs are the balancer's from now on: they make the events that the earlier ones
    /// made.
    pub(crate) fn move_to(&self, live: &Arc<Live>) {
        let mut present = self.lock();
        let (kinds, limit) = present.events();
        live.set_events(kinds, limit);
        *present = Arc::clone(live);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Live>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One monitor's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<AtomicBool>);

impl Turn {
    /// Takes the turn; `None`: another monitor has it. Of several threads that try at once one gets
    /// it.
    pub(crate) fn take(taken: &Arc<AtomicBool>) -> Option<Self> {
        let swapped = taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        swapped.is_ok().then(|| Self(Arc::clone(taken)))
    }

    pub(crate) fn is_taken(taken: &AtomicBool) -> bool {
        taken.load(Ordering::Relaxed)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
