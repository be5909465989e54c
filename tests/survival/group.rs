//! A memory cgroup that owners of the balancer are in: what is accounted to it when they are gone is what is pinned.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process;

use crate::common::cgroup::Place;

pub(crate) struct Group(PathBuf);

impl Group {
    /// Makes one; the error says why there can be none.
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

    /// Bytes that are accounted, but for what the kernel can give back at any time.
    pub(crate) fn in_use(&self) -> u64 {
        // What it can give back goes first, where it can be told to.
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
            // The test itself may be about to fail.
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
