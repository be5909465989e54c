//! What is in a directory that is open, whatever paths lead there, or none: in a chroot without `/proc`, say.

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

/// Opens a directory inside, or with `.` the same one anew; `None`: there is none of that name.
pub(crate) fn open(directory: &File, name: &str) -> io::Result<Option<File>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(opened) => Ok(Some(opened.into())),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The same directory, opened anew: a lock belongs to what was opened.
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

/// Whether what has a name inside is what was opened.
pub(crate) fn is_present(directory: &File, name: &str, opened: &File) -> io::Result<bool> {
    let ours = fstat(opened)?;
    let present = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    Ok(present.is_ok_and(|of| (of.st_dev, of.st_ino) == (ours.st_dev, ours.st_ino)))
}
