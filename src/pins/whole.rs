//! Whose a directory is that there is, and what tenants have in common that have no ledger: a set takes the place of
//! another one as a whole.

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

/// The tenant of a directory which says whose it is.
pub(super) fn tenant_of(path: &Path, identity: &Identity) -> Result<Tenant> {
    identity.tenant().ok_or_else(|| Error::Unsupported {
        what: format!("what is pinned in {}", path.display()),
        reason: "this version of the crate does not know it: use the version that has made it",
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
    /// Takes the directory of a tenant that is whole: with its age, and what says of itself what counts, in whatever
    /// layout. `None`: there is none. A process that has it is asked to let go for no longer than `patience`.
    ///
    /// # Errors
    /// Somebody has removed what says so: it may be at work, and nobody is to take it for one that is half made.
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

    /// It goes on with programs of this version.
    pub(crate) fn note_version(&self) {
        if let Some(identity) = &self.identity {
            identity.set_version();
        }
    }

    /// Pins what is to take the place of what counts, beside it.
    pub(crate) fn stage_next(&self, content: &Content<'_>) -> Result<()> {
        let next = self.next_set();
        // Of one that was cut off, or that an attachment has kept.
        next.remove()?;
        let pinned = next.fill(content);
        if pinned.is_err() {
            self.unstage_next();
        }
        pinned
    }

    /// From now on what was staged counts; the other set can be unstaged.
    pub(crate) fn commit_next(&self) -> Result<()> {
        let [set, next] = [self.set(), self.next_set()];
        let exchanged = pin::exchange(set.path(), next.path());
        exchanged.map_err(|error| file_error("exchange", next.path(), error))
    }

    /// Removes the pins of what does not count.
    pub(crate) fn unstage_next(&self) {
        if let Err(error) = self.next_set().remove() {
            log::warn!("what is pinned for another program stays: {error}");
        }
    }

    /// The programs of this name, that of a set which does not count included.
    pub(crate) fn programs(&self, name: &str) -> Result<Vec<OwnedFd>> {
        let sets = [self.set(), self.next_set()];
        let found = sets.iter().filter_map(|set| set.program(name).transpose());
        found.collect()
    }
}
