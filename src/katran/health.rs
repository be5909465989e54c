//! The health-check path: marks, matches and counters.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::Katran;
use super::change::Left;
use super::change::Prepared;
use super::change::Written;
use super::remember::only;
use crate::config::LiveSetting;
use crate::counters::HealthcheckCounters;
use crate::document::ProbeMatch;
use crate::document::ProbeMatchState;
use crate::document::State;
use crate::error::Error;
use crate::error::Result;
use crate::healthcheck::HealthChecks;
use crate::healthcheck::Hops;
use crate::healthcheck::Limits;
use crate::healthcheck::MatchBy;
use crate::kernel::KernelCalls;
use crate::ledger::Change;
use crate::ledger::StoredMatch;
use crate::table::Step;
use crate::types::ByFamily;
use crate::types::Family;
use crate::types::Vip;
use crate::types::check_mark;
use crate::types::check_real;

/// The health-check path: [`Katran::probes`].
///
/// ```no_run
/// # fn example(katran: &katran::Katran) -> katran::Result<()> {
/// for (mark, real) in katran.probes().marks() {
///     println!("sockets with mark {mark} reach {real}");
/// }
/// println!("{:?}", katran.probes().counters()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct Probes<'a> {
    pub(super) katran: &'a Katran,
}

/// # Marks, matches and counters
impl<'a> Probes<'a> {
    /// All marks with their reals, ascending.
    #[doc(alias = "getHealthcheckersDst")]
    pub fn marks(&self) -> Vec<(u32, IpAddr)> {
        let checks = self.katran.healthchecks.iter();
        let marks = checks.flat_map(|checks| checks.marks());
        marks.map(|(mark, real)| (*mark, *real)).collect()
    }

    /// All matches by destination, ascending.
    pub fn destination_matches(&self) -> Vec<(SocketAddr, IpAddr)> {
        self.matches(MatchBy::Destination)
    }

    /// All matches by source, ascending.
    pub fn source_matches(&self) -> Vec<(SocketAddr, IpAddr)> {
        self.matches(MatchBy::Source)
    }

    /// The address, port and protocol of each registered counter, ascending.
    #[doc(alias = "getHcKeys")]
    pub fn list(&self) -> Vec<Vip> {
        let checks = self.katran.healthchecks.iter();
        checks.flat_map(HealthChecks::keys).collect()
    }

    /// The probes sent to an address, port and protocol since it was registered.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not registered; [`Error::Kernel`].
    #[doc(alias = "getPacketsProcessedForHcKey")]
    pub fn counter(&self, vip: Vip) -> Result<u64> {
        let count = match &self.katran.healthchecks {
            Some(checks) => checks.probes_of(&self.katran.kernel, &vip)?,
            None => None,
        };
        count.ok_or_else(|| Error::NotFound {
            what: format!("the probe {vip}"),
        })
    }

    /// The counters of the health-check program; all zero until it is loaded.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[doc(alias = "getStatsForHealthCheckProgram")]
    pub fn counters(&self) -> Result<HealthcheckCounters> {
        match &self.katran.healthchecks {
            Some(checks) => checks.counters(&self.katran.kernel),
            None => Ok(HealthcheckCounters::default()),
        }
    }

    /// The program for tc egress, for embedders that attach it themselves; `None` without
    /// [`Builder::healthcheck_interface`](crate::Builder::healthcheck_interface) before the first
    /// mark, match or probe.
    ///
    /// Until this library attaches it somewhere, probes leave through the interface they were sent
    /// on, with the Ethernet source they have. The interface must have Ethernet headers. Call
    /// [`GatewaysMut::follow`](crate::attachments::GatewaysMut::follow) if the library is to
    /// discover the gateway.
    #[doc(alias = "getHealthcheckerProgFd")]
    pub fn program_fd(&self) -> Option<BorrowedFd<'a>> {
        self.katran.healthchecks.as_ref().map(HealthChecks::program)
    }

    fn matches(&self, by: MatchBy) -> Vec<(SocketAddr, IpAddr)> {
        let checks = self.katran.healthchecks.iter();
        let matches = checks.flat_map(|checks| checks.matches(by));
        matches.map(|(address, real)| (*address, *real)).collect()
    }
}

