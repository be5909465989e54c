//! Takes a pinned balancer away, also one that is half made or half removed: by what is in its directory, never more
//! than what a balancer has put there.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::parent_id;
use std::path::Path;

use super::ATTACHED;
use super::Home;
use super::IDENTITY;
use super::MAIN;
use super::MAPS;
use super::NEW_PROGRAMS;
use super::PARTS;
use super::PROBES;
use super::PROGRAMS;
use super::SPECIAL;
use super::Stage;
use super::busy;
use super::entries;
use super::file_error;
use super::file_name;
use super::handover;
use super::identity::LAYOUT;
use crate::attach::EntrySet;
use crate::attach::end_kept;
use crate::config::MapRow;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::map;
use crate::sys::pin;
use crate::sys::pin::Kind;
use crate::sys::program;
use crate::sys::rcu::GracePeriod;

/// Bytes of a name that the kernel keeps.
const KEPT_OF_NAME: usize = 15;

/// Takes away the balancer that is pinned in a directory: from its interfaces and entries of root programs, and all that
/// is pinned. It is for what a process has left; [`Katran::remove`](crate::Katran::remove) does it with a handle. The directory goes,
/// too, unless there is something else in it, which is left alone.
///
/// Call it in the mount namespace where the BPF file system is. A clsact filter of health checks is found if a process
/// that this one may look into, or a mount, is in its network namespace.
///
/// # Errors
/// [`Error::NotFound`] if no balancer is pinned there (an empty directory may be what is left of one, and goes);
/// [`Error::Busy`] if a process has it; [`Error::InvalidConfig`] if others can open, change or replace the directory; [`Error::Unsupported`] if another version of the crate has made it, in another way; [`Error::Privilege`]; [`Error::Kernel`]; [`Error::File`]. What was
/// removed by then is gone, and to call it again goes on.
pub fn remove(directory: impl AsRef<Path>) -> Result<()> {
    let mut home = Home::open(directory.as_ref())?;
    if home.identity.is_none() {
        home.remove_requests()?;
    }
    if home.identity.is_none() && !entries(&home.path)?.is_empty() {
        return Err(Error::NotFound {
            what: format!("a pinned balancer in {}", home.path.display()),
        });
    }
    if let Some(identity) = &home.identity
        && identity.layout() != LAYOUT
    {
        return Err(Error::Unsupported {
            what: format!(
                "to remove a balancer of layout {} (katran {}) in {}",
                identity.layout(),
                identity.version(),
                home.path.display()
            ),
            reason: "this version of the crate does not know that layout: remove it with the version that has \
                     made it",
        });
    }
    home.remove()
}

/// The programs of a balancer that are pinned in a directory, as far as they are.
struct Set {
    main: OwnedFd,
    special: OwnedFd,
}

impl Home {
    /// From now on what is there is no balancer any more, however far its removal gets.
    pub(crate) fn begin_removal(&self) -> Result<()> {
        self.check_owner()?;
        if let Some(identity) = &self.identity {
            identity.set_stage(Stage::Removing);
        }
        Ok(())
    }

    /// Whether this process has the directory, and is no child of that made by fork(2).
    pub(crate) fn check_owner(&self) -> Result<()> {
        match self.owner.is_here() {
            true => Ok(()),
            false => Err(busy(&self.path, Some(parent_id()))),
        }
    }

