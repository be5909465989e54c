//! The server-id table: reals by the ids that their servers put into packets, in shared memory.
//!
//! A hash of lines, each a cache line of eight entries. An id is in one of two lines, the emptier one
//! when it came (Azar, Broder, Karlin and Upfal, "Balanced allocations", SIAM Journal on Computing
//! 29, 1999), so lines fill evenly. When ids fill more than half of it, a table of twice the size
//! takes its place, and one of a fitting size when few are left: a table takes 16 to 64 bytes for
//! each id in it, at least a chunk of 1 MiB, and none of it is there before the first id. It is made
//! of chunks of one size, for only in such maps does the verifier make loads of lookups. A table that
//! has grown leaves the memory of the one before, half as large, to a later change: to take it away at
//! once would be a second grace period to wait for. There are three parts for tables: what takes the
//! third one has waited, as it came, for packets that were on their way to the first.

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

    /// The two lines of an id, in a table of so many; as `server_id_lookup` in the program has it.
    fn lines(self, id: u32, lines: u32) -> [usize; 2] {
        let product = self.start.wrapping_add(id.into()).wrapping_mul(self.key);
        let hash = mix(product);
        let mask = lines - 1;
        [(hash >> 32) as u32 & mask, (hash >> 8) as u32 & mask].map(|line| line as usize)
    }
}

/// Lines of the table for so many ids: at most half of its entries are in use then.
fn lines_for(ids: u32) -> u32 {
    let lines = (u64::from(ids) * 2).div_ceil(PER_LINE as u64);
    (lines.next_power_of_two() as u32).max(CHUNK_LINES)
}

/// How many chunks the largest table may have: twice of what so many ids need, for the case that
/// both lines of an id are full before that.
pub(crate) fn max_server_id_chunks(ids: u32) -> u32 {
    2 * lines_for(ids) / CHUNK_LINES
}

/// How many elements the array of chunks has for so many ids.
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
    /// Makes a table in the elements of `outer` from `first` on.
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
                        log::warn!("the memory of a server-id table stays: {error}");
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

    /// Puts an id where there is room for it; `false`: both its lines are full.
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

    /// Everything in it: ids and reals' ids.
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

/// The memory of the table for so many ids.
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
    /// How many chunks there are in each part of `outer`.
    left: [usize; PARTS],
    /// The part of `outer` that the table is in.
    part: usize,
    /// When packets were turned away from the table before.
    switched: Moment,
    grace_periods: GracePeriods,
    /// How many elements a part has.
    max_chunks: u32,
    ids: u32,
}

impl ServerIdStore {
    /// For so many ids at most.
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

    /// Goes on with the table that packets look into.
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
        // What is left of others goes with the next change.
        self.left = [self.max_chunks as usize; PARTS];
        self.table = Some(table);
        Ok(())
    }

    /// The array of chunks.
    pub(crate) fn outer(&self) -> &MapArray {
        &self.outer
    }

    /// How many ids there are.
    pub(crate) fn len(&self) -> u32 {
        self.ids
    }

    /// How many chunks there are, and one of them, to ask for its memory: all are alike.
    pub(crate) fn chunks(&self) -> Option<(usize, BorrowedFd<'_>)> {
        let table = self.table.as_ref()?;
        Some((self.left.iter().sum(), table.sample.as_fd()))
    }

    /// Makes packets find the reals (by their ids, number and generation) under these server ids,
    /// or other reals than before. All or none: a packet may see some a moment before the others.
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

    /// Writes to the table in force; `false`, and nothing has changed: a line is full.
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

    /// Packets find nothing under these ids any more; those that are not there are passed over.
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
                    Err(error) => log::warn!("the memory of removed server ids stays: {error}"),
                },
                Err(error) => log::warn!("the memory of removed server ids stays: {error}"),
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

    /// Makes a table for so many ids out of the one there is and `more`, and switches packets to it.
    fn rebuild(&mut self, live: &Live, ids: u32, more: &[(u32, u32)]) -> io::Result<()> {
        let part = (self.part + 1) % PARTS;
        let table = self.fill(part, lines_for(ids), more)?;
        live.set_server_ids(part as u32, table.lines);
        self.part = part;
        self.table = Some(table);
        self.switched = self.grace_periods.begin();
        Ok(())
    }

    /// A table of at least so many lines in this part, with everything that is to be in it.
    fn fill(&mut self, part: usize, lines: u32, more: &[(u32, u32)]) -> io::Result<Table> {
        let first = part as u32 * self.max_chunks;
        let mut lines = lines;
        while lines / CHUNK_LINES <= self.max_chunks {
            let count = (lines / CHUNK_LINES) as usize;
            let table = Table::create(lines, &self.outer, first);
            // Where it fails they are one, but for what was there before.
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

    /// Gives back the memory of tables that packets have left; waits for a grace period if there are
    /// any. Puts one chunk into the place of all, by one call, while each element that is emptied
    /// would take a grace period. A refusal costs their memory until the places are used again.
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
            Err(error) => log::warn!("the memory of a former server-id table stays: {error}"),
        }
    }
}

impl AsFd for ServerIdStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outer.as_fd()
    }
}
