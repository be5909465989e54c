//! What libbpf-rs lacks for objects: map sizes by name, loading with a log of the verifier, and
//! standard-library errors.

use std::ffi::CStr;
use std::io;

use libbpf_rs::AsRawLibbpf;
use libbpf_rs::ErrorKind;
use libbpf_rs::OpenObject;
use libbpf_rs::skel::OpenSkel;
use nix::errno::Errno;
use nix::libc;

use super::signals::without_signals;

/// Bytes kept of the verifier's log. Since 6.4 Linux keeps the end of a longer one; before that it
/// keeps the beginning, and the load fails with ENOSPC whatever the verifier found. So there is
/// room for some 100,000 lines, which take no memory until the kernel writes them.
const LOG_BYTES: usize = 16 << 20;

/// Why an object did not load.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: io::Error,
    /// The program that the verifier rejected, and its log.
    pub(crate) rejected: Option<(&'static str, String)>,
}

/// The size of an object's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapSize {
    /// The map is not made.
    Unmade,
    /// As declared in the object.
    Own,
    Elements(u32),
    /// Of a data section's one value.
    Bytes(u32),
}

/// Sets the map sizes of an object that is not loaded yet, by `of`.
pub(crate) fn size_maps(
    object: &mut OpenObject,
    of: impl Fn(&str) -> MapSize,
) -> libbpf_rs::Result<()> {
    for mut map in object.maps_mut() {
        match of(&map.name().to_string_lossy()) {
            MapSize::Unmade => map.set_autocreate(false)?,
            MapSize::Own => {}
            MapSize::Elements(elements) => map.set_max_entries(elements)?,
            MapSize::Bytes(bytes) => map.set_value_size(bytes)?,
        }
    }
    Ok(())
}

/// Loads an object, with a verifier log for each of these programs.
///
/// The logs are owned here, so they live until the load has ended.
pub(crate) fn load<'object, O: OpenSkel<'object>>(
    mut open: O,
    programs: &[&'static str],
) -> Result<O::Output, Refused> {
    let with_log = programs.iter().map(|name| (*name, vec![0_u8; LOG_BYTES]));
    let mut logs: Vec<_> = with_log.collect();
    for program in open.open_object_mut().progs_mut() {
        let mut logs = logs.iter_mut();
        if let Some((_, log)) = logs.find(|(name, _)| program.name() == *name) {
            // SAFETY: libbpf writes into the buffer, whose length is given, only while it loads the
            // object. That happens below or never, because `open` is consumed here; the buffer is
            // dropped after that.
            unsafe {
                libbpf_sys::bpf_program__set_log_buf(
                    program.as_libbpf_object().as_ptr(),
                    log.as_mut_ptr().cast(),
                    log.len() as _,
                )
            };
        }
    }
    without_signals(|| numbered(|| open.load())).map_err(|error| {
        let texts = logs.iter().map(|(program, log)| (*program, text_of(log)));
        Refused::new(error, texts)
    })
}

impl Refused {
    fn new(error: io::Error, logs: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let rejected = logs.into_iter().find(|(_, log)| !log.is_empty());
        let is_cut = error.raw_os_error() == Some(libc::ENOSPC) && rejected.is_some();
        let error = match is_cut {
            true => io::Error::other(format!(
                "its log is longer than {} MiB, so the reason is lost; here is its end (before Linux \
                 6.4: its beginning)",
                LOG_BYTES >> 20
            )),
            false => error,
        };
        Self { error, rejected }
    }
}

/// The text at the beginning of a zeroed buffer.
fn text_of(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).map(CStr::to_string_lossy);
    text.unwrap_or_default().into_owned()
}

/// A libbpf-rs error as a standard-library error of the same kind. It has an errno if its kind
/// implies just one: libbpf-rs keeps the original `io::Error` private, even as a source.
/// [`numbered`] also recovers two errnos that have no kind.
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
        _ => return io::Error::other(error),
    };
    io::Error::new(kind, error)
}

