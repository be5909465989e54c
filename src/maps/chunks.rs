//! Rings in the kernel: inner maps ("chunks") of a few rings each, in an array of maps, and the
//! grace periods after which a place in them can be written again.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::thread;
use std::thread::JoinHandle;
use std::time::Instant;

use nix::libc;

use super::grace::GracePeriods;
use super::grace::Moment;
use crate::skel::katran::types;
use crate::sys::map;
use crate::sys::map::Spec;
use crate::sys::mapping::Mapping;
use crate::sys::nested::MapArray;
use crate::sys::nested::SIDE_BY_SIDE;
use crate::sys::tenure::Tenure;

/// Rings in one chunk.
pub(crate) const RINGS_PER_CHUNK: u32 = types::ring_constant::RINGS_PER_CHUNK.0;

/// Bytes of one ring as an array element: 16 bits per slot, rounded up to 8 bytes, followed by the
/// places of its history.
pub(crate) fn ring_bytes(ring_size: u32) -> u32 {
    planes_at(ring_size) + size_of::<types::ring_planes>() as u32
}

/// The offset in a ring's element of the places of its history.
pub(crate) fn planes_at(ring_size: u32) -> u32 {
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

/// What the places of rings need from the kernel. Unit tests have a fake.
pub(crate) trait Backing {
    type Chunk: Chunk;

    /// Makes chunks, which packets then find under these numbers. May wait for packets.
    fn make(&self, numbers: &[usize]) -> io::Result<Vec<Self::Chunk>>;

    /// Takes chunks away from packets; chunk 0 is never among them. May wait for packets. After an
    /// error some may be gone.
    fn unmake(&self, numbers: &[usize]) -> io::Result<()>;

    /// Starts to make chunks. Any previous start must have been [`finished`](Self::finished).
    fn start_making(&mut self, numbers: &[usize]) -> io::Result<()>;

    /// Starts to take chunks away, likewise.
    fn start_unmaking(&mut self, numbers: &[usize]) -> io::Result<()>;

    /// The result of the last start, once: the chunks made, none if it took some away.
    fn finished(&mut self) -> Option<io::Result<Vec<Self::Chunk>>>;

    /// As [`GracePeriods::begin`].
    fn begin(&mut self) -> Moment;

    /// As [`GracePeriods::passed`].
    fn passed(&self) -> Moment;

    /// As [`GracePeriods::wait`].
    fn wait(&self) -> io::Result<()>;

    fn now(&self) -> Instant;
}

/// The memory of one inner map, which lives as long as its map and the map's place. A chunk keeps
/// no descriptor, because there may be thousands, and a process often may have only 1,024.
pub(crate) struct MappedChunk {
    memory: Mapping,
}

impl MappedChunk {
    pub(super) fn new(map: &OwnedFd, ring_size: u32) -> io::Result<Self> {
        let bytes = ring_bytes(ring_size) * RINGS_PER_CHUNK;
        let memory = Mapping::new(map.as_fd(), bytes as usize)?;
        Ok(Self { memory })
    }
}

impl Chunk for MappedChunk {
    fn words(&self) -> &[AtomicU16] {
        self.memory.u16s()
    }
}

/// The array of chunks in the kernel.
pub(crate) struct KernelChunks {
    pub(super) outer: Arc<MapArray>,
    /// Chunk 0, which always stays: it fills the places of those that go.
    pub(super) first: Arc<OwnedFd>,
    ring_size: u32,
    grace_periods: GracePeriods,
    tenure: Arc<Tenure>,
    /// A thread that waits for the kernel in place of the caller. It is joined only after it has
    /// ended, because in a child made by fork(2) it may not exist.
    started: Option<JoinHandle<io::Result<Vec<MappedChunk>>>>,
}

impl KernelChunks {
    pub(super) fn new(
        outer: MapArray,
        first: OwnedFd,
        ring_size: u32,
        tenure: Arc<Tenure>,
    ) -> io::Result<Self> {
        let (outer, first) = (Arc::new(outer), Arc::new(first));
        outer.set(&[(0, first.as_fd())])?;
        Ok(Self {
            outer,
            first,
            ring_size,
            grace_periods: GracePeriods::new()?,
            tenure,
            started: None,
        })
    }

    pub(super) fn grace_periods(&self) -> &GracePeriods {
        &self.grace_periods
    }

    fn start(
        &mut self,
        work: impl FnOnce() -> io::Result<Vec<MappedChunk>> + Send + 'static,
    ) -> io::Result<()> {
        // The next owner of a pinned balancer waits for it.
        let permit = self.tenure.thread_permit().map_err(io::Error::other)?;
        let work = move || {
            let _permit = permit;
            work()
        };
        let thread = thread::Builder::new().name("katran-rings".to_owned());
        self.started = Some(thread.spawn(work)?);
        Ok(())
    }
}

impl Backing for KernelChunks {
    type Chunk = MappedChunk;

    fn make(&self, numbers: &[usize]) -> io::Result<Vec<MappedChunk>> {
        make(
            &self.outer,
            &self.first,
            self.ring_size,
            numbers,
            MapArray::set,
        )
    }

    fn unmake(&self, numbers: &[usize]) -> io::Result<()> {
        self.outer.set(&all_like(numbers, &self.first))
    }

    fn start_making(&mut self, numbers: &[usize]) -> io::Result<()> {
        let (outer, first) = (Arc::clone(&self.outer), Arc::clone(&self.first));
        let (ring_size, numbers) = (self.ring_size, numbers.to_vec());
        self.start(move || make(&outer, &first, ring_size, &numbers, MapArray::set_meanwhile))
    }

    fn start_unmaking(&mut self, numbers: &[usize]) -> io::Result<()> {
        let (outer, first) = (Arc::clone(&self.outer), Arc::clone(&self.first));
        let numbers = numbers.to_vec();
        self.start(move || {
            let replaced = outer.set_meanwhile(&all_like(&numbers, &first));
            replaced.map(|()| Vec::new())
        })
    }

    fn finished(&mut self) -> Option<io::Result<Vec<MappedChunk>>> {
        let ended = self.started.take_if(|thread| thread.is_finished())?;
        let panicked = |_| Err(io::Error::other("the thread panicked"));
        Some(ended.join().unwrap_or_else(panicked))
    }

    fn begin(&mut self) -> Moment {
        self.grace_periods.begin()
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

type Set = fn(&MapArray, &[(u32, BorrowedFd<'_>)]) -> io::Result<()>;

/// Makes chunks and puts them into their places by `set`, many at a time.
fn make(
    outer: &MapArray,
    first: &OwnedFd,
    ring_size: u32,
    numbers: &[usize],
    set: Set,
) -> io::Result<Vec<MappedChunk>> {
    let mut chunks = Vec::with_capacity(numbers.len());
    while chunks.len() < numbers.len() {
        let rest = &numbers[chunks.len()..];
        let made = create_some(rest.len(), || create_chunk(ring_size)).and_then(|maps| {
            let mapped = maps.iter().map(|map| MappedChunk::new(map, ring_size));
            let mapped = mapped.collect::<io::Result<Vec<_>>>()?;
            let places = rest.iter().map(|number| *number as u32);
            let inner: Vec<_> = places.zip(maps.iter().map(AsFd::as_fd)).collect();
            set(outer, &inner)?;
            Ok(mapped)
        });
        match made {
            Ok(mapped) => chunks.extend(mapped),
            Err(error) => {
                // Some of the last ones may be in place as well.
                if let Err(error) = set(outer, &all_like(numbers, first)) {
                    log::warn!("cannot free the memory of unused rings: {error}");
                }
                return Err(error);
            }
        }
    }
    Ok(chunks)
}

/// One map for many places, which frees theirs if no packet looks there. (Deleting them would take
/// a grace period each, because there is no batch call for it.)
fn all_like<'a>(numbers: &[usize], map: &'a OwnedFd) -> Vec<(u32, BorrowedFd<'a>)> {
    let places = numbers.iter().map(|number| *number as u32);
    places.map(|place| (place, map.as_fd())).collect()
}

/// Makes at least one map: as many as wanted, as are inserted together, and as there are
/// descriptors for. If descriptors run out, half of them are left to the rest of the process.
pub(super) fn create_some(
    wanted: usize,
    create: impl Fn() -> io::Result<OwnedFd>,
) -> io::Result<Vec<OwnedFd>> {
    let mut maps = Vec::new();
    while maps.len() < wanted.min(SIDE_BY_SIDE) {
        match create() {
            Ok(map) => maps.push(map),
            Err(error) if !maps.is_empty() && has_run_out_of_descriptors(&error) => {
                maps.truncate(maps.len().div_ceil(2));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(maps)
}

fn has_run_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn as_many_maps_are_made_at_a_time_as_there_are_descriptors_for() {
        let made = |wanted, left: usize, errno| {
            let left = Cell::new(left);
            let maps = create_some(wanted, || match left.get() {
                0 => Err(io::Error::from_raw_os_error(errno)),
                more => {
                    left.set(more - 1);
                    std::fs::File::open("/dev/null").map(OwnedFd::from)
                }
            });
            maps.map(|maps| maps.len())
                .map_err(|error| error.raw_os_error())
        };
        assert_eq!(made(3, 9, libc::EMFILE), Ok(3));
        assert_eq!(made(1000, 300, libc::EMFILE), Ok(SIDE_BY_SIDE));
        assert_eq!(made(9, 5, libc::EMFILE), Ok(3));
        assert_eq!(made(9, 1, libc::ENFILE), Ok(1));
        assert_eq!(made(9, 0, libc::EMFILE), Err(Some(libc::EMFILE)));
        assert_eq!(made(9, 5, libc::ENOMEM), Err(Some(libc::ENOMEM)));
    }
}
