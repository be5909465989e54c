//! Which entries of a directory its tenant has pinned there.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::CONSTANTS;
use super::MAPS;
use super::PROBES;
use super::file_name;
use crate::config::MapRow;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::sys::map;
use crate::sys::pin;
use crate::sys::pin::Kind;
use crate::sys::program;

/// Bytes of a name that the kernel keeps.
const KEPT_OF_NAME: usize = 15;

/// Maps of decapsulators and server id options.
const MAPS_OF_OTHERS: [&str; 7] = [
    "decap_counters",
    "allowed_sources",
    "allowed_destinations",
    "decap_settings",
    "server_id_counters",
    "connections",
    ".data.own",
];

/// Whether the object pinned at a path is a tenant's, by its name.
pub(super) fn is_ours(part: &str, path: &Path) -> Result<bool> {
    let failed = |error| kernel_error("inspect", &path.display().to_string(), error);
    if !path.symlink_metadata().is_ok_and(|of| of.is_file()) {
        return Ok(false);
    }
    let object = match pin::open(path) {
        Ok(object) => object,
        // Gone since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(failed(error)),
    };
    let pinned_as = path.file_name().unwrap_or_default().to_string_lossy();
    match pin::kind(object.as_fd()).map_err(failed)? {
        Some(Kind::Map) => {
            let name = map::info(object.as_fd()).map_err(failed)?.name;
            let ours = MapRow::names().chain(MAPS_OF_OTHERS);
            let mut ours = ours.filter(|of| file_name(of) == pinned_as);
            let is_constants = pinned_as == CONSTANTS && name.ends_with(".rodata");
            Ok(is_constants || ours.any(|of| is_cut(&name, of)))
        }
        Some(Kind::Program) => {
            let name = program::info(object.as_fd()).map_err(failed)?.name;
            let names: &[&str] = match part {
                PROBES => &["healthcheck"],
                MAPS => &[],
                _ => &[
                    "katran",
                    "katran_full",
                    "katran_explain",
                    "katran_explain_full",
                    "ticks",
                    "decap",
                    "decap_tc",
                    "server_id",
                ],
            };
            Ok(names.iter().any(|of| is_cut(&name, of)))
        }
        Some(Kind::Link) | None => Ok(false),
    }
}

/// Whether a program or a map is pinned at a path.
pub(super) fn is_object(path: &Path) -> Result<bool> {
    if !path.symlink_metadata().is_ok_and(|of| of.is_file()) {
        return Ok(false);
    }
    let failed = |error| kernel_error("inspect", &path.display().to_string(), error);
    let object = match pin::open(path) {
        // Gone since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        object => object.map_err(failed)?,
    };
    let kind = pin::kind(object.as_fd()).map_err(failed)?;
    Ok(matches!(kind, Some(Kind::Map | Kind::Program)))
}

/// Whether `name` is what the kernel keeps of the name `of`.
fn is_cut(name: &str, of: &str) -> bool {
    name == &of[..of.len().min(KEPT_OF_NAME)]
}
