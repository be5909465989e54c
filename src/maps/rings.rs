//! Where rings live: inner maps ("chunks") of a few rings each, made as VIPs come into use and
//! freed when no ring is left in them.
//!
//! A new ring is written into a place that no packet reads, then the VIP is switched to it by one
//! store. The place of the old ring is written again only after a grace period of RCU, so a
//! packet that was on its way through the old ring finishes on it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use super::KernelCalls;
use crate::Error;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::map::Spec;
use crate::sys::map::clear_inner;
use crate::sys::map::set_inner;
use crate::sys::mapping::Mapping;

/// Rings in one chunk.
pub(crate) const RINGS_PER_CHUNK: u32 = types::ring_constant::RINGS_PER_CHUNK.0;

/// Rings beyond one a VIP: an update writes a new ring before it gives up the old one.
const SPARE_RINGS: u32 = 2;

/// The place of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RingSlot(u32);

impl RingSlot {
    /// The ring's number, as the program knows it.
    pub(crate) fn get(self) -> u32 {
        self.0
    }

    fn chunk(self) -> usize {
        (self.0 / RINGS_PER_CHUNK) as usize
    }
}

/// One inner map.
struct Chunk {
    map: OwnedFd,
    memory: Mapping,
}

/// All rings.
pub(crate) struct RingStore {
    outer: OwnedFd,
    ring_size: u32,
    /// As many as can ever be; `None`: not made, or freed.
    chunks: Vec<Option<Chunk>>,
    /// Places that no packet reads. The lowest goes first, so that high chunks run empty.
    free: BTreeSet<RingSlot>,
    /// Places given up since the last grace period: a packet may still be reading one.
    retired: Vec<RingSlot>,
}

/// Chunks needed for `max_vips` VIPs with a ring each.
pub(crate) fn max_chunks(max_vips: u32) -> u32 {
    (max_vips + SPARE_RINGS).div_ceil(RINGS_PER_CHUNK)
}

/// Bytes of one ring as an array element: 16 bits a slot, rounded up to 8 bytes.
pub(crate) fn ring_bytes(ring_size: u32) -> u32 {
    (ring_size * 2).next_multiple_of(8)
}

/// Makes the inner map for `RINGS_PER_CHUNK` rings.
pub(crate) fn create_chunk(ring_size: u32) -> io::Result<OwnedFd> {
    map::create(&Spec {
        kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
        name: "ring_chunk",
        key_size: 4,
        value_size: ring_bytes(ring_size),
        max_entries: RINGS_PER_CHUNK,
        flags: libbpf_sys::BPF_F_MMAPABLE,
        numa_node: None,
    })
}

impl RingStore {
    /// Rings in chunks of `outer`; `first` becomes the first chunk.
    pub(crate) fn new(
        outer: OwnedFd,
        first: OwnedFd,
        ring_size: u32,
        max_vips: u32,
    ) -> io::Result<Self> {
        let mut store = Self {
            outer,
            ring_size,
            chunks: (0..max_chunks(max_vips)).map(|_| None).collect(),
            free: BTreeSet::new(),
            retired: Vec::new(),
        };
        store.add_chunk(0, first)?;
        Ok(store)
    }

    /// The array of chunks.
    pub(crate) fn outer(&self) -> &OwnedFd {
        &self.outer
    }

    /// Rings in use or retired, and rings that there is memory for at present.
    pub(crate) fn occupancy(&self) -> (u32, u32) {
        let capacity = self.chunks().count() as u32 * RINGS_PER_CHUNK;
        (capacity - self.free.len() as u32, capacity)
    }

