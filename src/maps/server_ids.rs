//! The server-id table: reals by the ids that their servers put into packets, in shared memory.
//!
//! It is a hash of lines, each a cache line of eight entries. An id is in one of two lines, the
//! emptier one when it was added (Azar, Broder, Karlin and Upfal, "Balanced allocations", SIAM
//! Journal on Computing 29, 1999), so lines fill evenly. When ids fill more than half of a table,
//! one of twice the size replaces it, and one of a fitting size when few are left. A table takes 16
//! to 64 bytes per id, at least a chunk of 1 MiB, and does not exist before the first id. It
//! consists of chunks of one size, because only for such maps does the verifier turn lookups into
//! loads.
//!
//! A table that has grown leaves its predecessor's memory, half as large, to a later change:
//! freeing it at once would mean waiting for a second grace period. There are three parts for
//! tables: before a table takes the third one, the library has waited for packets on their way to
//! the first.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::cells::Live;
use super::chunks::create_some;
use super::grace::GracePeriods;
use super::grace::Moment;
use super::random::mix;
use super::random::random_words;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::map::Spec;
use crate::sys::mapping::Mapping;
use crate::sys::nested::MapArray;

const PER_LINE: usize = types::server_id_constant::SERVER_IDS_PER_LINE.0 as usize;
const LINE_BYTES: usize = size_of::<types::server_id_line>();
const CHUNK_LINES: u32 = types::server_id_constant::SERVER_ID_CHUNK_LINES.0;
const PARTS: usize = types::server_id_constant::SERVER_ID_PARTS.0 as usize;
const CHUNK_BYTES: usize = CHUNK_LINES as usize * LINE_BYTES;

/// The hash's keys: an odd multiplier and a start value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerIdKeys {
    pub(crate) key: u64,
    pub(crate) start: u64,
}

impl ServerIdKeys {
    /// Draws keys from the kernel's random number generator.
    pub(crate) fn draw() -> io::Result<Self> {
        let [key, start] = random_words()?;
        Ok(Self {
            key: key | 1,
            start,
        })
    }

    /// The two lines of an id in a table of `lines` lines, as in the program's `server_id_lookup`.
    fn lines(self, id: u32, lines: u32) -> [usize; 2] {
        let product = self.start.wrapping_add(id.into()).wrapping_mul(self.key);
        let hash = mix(product);
        let mask = lines - 1;
        [(hash >> 32) as u32 & mask, (hash >> 8) as u32 & mask].map(|line| line as usize)
    }
}

/// Lines of a table for `ids` ids, which then use at most half of its entries.
fn lines_for(ids: u32) -> u32 {
    let lines = (u64::from(ids) * 2).div_ceil(PER_LINE as u64);
    (lines.next_power_of_two() as u32).max(CHUNK_LINES)
}

/// The most chunks of the largest table: twice what `ids` ids need, in case both lines of an id
/// fill up early.
pub(crate) fn max_server_id_chunks(ids: u32) -> u32 {
    2 * lines_for(ids) / CHUNK_LINES
}

/// Elements of the array of chunks for `ids` ids.
pub(crate) fn max_server_id_places(ids: u32) -> u32 {
    PARTS as u32 * max_server_id_chunks(ids)
}

/// A table in the kernel.
struct Table {
    /// Mapped, so they live without a descriptor.
    chunks: Vec<Mapping>,
    /// The first one, to ask the kernel about.
    sample: OwnedFd,
    lines: u32,
}

impl Table {
    /// Makes a table in the elements of `outer` from `first`.
    fn create(lines: u32, outer: &MapArray, first: u32) -> io::Result<Self> {
        let count = (lines / CHUNK_LINES) as usize;
        let mut chunks = Vec::with_capacity(count);
        let mut sample = None;
        while chunks.len() < count {
            let there = chunks.len();
            let made = create_some(count - there, chunk).and_then(|maps| {
                for map in &maps {
                    chunks.push(Mapping::new(map.as_fd(), CHUNK_BYTES)?);
                }
                let elements = (first + there as u32..).zip(maps.iter().map(AsFd::as_fd));
                let set = outer.set(&elements.collect::<Vec<_>>());
                sample = sample.take().or(maps.into_iter().next());
                set
            });
            if let Err(error) = made {
                if let Some(sample) = &sample {
                    let places = (first..).take(chunks.len());
                    let like: Vec<_> = places.map(|at| (at, sample.as_fd())).collect();
                    if let Err(error) = outer.set(&like) {
                        log::warn!("cannot free the memory of a server-id table: {error}");
                    }
                }
                return Err(error);
            }
        }
        let sample = sample.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self {
            chunks,
            sample,
            lines,
        })
    }

    fn line(&self, number: usize) -> &[AtomicU64] {
        let in_chunk = number % CHUNK_LINES as usize;
        let chunk = &self.chunks[number / CHUNK_LINES as usize];
        &chunk.u64s()[in_chunk * PER_LINE..(in_chunk + 1) * PER_LINE]
    }

    fn entry(&self, keys: ServerIdKeys, id: u32) -> Option<&AtomicU64> {
        let lines = keys.lines(id, self.lines);
        let mut entries = lines.into_iter().flat_map(|line| self.line(line));
        entries.find(|entry| {
            let word = entry.load(Ordering::Relaxed);
            word != 0 && word as u32 == id
        })
    }

    /// Enters an id if there is room; `false`: both its lines are full.
    fn place(&self, keys: ServerIdKeys, id: u32, real: u32) -> bool {
        let word = word(id, real);
        if let Some(entry) = self.entry(keys, id) {
            entry.store(word, Ordering::Release);
            return true;
        }
        let lines = keys.lines(id, self.lines).map(|line| self.line(line));
        let empty = |line: &[AtomicU64]| {
            let empty = line.iter().filter(|it| it.load(Ordering::Relaxed) == 0);
            empty.count()
        };
        let line = match empty(lines[1]) > empty(lines[0]) {
            true => lines[1],
            false => lines[0],
        };
        let free = line.iter().find(|it| it.load(Ordering::Relaxed) == 0);
        free.map(|entry| entry.store(word, Ordering::Release))
            .is_some()
    }

    /// All entries: ids and reals' ids.
    fn entries(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let words = self.chunks.iter().flat_map(Mapping::u64s);
        let words = words.map(|word| word.load(Ordering::Relaxed));
        words
            .filter(|word| *word != 0)
            .map(|word| (word as u32, (word >> 32) as u32))
    }
}

