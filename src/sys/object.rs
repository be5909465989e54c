//! What libbpf-rs does not offer of an object: sizes of maps by their names, loading it with a log of the
//! verifier, and errors as those of the standard library.

use std::ffi::CStr;
use std::io;

use libbpf_rs::AsRawLibbpf;
use libbpf_rs::ErrorKind;
use libbpf_rs::OpenObject;
use libbpf_rs::skel::OpenSkel;
use nix::errno::Errno;
use nix::libc;

use super::signals::without_signals;

/// Bytes kept of the verifier's log. Of a longer one Linux keeps the end since 6.4, before that the beginning,
/// and the load fails with ENOSPC whatever the verifier has found. So there is room for some 100,000 lines;
/// the machine has no memory in it before the kernel writes there.
const LOG_BYTES: usize = 16 << 20;

/// Why an object did not load.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: io::Error,
    /// The program that the verifier rejected, and its log.
    pub(crate) rejected: Option<(&'static str, String)>,
}

/// How big a map of an object is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapSize {
    /// It is not made.
    Unmade,
    /// As the object says.
    Own,
    Elements(u32),
    /// Of the one value of a data section.
    Bytes(u32),
}

/// Gives the maps of an object that is not loaded yet the sizes that `of` says.
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
                "its log is longer than {} MiB, and the reason lost; here is its end, before Linux 6.4 \
                 what came first",
                LOG_BYTES >> 20
            )),
            false => error,
        };
        Self { error, rejected }
    }
}

/// What was written into a buffer of zeroes.
fn text_of(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).map(CStr::to_string_lossy);
    text.unwrap_or_default().into_owned()
}

/// A libbpf-rs error as one of the standard library, of the same kind. It has its number where the kind is one
/// that only one number has: libbpf-rs keeps the `io::Error` that it was to itself, also as a source.
/// [`numbered`] also tells two numbers that have no kind.
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

/// Calls libbpf where it may fail for want of descriptors, or of room for a log. libbpf-rs has no kind for
/// these, but libbpf leaves the number of each failure in errno. What is done with a failed call on its way here
/// frees and closes, which leaves errno alone.
pub(crate) fn numbered<T>(call: impl FnOnce() -> libbpf_rs::Result<T>) -> io::Result<T> {
    // So that no number of an earlier call is taken for one of this.
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
        // These have no kind: errno tells them, and no text.
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
            // Of an earlier call.
            errno.set();
            assert_eq!(numbered(failed).unwrap_err().raw_os_error(), None);
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

    #[test]
    fn a_log_that_is_cut_hides_the_reason() {
        let refused = |errno, log: &str| {
            let error = io::Error::from_raw_os_error(errno);
            Refused::new(error, [("other", String::new()), ("it", log.to_owned())])
        };
        let cut = refused(libc::ENOSPC, "R1 is not a pointer");
        assert_eq!(cut.rejected.map(|(program, _)| program), Some("it"));
        assert!(cut.error.to_string().contains("longer than 16 MiB"));
        // It was not about a log.
        let full = refused(libc::ENOSPC, "").error;
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        let invalid = refused(libc::EINVAL, "R1 is not a pointer").error;
        assert_eq!(invalid.raw_os_error(), Some(libc::EINVAL));
    }

    /// What `LOG_BYTES` says of this kernel.
    #[test]
    #[cfg_attr(miri, ignore = "bpf(2) is the kernel's")]
    fn a_log_without_room_fails_the_load_with_a_number_of_its_own() {
        // `r0 = 0` some times, for a long log, and `r0 = r2`, where r2 has no value.
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
            // SAFETY: the program, its length, the names and the log are what the call takes them for, and
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
