//! Where rings live: places in chunks of memory that packets read.
//!
//! The library writes a new ring into a place that no packet reads, then switches the VIP to it by
//! one store. It reuses the old ring's place only after an RCU grace period, so a packet on its way
//! through the old ring finishes on it. No update waits for that, nor for memory: there are spare
//! places, and if updates come faster than packets leave old rings, more of them for as long as
//! that lasts.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::chunks::Backing;
use super::chunks::Chunk;
use super::chunks::KernelChunks;
use super::chunks::MappedChunk;
use super::chunks::RINGS_PER_CHUNK;
use super::chunks::planes_at;
use super::chunks::ring_bytes;
use super::grace::GracePeriods;
use super::grace::Moment;
use crate::error::Error;
use crate::kernel::KernelCalls;
use crate::ring::history::PLANES;
use crate::ring::history::Planes;
use crate::sys::nested::MapArray;
use crate::sys::tenure::Tenure;

/// Spare places that there always are beyond one per VIP. A hundred updates a second use that many
/// in 70 ms; a grace period takes 4 to 28 ms, and a place waits for two at worst.
const SPARE: u32 = RINGS_PER_CHUNK - 1;

/// Spare places beyond one per VIP while updates come without a pause, at 0.3 ms each and two grace
/// periods of 10 ms.
const SURGE: u32 = 64;

/// Retired places not yet collected that start a surge.
const SURGE_BEGINS: usize = 4;

/// A surge is over when no update has needed its places for this long.
const SURGE_ENDS: Duration = Duration::from_secs(10);

/// When VIPs that come one by one need room, one place in this many is made ahead, so that
/// thousands of VIPs wait some hundred times.
const MADE_AHEAD: u32 = 16;

/// Removed VIPs give memory back when at least one part in this many is unused.
const TRIMMED_AT_ONCE: u32 = 8;

/// The place of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RingSlot(u32);

impl RingSlot {
    /// The ring's number in the program.
    pub(crate) fn get(self) -> u32 {
        self.0
    }

    fn chunk(self) -> usize {
        (self.0 / RINGS_PER_CHUNK) as usize
    }
}

/// The places of a VIP's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaneSlots(pub(crate) [RingSlot; PLANES]);

/// The words of a ring or a plane, whose memory this keeps.
#[derive(Debug)]
pub(crate) struct HeldWords<C> {
    chunk: Arc<C>,
    first: usize,
    count: usize,
}

impl<C: Chunk> HeldWords<C> {
    pub(crate) fn words(&self) -> &[AtomicU16] {
        &self.chunk.words()[self.first..self.first + self.count]
    }
}

/// Chunks for `max_vips` VIPs with a ring each, without those for a surge.
pub(crate) fn max_chunks(max_vips: u32) -> u32 {
    (max_vips + SPARE).div_ceil(RINGS_PER_CHUNK)
}

/// Room in the array of chunks: while a surge's chunks are being made or removed, the most VIPs may
/// come.
pub(crate) fn max_chunks_in_surge(max_vips: u32) -> u32 {
    (max_vips * (1 + PLANES as u32) + SPARE + SURGE).div_ceil(RINGS_PER_CHUNK)
}

/// All rings.
pub(crate) struct RingStore<B: Backing = KernelChunks> {
    backing: B,
    ring_size: u32,
    /// As many as there can ever be; `None`: not made, removed, or lost after a refusal.
    chunks: Vec<Option<Arc<B::Chunk>>>,
    /// Places that no packet reads. The lowest is used first, so that high chunks become empty.
    free: BTreeSet<RingSlot>,
    /// Places given up, oldest first: a packet may be reading one until the moment has passed.
    retired: VecDeque<(Moment, RingSlot)>,
    /// Chunks that are not made, and not being made. The lowest is made first.
    unmade: BTreeSet<usize>,
    /// The number of VIPs' rings in each chunk.
    held: Vec<u32>,
    /// Chunks, except the first, in which no VIP has a ring, and which are not busy.
    idle: BTreeSet<usize>,
    /// Chunks being made or removed in the background; their places are not in `free`.
    busy: Vec<usize>,
    /// When the last update came that needed the places of a surge.
    surge: Option<Instant>,
    /// Do not ask the kernel for a surge's places before this: it has just refused.
    refused_until: Option<Instant>,
}

