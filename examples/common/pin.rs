//! The options of what outlives its program: where it is pinned, and that it is to be taken away.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use katran::Start;

use super::say;

/// Where it is pinned.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Pin {
    /// Pin it in this directory of a BPF file system: it works on when this program ends or is killed
    #[arg(long, value_name = "DIR")]
    pin: Option<PathBuf>,
}

impl Pin {
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.pin.as_deref()
    }

    /// Takes away what is pinned. The parser has refused to go on without a place.
    pub(crate) fn remove(&self) -> Result<()> {
        remove(self.directory().unwrap_or(Path::new("")))
    }

    /// Says whether what is pinned was there; `what` it is.
    pub(crate) fn report(&self, what: &str, start: &Start) {
        if let (
            Some(directory),
            Start::Adopted {
                age, by_version, ..
            },
        ) = (self.directory(), start)
        {
            say(format!(
                "goes on with the {what} in {}, loaded {} s ago by version {by_version}",
                directory.display(),
                age.as_secs()
            ));
        }
    }

    /// Says what becomes of it when the program ends; `false`: it ends, too.
    pub(crate) fn leaves(&self, doing: &str) -> bool {
        let Some(directory) = self.directory() else {
            return false;
        };
        say(format!(
            "{doing} on without this program: pinned in {}",
            directory.display()
        ));
        true
    }
}

/// Takes away what is pinned in a directory.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    katran::remove(directory)?;
    say(format!("removed {}", directory.display()));
    Ok(())
}
