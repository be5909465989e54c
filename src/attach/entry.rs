//! A balancer's part of a root program: its program in an entry, the pin of the array of further
//! programs, which both outlive the process, and the files beside a pinned array.

use std::fs;
use std::io;
use std::iter;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;

use super::kept::meanwhile;
use super::list::Attached;
use super::list::Attachments;
use super::list::Replaceable;
use super::list::Witness;
use super::place::AttachmentState;
use super::place::here;
use super::shared::EntryProgram;
use super::shared::SharedEntries;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::map;
use crate::sys::map::ProgramArray;
use crate::sys::pin;
use crate::sys::process::Owner;
use crate::sys::program;
use crate::sys::rcu::GracePeriod;

/// The name of a balancer's array of further programs, as the kernel truncates it.
const SPECIAL: &str = "special_program";

/// A program for an entry, and the array of programs that it tail-calls. The kernel empties that
/// array when no process has it open, so it is pinned beside the entries: the program outlives its
/// process.
#[derive(Clone, Copy)]
pub(crate) struct EntrySet<'a> {
    pub(crate) main: BorrowedFd<'a>,
    pub(crate) special: BorrowedFd<'a>,
}

/// A balancer's entry of a root program (see
/// [`Katran::attach_shared`](crate::Katran::attach_shared)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedEntry {
    /// The absolute path of the pinned array of entries.
    pub path: PathBuf,
    /// The entry's position, from 0.
    pub position: u32,
    /// Whether the balancer's program is still in it. An array that is no longer pinned may still
    /// be in use, so that is not reported.
    pub state: AttachmentState,
}

/// A program in an entry. Dropping it empties the entry if it is still ours, unless a record keeps
/// it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The network namespace of the thread that attached it.
    namespace: Option<u64>,
    entries: SharedEntries,
    position: u32,
    kept: KeptEntry,
    /// Pins of other programs that it may have had, from an interrupted reload.
    others: Vec<SpecialPin>,
    /// There is nothing to empty, or a successor has the entry.
    is_undone: bool,
    record: Option<PathBuf>,
}

/// The name of a record that keeps an entry: `entry_POSITION_ARRAY_NAMESPACE`, a symbolic link to
/// the pinned array. The array's id distinguishes it from a later one at the same path.
struct RecordName {
    position: u32,
    array: u32,
    /// 0 if unknown.
    namespace: u64,
}

impl RecordName {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let mut numbers = name.strip_prefix("entry_")?.split('_');
        let read = Self {
            position: numbers.next()?.parse().ok()?,
            array: numbers.next()?.parse().ok()?,
            namespace: numbers.next()?.parse().ok()?,
        };
        (read.text() == name).then_some(read)
    }

    fn text(&self) -> String {
        let Self {
            position,
            array,
            namespace,
        } = self;
        format!("entry_{position}_{array}_{namespace}")
    }

    /// Writes the record, replacing one of the same name.
    fn write(&self, directory: &Path, array: &Path) -> io::Result<PathBuf> {
        let record = directory.join(self.text());
        let meanwhile = meanwhile(&record);
        pin::remove(&meanwhile)?;
        symlink(array.canonicalize()?, &meanwhile)?;
        fs::rename(&meanwhile, &record)?;
        Ok(record)
    }
}

/// A program for an entry, and the pin of its array.
#[derive(Debug)]
pub(crate) struct KeptEntry {
    program: OwnedFd,
    special: SpecialPin,
}

impl KeptEntry {
    fn new(entries: &SharedEntries, position: u32, set: EntrySet<'_>) -> Result<Self> {
        let program = set.main.try_clone_to_owned();
        Ok(Self {
            program: program.map_err(|error| entries.error("prepare an entry of", error))?,
            special: SpecialPin::new(entries, position, set.special)?,
        })
    }
}

impl Entry {
    /// The kernel's id of the network namespace of the thread that attached it.
    pub(crate) fn namespace(&self) -> Option<u64> {
        self.namespace
    }

    fn holds_ours(&self) -> io::Result<bool> {
        self.entries.holds(self.position, self.kept.program.as_fd())
    }

