//! The directory of a pinned balancer, in a BPF file system: what is pinned in it outlives the process. One process at
//! a time has it, by a lock that the kernel gives up when the process dies.
//!
//! ```text
//! identity       layout, version, and whether the rest is whole (`identity.rs`)
//! maps/          the maps that every balancer has
//! programs/      the programs, what they hand packets on to, and the maps of features
//! programs_new/  the same of a reload that is under way
//! probes/        program and maps of health checks
//! attached/      what keeps attachments (`attach/kept.rs`)
//! ledger         what the maps do not say (`ledger.rs`); `ledger_new` before it takes the place of another
//! handover/      while another process asks for the balancer (`handover.rs`)
//! ```
//!
//! The identity comes first and goes last, so a directory with one is a balancer's, however far it is. Maps inside
//! others need no pins: the outer ones keep them.

mod adoption;
mod handover;
mod identity;
mod ledger;
mod removal;

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::libc;
use nix::unistd::geteuid;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::lock::Lock;
use crate::sys::lock::Locked;
use crate::sys::pin;
use crate::sys::process::Owner;
pub(crate) use handover::Asked;
pub(crate) use handover::Claim;
use handover::Request;
use handover::TRY_EVERY;
pub(crate) use identity::Identity;
pub(crate) use identity::Stage;
pub use removal::remove;

const IDENTITY: &str = "identity";
const MAPS: &str = "maps";
const PROGRAMS: &str = "programs";
const NEW_PROGRAMS: &str = "programs_new";
const PROBES: &str = "probes";
const ATTACHED: &str = "attached";
const PARTS: [&str; 4] = [PROGRAMS, MAPS, PROBES, ATTACHED];

/// The program that is attached, in the directories of programs.
pub(crate) const MAIN: &str = "program";
pub(crate) const EXPLAINER: &str = "explainer";
pub(crate) const CLOCK: &str = "clock";
/// The array of programs that it hands packets on to.
pub(crate) const SPECIAL: &str = "special_programs";

const NO_BPF_FS: &str =
    "it is on no BPF file system: `mount -t bpf bpf /sys/fs/bpf`, and choose a path there";

/// So often a directory is opened that others remove at the same moment.
const TRIES: usize = 16;

/// Objects, by the names under which they are pinned.
pub(crate) type Objects<'a> = Vec<(&'static str, BorrowedFd<'a>)>;

/// All that a balancer has to pin when it is loaded.
pub(crate) struct Content<'a> {
    pub(crate) maps: Objects<'a>,
    pub(crate) programs: Objects<'a>,
    pub(crate) probes: Objects<'a>,
}

/// A directory that this process has, as long as this lives.
pub(crate) struct Home {
    path: PathBuf,
    attached: PathBuf,
    identity: Option<Arc<Identity>>,
    owner: Owner,
    /// Given up last.
    claim: Arc<Claim>,
}

