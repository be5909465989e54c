//! The health-check path of a replacement: other settings, the same tables, and counters that
//! continue.

use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use super::HealthChecks;
use super::Hops;
use super::tables::map_name;
use super::tables::probe_real;
use super::tables::vip_key;
use crate::attach::OnInterface;
use crate::attach::Place;
use crate::attach::Switched;
use crate::attach::TcLink;
use crate::config::Config;
use crate::config::Machine;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::MatchBy;
use crate::kernel::KernelCalls;
use crate::kernel::kernel_error;
use crate::maps::match_key;

/// Maps that packets write, whatever the settings: they serve two programs at once.
const SHARED: [&str; 2] = ["probe_totals", "probe_flows"];

impl HealthChecks {
    /// Loads another program with everything that this one knows, and attaches nothing.
    ///
    /// # Errors
    /// [`Error::Exhausted`] and [`Error::InUse`] if the settings do not have room for everything;
    /// otherwise as [`load`](Self::load).
    pub(crate) fn successor(
        &self,
        machine: &Machine<'_>,
        before: &Config,
        kernel: &KernelCalls,
        hops: &Hops<'_>,
    ) -> Result<Self> {
        let same_vips = before.max_vips == machine.config.max_vips;
        let mut new = Self::load_over(machine, |name| {
            let is_shared = SHARED.contains(&name) || same_vips && name == "probe_counters";
            let mut named = self.maps.named().filter(|(of, _)| *of == name && is_shared);
            let map = named.next().map(|(_, map)| map.try_clone_to_owned());
            map.transpose()
                .map_err(|error| kernel_error("reuse the map", name, error))
        })?;
        new.keep_in.clone_from(&self.keep_in);
        new.limits.check("marks", self.marks.len())?;
        for (mark, real) in &self.marks {
            new.use_way(kernel, hops, *real)?;
            let written = new.maps.marks.update(mark, &probe_real(*real));
            kernel.check("map a mark in", "marks", written)?;
            new.marks.insert(*mark, *real);
        }
        for by in [MatchBy::Destination, MatchBy::Source] {
            let known = self.matches(by);
            new.limits.check("matches", known.len())?;
            for (address, real) in known {
                new.use_way(kernel, hops, *real)?;
                let map = new.maps.matches(by);
                let written = map.update(&match_key(*address), &probe_real(*real));
                kernel.check("match probes in", map_name(by), written)?;
            }
            new.matches[by as usize].clone_from(known);
        }
        new.count_matches();
        new.limits.check("probes", self.keys.len())?;
        for (vip, number) in &self.keys {
            if !new.free.remove(number) {
                return Err(Error::InUse {
                    what: format!("max_vips above {number}"),
                    by: "the number of a probe: unregister it, and register it again afterwards",
                });
            }
            let written = new.maps.keys.update(&vip_key(vip), number);
            kernel.check("register a probe in", "probe_keys", written)?;
            new.keys.insert(*vip, *number);
        }
        new.maps.cells.take_over(&self.maps.cells);
        new.way = self.way;
        new.tell_way();
        Ok(new)
    }

    /// Whether a program of these settings can replace this one where it is attached.
    pub(crate) fn stays_in_place(&self, config: &Config) -> bool {
        (&self.interface, self.priority, self.hook)
            == (
                &config.healthcheck_interface,
                config.healthcheck_priority,
                config.healthcheck_hook,
            )
    }

    /// Whether an attachment is what the settings ask for, by the name that the interface had then.
    pub(crate) fn is_asked(&self, link: &TcLink) -> bool {
        let named = Some(&link.target().name) == self.interface.as_ref();
        named && link.is_as(self.hook, self.priority)
    }

    pub(crate) fn switch(
        &mut self,
        program: BorrowedFd<'_>,
    ) -> std::result::Result<Switched<TcLink>, (Error, bool)> {
        self.attachments.switch(program)
    }

    pub(crate) fn switch_to_own(&mut self) -> std::result::Result<Switched<TcLink>, (Error, bool)> {
        self.attachments.switch(self.program.as_fd())
    }

    /// The same, with a step after it, as
    /// [`Attachments::switch_then`](crate::attach::Attachments::switch_then).
    pub(crate) fn switch_to_own_then<T>(
        &mut self,
        then: impl FnOnce() -> std::result::Result<T, (Error, bool)>,
    ) -> std::result::Result<T, (Error, bool)> {
        (self.attachments).switch_then(self.program.as_fd(), then)
    }

    /// Gives another program to the attachments, with a step after it.
    pub(crate) fn switch_then<T>(
        &mut self,
        program: BorrowedFd<'_>,
        then: impl FnOnce() -> std::result::Result<T, (Error, bool)>,
    ) -> std::result::Result<T, (Error, bool)> {
        self.attachments.switch_then(program, then)
    }

    /// Takes over the attachments of the one that it has replaced.
    pub(crate) fn succeed(&mut self, before: &mut Self, mains: &[Place]) {
        self.attachments = mem::take(&mut before.attachments);
        self.requests = before.requests.take();
        if let Err(error) = self.route(mains) {
            log::warn!(
                "health checks may leave through an interface without the balancer: {error}"
            );
        }
    }
}
