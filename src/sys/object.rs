//! What libbpf-rs does not offer of an opened object.

use std::ffi::CStr;
use std::io;

use libbpf_rs::AsRawLibbpf;
use libbpf_rs::OpenProgramMut;

/// Bytes kept of the verifier's log; the kernel keeps the end.
const LOG_BYTES: usize = 1 << 20;

/// Receives the verifier's log of one program. It has to outlive the load.
pub(crate) struct VerifierLog {
    buffer: Vec<u8>,
}

impl VerifierLog {
    /// A log for `program`; libbpf fills it if the kernel rejects the program.
    pub(crate) fn of(program: &mut OpenProgramMut<'_>) -> Self {
        let mut buffer = vec![0; LOG_BYTES];
        // SAFETY: the buffer's heap memory stays where it is when the vector moves, and the
        // caller keeps it beyond the load, as the type's documentation demands.
        unsafe {
            libbpf_sys::bpf_program__set_log_buf(
                program.as_libbpf_object().as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len() as _,
            )
        };
        Self { buffer }
    }

    /// The log's last `lines` lines; empty if the program was not rejected.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = CStr::from_bytes_until_nul(&self.buffer)
            .map(CStr::to_string_lossy)
            .unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// The errno of a libbpf-rs error. It keeps the `io::Error` to itself, also as a source, and tells
/// only some kinds apart; its text, however, is that of the `io::Error`, which names the errno.
pub(crate) fn into_io(error: libbpf_rs::Error) -> io::Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = source {
        if let Some(errno) = errno_in(&inner.to_string()) {
            return io::Error::from_raw_os_error(errno);
        }
        source = inner.source();
    }
    io::Error::other(error.to_string())
}

/// The number in `... (os error 12)`.
fn errno_in(text: &str) -> Option<i32> {
    let (_, rest) = text.rsplit_once("(os error ")?;
    rest.strip_suffix(')')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn an_errno_survives_libbpf_rs() {
        use libbpf_rs::ErrorExt;
        for errno in [
            libc::EPERM,
            libc::ENOSYS,
            libc::ENOMEM,
            libc::EBUSY,
            libc::ENOSPC,
        ] {
            let error = libbpf_rs::Error::from_raw_os_error(errno);
            assert_eq!(into_io(error).raw_os_error(), Some(errno));
            let error = libbpf_rs::Error::from_raw_os_error(errno).context("while (os error)");
            assert_eq!(into_io(error).raw_os_error(), Some(errno));
        }
        let error = libbpf_rs::Error::from(io::Error::other("no number"));
        assert_eq!(into_io(error).raw_os_error(), None);
    }
}
