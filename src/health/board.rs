//! All VIPs: what is known of their reals, which mark probes which real, and the changes that the
//! balancer needs. No I/O and no clock.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::check::invalid;
use super::outcome::Outcome;
use super::policy::Policy;
use super::policy::Via;
use super::report::Event;
use super::service::Effects;
use super::service::Service;
use super::settings::MARKS;
use super::settings::Settings;
use crate::document::MarkState;
use crate::document::State;
use crate::document::VipState;
use crate::error::Result;
use crate::types::HashFunction;
use crate::types::Vip;

/// One real of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) vip: Vip,
    pub(super) real: IpAddr,
}

/// The health of everything.
#[derive(Clone, Debug)]
pub(super) struct Board {
    pub(super) settings: Arc<Settings>,
    pub(super) services: BTreeMap<Vip, Service>,
    /// The hash function of VIPs that set none.
    hash: HashFunction,
    marks: BTreeMap<IpAddr, u32>,
    /// VIPs whose probes the checks have counted.
    counted: BTreeSet<Vip>,
    /// VIPs whose probes need no counting any more.
    uncounted: BTreeSet<Vip>,
}

impl Board {
    /// A board without VIPs.
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            services: BTreeMap::new(),
            hash: HashFunction::default(),
            marks: BTreeMap::new(),
            counted: BTreeSet::new(),
            uncounted: BTreeSet::new(),
        }
    }

    /// Adopts what an operator wants; keeps what is known of reals that stay.
    ///
    /// # Errors
    /// A mark of the document is one of the checks' marks, or there are more probed reals than
    /// marks.
    pub(super) fn follow_document(&mut self, wanted: &State) -> Result<()> {
        let own = |state: &&MarkState| self.settings.is_own_mark(state.mark);
        if let Some(state) = wanted.marks.iter().find(own) {
            let reason = "the health checks use it: choose another mark, or another first_mark";
            return Err(invalid("mark", state.mark, reason));
        }
        self.follow(wanted, Service::follow_document)
    }

    /// Adopts what the balancer has, which other calls may have changed.
    ///
    /// # Errors
    /// There are more probed reals than marks.
    pub(super) fn follow_balancer(&mut self, found: &State) -> Result<()> {
        if self.marks.is_empty() {
            let own = found.marks.iter();
            let own = own.filter(|state| self.settings.is_own_mark(state.mark));
            self.marks = own.map(|state| (state.real, state.mark)).collect();
        }
        self.follow(found, Service::follow_balancer)
    }

    fn follow(
        &mut self,
        state: &State,
        follow: fn(&mut Service, &VipState, &Policy),
    ) -> Result<()> {
        let mut before = std::mem::take(&mut self.services);
        for of_vip in &state.vips {
            let mut service = before.remove(&of_vip.vip).unwrap_or_default();
            follow(&mut service, of_vip, self.settings.of(of_vip.vip));
            self.services.insert(of_vip.vip, service);
        }
        self.share_out_marks()
    }

    /// Updates the hash function of VIPs that set none; a state without one changes nothing.
    pub(super) fn follow_hash(&mut self, state: &State) {
        let balancer = state.balancer.as_ref();
        if let Some(hash) = balancer.and_then(|balancer| balancer.hash_function) {
            self.hash = hash;
        }
    }

    /// Assigns a mark to each real that is probed through the tunnel; a real keeps its mark if the
    /// checks still own it.
    fn share_out_marks(&mut self) -> Result<()> {
        let mut reals = BTreeSet::new();
        let counted_before = std::mem::take(&mut self.counted);
        for target in self.targets() {
            let policy = self.settings.of(target.vip);
            if let Some(probing) = policy.of_real(target.vip, target.real)
                && probing.via == Via::Tunnel
            {
                reals.insert(target.real);
                self.counted.extend(probing.counted.then_some(probing.to));
            }
        }
        self.uncounted.extend(counted_before);
        self.uncounted.retain(|vip| !self.counted.contains(vip));
        let is_own = |mark: u32| self.settings.is_own_mark(mark);
        self.marks
            .retain(|real, mark| reals.contains(real) && is_own(*mark));
        let taken: BTreeSet<u32> = self.marks.values().copied().collect();
        let all = self.settings.first_mark..=self.settings.first_mark + (MARKS - 1);
        let mut free = all.filter(|mark| !taken.contains(mark));
        for real in reals {
            if self.marks.contains_key(&real) {
                continue;
            }
            let Some(mark) = free.next() else {
                return Err(invalid(
                    "reals",
                    MARKS,
                    "more reals than this cannot be probed through the tunnel",
                ));
            };
            self.marks.insert(real, mark);
        }
        Ok(())
    }

    /// Everything to probe, drained reals included.
    pub(super) fn targets(&self) -> Vec<Target> {
        let all = self.services.iter().flat_map(|(vip, service)| {
            let vip = *vip;
            let reals = service.members.keys();
            reals.map(move |real| Target { vip, real: *real })
        });
        all.filter(|target| self.is_probed(*target)).collect()
    }

    fn is_probed(&self, target: Target) -> bool {
        let policy = self.settings.of(target.vip);
        policy.of_real(target.vip, target.real).is_some()
    }

    pub(super) fn mark(&self, real: IpAddr) -> Option<u32> {
        self.marks.get(&real).copied()
    }

    /// Counts a probe and its duration.
    pub(super) fn count(&mut self, target: Target, outcome: &Outcome, took: Duration) {
        if let Some(service) = self.services.get_mut(&target.vip) {
            service.tally.count(outcome, took);
        }
    }

    /// Records a probe's result; returns its effects and the events to report.
    pub(super) fn record(
        &mut self,
        target: Target,
        outcome: Outcome,
        now: Instant,
    ) -> (Effects, Vec<Event>) {
        let Target { vip, real } = target;
        let Some(service) = self.services.get_mut(&vip) else {
            return (Effects::default(), Vec::new());
        };
        let reason = outcome.to_string();
        let before = View::of(service);
        let policy = self.settings.of(vip);
        let effects = service.record(real, outcome, policy, self.settings.history, now);
        let mut events = Vec::new();
        if effects.unsent {
            let why = reason.clone();
            events.push(Event::NotSent { vip, real, why });
        }
        if !effects.turned && !effects.tell {
            return (effects, events);
        }
        if effects.turned
            && let Some(member) = service.members.get(&real)
        {
            let to = member.score.status();
            events.push(Event::Turned {
                vip,
                real,
                to,
                reason,
            });
        }
        events.extend(View::of(service).news(vip, &before));
        (effects, events)
    }

    /// Whether all reals have a known health.
    pub(super) fn is_clear(&self) -> bool {
        self.services.iter().all(|(vip, service)| {
            service.is_clear(|real| self.is_probed(Target { vip: *vip, real }))
        })
    }

    /// When the next step of a climbing weight is due.
    pub(super) fn next_step(&self, now: Instant) -> Option<Instant> {
        let services = self.services.iter();
        services
            .filter_map(|(vip, service)| service.next_step(self.settings.of(*vip), now))
            .min()
    }

    /// Writes what the balancer should have now into `state`, which is what an operator wants or
    /// what the balancer has.
    pub(super) fn put_into(&self, state: &mut State, now: Instant) {
        for of_vip in &mut state.vips {
            if let Some(service) = self.services.get(&of_vip.vip) {
                service.put_into(of_vip, self.hash, self.settings.of(of_vip.vip), now);
            }
        }
        state
            .marks
            .retain(|state| !self.settings.is_own_mark(state.mark));
        let marks = self.marks.iter();
        state
            .marks
            .extend(marks.map(|(real, mark)| MarkState::new(*mark, *real)));
        let mut probes: BTreeSet<Vip> = std::mem::take(&mut state.probes).into_iter().collect();
        probes.retain(|probe| !self.uncounted.contains(probe));
        probes.extend(&self.counted);
        state.probes = probes.into_iter().collect();
    }

    /// Records what was applied to the balancer.
    pub(super) fn told(&mut self, state: &State) {
        self.uncounted.clear();
        for of_vip in &state.vips {
            if let Some(service) = self.services.get_mut(&of_vip.vip) {
                service.told(of_vip, self.hash);
            }
        }
    }
}

/// The parts of a VIP whose changes are reported.
struct View {
    out: BTreeSet<IpAddr>,
    panics: bool,
    falls_back: bool,
}

impl View {
    fn of(service: &Service) -> Self {
        let out = service.members.iter().filter(|(_, member)| member.out);
        Self {
            out: out.map(|(real, _)| *real).collect(),
            panics: service.panics,
            falls_back: service.falls_back,
        }
    }

    fn news(&self, vip: Vip, before: &Self) -> Vec<Event> {
        let changed = self.out.symmetric_difference(&before.out);
        let mut events: Vec<_> = changed
            .map(|real| Event::Out {
                vip,
                real: *real,
                out: self.out.contains(real),
            })
            .collect();
        if self.panics != before.panics {
            let panics = self.panics;
            events.push(Event::Panics { vip, panics });
        }
        if self.falls_back != before.falls_back {
            let falls_back = self.falls_back;
            events.push(Event::FallsBack { vip, falls_back });
        }
        events
    }
}
