//! A balancer that outlives its process: all that packets see is pinned in a directory of a BPF
//! file system, and dropping the handle leaves it there.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::Katran;
use super::handles::FeatureMaps;
use super::object::Programs;
use crate::config::Features;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::kernel::kernel_error;
use crate::pins::CLOCK;
use crate::pins::CONSTANTS;
use crate::pins::Content;
use crate::pins::EXPLAINER;
use crate::pins::Home;
use crate::pins::MAIN;
use crate::pins::Objects;
use crate::pins::PinnedSet;
use crate::pins::SPECIAL;
use crate::sys::ticks::ticks;

/// # Outliving the process
impl Katran {
    /// Removes the balancer, pinned or not: from interfaces, from entries of root programs, and its
    /// pins. [`remove`](crate::remove) does the same without a handle; for a balancer that is not
    /// pinned, so does dropping it. It blocks for some 30 ms, in which the kernel waits for packets
    /// under way at each interface.
    ///
    /// # Errors
    /// As [`remove`](crate::remove), which you can call to continue after an error. [`Error::Busy`]
    /// in a child made by fork(2): the balancer is its parent's.
    pub fn remove(mut self) -> Result<()> {
        if let Some(home) = &self.home {
            home.check_owner()?;
        }
        let _call = self.call()?;
        let home = self.home.take();
        if let Some(home) = &home {
            home.begin_removal()?;
            // The handle reaches it where the pins alone might not.
            self.attachments.clear();
            self.shared.clear();
            if let Some(checks) = &mut self.healthchecks {
                checks.detach();
            }
        }
        // Ends its threads and frees what is not pinned.
        drop(self);
        home.map_or(Ok(()), |mut home| {
            home.end_tenure();
            home.remove()
        })
    }

    /// The directory in which the balancer is pinned, if it is
    /// ([`Builder::pin`](crate::Builder::pin)).
    pub fn pinned_in(&self) -> Option<&Path> {
        self.home.as_ref().map(Home::path)
    }

    /// Everything to pin, except the ledger.
    pub(super) fn content(&self) -> Content<'_> {
        let checks = self.healthchecks.as_ref();
        Content {
            maps: self.maps.named_always(),
            programs: objects(&self.programs, self.maps.features.named()),
            probes: checks.map(HealthChecks::objects).unwrap_or_default(),
        }
    }

    /// Pins everything in a directory, where later attachments are pinned, too.
    pub(super) fn settle_in(&mut self, mut home: Home) -> Result<()> {
        home.keep_tenure(self.maps.live.tenure());
        if let Err(error) = self.check_clock() {
            home.give_up();
            return Err(error);
        }
        home.fill(&self.content())?;
        let ground = home.set().new_ground();
        let ground = ground.map_err(|error| kernel_error("make", "the ledger", error));
        if let Err(error) = ground.and_then(|ground| self.keep(ground)) {
            home.give_up();
            return Err(error);
        }
        home.set_whole();
        if let Some(checks) = &mut self.healthchecks {
            checks.keep_in(home.attached());
        }
        self.home = Some(home);
        let kept = self.keep_house();
        if kept.is_err()
            && let Some(home) = self.home.take()
        {
            home.give_up();
        }
        kept
    }

    /// Checks that signs of life use the same clock as packets, if packets depend on them.
    pub(super) fn check_clock(&self) -> Result<()> {
        if self.config.orphan_limit.is_zero() {
            return Ok(());
        }
        let tick = self.fixed.tick;
        // Packets' 64 bits, cut to what the program can return.
        let ahead = self.ticks_now()?.wrapping_sub(ticks(tick) as u32) as i32;
        match Duration::from_secs(1) > tick * ahead.unsigned_abs() {
            true => Ok(()),
            false => Err(Error::Unsupported {
                what: "orphan_limit on this kernel".to_owned(),
                reason: "times(2) does not count the ticks that BPF programs read: leave \
                         orphan_limit out",
            }),
        }
    }

    /// Pins a reload's programs, and the maps of its features, beside the current ones.
    pub(super) fn stage(
        &self,
        programs: &Programs,
        made: &FeatureMaps,
        features: Features,
    ) -> Result<()> {
        let Some(home) = &self.home else {
            return Ok(());
        };
        home.check_there()?;
        let mut maps = made.named();
        for (name, map) in self.maps.features.named_of(features) {
            if maps.iter().all(|(of, _)| *of != name) {
                maps.push((name, map));
            }
        }
        home.set().stage_programs(&objects(programs, maps))
    }

    /// Removes the pins of programs that packets no longer meet, or never did.
    pub(super) fn unstage(&self) {
        let home = self.home.as_ref();
        let unstaged = home.map_or(Ok(()), |home| home.set().unstage_programs());
        if let Err(error) = unstaged {
            log::warn!("cannot remove the pins of other programs until the next reload: {error}");
        }
    }
}

impl Programs {
    pub(super) fn pinned_in(set: &PinnedSet) -> Result<Self> {
        let open = |name: &str| {
            let program = set.program(name)?;
            program.ok_or_else(|| set.missing(name))
        };
        Ok(Self {
            main: open(MAIN)?,
            explainer: open(EXPLAINER)?,
            clock: open(CLOCK)?,
            special: open(SPECIAL)?,
            constants: set.program(CONSTANTS)?,
            lives_by: None,
        })
    }
}

fn objects<'a>(programs: &'a Programs, maps: Objects<'a>) -> Objects<'a> {
    let mut objects = vec![
        (MAIN, programs.main.as_fd()),
        (EXPLAINER, programs.explainer.as_fd()),
        (CLOCK, programs.clock.as_fd()),
        (SPECIAL, programs.special.as_fd()),
    ];
    let constants = programs.constants.as_ref();
    objects.extend(constants.map(|constants| (CONSTANTS, constants.as_fd())));
    objects.extend(maps);
    objects
}
