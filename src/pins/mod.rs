//! The directory of a pinned balancer, decapsulator or server id option, in a BPF file system: its
//! pins outlive the process. One process at a time has it, by a lock that the kernel releases when
//! the process dies.
//!
//! ```text
//! identity           tenant, arrangement, and whether the rest is whole (`identity.rs`)
//! attached/          what keeps attachments (`attach/kept.rs`)
//! set/               what packets see, and its record; one rename exchanges all of it
//!     contents       the maps' layout, with that of each part (`layout.rs`), and the version that
//!                    made them (`contents.rs`)
//!     maps/          the maps that every balancer has
//!     programs/      the programs, the programs they call, and the maps of features
//!     programs_new/  the same of a reload that is under way
//!     probes/        program and maps of health checks
//!     ledger         what the maps do not say (`ledger.rs`); `ledger_new` before it replaces the
//!                    old one
//! next_set/          the same of a replacement that is under way, which may have another layout
//! handover/          while another process asks for the balancer (`handover.rs`)
//! ```
//!
//! The identity is made first and removed last, so a directory with one is its tenant's
//! (`tenant.rs`), even if incomplete. Maps inside others need no pins: the outer ones keep them.
//! Other tenants than balancers have only maps and programs, which hold their whole state.

mod claim;
mod contents;
mod handover;
mod identity;
mod layout;
mod ledger;
mod look;
mod ours;
mod place;
mod removal;
mod set;
mod tenant;
mod whole;
mod words;

use std::fs;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::pin;
use crate::sys::process::Owner;
use crate::sys::tenure::End;
use crate::sys::tenure::Tenure;
pub(crate) use contents::Contents;
pub(crate) use handover::Asked;
pub(crate) use handover::Claim;
pub(crate) use identity::Identity;
pub(crate) use identity::Stage;
pub(crate) use layout::Part;
pub(crate) use ledger::Seat;
pub use look::Pinned;
pub use look::PinnedKind;
pub use look::PinnedOwner;
pub use look::PinnedStage;
pub use look::pinned;
use place::refused;
pub use removal::remove;
pub(crate) use removal::remove_if_there;
pub(crate) use set::Entrance;
pub(crate) use set::PinnedSet;
pub(crate) use tenant::Tenant;

const IDENTITY: &str = "identity";
const ATTACHED: &str = "attached";
const SET: &str = "set";
const NEXT_SET: &str = "next_set";
const MAPS: &str = "maps";
const PROBES: &str = "probes";

/// The attached program, in the directories of programs.
pub(crate) const MAIN: &str = "program";
pub(crate) const EXPLAINER: &str = "explainer";
pub(crate) const CLOCK: &str = "clock";
/// A decapsulator's program for tc.
pub(crate) const TC_PROGRAM: &str = "decap_tc";
/// The constants that they were loaded with.
pub(crate) const CONSTANTS: &str = "constants";
/// The array of programs that it calls.
pub(crate) const SPECIAL: &str = "special_programs";

/// What adoption wants to do, for error messages.
const GO_ON: &str = "adopting the pins";

/// Objects, by the names of their pins.
pub(crate) type Objects<'a> = Vec<(&'static str, BorrowedFd<'a>)>;

/// All objects to pin when something is loaded.
pub(crate) struct Content<'a> {
    pub(crate) maps: Objects<'a>,
    pub(crate) programs: Objects<'a>,
    pub(crate) probes: Objects<'a>,
}

/// A directory that this process has while this value lives.
pub(crate) struct Home {
    path: PathBuf,
    attached: PathBuf,
    /// The tenant that it was claimed for, until something is pinned.
    tenant: Tenant,
    identity: Option<Arc<Identity>>,
    owner: Owner,
    /// The tenure of the handle that it belongs to.
    tenure: OnceLock<Arc<Tenure>>,
    /// Given up last.
    claim: Arc<Claim>,
}

impl Home {
    /// Makes threads and monitors of a handle end before the directory is given up.
    pub(crate) fn keep_tenure(&self, tenure: &Arc<Tenure>) {
        // A handle keeps its tenure after a replacement.
        let _ = self.tenure.set(Arc::clone(tenure));
    }

    /// Waits for threads that calls have started, and prevents new ones, so that the next owner may
    /// take over.
    pub(crate) fn end_tenure(&self) {
        if let Some(tenure) = self.tenure.get()
            && self.owner.is_here()
        {
            tenure.wait_for_threads();
            let path = self.path.clone();
            tenure.end(End::Dropped { path });
        }
    }

    /// How long ago the owner last gave a sign of life, if there is a clock.
    pub(crate) fn silence(&self) -> Option<Duration> {
        self.identity.as_ref()?.silence().ok()
    }

    /// The claim to hand over, with the identity; `None`: nothing is pinned.
    pub(crate) fn claim_of_balancer(&self) -> Option<(Arc<Claim>, Arc<Identity>)> {
        let identity = self.identity.as_ref()?;
        Some((Arc::clone(&self.claim), Arc::clone(identity)))
    }

    /// The directory's identity, if this version knows its arrangement.
    pub(crate) fn known_identity(&self) -> Result<Option<&Identity>> {
        let identity = self.identity.as_deref();
        identity.map_or(Ok(()), |of| known(&self.path, of, GO_ON))?;
        Ok(identity)
    }

