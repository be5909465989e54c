//! Sharing an interface with other XDP programs.

use std::path::Path;
use std::path::PathBuf;

use super::Katran;
use crate::error::Result;

/// The names of the programs that a balancer attaches.
const NAMES: [&str; 2] = ["katran", "katran_full"];

impl Katran {
    /// Puts the program into an entry of a pinned program array, which a root program on an interface
    /// walks (see [`RootProgram`](crate::RootProgram)); the usual position is 2.
    ///
    /// An entry that holds a balancer's program is taken over between two packets: that of a process
    /// that has died, as entries stay, or of one that is to be replaced. Then flows stay with their reals
    /// as far as rings are the same; tables and counters are the new balancer's.
    ///
    /// To see whose program is in an entry takes `CAP_SYS_ADMIN`; without it every program there is a foreign
    /// one.
    ///
    /// What the program hands packets on to is pinned beside the array, as `PATH_POSITION_NUMBER`, so
    /// that it works on without its process. Dropping the balancer empties the entry and removes that,
    /// unless another has taken it over.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if nothing is pinned at the path;
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if it is no program array, there is no such
    /// position, or `frags` is not the setting of the root program;
    /// [`Error::ForeignEntry`](crate::Error::ForeignEntry) if another program is there, which is left
    /// alone; [`Error::AlreadyExists`](crate::Error::AlreadyExists) if this balancer has an entry of that
    /// array; [`Error::NoNextHop`](crate::Error::NoNextHop); [`Error::Kernel`](crate::Error::Kernel).
    #[doc(alias = "rootMapPath")]
    pub fn attach_shared(&mut self, map_path: impl AsRef<Path>, position: u32) -> Result<()> {
        self.follow_next_hops()?;
        let path = map_path.as_ref();
        let attached = self
            .shared
            .attach(self.programs.entry_set(), &NAMES, path, position);
        self.note_attached();
        attached?;
        if let Err(error) = self.route_healthchecks() {
            // It was attached a moment ago.
            let _ = self.shared.detach(path);
            self.note_attached();
            return Err(error);
        }
        Ok(())
    }

    /// Empties the entry that this balancer has in the array at a path.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if it has none.
    pub fn detach_shared(&mut self, map_path: impl AsRef<Path>) -> Result<()> {
        self.shared.detach(map_path.as_ref())?;
        if let Err(error) = self.route_healthchecks() {
            log::warn!("health checks leave by no interface: {error}");
        }
        self.note_attached();
        Ok(())
    }

    /// The arrays in which this balancer has an entry, and its position.
    pub fn shared_entries(&self) -> Vec<(PathBuf, u32)> {
        let entries = self.shared.list();
        entries
            .map(|(path, position)| (path.to_owned(), position))
            .collect()
    }

    /// Whether packets reach the program by an attachment of the library's.
    pub(super) fn is_attached(&self) -> bool {
        self.attachments.list().next().is_some() || !self.shared.is_empty()
    }
}
