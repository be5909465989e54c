//! Attaches one sockops program to cgroups.
//!
//! Each attachment is a BPF link, which ends with the process unless a pin keeps it. A link has the
//! id of its cgroup, but not its path: a symbolic link beside the pin has that, made before the pin
//! and removed after it.

use std::fs;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;

use super::kept::meanwhile;
use super::list::Attached;
use super::list::Attachments;
use super::list::Replaceable;
use super::list::Witness;
use super::place::AttachmentState;
use super::place::absolute;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::link;
use crate::sys::link::CgroupLinkInfo;
use crate::sys::link::Link;
use crate::sys::pin;
use crate::sys::program;

/// The pin of a link is `cgroup_NUMBER`, and the symbolic link to the cgroup's directory
/// `path_NUMBER`; the number is the kernel's id of the cgroup.
const KEPT: &str = "cgroup_";
const RECORD: &str = "path_";

/// An attachment to a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CgroupAttachment {
    /// The cgroup's directory.
    pub path: PathBuf,
    /// The kernel's id of the cgroup: the inode of its directory.
    pub id: u64,
    /// Whether it is still there. A cgroup that was removed and created again, for example by a
    /// service restart, is another one: the attachment is [`Gone`](AttachmentState::Gone).
    pub state: AttachmentState,
}

/// A program on a cgroup; detached on drop, unless a pin keeps it.
#[derive(Debug)]
pub(crate) struct CgroupLink {
    /// An absolute path.
    path: PathBuf,
    id: u64,
    link: Link,
    /// The program that the link was last given.
    program: OwnedFd,
    /// The symbolic link to the cgroup, if a pin keeps this.
    record: Option<PathBuf>,
}

impl CgroupLink {
    /// Attaches a program to the cgroup of a directory; a pin in `keep_in` keeps it beyond this
    /// process.
    fn new(program: BorrowedFd<'_>, path: PathBuf, keep_in: Option<&Path>) -> Result<Self> {
        let name = path.display().to_string();
        let failed = |error| kernel_error("attach to the cgroup", &name, error);
        let directory = File::open(&path);
        let directory = directory.map_err(|error| kernel_error("open the cgroup", &name, error))?;
        let link = link::attach_to_cgroup(program, directory.as_fd());
        let link = link.map_err(|error| match error.raw_os_error() {
            Some(libc::EBADF | libc::EINVAL) => Error::Unsupported {
                what: format!("attaching to {name}"),
                reason: "it is not a directory of cgroup v2: `mount -t cgroup2` shows where those \
                         are",
            },
            _ => failed(error),
        })?;
        let mut new = Self {
            id: link.cgroup_info().map_err(failed)?.cgroup,
            path,
            link,
            program: program.try_clone_to_owned().map_err(failed)?,
            record: None,
        };
        if let Some(directory) = keep_in {
            new.keep_in(directory)?;
        }
        Ok(new)
    }

    /// Pins it in a directory; after that only [detaching](Attached::detach) ends it.
    pub(crate) fn keep_in(&mut self, directory: &Path) -> Result<()> {
        let kept = self.pin_in(directory);
        let name = self.path.display().to_string();
        kept.map_err(|error| kernel_error("pin the attachment to", &name, error))
    }

    fn pin_in(&mut self, directory: &Path) -> io::Result<()> {
        let [path, record] =
            [KEPT, RECORD].map(|kind| directory.join(format!("{kind}{}", self.id)));
        let [pin_meanwhile, record_meanwhile] = [&path, &record].map(|of| meanwhile(of));
        pin::remove(&record_meanwhile)?;
        symlink(&self.path, &record_meanwhile)?;
        fs::rename(&record_meanwhile, &record)?;
        let kept = self.link.keep_at(path, &pin_meanwhile);
        if kept.is_err()
            && let Err(error) = pin::remove(&record)
        {
            log::warn!("cannot remove {}: {error}", record.display());
        }
        kept?;
        self.record = Some(record);
        Ok(())
    }