/// Maps a checker's packets to reals, and registers counters: [`Katran::probes_mut`].
///
/// ```no_run
/// # fn example(katran: &mut katran::Katran, vip: katran::Vip) -> katran::Result<()> {
/// // A socket with SO_MARK 1000 that connects to the VIP reaches this real.
/// katran.probes_mut().map_mark(1000, "198.51.100.1".parse().unwrap())?;
/// katran.probes_mut().register(vip)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct ProbesMut<'a> {
    pub(super) katran: &'a mut Katran,
}

/// # Marks, matches and VIPs
impl ProbesMut<'_> {
    /// Sends the packets of sockets with this mark (`SO_MARK`) through the tunnel to `real`,
    /// whatever their destination: a checker connects to the VIP and reaches that real.
    ///
    /// The real need not belong to a VIP. A mark that exists moves to the new real. Nothing is sent
    /// until the health-check path is attached: by
    /// [`Builder::healthcheck_interface`](crate::Builder::healthcheck_interface), or by you with
    /// [`Probes::program_fd`].
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the mark is 0, which means no mark, or there is no outer source
    /// address of the real's family; [`Error::InvalidAddress`]; [`Error::Exhausted`] beyond
    /// `max_reals` marks; [`Error::Kernel`].
    #[doc(alias = "addHealthcheckerDst")]
    pub fn map_mark(&mut self, mark: u32, real: IpAddr) -> Result<()> {
        let _call = self.katran.call()?;
        let real = self.katran.check_probed(real)?;
        check_mark(mark)?;
        let kept = Change::Mark(mark, Some(real));
        self.katran.change_at_once(only(kept), |katran| {
            let (checks, kernel, hops) = katran.probing()?;
            checks.set_mark(kernel, &hops, mark, real)
        })
    }

    /// Stops sending packets with this mark to a real.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "delHealthcheckerDst")]
    pub fn unmap_mark(&mut self, mark: u32) -> Result<()> {
        let _call = self.katran.call()?;
        self.katran
            .change_at_once(only(Change::Mark(mark, None)), |katran| {
                match &mut katran.healthchecks {
                    Some(checks) if checks.marks().contains_key(&mark) => {
                        checks.remove_mark(&katran.kernel, mark)
                    }
                    _ => Err(Error::NotFound {
                        what: format!("mark {mark}"),
                    }),
                }
            })
    }

    /// Sends packets to this address and port (0: any) through the tunnel to `real`, unless their
    /// mark is mapped. For checkers that cannot set marks. It applies to all of the host's packets
    /// to that address, so choose one that nothing else uses.
    ///
    /// # Errors
    /// As [`map_mark`](Self::map_mark).
    pub fn match_destination(&mut self, destination: SocketAddr, real: IpAddr) -> Result<()> {
        let _call = self.katran.call()?;
        self.set_match(MatchBy::Destination, destination, real)
    }

    /// Undoes [`match_destination`](Self::match_destination).
    ///
    /// # Errors
    /// As [`unmap_mark`](Self::unmap_mark).
    pub fn unmatch_destination(&mut self, destination: SocketAddr) -> Result<()> {
        let _call = self.katran.call()?;
        self.remove_match(MatchBy::Destination, destination)
    }

    /// Sends packets from this address and port (0: any) through the tunnel to `real`, unless their
    /// mark or destination is mapped. For checkers that bind to an address for each real.
    ///
    /// # Errors
    /// As [`map_mark`](Self::map_mark).
    pub fn match_source(&mut self, source: SocketAddr, real: IpAddr) -> Result<()> {
        let _call = self.katran.call()?;
        self.set_match(MatchBy::Source, source, real)
    }

    /// Undoes [`match_source`](Self::match_source).
    ///
    /// # Errors
    /// As [`unmap_mark`](Self::unmap_mark).
    pub fn unmatch_source(&mut self, source: SocketAddr) -> Result<()> {
        let _call = self.katran.call()?;
        self.remove_match(MatchBy::Source, source)
    }

    /// Counts probes to an address, port and protocol, from zero.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; [`Error::Unsupported`], also for a prefix; [`Error::Exhausted`]
    /// beyond `max_vips`; [`Error::Kernel`].
    #[doc(alias = "addHcKey")]
    pub fn register(&mut self, vip: Vip) -> Result<()> {
        let _call = self.katran.call()?;
        check_probe(vip)?;
        let checks = self.katran.loaded_healthchecks()?;
        if checks.has_key(&vip) {
            return Err(Error::AlreadyExists {
                what: format!("the probe {vip}"),
            });
        }
        let has_number = checks.has_free_number();
        self.katran.look_at_attachments();
        let also = only(Change::Probe(vip.into(), true));
        let written = Prepared::plain(also).write(self.katran, |katran| match has_number {
            true => Ok(()),
            false => katran.settle(),
        })?;
        let (switched, ()) = written.try_switch(self.katran, |katran, ()| {
            let (checks, kernel) = katran.health()?;
            checks.register(kernel, vip)?;
            Ok((Left::Nothing, ()))
        })?;
        switched.end(self.katran);
        Ok(())
    }

    /// Stops counting probes to an address, port and protocol.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "delHcKey")]
    pub fn unregister(&mut self, vip: Vip) -> Result<()> {
        let _call = self.katran.call()?;
        self.katran.collect();
        let also = only(Change::Probe(vip.into(), false));
        let written = Written::nothing(self.katran, also)?;
        let (switched, ()) = written.try_switch(self.katran, |katran, ()| {
            let probe = match &mut katran.healthchecks {
                Some(checks) if checks.has_key(&vip) => checks.unregister(&katran.kernel, vip)?,
                _ => {
                    return Err(Error::NotFound {
                        what: format!("the probe {vip}"),
                    });
                }
            };
            Ok((Left::Probe(probe), ()))
        })?;
        switched.end(self.katran);
        Ok(())
    }

    fn set_match(&mut self, by: MatchBy, address: SocketAddr, real: IpAddr) -> Result<()> {
        let real = self.katran.check_probed(real)?;
        let kept = Change::Match(stored_match(by, address), Some(real));
        self.katran.change_at_once(only(kept), |katran| {
            let (checks, kernel, hops) = katran.probing()?;
            checks.set_match(kernel, &hops, (by, canonical(address)), real)
        })
    }

    fn remove_match(&mut self, by: MatchBy, address: SocketAddr) -> Result<()> {
        let address = canonical(address);
        let kept = Change::Match(stored_match(by, address), None);
        self.katran
            .change_at_once(only(kept), |katran| match &mut katran.healthchecks {
                Some(checks) if checks.matches(by).contains_key(&address) => {
                    checks.remove_match(&katran.kernel, by, address)
                }
                _ => Err(Error::NotFound {
                    what: format!("a match of {address}"),
                }),
            })
    }
}

