//! Entries of a pinned program array, which a root program on an interface walks: how several programs
//! share that interface.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;

use crate::Error;
use crate::Result;
use crate::maps::kernel_error;
use crate::sys::map::ProgramArray;
use crate::sys::pin;
use crate::sys::program;
use crate::sys::rcu::GracePeriod;

/// A program in an entry of a [`SharedEntries`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryProgram {
    /// The kernel's number of the program.
    pub id: u32,
    /// Its name; empty if the kernel does not tell.
    pub name: String,
}

/// The entries of a root program (see [`RootProgram`](crate::RootProgram)): a pinned array of XDP
/// programs.
///
/// An entry's program decides about a frame, or hands it to the next entry by a tail call into the same
/// array; where no entry is set, the frame passes. Entries stay when the process ends that has set them.
pub struct SharedEntries {
    path: PathBuf,
    array: ProgramArray,
}

impl SharedEntries {
    /// Opens the array that is pinned at a path.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing is pinned there; [`Error::InvalidConfig`] if it is something else;
    /// [`Error::Privilege`]; [`Error::Kernel`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = path.display().to_string();
        let fd = pin::open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Error::NotFound {
                what: format!("a program array at {text} (start a RootProgram and pin it there)"),
            },
            Some(libc::EINVAL | libc::ENOTDIR | libc::EISDIR) => not_an_array(&text),
            _ => kernel_error("open the program array", &text, error),
        })?;
        Self::of(path, fd)
    }

    /// The array with this descriptor.
    pub(crate) fn of(path: &Path, fd: OwnedFd) -> Result<Self> {
        let text = path.display().to_string();
        let array = ProgramArray::new(fd)
            .map_err(|error| kernel_error("ask about the program array", &text, error))?
            .ok_or_else(|| not_an_array(&text))?;
        Ok(Self {
            path: path.to_owned(),
            array,
        })
    }

    /// How many entries there are.
    pub fn count(&self) -> u32 {
        self.array.entries()
    }

    /// Where the array is pinned.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in each entry, in their order.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn programs(&self) -> Result<Vec<Option<EntryProgram>>> {
        (0..self.count())
            .map(|position| self.program_at(position))
            .collect()
    }

    fn program_at(&self, position: u32) -> Result<Option<EntryProgram>> {
        let id = self.array.get(position);
        let id = id.map_err(|error| self.error("look into", error))?;
        Ok(id.map(|id| EntryProgram {
            id,
            name: program::by_id(id)
                .and_then(|fd| program::info(fd.as_fd()))
                .map(|info| info.name)
                .unwrap_or_default(),
        }))
    }

    /// Puts a program into an entry, in the place of whatever is there: between two packets.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if there is no such entry, or the program is not of XDP or accepts frames
    /// in several buffers (`frags`) and the root does not, or the other way round; [`Error::Kernel`].
    pub fn set(&self, position: u32, program: BorrowedFd<'_>) -> Result<()> {
        self.check(position)?;
        let set = self.array.set(position, program);
        set.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Error::InvalidConfig {
                setting: "frags",
                value: "of the program".to_owned(),
                reason: format!(
                    "{}: takes XDP programs with the setting of its root program",
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

    /// The kernel's number of the array.
    pub(crate) fn id(&self) -> u32 {
        self.array.id()
    }

    fn check(&self, position: u32) -> Result<()> {
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

    fn error(&self, operation: &'static str, error: io::Error) -> Error {
        kernel_error(operation, &self.path.display().to_string(), error)
    }

    /// Whether the program at `position` is this one.
    fn holds(&self, position: u32, program: BorrowedFd<'_>) -> bool {
        let present = self.array.get(position).ok().flatten();
        let own = program::info(program).ok().map(|info| info.id);
        present.is_some() && present == own
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

fn not_an_array(path: &str) -> Error {
    Error::InvalidConfig {
        setting: "map_path",
        value: path.to_owned(),
        reason: "must be the path of a pinned program array, as RootProgram::pin makes it"
            .to_owned(),
    }
}

/// The entries that one program holds; emptied on drop, as far as they are still its own.
#[derive(Debug, Default)]
pub(crate) struct SharedAttachments {
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    entries: SharedEntries,
    position: u32,
    program: OwnedFd,
}

impl SharedAttachments {
    /// Puts `program` into an entry that is empty, or holds a program with one of `names`: one that a
    /// process has left, or that is to be replaced.
    pub(crate) fn attach(
        &mut self,
        program: BorrowedFd<'_>,
        names: &[&str],
        path: &Path,
        position: u32,
    ) -> Result<()> {
        let entries = SharedEntries::open(path)?;
        entries.check(position)?;
        if self.find(path).is_some() {
            return Err(Error::AlreadyExists {
                what: format!("an entry of {} that is ours", path.display()),
            });
        }
        if let Some(present) = entries.program_at(position)?
            && !names.contains(&present.name.as_str())
        {
            return Err(Error::ForeignEntry {
                path: path.to_owned(),
                position,
                program_id: present.id,
                program_name: present.name,
            });
        }
        let program = program.try_clone_to_owned();
        let program = program.map_err(|error| entries.error("prepare an entry of", error))?;
        entries.set(position, program.as_fd())?;
        self.held.push(Held {
            entries,
            position,
            program,
        });
        Ok(())
    }

    /// Empties the entry in the array at `path`.
    pub(crate) fn detach(&mut self, path: &Path) -> Result<()> {
        let position = self.find(path).ok_or_else(|| Error::NotFound {
            what: format!("an entry of {} that is ours", path.display()),
        })?;
        drop(self.held.remove(position));
        Ok(())
    }

    /// Puts another program into the entries that are still ours, or changes none.
    pub(crate) fn replace(&mut self, after: BorrowedFd<'_>) -> Result<()> {
        for (done, held) in self.held.iter().enumerate() {
            if !held.entries.holds(held.position, held.program.as_fd()) {
                continue;
            }
            if let Err(error) = held.entries.set(held.position, after) {
                for held in &self.held[..done] {
                    if held.entries.holds(held.position, after)
                        && let Err(error) = held.entries.set(held.position, held.program.as_fd())
                    {
                        log::error!("the new program stays: {error}");
                    }
                }
                return Err(error);
            }
        }
        for held in &mut self.held {
            match after.try_clone_to_owned() {
                Ok(program) => held.program = program,
                Err(error) => log::error!("an entry will not be emptied: {error}"),
            }
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The paths of the arrays and the entries in them.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&Path, u32)> {
        self.held
            .iter()
            .map(|held| (held.entries.path(), held.position))
    }

    fn find(&self, path: &Path) -> Option<usize> {
        self.held
            .iter()
            .position(|held| held.entries.path() == path)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.entries.holds(self.position, self.program.as_fd())
            && let Err(error) = self.entries.clear(self.position)
        {
            log::warn!("an entry of ours stays: {error}");
        }
        // A packet may still be in the program, and need what goes with it.
        if let Err(error) = GracePeriod::new().and_then(|period| period.wait()) {
            log::warn!("cannot wait until no packet is in the program: {error}");
        }
    }
}
