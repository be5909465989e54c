//! Removes what is pinned, even if it is half made or half removed: by what is in its directory,
//! and never more than its tenant put there.

use std::os::fd::AsFd;
use std::os::unix::process::parent_id;
use std::path::Path;

use super::Home;
use super::IDENTITY;
use super::Stage;
use super::TC_PROGRAM;
use super::claim::busy;
use super::entries;
use super::file_error;
use super::handover;
use super::known;
use super::remove_directory;
use super::set::Entrance;
use crate::attach::end_kept;
use crate::error::Error;
use crate::error::Result;
use crate::sys::pin;
use crate::sys::rcu::GracePeriod;

/// Removes the [`Katran`](crate::Katran), [`Decap`](crate::Decap) or
/// [`ServerIdOption`](crate::ServerIdOption) that is pinned in a directory: from its interfaces,
/// root entries or cgroups, and all its pins. Use it for what a process has left behind; with a
/// handle, use its own `remove`, such as [`Katran::remove`](crate::Katran::remove). The directory
/// goes too, unless it contains something else.
///
/// Call it in the mount namespace with the BPF file system. It finds a clsact filter only if a
/// mount, or a process that this one may inspect, is in the filter's network namespace. It blocks
/// for some 50 ms per interface, because the kernel waits for packets under way.
///
/// # Errors
/// [`Error::NotFound`] if nothing is pinned there (it still removes an empty directory, which may
/// be left over); [`Error::Busy`] if a process has it; [`Error::InvalidConfig`] if others can open,
/// change or replace the directory; [`Error::Unsupported`] if another version of the crate has
/// arranged it differently (the layout of its maps does not matter); [`Error::Privilege`];
/// [`Error::Kernel`]; [`Error::File`]. After an error part of it may be gone; call it again to
/// continue.
pub fn remove(directory: impl AsRef<Path>) -> Result<()> {
    let mut home = Home::open(directory.as_ref())?;
    home.check_identified()?;
    if home.identity.is_none() && !entries(&home.path)?.is_empty() {
        return Err(Error::NotFound {
            what: format!("anything of this crate in {}", home.path.display()),
        });
    }
    if let Some(identity) = &home.identity {
        known(&home.path, identity, "removing the pins")?;
    }
    home.remove()
}

/// The same, if there is anything.
pub(crate) fn remove_if_there(directory: &Path) -> Result<()> {
    match remove(directory) {
        Err(Error::NotFound { .. }) => Ok(()),
        removed => removed,
    }
}

impl Home {
    /// Marks it as being removed: from now on it has no owner, however far the removal gets.
    pub(crate) fn begin_removal(&self) -> Result<()> {
        self.check_owner()?;
        if let Some(identity) = &self.identity {
            identity.set_stage(Stage::Removing);
        }
        Ok(())
    }

    /// Checks that this process has the directory, and is not a child made by fork(2).
    pub(crate) fn check_owner(&self) -> Result<()> {
        match self.owner.is_here() {
            true => Ok(()),
            false => Err(busy(&self.path, Some(parent_id()))),
        }
    }

    /// Removes everything that is the tenant's, the identity last.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.begin_removal()?;
        if self.identity.is_some() {
            self.end_attachments()?;
            self.next_set().remove()?;
            self.set().remove()?;
            // Files that remain among the attachments are not the tenant's.
            remove_directory(&self.attached)?;
            self.remove_requests()?;
            let path = self.path.join(IDENTITY);
            pin::remove(&path).map_err(|error| file_error("remove", &path, error))?;
            self.identity = None;
        }
        remove_directory(&self.path)
    }

    /// Removes requests that processes have left; a process that asks now learns that there is no
    /// balancer.
    fn remove_requests(&self) -> Result<()> {
        handover::remove(&self.claim.directory)
            .map_err(|error| file_error("remove requests in", &self.path, error))
    }

    fn end_attachments(&self) -> Result<()> {
        if !self.attached.exists() {
            return Ok(());
        }
        let mut entrances = self.set().entrances()?;
        entrances.extend(self.next_set().entrances()?);
        let sets: Vec<_> = entrances.iter().map(Entrance::entry_set).collect();
        let filters = self.programs(TC_PROGRAM)?;
        let filters: Vec<_> = filters.iter().map(AsFd::as_fd).collect();
        let attached = entries(&self.attached)?;
        for path in &attached {
            if !end_kept(path, &sets, &filters)? {
                log::warn!("{} is not this crate's: leaving it", path.display());
            }
        }
        if !attached.is_empty()
            // A packet may still be in the program, and need what goes with it.
            && let Err(error) = GracePeriod::new().and_then(|period| period.wait())
        {
            log::warn!("cannot wait for packets to leave the program: {error}");
        }
        Ok(())
    }

    /// Ends an attachment whose pin is all that is left of it.
    pub(crate) fn end_leftover(&self, path: &Path) -> Result<()> {
        let filters = self.programs(TC_PROGRAM)?;
        let filters: Vec<_> = filters.iter().map(AsFd::as_fd).collect();
        end_kept(path, &[], &filters).map(drop)
    }
}
