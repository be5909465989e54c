//! The kernel's side of rings: inner maps ("chunks") of a few rings each, in an array of maps, and
//! the grace periods after which a place in them can be written again.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::thread;
use std::thread::JoinHandle;
use std::time::Instant;

use super::grace::GracePeriods;
use super::grace::Moment;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::map::Spec;
use crate::sys::map::set_inner;
use crate::sys::mapping::Mapping;

/// Rings in one chunk.
pub(crate) const RINGS_PER_CHUNK: u32 = types::ring_constant::RINGS_PER_CHUNK.0;

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

/// The memory of a few rings.
pub(crate) trait Chunk {
    /// The slots of all rings, with the padding of each.
    fn words(&self) -> &[AtomicU16];
}

/// What the places of rings need of the kernel. Unit tests have a fake.
pub(crate) trait Backing {
    type Chunk: Chunk;

    /// Makes chunks, so that packets find them under these numbers. May wait for packets.
    fn make(&self, numbers: &[usize]) -> io::Result<Vec<Self::Chunk>>;

    /// Takes chunks away from packets; `kept` is one that stays. May wait for packets.
    fn unmake(&self, numbers: &[usize], kept: &Self::Chunk) -> io::Result<()>;

    /// Starts to make chunks. Nothing else may have been started and not
    /// [`finished`](Self::finished).
    fn start_making(&mut self, numbers: &[usize]) -> io::Result<()>;

    /// Starts to take chunks away, likewise.
    fn start_unmaking(&mut self, numbers: &[usize], kept: &Self::Chunk) -> io::Result<()>;

    /// What has become of the last start, once: the chunks made, none if it took some away.
    fn finished(&mut self) -> Option<io::Result<Vec<Self::Chunk>>>;

    /// As [`GracePeriods::mark`].
    fn mark(&mut self) -> Moment;

    /// As [`GracePeriods::passed`].
    fn passed(&self) -> Moment;

    /// As [`GracePeriods::wait`].
    fn wait(&self) -> io::Result<()>;

    fn now(&self) -> Instant;
}

/// One inner map.
pub(crate) struct MappedChunk {
    pub(super) map: Arc<OwnedFd>,
    memory: Mapping,
}

impl MappedChunk {
    pub(super) fn new(map: OwnedFd, ring_size: u32) -> io::Result<Self> {
        let bytes = ring_bytes(ring_size) * RINGS_PER_CHUNK;
        let memory = Mapping::new(map.as_fd(), bytes as usize)?;
        Ok(Self {
            map: Arc::new(map),
            memory,
        })
    }
}

impl Chunk for MappedChunk {
    fn words(&self) -> &[AtomicU16] {
        self.memory.u16s()
    }
}

/// The array of chunks in the kernel.
pub(crate) struct KernelChunks {
    pub(super) outer: Arc<OwnedFd>,
    ring_size: u32,
    grace_periods: GracePeriods,
    /// A thread that waits for the kernel in the caller's stead. It is never joined before it has
    /// ended: it may not be there in a child made by fork(2).
    started: Option<JoinHandle<io::Result<Vec<MappedChunk>>>>,
}

impl KernelChunks {
    pub(super) fn new(outer: OwnedFd, ring_size: u32) -> io::Result<Self> {
        Ok(Self {
            outer: Arc::new(outer),
            ring_size,
            grace_periods: GracePeriods::new()?,
            started: None,
        })
    }

    fn start(
        &mut self,
        work: impl FnOnce() -> io::Result<Vec<MappedChunk>> + Send + 'static,
    ) -> io::Result<()> {
        let thread = thread::Builder::new().name("katran-rings".to_owned());
        self.started = Some(thread.spawn(work)?);
        Ok(())
    }
}

impl Backing for KernelChunks {
    type Chunk = MappedChunk;

    fn make(&self, numbers: &[usize]) -> io::Result<Vec<MappedChunk>> {
        make(&self.outer, self.ring_size, numbers)
    }

    fn unmake(&self, numbers: &[usize], kept: &MappedChunk) -> io::Result<()> {
        replace(&self.outer, numbers, &kept.map)
    }

    fn start_making(&mut self, numbers: &[usize]) -> io::Result<()> {
        let (outer, ring_size) = (Arc::clone(&self.outer), self.ring_size);
        let numbers = numbers.to_vec();
        self.start(move || make(&outer, ring_size, &numbers))
    }

    fn start_unmaking(&mut self, numbers: &[usize], kept: &MappedChunk) -> io::Result<()> {
        let (outer, kept) = (Arc::clone(&self.outer), Arc::clone(&kept.map));
        let numbers = numbers.to_vec();
        self.start(move || replace(&outer, &numbers, &kept).map(|()| Vec::new()))
    }

    fn finished(&mut self) -> Option<io::Result<Vec<MappedChunk>>> {
        let ended = self.started.take_if(|thread| thread.is_finished())?;
        let panicked = |_| Err(io::Error::other("the thread panicked"));
        Some(ended.join().unwrap_or_else(panicked))
    }

    fn mark(&mut self) -> Moment {
        self.grace_periods.mark()
    }

    fn passed(&self) -> Moment {
        self.grace_periods.passed()
    }

    fn wait(&self) -> io::Result<()> {
        self.grace_periods.wait()
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// One batch, and so at most one grace period, for all.
fn make(outer: &OwnedFd, ring_size: u32, numbers: &[usize]) -> io::Result<Vec<MappedChunk>> {
    let make = |_| MappedChunk::new(create_chunk(ring_size)?, ring_size);
    let chunks = numbers.iter().map(make).collect::<io::Result<Vec<_>>>()?;
    let inner: Vec<_> = numbers
        .iter()
        .zip(&chunks)
        .map(|(number, chunk)| (*number as u32, chunk.map.as_fd()))
        .collect();
    set_inner(outer.as_fd(), &inner)?;
    Ok(chunks)
}

/// Puts a chunk in the place of others, which are freed if no packet looks there. (To delete them
/// would take a grace period for each, as there is no batch call for it.)
pub(super) fn replace(outer: &OwnedFd, numbers: &[usize], with: &OwnedFd) -> io::Result<()> {
    let inner: Vec<_> = numbers
        .iter()
        .map(|number| (*number as u32, with.as_fd()))
        .collect();
    set_inner(outer.as_fd(), &inner)
}
