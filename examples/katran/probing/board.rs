//! What follows from probes: which reals work, and which the balancer is to take for dead. Pure, so that
//! it can be tested without a network.
//!
//! The configuration file says what an operator wants: weights, and with 0 a drain. Probes say what
//! works. A real is *out* if it has stopped to answer, and another one of the VIP's has answered after
//! that: failures alone may be the checker's own. One that is out is down for the balancer: it takes
//! no new flows, and those that it has leave it. Its weight stays the file's.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use katran::State;
use katran::Vip;
use katran::state::MarkState;
use katran::state::VipState;

/// How many probes in a row change one's mind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

/// A real of a VIP: what the file says, and what probes have found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Health {
    /// The file's; 0: drained by the operator.
    weight: u32,
    up: bool,
    /// In a row; one of the two is 0.
    answers: u32,
    failures: u32,
    /// Gets no flows. Only one that is not up can be.
    out: bool,
}

impl Health {
    /// Innocent until proven guilty: a restarted checker takes nobody out but those that were ([`Board::go_on`]).
    fn new(weight: u32) -> Self {
        Self {
            weight,
            up: true,
            answers: 0,
            failures: 0,
            out: false,
        }
    }

    fn in_use(&self) -> bool {
        self.weight > 0
    }

    /// Down, and not out: it is not known yet whether the checker is to blame.
    fn is_suspect(&self) -> bool {
        !self.up && !self.out
    }
}

/// Something that an operator may want to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A real has come up or gone down.
    Changed { vip: Vip, real: IpAddr, up: bool },
    /// A real that is down gets no flows from now on, as others answer.
    Out { vip: Vip, real: IpAddr },
    /// No real of a VIP answers: those that were in use stay so.
    Kept { vip: Vip },
    /// That is over: it is known of each real whether it works.
    Recovered { vip: Vip },
}

impl Notice {
    /// Whether what the balancer is told may be something else now; with no other notice it is.
    pub(crate) fn is_of_state(&self) -> bool {
        matches!(self, Self::Out { .. } | Self::Changed { up: true, .. })
    }
}

/// What probes have found of a real of a VIP.
pub(crate) struct Found {
    pub(crate) vip: Vip,
    pub(crate) real: IpAddr,
    /// `None`: it has not been probed yet.
    pub(crate) up: Option<bool>,
}

/// One real of a VIP to probe, and the mark that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) vip: Vip,
    pub(crate) real: IpAddr,
    pub(crate) mark: u32,
}

/// The reals of a VIP.
#[derive(Clone, Debug, Default)]
struct Service {
    reals: BTreeMap<IpAddr, Health>,
    /// Whether any real is a suspect.
    suspects: bool,
    kept: bool,
}

impl Service {
    /// Takes the reals and weights of a file; what is known of those that stay is kept.
    fn follow(&mut self, of_vip: &VipState) {
        let before = std::mem::take(&mut self.reals);
        let down: BTreeSet<_> = of_vip.down.iter().collect();
        for real in &of_vip.reals {
            let address = real.address();
            // One that the file takes for dead is in use as little as one that it drains.
            let weight = match down.contains(&address) {
                true => 0,
                false => real.get_weight(),
            };
            let known = before.get(&address).copied();
            let health = known.unwrap_or(Health::new(weight));
            self.reals.insert(address, Health { weight, ..health });
        }
        self.spare_what_is_left();
    }

    /// Those that are down already are out, until they answer.
    fn go_on(&mut self, down: &[IpAddr]) {
        for real in down {
            if let Some(health) = self.reals.get_mut(real) {
                (health.up, health.out) = (false, true);
            }
        }
        self.spare_what_is_left();
    }

    /// The operator may have drained all but those that are out: they are what is left.
    fn spare_what_is_left(&mut self) {
        if self.in_use().all(|health| health.out) {
            for health in self.reals.values_mut() {
                health.out = false;
                health.failures = 0;
            }
        }
        self.suspects = self.reals.values().any(Health::is_suspect);
    }

