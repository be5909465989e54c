//! Arrays of maps, and how to insert many maps during one grace period.
//!
//! The kernel waits for an RCU grace period, some milliseconds, in each such update: since Linux
//! 6.8 once per call, before that once per element of a batch. On those kernels many threads insert
//! one element each, so that they share a grace period.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::Scope;
use std::thread::ScopedJoinHandle;

use super::check;
use super::map::by_id;
use super::map::check_map;
use super::map::number_at;
use super::release;
use super::signals::without_signals;

/// The first release that waits once for a whole batch.
const WAITS_ONCE: (u32, u32) = (6, 8);
/// Elements inserted side by side, by a thread each, for some milliseconds.
pub(crate) const SIDE_BY_SIDE: usize = 256;
/// Such a thread makes one system call.
const STACK: usize = 64 << 10;

/// An array of maps.
#[derive(Debug)]
pub(crate) struct MapArray {
    fd: OwnedFd,
    waits: AtomicU64,
    /// This kernel waits once for a whole batch.
    waits_once: bool,
    #[cfg(test)]
    batches: AtomicU64,
}

impl AsFd for MapArray {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl MapArray {
    /// Takes a map; an error of kind `InvalidInput` if it is not such an array.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        check_map::<u32, u32>(fd.as_fd(), &[libbpf_sys::BPF_MAP_TYPE_ARRAY_OF_MAPS])?;
        Ok(Self {
            fd,
            waits: AtomicU64::new(0),
            waits_once: release::is_at_least(WAITS_ONCE),
            #[cfg(test)]
            batches: AtomicU64::new(0),
        })
    }

    /// The id of the map at a place.
    pub(crate) fn id_at(&self, index: u32) -> io::Result<Option<u32>> {
        // SAFETY: keys and values are 32-bit numbers, checked in `new`.
        unsafe { number_at(self.fd.as_fd(), index) }
    }

    /// Opens the map at a place, which takes `CAP_SYS_ADMIN`.
    pub(crate) fn open_at(&self, index: u32) -> io::Result<Option<OwnedFd>> {
        self.id_at(index)?.map(by_id).transpose()
    }

    /// Grace periods that callers of [`set`](Self::set) have waited for, on a kernel that waits for
    /// each element.
    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// Puts maps into places. Waits for a grace period; before Linux 6.8 for one per
    /// [`SIDE_BY_SIDE`] maps. After an error some may be in place.
    pub(crate) fn set(&self, inner: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
        let waits = inner.len().div_ceil(SIDE_BY_SIDE) as u64;
        self.waits.fetch_add(waits, Ordering::Relaxed);
        self.set_meanwhile(inner)
    }

    /// As [`set`](Self::set), on a thread that no caller waits for, so it does not count as a wait.
    pub(crate) fn set_meanwhile(&self, inner: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
        match inner.len() > 1 && !self.waits_once {
            true => self.set_side_by_side(inner),
            false => self.set_batch(inner),
        }
    }

    fn set_batch(&self, inner: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
        if inner.is_empty() {
            return Ok(());
        }
        #[cfg(test)]
        self.batches.fetch_add(1, Ordering::Relaxed);
        let keys: Vec<u32> = inner.iter().map(|(index, _)| *index).collect();
        let values: Vec<i32> = inner.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let mut count = inner.len() as u32;
        // SAFETY: there are `count` keys and values, of the sizes checked in `new`.
        check(unsafe {
            libbpf_sys::bpf_map_update_batch(
                self.fd.as_raw_fd(),
                keys.as_ptr().cast(),
                values.as_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        })
        .map(drop)
    }

    fn set_side_by_side(&self, inner: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
        inner.chunks(SIDE_BY_SIDE).try_for_each(|together| {
            thread::scope(|scope| {
                let mut threads = Vec::new();
                let mut all = Ok(());
                for one in together.chunks(1) {
                    match spawn(scope, || self.set_batch(one)) {
                        Ok(thread) => threads.push(thread),
                        // Without a thread it takes another grace period.
                        Err(_) => all = all.and(self.set_batch(one)),
                    }
                }
                for thread in threads {
                    let panicked = |_| Err(io::Error::other("the thread panicked"));
                    all = all.and(thread.join().unwrap_or_else(panicked));
                }
                all
            })
        })
    }
}

/// Starts a thread with a small stack. Signals are blocked there: a handler of the process, such as
/// a profiler's, may need more stack.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let thread = thread::Builder::new()
        .name("katran-maps".to_owned())
        .stack_size(STACK);
    // A thread inherits the signal mask of the one that starts it.
    without_signals(|| thread.spawn_scoped(scope, work))
}