/// Calls libbpf where it may run out of descriptors, or of room for a log. libbpf-rs has no kind
/// for these errors, but libbpf leaves the errno of each failure in errno, and the frees and closes
/// between there and here do not change it.
pub(crate) fn numbered<T>(call: impl FnOnce() -> libbpf_rs::Result<T>) -> io::Result<T> {
    // So that an earlier call's errno is not taken for this one's.
    Errno::clear();
    let result = call();
    let left = Errno::last();
    result.map_err(|error| match (error.kind(), left) {
        (ErrorKind::Other, Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC) => left.into(),
        _ => into_io(error),
    })
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
        // These have no kind: errno identifies them, not their text.
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOSPC] {
            let failed = || {
                let error = libbpf_rs::Error::from_raw_os_error(errno as i32);
                Err::<(), _>(error.context("while loading"))
            };
            let told = numbered(|| {
                errno.set();
                failed()
            });
            assert_eq!(told.unwrap_err().raw_os_error(), Some(errno as i32));
            // From an earlier call.
            errno.set();
            assert_eq!(numbered(failed).unwrap_err().raw_os_error(), None);
        }
        // A text that mentions an errno is not one.
        let error = libbpf_rs::Error::from(io::Error::other("told so (os error 12)"));
        let error = into_io(error);
        assert_eq!(
            (error.raw_os_error(), error.kind()),
            (None, io::ErrorKind::Other)
        );
        assert_eq!(error.to_string(), "told so (os error 12)");
    }

    #[test]
    fn a_log_that_is_cut_hides_the_reason() {
        let refused = |errno, log: &str| {
            let error = io::Error::from_raw_os_error(errno);
            Refused::new(error, [("other", String::new()), ("it", log.to_owned())])
        };
        let cut = refused(libc::ENOSPC, "R1 is not a pointer");
        assert_eq!(cut.rejected.map(|(program, _)| program), Some("it"));
        assert!(cut.error.to_string().contains("longer than 16 MiB"));
        // Without a log it was about something else.
        let full = refused(libc::ENOSPC, "").error;
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        let invalid = refused(libc::EINVAL, "R1 is not a pointer").error;
        assert_eq!(invalid.raw_os_error(), Some(libc::EINVAL));
    }

    /// The claim of `LOG_BYTES` about this kernel.
    #[test]
    #[cfg_attr(miri, ignore = "bpf(2) is the kernel's")]
    fn a_log_without_room_fails_the_load_with_a_number_of_its_own() {
        // `r0 = 0` several times, for a long log, then `r0 = r2`, where r2 has no value.
        let of = |code, dst, src| {
            let mut instruction = libbpf_sys::bpf_insn {
                code,
                ..Default::default()
            };
            instruction.set_dst_reg(dst);
            instruction.set_src_reg(src);
            instruction
        };
        // BPF_ALU64 | BPF_MOV | BPF_K, BPF_ALU64 | BPF_MOV | BPF_X, BPF_JMP | BPF_EXIT.
        let mut program = vec![of(0xb7, 0, 0); 50];
        program.extend([of(0xbf, 0, 2), of(0x95, 0, 0)]);
        let load = |size: usize| {
            let mut log = vec![0_u8; size];
            let mut options = libbpf_sys::bpf_prog_load_opts {
                sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as _,
                log_level: 1,
                log_size: size as u32,
                log_buf: log.as_mut_ptr().cast(),
                ..Default::default()
            };
            // SAFETY: the program, its length, the names and the log are what the call expects, and
            // outlive it.
            let loaded = crate::sys::check(unsafe {
                libbpf_sys::bpf_prog_load(
                    libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER,
                    std::ptr::null(),
                    c"GPL".as_ptr(),
                    program.as_ptr(),
                    program.len() as _,
                    &mut options,
                )
            });
            (loaded.unwrap_err().raw_os_error(), text_of(&log))
        };
        let (errno, log) = load(1 << 16);
        assert_eq!(errno, Some(libc::EACCES), "{log}");
        assert!(log.contains("R2 !read_ok"), "{log}");
        let (errno, cut) = load(512);
        assert_eq!(errno, Some(libc::ENOSPC), "{cut}");
        let keeps_end = crate::sys::release::is_at_least((6, 4));
        assert_eq!(cut.contains("R2 !read_ok"), keeps_end, "{cut}");
    }
}
