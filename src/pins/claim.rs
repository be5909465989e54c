//! How a directory comes to be a process's: it is taken for a new tenant, opened for what is there, or asked for.

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

/// So often a directory is opened that others remove at the same moment.
const TRIES: usize = 16;

/// For so long who asks waits if it was told to wait for longer than there is time: some 136 years.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

impl Home {
    /// Takes a directory for a new tenant; it is made if it is missing.
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
                // Another process has it by now, if it is not empty.
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

    /// Takes the directory of whatever is there, whole or not.
    pub(super) fn open(given: &Path) -> Result<Self> {
        Self::open_as(given, None, None)
    }

    /// The same of a tenant that is this one; a process that has it is asked to let go, and waited for, no longer than
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
        // Nor is there one where a symbolic link leads nowhere, or below a directory that is missing.
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
        // Nobody lets go for one that could not go on.
        if let Some(identity) = identity_in(path)? {
            known(path, &identity, GO_ON)?;
            if let Some(tenant) = tenant {
                check_tenant(tenant, path, &identity)?;
                let set = PinnedSet::at(path.join(SET), tenant);
                // What was not pinned to the end is loaded anew.
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
        let made = made.map_err(|error| file_error("ask for", path, error))?;
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
        // It may have let go a moment ago.
        Self::take(path, None)
    }

    /// Locks a directory and sees that nobody else can write there; `None`: it has been removed since. `request`: this
    /// process's own.
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
        // Another process may have removed it, and another one have been made.
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
            // Of a process that has died.
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
