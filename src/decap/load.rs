//! From settings to a decapsulator: a new one, or a pinned one.

use std::path::PathBuf;

use super::Decap;
use super::builder::DecapBuilder;
use super::parts::Parts;
use super::pinned::adopt_whole;
use crate::environment;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Start;
use crate::pins::Home;
use crate::pins::Tenant;
use crate::pins::remove_if_there;

/// # Loading and adopting
impl DecapBuilder {
    /// Loads the decapsulator. Needs no interface and attaches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`] for a destination that no packet can have;
    /// [`Error::KernelTooOld`], [`Error::BpfUnavailable`], [`Error::Privilege`];
    /// [`Error::Verifier`] if the kernel rejects the program; [`Error::Kernel`]. With
    /// [`pin`](Self::pin) also [`Error::AlreadyExists`] if something is pinned in the directory
    /// (see [`adopt`](Self::adopt)), and the errors for directories of
    /// [`Builder::load`](crate::Builder::load). Nothing stays in the kernel then, and no new
    /// directory.
    pub fn load(mut self) -> Result<Decap> {
        self.check()?;
        environment::check_kernel()?;
        let directory = self.pin.take();
        let home = directory.map(|path| Home::claim(&path, Tenant::Decapsulator));
        let home = home.transpose()?;
        match (Parts::load(&self, None, false), home) {
            (Ok(parts), Some(home)) => Decap::new(self, parts).settle_in(home),
            (Err(error), Some(home)) => {
                home.give_up();
                Err(error)
            }
            (loaded, None) => loaded.map(|parts| Decap::new(self, parts)),
        }
    }

    /// Continues with the decapsulator that is pinned in the directory of [`pin`](Self::pin), whose
    /// process is gone: with its settings (this builder's do not apply; [`Decap::reload`] changes
    /// them), attachments and counters. Programs of this version replace the attached ones between
    /// two packets; links stay.
    ///
    /// An interface that was removed meanwhile has lost its attachment: [`Decap::interfaces`] and
    /// [`Decap::tc_interfaces`] report it, and [`Decap::reattach`] attaches again.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing complete is pinned there; [`Error::InvalidConfig`] if it is
    /// something else; [`Error::Busy`]; [`Error::Unsupported`] if another version of the crate uses
    /// a layout of the settings or the directory that this one cannot read (counters in another
    /// layout begin at 0); otherwise as [`load`](Self::load). The pinned decapsulator keeps
    /// working.
    pub fn adopt(self) -> Result<Decap> {
        let directory = self.directory_to_adopt()?;
        let adopted = adopt_whole(&directory)?;
        adopted
            .map(|(decap, _)| decap)
            .ok_or_else(|| Tenant::Decapsulator.missing(&directory))
    }

    /// [Adopts](Self::adopt) the pinned decapsulator, or [loads](Self::load) one if there is none,
    /// after removing any incomplete one.
    ///
    /// ```no_run
    /// use katran::Decap;
    ///
    /// let settings = Decap::builder().allow_destinations(["203.0.113.1/32".parse()?]);
    /// let (mut decap, _) = settings.clone().pin("/sys/fs/bpf/katran_decap").adopt_or_load()?;
    /// decap.reload(settings)?; // does nothing if they are current
    /// # Ok::<(), katran::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of both.
    pub fn adopt_or_load(self) -> Result<(Decap, Start)> {
        let directory = self.directory_to_adopt()?;
        if let Some(adopted) = adopt_whole(&directory)? {
            return Ok(adopted);
        }
        remove_if_there(&directory)?;
        self.load().map(|decap| (decap, Start::Loaded))
    }

    fn directory_to_adopt(&self) -> Result<PathBuf> {
        self.pin.clone().ok_or_else(|| Error::InvalidConfig {
            setting: "pin",
            value: "(none)".to_owned(),
            reason: "it says which decapsulator to adopt".to_owned(),
        })
    }
}
