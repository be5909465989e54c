//! A driver's counters of an interface (`ethtool -S`), through the ethtool ioctls.
//!
//! A driver first says how many counters it has, and may have more by the time it writes them:
//! kernels before 6.19 write them all. So the room for an answer ends at a page that nothing can
//! write to.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::libc;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::mprotect;
use nix::sys::mman::munmap;

use super::ethtool::Ethtool;
use super::ethtool::GSTRINGS;
use super::ethtool::NAME_BYTES;
use super::ethtool::name_in;

const GSTATS: u32 = 0x1d;

/// The set of counter names (ETH_SS_STATS).
const COUNTERS: u32 = 1;

/// More than any driver has: names for this many take 4 MiB.
const MOST: usize = 1 << 17;

impl Ethtool {
    /// All counters of the driver, by name; empty if it has none.
    pub(crate) fn counters(&self, interface: &str) -> io::Result<Vec<(String, u64)>> {
        let number = match self.size_of_set(interface, COUNTERS) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
            number => number?,
        };
        if number == 0 {
            return Ok(Vec::new());
        }
        if number > MOST {
            return Err(io::Error::other("the driver has too many counters"));
        }
        // Command, set, number of names; then the names.
        let names = self.answer(
            interface,
            &[GSTRINGS, COUNTERS, number as u32],
            number * NAME_BYTES,
        )?;
        // Command, number of values; then the values.
        let values = self.answer(
            interface,
            &[GSTATS, number as u32],
            number * size_of::<u64>(),
        )?;
        let names = names.chunks_exact(NAME_BYTES).map(name_in);
        let values = values.as_chunks().0.iter();
        let values = values.map(|bytes| u64::from_ne_bytes(*bytes));
        Ok(names.zip(values).collect())
    }

    /// The bytes of an answer behind the words of a command. An error if the driver's number of
    /// counters has changed: names and values would not match.
    fn answer(&self, interface: &str, command: &[u32], bytes: usize) -> io::Result<Vec<u8>> {
        let head = size_of_val(command);
        let mut room = Room::new(head + bytes)?;
        let begin = room.bytes();
        for (to, from) in begin.chunks_exact_mut(size_of::<u32>()).zip(command) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        // SAFETY: the kernel writes from the beginning of the room, and at its end the guard page
        // makes it stop with an error.
        unsafe { self.ask(interface, room.bytes()) }?;
        let begin = room.bytes();
        let last = command.len() - 1;
        let told = begin[last * size_of::<u32>()..].first_chunk();
        if told.map(|number| u32::from_ne_bytes(*number)) != command.last().copied() {
            return Err(io::Error::other(
                "the driver has changed its counters meanwhile",
            ));
        }
        Ok(begin[head..head + bytes].to_vec())
    }
}

/// Memory before a page that nothing can write to.
struct Room {
    start: NonNull<libc::c_void>,
    /// Without that page.
    usable: usize,
    page: usize,
}

impl Room {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: the call passes and returns numbers, and accesses no memory of ours.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(io::Error::other)?;
        let usable = bytes.next_multiple_of(page).max(page);
        let all = NonZeroUsize::new(usable + page).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(None, all, protection, MapFlags::MAP_PRIVATE) }?;
        let room = Self {
            start,
            usable,
            page,
        };
        // SAFETY: the last page of our own mapping, to which no reference exists.
        unsafe { mprotect(room.start.byte_add(usable), page, ProtFlags::PROT_NONE) }?;
        Ok(room)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: writable memory of our own mapping, zeroed at first, and borrowed as long as
        // `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast().as_ptr(), self.usable) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, to which `drop` proves that no reference is left.
        if let Err(error) = unsafe { munmap(self.start, self.usable + self.page) } {
            log::debug!("cannot unmap memory: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_cannot_write_beyond_the_room() {
        let mut room = Room::new(5000).unwrap();
        let page = room.page;
        assert_eq!(room.bytes().len(), 5000_usize.next_multiple_of(page));
        assert!(room.bytes().iter().all(|byte| *byte == 0));
        let zeros = std::fs::File::open("/dev/zero").unwrap();
        let last = room.bytes().len() - 8;
        let end = room.bytes()[last..].as_mut_ptr();
        use std::os::fd::AsRawFd;
        let read = |length| {
            // SAFETY: the kernel writes to memory of the mapping, or fails at its end.
            unsafe { libc::read(zeros.as_raw_fd(), end.cast(), length) }
        };
        assert_eq!(read(8), 8);
        assert!(read(4096) <= 8);
        // The previous contents are still there.
        assert_eq!(room.bytes().len() % page, 0);
    }

    #[test]
    fn an_interface_without_counters_has_none() {
        let ethtool = Ethtool::new().unwrap();
        assert_eq!(ethtool.counters("lo").unwrap(), []);
        assert!(ethtool.counters("no-such-interf").is_err());
    }
}
