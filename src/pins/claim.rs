//! How a process gets a directory: it claims one for a new tenant, opens an existing one, or asks
//! its owner for it.

use std::fs;
use std::fs::DirBuilder;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::ATTACHED;
use super::Claim;
use super::GO_ON;
use super::Home;
use super::PinnedSet;
use super::SET;
use super::Stage;
use super::Tenant;
use super::file_error;
use super::handover;
use super::handover::Request;
use super::handover::TRY_EVERY;
use super::identity_in;
use super::known;
use super::place::absolute;
use super::place::check_name;
use super::place::open_directory;
use super::whole::check_tenant;
use super::whole::tenant_of;
use crate::environment;
use crate::error::Error;
use crate::error::Result;
use crate::sys::lock::Lock;
use crate::sys::lock::Locked;
use crate::sys::process::Owner;

/// Attempts to open a directory that others remove at the same moment.
const TRIES: usize = 16;

/// A patience longer than there is time means this long: some 136 years.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

impl Home {
    /// Claims a directory for a new tenant, and makes it if it is missing.
    pub(crate) fn claim(path: &Path, tenant: Tenant) -> Result<Self> {
        let path = absolute(path)?;
        check_name(&path)?;
        for _ in 0..TRIES {
            let made = match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(file_error("make the directory", &path, error)),
            };
            let taken = Self::take(&path, None);
            if taken.is_err() && made {
                // If it is not empty, another process has it by now.
                let _ = fs::remove_dir(&path);
            }
            let Some(mut home) = taken? else {
                continue;
            };
            if let Some(identity) = &home.identity {
                return Err(Error::AlreadyExists {
                    what: home.describe(identity),
                });
            }
            home.check_empty()?;
            home.tenant = tenant;
            return Ok(home);
        }
        Err(busy(&path, None))
    }

    /// Claims the directory of whatever is there, whole or not.
    pub(super) fn open(given: &Path) -> Result<Self> {
        Self::open_as(given, None, None)
    }

    /// The same for this tenant. Asks a process that has it to let go, and waits for up to
    /// `patience`.
    pub(crate) fn open_or_ask(
        given: &Path,
        tenant: Tenant,
        patience: Option<Duration>,
    ) -> Result<Self> {
        let home = Self::open_as(given, Some(tenant), patience)?;
        if let Some(identity) = &home.identity {
            check_tenant(tenant, &home.path, identity)?;
        }
        Ok(home)
    }

    fn open_as(given: &Path, tenant: Option<Tenant>, patience: Option<Duration>) -> Result<Self> {
        let missing = || Error::NotFound {
            what: format!(
                "a pinned {} in {}",
                tenant.map_or("balancer", Tenant::name),
                given.display()
            ),
        };
        // A symbolic link to nowhere, or a missing parent directory, means that there is none.
        if let Ok(false) = given.try_exists() {
            return Err(missing());
        }
        let path = absolute(given)?;
        for _ in 0..TRIES {
            if !path.exists() {
                return Err(missing());
            }
            let taken = match (Self::take(&path, None), patience) {
                (Err(Error::Busy { .. }), Some(patience)) => {
                    Self::ask_for(&path, tenant, patience)?
                }
                (taken, _) => taken?,
            };
            if let Some(home) = taken {
                return Ok(home);
            }
        }
        Err(missing())
    }

    /// Asks the process that has a directory to let go; `None`: it has been removed since.
    fn ask_for(path: &Path, tenant: Option<Tenant>, patience: Duration) -> Result<Option<Self>> {
        let now = Instant::now();
        let until = now.checked_add(patience).unwrap_or(now + LONGEST);
        let Some(directory) = open_directory(path)? else {
            return Ok(None);
        };
        // The owner must not let go for a process that could not adopt it.
        if let Some(identity) = identity_in(path)? {
            known(path, &identity, GO_ON)?;
            if let Some(tenant) = tenant {
                check_tenant(tenant, path, &identity)?;
                let set = PinnedSet::at(path.join(SET), tenant);
                // An incompletely pinned one is loaded again.
                match set.readable_contents() {
                    Err(Error::NotFound { .. }) if identity.stage() != Stage::Whole => {}
                    readable => drop(readable?),
                }
                if tenant == Tenant::Balancer {
                    environment::check_opens_by_number("adopt a pinned balancer")?;
                }
            }
        }
        let made = Request::make(&directory, until);
        let made = made.map_err(|error| file_error("ask the owner for", path, error))?;
        let Some(request) = made else {
            return Err(busy(path, None));
        };
        loop {
            match Self::take(path, Some(&request)) {
                Err(Error::Busy { .. }) if Instant::now() < until => thread::sleep(TRY_EVERY),
                Err(Error::Busy { .. }) => break,
                taken => return taken,
            }
        }
        drop(request);
        // The owner may have let go a moment ago.
        Self::take(path, None)
    }

    /// Locks a directory and checks that no other user can write there; `None`: it has been removed
    /// since. `request`: this process's own.
    fn take(path: &Path, request: Option<&Request>) -> Result<Option<Self>> {
        let Some(file) = open_directory(path)? else {
            return Ok(None);
        };
        let lock = match Lock::take(&file) {
            Ok(Locked::Ours(lock)) => lock,
            Ok(Locked::Others(owner)) => return Err(busy(path, owner)),
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
                return Err(Error::Exhausted {
                    what: "pinned directories of one process",
                    limit: crate::sys::lock::MOST as u64,
                });
            }
            Err(error) => return Err(file_error("lock", path, error)),
        };
        // Another process may have removed it and made a new one.
        let ours = file.metadata().map(|of| (of.st_dev(), of.st_ino()));
        let present = fs::metadata(path).map(|of| (of.st_dev(), of.st_ino()));
        if !matches!((ours, present), (Ok(ours), Ok(present)) if ours == present) {
            return Ok(None);
        }
        if request.is_none() {
            let failed = |error| file_error("look for requests in", path, error);
            if let Some(asked) = handover::asked(&file).map_err(failed)? {
                // The owner has let go for that process.
                return Err(busy(path, asked.by));
            }
            // Left by a process that died.
            handover::remove_left(&file).map_err(failed)?;
        }
        let identity = identity_in(path)?.map(Arc::new);
        let tenant = identity.as_ref().map(|of| tenant_of(path, of));
        Ok(Some(Self {
            attached: path.join(ATTACHED),
            path: path.to_owned(),
            tenant: tenant.transpose()?.unwrap_or(Tenant::Balancer),
            identity,
            owner: Owner::new(),
            tenure: OnceLock::new(),
            claim: Arc::new(Claim {
                directory: file,
                lock,
            }),
        }))
    }
}

pub(super) fn busy(path: &Path, owner: Option<u32>) -> Error {
    Error::Busy {
        path: path.to_owned(),
        owner,
    }
}
