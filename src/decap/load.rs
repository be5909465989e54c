//! From settings to a decapsulator: a new one, or one that is pinned.

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

impl DecapBuilder {
    /// Loads the decapsulator. Needs no interface and attaches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`] for a destination that no packet can
    /// have; [`Error::KernelTooOld`],
    /// [`Error::BpfUnavailable`],
    /// [`Error::Privilege`]; [`Error::Verifier`]
    /// if the kernel rejects the program; [`Error::Kernel`]. With [`pin`](Self::pin) also
    /// [`Error::AlreadyExists`] if something is pinned in the directory (see
    /// [`adopt`](Self::adopt)), and those of a directory, as in [`Builder::load`](crate::Builder::load). Nothing stays in the
    /// kernel then, and no directory.
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

    /// Goes on with the decapsulator that is pinned in the directory of [`pin`](Self::pin), whose process is gone: with
    /// its settings, not with those given here ([`Decap::reload`] changes them), its attachments and its counters.
    /// Programs of this version take the place of those that are attached, between two packets; links stay.
    ///
    /// An interface that was removed meanwhile has taken its attachment with it: [`Decap::interfaces`] and
    /// [`Decap::tc_interfaces`] say so, and [`Decap::reattach`] puts it back.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing whole is pinned there;
    /// [`Error::InvalidConfig`] if it is something else;
    /// [`Error::Busy`]; [`Error::Unsupported`] if another version of the crate has pinned settings in a form that this one cannot
    /// read (counters in another form begin at 0), or arranged the directory in another way; otherwise as [`load`](Self::load). What is there works on.
    pub fn adopt(self) -> Result<Decap> {
        let directory = self.directory_to_adopt()?;
        let adopted = adopt_whole(&directory)?;
        adopted
            .map(|(decap, _)| decap)
            .ok_or_else(|| Tenant::Decapsulator.missing(&directory))
    }

    /// [Adopts](Self::adopt) what is pinned, or [loads](Self::load) if nothing is; what is half made is removed before.
    ///
    /// ```no_run
    /// use katran::Decap;
    ///
    /// let settings = Decap::builder().allow_destinations(["203.0.113.1/32".parse()?]);
    /// let (mut decap, _) = settings.clone().pin("/sys/fs/bpf/katran_decap").adopt_or_load()?;
    /// decap.reload(settings)?; // nothing, if they are those in force
    /// # Ok::<(), katran::Error>(())
    /// ```
    ///
    /// # Errors
    /// As these.
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
            reason: "it says which decapsulator to go on with".to_owned(),
        })
    }
}
