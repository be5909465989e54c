//! For tests: ends the process between two stores, by a panic instead of the store.

use std::cell::Cell;
use std::panic;
use std::panic::AssertUnwindSafe;

thread_local! {
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

thread_local! {
    static DONE_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Called before a change is marked as done.
pub(super) fn at_done() {
    let left = DONE_LEFT.get();
    if left == Some(0) {
        panic::resume_unwind(Box::new(Killed));
    }
    DONE_LEFT.set(left.map(|left| left - 1));
}

/// Runs `work`, and panics after `changes` changes, before the next one is done; `None`: it
/// panicked.
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

/// The panic's payload.
struct Killed;

/// Called before each store.
pub(super) fn step() {
    let left = LEFT.get();
    if left == Some(0) {
        panic::resume_unwind(Box::new(Killed));
    }
    LEFT.set(left.map(|left| left - 1));
}

/// Runs `work`, and panics before the store that follows `stores` others; `None`: it panicked.
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
