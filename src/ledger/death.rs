//! The end of the process between two stores, for tests: the thread panics instead of the store.

use std::cell::Cell;
use std::panic;
use std::panic::AssertUnwindSafe;

thread_local! {
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

thread_local! {
    static DONE_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Comes before a change is noted as made.
pub(super) fn at_done() {
    let left = DONE_LEFT.get();
    if left == Some(0) {
        panic::resume_unwind(Box::new(Killed));
    }
    DONE_LEFT.set(left.map(|left| left - 1));
}

/// Does `work`, of which the thread dies when so many changes were noted as made and one more is made; `None`: it has
/// died.
pub(crate) fn before_done<T>(changes: u64, work: impl FnOnce() -> T) -> Option<T> {
    DONE_LEFT.set(Some(changes));
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    DONE_LEFT.set(None);
    match done {
        Ok(done) => Some(done),
        Err(died) if died.is::<Killed>() => None,
        Err(other) => panic::resume_unwind(other),
    }
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
