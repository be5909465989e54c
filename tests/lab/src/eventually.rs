//! Waiting for what is certain to come, with an end to the patience.

use std::fmt::Display;
use std::thread;
use std::time::Duration;
use std::time::Instant;

/// So long that a busy machine is no reason to fail.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// Waits until it is so.
///
/// # Panics
/// If it is not within a minute, with `what`.
pub fn eventually(what: impl Display, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::sleep(POLL);
    }
}
