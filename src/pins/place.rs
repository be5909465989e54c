//! Checks the place for a balancer's pins: in a BPF file system, in a directory that no other user
//! can open, change or replace.

use std::fs;
use std::fs::File;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;
use nix::unistd::geteuid;

use super::file_error;
use crate::error::Error;
use crate::error::Result;
use crate::sys::pin;

const NO_BPF_FS: &str =
    "it is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, and choose a path there";

/// The absolute path, which stays valid if the working directory changes. Follows symbolic links.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    if path.is_symlink() {
        return Err(refused(path, "it is a dangling symbolic link".to_owned()));
    }
    // It does not exist yet.
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else {
        return Err(refused(
            path,
            "it is not the path of a directory".to_owned(),
        ));
    };
    let parent = parent.canonicalize();
    let parent = parent.map_err(|error| refused(path, format!("its parent directory: {error}")))?;
    Ok(parent.join(name))
}

/// Checks, before a directory is made, that a BPF file system could have one of this path.
pub(super) fn check_name(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    let exists = path.exists();
    let place = match exists {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    match pin::is_bpf_fs(place) {
        Ok(true) if exists || !name.to_string_lossy().contains('.') => Ok(()),
        Ok(true) => Err(refused(
            path,
            "names in a BPF file system must not contain dots".to_owned(),
        )),
        Ok(false) => Err(refused(path, format!("{}: {NO_BPF_FS}", place.display()))),
        Err(error) => Err(file_error("inspect", place, error)),
    }
}

/// Opens the directory of a balancer, which no other user can write to; `None`: it is not there.
pub(super) fn open_directory(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| file_error("open", path, error))?,
    };
    check_safe(path, &file).map(|()| Some(file))
}

/// Checks that only this user can change what is in a directory.
fn check_safe(path: &Path, directory: &File) -> Result<()> {
    let failed = |error| file_error("inspect", path, error);
    // Asks about the open directory, because another one may be at the path by now.
    let is_bpf_fs = pin::is_on_bpf_fs(directory).map_err(failed)?;
    let metadata = directory.metadata().map_err(failed)?;
    let reason = if !is_bpf_fs {
        NO_BPF_FS.to_owned()
    } else if !metadata.is_dir() {
        "it is not a directory".to_owned()
    } else if metadata.st_uid() != geteuid().as_raw() {
        format!(
            "it belongs to user {}, and this process runs as user {}: choose another one, or run as that user",
            metadata.st_uid(),
            geteuid()
        )
    } else if metadata.st_mode() & 0o077 != 0 {
        format!(
            "others can open or change it (mode {:04o}): `chmod 0700` it, or choose another one",
            metadata.st_mode() & 0o7777
        )
    } else {
        return path
            .ancestors()
            .skip(1)
            .try_for_each(|above| check_above(path, above));
    };
    Err(refused(path, reason))
}

/// Checks that no other user can replace a directory, through the directory above it.
fn check_above(path: &Path, above: &Path) -> Result<()> {
    let metadata = fs::metadata(above).map_err(|error| file_error("inspect", above, error))?;
    let (user, mode) = (metadata.st_uid(), metadata.st_mode());
    if user != 0 && user != geteuid().as_raw() {
        return Err(refused(
            path,
            format!(
                "{} belongs to user {user}, who can replace it",
                above.display()
            ),
        ));
    }
    // With the sticky bit only their owner can move entries.
    if mode & 0o022 != 0 && mode & libc::S_ISVTX == 0 {
        return Err(refused(
            path,
            format!(
                "others can replace it: {} has mode {:04o}",
                above.display(),
                mode & 0o7777
            ),
        ));
    }
    Ok(())
}

pub(super) fn refused(path: &Path, reason: String) -> Error {
    Error::InvalidConfig {
        setting: "pin",
        value: path.display().to_string(),
        reason,
    }
}
