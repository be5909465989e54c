//! What `/proc/thread-self/fdinfo` (proc(5)) says about a BPF object. Only this file shows an
//! object's type, because maps, programs and links all answer `BPF_OBJ_GET_INFO_BY_FD`.
//!
//! The file is the thread's and not the process's, because a thread may have its own descriptors
//! (`CLONE_FILES`, unshare(2)).

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Fields of a descriptor, by name.
pub(super) struct FdInfo(String);

impl FdInfo {
    pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let path = format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd());
        Self::read(Path::new(&path))
    }

    /// Those in such a file.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        fs::read_to_string(path).map(Self)
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
    use crate::mutate;

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

    /// A field is found on its own line, whatever other lines contain; a number parses or is an
    /// error.
    #[test]
    fn fields_of_any_text_are_found_or_not() {
        const TEXT: &str = "pos:\t0\nflags:\t02000002\nmap_type:\t3\nmap_id:\t17\nmemlock:\t4096\n";
        mutate::cases(10_000, |rng| {
            let mut text = TEXT.as_bytes().to_vec();
            for _ in 0..rng.u32(1..4) {
                mutate::text(rng, &mut text);
            }
            let text = String::from_utf8_lossy(&text).replace("link_type", "");
            let info = FdInfo(format!("{text}\nlink_type:\txdp\nifindex:\t7\n"));
            assert_eq!(info.text("link_type"), Some("xdp"));
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            let told: io::Result<u64> = info.number("memlock");
            assert_eq!(told.ok(), line.and_then(|line| line.trim().parse().ok()));
        });
    }
}
