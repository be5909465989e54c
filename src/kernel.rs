//! Kernel calls that may fail: counted, and turned into errors that name the operation.
//!
//! The only place where an errno becomes an error of the crate. It asks `environment` what is
//! missing: privileges or memory.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use libbpf_rs::OpenObject;
use libbpf_rs::skel::SkelBuilder;
use nix::libc;

use crate::environment;
use crate::environment::Available;
use crate::error::Error;
use crate::error::OPEN_FILES;
use crate::sys::object::Refused;
use crate::sys::object::numbered;
use crate::sys::program;
use crate::sys::tenure::Tenure;

/// Lines of the verifier's log that an error shows.
const LOG_LINES: usize = 30;

/// Counts failed kernel calls and makes errors of them.
#[derive(Debug, Default)]
pub(crate) struct KernelCalls {
    failed: AtomicU64,
    tenure: Arc<Tenure>,
}

impl KernelCalls {
    /// Calls for a balancer of this process.
    pub(crate) fn new(tenure: Arc<Tenure>) -> Self {
        Self {
            failed: AtomicU64::new(0),
            tenure,
        }
    }

    /// The number of calls that have failed since the balancer was loaded.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Turns the result of a kernel call into one of the crate. A result read from a balancer that
    /// was handed over meanwhile may concern other VIPs.
    pub(crate) fn check<T>(
        &self,
        operation: &'static str,
        object: &str,
        result: io::Result<T>,
    ) -> Result<T, Error> {
        self.tenure.check()?;
        result.map_err(|source| {
            self.failed.fetch_add(1, Ordering::Relaxed);
            log::warn!("cannot {operation} {object}: {source}");
            kernel_error(operation, object, source)
        })
    }
}

/// Opens an object: its settings can be made, and nothing of it is in the kernel yet.
pub(crate) fn open<'object, B: SkelBuilder<'object>>(
    builder: B,
    storage: &'object mut MaybeUninit<OpenObject>,
) -> Result<B::Output, Error> {
    numbered(|| builder.open(storage))
        .map_err(|error| kernel_error("open", "the BPF object", error))
}

/// The error for an object that could not be loaded; with the verifier's log, if there is one.
pub(crate) fn load_error(object: &'static str, refused: Refused) -> Error {
    // There is a log as well if memory or a descriptor was missing during or after verification.
    let missing = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    let errno = refused.error.raw_os_error();
    let to_blame = errno.is_none_or(|errno| !missing.contains(&errno));
    match refused.rejected {
        Some(_) if to_blame && environment::is_unprivileged() => Error::Privilege {
            operation: format!("load {object}"),
            missing: environment::missing_capabilities(),
        },
        Some((program, log)) if to_blame => Error::Verifier {
            program,
            log: last_lines(&log),
            errno: refused.error,
        },
        _ => kernel_error("load", object, refused.error),
    }
}

/// The part of the verifier's log that an error shows.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// The constants of an object's programs, to be set before it is loaded.
///
/// # Errors
/// [`Error::Unsupported`] if it has none: with all settings at their defaults it would not do what
/// it should.
pub(crate) fn constants<'object, T>(
    object: &str,
    constants: Option<&'object mut T>,
) -> Result<&'object mut T, Error> {
    constants.ok_or_else(|| Error::Unsupported {
        what: format!("the BPF object {object} without constants"),
        reason: "this crate's build script did not build it: build the crate again",
    })
}

/// The error for a refused kernel call.
pub(crate) fn kernel_error(operation: &'static str, object: &str, errno: io::Error) -> Error {
    if let Some(limit) = environment::exhausted_descriptors(&errno) {
        return Error::Exhausted {
            what: OPEN_FILES,
            limit,
        };
    }
    if errno.raw_os_error() == Some(libc::ENOMEM) {
        let available = environment::available_memory().unwrap_or_default();
        return out_of_memory(format!("the call to {operation} {object}"), 0, &available);
    }
    match errno.kind() {
        io::ErrorKind::PermissionDenied => Error::Privilege {
            operation: format!("{operation} {object}"),
            missing: environment::missing_capabilities(),
        },
        io::ErrorKind::Unsupported if is_no_bpf(&errno) => Error::BpfUnavailable,
        _ => Error::Kernel {
            operation,
            object: object.to_owned(),
            errno,
        },
    }
}

/// Whether the system call itself is missing, and not something that it was asked for.
fn is_no_bpf(errno: &io::Error) -> bool {
    match errno.raw_os_error() {
        Some(errno) => errno == libc::ENOSYS,
        None => !program::has_bpf(),
    }
}

/// The error for a map that the kernel refused to make.
pub(crate) fn map_error(name: &str, needed: u64, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::E2BIG) => {
            let available = environment::available_memory().unwrap_or_default();
            out_of_memory(format!("the map {name}"), needed, &available)
        }
        _ => kernel_error("make the map", name, error),
    }
}

/// The error for lack of memory.
pub(crate) fn out_of_memory(what: String, needed: u64, available: &Available) -> Error {
    Error::InsufficientMemory {
        what,
        needed,
        available: available.bytes,
        limited_by: available.limited_by.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_without_constants_is_refused() {
        let mut there = 1_u32;
        *constants("decap", Some(&mut there)).unwrap() = 2;
        assert_eq!(there, 2);
        let refused = constants::<u32>("decap", None).unwrap_err();
        assert!(matches!(&refused, Error::Unsupported { what, .. } if what.contains("decap")));
    }

    #[test]
    fn a_log_is_shown_if_the_verifier_spoke() {
        let log: Vec<String> = (0..100).map(|line| line.to_string()).collect();
        let refused = |rejected| Refused {
            error: io::Error::from_raw_os_error(libc::EINVAL),
            rejected,
        };
        let error = load_error("decap", refused(Some(("decap", log.join("\n")))));
        let Error::Verifier { program, log, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((program, log.lines().count()), ("decap", LOG_LINES));
        assert!(log.ends_with("\n99"));
        let error = load_error("decap", refused(None));
        assert!(matches!(
            error,
            Error::Kernel {
                operation: "load",
                ..
            }
        ));
    }

    /// There is a log, and the error names what was missing.
    #[test]
    #[cfg_attr(miri, ignore = "limits are the kernel's")]
    fn the_verifier_is_not_to_blame_for_what_is_missing() {
        let error = |errno| {
            let rejected = Some(("balancer", "processed 9 insns".to_owned()));
            let error = io::Error::from_raw_os_error(errno);
            load_error("katran", Refused { error, rejected })
        };
        assert!(matches!(
            error(libc::EMFILE),
            Error::Exhausted {
                what: OPEN_FILES,
                ..
            }
        ));
        assert!(error(libc::ENFILE).to_string().contains("fs.file-max"));
        let memory = error(libc::ENOMEM);
        assert!(
            matches!(&memory, Error::InsufficientMemory { what, needed: 0, .. } if what == "the call to load katran")
        );
        assert!(matches!(
            error(libc::EINVAL),
            Error::Verifier { .. } | Error::Privilege { .. }
        ));
    }

    #[test]
    fn only_a_missing_call_is_no_bpf() {
        let of = |errno| kernel_error("make", "it", io::Error::from_raw_os_error(errno));
        assert!(matches!(of(libc::ENOSYS), Error::BpfUnavailable));
        assert!(matches!(of(libc::EOPNOTSUPP), Error::Kernel { .. }));
        // Without its number the kernel is asked, and this one has the call.
        let error = io::Error::from(io::ErrorKind::Unsupported);
        assert!(matches!(
            kernel_error("make", "it", error),
            Error::Kernel { .. }
        ));
    }
}
