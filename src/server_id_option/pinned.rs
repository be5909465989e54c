//! A [`ServerIdOption`] that outlives its process: everything that sockets use is pinned in a
//! directory of a BPF file system.

use std::os::fd::AsFd;
use std::path::Path;

use super::ServerIdOption;
use crate::attach::CgroupLink;
use crate::attach::is_forlorn;
use crate::attach::made_for;
use crate::environment;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Start;
use crate::pins::Content;
use crate::pins::Home;
use crate::pins::MAIN;
use crate::pins::Part;
use crate::pins::Tenant;
use crate::pins::remove_if_there;

const COUNTERS: &str = "server_id_counters";
const CONNECTIONS: &str = "connections";
const OWN: &str = ".data.own";

/// # Outliving the process
impl ServerIdOption {
    /// Pins it in a directory, so that it outlives the handle and the process. It keeps writing and
    /// repeating ids until [`remove`](Self::remove) or [`katran::remove`](crate::remove).
    ///
    /// The rules for the directory are those of [`Builder::pin`](crate::Builder::pin); each option
    /// needs its own, and one process at a time owns it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if this option is pinned already, or something is pinned there (to
    /// continue with it, use [`adopt`](Self::adopt)); [`Error::InvalidConfig`] for an unsuitable
    /// directory; [`Error::Busy`]; [`Error::File`]; [`Error::Privilege`]; [`Error::Exhausted`] if
    /// the process already has 64 pinned objects; [`Error::Kernel`]. Nothing is pinned then, and
    /// the option keeps working.
    pub fn pin(&mut self, directory: impl AsRef<Path>) -> Result<()> {
        if let Some(home) = &self.home {
            return Err(Error::AlreadyExists {
                what: format!("the pins in {}", home.path().display()),
            });
        }
        let mut home = Home::claim(directory.as_ref(), Tenant::ServerIdOption)?;
        let pinned = home.fill(&self.content()).and_then(|()| {
            let mut attached = self.attachments.iter_mut();
            attached.try_for_each(|attached| attached.keep_in(home.attached()))
        });
        if let Err(error) = pinned {
            // They keep working, and end with this handle again.
            for attached in self.attachments.iter_mut() {
                if let Err(error) = attached.unpin() {
                    log::warn!("cannot remove a pin: {error}");
                }
            }
            home.give_up();
            return Err(error);
        }
        home.set_whole();
        self.home = Some(home);
        Ok(())
    }

    /// Continues with what is pinned in a directory and whose process is gone: its id, its cgroups,
    /// the ids that connections have learned, and its counters. This version's program replaces the
    /// attached one at once.
    ///
    /// A cgroup that was removed meanwhile has lost its attachment: [`cgroups`](Self::cgroups)
    /// reports it, and [`reattach`](Self::reattach) attaches again where that path exists again.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing complete is pinned there; [`Error::InvalidConfig`] if it is
    /// something else; [`Error::Busy`]; [`Error::Unsupported`] if another version of the crate uses
    /// a layout of the ids or the directory that this one cannot read (counters in another layout
    /// begin at 0); otherwise as [`server`](Self::server). The pinned program keeps working.
    pub fn adopt(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let adopted = Self::adopt_whole(directory)?;
        adopted
            .map(|(option, _)| option)
            .ok_or_else(|| Tenant::ServerIdOption.missing(directory))
    }

    /// [Adopts](Self::adopt) what is pinned in a directory; if nothing is, loads a [client's
    /// end](Self::client) and pins it there. [`set_id`](Self::set_id) makes either a server's end.
    ///
    /// # Errors
    /// Those of both, and of [`pin`](Self::pin).
    pub fn adopt_or_load(directory: impl AsRef<Path>) -> Result<(Self, Start)> {
        let directory = directory.as_ref();
        if let Some(adopted) = Self::adopt_whole(directory)? {
            return Ok(adopted);
        }
        remove_if_there(directory)?;
        let mut option = Self::client()?;
        option.pin(directory)?;
        Ok((option, Start::Loaded))
    }

    fn adopt_whole(directory: &Path) -> Result<Option<(Self, Start)>> {
        environment::check_kernel()?;
        let Some((home, age, contents)) = Home::whole(directory, Tenant::ServerIdOption, None)?
        else {
            return Ok(None);
        };
        let knows_counters = contents.knows(Part::Counters);
        if !knows_counters {
            log::warn!(
                "the counters of katran {} have another layout: counting starts at 0",
                contents.version()
            );
        }
        let mut option = Self::load_over(|name| match name != COUNTERS || knows_counters {
            true => home.set().map(name).map(Some),
            false => Ok(None),
        })?;
        // The program of an adoption that was cut off may exist as well.
        let programs = home.programs(MAIN)?;
        let programs: Vec<_> = programs.iter().map(AsFd::as_fd).collect();
        for path in home.attachments()? {
            if made_for(&path).is_some() {
                // No call ever returned it.
                home.end_leftover(&path)?;
            } else if let Some(link) = CgroupLink::kept_at(&path, &programs)? {
                option.attachments.resume_kept(link);
            } else if is_forlorn(&path) {
                home.end_leftover(&path)?;
            }
        }
        option.put_in_place(&home)?;
        home.note_version();
        option.home = Some(home);
        Ok(Some((
            option,
            Start::Adopted {
                age,
                by_version: contents.version(),
            },
        )))
    }

    /// Replaces the attached programs with this handle's.
    fn put_in_place(&mut self, home: &Home) -> Result<()> {
        home.stage_next(&self.content())?;
        let switched = (self.attachments).switch_then(self.program.as_fd(), || {
            home.commit_next().map_err(|error| (error, false))
        });
        // Programs that sockets may still meet stay pinned, so that the next owner knows them.
        if !matches!(&switched, Err((_, true))) {
            home.unstage_next();
        }
        switched.map_err(|(error, _)| error)
    }

    /// Removes it, pinned or not: detaches it, and removes its pins. If it is not pinned, dropping
    /// it does the same.
    ///
    /// # Errors
    /// As [`katran::remove`](crate::remove), which you can call to continue after an error;
    /// [`Error::Busy`] in a child made by fork(2).
    pub fn remove(mut self) -> Result<()> {
        let home = self.home.take();
        if let Some(home) = &home {
            home.begin_removal()?;
        }
        drop(self);
        home.map_or(Ok(()), |mut home| home.remove())
    }

    /// The directory in which it is pinned, if it is.
    pub fn pinned_in(&self) -> Option<&Path> {
        self.home.as_ref().map(Home::path)
    }

    fn content(&self) -> Content<'_> {
        Content {
            maps: vec![
                (COUNTERS, self.counters.as_fd()),
                (CONNECTIONS, self.connections.as_fd()),
                (OWN, self.own.as_fd()),
            ],
            programs: vec![(MAIN, self.program.as_fd())],
            probes: Vec::new(),
        }
    }
}
