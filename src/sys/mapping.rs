//! Memory shared with the program: the values of a mappable array.
//!
//! Stores are atomic words, so a packet sees the old word or the new one.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap;
use nix::sys::mman::munmap;

/// A word of shared memory. The trait is private, so the implementations below are all there are.
///
/// # Safety
/// An atomic integer: the program may write to it at any time, and every bit pattern is valid.
unsafe trait Word {}

macro_rules! words {
    ($($word:ty)*) => {$(
        // SAFETY: an atomic integer of the standard library.
        unsafe impl Word for $word {}
    )*};
}

words! { AtomicU16 AtomicU32 AtomicU64 }

/// The mapped values of an array map; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<std::ffi::c_void>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, so any thread may use and unmap it.
unsafe impl Send for Mapping {}
// SAFETY: `words` alone gives access to the memory, and only as atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes of the values of an array made with `BPF_F_MMAPABLE`.
    pub(crate) fn new(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        Self::part(map, 0, bytes)
    }

    /// The same from byte `start`, which begins a page.
    pub(crate) fn part(map: BorrowedFd<'_>, start: usize, bytes: usize) -> io::Result<Self> {
        let refused = || io::Error::from(io::ErrorKind::InvalidInput);
        let length = NonZeroUsize::new(bytes).ok_or_else(refused)?;
        let offset = i64::try_from(start).map_err(|_| refused())?;
        // SAFETY: a new mapping at an address of the kernel's choice, so it overlaps no memory of
        // ours. The kernel refuses an end beyond the map's.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                offset,
            )
        }?;
        Ok(Self { start, bytes })
    }

    /// The memory as words, without an incomplete one at the end.
    fn words<W: Word>(&self) -> &[W] {
        // SAFETY: the mapping is page-aligned, `bytes` long and lives as long as `self`; `Word`
        // guarantees that others may write meanwhile.
        unsafe {
            std::slice::from_raw_parts(self.start.cast().as_ptr(), self.bytes / size_of::<W>())
        }
    }

    /// The memory as 16-bit words.
    pub(crate) fn u16s(&self) -> &[AtomicU16] {
        self.words()
    }

    /// The memory as 32-bit words.
    pub(crate) fn u32s(&self) -> &[AtomicU32] {
        self.words()
    }

    /// The memory as 64-bit words.
    pub(crate) fn u64s(&self) -> &[AtomicU64] {
        self.words()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `part` with this length; `drop` proves that every slice's borrow has
        // ended.
        let result = unsafe { munmap(self.start, self.bytes) };
        debug_assert!(result.is_ok());
    }
}
