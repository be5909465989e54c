//! The memory of a ledger: a pinned map, or a test's memory.

use std::io;
use std::sync::atomic::AtomicU64;

/// Memory for a ledger.
pub(crate) trait Ground: Send + Sync {
    /// The memory, which starts as zeros.
    fn words(&self) -> &[AtomicU64];

    /// Makes another ground of at least `bytes`, which no process can find yet.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn larger(&self, bytes: usize) -> io::Result<Box<dyn Ground>>;

    /// Declares the contents complete: processes find this ground from here on, in place of the
    /// previous one. This is one step, which happens or does not.
    ///
    /// # Errors
    /// If that fails. Processes then still find the previous one.
    fn publish(&mut self) -> io::Result<()>;
}
