//! What the kernel tells of a BPF object in `/proc/self/fdinfo` (proc(5)): the one place that also tells of
//! which kind an object is, as maps, programs and links all answer `BPF_OBJ_GET_INFO_BY_FD`.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

/// Fields of a descriptor, by name.
pub(super) struct FdInfo(String);

impl FdInfo {
    pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).map(Self)
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
