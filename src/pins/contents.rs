//! A set's description of itself: which version made it, and what its maps mean, so that another
//! version knows whether it can adopt them.

use std::io;
use std::path::Path;

use super::layout::PARTS;
use super::layout::Part;
use super::tenant::Tenant;
use super::words::Words;
use super::words::with_version;

/// "katran", and the form of this map.
const MAGIC: u64 = u64::from_be_bytes(*b"katrans\x01");
/// The map's name, as the kernel keeps it.
const NAME: &str = "katran_contents";
/// Words: magic, layout, the layout of each part, and the version's text.
const AT_LAYOUT: usize = 1;
const AT_PARTS: usize = 2;
const AT_VERSION: usize = AT_PARTS + PARTS;

/// The description of one set.
pub(crate) struct Contents {
    words: Words,
    tenant: Tenant,
}

impl Contents {
    pub(super) fn pin(path: &Path, tenant: Tenant) -> io::Result<()> {
        let [a, b, c, d, e, f] = tenant.parts();
        let fixed: [u64; AT_VERSION] = [MAGIC, tenant.layout(), a, b, c, d, e, f];
        Words::pin(path, NAME, with_version(fixed)).map(drop)
    }

    /// The description that is pinned at a path; `None` if there is none.
    pub(super) fn open(path: &Path, tenant: Tenant) -> io::Result<Option<Self>> {
        let words = Words::open(path, NAME, MAGIC)?;
        Ok(words.map(|words| Self { words, tenant }))
    }

    pub(crate) fn layout(&self) -> u64 {
        self.words.get(AT_LAYOUT)
    }

    /// Whether programs of this version can use all of it.
    pub(crate) fn is_known(&self) -> bool {
        self.layout() == self.tenant.layout()
    }

    /// Whether maps of this part mean the same in this version.
    pub(crate) fn knows(&self, part: Part) -> bool {
        let own = self.tenant.parts()[part as usize];
        self.is_known() || self.words.get(AT_PARTS + part as usize) == own
    }

    /// The version of the crate that made the set.
    pub(crate) fn version(&self) -> String {
        self.words.text(AT_VERSION)
    }
}