/// Makes an array of maps like `inner`.
pub(crate) fn create_outer(
    name: &str,
    max_entries: u32,
    inner: BorrowedFd<'_>,
) -> io::Result<MapArray> {
    let name = CString::new(name)?;
    let options = libbpf_sys::bpf_map_create_opts {
        sz: mem::size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        inner_map_fd: inner.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: the name is a C string and the options are initialised; both outlive the call.
    let fd = check(unsafe {
        libbpf_sys::bpf_map_create(
            libbpf_sys::BPF_MAP_TYPE_ARRAY_OF_MAPS,
            name.as_ptr(),
            4,
            4,
            max_entries,
            &options,
        )
    })?;
    // SAFETY: a descriptor that the call has just made and nothing else owns.
    MapArray::new(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;
    use std::time::Instant;

    use nix::sys::signal::SigSet;
    use nix::sys::signal::Signal;

    use super::*;
    use crate::sys::map::Spec;
    use crate::sys::map::create;

    fn inner() -> OwnedFd {
        let spec = Spec {
            kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
            name: "inner",
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            flags: 0,
            numa_node: None,
        };
        create(&spec).unwrap()
    }

    /// Every kernel waits for a call with one element, so this shows what kernels before 6.8 do.
    #[test]
    #[cfg_attr(miri, ignore = "bpf(2) is the kernel's")]
    fn maps_that_are_put_in_side_by_side_share_a_grace_period() {
        let inner = inner();
        let outer = create_outer("outer", SIDE_BY_SIDE as u32, inner.as_fd()).unwrap();
        let timed = |count: usize| {
            let maps: Vec<_> = (0..count as u32).map(|i| (i, inner.as_fd())).collect();
            let began = Instant::now();
            outer.set_side_by_side(&maps).unwrap();
            began.elapsed()
        };
        // The best of several, because other work shares the machine: of more if it is busy.
        let one = (0..5).map(|_| timed(1)).min().unwrap();
        let limit = 16 * one + Duration::from_millis(50);
        let mut times = Vec::new();
        let is_shared = (0..50).any(|_| {
            let all = timed(SIDE_BY_SIDE);
            times.push(all);
            all < limit
        });
        assert!(is_shared, "{one:?} {times:?}");
        for index in 0..SIDE_BY_SIDE as u32 {
            assert!(is_there(&outer, index), "{index}");
        }
        assert_eq!(outer.waits(), 0);
        outer
            .set(&[(0, inner.as_fd()), (1, inner.as_fd())])
            .unwrap();
        assert_eq!(outer.waits(), 1);
    }

    /// Tests both ways, even on a newer kernel.
    #[test]
    #[cfg_attr(miri, ignore = "bpf(2) is the kernel's")]
    fn a_kernel_that_waits_for_each_element_gets_them_one_by_one() {
        let inner = inner();
        let batches = |waits_once, count: u32| {
            let mut outer = create_outer("outer", count, inner.as_fd()).unwrap();
            assert_eq!(outer.waits_once, release::is_at_least((6, 8)));
            outer.waits_once = waits_once;
            let maps: Vec<_> = (0..count).map(|i| (i, inner.as_fd())).collect();
            outer.set(&maps).unwrap();
            assert!((0..count).all(|index| is_there(&outer, index)));
            (outer.batches.load(Ordering::Relaxed), outer.waits())
        };
        assert_eq!(batches(true, 40), (1, 1));
        // Side by side, so they share a grace period, as above.
        assert_eq!(batches(false, 40), (40, 1));
        assert_eq!(batches(false, 1), (1, 1));
        let more = SIDE_BY_SIDE as u32 + 1;
        assert_eq!(batches(false, more), (u64::from(more), 2));
    }

    #[test]
    #[cfg_attr(miri, ignore = "signal masks are the kernel's")]
    fn a_thread_with_a_small_stack_takes_no_signals() {
        let mask = || SigSet::thread_get_mask().unwrap();
        let own = mask();
        let of_thread = thread::scope(|scope| spawn(scope, mask).unwrap().join().unwrap());
        for signal in [Signal::SIGPROF, Signal::SIGALRM, Signal::SIGUSR1] {
            assert!(of_thread.contains(signal), "{signal}");
        }
        assert_eq!(mask(), own);
    }

    #[test]
    #[cfg_attr(miri, ignore = "bpf(2) is the kernel's")]
    fn an_error_of_one_map_is_that_of_all() {
        let inner = inner();
        let outer = create_outer("outer", 4, inner.as_fd()).unwrap();
        let maps: Vec<_> = (0..8).map(|i| (i, inner.as_fd())).collect();
        let refused = outer.set_side_by_side(&maps).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::E2BIG));
        assert!(is_there(&outer, 3));
        assert!(outer.set(&maps).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "bpf(2) is the kernel's")]
    fn a_map_that_is_no_array_of_maps_is_refused() {
        let plain = create(&Spec {
            kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
            name: "plain",
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            flags: 0,
            numa_node: None,
        });
        let refused = MapArray::new(plain.unwrap()).map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(io::ErrorKind::InvalidInput));
    }

    fn is_there(outer: &MapArray, index: u32) -> bool {
        let mut id = 0_u32;
        // SAFETY: keys and values of such an array are 32-bit numbers, which both are.
        let found = check(unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                outer.fd.as_raw_fd(),
                std::ptr::from_ref(&index).cast(),
                std::ptr::from_mut(&mut id).cast(),
            )
        });
        found.is_ok() && id != 0
    }
}
