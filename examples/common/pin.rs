//! Options for pinning, which lets something outlive its program.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use katran::Start;

use super::say;

/// Where to pin.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Pin {
    /// Pin everything in this directory of a BPF file system, so that it keeps working after this
    /// program ends
    #[arg(long, value_name = "DIR")]
    pin: Option<PathBuf>,
}

impl Pin {
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.pin.as_deref()
    }

    /// Removes what is pinned. The parser requires the directory.
    pub(crate) fn remove(&self) -> Result<()> {
        remove(self.directory().unwrap_or(Path::new("")))
    }

    /// Reports whether something pinned was adopted.
    pub(crate) fn report(&self, what: &str, start: &Start) {
        if let (
            Some(directory),
            Start::Adopted {
                age, by_version, ..
            },
        ) = (self.directory(), start)
        {
            say(format!(
                "continuing with the {what} in {}, loaded {} s ago by version {by_version}",
                directory.display(),
                age.as_secs()
            ));
        }
    }

    /// Reports that it stays when the program ends; `false` if it does not.
    pub(crate) fn leaves(&self, doing: &str) -> bool {
        let Some(directory) = self.directory() else {
            return false;
        };
        say(format!(
            "{doing} continues without this program: pinned in {}",
            directory.display()
        ));
        true
    }
}

/// Removes what is pinned in a directory.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    katran::remove(directory)?;
    say(format!("removed {}", directory.display()));
    Ok(())
}
