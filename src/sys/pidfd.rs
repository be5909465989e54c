//! A descriptor of a process: it becomes readable when the process has ended, and before it is waited for.

use std::io;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when a child has ended that nobody waits for meanwhile: its number is nobody else's. Needs Linux 5.3, and a runtime.
pub(crate) fn open(child: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the call takes two numbers, and no memory.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
    let descriptor = match libc::c_int::try_from(descriptor) {
        // SAFETY: the kernel has just made it, and nobody else knows of it.
        Ok(descriptor) if descriptor >= 0 => unsafe { OwnedFd::from_raw_fd(descriptor) },
        _ => return Err(io::Error::last_os_error()),
    };
    // SAFETY: it is the same descriptor as long as it lives, and closed only then.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE)? })
}
