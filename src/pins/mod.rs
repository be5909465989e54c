//! The directory of a pinned balancer, in a BPF file system: what is pinned in it outlives the process. One process at
//! a time has it, by a lock that the kernel gives up when the process dies.
//!
//! ```text
//! identity           that it is a balancer's, how it is arranged, and whether the rest is whole (`identity.rs`)
//! attached/          what keeps attachments (`attach/kept.rs`)
//! set/               what packets see, and the record of it; all of it can be exchanged by one rename
//!     contents       what the maps mean, and the version that has made them (`contents.rs`)
//!     maps/          the maps that every balancer has
//!     programs/      the programs, what they hand packets on to, and the maps of features
//!     programs_new/  the same of a reload that is under way
//!     probes/        program and maps of health checks
//!     ledger         what the maps do not say (`ledger.rs`); `ledger_new` before it takes the place of another
//! next_set/          the same of a replacement that is under way
//! ```
//!
//! The identity comes first and goes last, so a directory with one is a balancer's, however far it is. Maps inside
//! others need no pins: the outer ones keep them.

mod contents;
mod identity;
mod ledger;
mod ours;
mod removal;
mod set;
mod words;

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;
use nix::unistd::geteuid;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::lock::Lock;
use crate::sys::lock::Locked;
use crate::sys::pin;
use crate::sys::process::Owner;
pub(crate) use identity::Identity;
pub(crate) use identity::Stage;
pub(crate) use ledger::Seat;
pub use removal::remove;
pub(crate) use set::Entrance;
pub(crate) use set::PinnedSet;

const IDENTITY: &str = "identity";
const ATTACHED: &str = "attached";
const SET: &str = "set";
const NEXT_SET: &str = "next_set";
const MAPS: &str = "maps";
const PROBES: &str = "probes";

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
    identity: Option<Identity>,
    owner: Owner,
    /// Given up last.
    _lock: Lock,
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
            let taken = Self::take(&path);
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
            if let Some(home) = Self::take(&path)? {
                return Ok(home);
            }
        }
        Err(missing())
    }

    /// Locks a directory and sees that nobody else can write there; `None`: it has been removed since.
    fn take(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| file_error("open", path, error))?,
        };
        check_safe(path, &file)?;
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
        let identity = path.join(IDENTITY);
        let identity = Identity::open(&identity)
            .map_err(|error| kernel_error("open", &identity.display().to_string(), error))?;
        Ok(Some(Self {
            attached: path.join(ATTACHED),
            path: path.to_owned(),
            identity,
            owner: Owner::new(),
            _lock: lock,
        }))
    }

    /// What the directory says of itself, if this version knows how it is arranged.
    pub(crate) fn known_identity(&self) -> Result<Option<&Identity>> {
        let Some(identity) = self.identity.as_ref() else {
            return Ok(None);
        };
        self.known(identity, "to go on with the balancer").map(Some)
    }

    /// The identity, if what is to be done takes no more than this version knows.
    fn known<'a>(&self, identity: &'a Identity, to: &str) -> Result<&'a Identity> {
        let found = identity.layout();
        let known = found == identity::LAYOUT;
        known.then_some(identity).ok_or_else(|| Error::Unsupported {
            what: format!(
                "{to} in {}, which is arranged in the way {found} (katran {})",
                self.path.display(),
                identity.version()
            ),
            reason: "this version of the crate does not know that: it forwards on; use the version that has made \
                     it, or have that remove it and load it again",
        })
    }

    /// The pins that keep attachments.
    pub(crate) fn attachments(&self) -> Result<Vec<PathBuf>> {
        entries(&self.attached)
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
        self.identity = Some(identity);
        make_directory(&self.attached)?;
        self.set().fill(content)
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

    /// What counts: the programs, the maps and the ledger of the balancer.
    pub(crate) fn set(&self) -> PinnedSet {
        PinnedSet::at(self.path.join(SET))
    }

    /// From now on the next set counts, whose ledger has this seat; what has counted until now is the next set then.
    pub(crate) fn commit_set(&self, seat: &Seat) -> Result<()> {
        let (present, next) = (self.set(), self.next_set());
        pin::exchange(present.path(), next.path())
            .map_err(|error| file_error("exchange", next.path(), error))?;
        seat.move_to(present.path());
        Ok(())
    }

    /// The same of a replacement: what is to count, or has counted until now.
    pub(crate) fn next_set(&self) -> PinnedSet {
        PinnedSet::at(self.path.join(NEXT_SET))
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