impl RingStore {
    /// Rings in chunks of `outer`; `first` becomes the first chunk.
    pub(crate) fn new(
        outer: OwnedFd,
        first: OwnedFd,
        ring_size: u32,
        max_vips: u32,
        tenure: Arc<Tenure>,
    ) -> io::Result<Self> {
        let chunk = MappedChunk::new(&first, ring_size)?;
        let backing = KernelChunks::new(MapArray::new(outer)?, first, ring_size, tenure)?;
        Ok(Self::over(backing, chunk, ring_size, max_vips))
    }

    /// Adopts the chunks in `outer`. All places are free until they are [occupied](Self::occupy).
    pub(crate) fn resume(
        outer: OwnedFd,
        ring_size: u32,
        max_vips: u32,
        tenure: Arc<Tenure>,
    ) -> io::Result<Self> {
        let outer = MapArray::new(outer)?;
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        let first_id = outer.id_at(0)?.ok_or_else(missing)?;
        let first = outer.open_at(0)?.ok_or_else(missing)?;
        let chunk = MappedChunk::new(&first, ring_size)?;
        let backing = KernelChunks::new(outer, first, ring_size, tenure)?;
        let mut store = Self::over(backing, chunk, ring_size, max_vips);
        for index in 1..store.chunks.len() {
            let outer = &store.backing.outer;
            // Chunk 0 fills the places of those that are gone.
            let is_there = outer.id_at(index as u32)?.is_some_and(|id| id != first_id);
            if is_there && let Some(map) = outer.open_at(index as u32)? {
                store.add(index, MappedChunk::new(&map, ring_size)?);
            }
        }
        Ok(store)
    }

    /// The array of chunks.
    pub(crate) fn outer(&self) -> &MapArray {
        &self.backing.outer
    }

    /// The grace periods after which places of rings are reused.
    pub(crate) fn grace_periods(&self) -> &GracePeriods {
        self.backing.grace_periods()
    }

    /// The number of chunks, and one of them to ask for its memory: all are alike.
    pub(crate) fn chunks(&self) -> (usize, BorrowedFd<'_>) {
        let there = self.chunks.iter().flatten().count();
        (there, self.backing.first.as_fd())
    }
}

impl<B: Backing> RingStore<B> {
    fn over(backing: B, first: B::Chunk, ring_size: u32, max_vips: u32) -> Self {
        let mut store = Self {
            backing,
            ring_size,
            chunks: (0..max_chunks_in_surge(max_vips)).map(|_| None).collect(),
            free: BTreeSet::new(),
            retired: VecDeque::new(),
            unmade: (0..max_chunks_in_surge(max_vips) as usize).collect(),
            held: vec![0; max_chunks_in_surge(max_vips) as usize],
            idle: BTreeSet::new(),
            busy: Vec::new(),
            surge: None,
            refused_until: None,
        };
        store.add(0, first);
        store
    }

    /// Rings that VIPs have.
    pub(crate) fn in_use(&self) -> u32 {
        self.capacity() - self.free.len() as u32 - self.retired.len() as u32
    }

    /// Rings that there is memory for now.
    fn capacity(&self) -> u32 {
        let usable = self.chunks.len() - self.unmade.len() - self.busy.len();
        usable as u32 * RINGS_PER_CHUNK
    }

    fn add(&mut self, index: usize, chunk: B::Chunk) {
        self.unmade.remove(&index);
        self.chunks[index] = Some(Arc::new(chunk));
        self.free.extend(places(index));
        if index > 0 {
            self.idle.insert(index);
        }
    }

    fn remove(&mut self, index: usize) {
        self.chunks[index] = None;
        self.unmade.insert(index);
    }

    /// Chunks to make for `places` places, up to the maximum.
    fn missing(&self, places: u32) -> Vec<usize> {
        let missing = places.saturating_sub(self.capacity());
        let missing = missing.div_ceil(RINGS_PER_CHUNK) as usize;
        self.unmade.iter().copied().take(missing).collect()
    }

