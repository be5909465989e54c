//! Where a balancer is pinned. It is a property of the place where it is loaded and not of the
//! balancer, so documents do not contain it.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use super::Builder;
use super::Config;
use crate::error::Error;
use crate::error::Result;

/// # Outliving the process
impl Builder {
    /// Pins the balancer in a directory, so that it outlives the handle and the process.
    /// [`load`](Self::load) pins programs and maps, and later calls what they attach. It keeps
    /// forwarding until [`Katran::remove`](crate::Katran::remove) or [`remove`](crate::remove).
    ///
    /// The directory must be in a BPF file system, such as `/sys/fs/bpf/katran`. The library makes
    /// it if it is missing, with mode 0700. It refuses a directory that others own, or can open,
    /// change or replace, and one that holds something else. One process at a time owns the
    /// balancer; others get [`Error::Busy`]. A process can have at most 64.
    ///
    /// Each call first records its change in a ledger in that directory, which takes some
    /// microseconds. The ledger takes at least 1 MiB, and 32 MiB with 1,000,000 server ids. If
    /// there is no memory for a larger ledger, the call changes nothing and returns
    /// [`Error::Kernel`]; an `apply` undoes its earlier changes.
    ///
    /// While the balancer is an orphan nothing is updated: next hops, MTUs and Ethernet addresses
    /// stay as they were, slots do not settle, and nothing reads events. Programs that you got from
    /// [`Katran::program_fd`](crate::Katran::program_fd) and a reload replaced are not pinned.
    ///
    /// Default: none; the balancer ends with its handle.
    pub fn pin(mut self, directory: impl AsRef<Path>) -> Self {
        self.pin = Some(directory.as_ref().to_owned());
        self
    }

    /// Makes [`adopt`](Self::adopt) and [`adopt_or_load`](Self::adopt_or_load) ask the owner of the
    /// pinned balancer to let go, and wait up to `patience` for it, so that an upgrade leaves no
    /// gap without an owner.
    ///
    /// The owner's library sees the request at once, finishes any call that changes something, and
    /// gives the balancer up; the old handle returns [`Error::HandedOver`] from then on. Forwarding
    /// is not affected. It works between processes in any namespaces that both see the directory,
    /// and between two handles of one process.
    ///
    /// An owner that does not answer in time, because it is stopped or in a longer call (see the
    /// callbacks of [`Katran::on_real_added`](crate::Katran::on_real_added)), keeps the balancer,
    /// and adoption returns [`Error::Busy`]. If adoption fails after the owner has let go, the
    /// balancer keeps forwarding as an orphan: adopt it again, in either process.
    ///
    /// Default: none; the owner is not asked. Some seconds are enough.
    pub fn take_over(mut self, patience: Duration) -> Self {
        self.take_over = Some(patience);
        self
    }

    /// How long to wait for an owner that is asked; `None`: it is not asked.
    pub(crate) fn take_over_patience(&self) -> Option<Duration> {
        self.take_over
    }

    /// Checks that these settings make sense in this place.
    pub(crate) fn check_place(config: &Config, directory: Option<&Path>) -> Result<()> {
        match directory {
            None if !config.orphan_limit.is_zero() => Err(Error::InvalidConfig {
                setting: "orphan_limit",
                value: format!("{:?}", config.orphan_limit),
                reason: "a balancer that is not pinned ends with its owner: pin it, or leave orphan_limit out"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn pin_directory(&self) -> Option<PathBuf> {
        self.pin.clone()
    }
}
