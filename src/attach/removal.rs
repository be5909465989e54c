//! Ends pinned attachments by what their pins say, for a directory whose process is gone.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::cgroup::end_kept_cgroup;
use super::entry::Entry;
use super::entry::EntrySet;
use super::kept::PinName;
use super::kept::made_for;
use super::list::Attached;
use super::tc::TcLink;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::link::Link;
use crate::sys::pin;

/// Ends the attachment that the pin at a path keeps, and removes the pin; `false` if it is not
/// ours. An entry's program must be one of `sets`, else the entry stays; a filter's is one of
/// `filters`, or the one pinned for it.
pub(crate) fn end_kept(
    path: &Path,
    sets: &[EntrySet<'_>],
    filters: &[BorrowedFd<'_>],
) -> Result<bool> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kind = name.split('_').next().unwrap_or_default();
    let failed = |error| kernel_error("detach", &path.display().to_string(), error);
    let unpin = || {
        let removed = pin::remove(path);
        removed.map(|()| true).map_err(|error| Error::File {
            operation: "remove",
            path: path.to_owned(),
            error,
        })
    };
    let unreached = || {
        log::warn!(
            "{}: this process cannot reach the attachment, if it still exists",
            path.display()
        );
        unpin()
    };
    let made_for = made_for(path);
    let is_made = made_for.is_none();
    let named = made_for.as_deref().unwrap_or(path);
    let is_named = |words| PinName::is(kind, words, named);
    let is_link = match kind {
        "xdp" => is_named(3),
        _ => is_named(1),
    };
    match kind {
        "xdp" | "tcx" if is_link => match Link::kept_at(path) {
            Ok(Some(mut link)) => {
                link.keep_no_more().map_err(failed)?;
                // Dropping it detaches it at once, not when the kernel gets to it.
                Ok(true)
            }
            Ok(None) => Ok(false),
            // It went away after it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(failed(error)),
        },
        "clsact" if !is_made && is_named(4) => unpin(),
        "clsact" if is_made => match TcLink::kept_at(path, filters) {
            Ok(Some(mut filter)) => filter.detach().map(|()| true),
            Ok(None) => Ok(false),
            // It went with its network namespace, or cannot be reached.
            Err(error) if error.kind() == io::ErrorKind::NotFound => unreached(),
            Err(error) => Err(failed(error)),
        },
        "entry" if !is_made && Entry::is_record(named) => unpin(),
        "entry" if is_made && Entry::is_record(path) => match Entry::kept_at(path, sets)? {
            Some(mut entry) => entry.detach().map(|()| true),
            // Its array is gone, or pinned elsewhere.
            None => unreached(),
        },
        "cgroup" | "path" => end_kept_cgroup(path, named).map_err(failed),
        _ => Ok(false),
    }
}
