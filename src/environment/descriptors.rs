//! How many descriptors the process may have, and whether it was for want of them that a call failed.

use std::fs;
use std::io;

use nix::libc;
use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;

/// No call needs more at the same time: loading has one for each map and program, and some of libbpf's.
const NEEDED: u64 = 128;

/// The limit of this process's descriptors, if it was for want of them that a call failed. Where the error
/// has lost its number, that is so if few are left.
pub(crate) fn exhausted_descriptors(error: &io::Error) -> Option<u64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let exhausted = match error.raw_os_error() {
        Some(errno) => errno == libc::EMFILE,
        None if error.kind() == io::ErrorKind::Other => {
            open().is_none_or(|open| open + NEEDED > limit)
        }
        None => false,
    };
    exhausted.then_some(limit)
}

/// How many this process has; `None` if there is not one left to count them by.
fn open() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?;
    Some(open.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "limits are the kernel's")]
    fn only_want_of_descriptors_is_that() {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let of = |errno| exhausted_descriptors(&io::Error::from_raw_os_error(errno));
        assert_eq!(of(libc::EMFILE), Some(limit));
        assert_eq!(of(libc::ENFILE), None);
        assert_eq!(of(libc::ENOMEM), None);
        // This process has many left.
        assert_eq!(exhausted_descriptors(&io::Error::other("no number")), None);
        let invalid = io::Error::from(io::ErrorKind::InvalidData);
        assert_eq!(exhausted_descriptors(&invalid), None);
    }
}
