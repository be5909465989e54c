//! Where a balancer is pinned: no setting of the balancer, but of the place where it is loaded, so documents do not
//! say it.

use std::path::Path;
use std::path::PathBuf;

use super::Builder;

impl Builder {
    /// Pins the balancer in a directory, so that it outlives the handle and the process: programs and maps at
    /// [`load`](Self::load), and what is attached when it is attached. What packets see stays as it is then, until
    /// [`Katran::remove`](crate::Katran::remove) or [`remove`](crate::remove).
    ///
    /// The directory is in a BPF file system, such as `/sys/fs/bpf/katran`; it is made if it is missing, with the
    /// mode 0700. One that others own, or can open, change or replace, is refused, and one with something else in it. One
    /// process at a time has the balancer: for all others it is [`Error::Busy`](crate::Error::Busy). A process has at
    /// most 64 of them.
    ///
    /// Each call writes down what it will change before it does, some microseconds' work, in a ledger of at least 1 MiB in
    /// that directory: with 1,000,000 server ids it takes 32 MiB. A call whose change cannot be written down, as there is no memory for
    /// a larger ledger, is [`Error::Kernel`](crate::Error::Kernel), and changes nothing; an `apply` undoes what it has made by then.
    ///
    /// While no process has it, nothing is followed: next hops, MTUs and Ethernet addresses stay what they were,
    /// slots are not settled, and nobody reads events. Programs that were handed out by
    /// [`Katran::program_fd`](crate::Katran::program_fd) and replaced by a reload are not pinned.
    ///
    /// Default: none: the balancer ends with its handle.
    pub fn pin(mut self, directory: impl AsRef<Path>) -> Self {
        self.pin = Some(directory.as_ref().to_owned());
        self
    }

    /// The directory to pin the balancer in.
    pub(crate) fn pin_directory(&self) -> Option<PathBuf> {
        self.pin.clone()
    }
}