    /// A pinned attachment, from its pin; `None` if the pin is not ours. It has one of these
    /// programs.
    pub(crate) fn kept_at(path: &Path, programs: &[BorrowedFd<'_>]) -> Result<Option<Self>> {
        let failed = |error| kernel_error("adopt", &path.display().to_string(), error);
        let Some(id) = id_of(KEPT, path) else {
            return Ok(None);
        };
        let Some(link) = Link::kept_at_cgroup(path).map_err(failed)? else {
            return Ok(None);
        };
        let present = link.cgroup_info().map_err(failed)?.program;
        // If another process replaced the program, it is none of these.
        let own = program::numbered(programs, present).or(programs.first().copied());
        let Some(program) = own else {
            return Ok(None);
        };
        let record = path.with_file_name(format!("{RECORD}{id}"));
        Ok(Some(Self {
            // Without it, the path is unknown.
            path: fs::read_link(&record).unwrap_or_else(|_| PathBuf::from(format!("cgroup {id}"))),
            id,
            program: program.try_clone_to_owned().map_err(failed)?,
            link,
            record: Some(record),
        }))
    }

    fn describe(&self) -> CgroupAttachment {
        CgroupAttachment {
            path: self.path.clone(),
            id: self.id,
            state: self.state(),
        }
    }
}

/// Ends what the pin at a path keeps, or removes a symbolic link beside it; `false` if it is not
/// ours. `named` is its name, or the one it is about to get.
pub(super) fn end_kept_cgroup(path: &Path, named: &Path) -> io::Result<bool> {
    if id_of(KEPT, named).is_some() {
        return match Link::kept_at_cgroup(path) {
            Ok(Some(mut link)) => {
                link.keep_no_more()?;
                // Dropping it detaches it.
                Ok(true)
            }
            Ok(None) => Ok(false),
            // It went away after it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        };
    }
    let is_record = id_of(RECORD, named).is_some() && path.is_symlink();
    if is_record {
        pin::remove(path)?;
    }
    Ok(is_record)
}

/// Whether a path is that of a symbolic link to a cgroup without its pin.
pub(crate) fn is_forlorn(path: &Path) -> bool {
    let pin = id_of(RECORD, path).map(|id| path.with_file_name(format!("{KEPT}{id}")));
    pin.is_some_and(|pin| !pin.exists())
}

/// The number in the name of a pin or of its companion, if this crate wrote the name.
fn id_of(kind: &str, path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let id: u64 = name.strip_prefix(kind)?.parse().ok()?;
    (format!("{kind}{id}") == name).then_some(id)
}

/// The state of a link to the cgroup `id` at a path that was given the program `own`.
fn state_of(
    info: &io::Result<CgroupLinkInfo>,
    own: Option<u32>,
    id: u64,
    path: &Path,
) -> AttachmentState {
    // A removed cgroup that still has sockets is not one that a process can enter.
    let is_there = || fs::metadata(path).is_ok_and(|of| of.st_ino() == id);
    match info {
        Ok(of) if of.cgroup == 0 || !is_there() => AttachmentState::Gone,
        Ok(of) if own.is_some_and(|own| own != of.program) => AttachmentState::Replaced,
        _ => AttachmentState::Attached,
    }
}

impl Attached for CgroupLink {
    /// The directory of the cgroup.
    type Asked = PathBuf;
    const KIND: &'static str = "attachment";

    fn asked(&self) -> PathBuf {
        self.path.clone()
    }

    fn state(&self) -> AttachmentState {
        let own = program::info(self.program.as_fd()).ok().map(|own| own.id);
        state_of(&self.link.cgroup_info(), own, self.id, &self.path)
    }

    fn witness(&self) -> io::Result<Witness> {
        let own = program::info(self.program.as_fd())?.id;
        let (link, id, path) = (self.link.witness()?, self.id, self.path.clone());
        Ok(Box::new(move || {
            state_of(&link.cgroup_info(), Some(own), id, &path)
        }))
    }

    fn detach(&mut self) -> Result<()> {
        // Dropping the link does the rest.
        self.unpin()
    }

    fn succeed(&mut self, mut former: Self) {
        let unpinned = match former.id == self.id {
            true => former
                .link
                .give_up_pin_to(&self.link)
                .map_err(|error| kernel_error("unpin", &self.path.display().to_string(), error)),
            false => former.unpin(),
        };
        if let Err(error) = unpinned {
            log::warn!("cannot remove an earlier pin: {error}");
        }
    }
}

impl CgroupLink {
    /// Removes the pin, if any, so that the attachment ends with this value.
    pub(crate) fn unpin(&mut self) -> Result<()> {
        let name = self.path.display().to_string();
        let failed = |error| kernel_error("unpin", &name, error);
        self.link.keep_no_more().map_err(failed)?;
        if let Some(record) = &self.record {
            pin::remove(record).map_err(failed)?;
        }
        self.record = None;
        Ok(())
    }
}

impl Replaceable for CgroupLink {
    type Program<'a> = BorrowedFd<'a>;
    type Kept = OwnedFd;

    fn prepare(&self, program: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
        if self.state() == AttachmentState::Gone {
            log::warn!("{}: the cgroup is gone", self.path.display());
            return Ok(None);
        }
        let name = self.path.display().to_string();
        let failed = |error| kernel_error("prepare another program for", &name, error);
        program.try_clone_to_owned().map(Some).map_err(failed)
    }

    fn switch(&mut self, program: OwnedFd) -> Result<OwnedFd> {
        let replaced = self
            .link
            .replace(program.as_fd(), Some(self.program.as_fd()));
        match replaced {
            // It went away in the meantime and has no program any more.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(program),
            Err(error) => {
                let name = self.path.display().to_string();
                Err(kernel_error(
                    "put another program on the cgroup",
                    &name,
                    error,
                ))
            }
            Ok(()) => Ok(mem::replace(&mut self.program, program)),
        }
    }
}

impl Attachments<CgroupLink> {
    /// Attaches a program to the cgroup of a directory.
    pub(crate) fn attach(
        &mut self,
        path: &Path,
        program: BorrowedFd<'_>,
        keep_in: Option<&Path>,
    ) -> Result<()> {
        let path = absolute(path);
        if self.present().any(|held| held.path == path) {
            return Err(Error::AlreadyExists {
                what: format!("the attachment to {}", path.display()),
            });
        }
        let new = CgroupLink::new(program, path.clone(), keep_in)?;
        self.put(new, |held| held.path == path);
        Ok(())
    }

    /// Adds a pinned one. A process that ended while it restored one left the old one, too.
    pub(crate) fn resume_kept(&mut self, kept: CgroupLink) {
        let path = kept.path.clone();
        let is_there =
            |held: &&mut CgroupLink| held.path == path && held.state() == AttachmentState::Attached;
        let there = self.iter_mut().find(is_there);
        if let Some(held) = there {
            return held.succeed(kept);
        }
        self.put(kept, |held| held.path == path);
    }

    /// Detaches from the cgroup of a directory.
    pub(crate) fn detach(&mut self, path: &Path) -> Result<()> {
        let from_root = absolute(path);
        let position = self.iter().position(|held| held.path == from_root);
        let position = position.ok_or_else(|| Error::NotFound {
            what: format!("an attachment to {}", path.display()),
        })?;
        self.end(position)
    }

    /// Lost attachments whose cgroup exists again.
    pub(crate) fn lost(&self) -> Vec<PathBuf> {
        self.iter()
            .filter(|held| held.state() == AttachmentState::Gone)
            .map(Attached::asked)
            .filter(|path| path.is_dir())
            .collect()
    }

    /// The attachments, as the kernel reports them.
    pub(crate) fn list(&self) -> Vec<CgroupAttachment> {
        self.iter().map(CgroupLink::describe).collect()
    }
}