/// A chunk, as the program declares it.
fn chunk() -> io::Result<OwnedFd> {
    map::create(&Spec {
        kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
        name: "server_id_chunk",
        key_size: 4,
        value_size: LINE_BYTES as u32,
        max_entries: CHUNK_LINES,
        flags: libbpf_sys::BPF_F_MMAPABLE,
        numa_node: None,
    })
}

/// The memory of a table for `ids` ids.
pub(crate) fn server_id_table_bytes(ids: u32) -> u64 {
    let chunks = u64::from(lines_for(ids) / CHUNK_LINES);
    chunks * (4096 + CHUNK_BYTES as u64)
}

/// An entry as packets read it: the id at the lower address.
fn word(id: u32, real: u32) -> u64 {
    u64::from(id) | u64::from(real) << 32
}

/// The server ids that packets know.
pub(crate) struct ServerIdStore {
    outer: MapArray,
    keys: ServerIdKeys,
    table: Option<Table>,
    /// The number of chunks in each part of `outer`.
    left: [usize; PARTS],
    /// The part of `outer` that holds the table.
    part: usize,
    /// When packets were switched away from the previous table.
    switched: Moment,
    grace_periods: GracePeriods,
    /// The number of elements in a part.
    max_chunks: u32,
    ids: u32,
}

impl ServerIdStore {
    /// For `max_ids` ids at most.
    pub(crate) fn new(
        outer: MapArray,
        grace_periods: GracePeriods,
        keys: ServerIdKeys,
        max_ids: u32,
    ) -> Self {
        Self {
            outer,
            keys,
            table: None,
            left: [0; PARTS],
            part: 0,
            switched: Moment::default(),
            grace_periods,
            max_chunks: max_server_id_chunks(max_ids),
            ids: 0,
        }
    }

    /// Adopts the table that packets use.
    pub(crate) fn resume(&mut self, live: &Live) -> io::Result<()> {
        let Some((part, lines)) = live.server_ids() else {
            return Ok(());
        };
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        let first = part * self.max_chunks;
        let mut chunks = Vec::new();
        let mut sample = None;
        for place in first..first + lines / CHUNK_LINES {
            let map = self.outer.open_at(place)?.ok_or_else(missing)?;
            chunks.push(Mapping::new(map.as_fd(), CHUNK_BYTES)?);
            sample.get_or_insert(map);
        }
        let table = Table {
            chunks,
            sample: sample.ok_or_else(missing)?,
            lines,
        };
        self.ids = table.entries().count() as u32;
        self.part = part as usize;
        // Memory that other tables left is freed with the next change.
        self.left = [self.max_chunks as usize; PARTS];
        self.table = Some(table);
        Ok(())
    }

    /// The array of chunks.
    pub(crate) fn outer(&self) -> &MapArray {
        &self.outer
    }

    /// The number of ids.
    pub(crate) fn len(&self) -> u32 {
        self.ids
    }

    /// The number of chunks, and one of them to ask for its memory: all are alike.
    pub(crate) fn chunks(&self) -> Option<(usize, BorrowedFd<'_>)> {
        let table = self.table.as_ref()?;
        Some((self.left.iter().sum(), table.sample.as_fd()))
    }