    fn in_use(&self) -> impl Iterator<Item = &Health> {
        self.reals.values().filter(|health| health.in_use())
    }

    fn record(
        &mut self,
        vip: Vip,
        real: IpAddr,
        works: bool,
        thresholds: Thresholds,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let others_up = |reals: &BTreeMap<IpAddr, Health>| {
            let mut others = reals.iter().filter(|(of, _)| **of != real);
            others.any(|(_, other)| other.in_use() && other.up)
        };
        let Some(health) = self.reals.get_mut(&real) else {
            return notices;
        };
        match works {
            true => (health.answers, health.failures) = (health.answers.saturating_add(1), 0),
            false => (health.answers, health.failures) = (0, health.failures.saturating_add(1)),
        }
        let turned = match health.up {
            true => health.failures >= thresholds.fall,
            false => health.answers >= thresholds.rise,
        };
        if turned {
            health.up = works;
            health.out = false;
            self.suspects |= !works;
            notices.push(Notice::Changed {
                vip,
                real,
                up: works,
            });
        }
        let proves = works && health.up && health.in_use();
        if turned && proves && !others_up(&self.reals) {
            // What failed while nobody could be reached says nothing of a real.
            for other in self.reals.values_mut() {
                other.failures = 0;
            }
        }
        if proves && self.suspects {
            for (real, other) in &mut self.reals {
                if other.is_suspect() && other.failures >= thresholds.fall {
                    other.out = true;
                    notices.push(Notice::Out { vip, real: *real });
                }
            }
            self.suspects = self.reals.values().any(Health::is_suspect);
        }
        if !notices.is_empty() {
            notices.extend(self.settle(vip));
        }
        notices
    }

    /// Whether what is in use is kept so now; a notice if that has changed.
    fn settle(&mut self, vip: Vip) -> Option<Notice> {
        let any_in_use = self.in_use().next().is_some();
        let any_up = self.in_use().any(|health| health.up);
        let unclear = self.in_use().any(Health::is_suspect);
        let before = self.kept;
        self.kept = any_in_use && (!any_up || (before && unclear));
        match (before, self.kept) {
            (false, true) => Some(Notice::Kept { vip }),
            (true, false) if any_in_use => Some(Notice::Recovered { vip }),
            _ => None,
        }
    }
}

/// The file's state and the probes' results.
#[derive(Clone)]
pub(crate) struct Board {
    wanted: State,
    thresholds: Thresholds,
    first_mark: u32,
    /// By VIP that is probed: the address, port and protocol that its probes go to.
    probed: BTreeMap<Vip, Vip>,
    marks: BTreeMap<IpAddr, u32>,
    services: BTreeMap<Vip, Service>,
}

impl Board {
    /// A board without VIPs.
    pub(crate) fn new(thresholds: Thresholds, first_mark: u32) -> Self {
        Self {
            wanted: State::default(),
            thresholds,
            first_mark,
            probed: BTreeMap::new(),
            marks: BTreeMap::new(),
            services: BTreeMap::new(),
        }
    }

    /// Another file, and where probes of its VIPs go to. What probes have found of reals that stay
    /// is kept.
    pub(crate) fn set_wanted(&mut self, wanted: State, probed: BTreeMap<Vip, Vip>) -> Vec<Notice> {
        let mut before = std::mem::take(&mut self.services);
        let mut notices = Vec::new();
        for of_vip in &wanted.vips {
            let mut service = before.remove(&of_vip.vip).unwrap_or_default();
            service.follow(of_vip);
            notices.extend(service.settle(of_vip.vip));
            self.services.insert(of_vip.vip, service);
        }
        self.probed = probed;
        self.wanted = wanted;
        self.share_out_marks();
        notices
    }