    /// Makes room for `rings` more VIPs with rings. This call, and not an update, asks the kernel
    /// for memory, and waits for a grace period if it does.
    ///
    /// # Errors
    /// If the kernel refuses; nothing has changed then.
    pub(crate) fn reserve(&mut self, kernel: &KernelCalls, rings: u32) -> Result<(), Error> {
        // Reserved places must not be given back meanwhile as left over from a surge.
        self.surge = self.surge.map(|_| self.backing.now());
        let needed = self.in_use() + rings + SPARE;
        let missing = self.missing(needed);
        if missing.is_empty() {
            return Ok(());
        }
        let ahead = (self.capacity() / MADE_AHEAD).saturating_sub(rings);
        let wanted = self.missing(needed + ahead);
        let mut made = self.backing.make(&wanted);
        if made.is_err() && wanted.len() > missing.len() {
            made = self.backing.make(&missing);
        }
        let made = kernel.check("make room for rings in", "ring_chunk", made)?;
        for (index, chunk) in wanted.into_iter().zip(made) {
            self.add(index, chunk);
        }
        Ok(())
    }

    /// Writes a ring, with the places of its history, where no packet reads, and returns its place.
    ///
    /// # Errors
    /// If no place is left and the kernel refuses to wait for one; nothing has changed then.
    pub(crate) fn write(
        &mut self,
        kernel: &KernelCalls,
        slots: &[u16],
        planes: Option<PlaneSlots>,
    ) -> Result<RingSlot, Error> {
        let place = self.take(kernel)?;
        for (word, slot) in self.words(place).iter().zip(slots) {
            word.store(*slot, Ordering::Relaxed);
        }
        self.point(place, planes);
        Ok(place)
    }

    /// Writes the places of its history behind a ring: packets read them for unsettled slots.
    pub(crate) fn point(&self, ring: RingSlot, planes: Option<PlaneSlots>) {
        let numbers = planes.map_or([0; PLANES], |planes| planes.0.map(RingSlot::get));
        for (words, number) in self.trailer(ring).chunks(2).zip(numbers) {
            if let [low, high] = words {
                low.store(number as u16, Ordering::Relaxed);
                high.store((number >> 16) as u16, Ordering::Relaxed);
            }
        }
    }

    /// Places for a VIP's history, which no packet reads. While there are spare places nothing
    /// waits, and new ones are made in the background.
    ///
    /// # Errors
    /// If the kernel refuses memory, or to wait for packets; nothing has changed then.
    pub(crate) fn take_planes(&mut self, kernel: &KernelCalls) -> Result<PlaneSlots, Error> {
        // One more is for the ring itself.
        if self.free.len() <= PLANES {
            self.reserve(kernel, PLANES as u32)?;
        }
        let mut taken = [RingSlot(0); PLANES];
        for plane in 0..PLANES {
            match self.take(kernel) {
                Ok(place) => taken[plane] = place,
                Err(error) => {
                    let taken = taken.into_iter().take(plane);
                    taken.for_each(|place| self.put_back(place));
                    return Err(error);
                }
            }
        }
        self.surge();
        Ok(PlaneSlots(taken))
    }

    /// Marks the place with this number as a VIP's; `None`: there is no such place, or another VIP
    /// has it.
    pub(crate) fn occupy(&mut self, number: u32) -> Option<RingSlot> {
        let place = RingSlot(number);
        if !self.free.remove(&place) {
            return None;
        }
        self.held[place.chunk()] += 1;
        self.idle.remove(&place.chunk());
        Some(place)
    }

    /// Occupies the places that a ring names for its history; `None`: it has none.
    pub(crate) fn occupy_planes(&mut self, ring: RingSlot) -> Option<PlaneSlots> {
        let words = self.trailer(ring).iter();
        let words: Vec<u32> = words
            .map(|word| word.load(Ordering::Relaxed).into())
            .collect();
        let mut planes = [RingSlot(0); PLANES];
        for (plane, words) in planes.iter_mut().zip(words.chunks_exact(2)) {
            plane.0 = words[0] | words[1] << 16;
        }
        if planes.iter().all(|plane| plane.0 == 0) {
            return None;
        }
        let taken = planes.map(|plane| self.occupy(plane.0));
        if taken.iter().all(Option::is_some) {
            return Some(PlaneSlots(planes));
        }
        taken
            .into_iter()
            .flatten()
            .for_each(|plane| self.put_back(plane));
        None
    }

    /// Returns a place that no packet was sent to.
    pub(crate) fn put_back(&mut self, place: RingSlot) {
        self.let_go(place);
        self.free.insert(place);
    }

    /// No VIP has the place any more.
    fn let_go(&mut self, place: RingSlot) {
        let (chunk, held) = (place.chunk(), &mut self.held[place.chunk()]);
        *held = held.saturating_sub(1);
        if *held == 0 && chunk > 0 {
            self.idle.insert(chunk);
        }
    }

