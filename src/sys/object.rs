//! What libbpf-rs does not offer of an object: loading it with a log of the verifier, and errors as those of
//! the standard library.

use std::ffi::CStr;
use std::io;

use libbpf_rs::AsRawLibbpf;
use libbpf_rs::ErrorKind;
use libbpf_rs::skel::OpenSkel;
use nix::libc;

use super::signals::without_signals;

/// Bytes kept of the verifier's log; the kernel keeps the end.
const LOG_BYTES: usize = 1 << 20;

/// Why an object did not load.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: io::Error,
    /// The program that the verifier rejected, and its log.
    pub(crate) rejected: Option<(&'static str, String)>,
}

/// Loads an object, with a log for each of these programs of it.
///
/// The logs live in here, so that none can go before the load has ended.
pub(crate) fn load<'object, O: OpenSkel<'object>>(
    mut open: O,
    programs: &[&'static str],
) -> Result<O::Output, Refused> {
    let with_log = programs.iter().map(|name| (*name, vec![0_u8; LOG_BYTES]));
    let mut logs: Vec<_> = with_log.collect();
    for program in open.open_object_mut().progs_mut() {
        let mut logs = logs.iter_mut();
        if let Some((_, log)) = logs.find(|(name, _)| program.name() == *name) {
            // SAFETY: libbpf writes into the buffer, whose length is given, only while it loads the object.
            // It does that below or never, for `open` is consumed here; the buffer is dropped after that.
            unsafe {
                libbpf_sys::bpf_program__set_log_buf(
                    program.as_libbpf_object().as_ptr(),
                    log.as_mut_ptr().cast(),
                    log.len() as _,
                )
            };
        }
    }
    without_signals(|| open.load()).map_err(|error| Refused {
        error: into_io(error),
        rejected: logs
            .iter()
            .map(|(program, log)| (*program, text_of(log)))
            .find(|(_, log)| !log.is_empty()),
    })
}

/// What was written into a buffer of zeroes.
fn text_of(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).map(CStr::to_string_lossy);
    text.unwrap_or_default().into_owned()
}

/// A libbpf-rs error as one of the standard library, of the same kind. It has its number where the kind is one
/// that only one number has: libbpf-rs keeps the `io::Error` that it was to itself, also as a source.
pub(crate) fn into_io(error: libbpf_rs::Error) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::OutOfMemory => return io::Error::from_raw_os_error(libc::ENOMEM),
        ErrorKind::TooBig => return io::Error::from_raw_os_error(libc::E2BIG),
        ErrorKind::WouldBlock => return io::Error::from_raw_os_error(libc::EAGAIN),
        ErrorKind::Interrupted => return io::Error::from_raw_os_error(libc::EINTR),
        ErrorKind::NotFound => io::ErrorKind::NotFound,
        ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
        ErrorKind::AlreadyExists => io::ErrorKind::AlreadyExists,
        ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
        ErrorKind::InvalidData => io::ErrorKind::InvalidData,
        ErrorKind::TimedOut => io::ErrorKind::TimedOut,
        ErrorKind::WriteZero => io::ErrorKind::WriteZero,
        ErrorKind::Unsupported => io::ErrorKind::Unsupported,
        ErrorKind::UnexpectedEof => io::ErrorKind::UnexpectedEof,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use libbpf_rs::ErrorExt;

    use super::*;

    #[test]
    fn what_the_library_decides_by_survives_libbpf_rs() {
        for errno in [
            libc::EPERM,
            libc::EACCES,
            libc::ENOSYS,
            libc::EEXIST,
            libc::ENOENT,
            libc::ENOMEM,
            libc::E2BIG,
            libc::EAGAIN,
            libc::EINTR,
        ] {
            let expected = io::Error::from_raw_os_error(errno);
            let error = libbpf_rs::Error::from_raw_os_error(errno);
            let error = into_io(error);
            assert_eq!(error.kind(), expected.kind());
            assert_eq!(error.to_string(), expected.to_string());
            let error = libbpf_rs::Error::from_raw_os_error(errno).context("while loading");
            assert_eq!(into_io(error).kind(), expected.kind());
        }
        // A text about a number is no number.
        let error = libbpf_rs::Error::from(io::Error::other("told so (os error 12)"));
        let error = into_io(error);
        assert_eq!(
            (error.raw_os_error(), error.kind()),
            (None, io::ErrorKind::Other)
        );
        assert_eq!(error.to_string(), "told so (os error 12)");
    }
}
