//! A decapsulator that outlives its process, and other settings for a running one: both replace
//! attached programs between two packets.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::Decap;
use super::builder::DecapBuilder;
use super::parts::COUNTERS;
use super::parts::DESTINATIONS;
use super::parts::Parts;
use super::parts::SOURCES;
use super::record;
use crate::attach::TcLink;
use crate::attach::XdpLink;
use crate::attach::made_for;
use crate::environment;
use crate::error::Result;
use crate::katran::Start;
use crate::kernel::kernel_error;
use crate::maps::PrefixTrie;
use crate::pins::Content;
use crate::pins::Home;
use crate::pins::MAIN;
use crate::pins::Part;
use crate::pins::TC_PROGRAM;
use crate::pins::Tenant;
use crate::skel::decap::types::decap_counters;
use crate::sys::map::PerCpuArray;

/// Continues with what is pinned in a directory; `None`: there is no complete decapsulator.
pub(super) fn adopt_whole(directory: &Path) -> Result<Option<(Decap, Start)>> {
    environment::check_kernel()?;
    let Some((home, age, contents)) = Home::whole(directory, Tenant::Decapsulator, None)? else {
        return Ok(None);
    };
    let set = home.set();
    let failed = |error| kernel_error("adopt", &directory.display().to_string(), error);
    let counters: Option<PerCpuArray<decap_counters>> = match contents.knows(Part::Counters) {
        true => Some(PerCpuArray::new(set.map(COUNTERS)?).map_err(failed)?),
        false => {
            log::warn!(
                "the counters of katran {} have another layout: counting starts at 0",
                contents.version()
            );
            None
        }
    };
    let [sources, destinations] =
        [SOURCES, DESTINATIONS].map(|name| PrefixTrie::new(set.map(name)?).map_err(failed));
    let settings = record::read(set.map(record::NAME)?, &sources?, &destinations?);
    let settings = settings.map_err(failed)?;
    let needs_tc = set.program(TC_PROGRAM)?.is_some();
    let counters = counters.as_ref().map(AsFd::as_fd);
    let parts = Parts::load(&settings, counters, needs_tc)?;
    let mut decap = Decap::new(settings.clone(), parts);
    decap.resume_attachments(&home)?;
    decap.home = Some(home);
    decap.put_in_place(None)?;
    decap.home.iter().for_each(Home::note_version);
    Ok(Some((
        decap,
        Start::Adopted {
            age,
            by_version: contents.version(),
        },
    )))
}

/// # Reload, and outliving the process
impl Decap {
    /// Changes the settings between two packets: to exactly those of this builder, except its
    /// [`pin`](DecapBuilder::pin), which does not apply here. Attachments stay, and counters
    /// continue. It takes the verifier some milliseconds, while the old settings apply. It does
    /// nothing if the settings are the same.
    ///
    /// If you attached [`program_fd`](Self::program_fd) yourself, attach the new one after each
    /// reload.
    ///
    /// # Errors
    /// As [`DecapBuilder::load`], and refusals of attachments:
    /// [`Error::ForeignProgram`](crate::Error::ForeignProgram) if another program has replaced this
    /// one. The old settings then apply everywhere. (If the kernel refuses to put a program back,
    /// that is logged.)
    pub fn reload(&mut self, settings: DecapBuilder) -> Result<()> {
        let settings = DecapBuilder {
            pin: None,
            ..settings
        };
        settings.check()?;
        if settings == self.settings {
            return Ok(());
        }
        let needs_tc = self.parts.tc_program.is_some();
        let next = Parts::load(&settings, Some(self.parts.counters.as_fd()), needs_tc)?;
        self.put_in_place(Some((settings, next)))
    }

    /// Removes it, pinned or not: detaches it, and removes its pins.
    /// [`katran::remove`](crate::remove) does the same without a handle; if it is not pinned, so
    /// does dropping it.
    ///
    /// # Errors
    /// As [`katran::remove`](crate::remove), which you can call to continue after an error;
    /// [`Error::Busy`](crate::Error::Busy) in a child made by fork(2).
    pub fn remove(mut self) -> Result<()> {
        let home = self.home.take();
        if let Some(home) = &home {
            home.begin_removal()?;
            // The handle reaches it where the pins alone might not.
            self.attachments.clear();
            self.tc_attachments.clear();
        }
        drop(self);
        home.map_or(Ok(()), |mut home| home.remove())
    }

