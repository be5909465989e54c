//! Keeps signals away from program loads and from threads with small stacks.
//!
//! A pending signal makes the verifier give up with EAGAIN, and libbpf starts over, five times at
//! most: under a profiler's timer a load takes many times as long, or fails.

use nix::sys::signal::SigSet;
use nix::sys::signal::SigmaskHow;
use nix::sys::signal::Signal;
use nix::sys::signal::pthread_sigmask;

/// The thread's previous signal mask, restored on drop.
struct Before(SigSet);

/// Runs `f` while this thread takes no signals except for its own faults. Others wait, or go to
/// other threads.
pub(crate) fn without_signals<T>(f: impl FnOnce() -> T) -> T {
    let mut blocked = SigSet::all();
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGSYS,
    ] {
        blocked.remove(fault);
    }
    let mut before = SigSet::empty();
    let masked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before));
    let _before = masked.is_ok().then_some(Before(before));
    f()
}

impl Drop for Before {
    fn drop(&mut self) {
        // It was this thread's mask, so it is valid.
        let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.0), None);
        debug_assert!(restored.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "signal masks are the kernel's")]
    fn signals_wait_and_the_mask_is_what_it_was() {
        let mask = || SigSet::thread_get_mask().unwrap();
        let mut own = mask();
        own.add(Signal::SIGUSR2);
        own.thread_set_mask().unwrap();
        without_signals(|| {
            let mask = mask();
            for blocked in [Signal::SIGALRM, Signal::SIGPROF, Signal::SIGINT] {
                assert!(mask.contains(blocked), "{blocked}");
            }
            assert!(!mask.contains(Signal::SIGSEGV));
        });
        assert_eq!(mask(), own);
        let panicked = std::panic::catch_unwind(|| without_signals(|| panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(mask(), own);
    }
}
