//! Whether a call failed because descriptors ran out, and the process's limit.

use std::io;

use nix::libc;
use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;

/// The process's limit of descriptors, if a call failed because they ran out.
pub(crate) fn exhausted_descriptors(error: &io::Error) -> Option<u64> {
    if error.raw_os_error() != Some(libc::EMFILE) {
        return None;
    }
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(limit)
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
        // An error without a number is unknown.
        assert_eq!(exhausted_descriptors(&io::Error::other("no number")), None);
        let invalid = io::Error::from(io::ErrorKind::InvalidData);
        assert_eq!(exhausted_descriptors(&invalid), None);
    }
}
