//! Records in shared memory that outlives the process. The process may end between any two stores.
//!
//! There are two halves. One holds a *snapshot*, records that describe everything, and behind it
//! each change since. When it is full, the library writes a snapshot to the other half, and one
//! word, the *root*, then makes that half the current one. If a snapshot does not fit, a larger
//! ground replaces this one.
//!
//! A record is a header (its length, and a checksum over it, its number and the root) and its
//! bytes. The header is one word and stored last, and the word behind the record is zeroed before.
//! So a record is either complete or absent: a wrong checksum is not a torn write but memory that
//! something has corrupted.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::ground::Ground;

/// The format's number, for log and records. A version reads only its own: records do not name
/// their fields, so changing one changes the layout.
pub(crate) const LAYOUT: u32 = 2;

/// The first word's low half: `KTLG`.
const MAGIC: u32 = 0x474c_544b;

/// The first words: the format, and a half's length in words.
const KIND: usize = 0;
const HALF: usize = 1;
/// The root, twice.
const ROOTS: [usize; 2] = [2, 3];
/// Where the log ended after the last record: without it a log that has lost its end would look
/// complete.
const END: usize = 4;
/// Where the halves begin; a cache line.
const HEAD: usize = 8;

/// Words that each record leaves free for the end of its change, which must not fail.
const RESERVE: usize = 32;

/// The fewest words that a half can use.
const LEAST_HALF: usize = 4 * RESERVE;

/// Why a log cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is not a log, or its beginning is corrupt.
    NoLedger,
    /// Its layout differs from this version's.
    Layout(u32),
    /// Something has corrupted it.
    Spoiled(&'static str),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLedger => f.write_str("it is not a ledger"),
            Self::Layout(layout) => write!(
                f,
                "it has layout {layout}, and this version reads layout {LAYOUT}"
            ),
            Self::Spoiled(what) => f.write_str(what),
        }
    }
}

/// Which half to read, and how often that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Root {
    sequence: u32,
    half: usize,
}

impl Root {
    const FIRST: Self = Self {
        sequence: 1,
        half: 0,
    };

    /// After two billion snapshots a new ground starts from the first root again.
    const LAST: u32 = u32::MAX >> 1;

    fn word(self) -> u64 {
        let low = self.sequence << 1 | self.half as u32;
        u64::from(low) | u64::from(checksum(&[low])) << 32
    }

    fn of(word: u64) -> Option<Self> {
        let low = word as u32;
        let root = Self {
            sequence: low >> 1,
            half: (low & 1) as usize,
        };
        (root.sequence != 0 && root.word() == word).then_some(root)
    }

    /// The word that says where the log ends.
    fn end(self, at: usize) -> u64 {
        let at = at as u32;
        u64::from(at) | u64::from(checksum(&[self.sequence, at])) << 32
    }
}

/// A ledger's records, to which more can be added.
pub(super) struct Log {
    ground: Box<dyn Ground>,
    root: Root,
    /// Where the next header goes, in words from the half's beginning.
    at: usize,
    /// How many records there are.
    count: u32,
}

/// A snapshot: passes its records to a function, one by one. If it fails, the snapshot is
/// incomplete and is not used.
pub(super) type Snapshot<'a> = &'a dyn Fn(&mut dyn FnMut(&[u8])) -> io::Result<()>;

impl Log {
    /// Writes a log that is only a snapshot, and publishes its ground, or a larger one.
    pub(super) fn create(ground: Box<dyn Ground>, snapshot: Snapshot<'_>) -> io::Result<Self> {
        let written = match half_of(ground.words()) >= LEAST_HALF {
            true => write_first(ground.words(), snapshot)?,
            false => Err(needed(snapshot)?),
        };
        match written {
            Ok(end) => Self::publish(ground, end),
            Err(needed) => Self::create_larger(&*ground, needed, snapshot),
        }
    }

    fn create_larger(
        before: &dyn Ground,
        needed: usize,
        snapshot: Snapshot<'_>,
    ) -> io::Result<Self> {
        let ground = before.larger(bytes_for(needed))?;
        let written = write_first(ground.words(), snapshot)?;
        let end = written.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Self::publish(ground, end)
    }

    /// Publishes a log whose snapshot is written, with this many words and records.
    fn publish(mut ground: Box<dyn Ground>, (at, count): (usize, u32)) -> io::Result<Self> {
        ground.publish()?;
        Ok(Self {
            ground,
            root: Root::FIRST,
            at,
            count,
        })
    }

    /// Whether a ground begins like a log of this layout.
    pub(super) fn check(ground: &dyn Ground) -> Result<(), Unreadable> {
        check_head(ground.words()).map(drop)
    }