    /// Goes on with what the process before has found, by the state of a balancer that it has left: who starts again finds
    /// no time in which dead reals get flows.
    pub(crate) fn go_on(&mut self, found: &State) -> Vec<Notice> {
        let mut notices = Vec::new();
        for of_vip in &found.vips {
            let vip = of_vip.vip;
            let Some(service) = self.services.get_mut(&vip) else {
                continue;
            };
            service.go_on(&of_vip.down);
            let out = service.reals.iter().filter(|(_, health)| health.out);
            notices.extend(out.map(|(real, _)| Notice::Out { vip, real: *real }));
            notices.extend(service.settle(vip));
        }
        notices
    }

    /// A mark for each real that is probed, and none that the file has.
    fn share_out_marks(&mut self) {
        let of_file: BTreeSet<u32> = self.wanted.marks.iter().map(|state| state.mark).collect();
        let probed = self.services.iter();
        let probed = probed.filter(|(vip, _)| self.probed.contains_key(vip));
        let reals: BTreeSet<IpAddr> = probed
            .flat_map(|(_, service)| service.reals.keys().copied())
            .collect();
        self.marks
            .retain(|real, mark| reals.contains(real) && !of_file.contains(mark));
        let mut taken = of_file;
        taken.extend(self.marks.values());
        // There are 2^32 - 1 marks, so it ends before they do.
        let all = (self.first_mark..=u32::MAX).chain(1..self.first_mark);
        let mut free = all.filter(|mark| !taken.contains(mark));
        for real in reals {
            if !self.marks.contains_key(&real)
                && let Some(mark) = free.next()
            {
                self.marks.insert(real, mark);
            }
        }
    }

    /// What probes have found of each real of the VIPs that are probed.
    pub(crate) fn found(&self) -> impl Iterator<Item = Found> + '_ {
        let probed = self.services.iter();
        let probed = probed.filter(|(vip, _)| self.probed.contains_key(vip));
        probed.flat_map(|(vip, service)| {
            let found = move |(real, health): (&IpAddr, &Health)| Found {
                vip: *vip,
                real: *real,
                up: (health.answers > 0 || health.failures > 0 || !health.up).then_some(health.up),
            };
            service.reals.iter().map(found)
        })
    }

    /// The file's VIPs.
    pub(crate) fn vips(&self) -> &[VipState] {
        &self.wanted.vips
    }

    /// Everything to probe: drained reals, too, so that it is known how they are.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let probed = self.services.iter();
        let probed = probed.filter(|(vip, _)| self.probed.contains_key(vip));
        let targets = probed.flat_map(|(vip, service)| {
            service.reals.keys().map(|real| Target {
                vip: *vip,
                real: *real,
                mark: self.marks[real],
            })
        });
        targets.collect()
    }

    /// The result of a probe, and what it has changed.
    pub(crate) fn record(&mut self, vip: Vip, real: IpAddr, works: bool) -> Vec<Notice> {
        match self.services.get_mut(&vip) {
            Some(service) => service.record(vip, real, works, self.thresholds),
            None => Vec::new(),
        }
    }

    /// The state to apply now: the file's, with the reals that are out down, and the marks and counters
    /// of probes.
    pub(crate) fn state(&self) -> State {
        let mut state = self.wanted.clone();
        for of_vip in &mut state.vips {
            let health = &self.services[&of_vip.vip].reals;
            let known: BTreeSet<_> = of_vip.down.iter().copied().collect();
            let reals = of_vip.reals.iter().map(|real| real.address());
            let out = reals.filter(|real| health[real].out && !known.contains(real));
            of_vip.down.extend(out);
        }
        let marks = self.marks.iter();
        state
            .marks
            .extend(marks.map(|(real, mark)| MarkState::new(*mark, *real)));
        let mut probes: BTreeSet<Vip> = state.probes.into_iter().collect();
        probes.extend(self.probed.values());
        state.probes = probes.into_iter().collect();
        state
    }
}
