//! BPF objects in a BPF file system: pinning, and opening what is pinned.

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use nix::sys::statfs::FsType;
use nix::sys::statfs::fstatfs;
use nix::sys::statfs::statfs;

use super::check;
use super::fdinfo::FdInfo;

/// Magic number of a BPF file system (linux/magic.h).
const BPF_FS_MAGIC: libc::__fsword_t = 0xcafe_4a11;

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Pins an object at a path that does not exist yet.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the borrow keeps the object's descriptor open; the kernel reads the path, which
    // `c_path` ends with a zero, and which outlives the call.
    check(unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// Opens a pinned object.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: the kernel reads the path, which `c_path` ends with a zero, and which outlives the
    // call.
    let fd = check(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })?;
    // SAFETY: a descriptor that the call has just made and nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a directory is on a BPF file system.
pub(crate) fn is_bpf_fs(directory: &Path) -> io::Result<bool> {
    Ok(statfs(directory)?.filesystem_type() == FsType(BPF_FS_MAGIC))
}

/// Whether an open directory is.
pub(crate) fn is_on_bpf_fs(directory: &File) -> io::Result<bool> {
    Ok(fstatfs(directory)?.filesystem_type() == FsType(BPF_FS_MAGIC))
}

/// The type of a pinned object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Map,
    Program,
    Link,
}

/// The type of an object; `None`: the kernel does not say.
pub(crate) fn kind(object: BorrowedFd<'_>) -> io::Result<Option<Kind>> {
    let info = FdInfo::of(object)?;
    let kinds = [
        ("link_type", Kind::Link),
        ("map_type", Kind::Map),
        ("prog_type", Kind::Program),
    ];
    let kind = kinds
        .into_iter()
        .find(|(field, _)| info.text(field).is_some());
    Ok(kind.map(|(_, kind)| kind))
}

/// Pins an object at a path, replacing what is pinned there, atomically: at any moment one of the
/// two is pinned. `meanwhile` is a path beside it that nothing else uses.
pub(crate) fn replace(object: BorrowedFd<'_>, path: &Path, meanwhile: &Path) -> io::Result<()> {
    remove(meanwhile)?;
    pin(object, meanwhile)?;
    fs::rename(meanwhile, path).inspect_err(|_| {
        if let Err(error) = remove(meanwhile) {
            log::warn!("cannot remove {}: {error}", meanwhile.display());
        }
    })
}

/// Removes a pin, if there is one.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Exchanges the names of two directories, atomically.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let (one, other) = (c_path(one)?, c_path(other)?);
    // SAFETY: the kernel reads both paths, which `c_path` ends with a zero, and which outlive the
    // call; the other arguments are numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