    /// Reads the log, passing each record to `read`. Writes nothing.
    pub(super) fn open<E: From<Unreadable>>(
        ground: Box<dyn Ground>,
        mut read: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let words = ground.words();
        let half = check_head(words)?;
        let roots = ROOTS.map(|at| Root::of(words[at].load(Ordering::Acquire)));
        let root = roots.into_iter().flatten().max();
        let root = root.ok_or(Unreadable::Spoiled("both copies of its root are corrupt"))?;
        let records = &words[half_range(half, root.half)];
        let (mut at, mut count) = (0, 0);
        let mut bytes = Vec::new();
        while let Some(next) = read_record(records, at, root, count, &mut bytes)? {
            read(&bytes)?;
            at = next;
            count += 1;
        }
        if count == 0 {
            return Err(Unreadable::Spoiled("it has no record").into());
        }
        let end = words[END].load(Ordering::Acquire);
        if end == root.end(end as u32 as usize) && end as u32 as usize > at {
            return Err(Unreadable::Spoiled("its last records are missing").into());
        }
        Ok(Self {
            ground,
            root,
            at,
            count,
        })
    }

    /// Whether there is room for a record of `bytes`, and for the end of its change.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.at + words_for(bytes) + RESERVE <= half_of(self.ground.words())
    }

    /// Appends a record for which there is [room](Self::fits), or one that ends a change.
    pub(super) fn append(&mut self, record: &[u8]) {
        let words = self.ground.words();
        let range = half_range(half_of(words), self.root.half);
        let written = put(&words[range], self.at, self.root, self.count, record);
        // `fits` has left room for it. If not, the next change writes a snapshot.
        debug_assert!(written.is_some());
        if let Some(at) = written {
            self.at = at;
            self.count += 1;
            store(&words[END], self.root.end(at), Ordering::Release);
        }
    }

    /// Writes a snapshot where there is room for it and `bytes` more.
    ///
    /// # Errors
    /// If there is no memory for a larger ground, or it cannot be published, and those of
    /// `snapshot`. Nothing has changed then.
    pub(super) fn compact(&mut self, bytes: usize, snapshot: Snapshot<'_>) -> io::Result<()> {
        let root = Root {
            sequence: self.root.sequence + 1,
            half: 1 - self.root.half,
        };
        let words = self.ground.words();
        let half = half_of(words);
        let written = write_snapshot(&words[half_range(half, root.half)], root, snapshot)?;
        let needed = words_for(bytes) + RESERVE;
        let has_room = |room| match written {
            Ok((at, _)) => at + room <= half && root.sequence <= Root::LAST,
            Err(_) => false,
        };
        let snapshot_words = match written {
            Ok((at, _)) | Err(at) => at,
        };
        // Snapshots are rare if the records behind one have half as much room as the snapshot.
        if !has_room(needed.max(snapshot_words / 2)) {
            match Self::create_larger(&*self.ground, 2 * snapshot_words + needed, snapshot) {
                Ok(larger) => {
                    *self = larger;
                    return Ok(());
                }
                Err(error) if !has_room(needed) => return Err(error),
                // Less room will do.
                Err(_) => {}
            }
        }
        if let Ok((at, count)) = written {
            self.turn(root, at, count);
        }
        Ok(())
    }

    /// Switches to the other half, which holds a new snapshot.
    fn turn(&mut self, root: Root, at: usize, count: u32) {
        let words = self.ground.words();
        store(&words[END], 0, Ordering::Release);
        for copy in ROOTS {
            store(&words[copy], root.word(), Ordering::Release);
        }
        store(&words[END], root.end(at), Ordering::Release);
        (self.root, self.at, self.count) = (root, at, count);
    }

    /// Moves the log unchanged to a larger ground, with room for `bytes` more.
    ///
    /// # Errors
    /// As [`compact`](Self::compact).
    pub(super) fn grow(&mut self, bytes: usize) -> io::Result<()> {
        let words = self.ground.words();
        let half = half_of(words);
        let needed = 2 * self.at + words_for(bytes);
        let mut ground = self.ground.larger(bytes_for(needed.max(half)))?;
        let to = ground.words();
        let new_half = half_of(to);
        if new_half < self.at + words_for(bytes) + RESERVE {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        let root = Root {
            half: 0,
            ..self.root
        };
        let from = &words[half_range(half, self.root.half)];
        for (to, from) in to[HEAD..].iter().zip(&from[..=self.at]) {
            store(to, from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        write_head(to, root, self.at);
        ground.publish()?;
        (self.ground, self.root) = (ground, root);
        Ok(())
    }
}

/// The head of a log that begins in the first half.
fn write_head(words: &[AtomicU64], root: Root, at: usize) {
    store(&words[HALF], half_of(words) as u64, Ordering::Relaxed);
    for copy in ROOTS {
        store(&words[copy], root.word(), Ordering::Relaxed);
    }
    store(&words[END], root.end(at), Ordering::Relaxed);
    let kind = u64::from(MAGIC) | u64::from(LAYOUT) << 32;
    store(&words[KIND], kind, Ordering::Release);
}

/// Writes a snapshot to memory that no process reads yet; returns the words needed if that is too
/// small.
fn write_first(
    words: &[AtomicU64],
    snapshot: Snapshot<'_>,
) -> io::Result<Result<(usize, u32), usize>> {
    let half = &words[half_range(half_of(words), Root::FIRST.half)];
    let written = write_snapshot(half, Root::FIRST, snapshot)?;
    if let Ok((at, _)) = written {
        write_head(words, Root::FIRST, at);
    }
    Ok(written)
}

/// Writes a snapshot and returns where it ends and how many records it has, or the words needed if
/// the half is too small.
fn write_snapshot(
    half: &[AtomicU64],
    root: Root,
    snapshot: Snapshot<'_>,
) -> io::Result<Result<(usize, u32), usize>> {
    let (mut at, mut count) = (0, 0);
    // Even if there is no record, so that nothing reads the previous contents.
    if let Some(first) = half.first() {
        store(first, 0, Ordering::Relaxed);
    }
    let mut is_full = false;
    snapshot(&mut |record| {
        is_full = is_full || put(half, at, root, count, record).is_none();
        at += 1 + record.len().div_ceil(8);
        count += 1;
    })?;
    Ok(match is_full || at + RESERVE > half.len() {
        false => Ok((at, count)),
        true => Err(at + RESERVE),
    })
}

fn needed(snapshot: Snapshot<'_>) -> io::Result<usize> {
    let mut words = RESERVE;
    snapshot(&mut |record| words += words_for(record.len()))?;
    Ok(words)
}

/// Writes a record, and returns where the next one goes; `None`: there is no room.
fn put(half: &[AtomicU64], at: usize, root: Root, number: u32, record: &[u8]) -> Option<usize> {
    let length = u32::try_from(record.len()).ok()?;
    // An empty record whose checksum is 0 would look absent.
    debug_assert!(length != 0);
    let next = at + 1 + record.len().div_ceil(8);
    store(half.get(next)?, 0, Ordering::Relaxed);
    for (word, bytes) in half[at + 1..next].iter().zip(record.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        store(word, u64::from_le_bytes(whole), Ordering::Relaxed);
    }
    let header = header(root, number, length, record);
    store(&half[at], header, Ordering::Release);
    Some(next)
}

/// Reads the record at `at` into `bytes`, and returns where the next one is; `None`: there is no
/// record.
fn read_record(
    half: &[AtomicU64],
    at: usize,
    root: Root,
    number: u32,
    bytes: &mut Vec<u8>,
) -> Result<Option<usize>, Unreadable> {
    let spoiled = || Unreadable::Spoiled("a record does not match its checksum");
    let Some(found) = half.get(at) else {
        // The memory was cut off within the last record.
        return Err(spoiled());
    };
    let found = found.load(Ordering::Acquire);
    if found == 0 {
        return Ok(None);
    }
    let length = found as u32;
    let words = (length as usize).div_ceil(8);
    let record = half.get(at + 1..at + 1 + words).ok_or_else(spoiled)?;
    bytes.clear();
    bytes.reserve(8 * words);
    for word in record {
        bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    if bytes[length as usize..].iter().any(|byte| *byte != 0) {
        return Err(spoiled());
    }
    bytes.truncate(length as usize);
    match header(root, number, length, bytes) == found {
        true => Ok(Some(at + 1 + words)),
        false => Err(spoiled()),
    }
}

fn header(root: Root, number: u32, length: u32, record: &[u8]) -> u64 {
    let mut sum = crc32fast::Hasher::new();
    for word in [root.sequence, number, length] {
        sum.update(&word.to_le_bytes());
    }
    sum.update(record);
    u64::from(length) | u64::from(sum.finalize()) << 32
}

fn checksum(words: &[u32]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for word in words {
        sum.update(&word.to_le_bytes());
    }
    sum.finalize()
}

fn check_head(words: &[AtomicU64]) -> Result<usize, Unreadable> {
    let half = half_of(words);
    if half < LEAST_HALF {
        return Err(Unreadable::NoLedger);
    }
    let kind = words[KIND].load(Ordering::Acquire);
    let layout = (kind >> 32) as u32;
    if kind as u32 != MAGIC {
        return Err(Unreadable::NoLedger);
    }
    if layout != LAYOUT {
        return Err(Unreadable::Layout(layout));
    }
    match words[HALF].load(Ordering::Relaxed) == half as u64 {
        true => Ok(half),
        false => Err(Unreadable::Spoiled("its size does not match its header")),
    }
}

/// The words of a record of `bytes`.
fn words_for(bytes: usize) -> usize {
    1 + bytes.div_ceil(8)
}

/// The bytes of a ground whose halves have at least `words`.
fn bytes_for(words: usize) -> usize {
    let half = (words + RESERVE).max(LEAST_HALF).next_power_of_two();
    8 * (HEAD + 2 * half)
}

fn half_of(words: &[AtomicU64]) -> usize {
    words.len().saturating_sub(HEAD) / 2
}

fn half_range(half: usize, which: usize) -> Range<usize> {
    let start = HEAD + which * half;
    start..start + half
}

/// Every store of a ledger goes through here, so that a test can end the process before any of
/// them.
fn store(word: &AtomicU64, value: u64, order: Ordering) {
    #[cfg(test)]
    super::death::step();
    word.store(value, order);
}

#[cfg(test)]
mod tests;
