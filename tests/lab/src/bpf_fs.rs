//! A BPF file system that nobody else sees, and that vanishes with those who do.

use std::io;
use std::path::PathBuf;

use nix::mount::MsFlags;
use nix::mount::mount;
use nix::sched::CloneFlags;
use nix::sched::unshare;

/// Gives the calling thread, and those that it starts from now on (so call it before a
/// [`Host`](crate::Host) is made), a BPF file system of its own, and returns its directory. It is gone
/// when the last of them is, even if they are killed.
///
/// # Errors
///
/// What the kernel says; it takes root.
pub fn private_bpf_fs() -> io::Result<PathBuf> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // So that the mount below stays in here.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let directory = "/sys/fs/bpf";
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), NONE)?;
    Ok(directory.into())
}
