//! Takes away what is pinned, also if it is half made or half removed: by what is in its directory, never more than
//! what its tenant has put there.

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

/// Takes away what is pinned in a directory, a [`Katran`](crate::Katran), [`Decap`](crate::Decap) or
/// [`ServerIdOption`](crate::ServerIdOption): from its interfaces, entries of root programs or cgroups, and all that
/// is pinned. It is for what a process has left; [`Katran::remove`](crate::Katran::remove) and its fellows do it with a handle. The directory goes,
/// too, unless there is something else in it, which is left alone.
///
/// Call it in the mount namespace where the BPF file system is. A clsact filter is found if a process
/// that this one may look into, or a mount, is in its network namespace. It blocks for some 50 ms, as the kernel waits for packets
/// under way at each interface.
///
/// # Errors
/// [`Error::NotFound`] if nothing is pinned there (an empty directory may be what is left of one, and goes);
/// [`Error::Busy`] if a process has it; [`Error::InvalidConfig`] if others can open, change or replace the directory; [`Error::Unsupported`] if another version of the crate has arranged it in another way (whatever layout its maps have is fine); [`Error::Privilege`]; [`Error::Kernel`]; [`Error::File`]. What was
/// removed by then is gone, and to call it again goes on.
pub fn remove(directory: impl AsRef<Path>) -> Result<()> {
    let mut home = Home::open(directory.as_ref())?;
    home.check_identified()?;
    if home.identity.is_none() && !entries(&home.path)?.is_empty() {
        return Err(Error::NotFound {
            what: format!("anything of this crate in {}", home.path.display()),
        });
    }
    if let Some(identity) = &home.identity {
        known(&home.path, identity, "to remove what is pinned")?;
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
    /// From now on what is there is nobody's any more, however far its removal gets.
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

    /// Takes away all that is the tenant's, the identity last.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.begin_removal()?;
        if self.identity.is_some() {
            self.end_attachments()?;
            self.next_set().remove()?;
            self.set().remove()?;
            // What is left of attachments is not the tenant's.
            remove_directory(&self.attached)?;
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
        let mut entrances = self.set().entrances()?;
        entrances.extend(self.next_set().entrances()?);
        let sets: Vec<_> = entrances.iter().map(Entrance::entry_set).collect();
        let filters = self.programs(TC_PROGRAM)?;
        let filters: Vec<_> = filters.iter().map(AsFd::as_fd).collect();
        let attached = entries(&self.attached)?;
        for path in &attached {
            if !end_kept(path, &sets, &filters)? {
                log::warn!("{} is not ours and stays", path.display());
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

    /// Ends what a pin keeps that nobody was told of, or that cannot be reached any more.
    pub(crate) fn end_leftover(&self, path: &Path) -> Result<()> {
        let filters = self.programs(TC_PROGRAM)?;
        let filters: Vec<_> = filters.iter().map(AsFd::as_fd).collect();
        end_kept(path, &[], &filters).map(drop)
    }
}
