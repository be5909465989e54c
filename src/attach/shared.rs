//! Entries of a pinned program array, which a root program on an interface walks: how several programs
//! share that interface.

use std::fmt;
use std::fs;
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
use crate::sys::map;
use crate::sys::map::ProgramArray;
use crate::sys::pin;
use crate::sys::program;
use crate::sys::rcu::GracePeriod;

/// The name of a balancer's array of further programs, as the kernel cuts it.
const SPECIAL: &str = "special_program";

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
            name: program::name_by_id(id),
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
    fn holds(&self, position: u32, program: BorrowedFd<'_>) -> io::Result<bool> {
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

fn not_an_array(path: &str) -> Error {
    Error::InvalidConfig {
        setting: "map_path",
        value: path.to_owned(),
        reason: "must be the path of a pinned program array, as RootProgram::pin makes it"
            .to_owned(),
    }
}

/// A program for an entry, and the array of those that it hands packets on to. The kernel empties that
/// array when nobody has it open, so it is pinned beside the entries: the program outlives its process.
#[derive(Clone, Copy)]
pub(crate) struct EntrySet<'a> {
    pub(crate) main: BorrowedFd<'a>,
    pub(crate) special: BorrowedFd<'a>,
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
    special: SpecialPin,
}

impl SharedAttachments {
    /// Puts a program into an entry that is empty, or holds a program with one of `names`: one that a
    /// process has left, or that is to be replaced.
    pub(crate) fn attach(
        &mut self,
        set: EntrySet<'_>,
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
        let program = set.main.try_clone_to_owned();
        let program = program.map_err(|error| entries.error("prepare an entry of", error))?;
        let special = SpecialPin::new(&entries, position, set.special)?;
        entries.set(position, program.as_fd())?;
        special.remove_others(&entries, position);
        self.held.push(Held {
            entries,
            position,
            program,
            special,
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

    /// Puts another program into the entries that are still ours, or changes none. The one before must
    /// live until no packet is in it.
    pub(crate) fn replace(&mut self, after: EntrySet<'_>) -> Result<()> {
        let mut next = Vec::new();
        for (at, held) in self.held.iter().enumerate() {
            let Held {
                entries, position, ..
            } = held;
            let failed = |error| entries.error("look into", error);
            if entries
                .holds(*position, held.program.as_fd())
                .map_err(failed)?
            {
                let program = after.main.try_clone_to_owned().map_err(failed)?;
                next.push((
                    at,
                    program,
                    SpecialPin::new(entries, *position, after.special)?,
                ));
            }
        }
        for (done, (at, program, _)) in next.iter().enumerate() {
            let held = &self.held[*at];
            if let Err(error) = held.entries.set(held.position, program.as_fd()) {
                for (at, program, special) in next.drain(..done) {
                    let held = &mut self.held[at];
                    if let Err(error) = held.entries.set(held.position, held.program.as_fd()) {
                        // With what it needs; the next change of programs finds it.
                        log::error!("the new program stays: {error}");
                        (held.program, held.special) = (program, special);
                    }
                }
                return Err(error);
            }
        }
        for (at, program, special) in next {
            let held = &mut self.held[at];
            (held.program, held.special) = (program, special);
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
        match self.entries.holds(self.position, self.program.as_fd()) {
            Ok(true) => {
                if let Err(error) = self.entries.clear(self.position) {
                    log::warn!("an entry of ours stays: {error}");
                }
            }
            Ok(false) => {}
            Err(error) => log::warn!("it cannot be told whose an entry is, so it stays: {error}"),
        }
        // A packet may still be in the program, and need what goes with it.
        if let Err(error) = GracePeriod::new().and_then(|period| period.wait()) {
            log::warn!("cannot wait until no packet is in the program: {error}");
        }
    }
}

/// The pin of a balancer's array of further programs: `PATH_POSITION_ID`. Removed on drop.
#[derive(Debug)]
struct SpecialPin(PathBuf);

impl SpecialPin {
    fn new(entries: &SharedEntries, position: u32, special: BorrowedFd<'_>) -> Result<Self> {
        let failed = |error| entries.error("pin what belongs to an entry of", error);
        let id = map::info(special).map_err(failed)?.id;
        let path = beside(entries.path(), &format!("{position}_{id}"));
        match pin::pin(special, &path) {
            Ok(()) => Ok(Self(path)),
            // The kernel's number is its own: it is the same array.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Self(path)),
            Err(error) => Err(failed(error)),
        }
    }

    /// Removes what others have left that were in the entry before, when no packet is in their programs.
    fn remove_others(&self, entries: &SharedEntries, position: u32) {
        let others = special_pins(entries.path(), Some(position)).map(|mut pins| {
            pins.retain(|pin| *pin != self.0);
            pins
        });
        let removed = others.and_then(|others| {
            if !others.is_empty() {
                GracePeriod::new()?.wait()?;
            }
            others.iter().try_for_each(fs::remove_file)
        });
        if let Err(error) = removed {
            log::warn!("pins of a former balancer stay: {error}");
        }
    }
}

impl Drop for SpecialPin {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{} stays: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

/// What is pinned beside the array at `path`, under its name and another one.
pub(crate) fn beside(path: &Path, name: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(format!("_{name}"));
    path.into()
}

/// The files whose names are that of `path` with something behind it, and that.
pub(crate) fn files_beside(path: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}_");
    let mut files = Vec::new();
    for entry in fs::read_dir(directory_of(path))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(rest) = name.strip_prefix(&prefix)
            && entry.file_type()?.is_file()
        {
            // Not the entry's own path, which may have a `./` that `path` has not.
            files.push((beside(path, rest), rest.to_owned()));
        }
    }
    Ok(files)
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// The pins of balancers' further programs beside the array at `path`: of one entry or of all.
pub(crate) fn special_pins(path: &Path, position: Option<u32>) -> io::Result<Vec<PathBuf>> {
    let mut pins = Vec::new();
    for (pin, rest) in files_beside(path)? {
        let numbers = rest.split_once('_').and_then(|(of, id)| {
            let _: u32 = id.parse().ok()?;
            of.parse::<u32>().ok()
        });
        if numbers.is_none_or(|of| position.is_some_and(|wanted| wanted != of)) {
            continue;
        }
        let array = match pin::open(&pin) {
            Ok(fd) => ProgramArray::new(fd)?,
            // Gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Somebody else's may have such a name.
        if array.is_some_and(|array| array.name() == SPECIAL) {
            pins.push(pin);
        }
    }
    Ok(pins)
}
