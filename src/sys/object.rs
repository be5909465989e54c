//! What libbpf-rs does not offer of an opened object.

use std::ffi::CStr;

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