/// # Health-check path
impl Katran {
    /// The health-check path.
    pub fn probes(&self) -> Probes<'_> {
        Probes { katran: self }
    }

    /// Changes the health-check path.
    pub fn probes_mut(&mut self) -> ProbesMut<'_> {
        ProbesMut { katran: self }
    }

    /// All matches in a state's form.
    pub(super) fn probe_matches(&self) -> Vec<ProbeMatchState> {
        let state = |by: fn(SocketAddr) -> ProbeMatch| {
            move |(address, real)| ProbeMatchState::new(by(address), real)
        };
        let destinations = self.probes().destination_matches().into_iter();
        let sources = self.probes().source_matches().into_iter();
        destinations
            .map(state(ProbeMatch::Destination))
            .chain(sources.map(state(ProbeMatch::Source)))
            .collect()
    }

    /// Checks that the steps to the health checks of `wanted` are possible.
    pub(super) fn rehearse_probes(&self, wanted: &State, steps: &[Step]) -> Result<()> {
        // A step may set the source that a real needs.
        let mut sources = ByFamily::of(|family| self.source(family).is_some());
        let mut touched = false;
        for step in steps {
            match step {
                Step::Set(LiveSetting::source_v4(_)) => sources[Family::V4] = true,
                Step::Set(LiveSetting::source_v6(_)) => sources[Family::V6] = true,
                Step::MapMark(mark, real) => {
                    check_mark(*mark)?;
                    self.check_probed_from(*real, sources)?;
                    touched = true;
                }
                Step::SetProbeMatch(_, real) => {
                    self.check_probed_from(*real, sources)?;
                    touched = true;
                }
                Step::RegisterProbe(vip) => {
                    check_probe(*vip)?;
                    touched = true;
                }
                _ => {}
            }
        }
        if !touched {
            return Ok(());
        }
        let limits = Limits::of(&self.config);
        let matches = |by: fn(&ProbeMatch) -> bool| {
            let matches = wanted.probe_matches.iter();
            matches.filter(|state| by(&state.by)).count()
        };
        limits.check("marks", wanted.marks.len())?;
        for by in [
            |by: &ProbeMatch| matches!(by, ProbeMatch::Destination(_)),
            |by: &ProbeMatch| matches!(by, ProbeMatch::Source(_)),
        ] {
            limits.check("matches", matches(by))?;
        }
        limits.check("probes", wanted.probes.len())
    }

    /// The path, loaded if it was not.
    pub(super) fn loaded_healthchecks(&mut self) -> Result<&mut HealthChecks> {
        self.health().map(|(checks, _)| checks)
    }

    /// The path, which loads when it is first needed.
    fn health(&mut self) -> Result<(&mut HealthChecks, &KernelCalls)> {
        if self.healthchecks.is_none() {
            let mut checks = HealthChecks::load(&self.machine())?;
            if let Some(home) = &self.home {
                home.set().pin_probes(&checks.objects())?;
                checks.keep_in(home.attached());
            }
            if let Some(watcher) = &self.following.watcher {
                watcher.set_probes(Arc::clone(checks.cells()));
            }
            self.healthchecks = Some(checks);
            self.write_gateways(self.wanted());
        }
        match &mut self.healthchecks {
            Some(checks) => Ok((checks, &self.kernel)),
            None => Err(Self::no_healthchecks()),
        }
    }

    /// The same, with the known next hops.
    fn probing(&mut self) -> Result<(&mut HealthChecks, &KernelCalls, Hops<'_>)> {
        self.health()?;
        let hops = Hops {
            wanted: self.wanted(),
            follower: self.following.watcher.as_ref(),
        };
        match &mut self.healthchecks {
            Some(checks) => Ok((checks, &self.kernel, hops)),
            None => Err(Self::no_healthchecks()),
        }
    }

    pub(super) fn no_healthchecks() -> Error {
        Error::Unsupported {
            what: "attaching health checks".to_owned(),
            reason: "the balancer was loaded without an interface for them: set \
                     healthcheck_interface",
        }
    }

    /// Checks that probes can be sent to a real.
    fn check_probed(&self, real: IpAddr) -> Result<IpAddr> {
        self.check_probed_from(real, ByFamily::of(|family| self.source(family).is_some()))
    }

    /// The same, given which families have an outer source address.
    fn check_probed_from(&self, real: IpAddr, sources: ByFamily<bool>) -> Result<IpAddr> {
        let real = real.to_canonical();
        self.note(check_real(real))?;
        if self.config.makes_up_probe_sources() {
            return Ok(real);
        }
        let setting = match real {
            IpAddr::V4(_) => "source_v4",
            IpAddr::V6(_) => "source_v6",
        };
        match sources[Family::of(real)] {
            true => Ok(real),
            false => Err(Error::InvalidConfig {
                setting,
                value: "(not set)".to_owned(),
                reason: format!(
                    "probes of the real {real} need an outer source address of its family: set it"
                ),
            }),
        }
    }
}

fn stored_match(by: MatchBy, address: SocketAddr) -> StoredMatch {
    let address = canonical(address);
    match by {
        MatchBy::Destination => StoredMatch::Destination(address),
        MatchBy::Source => StoredMatch::Source(address),
    }
}

/// Refuses what no probe can go to.
fn check_probe(vip: Vip) -> Result<()> {
    match vip.is_prefix() {
        false => Ok(()),
        true => Err(Error::Unsupported {
            what: format!("counting probes to {vip}"),
            reason: "a probe goes to one address: register that",
        }),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}
