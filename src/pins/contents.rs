//! What a set of pins says of itself: which version has made it, and what its maps mean, so that another version knows
//! whether it can go on with them.

use std::io;
use std::path::Path;

use super::words::Words;
use super::words::with_version;
use crate::sys::pin;

/// What programs and maps of a balancer's set mean. Count it up whenever a program of another version of the crate could not go on
/// with what this one has pinned.
pub(crate) const LAYOUT: u64 = 2;

/// "katran", and the form of this map.
const MAGIC: u64 = u64::from_be_bytes(*b"katrans\x01");
/// The map's name, as the kernel keeps it.
const NAME: &str = "katran_contents";
/// Words: magic, layout, and the version's text.
const AT_LAYOUT: usize = 1;
const AT_VERSION: usize = 8;

/// What one set says.
pub(crate) struct Contents(Words);

impl Contents {
    pub(super) fn pin(path: &Path, layout: u64) -> io::Result<Self> {
        let fixed: [u64; AT_VERSION] = [MAGIC, layout, 0, 0, 0, 0, 0, 0];
        Words::pin(path, NAME, with_version(fixed)).map(Self)
    }

    /// What is pinned at a path; `None` if nothing is, or something else.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        Ok(Words::open(path, NAME, MAGIC)?.map(Self))
    }

    /// Takes the pin away, if it is one.
    pub(super) fn remove(path: &Path) -> io::Result<()> {
        match Self::open(path)? {
            Some(_) => pin::remove(path),
            None => Ok(()),
        }
    }

    pub(crate) fn layout(&self) -> u64 {
        self.0.get(AT_LAYOUT)
    }

    /// The version of the crate that has made the set.
    pub(crate) fn version(&self) -> String {
        self.0.text(AT_VERSION)
    }
}
