//! The only unsafe code of this crate: a hook that runs between `fork` and `exec`.
//!
//! The hook ties a child's life to the thread that started it. All else the crate asks of the
//! kernel has a safe wrapper in `nix` or the standard library.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getpid;
use nix::unistd::getppid;

/// Has the kernel kill the child with SIGKILL when the thread that starts it ends.
///
/// The child of a process that died before the kernel knew of the wish fails to start.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    let hook = move || -> io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes two system calls, both async-signal-safe, and
    // neither allocates, locks nor panics: its errors are plain numbers.
    unsafe { command.pre_exec(hook) };
}
