//! Where a balancer is pinned: no setting of the balancer, but of the place where it is loaded, so documents do not
//! say it.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use super::Builder;
use super::Config;
use crate::error::Error;
use crate::error::Result;

impl Builder {
    /// Pins the balancer in a directory, so that it outlives the handle and the process: programs and maps at
    /// [`load`](Self::load), and what is attached when it is attached. What packets see stays as it is then, until
    /// [`Katran::remove`](crate::Katran::remove) or [`remove`](crate::remove).
    ///
    /// The directory is in a BPF file system, such as `/sys/fs/bpf/katran`; it is made if it is missing, with the
    /// mode 0700. One that others own, or can open, change or replace, is refused, and one with something else in it. One
    /// process at a time has the balancer: for all others it is [`Error::Busy`]. A process has at
    /// most 64 of them.
    ///
    /// Each call writes down what it will change before it does, some microseconds' work, in a ledger of at least 1 MiB in
    /// that directory: with 1,000,000 server ids it takes 32 MiB. A call whose change cannot be written down, as there is no memory for
    /// a larger ledger, is [`Error::Kernel`], and changes nothing; an `apply` undoes what it has made by then.
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

    /// Has [`adopt`](Self::adopt) and [`adopt_or_load`](Self::adopt_or_load) ask the process that owns the pinned
    /// balancer to let go, and wait for that, no longer than `patience`: for upgrades without a moment in which nobody could
    /// own it. The owner's library hears of it at once, lets the call end that changes something just
    /// then, and gives the balancer up; its handle returns [`Error::HandedOver`] from then on. Packets
    /// notice nothing. It works between processes in whatever namespaces, if both see the directory, and between
    /// two handles of one process.
    ///
    /// An owner that does not answer in time, as it is stopped or in a call that takes longer (see the callbacks of
    /// [`Katran::on_real_added`](crate::Katran::on_real_added)), keeps it: then it is [`Error::Busy`].
    /// If adoption fails after the owner has let go, nobody owns the balancer, and it forwards on: adopt it again, in
    /// either process.
    ///
    /// Default: none, the owner is not asked. Some seconds are enough.
    pub fn take_over(mut self, patience: Duration) -> Self {
        self.take_over = Some(patience);
        self
    }

    /// For how long to wait for an owner that is asked; `None`: it is not asked.
    pub(crate) fn take_over_patience(&self) -> Option<Duration> {
        self.take_over
    }

    /// Whether a balancer with these settings makes sense where it is to be.
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

    /// The directory to pin the balancer in.
    pub(crate) fn pin_directory(&self) -> Option<PathBuf> {
        self.pin.clone()
    }
}
