//! What follows from probes: which reals are up, and the weights that they get. Pure, so that it can be
//! tested without a network.
//!
//! The configuration file says what an operator wants; probes say what works. A real gets its weight of
//! the file if it is up, and 0 if it is not: it takes no new flows then, and keeps those that it has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use katran::MarkState;
use katran::Real;
use katran::State;
use katran::Vip;

/// How many probes in a row change one's mind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

/// A real of a VIP, as probes have found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Health {
    up: bool,
    /// Probes in a row that say otherwise.
    against: u32,
}

impl Default for Health {
    /// Innocent until proven guilty: a restarted checker takes nobody out.
    fn default() -> Self {
        Self {
            up: true,
            against: 0,
        }
    }
}

/// Something that an operator may want to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A real has come up or gone down.
    Changed { vip: Vip, real: IpAddr, up: bool },
    /// All reals of a VIP are down: the last weights stay.
    Kept { vip: Vip },
    /// That is over.
    Recovered { vip: Vip },
}

/// One real of a VIP to probe, and the mark that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) vip: Vip,
    pub(crate) real: IpAddr,
    pub(crate) mark: u32,
}

/// The file's state and the probes' results.
pub(crate) struct Board {
    wanted: State,
    thresholds: Thresholds,
    first_mark: u32,
    marks: BTreeMap<IpAddr, u32>,
    health: BTreeMap<(Vip, IpAddr), Health>,
    /// The weights in force.
    weights: BTreeMap<(Vip, IpAddr), u32>,
    /// VIPs whose reals are all down.
    kept: BTreeMap<Vip, bool>,
}

impl Board {
    pub(crate) fn new(wanted: State, thresholds: Thresholds, first_mark: u32) -> Self {
        let mut board = Self {
            wanted: State::default(),
            thresholds,
            first_mark,
            marks: BTreeMap::new(),
            health: BTreeMap::new(),
            weights: BTreeMap::new(),
            kept: BTreeMap::new(),
        };
        board.set_wanted(wanted);
        board
    }

    /// Another file. What probes have found of reals that stay is kept.
    pub(crate) fn set_wanted(&mut self, wanted: State) {
        let pairs: Vec<_> = pairs(&wanted).collect();
        self.health.retain(|pair, _| pairs.contains(pair));
        self.weights.retain(|pair, _| pairs.contains(pair));
        self.kept
            .retain(|vip, _| pairs.iter().any(|(of, _)| of == vip));
        self.marks
            .retain(|real, _| pairs.iter().any(|(_, of)| of == real));
        for pair in pairs {
            self.health.entry(pair).or_default();
            let mark = self.free_mark();
            self.marks.entry(pair.1).or_insert(mark);
        }
        self.wanted = wanted;
    }

    fn free_mark(&self) -> u32 {
        let taken: Vec<_> = self.marks.values().collect();
        (self.first_mark..u32::MAX)
            .find(|mark| !taken.contains(&mark))
            .unwrap_or(u32::MAX)
    }

    /// Everything to probe: drained reals, too, so that it is known how they are.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let targets = self.health.keys().map(|(vip, real)| Target {
            vip: *vip,
            real: *real,
            mark: self.marks[real],
        });
        targets.collect()
    }

    /// The result of a probe; a notice if it has changed anything.
    pub(crate) fn record(&mut self, vip: Vip, real: IpAddr, works: bool) -> Option<Notice> {
        let health = self.health.get_mut(&(vip, real))?;
        if works == health.up {
            health.against = 0;
            return None;
        }
        health.against += 1;
        let enough = match works {
            true => self.thresholds.rise,
            false => self.thresholds.fall,
        };
        if health.against < enough {
            return None;
        }
        *health = Health {
            up: works,
            against: 0,
        };
        Some(Notice::Changed {
            vip,
            real,
            up: works,
        })
    }

    /// The state to apply now: the file's, with weights by health and the marks of probes.
    pub(crate) fn state(&mut self) -> (State, Vec<Notice>) {
        let mut state = self.wanted.clone();
        let mut notices = Vec::new();
        for of_vip in &mut state.vips {
            let vip = of_vip.vip;
            let up = |real: &Real| self.health[&(vip, real.address())].up;
            let in_use = |real: &&Real| real.get_weight() > 0;
            let any_wanted = of_vip.reals.iter().any(|real| in_use(&real));
            let any_up = of_vip.reals.iter().filter(in_use).any(up);
            let keep = any_wanted && !any_up;
            if keep != self.kept.get(&vip).copied().unwrap_or(false) {
                notices.push(match keep {
                    true => Notice::Kept { vip },
                    false => Notice::Recovered { vip },
                });
            }
            self.kept.insert(vip, keep);
            // What was in force, as far as the operator still wants it; all of it, if that is nothing.
            let last = |real: &Real| {
                let last = self.weights.get(&(vip, real.address())).copied();
                last.unwrap_or(real.get_weight()).min(real.get_weight())
            };
            let any_last = of_vip.reals.iter().any(|real| last(real) > 0);
            let weights: Vec<_> = of_vip
                .reals
                .iter()
                .map(|real| match (keep, any_last) {
                    (false, _) => u32::from(up(real)) * real.get_weight(),
                    (true, true) if last(real) == 0 => 0,
                    (true, _) => real.get_weight(),
                })
                .collect();
            for (real, weight) in of_vip.reals.iter_mut().zip(weights) {
                self.weights.insert((vip, real.address()), weight);
                *real = real.weight(weight);
            }
        }
        let marks = self.marks.iter();
        state
            .marks
            .extend(marks.map(|(real, mark)| MarkState::new(*mark, *real)));
        (state, notices)
    }
}

/// Reals of VIPs that can be probed: of one address and port.
fn pairs(state: &State) -> impl Iterator<Item = (Vip, IpAddr)> {
    let vips = state.vips.iter();
    vips.flat_map(|of_vip| {
        let reals = of_vip.reals.iter().map(Real::address);
        reals.map(|real| (of_vip.vip, real))
    })
}
