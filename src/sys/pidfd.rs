//! A descriptor of a process, which becomes readable when the process has ended, before its parent
//! waits for it.

use std::io;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reports when a child has ended. Nothing else may wait for the child meanwhile, so its id is not
/// reused. Needs Linux 5.3, and a runtime.
pub(crate) fn open(child: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the call passes two numbers by value, and the kernel accesses no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
    let descriptor = match libc::c_int::try_from(descriptor) {
        // SAFETY: a descriptor that the call has just made and nothing else owns.
        Ok(descriptor) if descriptor >= 0 => unsafe { OwnedFd::from_raw_fd(descriptor) },
        _ => return Err(io::Error::last_os_error()),
    };
    // SAFETY: the `AsyncFd` owns the descriptor, which stays the same and is closed only with it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE)? })
}
