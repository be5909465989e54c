//! A whole set of pins: the programs, maps and ledger of a balancer, or those of another tenant.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use super::Content;
use super::MAIN;
use super::MAPS;
use super::Objects;
use super::PROBES;
use super::SPECIAL;
use super::contents::Contents;
use super::entries;
use super::file_error;
use super::file_name;
use super::layout::Part;
use super::make_directory;
use super::ours::is_object;
use super::ours::is_ours;
use super::pin_error;
use super::pin_objects;
use super::remove_directory;
use super::tenant::Tenant;
use crate::attach::EntrySet;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::pin;

const CONTENTS: &str = "contents";
const PROGRAMS: &str = "programs";
const NEW_PROGRAMS: &str = "programs_new";
const PARTS: [&str; 3] = [PROGRAMS, MAPS, PROBES];

/// One set, by its path.
pub(crate) struct PinnedSet {
    path: PathBuf,
    tenant: Tenant,
}

/// What an attachment or root entry takes of one load of the programs: the main program, and the
/// array of programs that it calls.
pub(crate) struct Entrance {
    pub(crate) main: OwnedFd,
    pub(crate) special: OwnedFd,
}

impl Entrance {
    /// For an entry of a shared array.
    pub(crate) fn entry_set(&self) -> EntrySet<'_> {
        EntrySet {
            main: self.main.as_fd(),
            special: self.special.as_fd(),
        }
    }
}

impl PinnedSet {
    pub(super) fn at(path: PathBuf, tenant: Tenant) -> Self {
        Self { path, tenant }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Pins everything except the ledger.
    pub(super) fn fill(&self, content: &Content<'_>) -> Result<()> {
        make_directory(&self.path)?;
        let path = self.path.join(CONTENTS);
        Contents::pin(&path, self.tenant).map_err(|error| pin_error(&path, error))?;
        for (part, objects) in [
            (PROGRAMS, &content.programs),
            (MAPS, &content.maps),
            (PROBES, &content.probes),
        ] {
            if objects.is_empty() {
                continue;
            }
            let directory = self.path.join(part);
            make_directory(&directory)?;
            pin_objects(&directory, objects)?;
        }
        Ok(())
    }

    /// Whether any of it is there.
    pub(crate) fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// The set's description of itself, whatever its layout; `None`: there is none.
    pub(crate) fn contents(&self) -> Result<Option<Contents>> {
        let path = self.path.join(CONTENTS);
        let contents = Contents::open(&path, self.tenant);
        contents.map_err(|error| kernel_error("open", &path.display().to_string(), error))
    }

    /// The same for a set that this version can use or replace.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has no description, or its ledger is missing;
    /// [`Error::Unsupported`], with what to do.
    pub(crate) fn readable_contents(&self) -> Result<Contents> {
        let contents = self.contents()?.ok_or_else(|| self.untold())?;
        match self.tenant {
            Tenant::Balancer => self.check_ledger(&contents)?,
            _ if contents.knows(Part::State) => {}
            _ => return Err(self.unreadable(&contents, "its state has another layout")),
        }
        Ok(contents)
    }

    /// The error for a set without a description.
    fn untold(&self) -> Error {
        let path = self.path.join(CONTENTS);
        if !path.exists() {
            return self.missing(CONTENTS);
        }
        Error::Unsupported {
            what: format!("adopting the set described in {}", path.display()),
            reason: "this version of the crate does not know its format: use the version that \
                     made it, or remove it and load it again; the attached programs continue to \
                     work",
        }
    }

    /// The error for a set that this version can only remove.
    pub(crate) fn unreadable(&self, contents: &Contents, why: &str) -> Error {
        Error::Unsupported {
            what: format!(
                "adopting the contents of {} (layout {}, katran {}; {why})",
                self.path.display(),
                contents.layout(),
                contents.version()
            ),
            reason: "use the version of the crate that made it, or remove it and load it again; \
                     the attached programs continue to work",
        }
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

    /// A program, by its name here; `None` if it is not pinned.
    pub(crate) fn program(&self, name: &str) -> Result<Option<OwnedFd>> {
        self.open_pin(PROGRAMS, name)
    }

    /// Pins a program beside those that are there.
    pub(crate) fn pin_program(&self, name: &'static str, program: BorrowedFd<'_>) -> Result<()> {
        pin_objects(&self.path.join(PROGRAMS), &vec![(name, program)])
    }

    /// A map of health checks.
    pub(crate) fn probe_map(&self, name: &str) -> Result<OwnedFd> {
        let map = self.open_pin(PROBES, &file_name(name))?;
        map.ok_or_else(|| self.missing(name))
    }

    /// The health check program; `None` if it has not been needed.
    pub(crate) fn probe(&self) -> Result<Option<OwnedFd>> {
        self.open_pin(PROBES, "healthcheck")
    }

    /// Pins program and maps of health checks that were loaded later than the rest. The program
    /// comes last and marks them as complete.
    pub(crate) fn pin_probes(&self, objects: &Objects<'_>) -> Result<()> {
        // Left by a process that was killed here.
        self.remove_part(PROBES)?;
        let directory = self.path.join(PROBES);
        let pinned = make_directory(&directory).and_then(|()| pin_objects(&directory, objects));
        if pinned.is_err()
            && let Err(error) = self.remove_part(PROBES)
        {
            log::warn!("cannot remove the pins of health checks: {error}");
        }
        pinned
    }

    /// Whether there is a program that could be attached.
    pub(super) fn has_program(&self) -> bool {
        self.path.join(PROGRAMS).join(MAIN).exists()
    }

    /// Everything pinned here that may be attached, including a reload that was cut off.
    pub(crate) fn entrances(&self) -> Result<Vec<Entrance>> {
        let mut entrances = Vec::new();
        for part in [PROGRAMS, NEW_PROGRAMS] {
            let open = |name| self.open_pin(part, name);
            if let (Some(main), Some(special)) = (open(MAIN)?, open(SPECIAL)?) {
                entrances.push(Entrance { main, special });
            }
        }
        Ok(entrances)
    }

    fn open_pin(&self, part: &str, name: &str) -> Result<Option<OwnedFd>> {
        let path = self.path.join(part).join(name);
        match pin::open(&path) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(kernel_error("open", &path.display().to_string(), error)),
        }
    }

    /// The error for a missing pin.
    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::NotFound {
            what: format!(
                "the pin {} in {} (something removed it: the attached programs continue to work, \
                 but no process can adopt them; remove the rest, and load them again)",
                file_name(name),
                self.path.display()
            ),
        }
    }

