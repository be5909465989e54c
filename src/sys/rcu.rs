//! Waiting until no packet can still see what was just taken out of use.

use std::io;

use nix::libc;

/// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits for a grace period of RCU: every run of the program that had begun before the call has
/// ended when it returns. Takes milliseconds.
///
/// membarrier(2) documents a barrier on all running threads; the kernel carries it out by
/// `synchronize_rcu()` (Linux, kernel/sched/membarrier.c), and a program's run is one RCU read
/// section (Linux, Documentation/RCU). A kernel booted with `nohz_full` refuses the command.
pub(crate) fn grace_period() -> io::Result<()> {
    // SAFETY: takes numbers only and changes no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        let errno = io::Error::last_os_error();
        Err(match errno.raw_os_error() {
            // Not bpf(2): its absence must not be reported as that of BPF.
            Some(libc::ENOSYS | libc::EINVAL) => io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel refuses membarrier(2) (booted with nohz_full?)",
            ),
            _ => errno,
        })
    } else {
        Ok(())
    }
}
