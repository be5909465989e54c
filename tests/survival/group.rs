//! A memory cgroup for the balancer's owners: what it still accounts after they are gone is pinned.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process;

use crate::common::cgroup::Place;

pub(crate) struct Group(PathBuf);

impl Group {
    /// Makes one; the error says why it cannot.
    pub(crate) fn new() -> Result<Self, String> {
        let place = Place::of(Path::new("/"))?;
        let path = place
            .parent
            .join(format!("katran-survival-{}", process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Accounted bytes, without what the kernel can reclaim at any time.
    pub(crate) fn in_use(&self) -> u64 {
        // Make the kernel reclaim first, where possible.
        for file in ["memory.force_empty", "memory.reclaim"] {
            let _ = fs::write(self.0.join(file), "1G");
        }
        let read = |file: &str| fs::read_to_string(self.0.join(file));
        let all = read("memory.usage_in_bytes").or_else(|_| read("memory.current"));
        all.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            // Not a panic: the test itself may be failing.
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