    /// Pins the programs of a reload beside those that are there.
    pub(crate) fn stage_programs(&self, objects: &Objects<'_>) -> Result<()> {
        let staged = self.path.join(NEW_PROGRAMS);
        // Left by a failed reload, and kept by an interface.
        self.unstage_programs()?;
        let pinned = make_directory(&staged).and_then(|()| pin_objects(&staged, objects));
        if pinned.is_err()
            && let Err(error) = self.unstage_programs()
        {
            log::warn!("cannot remove the pins of a failed reload: {error}");
        }
        pinned
    }

    /// Makes the staged programs the balancer's; the others can be unstaged.
    pub(crate) fn commit_programs(&self) -> Result<()> {
        let [present, staged] = [PROGRAMS, NEW_PROGRAMS].map(|part| self.path.join(part));
        pin::exchange(&present, &staged).map_err(|error| file_error("exchange", &staged, error))
    }

    /// Removes the pins of programs that are not the balancer's.
    pub(crate) fn unstage_programs(&self) -> Result<()> {
        self.remove_part(NEW_PROGRAMS)
    }

    /// Removes all pins, if there are any, and leaves what is not a balancer's. None of it may be
    /// attached.
    pub(crate) fn remove(&self) -> Result<()> {
        let failed = |error| file_error("empty", &self.path, error);
        match self.contents()?.is_some_and(|of| !of.is_known()) {
            true => self.remove_objects()?,
            false => {
                for part in [NEW_PROGRAMS].into_iter().chain(PARTS) {
                    self.remove_part(part)?;
                }
                self.remove_ledger().map_err(failed)?;
            }
        }
        // The description goes last.
        if self.contents()?.is_some() {
            pin::remove(&self.path.join(CONTENTS)).map_err(failed)?;
        }
        remove_directory(&self.path)
    }

    /// Removes everything that is pinned in a set of another layout, whose names this version need
    /// not know.
    fn remove_objects(&self) -> Result<()> {
        let is_directory = |path: &PathBuf| path.symlink_metadata().is_ok_and(|of| of.is_dir());
        let (inside, mut pins): (Vec<_>, Vec<_>) =
            entries(&self.path)?.into_iter().partition(is_directory);
        pins.retain(|path| !path.ends_with(CONTENTS));
        for directory in &inside {
            pins.extend(entries(directory)?);
        }
        for path in pins {
            match is_object(&path)? {
                true => pin::remove(&path).map_err(|error| file_error("remove", &path, error))?,
                false => log::warn!("{} is not a balancer's: leaving it", path.display()),
            }
        }
        inside
            .iter()
            .try_for_each(|directory| remove_directory(directory))
    }

    /// Removes one of the directories inside, with what is a balancer's in it.
    fn remove_part(&self, part: &str) -> Result<()> {
        let directory = self.path.join(part);
        if !fs::exists(&directory).unwrap_or(true) {
            return Ok(());
        }
        for path in entries(&directory)? {
            if is_ours(part, &path)? {
                pin::remove(&path).map_err(|error| file_error("remove", &path, error))?;
            } else {
                log::warn!("{} is not a balancer's: leaving it", path.display());
            }
        }
        remove_directory(&directory)
    }
}
