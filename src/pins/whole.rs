//! Checks a directory's tenant, and replaces sets as a whole for tenants without a ledger.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use super::Content;
use super::Contents;
use super::Home;
use super::Identity;
use super::Stage;
use super::file_error;
use super::place::refused;
use super::tenant::Tenant;
use crate::error::Error;
use crate::error::Result;
use crate::sys::pin;

/// The tenant of a directory that has an identity.
pub(super) fn tenant_of(path: &Path, identity: &Identity) -> Result<Tenant> {
    identity.tenant().ok_or_else(|| Error::Unsupported {
        what: format!("the contents of {}", path.display()),
        reason: "this version of the crate does not know them: use the version that made them",
    })
}

/// Refuses a directory that is another tenant's.
pub(super) fn check_tenant(tenant: Tenant, path: &Path, identity: &Identity) -> Result<()> {
    let other = tenant_of(path, identity)?;
    if other == tenant {
        return Ok(());
    }
    Err(refused(
        path,
        format!(
            "a {} is pinned there: choose another directory for a {}",
            other.name(),
            tenant.name()
        ),
    ))
}

impl Home {
    /// Claims the directory of a whole tenant; returns its age, and the description of its current
    /// set, whatever its layout. `None`: there is none. Asks a process that has it to let go, for
    /// up to `patience`.
    ///
    /// # Errors
    /// Something has removed the description: the tenant may be at work, and must not be taken for
    /// a half made one.
    pub(crate) fn whole(
        path: &Path,
        tenant: Tenant,
        patience: Option<Duration>,
    ) -> Result<Option<(Self, Duration, Contents)>> {
        let home = match Self::open_or_ask(path, tenant, patience) {
            Err(Error::NotFound { .. }) => return Ok(None),
            home => home?,
        };
        home.check_identified()?;
        let Some(identity) = home.known_identity()? else {
            return Ok(None);
        };
        if identity.stage() != Stage::Whole {
            return Ok(None);
        }
        let contents = home.set().readable_contents()?;
        let age = identity.age().unwrap_or_default();
        Ok(Some((home, age, contents)))
    }

    /// Records that programs of this version run it.
    pub(crate) fn note_version(&self) {
        if let Some(identity) = &self.identity {
            identity.set_version();
        }
    }

    /// Pins a replacement for the current set, beside it.
    pub(crate) fn stage_next(&self, content: &Content<'_>) -> Result<()> {
        let next = self.next_set();
        // Left by a replacement that was cut off, or kept by an attachment.
        next.remove()?;
        let pinned = next.fill(content);
        if pinned.is_err() {
            self.unstage_next();
        }
        pinned
    }

    /// Makes the staged set the current one; the other can be unstaged.
    pub(crate) fn commit_next(&self) -> Result<()> {
        let [set, next] = [self.set(), self.next_set()];
        let exchanged = pin::exchange(set.path(), next.path());
        exchanged.map_err(|error| file_error("exchange", next.path(), error))
    }

    /// Removes the pins of the set that is not current.
    pub(crate) fn unstage_next(&self) {
        if let Err(error) = self.next_set().remove() {
            log::warn!("cannot remove the pins of the other set: {error}");
        }
    }

    /// The programs of this name, including that of a set that is not current.
    pub(crate) fn programs(&self, name: &str) -> Result<Vec<OwnedFd>> {
        let sets = [self.set(), self.next_set()];
        let found = sets.iter().filter_map(|set| set.program(name).transpose());
        found.collect()
    }
}