    /// Empties the entry, unless it now belongs to another program.
    fn undo(&mut self) -> Result<()> {
        if self.is_undone {
            return Ok(());
        }
        let ours = self.holds_ours();
        if ours.map_err(|error| {
            self.entries
                .error("identify the owner of an entry of", error)
        })? {
            self.entries.clear(self.position)?;
        }
        self.is_undone = true;
        Ok(())
    }

    /// Empties the entry, and removes its pins when no packet needs them any more.
    fn finish(&mut self) -> Result<()> {
        self.undo()?;
        let pins = iter::once(&mut self.kept.special).chain(&mut self.others);
        let mut pins = pins.filter(|pin| !pin.is_left).peekable();
        if pins.peek().is_none() {
            return Ok(());
        }
        // A packet may still be in the program and need its array.
        if let Err(error) = GracePeriod::new().and_then(|period| period.wait()) {
            log::warn!("cannot wait for packets to leave the program: {error}");
        }
        let removed = pins.try_for_each(SpecialPin::remove);
        removed.map_err(|error| {
            self.entries
                .error("unpin what belongs to an entry of", error)
        })
    }

    /// A recorded entry, from its record; `None` if the record is not ours, or if the array is no
    /// longer pinned there. The entry's program is one of these sets; pins for the others end with
    /// it.
    pub(crate) fn kept_at(record: &Path, sets: &[EntrySet<'_>]) -> Result<Option<Self>> {
        let failed = |error| kernel_error("adopt", &record.display().to_string(), error);
        let (Some(name), Ok(path)) = (RecordName::of(record), fs::read_link(record)) else {
            return Ok(None);
        };
        let entries = match SharedEntries::open(&path) {
            Ok(entries) if entries.id() == name.array => entries,
            Ok(_) | Err(Error::NotFound { .. } | Error::InvalidConfig { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let present = sets.iter().position(|set| {
            let ours = entries.holds(name.position, set.main);
            ours.unwrap_or(false)
        });
        let present = present.unwrap_or(0);
        let Some(set) = sets.get(present) else {
            return Ok(None);
        };
        let program = set.main.try_clone_to_owned().map_err(failed)?;
        let pins = sets.iter();
        let pins = pins.map(|set| SpecialPin::named(&entries, name.position, set.special));
        let mut others = pins.collect::<Result<Vec<_>>>()?;
        let special = others.remove(present);
        Ok(Some(Self {
            namespace: Some(name.namespace).filter(|number| *number != 0),
            entries,
            position: name.position,
            kept: KeptEntry { program, special },
            others,
            is_undone: false,
            record: Some(record.to_owned()),
        }))
    }

    /// The array's path and the position in a record.
    pub(crate) fn recorded_at(record: &Path) -> Option<(PathBuf, u32)> {
        let position = RecordName::of(record)?.position;
        Some((fs::read_link(record).ok()?, position))
    }

    /// Whether a path may be that of a record.
    pub(crate) fn is_record(path: &Path) -> bool {
        RecordName::of(path).is_some()
    }
}

impl Attached for Entry {
    /// The array's path and the position.
    type Asked = (PathBuf, u32);
    const KIND: &'static str = "entry";

    fn asked(&self) -> (PathBuf, u32) {
        (self.entries.path().to_owned(), self.position)
    }

    fn state(&self) -> AttachmentState {
        let own = program::info(self.kept.program.as_fd()).ok();
        entry_state(&self.entries, self.position, own.map(|own| own.id))
    }

    fn witness(&self) -> io::Result<Witness> {
        let (position, own) = (self.position, program::info(self.kept.program.as_fd())?.id);
        let array = self.entries.as_fd().try_clone_to_owned()?;
        let entries = SharedEntries::of(self.entries.path(), array).map_err(io::Error::other)?;
        Ok(Box::new(move || entry_state(&entries, position, Some(own))))
    }

    fn detach(&mut self) -> Result<()> {
        // Last, because without the record no process would know of the rest.
        if let Some(record) = self.record.clone() {
            self.finish()?;
            let removed = pin::remove(&record);
            removed.map_err(|error| self.entries.error("forget an entry of", error))?;
        }
        self.record = None;
        self.undo()
    }

    fn succeed(&mut self, mut former: Self) {
        // Its entry may hold this same program.
        former.is_undone |=
            former.entries.id() == self.entries.id() && former.position == self.position;
        // The pin may have the same name.
        former.kept.special.is_left = former.kept.special.path == self.kept.special.path;
        if former.record == self.record {
            former.record = None;
        } else if let Err(error) = former.detach() {
            log::warn!("cannot remove an earlier root entry: {error}");
        }
    }
}

/// The state of an entry that was given the program with the id `own`; `None` if unknown.
fn entry_state(entries: &SharedEntries, position: u32, own: Option<u32>) -> AttachmentState {
    // Another root program may have been pinned there since.
    let pinned = SharedEntries::open(entries.path());
    if pinned.is_ok_and(|pinned| pinned.id() != entries.id()) {
        return AttachmentState::Gone;
    }
    match entries.program_id(position) {
        Ok(None) => AttachmentState::Gone,
        Ok(Some(present)) if own.is_some_and(|own| own != present) => AttachmentState::Replaced,
        _ => AttachmentState::Attached,
    }
}

impl Replaceable for Entry {
    type Program<'a> = EntrySet<'a>;
    type Kept = KeptEntry;

    fn prepare(&self, set: EntrySet<'_>) -> Result<Option<KeptEntry>> {
        let holds = |program| {
            let holds = self.entries.holds(self.position, program);
            holds.map_err(|error| self.entries.error("read", error))
        };
        match holds(self.kept.program.as_fd())? && !holds(set.main)? {
            true => KeptEntry::new(&self.entries, self.position, set).map(Some),
            false => Ok(None),
        }
    }

    /// The previous program must live until no packet is in it.
    fn switch(&mut self, next: KeptEntry) -> Result<KeptEntry> {
        self.entries.set(self.position, next.program.as_fd())?;
        Ok(mem::replace(&mut self.kept, next))
    }
}

impl Attachments<Entry> {
    /// Checks that the entry exists and is empty or holds a program with one of `names`: left by a
    /// process, or to be replaced. Returns that program, too.
    pub(crate) fn check(
        &self,
        path: &Path,
        position: u32,
        names: &[&str],
    ) -> Result<(SharedEntries, Option<EntryProgram>)> {
        let entries = SharedEntries::open(path)?;
        entries.check(position)?;
        let ours = self.iter().find(|held| held.entries.path() == path);
        if ours.is_some_and(|held| held.state() == AttachmentState::Attached) {
            return Err(Error::AlreadyExists {
                what: format!("our entry of {}", path.display()),
            });
        }
        match entries.program_at(position)? {
            Some(present) if !names.contains(&present.name.as_str()) => Err(Error::ForeignEntry {
                path: path.to_owned(),
                position,
                program_id: present.id,
                program_name: present.name,
            }),
            former => Ok((entries, former)),
        }
    }

    /// Puts a program into a checked entry. A record in `keep_in` keeps it beyond this list.
    pub(crate) fn attach(
        &mut self,
        entries: SharedEntries,
        set: EntrySet<'_>,
        position: u32,
        keep_in: Option<&Path>,
    ) -> Result<()> {
        let namespace = here();
        let name = RecordName {
            position,
            array: entries.id(),
            namespace: namespace.unwrap_or(0),
        };
        // First: without a record, no process would own the entry and its pins.
        let record = keep_in.map(|directory| name.write(directory, entries.path()));
        let record = record.transpose();
        let record = record.map_err(|error| entries.error("record an entry of", error))?;
        let put = KeptEntry::new(&entries, position, set).and_then(|kept| {
            entries.set(position, kept.program.as_fd())?;
            Ok(kept)
        });
        let kept = put.inspect_err(|_| {
            if let Some(record) = &record
                && let Err(error) = pin::remove(record)
            {
                log::warn!("cannot remove {}: {error}", record.display());
            }
        })?;
        kept.special.remove_others(&entries, position);
        let new = Entry {
            namespace,
            entries,
            position,
            kept,
            others: Vec::new(),
            is_undone: false,
            record,
        };
        let path = new.entries.path().to_owned();
        self.put(new, |held| held.entries.path() == path);
        Ok(())
    }

    /// Removes what an interrupted reload pinned for programs that are in no entry.
    pub(crate) fn remove_leftovers(&self) {
        for held in self.present() {
            held.kept
                .special
                .remove_others(&held.entries, held.position);
        }
    }

    /// Empties the entry in the array at `path`.
    pub(crate) fn detach(&mut self, path: &Path) -> Result<()> {
        let position = self.iter().position(|held| held.entries.path() == path);
        let position = position.ok_or_else(|| Error::NotFound {
            what: format!("our entry of {}", path.display()),
        })?;
        self.end(position)
    }

    /// The entries, as the kernel reports them.
    pub(crate) fn list(&self) -> Vec<SharedEntry> {
        self.iter()
            .map(|held| SharedEntry {
                path: held.entries.path().to_owned(),
                position: held.position,
                state: held.state(),
            })
            .collect()
    }

    /// Lost entries that the calling thread can restore: paths and positions.
    pub(crate) fn lost(&self) -> Vec<(PathBuf, u32)> {
        let here = here();
        self.iter()
            .filter(|held| held.namespace == here)
            .filter(|held| held.state() == AttachmentState::Gone)
            .map(Entry::asked)
            .collect()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.record.is_some() {
            self.kept.special.is_left = true;
            self.others.iter_mut().for_each(|pin| pin.is_left = true);
        }
        if self.record.is_some() || !self.kept.special.owner.is_here() {
            return;
        }
        if let Err(error) = self.finish() {
            log::warn!("cannot empty our root entry: {error}");
        }
    }
}

/// The pin of a balancer's array of further programs: `PATH_POSITION_ID`. Removed on drop.
#[derive(Debug)]
struct SpecialPin {
    path: PathBuf,
    /// It belongs to another program now, or is gone.
    is_left: bool,
    owner: Owner,
}

impl SpecialPin {
    fn new(entries: &SharedEntries, position: u32, special: BorrowedFd<'_>) -> Result<Self> {
        let failed = |error| entries.error("pin what belongs to an entry of", error);
        let named = Self::named(entries, position, special)?;
        match pin::pin(special, &named.path) {
            // The id is the array's own, so it is the same array.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => Ok(named),
        }
    }

    /// An existing pin.
    fn named(entries: &SharedEntries, position: u32, special: BorrowedFd<'_>) -> Result<Self> {
        let info = map::info(special);
        let info = info.map_err(|error| entries.error("ask what belongs to an entry of", error))?;
        Ok(Self {
            path: beside(entries.path(), &format!("{position}_{}", info.id)),
            is_left: false,
            owner: Owner::new(),
        })
    }

    fn remove(&mut self) -> io::Result<()> {
        pin::remove(&self.path)?;
        self.is_left = true;
        Ok(())
    }

    /// Removes what previous holders of the entry left, when no packet is in their programs.
    fn remove_others(&self, entries: &SharedEntries, position: u32) {
        let others = special_pins(entries.path(), Some(position)).map(|mut pins| {
            pins.retain(|pin| *pin != self.path);
            pins
        });
        let removed = others.and_then(|others| {
            if !others.is_empty() {
                GracePeriod::new()?.wait()?;
            }
            others.iter().try_for_each(fs::remove_file)
        });
        if let Err(error) = removed {
            log::warn!("cannot remove the pins of an earlier balancer: {error}");
        }
    }
}

impl Drop for SpecialPin {
    fn drop(&mut self) {
        if self.is_left || !self.owner.is_here() {
            return;
        }
        if let Err(error) = self.remove() {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The path of something pinned beside the array at `path`, with a suffix.
pub(crate) fn beside(path: &Path, name: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(format!("_{name}"));
    path.into()
}

/// The files whose names begin with that of `path`, with the rest of their names.
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
            // Not built from `path`, which may lack a `./`.
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

/// The pins of balancers' further programs beside the array at `path`, of one entry or of all.
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
            // It went away after it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Another program's file may have such a name.
        if array.is_some_and(|array| array.name() == SPECIAL) {
            pins.push(pin);
        }
    }
    Ok(pins)
}