    /// Every chunk's map, to ask for its memory.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &OwnedFd> {
        self.chunks.iter().flatten().map(|chunk| &chunk.map)
    }

    fn add_chunk(&mut self, index: usize, map: OwnedFd) -> io::Result<()> {
        let bytes = ring_bytes(self.ring_size) * RINGS_PER_CHUNK;
        let memory = Mapping::new(map.as_fd(), bytes as usize)?;
        set_inner(self.outer.as_fd(), &[(index as u32, map.as_fd())])?;
        self.free.extend(places(index));
        self.chunks[index] = Some(Chunk { map, memory });
        Ok(())
    }

    /// Writes a ring where no packet reads, and returns the place.
    ///
    /// # Errors
    /// If there is no room and the kernel refuses more; nothing has changed then.
    pub(crate) fn write(&mut self, kernel: &KernelCalls, slots: &[u16]) -> Result<RingSlot, Error> {
        let place = self.take(kernel)?;
        for (word, slot) in self.words(place).zip(slots) {
            word.store(*slot, Ordering::Relaxed);
        }
        Ok(place)
    }

    /// The real number in one slot of a ring, as packets see it.
    pub(crate) fn slot(&self, place: RingSlot, slot: u32) -> u16 {
        self.words(place)
            .nth(slot as usize)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The slots of a ring; none if its chunk is not there.
    fn words(&self, place: RingSlot) -> std::slice::Iter<'_, AtomicU16> {
        let Some(chunk) = &self.chunks[place.chunk()] else {
            return [].iter();
        };
        let stride = (ring_bytes(self.ring_size) / 2) as usize;
        let first = (place.0 % RINGS_PER_CHUNK) as usize * stride;
        chunk.memory.u16s()[first..first + self.ring_size as usize].iter()
    }

    fn take(&mut self, kernel: &KernelCalls) -> Result<RingSlot, Error> {
        if let Some(place) = self.free.pop_first() {
            return Ok(place);
        }
        // A new chunk costs a grace period in the kernel, just as taking places back does: it is
        // made for VIPs, not for updates.
        let enough = self.retired.len() as u32 >= RINGS_PER_CHUNK / 2;
        let room = self.chunks.iter().position(Option::is_none);
        if let Some(index) = room.filter(|_| !enough) {
            let map = kernel.check(
                "make room for rings",
                "ring_chunk",
                create_chunk(self.ring_size),
            )?;
            kernel.check("make room for rings", "rings", self.add_chunk(index, map))?;
        } else {
            settle(kernel)?;
            self.settled();
        }
        self.free.pop_first().ok_or(Error::Exhausted {
            what: "rings (max_vips)",
            limit: self.chunks.len() as u64 * u64::from(RINGS_PER_CHUNK),
        })
    }

    /// Takes back a place that packets may still be reading.
    pub(crate) fn retire(&mut self, place: RingSlot) {
        self.retired.push(place);
    }

    /// A grace period has passed since the last `retire`.
    pub(crate) fn settled(&mut self) {
        self.free.extend(self.retired.drain(..));
    }

    /// Chunks without a ring in use, but for one chunk's worth of spare places.
    fn surplus(&self, is_unused: impl Fn(&RingSlot) -> bool) -> Vec<usize> {
        let made = (0..self.chunks.len()).filter(|index| self.chunks[*index].is_some());
        made.filter(|index| places(*index).all(|place| is_unused(&place)))
            .skip(1)
            .collect()
    }

    /// Whether [`free_surplus`](Self::free_surplus) would free something after a grace period.
    pub(crate) fn has_surplus(&self) -> bool {
        let unused = |place: &RingSlot| self.free.contains(place) || self.retired.contains(place);
        !self.surplus(unused).is_empty()
    }

    /// Frees chunks in which no ring is left; keeps one as a reserve.
    ///
    /// # Errors
    /// If the kernel refuses; the chunk is kept then.
    pub(crate) fn free_surplus(&mut self, kernel: &KernelCalls) -> Result<(), Error> {
        for index in self.surplus(|place| self.free.contains(place)) {
            kernel.check(
                "free the room for rings",
                "rings",
                clear_inner(self.outer.as_fd(), index as u32),
            )?;
            for place in places(index) {
                self.free.remove(&place);
            }
            self.chunks[index] = None;
        }
        Ok(())
    }
}

/// The places in a chunk.
fn places(chunk: usize) -> impl Iterator<Item = RingSlot> {
    let first = chunk as u32 * RINGS_PER_CHUNK;
    (first..first + RINGS_PER_CHUNK).map(RingSlot)
}

/// Waits until packets see nothing of what has been taken out of use.
pub(crate) fn settle(kernel: &KernelCalls) -> Result<(), Error> {
    kernel.check(
        "wait for packets under way",
        "membarrier",
        crate::sys::rcu::grace_period(),
    )
}
