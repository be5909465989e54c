//! The memory of a pinned balancer's ledger: a map in its set of pins, which a larger one replaces
//! when it becomes too small.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

use super::PinnedSet;
use super::contents::Contents;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::ledger::FIRST_BYTES;
use crate::ledger::Ground;
use crate::ledger::Ledger;
use crate::sys::map;
use crate::sys::map::Spec;
use crate::sys::mapping::Mapping;
use crate::sys::pin;

/// The map's name, as the kernel keeps it.
const NAME: &str = "katran_ledger";
/// Its pin, and the pin of a map that is about to replace it.
const PATHS: [&str; 2] = ["ledger", "ledger_new"];
/// Bytes of an element: a page, so that elements are contiguous.
const ELEMENT: usize = 4096;

/// A mapped map, and the directory where it is or will be pinned.
struct PinnedGround {
    map: OwnedFd,
    memory: Mapping,
    seat: Seat,
}

/// The directory of a ledger, which changes when its set replaces another.
#[derive(Clone)]
pub(crate) struct Seat(Arc<Mutex<PathBuf>>);

impl Seat {
    fn at(path: &Path) -> Self {
        Self(Arc::new(Mutex::new(path.to_owned())))
    }

    fn path(&self) -> PathBuf {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The set has moved to another path.
    pub(super) fn move_to(&self, path: &Path) {
        path.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl PinnedGround {
    /// A new one without a pin.
    fn make(seat: Seat, bytes: usize) -> io::Result<Self> {
        let elements = bytes.div_ceil(ELEMENT);
        let map = map::create(&Spec {
            kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
            name: NAME,
            key_size: 4,
            value_size: ELEMENT as u32,
            max_entries: u32::try_from(elements).map_err(|_| io::ErrorKind::OutOfMemory)?,
            flags: libbpf_sys::BPF_F_MMAPABLE,
            numa_node: None,
        })?;
        Self::of(seat, map, elements)
    }

    fn of(seat: Seat, map: OwnedFd, elements: usize) -> io::Result<Self> {
        Ok(Self {
            memory: Mapping::new(map.as_fd(), elements * ELEMENT)?,
            map,
            seat,
        })
    }

    /// The one that is pinned in a directory; `None` if there is none.
    fn open(directory: &Path) -> io::Result<Option<Self>> {
        let map = match pin::open(&directory.join(PATHS[0])) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match elements_of(map.as_fd())? {
            Some(elements) => Self::of(Seat::at(directory), map, elements).map(Some),
            None => Ok(None),
        }
    }
}

impl Ground for PinnedGround {
    fn words(&self) -> &[AtomicU64] {
        self.memory.u64s()
    }

    fn larger(&self, bytes: usize) -> io::Result<Box<dyn Ground>> {
        Ok(Box::new(Self::make(self.seat.clone(), bytes)?))
    }

    fn publish(&mut self) -> io::Result<()> {
        let [path, meanwhile] = {
            let directory = self.seat.path();
            PATHS.map(|name| directory.join(name))
        };
        pin::replace(self.map.as_fd(), &path, &meanwhile)
    }
}

impl PinnedSet {
    /// Memory for the ledger of a balancer that is pinned here; the ledger pins it once it is
    /// written.
    pub(crate) fn new_ground(&self) -> io::Result<Box<dyn Ground>> {
        Ok(self.movable_ground()?.0)
    }

    /// The same, with the seat that tells it about a new path.
    pub(crate) fn movable_ground(&self) -> io::Result<(Box<dyn Ground>, Seat)> {
        let seat = Seat::at(self.path());
        let ground = PinnedGround::make(seat.clone(), FIRST_BYTES)?;
        Ok((Box::new(ground), seat))
    }

    /// The memory of the ledger that is pinned here; `None` if there is none.
    pub(crate) fn ground(&self) -> io::Result<Option<Box<dyn Ground>>> {
        let ground = PinnedGround::open(self.path())?;
        Ok(ground.map(|ground| Box::new(ground) as Box<dyn Ground>))
    }

    /// Checks that the ledger pinned here has a layout that this version reads.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if there is none;
    /// [`Error::Unsupported`](crate::Error::Unsupported).
    pub(super) fn check_ledger(&self, contents: &Contents) -> Result<()> {
        let path = self.path().join(PATHS[0]);
        let ground = self.ground();
        let ground =
            ground.map_err(|error| kernel_error("open", &path.display().to_string(), error))?;
        let ground = ground.ok_or_else(|| self.missing(PATHS[0]))?;
        let checked = Ledger::check(&*ground);
        checked.map_err(|refused| self.unreadable(contents, &refused.to_string()))
    }

    /// Removes the ledger's pins, if they are a ledger's.
    pub(super) fn remove_ledger(&self) -> io::Result<()> {
        for path in PATHS.map(|name| self.path().join(name)) {
            if !path.symlink_metadata().is_ok_and(|of| of.is_file()) {
                continue;
            }
            let map = pin::open(&path)?;
            let is_ours = pin::kind(map.as_fd())? == Some(pin::Kind::Map)
                && elements_of(map.as_fd())?.is_some();
            match is_ours {
                true => pin::remove(&path)?,
                false => log::warn!("{} is not a balancer's: leaving it", path.display()),
            }
        }
        Ok(())
    }
}

/// The number of elements of a ledger's map; `None`: it is another map.
fn elements_of(map: BorrowedFd<'_>) -> io::Result<Option<usize>> {
    let info = map::info(map)?;
    let is_ledger = info.kind == libbpf_sys::BPF_MAP_TYPE_ARRAY
        && info.name == NAME
        && info.value_size as usize == ELEMENT;
    Ok(is_ledger.then_some(info.max_entries as usize))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use katran_lab::private_bpf_fs;

    use super::*;

    #[test]
    fn a_larger_map_takes_the_place_of_the_one_before() {
        let directory = private_bpf_fs().unwrap();
        assert!(PinnedGround::open(&directory).unwrap().is_none());
        let mut first = PinnedGround::make(Seat::at(&directory), 10_000).unwrap();
        assert_eq!(first.words().len(), 3 * ELEMENT / 8);
        first.publish().unwrap();
        first.words()[1535].store(7, Ordering::Relaxed);
        let mut second = first.larger(20_000).unwrap();
        second.words()[2559].store(8, Ordering::Relaxed);
        // Not before it is published.
        let found = PinnedGround::open(&directory).unwrap().unwrap();
        assert_eq!(found.words()[1535].load(Ordering::Relaxed), 7);
        second.publish().unwrap();
        drop((first, second));
        let found = PinnedGround::open(&directory).unwrap().unwrap();
        assert_eq!(found.words()[2559].load(Ordering::Relaxed), 8);
        assert!(!directory.join(PATHS[1]).exists());
    }

    #[test]
    fn another_map_under_its_name_is_none() {
        let directory = private_bpf_fs().unwrap();
        let map = map::create(&Spec {
            kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
            name: NAME,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            flags: 0,
            numa_node: None,
        });
        pin::pin(map.unwrap().as_fd(), &directory.join(PATHS[0])).unwrap();
        assert!(PinnedGround::open(&directory).unwrap().is_none());
    }
}
