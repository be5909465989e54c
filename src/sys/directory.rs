//! Entries of an open directory, whatever path leads there, if any: also in a chroot without
//! `/proc`.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::fcntl::OFlag;
use nix::fcntl::openat;
use nix::sys::stat::Mode;
use nix::sys::stat::fstat;
use nix::sys::stat::fstatat;
use nix::sys::stat::mkdirat;
use nix::unistd::UnlinkatFlags;
use nix::unistd::unlinkat;

/// Opens a directory inside; `.` opens the same one again. `None`: there is none with that name.
pub(crate) fn open(directory: &File, name: &str) -> io::Result<Option<File>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(opened) => Ok(Some(opened.into())),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens the same directory again, because a lock belongs to one opening of it.
pub(crate) fn again(directory: &File) -> io::Result<File> {
    open(directory, ".")?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Makes a directory inside, unless it is there.
pub(crate) fn make(directory: &File, name: &str, mode: u32) -> io::Result<()> {
    match mkdirat(directory, name, Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a directory inside, if it is there.
pub(crate) fn remove(directory: &File, name: &str) -> io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the entry with this name is what was opened.
pub(crate) fn is_present(directory: &File, name: &str, opened: &File) -> io::Result<bool> {
    let ours = fstat(opened)?;
    let present = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    Ok(present.is_ok_and(|of| (of.st_dev, of.st_ino) == (ours.st_dev, ours.st_ino)))
}
