//! A private BPF file system that vanishes with the threads that see it.

use std::io;
use std::path::PathBuf;

use nix::mount::MsFlags;
use nix::mount::mount;
use nix::sched::CloneFlags;
use nix::sched::unshare;

/// Gives the calling thread, and those that it starts later (so call it before making a
/// [`Host`](crate::Host)), a private BPF file system, and returns its directory. It vanishes with
/// the last of these threads, even if they are killed.
///
/// # Errors
///
/// Those of the kernel; needs root.
pub fn private_bpf_fs() -> io::Result<PathBuf> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Keeps the mount below private.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let directory = "/sys/fs/bpf";
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), NONE)?;
    Ok(directory.into())
}
