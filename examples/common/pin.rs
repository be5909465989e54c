//! The options of what outlives its program: where it is pinned, and that it is to be taken away.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use katran::Start;

use super::say;

/// Where it is pinned.
#[derive(clap::Args)]
pub(crate) struct Pin {
    /// Pin it in this directory of a BPF file system: it works on when this program ends or is killed
    #[arg(long, value_name = "DIR")]
    pin: Option<PathBuf>,
    /// Take away what is pinned with --pin, and end
    #[arg(long, requires = "pin")]
    remove: bool,
}

impl Pin {
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.pin.as_deref()
    }

    /// Takes away what is pinned, if that is what was asked for.
    pub(crate) fn removal(&self) -> Option<Result<()>> {
        let directory = self.directory().filter(|_| self.remove)?;
        let removed = katran::remove(directory);
        Some(removed.map_err(Into::into).map(|()| {
            say(format!("removed {}", directory.display()));
        }))
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
