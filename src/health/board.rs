//! All VIPs: what is known of their reals, which are probed by which mark, and what the balancer is to be told. No I/O,
//! and no clock of its own.

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

/// What is known of everything.
#[derive(Clone, Debug)]
pub(super) struct Board {
    pub(super) settings: Arc<Settings>,
    pub(super) services: BTreeMap<Vip, Service>,
    /// How rings are filled of VIPs that say nothing.
    hash: HashFunction,
    marks: BTreeMap<IpAddr, u32>,
    /// What probes are counted for, for the checks.
    counted: BTreeSet<Vip>,
    /// What they no longer are.
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

    /// Takes what an operator wants; what is known of reals that stay is kept.
    ///
    /// # Errors
    /// A mark of the document is among those of the checks, or more reals are probed than there are marks.
    pub(super) fn follow_document(&mut self, wanted: &State) -> Result<()> {
        let own = |state: &&MarkState| self.settings.is_own_mark(state.mark);
        if let Some(state) = wanted.marks.iter().find(own) {
            let reason = "the health checks have it: choose another, or another first_mark";
            return Err(invalid("mark", state.mark, reason));
        }
        self.follow(wanted, Service::follow_document)
    }

    /// Takes what the balancer has, and others may have changed.
    ///
    /// # Errors
    /// More reals are probed than there are marks.
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

    /// How rings are filled of VIPs that say nothing of it; a state that does not say so either leaves it as it is.
    pub(super) fn follow_hash(&mut self, state: &State) {
        let balancer = state.balancer.as_ref();
        if let Some(hash) = balancer.and_then(|balancer| balancer.hash_function) {
            self.hash = hash;
        }
    }

    /// A mark for each real that is probed through the tunnel; one that has a mark keeps it, if that is the checks' still.
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
                    "that many can be probed through the tunnel",
                ));
            };
            self.marks.insert(real, mark);
        }
        Ok(())
    }

    /// Everything that is probed: drained reals, too, so that it is known how they are.
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

    /// Counts a probe, and how long it took.
    pub(super) fn count(&mut self, target: Target, outcome: &Outcome, took: Duration) {
        if let Some(service) = self.services.get_mut(&target.vip) {
            service.tally.count(outcome, took);
        }
    }

    /// The result of a probe, what it has changed, and what there is to say.
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

    /// Whether it is known of all reals whether they are in use.
    pub(super) fn is_clear(&self) -> bool {
        self.services.iter().all(|(vip, service)| {
            service.is_clear(|real| self.is_probed(Target { vip: *vip, real }))
        })
    }

    /// When the next weight is to change by itself.
    pub(super) fn next_step(&self, now: Instant) -> Option<Instant> {
        let services = self.services.iter();
        services
            .filter_map(|(vip, service)| service.next_step(self.settings.of(*vip), now))
            .min()
    }

    /// What the balancer is to be told now: put into what an operator wants, or into what it has.
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

    /// The balancer has been told this.
    pub(super) fn told(&mut self, state: &State) {
        self.uncounted.clear();
        for of_vip in &state.vips {
            if let Some(service) = self.services.get_mut(&of_vip.vip) {
                service.told(of_vip, self.hash);
            }
        }
    }
}

/// What is told of a VIP when it changes.
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