    /// Takes away all that is a balancer's, the identity last.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.begin_removal()?;
        if self.identity.is_some() {
            self.end_attachments()?;
            for part in [NEW_PROGRAMS].into_iter().chain(PARTS) {
                self.remove_part(part)?;
            }
            let failed = |error| file_error("remove the ledger in", &self.path, error);
            self.remove_ledger().map_err(failed)?;
            self.remove_requests()?;
            let path = self.path.join(IDENTITY);
            pin::remove(&path).map_err(|error| file_error("remove", &path, error))?;
            self.identity = None;
        }
        remove_directory(&self.path)
    }

    /// What processes have left that asked for the balancer; who asks now finds out that there is none.
    fn remove_requests(&self) -> Result<()> {
        handover::remove(&self.claim.directory)
            .map_err(|error| file_error("remove requests in", &self.path, error))
    }

    fn end_attachments(&self) -> Result<()> {
        if !self.attached.exists() {
            return Ok(());
        }
        let sets: Vec<Set> = [PROGRAMS, NEW_PROGRAMS]
            .into_iter()
            .filter_map(|part| self.set(part).transpose())
            .collect::<Result<_>>()?;
        let sets: Vec<_> = sets
            .iter()
            .map(|set| EntrySet {
                main: set.main.as_fd(),
                special: set.special.as_fd(),
            })
            .collect();
        let attached = entries(&self.attached)?;
        for path in &attached {
            if !end_kept(path, &sets)? {
                log::warn!("{} is not a balancer's and stays", path.display());
            }
        }
        if !attached.is_empty()
            // A packet may still be in the program, and need what goes with it.
            && let Err(error) = GracePeriod::new().and_then(|period| period.wait())
        {
            log::warn!("cannot wait until no packet is in the program: {error}");
        }
        Ok(())
    }

    fn set(&self, part: &str) -> Result<Option<Set>> {
        let directory = self.path.join(part);
        let open = |name: &str| {
            let path = directory.join(name);
            match pin::open(&path) {
                Ok(object) => Ok(Some(object)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(kernel_error("open", &path.display().to_string(), error)),
            }
        };
        let (main, special) = (open(MAIN)?, open(SPECIAL)?);
        Ok(main
            .zip(special)
            .map(|(main, special)| Set { main, special }))
    }

    /// Removes one of the directories inside, with what is a balancer's in it.
    pub(super) fn remove_part(&self, part: &str) -> Result<()> {
        let directory = self.path.join(part);
        if !directory.exists() {
            return Ok(());
        }
        // What is left of attachments is not a balancer's.
        let objects = match part {
            ATTACHED => Vec::new(),
            _ => entries(&directory)?,
        };
        for path in objects {
            if is_ours(part, &path)? {
                pin::remove(&path).map_err(|error| file_error("remove", &path, error))?;
            } else {
                log::warn!("{} is not a balancer's and stays", path.display());
            }
        }
        remove_directory(&directory)
    }
}

/// Whether what is pinned at a path is an object that a balancer has of that name.
fn is_ours(part: &str, path: &Path) -> Result<bool> {
    let failed = |error| kernel_error("look at", &path.display().to_string(), error);
    if !path.symlink_metadata().is_ok_and(|of| of.is_file()) {
        return Ok(false);
    }
    let object = match pin::open(path) {
        Ok(object) => object,
        // Gone since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(failed(error)),
    };
    let pinned_as = path.file_name().unwrap_or_default().to_string_lossy();
    match pin::kind(object.as_fd()).map_err(failed)? {
        Some(Kind::Map) => {
            let name = map::info(object.as_fd()).map_err(failed)?.name;
            let mut ours = MapRow::names().filter(|of| file_name(of) == pinned_as);
            Ok(ours.any(|of| is_cut(&name, of)))
        }
        Some(Kind::Program) => {
            let name = program::info(object.as_fd()).map_err(failed)?.name;
            let names: &[&str] = match part {
                PROBES => &["healthcheck"],
                MAPS => &[],
                _ => &[
                    "katran",
                    "katran_full",
                    "katran_explain",
                    "katran_explain_full",
                    "ticks",
                ],
            };
            Ok(names.iter().any(|of| is_cut(&name, of)))
        }
        Some(Kind::Link) | None => Ok(false),
    }
}

/// Whether the kernel gives this name to an object of that name, which it cuts.
fn is_cut(name: &str, of: &str) -> bool {
    name == &of[..of.len().min(KEPT_OF_NAME)]
}

/// Removes a directory, unless there is something else in it, or it is where the file system is mounted.
fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy => {
                log::warn!("{} stays: {error}", path.display());
                Ok(())
            }
            _ => Err(file_error("remove", path, error)),
        },
    }
}
