//! Where rings live: inner maps ("chunks") of a few rings each, made as VIPs come into use.
//!
//! A new ring is written into a place that no packet reads, then the VIP is switched to it by one
//! store. The place of the old ring is written again only after a grace period of RCU, so a
//! packet that was on its way through the old ring finishes on it.

use std::collections::VecDeque;
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
use crate::sys::map::set_inner;
use crate::sys::mapping::Mapping;

/// Rings in one chunk.
pub(crate) const RINGS_PER_CHUNK: u32 = types::ring_constant::RINGS_PER_CHUNK.0;

/// Rings beyond one a VIP: an update writes a new ring before it gives up the old one.
const SPARE_RINGS: u32 = 2;

/// The place of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RingSlot(u32);

impl RingSlot {
    /// The ring's number, as the program knows it.
    pub(crate) fn get(self) -> u32 {
        self.0
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
    chunks: Vec<Chunk>,
    max_chunks: u32,
    /// Places that no packet reads.
    free: VecDeque<RingSlot>,
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
            chunks: Vec::new(),
            max_chunks: max_chunks(max_vips),
            free: VecDeque::new(),
            retired: Vec::new(),
        };
        store.add_chunk(first)?;
        Ok(store)
    }

    /// The array of chunks.
    pub(crate) fn outer(&self) -> &OwnedFd {
        &self.outer
    }

    /// Rings in use or retired, and rings that there is memory for at present.
    pub(crate) fn occupancy(&self) -> (u32, u32) {
        let capacity = self.chunks.len() as u32 * RINGS_PER_CHUNK;
        (capacity - self.free.len() as u32, capacity)
    }

    /// Every chunk's map, to ask for its memory.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &OwnedFd> {
        self.chunks.iter().map(|chunk| &chunk.map)
    }

    fn add_chunk(&mut self, map: OwnedFd) -> io::Result<()> {
        let bytes = ring_bytes(self.ring_size) * RINGS_PER_CHUNK;
        let memory = Mapping::new(map.as_fd(), bytes as usize)?;
        let index = self.chunks.len() as u32;
        set_inner(self.outer.as_fd(), &[(index, map.as_fd())])?;
        let first = index * RINGS_PER_CHUNK;
        self.free
            .extend((first..first + RINGS_PER_CHUNK).map(RingSlot));
        self.chunks.push(Chunk { map, memory });
        Ok(())
    }

    /// Writes a ring where no packet reads, and returns the place.
    ///
    /// # Errors
    /// If there is no room and the kernel refuses more; nothing has changed then.
    pub(crate) fn write(&mut self, kernel: &KernelCalls, slots: &[u16]) -> Result<RingSlot, Error> {
        let place = self.take(kernel)?;
        for (word, slot) in self.words(place).iter().zip(slots) {
            word.store(*slot, Ordering::Relaxed);
        }
        Ok(place)
    }

    /// The real number in one slot of a ring, as packets see it.
    pub(crate) fn slot(&self, place: RingSlot, slot: u32) -> u16 {
        self.words(place)[slot as usize].load(Ordering::Relaxed)
    }

    fn words(&self, place: RingSlot) -> &[AtomicU16] {
        let chunk = &self.chunks[(place.0 / RINGS_PER_CHUNK) as usize];
        let stride = (ring_bytes(self.ring_size) / 2) as usize;
        let first = (place.0 % RINGS_PER_CHUNK) as usize * stride;
        &chunk.memory.u16s()[first..first + self.ring_size as usize]
    }

    fn take(&mut self, kernel: &KernelCalls) -> Result<RingSlot, Error> {
        if let Some(place) = self.free.pop_front() {
            return Ok(place);
        }
        if (self.chunks.len() as u32) < self.max_chunks {
            let map = kernel.check(
                "make room for rings",
                "ring_chunk",
                create_chunk(self.ring_size),
            )?;
            kernel.check("make room for rings", "rings", self.add_chunk(map))?;
        } else {
            settle(kernel)?;
            self.settled();
        }
        self.free.pop_front().ok_or(Error::Exhausted {
            what: "rings (max_vips)",
            limit: u64::from(self.max_chunks * RINGS_PER_CHUNK),
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
}

/// Waits until packets see nothing of what has been taken out of use.
pub(crate) fn settle(kernel: &KernelCalls) -> Result<(), Error> {
    kernel.check(
        "wait for packets under way",
        "membarrier",
        crate::sys::rcu::grace_period(),
    )
}
