//! Kernel calls that may fail: counted, and turned into errors that say what was tried.
//!
//! The only place where an errno becomes an error of the crate. What is missing, privileges or memory, it asks
//! `environment`.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use nix::libc;

use crate::environment;
use crate::error::Error;
use crate::sys::object::VerifierLog;

/// Lines of the verifier's log that an error shows.
pub(crate) const LOG_LINES: usize = 30;

/// Counts failed kernel calls and makes errors of them.
#[derive(Debug, Default)]
pub(crate) struct KernelCalls {
    failed: AtomicU64,
}

impl KernelCalls {
    /// How many calls have failed since the balancer was loaded.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Turns the result of a kernel call into one of the crate.
    pub(crate) fn check<T>(
        &self,
        operation: &'static str,
        object: &str,
        result: io::Result<T>,
    ) -> Result<T, Error> {
        result.map_err(|source| {
            self.failed.fetch_add(1, Ordering::Relaxed);
            log::warn!("{operation} ({object}): {source}");
            kernel_error(operation, object, source)
        })
    }
}

/// The error for a program that could not be loaded; with the verifier's log, if it spoke.
pub(crate) fn program_error(program: &'static str, log: &VerifierLog, errno: io::Error) -> Error {
    match log.tail(LOG_LINES) {
        log if log.is_empty() || environment::is_unprivileged(&errno) => {
            kernel_error("load", program, errno)
        }
        log => Error::Verifier {
            program,
            log,
            errno,
        },
    }
}

/// The error for a refused kernel call.
pub(crate) fn kernel_error(operation: &'static str, object: &str, errno: io::Error) -> Error {
    match errno.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::Privilege {
            operation,
            missing: environment::missing_capabilities(),
        },
        Some(libc::ENOSYS) => Error::BpfUnavailable,
        _ => Error::Kernel {
            operation,
            object: object.to_owned(),
            errno,
        },
    }
}

/// The error for a map that the kernel refused to make.
pub(crate) fn map_error(name: &str, needed: u64, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::E2BIG) => Error::InsufficientMemory {
            what: format!("map {name}"),
            needed,
            available: environment::available_memory().unwrap_or(0),
        },
        _ => kernel_error("make the map", name, error),
    }
}
