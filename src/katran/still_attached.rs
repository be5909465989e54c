//! For the next owner: the attachments that pins kept while the balancer was an orphan, and those
//! lost meanwhile.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;

use super::Katran;
use crate::attach::Attached;
use crate::attach::AttachmentState;
use crate::attach::Entry;
use crate::attach::SharedEntry;
use crate::attach::TcLink;
use crate::attach::XdpLink;
use crate::attach::end_kept;
use crate::attach::made_for;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::pins::Entrance;
use crate::pins::Home;
use crate::sys::pin;

/// The record of an array entry that is not where it was.
pub(super) struct LostEntry {
    record: PathBuf,
    path: PathBuf,
    position: u32,
}

impl Katran {
    pub(super) fn resume_attachments(&mut self, home: &Home) -> Result<Vec<LostEntry>> {
        let mut lost = Vec::new();
        // Programs of a reload or a replacement that was cut off may exist as well.
        let mut entrances = home.set().entrances()?;
        entrances.extend(home.next_set().entrances()?);
        let mains: Vec<_> = entrances.iter().map(|of| of.main.as_fd()).collect();
        let sets: Vec<_> = entrances.iter().map(Entrance::entry_set).collect();
        let probes = [home.set().probe(), home.next_set().probe()];
        let probes = probes.into_iter().filter_map(|probe| probe.ok().flatten());
        let probes: Vec<_> = probes.collect();
        let probes: Vec<_> = probes.iter().map(AsFd::as_fd).collect();
        let (mut links, mut paths) = (Vec::new(), Vec::new());
        for record in home.attachments()? {
            if made_for(&record).is_some() {
                // No call ever returned it.
                end_kept(&record, &sets, &[])?;
                continue;
            }
            if let Some(link) = XdpLink::kept_at(&record, &mains)? {
                links.push(link);
            } else if let Some(entry) = Entry::kept_at(&record, &sets)? {
                self.shared.resume(entry);
            } else if let Some((path, position)) = Entry::recorded_at(&record) {
                lost.push(LostEntry {
                    record,
                    path,
                    position,
                });
            } else {
                let failed = |error| kernel_error("adopt", &record.display().to_string(), error);
                match TcLink::kept_at(&record, &probes) {
                    Ok(Some(link)) => paths.push(link),
                    Ok(None) => {}
                    // Its network namespace is gone.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        end_kept(&record, &sets, &[])?;
                    }
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        // The first one decides where next hops are followed, and by which interface probes leave.
        links.sort_by_key(XdpLink::order);
        for link in links {
            self.attachments.resume(link);
        }
        self.attachments.forget_succeeded();
        let mains = self.attachments.places();
        for mut link in paths {
            match &mut self.healthchecks {
                Some(checks) if checks.is_asked(&link) => checks.resume_link(link, &mains),
                // From a replacement that was cut off, perhaps one that would have added health
                // checks.
                _ => link.detach()?,
            }
        }
        Ok(lost)
    }

    /// Attaches again what was lost while the balancer was an orphan, where possible. A missing
    /// piece is no reason to give up the rest.
    pub(super) fn put_back_what_is_gone(&mut self, lost: Vec<LostEntry>) {
        self.lost = lost;
        self.put_back_entries(LostEntry::tell);
        let gone = |katran: &Self| {
            let interfaces = katran.interfaces().into_iter();
            let mut gone: Vec<_> = interfaces.map(|of| (of.interface, of.state)).collect();
            let probes = katran.probes().attachment();
            gone.extend(probes.map(|of| (format!("{} (probes)", of.interface), of.state)));
            gone.retain(|(_, state)| *state == AttachmentState::Gone);
            gone
        };
        let before = gone(self);
        if before.is_empty() {
            return;
        }
        if let Err(error) = self.reattach() {
            log::error!(
                "cannot restore an attachment that was lost while the balancer had no owner: \
                 {error}"
            );
        }
        let after = gone(self);
        for of in before {
            match after.contains(&of) {
                false => log::warn!("{} was removed and made again: attached to it", of.0),
                true => log::error!("{} was removed: reattach when it exists again", of.0),
            }
        }
    }

    /// Puts back entries whose arrays are not where they were, if another array is; calls `told`
    /// with each and its failure.
    pub(super) fn put_back_entries(&mut self, mut told: impl FnMut(&LostEntry, Option<Error>)) {
        for lost in mem::take(&mut self.lost) {
            let put = self.put_back_entry(&lost).err();
            let is_lost = put.is_some();
            told(&lost, put);
            if is_lost {
                self.lost.push(lost);
            }
        }
    }

    fn put_back_entry(&mut self, lost: &LostEntry) -> Result<()> {
        // The record, too, is this process's for that time.
        let _call = self.call()?;
        match self.put_back_shared(&lost.path, lost.position) {
            // There may be another record of it.
            Err(Error::AlreadyExists { .. }) => {}
            put => put?,
        }
        if let Err(error) = lost.forget() {
            log::warn!("{error}");
        }
        Ok(())
    }

    /// Whether an entry of the array at a path (as recorded: absolute) was lost; nothing looks for
    /// it from now on.
    ///
    /// # Errors
    /// If its record stays: the next owner would look for it.
    pub(super) fn forget_lost(&mut self, path: &Path) -> Result<bool> {
        let found = self.lost.iter().position(|lost| lost.path == path);
        let Some(found) = found else {
            return Ok(false);
        };
        self.lost[found].forget()?;
        self.lost.remove(found);
        Ok(true)
    }
}

impl LostEntry {
    fn forget(&self) -> Result<()> {
        let removed = pin::remove(&self.record);
        removed.map_err(|error| kernel_error("forget", &self.record.display().to_string(), error))
    }

    pub(super) fn entry(&self) -> SharedEntry {
        SharedEntry {
            path: self.path.clone(),
            position: self.position,
            state: AttachmentState::Gone,
        }
    }

    /// Logs what the adoption did with the entry.
    fn tell(&self, error: Option<Error>) {
        let (place, position) = (self.path.display(), self.position);
        match error {
            None => {
                log::warn!("{place} is another array by now: set its entry {position}");
            }
            Some(Error::NotFound { .. }) => log::error!(
                "{place}, whose entry {position} the balancer had, is no longer pinned: reattach \
                 when it is"
            ),
            Some(Error::ForeignEntry { program_id, .. }) => log::error!(
                "{place} is another array by now, and its entry {position} holds program \
                {program_id}: attach to it again to replace a balancer, or choose another position"
            ),
            Some(error) => log::error!("cannot set entry {position} of {place} again: {error}"),
        }
    }
}