    /// The pins that keep attachments.
    pub(crate) fn attachments(&self) -> Result<Vec<PathBuf>> {
        entries(&self.attached)
    }

    /// What is there, and what to do about it.
    fn describe(&self, identity: &Identity) -> String {
        let how_far = match identity.stage() {
            Stage::Whole => "",
            Stage::Making => " that was not fully loaded",
            Stage::Removing => " that was not fully removed",
        };
        let age = identity.age().map(|age| age.as_secs()).unwrap_or(0);
        format!(
            "a {}{how_far} in {} (katran {}, loaded {age} s ago; adopt or remove it)",
            self.tenant.name(),
            self.path.display(),
            identity.version(),
        )
    }

    /// Nothing was pinned: removes the directory if it is empty.
    pub(crate) fn give_up(mut self) {
        if let Err(error) = self.remove() {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }

    /// Checks that the directory of a balancer still has its identity.
    ///
    /// # Errors
    /// Something has removed it.
    pub(crate) fn check_identified(&self) -> Result<()> {
        match self.identity.is_none() && self.set().has_program() {
            false => Ok(()),
            true => Err(refused(
                &self.path,
                "something removed its pin `identity`: the attached programs continue to work, \
                 but no process can adopt them; `rm -r` the directory to detach them, then load \
                 them again"
                    .to_owned(),
            )),
        }
    }

    /// Checks that the directory is still there, so that something can be pinned in it.
    ///
    /// # Errors
    /// [`Error::NotFound`], with what to do.
    pub(crate) fn check_there(&self) -> Result<()> {
        let place = |of: fs::Metadata| (of.st_dev(), of.st_ino());
        let ours = self.claim.directory.metadata().map(place);
        let present = fs::metadata(&self.path).map(place);
        match (ours, present) {
            (Ok(ours), Ok(present)) if ours == present => Ok(()),
            _ => Err(Error::NotFound {
                what: format!(
                    "{}, where the balancer is pinned (the file system was unmounted, or the \
                     directory moved; the balancer forwards while this process lives: mount a BPF \
                     file system, and load it again with another process)",
                    self.path.display()
                ),
            }),
        }
    }

    fn check_empty(&self) -> Result<()> {
        match entries(&self.path)?.first() {
            None => Ok(()),
            Some(other) => Err(refused(
                &self.path,
                format!(
                    "it contains something else, such as {}: choose another directory",
                    other.display()
                ),
            )),
        }
    }

    /// Pins everything that a tenant has, except a ledger. If that fails nothing is left.
    pub(crate) fn fill(&mut self, content: &Content<'_>) -> Result<()> {
        let filled = self.pin_all(content);
        if filled.is_err()
            && let Err(error) = self.remove()
        {
            log::error!("{}: cannot remove everything: {error}", self.path.display());
        }
        filled
    }

    fn pin_all(&mut self, content: &Content<'_>) -> Result<()> {
        let path = self.path.join(IDENTITY);
        let identity = Identity::pin(&path, self.tenant);
        let identity = identity.map_err(|error| pin_error(&path, error))?;
        self.identity = Some(Arc::new(identity));
        make_directory(&self.attached)?;
        self.set().fill(content)
    }

    /// Everything that the tenant has is pinned, including a ledger.
    pub(crate) fn set_whole(&self) {
        if let Some(identity) = &self.identity {
            identity.set_stage(Stage::Whole);
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory for pins that keep attachments.
    pub(crate) fn attached(&self) -> &Path {
        &self.attached
    }

    /// The current set: the tenant's programs, maps and ledger.
    pub(crate) fn set(&self) -> PinnedSet {
        PinnedSet::at(self.path.join(SET), self.tenant)
    }

    /// Makes the next set the current one, with its ledger's seat, and the current set the next
    /// one.
    pub(crate) fn commit_set(&self, seat: &Seat) -> Result<()> {
        self.commit_next()?;
        seat.move_to(self.set().path());
        Ok(())
    }

    /// The set of a replacement: the one to become current, or the one that was.
    pub(crate) fn next_set(&self) -> PinnedSet {
        PinnedSet::at(self.path.join(NEXT_SET), self.tenant)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.end_tenure();
    }
}

/// The file name for an object of this name: a BPF file system takes no dots.
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

/// The entries of a directory; those of the file system itself have dots.
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

/// Removes a directory, unless there is something else in it, or it is where the file system is
/// mounted.
fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy => {
                log::warn!("cannot remove {}: {error}", path.display());
                Ok(())
            }
            _ => Err(file_error("remove", path, error)),
        },
    }
}

/// A directory's identity; `None`: it is not a balancer's.
fn identity_in(path: &Path) -> Result<Option<Identity>> {
    let path = path.join(IDENTITY);
    let opened = Identity::open(&path);
    opened.map_err(|error| kernel_error("open", &path.display().to_string(), error))
}

/// Checks that this version knows the directory's arrangement, which `to` do something takes.
fn known(path: &Path, identity: &Identity, to: &str) -> Result<()> {
    let found = identity.layout();
    match found == identity::LAYOUT {
        true => Ok(()),
        false => Err(Error::Unsupported {
            what: format!(
                "{to} in {} (arrangement {found}, katran {})",
                path.display(),
                identity.version()
            ),
            reason: "this version of the crate does not know that arrangement: use the version \
                     that made it, or let that version remove it; the attached programs continue \
                     to work",
        }),
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
