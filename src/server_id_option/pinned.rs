//! A [`ServerIdOption`] that outlives its process: all that sockets meet is pinned in a directory of a BPF file system.

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

/// Names of maps.
const COUNTERS: &str = "server_id_counters";
const CONNECTIONS: &str = "connections";
const OWN: &str = ".data.own";

impl ServerIdOption {
    /// Pins it in a directory, so that it outlives the handle and the process: what it writes and repeats it goes on
    /// writing and repeating, until [`remove`](Self::remove) or [`katran::remove`](crate::remove).
    ///
    /// The directory is one as for [`Builder::pin`](crate::Builder::pin), of its own: one process at a time has it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if it is pinned already, or something is pinned there ([`adopt`](Self::adopt) goes on with
    /// it); [`Error::InvalidConfig`] for a directory that is none of its own; [`Error::Busy`]; [`Error::File`];
    /// [`Error::Privilege`]; [`Error::Exhausted`] if the process has 64 pinned things already; [`Error::Kernel`]. Nothing is
    /// pinned then, and all works on.
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
            // They work on, and end with this again.
            for attached in self.attachments.iter_mut() {
                if let Err(error) = attached.unpin() {
                    log::warn!("a pin stays: {error}");
                }
            }
            home.give_up();
            return Err(error);
        }
        home.set_whole();
        self.home = Some(home);
        Ok(())
    }

    /// Goes on with what is pinned in a directory and whose process is gone: its id, its cgroups, what connections have
    /// learned, and its counters. The program of this version takes the place of the one that is attached, at once.
    ///
    /// A cgroup that was removed meanwhile has taken its attachment with it: [`cgroups`](Self::cgroups) says so, and
    /// [`reattach`](Self::reattach) puts it back where there is one of that path again.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing whole is pinned there; [`Error::InvalidConfig`] if it is something else;
    /// [`Error::Busy`]; [`Error::Unsupported`] if another version of the crate has pinned ids in a form that this one cannot
    /// read (counters in another form begin at 0), or arranged the directory in another way; otherwise as
    /// [`server`](Self::server). What is there works on.
    pub fn adopt(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let adopted = Self::adopt_whole(directory)?;
        adopted
            .map(|(option, _)| option)
            .ok_or_else(|| Tenant::ServerIdOption.missing(directory))
    }

    /// [Adopts](Self::adopt) what is pinned in a directory; if nothing is, loads a [client's end](Self::client) and pins it
    /// there. [`set_id`](Self::set_id) makes either a server's.
    ///
    /// # Errors
    /// As these, and as [`pin`](Self::pin).
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
                "counters of katran {} have another form: they begin at 0",
                contents.version()
            );
        }
        let mut option = Self::load_over(|name| match name != COUNTERS || knows_counters {
            true => home.set().map(name).map(Some),
            false => Ok(None),
        })?;
        // That of an adoption that was cut off may be there as well.
        let programs = home.programs(MAIN)?;
        let programs: Vec<_> = programs.iter().map(AsFd::as_fd).collect();
        for path in home.attachments()? {
            if made_for(&path).is_some() {
                // Nobody was told of it.
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

    /// Puts the program of this handle in the place of those that are attached.
    fn put_in_place(&mut self, home: &Home) -> Result<()> {
        home.stage_next(&self.content())?;
        let switched = (self.attachments).switch_then(self.program.as_fd(), || {
            home.commit_next().map_err(|error| (error, false))
        });
        // What sockets may still meet stays pinned, by which the next owner knows it.
        if !matches!(&switched, Err((_, true))) {
            home.unstage_next();
        }
        switched.map_err(|(error, _)| error)
    }

    /// Takes it away, pinned or not: from its cgroups, and all that is pinned. To drop the handle of one that is not
    /// pinned does the same.
    ///
    /// # Errors
    /// As [`katran::remove`](crate::remove), which goes on where this has ended; [`Error::Busy`] in a child made by fork(2).
    pub fn remove(mut self) -> Result<()> {
        let home = self.home.take();
        if let Some(home) = &home {
            home.begin_removal()?;
        }
        drop(self);
        home.map_or(Ok(()), |mut home| home.remove())
    }

    /// Where it is pinned, if it is.
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
