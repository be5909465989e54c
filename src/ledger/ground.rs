//! The memory that a ledger lies in: that of a pinned map, or of a test.

use std::io;
use std::sync::atomic::AtomicU64;

/// Where a ledger lies.
pub(crate) trait Ground: Send + Sync {
    /// The memory, which begins as zeros.
    fn words(&self) -> &[AtomicU64];

    /// Another one of at least so many bytes, which nobody finds yet.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn larger(&self, bytes: usize) -> io::Result<Box<dyn Ground>>;

    /// What is written there is whole: it is found from now on, in the place of the one before if there is one,
    /// by one step that is made or not.
    ///
    /// # Errors
    /// If it cannot be. The one before is still found then.
    fn publish(&mut self) -> io::Result<()>;
}
