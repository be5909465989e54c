//! What probes of one VIP's reals change: which reals are out, and which weights the others have.
//! No I/O and no clock.
//!
//! A real is *out* if it is down and another real of the VIP has answered since: failures alone may
//! be the checker's own. A real that joins others is out until its first result.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

use super::outcome::Outcome;
use super::policy::Policy;
use super::score::Score;
use super::score::Status;
use super::tally::Tally;
use crate::document::VipState;
use crate::types::HashFunction;
use crate::types::Real;

/// How long to be silent about a real whose probes are not sent, after reporting it.
const SAID: Duration = Duration::from_secs(60);

/// A real of a VIP: the operator's settings and the probes' results.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// The operator's weight; 0 for drained.
    pub(super) weight: u32,
    /// The operator marked it down.
    off: bool,
    pub(super) score: Score,
    /// It gets no flows.
    pub(super) out: bool,
    /// When its weight began to climb.
    climbing: Option<Instant>,
    /// When its unsent probes were last reported.
    unsent: Option<Instant>,
    /// The weight and the down mark last applied to the balancer.
    told: Option<(u32, bool)>,
}

impl Member {
    fn new(weight: u32, off: bool) -> Self {
        Self {
            weight,
            off,
            score: Score::new(),
            out: false,
            climbing: None,
            unsent: None,
            told: None,
        }
    }

    pub(super) fn applied_weight(&self) -> Option<u32> {
        self.told.map(|(weight, _)| weight)
    }

    fn is_in_use(&self) -> bool {
        self.weight > 0 && !self.off
    }

    fn is_drained(&self) -> bool {
        self.weight == 0 && !self.off
    }

    fn is(&self, status: Status) -> bool {
        self.score.status() == status
    }

    /// Whether to report unsent probes: the first time, and rarely if they come and go.
    fn is_news(&mut self, outcome: &Outcome, now: Instant) -> bool {
        let not_sent = |outcome: &Outcome| matches!(outcome, Outcome::NotSent(_));
        let goes_on = self.score.last().is_some_and(|(_, last)| not_sent(last));
        let said = |at: Instant| now.saturating_duration_since(at) < SAID;
        let is_news = not_sent(outcome) && !goes_on && !self.unsent.is_some_and(said);
        if is_news {
            self.unsent = Some(now);
        }
        is_news
    }

    /// Down but not out: the checker may be to blame.
    fn is_suspect(&self) -> bool {
        self.is(Status::Down) && !self.out
    }
}

/// The effects of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// A real's status changed.
    pub(super) turned: bool,
    /// The balancer must be changed.
    pub(super) tell: bool,
    /// Unsent probes must be reported.
    pub(super) unsent: bool,
    /// A real whose answer would prove that the checker is not cut off.
    pub(super) ask: Option<IpAddr>,
}

/// The reals of a VIP.
#[derive(Clone, Debug, Default)]
pub(super) struct Service {
    pub(super) members: BTreeMap<IpAddr, Member>,
    /// Too few reals work: no further one goes out.
    pub(super) panics: bool,
    /// Packets go to drained reals.
    pub(super) falls_back: bool,
    /// The counts of its probes.
    pub(super) tally: Tally,
    /// Shares depend on the ratio of weights, so weights can climb.
    by_ratio: bool,
}

impl Service {
    /// Adopts reals and weights of a document; keeps what is known of reals that stay.
    pub(super) fn follow_document(&mut self, of_vip: &VipState, policy: &Policy) {
        let mut before = std::mem::take(&mut self.members);
        let off: BTreeSet<_> = of_vip.down.iter().map(IpAddr::to_canonical).collect();
        let others = before.values();
        let joins_others = others
            .filter(|member| member.is_in_use() && !member.out)
            .any(|member| !member.is(Status::Down));
        for real in &of_vip.reals {
            let (address, weight) = (real.address(), real.get_weight());
            let off = off.contains(&address);
            let is_probed = policy.of_real(of_vip.vip, address).is_some();
            let member = match before.remove(&address) {
                Some(known) if is_probed => Member {
                    weight,
                    off,
                    ..known
                },
                // Nothing else would undo the probes' results.
                Some(known) => Member {
                    told: known.told,
                    ..Member::new(weight, off)
                },
                None => Member {
                    out: joins_others && is_probed,
                    ..Member::new(weight, off)
                },
            };
            self.members.insert(address, member);
        }
        self.settle(policy);
    }

