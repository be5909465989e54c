//! What the kernel tells of a BPF object in `/proc/thread-self/fdinfo` (proc(5)): the one place that also tells
//! of which kind an object is, as maps, programs and links all answer `BPF_OBJ_GET_INFO_BY_FD`.
//!
//! Of the thread, not of the process: a thread may have descriptors of its own (`CLONE_FILES`, unshare(2)).

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

/// Fields of a descriptor, by name.
pub(super) struct FdInfo(String);

impl FdInfo {
    pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd())).map(Self)
    }

    /// The text of a field, such as `map_type`, `link_type` or `memlock`.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then(|| value.trim())
        })
    }

    /// The number in a field; an error of kind `InvalidData` if there is none.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> io::Result<T> {
        self.text(name)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;
    use std::io::SeekFrom;
    use std::os::fd::AsFd;
    use std::thread;

    use nix::sched::CloneFlags;
    use nix::sched::unshare;

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "descriptors are the kernel's")]
    fn a_thread_with_descriptors_of_its_own_is_told_of_these() {
        let told = thread::spawn(|| {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            let mut file = tempfile::tempfile().unwrap();
            file.seek(SeekFrom::Start(1234)).unwrap();
            FdInfo::of(file.as_fd())
                .unwrap()
                .number::<u64>("pos")
                .unwrap()
        });
        assert_eq!(told.join().unwrap(), 1234);
    }
}
