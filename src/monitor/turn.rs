//! Whose turn it is to listen: a balancer's ring buffer has one reader.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// One monitor's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<AtomicBool>);

impl Turn {
    /// Takes the turn; `None`: another monitor has it. Of several threads that try at once one gets it.
    pub(crate) fn take(taken: &Arc<AtomicBool>) -> Option<Self> {
        let swapped = taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        swapped.is_ok().then(|| Self(Arc::clone(taken)))
    }

    /// Whether a monitor has it.
    pub(crate) fn is_taken(taken: &AtomicBool) -> bool {
        taken.load(Ordering::Relaxed)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
