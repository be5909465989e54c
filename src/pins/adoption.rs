//! What is pinned, opened again by the next owner.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use super::ATTACHED;
use super::CLOCK;
use super::EXPLAINER;
use super::Home;
use super::Identity;
use super::MAIN;
use super::MAPS;
use super::NEW_PROGRAMS;
use super::PROBES;
use super::PROGRAMS;
use super::SPECIAL;
use super::entries;
use super::file_name;
use super::identity::LAYOUT;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::pin;

/// The programs of a balancer.
pub(crate) struct PinnedPrograms {
    pub(crate) main: OwnedFd,
    pub(crate) explainer: OwnedFd,
    pub(crate) clock: OwnedFd,
    pub(crate) special: OwnedFd,
}

/// Whether this version knows what is in a directory.
pub(super) fn check_known(path: &Path, identity: &Identity) -> Result<()> {
    match identity.layout() {
        LAYOUT => Ok(()),
        other => Err(Error::Unsupported {
            what: format!(
                "to go on with the balancer in {}, of layout {other} (katran {})",
                path.display(),
                identity.version()
            ),
            reason: "this version of the crate does not know that layout: it forwards on; use the version that \
                     has made it, or have that remove it and load it again",
        }),
    }
}

impl Home {
    /// What the directory says of itself, if this version knows what is in it.
    pub(crate) fn known_identity(&self) -> Result<Option<&Identity>> {
        let identity = self.identity.as_deref();
        identity.map_or(Ok(()), |identity| check_known(&self.path, identity))?;
        Ok(identity)
    }

    /// A map of the balancer, by its name.
    pub(crate) fn map(&self, name: &str) -> Result<OwnedFd> {
        // A reload that was cut off may have made it.
        for part in [MAPS, PROGRAMS, NEW_PROGRAMS] {
            if let Some(map) = self.open_pin(part, &file_name(name))? {
                return Ok(map);
            }
        }
        Err(self.missing(name))
    }

    /// A map of health checks.
    pub(crate) fn probe_map(&self, name: &str) -> Result<OwnedFd> {
        let map = self.open_pin(PROBES, &file_name(name))?;
        map.ok_or_else(|| self.missing(name))
    }

    /// The program of health checks.
    pub(crate) fn probe(&self) -> Result<OwnedFd> {
        self.probe_map("healthcheck")
    }

    pub(crate) fn attached_programs(&self) -> Result<PinnedPrograms> {
        let programs = self.programs(PROGRAMS)?;
        programs.ok_or_else(|| self.missing(MAIN))
    }

    /// Those of a reload that was cut off, if they are whole.
    pub(crate) fn staged_programs(&self) -> Result<Option<PinnedPrograms>> {
        self.programs(NEW_PROGRAMS)
    }

    fn programs(&self, part: &str) -> Result<Option<PinnedPrograms>> {
        let open = |name| self.open_pin(part, name);
        let (Some(main), Some(explainer), Some(clock), Some(special)) =
            (open(MAIN)?, open(EXPLAINER)?, open(CLOCK)?, open(SPECIAL)?)
        else {
            return Ok(None);
        };
        Ok(Some(PinnedPrograms {
            main,
            explainer,
            clock,
            special,
        }))
    }

    /// The pins that keep attachments.
    pub(crate) fn attachments(&self) -> Result<Vec<PathBuf>> {
        entries(&self.path.join(ATTACHED))
    }

    fn open_pin(&self, part: &str, name: &str) -> Result<Option<OwnedFd>> {
        let path = self.path.join(part).join(name);
        match pin::open(&path) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(kernel_error("open", &path.display().to_string(), error)),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::NotFound {
            what: format!("the pin of {name} in {}", self.path.display()),
        }
    }
}
