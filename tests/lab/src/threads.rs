//! This process's threads: their CPUs, whether one of a name exists, and ending those of a test.

use std::fs;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use nix::sched::CpuSet;
use nix::sched::sched_getaffinity;
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;

/// The CPUs that this thread may use, in order.
///
/// # Panics
/// If the kernel does not report them.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))
        .unwrap_or_else(|error| panic!("CPUs of this thread: {error}"));
    (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu) == Ok(true))
        .collect()
}

/// Keeps this thread, and those that it starts, on one CPU.
///
/// # Panics
/// If it may not run there.
pub fn stay_on(cpu: usize) {
    let mut one = CpuSet::new();
    let stays = one
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &one));
    assert_eq!(stays, Ok(()), "staying on CPU {cpu}");
}

/// Whether this process has a thread of this name, or this thread has started one that may get it:
/// until a thread runs, it has its starter's name, which no other thread must have.
///
/// # Panics
/// If the process's threads cannot be listed.
#[must_use]
pub fn is_thread_there(name: &str) -> bool {
    let own = fs::read_to_string("/proc/thread-self/comm");
    let own = own.unwrap_or_else(|error| panic!("/proc/thread-self/comm: {error}"));
    // In this order, or a thread that gets its name in between is in neither count.
    threads_named(own.trim_end()) > 1 || threads_named(name) > 0
}

/// How many threads of this process have this name.
fn threads_named(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task");
    let tasks = tasks.unwrap_or_else(|error| panic!("/proc/self/task: {error}"));
    let is_named = |task: &io::Result<fs::DirEntry>| {
        let path = task.as_ref().map(|task| task.path().join("comm"));
        // A thread that has ended has no name.
        path.is_ok_and(|path| fs::read_to_string(path).is_ok_and(|of| of.trim_end() == name))
    };
    tasks.filter(is_named).count()
}

/// Makes a scope's threads end, even if the test fails: the scope waits for them.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
