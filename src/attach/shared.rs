//! Entries of a pinned program array, which a root program walks so that several programs share its
//! interfaces.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::map::ProgramArray;
use crate::sys::pin;
use crate::sys::program;

/// A program in an entry of a [`SharedEntries`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryProgram {
    /// The program's id.
    pub id: u32,
    /// Its name; empty if the kernel does not reveal it.
    pub name: String,
}

/// The entries of a root program (see [`RootProgram`](crate::RootProgram)): a pinned array of XDP
/// programs.
///
/// An entry's program decides about a frame, or hands it to the next entry with a tail call into
/// the same array. If no entry has a program, the frame passes. Entries stay when the process that
/// set them ends.
///
/// ```no_run
/// use katran::attachments::SharedEntries;
///
/// let entries = SharedEntries::open("/sys/fs/bpf/katran_root")?;
/// for (position, program) in entries.programs()?.into_iter().enumerate() {
///     let name = program.map_or("empty".to_owned(), |program| program.name);
///     println!("entry {position}: {name}");
/// }
/// # Ok::<(), katran::Error>(())
/// ```
pub struct SharedEntries {
    path: PathBuf,
    array: ProgramArray,
}

/// # Entries
impl SharedEntries {
    /// Opens the array pinned at a path.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing is pinned there; [`Error::InvalidConfig`] if it is something
    /// else; [`Error::Privilege`]; [`Error::Kernel`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = path.display().to_string();
        let fd = pin::open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Error::NotFound {
                what: format!("a program array at {text} (pin a root program there)"),
            },
            Some(libc::EINVAL | libc::ENOTDIR | libc::EISDIR) => not_an_array(&text),
            // The kernel reports the same for files that are no BPF objects.
            Some(libc::EACCES) if !may_be_pinned(path) => not_an_array(&text),
            _ => kernel_error("open the program array", &text, error),
        })?;
        Self::of(path, fd)
    }

    /// The array with this descriptor.
    pub(crate) fn of(path: &Path, fd: OwnedFd) -> Result<Self> {
        let text = path.display().to_string();
        let array = ProgramArray::new(fd)
            .map_err(|error| kernel_error("inspect the program array", &text, error))?
            .ok_or_else(|| not_an_array(&text))?;
        Ok(Self {
            path: path.to_owned(),
            array,
        })
    }

    /// The number of entries.
    pub fn count(&self) -> u32 {
        self.array.entries()
    }

    /// The path of the pinned array.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The program in each entry, in order.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn programs(&self) -> Result<Vec<Option<EntryProgram>>> {
        (0..self.count())
            .map(|position| self.program_at(position))
            .collect()
    }

    pub(super) fn program_at(&self, position: u32) -> Result<Option<EntryProgram>> {
        let id = self.array.get(position);
        let id = id.map_err(|error| self.error("read", error))?;
        Ok(id.map(|id| EntryProgram {
            id,
            name: program::name_by_id(id),
        }))
    }

    /// Puts a program into an entry, atomically replacing whatever is there.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if there is no such entry, if the program is not an XDP program, or
    /// if its `frags` setting differs from the root program's; [`Error::Kernel`].
    pub fn set(&self, position: u32, program: BorrowedFd<'_>) -> Result<()> {
        self.check(position)?;
        let set = self.array.set(position, program);
        set.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Error::InvalidConfig {
                setting: "frags",
                value: "of the program".to_owned(),
                reason: format!(
                    "the programs of {} must have the root program's value of frags",
                    self.path.display()
                ),
            },
            _ => self.error("set an entry of", error),
        })
    }

    /// Empties an entry.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if there is no such entry; [`Error::Kernel`].
    pub fn clear(&self, position: u32) -> Result<()> {
        self.check(position)?;
        let cleared = self.array.clear(position);
        cleared.map_err(|error| self.error("empty an entry of", error))
    }

    /// The array's id.
    pub(crate) fn id(&self) -> u32 {
        self.array.id()
    }

    /// The id of the program in an entry.
    pub(super) fn program_id(&self, position: u32) -> io::Result<Option<u32>> {
        self.array.get(position)
    }

    pub(super) fn check(&self, position: u32) -> Result<()> {
        match position < self.count() {
            true => Ok(()),
            false => Err(Error::InvalidConfig {
                setting: "position",
                value: position.to_string(),
                reason: format!(
                    "{} has {} entries, counted from 0",
                    self.path.display(),
                    self.count()
                ),
            }),
        }
    }

    pub(super) fn error(&self, operation: &'static str, error: io::Error) -> Error {
        kernel_error(operation, &self.path.display().to_string(), error)
    }

    /// Whether this program is at `position`.
    pub(super) fn holds(&self, position: u32, program: BorrowedFd<'_>) -> io::Result<bool> {
        let present = self.array.get(position)?;
        Ok(present == Some(program::info(program)?.id))
    }
}

impl AsFd for SharedEntries {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.array.as_fd()
    }
}

impl fmt::Debug for SharedEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedEntries")
            .field("path", &self.path)
            .field("entries", &self.count())
            .finish()
    }
}

/// Whether there may be a BPF object at a path.
fn may_be_pinned(path: &Path) -> bool {
    !path.is_dir() && pin::is_bpf_fs(path).unwrap_or(true)
}

fn not_an_array(path: &str) -> Error {
    Error::InvalidConfig {
        setting: "map_path",
        value: path.to_owned(),
        reason: "must be the path of a root program's pinned array".to_owned(),
    }
}
