//! The end of the process between two stores, for tests: the thread panics instead of the store.

use std::cell::Cell;
use std::panic;
use std::panic::AssertUnwindSafe;

thread_local! {
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What a thread panics with.
struct Killed;

/// Comes before each store.
pub(super) fn step() {
    let left = LEFT.get();
    if left == Some(0) {
        panic::resume_unwind(Box::new(Killed));
    }
    LEFT.set(left.map(|left| left - 1));
}

/// Does `work`, of which the thread dies before the store after `stores`; `None`: it has died.
pub(crate) fn after<T>(stores: u64, work: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(stores));
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    LEFT.set(None);
    match done {
        Ok(done) => Some(done),
        Err(died) if died.is::<Killed>() => None,
        Err(other) => panic::resume_unwind(other),
    }
}
