//! Whose a pinned directory is: each kind of thing that outlives its process has one of its own.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use super::Content;
use super::Home;
use super::Identity;
use super::Stage;
use super::contents;
use super::file_error;
use super::place::refused;
use crate::error::Error;
use crate::error::Result;
use crate::sys::pin;

/// What is pinned in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tenant {
    Balancer,
    Decapsulator,
    ServerIdOption,
}

impl Tenant {
    const ALL: [Self; 3] = [Self::Balancer, Self::Decapsulator, Self::ServerIdOption];

    /// Its number in the identity of a directory, for good.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Balancer => 0,
            Self::Decapsulator => 1,
            Self::ServerIdOption => 2,
        }
    }

    /// That with a number; `None`: a later version has made it.
    pub(super) fn of(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.number() == number)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::Decapsulator => "decapsulator",
            Self::ServerIdOption => "server id option",
        }
    }

    /// What goes on with it.
    pub(super) fn adopts(self) -> &'static str {
        match self {
            Self::Balancer => "Builder::adopt",
            Self::Decapsulator => "DecapBuilder::adopt",
            Self::ServerIdOption => "ServerIdOption::adopt",
        }
    }

    /// What its programs and maps mean. Count it up whenever a program of another version of the crate could not go on
    /// with what this one has pinned.
    pub(super) fn layout(self) -> u64 {
        match self {
            Self::Balancer => contents::LAYOUT,
            Self::Decapsulator => 1,
            Self::ServerIdOption => 1,
        }
    }

    /// The error for a directory that has none of them, or none that is whole.
    pub(crate) fn missing(self, directory: &Path) -> Error {
        Error::NotFound {
            what: format!("a whole {} in {}", self.name(), directory.display()),
        }
    }

    /// That of a directory which says whose it is.
    pub(super) fn in_sight(path: &Path, identity: &Identity) -> Result<Self> {
        identity.tenant().ok_or_else(|| Error::Unsupported {
            what: format!("what is pinned in {}", path.display()),
            reason: "this version of the crate does not know it: use the version that has made it",
        })
    }

    /// Refuses a directory that is another one's.
    pub(super) fn check(self, path: &Path, identity: &Identity) -> Result<()> {
        let other = Self::in_sight(path, identity)?;
        match other == self {
            true => Ok(()),
            false => Err(refused(
                path,
                format!(
                    "a {} is pinned there, which {} goes on with: choose another directory for a {}",
                    other.name(),
                    other.adopts(),
                    self.name()
                ),
            )),
        }
    }
}

/// What tenants have in common that have no ledger: a set takes the place of another one as a whole.
impl Home {
    /// Takes the directory of a tenant that is whole: with its age, and the version that has made what counts. `None`:
    /// there is none.
    pub(crate) fn whole(path: &Path, tenant: Tenant) -> Result<Option<(Self, Duration, String)>> {
        let home = match Self::open_or_ask(path, tenant, None) {
            Err(Error::NotFound { .. }) => return Ok(None),
            home => home?,
        };
        let Some(identity) = home.known_identity()? else {
            return Ok(None);
        };
        if identity.stage() != Stage::Whole {
            return Ok(None);
        }
        let Some(contents) = home.set().known_contents()? else {
            return Ok(None);
        };
        let age = identity.age().unwrap_or_default();
        Ok(Some((home, age, contents.version())))
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
