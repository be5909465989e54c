//! Waiting for what is certain to come, with a limit; and how long a thread has waited.

use std::fmt::Display;
use std::fs;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::time::ClockId;
use nix::time::clock_gettime;

/// Long enough that a busy machine is no reason to fail.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// Waits until `is_so`.
///
/// # Panics
/// With `what`, after a minute.
pub fn eventually(what: impl Display, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::sleep(POLL);
    }
}

/// How long `f` waits for other threads, without waits for a CPU.
///
/// # Panics
/// If the kernel does not report a thread's times.
#[expect(
    clippy::unwrap_used,
    reason = "a kernel without them cannot run these tests"
)]
pub fn waited(f: impl FnOnce()) -> Duration {
    let used = || {
        let of_cpu = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        let times = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let for_cpu = times.split(' ').nth(1).unwrap().parse().unwrap();
        Duration::from(of_cpu) + Duration::from_nanos(for_cpu)
    };
    let (before, began) = (used(), Instant::now());
    f();
    let whole = began.elapsed();
    whole.saturating_sub(used() - before)
}