    /// The words of a VIP's history.
    pub(crate) fn planes(&self, places: PlaneSlots) -> Planes<'_> {
        Planes(places.0.map(|place| self.element(place)))
    }

    /// The slots of a ring, kept while another thread reads them; `None`: there are none.
    pub(crate) fn held_words(&self, place: RingSlot) -> Option<HeldWords<B::Chunk>> {
        self.hold(place, self.ring_size as usize)
    }

    /// The same for a plane.
    pub(crate) fn held_plane(&self, place: RingSlot) -> Option<HeldWords<B::Chunk>> {
        self.hold(place, self.stride())
    }

    fn hold(&self, place: RingSlot, count: usize) -> Option<HeldWords<B::Chunk>> {
        Some(HeldWords {
            chunk: Arc::clone(self.chunks[place.chunk()].as_ref()?),
            first: self.first_word(place),
            count,
        })
    }

    /// Words of a place.
    fn stride(&self) -> usize {
        (ring_bytes(self.ring_size) / 2) as usize
    }

    /// Where the words of a place begin in its chunk.
    fn first_word(&self, place: RingSlot) -> usize {
        (place.0 % RINGS_PER_CHUNK) as usize * self.stride()
    }

    /// A place that no packet reads, with any contents.
    fn take(&mut self, kernel: &KernelCalls) -> Result<RingSlot, Error> {
        if self.free.is_empty() {
            self.settle(kernel)?;
        }
        let place = self.free.pop_first().ok_or(Error::Exhausted {
            what: "rings (max_vips)",
            limit: self.chunks.len() as u64 * u64::from(RINGS_PER_CHUNK),
        })?;
        self.held[place.chunk()] += 1;
        self.idle.remove(&place.chunk());
        if self.retired.len() >= SURGE_BEGINS {
            self.surge();
        }
        Ok(place)
    }

    /// The real number in one slot of a ring, as packets see it.
    pub(crate) fn slot(&self, place: RingSlot, slot: u32) -> u16 {
        self.words(place)
            .get(slot as usize)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The slots of a ring; none if its chunk is not there.
    pub(crate) fn words(&self, place: RingSlot) -> &[AtomicU16] {
        let element = self.element(place);
        &element[..element.len().min(self.ring_size as usize)]
    }

    /// The words behind the slots.
    fn trailer(&self, place: RingSlot) -> &[AtomicU16] {
        let element = self.element(place);
        &element[element.len().min((planes_at(self.ring_size) / 2) as usize)..]
    }

    fn element(&self, place: RingSlot) -> &[AtomicU16] {
        let Some(chunk) = &self.chunks[place.chunk()] else {
            return &[];
        };
        let first = self.first_word(place);
        &chunk.words()[first..first + self.stride()]
    }

    /// Gives up the place of a ring that no VIP has any more, if it had one. Once the returned
    /// moment has passed, no packet sees what was put out of reach before this call.
    pub(crate) fn retire(&mut self, place: Option<RingSlot>) -> Moment {
        let moment = self.backing.begin();
        if let Some(place) = place {
            self.let_go(place);
            self.retired.push_back((moment, place));
        }
        moment
    }

    /// Whether an update would have to wait now.
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Manages the places of a surge.
    fn surge(&mut self) {
        let now = self.backing.now();
        self.surge = Some(now);
        if !self.busy.is_empty() || self.refused_until.is_some_and(|until| now < until) {
            return;
        }
        let missing = self.missing(self.in_use() + SURGE);
        if !missing.is_empty() && self.backing.start_making(&missing).is_ok() {
            for index in &missing {
                self.unmade.remove(index);
            }
            self.busy = missing;
        }
    }

    /// Collects, without waiting, the places that packets have left. Returns the moment that has
    /// passed.
    pub(crate) fn collect(&mut self, kernel: &KernelCalls) -> Moment {
        if let Some(finished) = self.backing.finished() {
            let finished = kernel.check("make or free room in", "rings", finished);
            self.finish(finished.ok());
        }
        let passed = self.backing.passed();
        while let Some((moment, place)) = self.retired.front()
            && *moment <= passed
        {
            self.free.insert(*place);
            self.retired.pop_front();
        }
        let over = |last| self.backing.now().duration_since(last) > SURGE_ENDS;
        if self.busy.is_empty() && self.surge.is_some_and(over) && !self.start_trimming() {
            self.surge = None;
        }
        passed
    }

    /// Completes what was started; `None`: the kernel refused. Chunks being removed are given up
    /// all the same, see [`trim`](Self::trim).
    fn finish(&mut self, made: Option<Vec<B::Chunk>>) {
        if made.is_none() {
            self.refused_until = Some(self.backing.now() + SURGE_ENDS);
        }
        let mut made = made.into_iter().flatten();
        for index in std::mem::take(&mut self.busy) {
            match made.next() {
                Some(chunk) => self.add(index, chunk),
                None => self.remove(index),
            }
        }
    }

    /// Waits until every place that was given up is free.
    ///
    /// # Errors
    /// If the kernel refuses to wait.
    pub(crate) fn settle(&mut self, kernel: &KernelCalls) -> Result<(), Error> {
        let waited = self.backing.wait();
        kernel.check("wait for packets in flight with", "membarrier", waited)?;
        self.collect(kernel);
        Ok(())
    }

    /// The number of chunks beyond those that VIPs need, and `spare` places.
    fn surplus_count(&self, spare: u32) -> usize {
        // One more stays, so that a VIP that comes and goes does not make and free it each time.
        let keep = self.in_use() + spare + RINGS_PER_CHUNK;
        (self.capacity().saturating_sub(keep) / RINGS_PER_CHUNK) as usize
    }

    /// Chunks to give up, all of whose places are free, the highest first.
    fn surplus(&self, spare: u32) -> Vec<usize> {
        let unused = |index: &usize| places(*index).all(|place| self.free.contains(&place));
        let idle = self.idle.iter().copied().rev();
        idle.filter(unused)
            .take(self.surplus_count(spare))
            .collect()
    }

    /// Whether [`trim`](Self::trim) would free enough to be worth a grace period: an eighth of all
    /// chunks, so that thousands of VIPs that go one by one wait some dozen times.
    pub(crate) fn has_surplus(&self) -> bool {
        let chunks = self.surplus_count(self.spare()).min(self.idle.len());
        chunks > 0 && chunks as u32 * RINGS_PER_CHUNK >= self.capacity() / TRIMMED_AT_ONCE
    }

    /// Places to have beyond one per VIP.
    fn spare(&self) -> u32 {
        if self.surge.is_some() { SURGE } else { SPARE }
    }

    /// Frees chunks without a ring, beyond those kept in reserve. Waits for a grace period.
    ///
    /// # Errors
    /// If the kernel refuses. It may have removed some of the chunks by then (before Linux 6.8 each
    /// takes a call), and does not say which: packets might not see a ring in one of these. So all
    /// are given up; the memory of those still there is freed when their places are made again.
    pub(crate) fn trim(&mut self, kernel: &KernelCalls) -> Result<(), Error> {
        let surplus = self.surplus(self.spare());
        if surplus.is_empty() {
            return Ok(());
        }
        let freed = self.backing.unmake(&surplus);
        for index in surplus {
            self.withdraw(index);
            self.remove(index);
        }
        kernel.check("free room in", "rings", freed)
    }

    /// As [`trim`](Self::trim), without waiting. Takes at most as many chunks at a time as there is
    /// room for beyond one place per VIP, so that all VIPs may come meanwhile; `false`: none is
    /// left.
    fn start_trimming(&mut self) -> bool {
        let mut surplus = self.surplus(SPARE);
        surplus.truncate((SURGE / RINGS_PER_CHUNK) as usize);
        if surplus.is_empty() {
            return false;
        }
        let started = self.backing.start_unmaking(&surplus).is_ok();
        if started {
            surplus.iter().for_each(|index| self.withdraw(*index));
            self.busy = surplus;
        }
        started
    }

    /// A VIP has lost its ring and may not get another soon: what it leaves is given back later.
    pub(crate) fn trim_later(&mut self) {
        self.surge.get_or_insert(self.backing.now());
    }

    /// Takes the places of a chunk out of use.
    fn withdraw(&mut self, index: usize) {
        self.idle.remove(&index);
        for place in places(index) {
            self.free.remove(&place);
        }
    }
}

/// The places in a chunk.
fn places(chunk: usize) -> impl Iterator<Item = RingSlot> {
    let first = chunk as u32 * RINGS_PER_CHUNK;
    (first..first + RINGS_PER_CHUNK).map(RingSlot)
}

#[cfg(test)]
mod tests;