    /// Enters reals (by their ids, number and generation) under these server ids, or replaces reals
    /// there. All or none, though a packet may see some a moment before the others.
    ///
    /// # Errors
    /// If the kernel refuses memory; nothing has changed then.
    pub(crate) fn insert(&mut self, live: &Live, ids: &[(u32, u32)]) -> io::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let known = |id| self.real(id).is_some();
        let new = ids.iter().filter(|(id, _)| !known(*id)).count() as u32;
        let wanted = self.ids + new;
        let fits = self
            .table
            .as_ref()
            .is_some_and(|table| wanted <= table.lines * (PER_LINE as u32) / 2);
        if !fits || !self.insert_in_place(ids) {
            self.rebuild(live, wanted, ids)?;
        } else {
            self.release_former();
        }
        self.ids = wanted;
        Ok(())
    }

    /// Writes to the current table; `false`, and nothing has changed: a line is full.
    fn insert_in_place(&self, ids: &[(u32, u32)]) -> bool {
        let Some(table) = &self.table else {
            return false;
        };
        let before: Vec<Option<u32>> = ids.iter().map(|(id, _)| self.real(*id)).collect();
        let placed = ids
            .iter()
            .take_while(|(id, real)| table.place(self.keys, *id, *real))
            .count();
        if placed == ids.len() {
            return true;
        }
        for ((id, _), before) in ids.iter().zip(before).take(placed) {
            if let Some(entry) = table.entry(self.keys, *id) {
                let word = before.map_or(0, |real| word(*id, real));
                entry.store(word, Ordering::Release);
            }
        }
        false
    }

    /// Removes these ids; skips those that are not there.
    pub(crate) fn remove(&mut self, live: &Live, ids: impl IntoIterator<Item = u32>) {
        let before = self.ids;
        for id in ids {
            let table = self.table.as_ref();
            if let Some(entry) = table.and_then(|table| table.entry(self.keys, id)) {
                entry.store(0, Ordering::Release);
                self.ids -= 1;
            }
        }
        if self.ids == before {
            return;
        }
        let lines = self.table.as_ref().map_or(0, |table| table.lines);
        if self.ids < lines / 2 && lines > CHUNK_LINES {
            // The ids are gone either way; the next removal tries again.
            match self.rebuild(live, self.ids, &[]) {
                Ok(()) => match self.grace_periods.wait() {
                    Ok(()) => self.release_former(),
                    Err(error) => {
                        log::warn!("cannot free the memory of removed server ids: {error}")
                    }
                },
                Err(error) => log::warn!("cannot free the memory of removed server ids: {error}"),
            }
        } else {
            self.release_former();
        }
    }

    /// The real's id under a server id.
    pub(crate) fn real(&self, id: u32) -> Option<u32> {
        let entry = self.table.as_ref()?.entry(self.keys, id)?;
        Some((entry.load(Ordering::Relaxed) >> 32) as u32)
    }

    /// Makes a table for `ids` ids from the current one and `more`, and switches packets to it.
    fn rebuild(&mut self, live: &Live, ids: u32, more: &[(u32, u32)]) -> io::Result<()> {
        let part = (self.part + 1) % PARTS;
        let table = self.fill(part, lines_for(ids), more)?;
        live.set_server_ids(part as u32, table.lines);
        self.part = part;
        self.table = Some(table);
        self.switched = self.grace_periods.begin();
        Ok(())
    }

    /// A table of at least `lines` lines in this part, with all its entries.
    fn fill(&mut self, part: usize, lines: u32, more: &[(u32, u32)]) -> io::Result<Table> {
        let first = part as u32 * self.max_chunks;
        let mut lines = lines;
        while lines / CHUNK_LINES <= self.max_chunks {
            let count = (lines / CHUNK_LINES) as usize;
            let table = Table::create(lines, &self.outer, first);
            // If that fails, the part has one chunk, besides what was there before.
            let count = if table.is_ok() { count } else { 1 };
            self.left[part] = self.left[part].max(count);
            let table = table?;
            let old = self.table.iter().flat_map(Table::entries);
            let mut all = old.chain(more.iter().copied());
            if all.all(|(id, real)| table.place(self.keys, id, real)) {
                return Ok(table);
            }
            lines *= 2;
        }
        Err(io::Error::from(io::ErrorKind::OutOfMemory))
    }

    /// Frees the memory of tables that packets have left, and waits for a grace period if there are
    /// any. One call puts one chunk into all places, because emptying an element takes a grace
    /// period each. If the kernel refuses, the memory stays until the places are used again.
    fn release_former(&mut self) {
        let Some(table) = &self.table else {
            return;
        };
        if self.grace_periods.passed() < self.switched {
            return;
        }
        let mut elements = Vec::new();
        for (part, left) in (0_u32..).zip(self.left) {
            let kept = match part as usize == self.part {
                true => table.chunks.len(),
                false => 0,
            };
            let places = (kept..left).map(|place| part * self.max_chunks + place as u32);
            elements.extend(places.map(|place| (place, table.sample.as_fd())));
        }
        if elements.is_empty() {
            return;
        }
        match self.outer.set(&elements) {
            Ok(()) => {
                self.left = [0; PARTS];
                self.left[self.part] = table.chunks.len();
            }
            Err(error) => {
                log::warn!("cannot free the memory of a previous server-id table: {error}")
            }
        }
    }
}

impl AsFd for ServerIdStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outer.as_fd()
    }
}
