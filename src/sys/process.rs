//! Which process owns something. A child made by fork(2) gets a copy of every handle and none of
//! the library's threads: it must not undo what its parent still uses, nor wait for threads that it
//! does not have.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use nix::libc;

/// Forks that led to this process, since the first question. A process id would not do: in its own
/// PID namespace a child may have its parent's.
static FORKS: AtomicU64 = AtomicU64::new(0);
static COUNTS: AtomicBool = AtomicBool::new(false);

extern "C" fn count() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The process that made something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner(u64);

impl Owner {
    /// The calling process.
    pub(crate) fn new() -> Self {
        // If two threads both do it, each fork counts twice, which does no harm.
        if !COUNTS.load(Ordering::Acquire) {
            // SAFETY: the function only adds to an atomic, which is allowed in a child, and exists
            // as long as the code that registers it.
            let failed = unsafe { libc::pthread_atfork(None, None, Some(count)) };
            match failed {
                0 => COUNTS.store(true, Ordering::Release),
                errno => {
                    let error = io::Error::from_raw_os_error(errno);
                    log::warn!(
                        "cannot watch for fork(2): a child will take itself for its parent: {error}"
                    );
                }
            }
        }
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether the calling process is this one, and not a child of it.
    pub(crate) fn is_here(self) -> bool {
        self.0 == FORKS.load(Ordering::Relaxed)
    }
}