    /// Adopts what the balancer has; differences from what was applied came from other calls.
    pub(super) fn follow_balancer(&mut self, of_vip: &VipState, policy: &Policy) {
        let mut before = std::mem::take(&mut self.members);
        let down: BTreeSet<_> = of_vip.down.iter().copied().collect();
        for real in &of_vip.reals {
            let (address, weight) = (real.address(), real.get_weight());
            let is_down = down.contains(&address);
            let member = match before.remove(&address) {
                Some(mut known) => {
                    if let Some((told, told_down)) = known.told {
                        if told != weight {
                            (known.weight, known.climbing) = (weight, None);
                        }
                        if told_down != is_down {
                            known.off = is_down;
                        }
                    }
                    known
                }
                // As the previous process found it, until it answers.
                None if is_down && policy.of_real(of_vip.vip, address).is_some() => Member {
                    score: Score::found_down(),
                    out: true,
                    ..Member::new(weight, false)
                },
                None => Member::new(weight, is_down),
            };
            self.members.insert(address, member);
        }
        self.settle(policy);
    }

    fn in_use(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.is_in_use())
    }

    /// Judges the VIP as a whole after a change.
    fn settle(&mut self, policy: &Policy) {
        let weight = |members: &mut dyn Iterator<Item = &Member>| -> u64 {
            members.map(|member| u64::from(member.weight)).sum()
        };
        let all = weight(&mut self.in_use());
        let working = weight(&mut self.in_use().filter(|member| !member.is(Status::Down)));
        let mut drained = self.members.values().filter(|member| member.is_drained());
        let helps = drained.any(|member| member.is(Status::Up));
        self.falls_back = policy.drained_fallback && all > 0 && working == 0 && helps;
        let too_few = working == 0 || working * 100 < all * u64::from(policy.panic_threshold);
        self.panics = all > 0 && too_few && !self.falls_back;
        // If only reals that are out remain, use them.
        if all > 0 && !self.falls_back && self.in_use().all(|member| member.out) {
            for member in self.members.values_mut() {
                member.out = false;
                member.score.forget_failures();
            }
        }
    }

    pub(super) fn record(
        &mut self,
        real: IpAddr,
        outcome: Outcome,
        policy: &Policy,
        remembered: u32,
        now: Instant,
    ) -> Effects {
        let mut effects = Effects::default();
        let nobody_worked = !self.in_use().any(|member| member.is(Status::Up));
        let Some(member) = self.members.get_mut(&real) else {
            return effects;
        };
        let passed = outcome == Outcome::Passed;
        let not_sent = !outcome.is_sent();
        effects.unsent = member.is_news(&outcome, now);
        let thresholds = policy.thresholds(real);
        effects.turned = member.score.record(outcome, thresholds, remembered, now);
        if member.out && (member.is(Status::Up) || (not_sent && member.is(Status::Unknown))) {
            member.out = false;
            effects.tell = true;
            let climbs = !policy.slow_start.is_zero() && member.is_in_use();
            member.climbing = climbs.then_some(now);
        }
        let works = member.is(Status::Up);
        let (in_use, drained) = (member.is_in_use(), member.is_drained());
        let fell_back = self.falls_back;
        if effects.turned {
            self.settle(policy);
            effects.tell |= self.falls_back != fell_back || (self.falls_back && drained);
        }
        // The first real that works after none did: failures in between say nothing.
        if effects.turned && works && in_use && nobody_worked && !fell_back {
            for (other, member) in &mut self.members {
                if *other != real {
                    member.score.forget_failures();
                }
            }
        }
        if passed && works && (in_use || (drained && self.falls_back)) {
            effects.tell |= self.take_out(policy);
        } else if !passed && self.awaits_proof(real) {
            let proves = |member: &Member| {
                member.is(Status::Up)
                    && (member.is_in_use() || (member.is_drained() && self.falls_back))
            };
            let mut members = self.members.iter();
            effects.ask = members
                .find(|(_, member)| proves(member))
                .map(|(real, _)| *real);
        }
        effects
    }

    fn awaits_proof(&self, real: IpAddr) -> bool {
        let member = self.members.get(&real);
        !self.panics
            && member.is_some_and(|member| member.is_suspect() && member.score.is_surely_down())
    }

    /// The checker is not cut off: takes out reals that are surely down while enough remain.
    fn take_out(&mut self, policy: &Policy) -> bool {
        if self.panics {
            return false;
        }
        let mut any = false;
        for member in self.members.values_mut() {
            if member.is_suspect() && member.score.is_surely_down() {
                (member.out, member.climbing) = (true, None);
                any = true;
            }
        }
        if any {
            self.settle(policy);
        }
        any
    }

    /// Whether so few reals are unknown or suspect that no result is awaited.
    pub(super) fn is_clear(&self, is_probed: impl Fn(IpAddr) -> bool) -> bool {
        self.members.iter().all(|(real, member)| {
            let waits = member.is(Status::Unknown) && member.score.last().is_none();
            let unclear = member.is_suspect() && member.is_in_use() && !self.panics;
            !is_probed(*real) || !(waits || unclear)
        })
    }

    /// When the next step of a climbing weight is due.
    pub(super) fn next_step(&self, policy: &Policy, now: Instant) -> Option<Instant> {
        let climbing = self.members.values().filter_map(|member| member.climbing);
        climbing
            .filter_map(|since| next_step(policy, since, now))
            .min()
    }

    /// Writes the current weights and down marks into a state of this VIP.
    pub(super) fn put_into(
        &self,
        of_vip: &mut VipState,
        usual: HashFunction,
        policy: &Policy,
        now: Instant,
    ) {
        let by_ratio = of_vip.hash.unwrap_or(usual) == HashFunction::MaglevV2;
        let climb = by_ratio.then(|| self.climb(policy, now)).flatten();
        for real in &mut of_vip.reals {
            if let Some(member) = self.members.get(&real.address()) {
                *real = real.weight(self.weight(member, climb, policy, now));
            }
        }
        let is_down = |real: &Real| match self.members.get(&real.address()) {
            Some(member) => member.off || member.out,
            None => of_vip.down.contains(&real.address()),
        };
        let down = of_vip.reals.iter().filter(|real| is_down(real));
        of_vip.down = down.map(Real::address).collect();
    }

    /// Whether the real's weight climbs.
    pub(super) fn climbs(&self, member: &Member, policy: &Policy, now: Instant) -> bool {
        let since = member.climbing.filter(|_| self.by_ratio);
        since.and_then(|since| step(policy, since, now)).is_some()
    }

    /// Records what was applied to the balancer.
    pub(super) fn told(&mut self, of_vip: &VipState, usual: HashFunction) {
        self.by_ratio = of_vip.hash.unwrap_or(usual) == HashFunction::MaglevV2;
        let down: BTreeSet<_> = of_vip.down.iter().copied().collect();
        for real in &of_vip.reals {
            if let Some(member) = self.members.get_mut(&real.address()) {
                member.told = Some((real.get_weight(), down.contains(&real.address())));
            }
        }
    }

    /// The factor of all weights while some climb; `None` if none does, or all do.
    fn climb(&self, policy: &Policy, now: Instant) -> Option<u32> {
        let climbs = |member: &&Member| {
            let since = member.climbing;
            since.and_then(|since| step(policy, since, now)).is_some()
        };
        let in_ring = self.in_use().filter(|member| !member.out);
        let (some, others): (Vec<_>, Vec<_>) = in_ring.partition(climbs);
        let (some, others) = (!some.is_empty(), !others.is_empty());
        let most = self.members.values().map(|member| member.weight).max()?;
        let fits = most.checked_mul(policy.slow_start_steps).is_some();
        (some && others && fits).then_some(policy.slow_start_steps)
    }

    fn weight(&self, member: &Member, climb: Option<u32>, policy: &Policy, now: Instant) -> u32 {
        if member.is_drained() && self.falls_back && member.is(Status::Up) {
            return 1;
        }
        let Some(steps) = climb else {
            return member.weight;
        };
        let step = member.climbing.and_then(|since| step(policy, since, now));
        member.weight * step.unwrap_or(steps)
    }
}

/// The step of a weight that has climbed since then, from 1; `None` at the top.
fn step(policy: &Policy, since: Instant, now: Instant) -> Option<u32> {
    let one = one_step(policy)?;
    let done = now.saturating_duration_since(since).as_nanos() / one.as_nanos();
    let step = u32::try_from(done).unwrap_or(u32::MAX).saturating_add(1);
    (step < policy.slow_start_steps).then_some(step)
}

fn next_step(policy: &Policy, since: Instant, now: Instant) -> Option<Instant> {
    Some(since + one_step(policy)? * step(policy, since, now)?)
}

fn one_step(policy: &Policy) -> Option<Duration> {
    let one = policy.slow_start / policy.slow_start_steps;
    (!one.is_zero()).then_some(one)
}