impl Home {
    /// Takes a directory to pin a new balancer in; it is made if it is missing.
    pub(crate) fn claim(path: &Path) -> Result<Self> {
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
            let Some(home) = taken? else {
                continue;
            };
            return match &home.identity {
                Some(identity) => Err(Error::AlreadyExists {
                    what: home.describe(identity),
                }),
                None => home.check_empty().map(|()| home),
            };
        }
        Err(busy(&path, None))
    }

    /// Takes the directory of a balancer that is there, whole or not.
    pub(crate) fn open(given: &Path) -> Result<Self> {
        Self::open_or_ask(given, None)
    }

    /// The same; a process that has it is asked to let go, and waited for, no longer than `patience`.
    pub(crate) fn open_or_ask(given: &Path, patience: Option<Duration>) -> Result<Self> {
        let missing = || Error::NotFound {
            what: format!("a pinned balancer in {}", given.display()),
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
                (Err(Error::Busy { .. }), Some(patience)) => Self::ask_for(&path, patience)?,
                (taken, _) => taken?,
            };
            if let Some(home) = taken {
                return Ok(home);
            }
        }
        Err(missing())
    }

    /// Asks the process that has a directory to let go; `None`: it has been removed since.
    fn ask_for(path: &Path, patience: Duration) -> Result<Option<Self>> {
        let until = Instant::now() + patience;
        let Some(directory) = open_directory(path)? else {
            return Ok(None);
        };
        // Nobody lets go for one that could not go on.
        if let Some(identity) = identity_in(path)? {
            adoption::check_known(path, &identity)?;
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
                    what: "pinned balancers of one process",
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
        if request.is_none()
            && let Some(asked) = handover::asked(&file)
                .map_err(|error| file_error("look for who asks for", path, error))?
        {
            // The owner has let go for that process.
            return Err(busy(path, asked.by));
        }
        Ok(Some(Self {
            attached: path.join(ATTACHED),
            path: path.to_owned(),
            identity: identity_in(path)?.map(Arc::new),
            owner: Owner::new(),
            claim: Arc::new(Claim {
                directory: file,
                lock,
            }),
        }))
    }

    /// What there is to hand over, with the identity; `None`: nothing is pinned.
    pub(crate) fn claim_of_balancer(&self) -> Option<(Arc<Claim>, Arc<Identity>)> {
        let identity = self.identity.as_ref()?;
        Some((Arc::clone(&self.claim), Arc::clone(identity)))
    }

    /// What is there, and what to do about it.
    fn describe(&self, identity: &Identity) -> String {
        let how_far = match identity.stage() {
            Stage::Whole => "",
            Stage::Making => " that was never loaded to the end",
            Stage::Removing => " that was not removed to the end",
        };
        let age = identity.age().map(|age| age.as_secs()).unwrap_or(0);
        format!(
            "a balancer{how_far} in {} (katran {}, loaded {age} s ago; Builder::adopt goes on with it, katran::remove takes it away), which",
            self.path.display(),
            identity.version(),
        )
    }

    /// Nothing was pinned: the directory goes, if it is empty.
    pub(crate) fn give_up(mut self) {
        if let Err(error) = self.remove() {
            log::warn!("{} stays: {error}", self.path.display());
        }
    }

    fn check_empty(&self) -> Result<()> {
        // A process has asked for what was there, and died.
        handover::remove(&self.claim.directory)
            .map_err(|error| file_error("clear", &self.path, error))?;
        match entries(&self.path)?.first() {
            None => Ok(()),
            Some(other) => Err(refused(
                &self.path,
                format!(
                    "there is something else in it, such as {}: choose another directory",
                    other.display()
                ),
            )),
        }
    }

    /// Pins all that a balancer has, but for its ledger. If that fails nothing is left.
    pub(crate) fn fill(&mut self, content: &Content<'_>) -> Result<()> {
        let filled = self.pin_all(content);
        if filled.is_err()
            && let Err(error) = self.remove()
        {
            log::error!("{}: something stays: {error}", self.path.display());
        }
        filled
    }

    fn pin_all(&mut self, content: &Content<'_>) -> Result<()> {
        let path = self.path.join(IDENTITY);
        let identity = Identity::pin(&path).map_err(|error| pin_error(&path, error))?;
        self.identity = Some(Arc::new(identity));
        for part in PARTS {
            make_directory(&self.path.join(part))?;
        }
        for (part, objects) in [
            (MAPS, &content.maps),
            (PROGRAMS, &content.programs),
            (PROBES, &content.probes),
        ] {
            pin_objects(&self.path.join(part), objects)?;
        }
        Ok(())
    }

    /// All that a balancer has is pinned, its ledger included.
    pub(crate) fn set_whole(&self) {
        if let Some(identity) = &self.identity {
            identity.set_stage(Stage::Whole);
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where what keeps attachments is pinned.
    pub(crate) fn attached(&self) -> &Path {
        &self.attached
    }

    /// Pins the programs of a reload beside those that are there.
    pub(crate) fn stage_programs(&self, objects: &Objects<'_>) -> Result<()> {
        let staged = self.path.join(NEW_PROGRAMS);
        // Of one that failed, and that an interface has kept.
        self.unstage_programs()?;
        let pinned = make_directory(&staged).and_then(|()| pin_objects(&staged, objects));
        if pinned.is_err()
            && let Err(error) = self.unstage_programs()
        {
            log::warn!("programs of a reload that has failed stay pinned: {error}");
        }
        pinned
    }

    /// From now on those that were staged are the balancer's; the others can be unstaged.
    pub(crate) fn commit_programs(&self) -> Result<()> {
        let [present, staged] = [PROGRAMS, NEW_PROGRAMS].map(|part| self.path.join(part));
        pin::exchange(&present, &staged).map_err(|error| file_error("exchange", &staged, error))
    }

    /// Removes the pins of programs that are not the balancer's.
    pub(crate) fn unstage_programs(&self) -> Result<()> {
        self.remove_part(NEW_PROGRAMS)
    }
}

/// Where an object of this name is pinned: a BPF file system takes no dots.
fn file_name(name: &str) -> String {
    name.trim_start_matches('.').replace('.', "_")
}

fn pin_objects(directory: &Path, objects: &Objects<'_>) -> Result<()> {
    for (name, object) in objects {
        let path = directory.join(file_name(name));
        pin::pin(*object, &path).map_err(|error| pin_error(&path, error))?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).create(path);
    made.map_err(|error| file_error("make the directory", path, error))
}

/// What is in a directory; what the file system itself puts there has dots.
fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| file_error("list", path, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().contains('.') {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The path from the root on, whatever becomes of the working directory; symbolic links on the way are followed.
fn absolute(path: &Path) -> Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    if path.is_symlink() {
        return Err(refused(
            path,
            "it is a symbolic link to what is not there".to_owned(),
        ));
    }
    // It is still to be made.
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else {
        return Err(refused(path, "it is no path of a directory".to_owned()));
    };
    let parent = parent.canonicalize();
    let parent = parent.map_err(|error| refused(path, format!("what it is in: {error}")))?;
    Ok(parent.join(name))
}

/// Whether a directory of this path could be in a BPF file system, before it is made.
fn check_name(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    let exists = path.exists();
    let place = match exists {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    match pin::is_bpf_fs(place) {
        Ok(true) if exists || !name.to_string_lossy().contains('.') => Ok(()),
        Ok(true) => Err(refused(
            path,
            "a BPF file system takes no names with dots".to_owned(),
        )),
        Ok(false) => Err(refused(path, format!("{}: {NO_BPF_FS}", place.display()))),
        Err(error) => Err(file_error("look at", place, error)),
    }
}

/// What a directory says of itself; `None`: it is no balancer's.
fn identity_in(path: &Path) -> Result<Option<Identity>> {
    let path = path.join(IDENTITY);
    let opened = Identity::open(&path);
    opened.map_err(|error| kernel_error("open", &path.display().to_string(), error))
}

/// Opens the directory of a balancer, which nobody else can write to; `None`: it is not there.
fn open_directory(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| file_error("open", path, error))?,
    };
    check_safe(path, &file).map(|()| Some(file))
}

/// Whether only this user can change what is in a directory.
fn check_safe(path: &Path, directory: &File) -> Result<()> {
    let failed = |error| file_error("look at", path, error);
    // Of what was opened: there may be another one at the path by now.
    let is_bpf_fs = pin::is_on_bpf_fs(directory).map_err(failed)?;
    let metadata = directory.metadata().map_err(failed)?;
    let reason = if !is_bpf_fs {
        NO_BPF_FS.to_owned()
    } else if !metadata.is_dir() {
        "it is no directory".to_owned()
    } else if metadata.st_uid() != geteuid().as_raw() {
        format!(
            "it belongs to user {}, and this process runs as user {}: choose another one, or run as that user",
            metadata.st_uid(),
            geteuid()
        )
    } else if metadata.st_mode() & 0o077 != 0 {
        format!(
            "others can open or change it (mode {:04o}): `chmod 0700` it, or choose another one",
            metadata.st_mode() & 0o7777
        )
    } else {
        return path
            .ancestors()
            .skip(1)
            .try_for_each(|above| check_above(path, above));
    };
    Err(refused(path, reason))
}

/// Whether nobody else can put another directory in the place of one, by what it is in.
fn check_above(path: &Path, above: &Path) -> Result<()> {
    let metadata = fs::metadata(above).map_err(|error| file_error("look at", above, error))?;
    let (user, mode) = (metadata.st_uid(), metadata.st_mode());
    if user != 0 && user != geteuid().as_raw() {
        return Err(refused(
            path,
            format!(
                "{} belongs to user {user}, who can replace it",
                above.display()
            ),
        ));
    }
    // Where the sticky bit is set only its user can move what is there.
    if mode & 0o022 != 0 && mode & libc::S_ISVTX == 0 {
        return Err(refused(
            path,
            format!(
                "others can replace it: {} has mode {:04o}",
                above.display(),
                mode & 0o7777
            ),
        ));
    }
    Ok(())
}

fn refused(path: &Path, reason: String) -> Error {
    Error::InvalidConfig {
        setting: "pin",
        value: path.display().to_string(),
        reason,
    }
}

fn busy(path: &Path, owner: Option<u32>) -> Error {
    Error::Busy {
        path: path.to_owned(),
        owner,
    }
}

fn file_error(operation: &'static str, path: &Path, error: io::Error) -> Error {
    Error::File {
        operation,
        path: path.to_owned(),
        error,
    }
}

fn pin_error(path: &Path, error: io::Error) -> Error {
    kernel_error("pin", &path.display().to_string(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_dots() {
        assert_eq!(file_name(".data.vip_heads"), "data_vip_heads");
        assert_eq!(file_name("rings"), "rings");
    }
}