    /// The directory in which it is pinned, if it is ([`DecapBuilder::pin`]).
    pub fn pinned_in(&self) -> Option<&Path> {
        self.home.as_ref().map(Home::path)
    }

    /// Pins everything in a directory, where later attachments are pinned, too.
    pub(super) fn settle_in(mut self, mut home: Home) -> Result<Self> {
        let filled = with_content(&self.settings, &self.parts, |content| home.fill(content));
        if let Err(error) = filled {
            home.give_up();
            return Err(error);
        }
        home.set_whole();
        self.home = Some(home);
        Ok(self)
    }

    fn resume_attachments(&mut self, home: &Home) -> Result<()> {
        // Programs of a reload that was cut off may exist as well.
        let (mains, filters) = (home.programs(MAIN)?, home.programs(TC_PROGRAM)?);
        let mains: Vec<_> = mains.iter().map(AsFd::as_fd).collect();
        let filters: Vec<_> = filters.iter().map(AsFd::as_fd).collect();
        for path in home.attachments()? {
            if made_for(&path).is_some() {
                // No call ever returned it.
                home.end_leftover(&path)?;
            } else if let Some(link) = XdpLink::kept_at(&path, &mains)? {
                self.attachments.resume(link);
            } else {
                match TcLink::kept_at(&path, &filters) {
                    Ok(Some(link)) => self.tc_attachments.resume(link),
                    Ok(None) => {}
                    // Its network namespace is gone.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        home.end_leftover(&path)?;
                    }
                    Err(error) => {
                        let path = path.display().to_string();
                        return Err(kernel_error("adopt", &path, error));
                    }
                }
            }
        }
        self.attachments.forget_succeeded();
        self.tc_attachments.forget_succeeded();
        Ok(())
    }

    /// Replaces the attached programs: with others, for other settings, or with those of this
    /// handle.
    fn put_in_place(&mut self, other: Option<(DecapBuilder, Parts)>) -> Result<()> {
        let (settings, next) = match &other {
            Some((settings, next)) => (settings, next),
            None => (&self.settings, &self.parts),
        };
        if let Some(home) = &self.home {
            with_content(settings, next, |content| home.stage_next(content))?;
        }
        let commit = || {
            let committed = self.home.as_ref().map_or(Ok(()), Home::commit_next);
            committed.map_err(|error| (error, false))
        };
        let switched =
            (self.attachments).switch_then(next.program.as_fd(), || match &next.tc_program {
                Some(program) => self.tc_attachments.switch_then(program.as_fd(), commit),
                None => commit(),
            });
        let is_left = matches!(&switched, Err((_, true)));
        if let Some(home) = &self.home
            // Programs that packets may still meet stay pinned, so that the next owner knows them.
            && !is_left
        {
            home.unstage_next();
        }
        switched.map_err(|(error, _)| error)?;
        if let Some((settings, next)) = other {
            (self.settings, self.parts) = (settings, next);
        }
        Ok(())
    }
}

/// Passes on everything to pin.
fn with_content<T>(
    settings: &DecapBuilder,
    parts: &Parts,
    pin: impl FnOnce(&Content<'_>) -> Result<T>,
) -> Result<T> {
    let record = record::write(settings);
    let record = record.map_err(|error| kernel_error("record", "the settings", error))?;
    let mut programs = vec![(MAIN, parts.program.as_fd())];
    programs.extend(
        parts
            .tc_program
            .iter()
            .map(|program| (TC_PROGRAM, program.as_fd())),
    );
    pin(&Content {
        maps: vec![
            (COUNTERS, parts.counters.as_fd()),
            (SOURCES, parts.sources.as_fd()),
            (DESTINATIONS, parts.destinations.as_fd()),
            (record::NAME, record.as_fd()),
        ],
        programs,
        probes: Vec::new(),
    })
}
