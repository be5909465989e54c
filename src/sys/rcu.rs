//! Waits until no packet can still see what was just taken out of use.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;

use super::map::Spec;
use super::map::create;
use super::nested::MapArray;
use super::nested::create_outer;

/// Commands of linux/membarrier.h.
const MEMBARRIER_CMD_QUERY: libc::c_int = 0;
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// A way to wait for an RCU grace period. A program's run is one RCU read section (Linux,
/// Documentation/RCU).
#[derive(Debug)]
pub(crate) enum GracePeriod {
    /// By membarrier(2). It documents a barrier on all running threads; with more than one CPU
    /// online the kernel implements it by `synchronize_rcu()` (Linux, kernel/sched/membarrier.c).
    Membarrier,
    /// By an array of maps: when an element is replaced, the kernel waits until no program can hold
    /// the old one (Linux, kernel/bpf/syscall.c, `maybe_wait_bpf_programs`).
    Map { outer: MapArray, inner: OwnedFd },
}

impl GracePeriod {
    /// By membarrier(2) if possible: a kernel booted with `nohz_full` refuses it, and with one CPU
    /// it does not wait.
    pub(crate) fn new() -> io::Result<Self> {
        let commands = membarrier(MEMBARRIER_CMD_QUERY).unwrap_or(0);
        let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
        match commands & MEMBARRIER_CMD_GLOBAL != 0 && online.unwrap_or(1) > 1 {
            true => Ok(Self::Membarrier),
            false => Self::by_map(),
        }
    }

    /// By an array of maps.
    pub(crate) fn by_map() -> io::Result<Self> {
        let inner = create(&Spec {
            kind: libbpf_sys::BPF_MAP_TYPE_ARRAY,
            name: "grace_inner",
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            flags: 0,
            numa_node: None,
        })?;
        let outer = create_outer("grace_period", 1, inner.as_fd())?;
        Ok(Self::Map { outer, inner })
    }

    /// Waits for a grace period: when this returns, every run of the program that had begun before
    /// the call has ended. Takes milliseconds.
    pub(crate) fn wait(&self) -> io::Result<()> {
        match self {
            Self::Membarrier => membarrier(MEMBARRIER_CMD_GLOBAL).map(drop),
            Self::Map { outer, inner } => outer.set(&[(0, inner.as_fd())]),
        }
    }
}

fn membarrier(command: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the call passes numbers by value, and the kernel accesses no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result >= 0 {
        return Ok(result as libc::c_int);
    }
    let errno = io::Error::last_os_error();
    Err(match errno.raw_os_error() {
        // Say that this is not bpf(2), so that its refusal is not reported as one of BPF.
        Some(libc::ENOSYS | libc::EINVAL | libc::EPERM) => io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel no longer allows membarrier(2) (a seccomp filter?)",
        ),
        _ => errno,
    })
}
