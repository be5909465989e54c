//! The pins beside a root program's array: its parts and its attachments.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::libc;

use super::PASSED;
use super::PROGRAM;
use crate::attach::beside;
use crate::attach::files_beside;
use crate::attach::given_up;
use crate::attach::made_for;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::link::Link;
use crate::sys::link::PinnedXdp;
use crate::sys::map;
use crate::sys::pin;
use crate::sys::program;
/// How long to wait for an attachment that another process is making, which takes two system calls.
const MOMENT: Duration = Duration::from_millis(500);

/// The pins beside an array, once no attachment of this program is being made any more, or its
/// maker has had enough time.
pub(super) fn files_when_made(path: &Path, program: &OwnedFd) -> Result<Vec<(PathBuf, String)>> {
    let begun = Instant::now();
    loop {
        let files = files_beside(path).map_err(|error| unlisted(path, error))?;
        let is_being_made = |pin: &Path| {
            made_for(pin).is_some()
                && given_up(pin) != pin
                && attachment_of(pin, program).is_ok_and(|of| of.is_some())
        };
        if begun.elapsed() > MOMENT || !files.iter().any(|(pin, _)| is_being_made(pin)) {
            return Ok(files);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Ends an attachment whose process was killed while pinning it, before any call returned it. A
/// live process has pinned it earlier, or fails to.
pub(super) fn end_unfinished(pin: &Path, program: &OwnedFd) -> io::Result<()> {
    if attachment_of(pin, program)?.is_none() {
        return Ok(());
    }
    let moved = given_up(pin);
    match fs::rename(pin, &moved) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    match attachment_of(&moved, program)? {
        Some(attachment) => {
            drop(Link::from(attachment));
            pin::remove(&moved)
        }
        None => Ok(()),
    }
}

/// The attachment of a program that a pin keeps, if it does.
fn attachment_of(pin: &Path, program: &OwnedFd) -> io::Result<Option<PinnedXdp>> {
    let attachment = match PinnedXdp::open(pin) {
        // Removed since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let own = program::info(program.as_fd())?.id;
    Ok(attachment.filter(|of| of.program == own))
}

pub(super) fn unpin(paths: &[PathBuf]) {
    for path in paths {
        if let Err(error) = pin::remove(path) {
            log::error!("cannot unpin {}: {error}", path.display());
        }
    }
}

/// The pins beside an array that belong to its root program: the program and its map.
pub(super) fn own_parts(path: &Path, array: u32) -> Result<Vec<PathBuf>> {
    let [program, passed] = [PROGRAM, PASSED].map(|name| beside(path, name));
    let failed = |path: &Path, error| kernel_error("inspect", &path.display().to_string(), error);
    let open = |path: &Path, wanted| {
        let object = match pin::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let is_wanted = pin::kind(object.as_fd())? == Some(wanted);
        Ok(is_wanted.then_some(object))
    };
    let mut found = Vec::new();
    let opened = open(&program, pin::Kind::Program).map_err(|error| failed(&program, error))?;
    if let Some(opened) = opened {
        let maps = program::maps(opened.as_fd()).map_err(|error| failed(&program, error))?;
        if maps.contains(&array) {
            found.push(program);
        }
    }
    let opened = open(&passed, pin::Kind::Map).map_err(|error| failed(&passed, error))?;
    if let Some(opened) = opened {
        let info = map::info(opened.as_fd()).map_err(|error| failed(&passed, error))?;
        if info.name == PASSED {
            found.push(passed);
        }
    }
    Ok(found)
}

/// The pinned attachments of the root program that uses the array of this number, pinned at `path`.
pub(super) fn pinned_attachments(path: &Path, array: u32) -> Result<Vec<(PathBuf, PinnedXdp)>> {
    let mut found = Vec::new();
    for (pin, _) in files_beside(path).map_err(|error| unlisted(path, error))? {
        let text = pin.display().to_string();
        let attachment = match PinnedXdp::open(&pin) {
            Ok(Some(attachment)) => attachment,
            Ok(None) => continue,
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(kernel_error("open", &text, error)),
        };
        let maps = program::by_id(attachment.program).and_then(|fd| program::maps(fd.as_fd()));
        let maps = maps.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => Error::Privilege {
                operation: format!("identify the program of {text}"),
                missing: "CAP_SYS_ADMIN".to_owned(),
            },
            _ => kernel_error("identify the program of", &text, error),
        })?;
        if maps.contains(&array) {
            found.push((pin, attachment));
        }
    }
    Ok(found)
}

pub(super) fn unpinned(path: &Path, error: io::Error) -> Error {
    Error::File {
        operation: "remove",
        path: path.to_owned(),
        error,
    }
}

pub(super) fn unlisted(path: &Path, error: io::Error) -> Error {
    Error::File {
        operation: "list the files beside",
        path: path.to_owned(),
        error,
    }
}
