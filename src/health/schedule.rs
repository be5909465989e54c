//! When each real is probed: at its interval with random jitter, so that probes neither start at
//! once nor synchronise. No I/O and no clock.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;
use std::time::Duration;
use std::time::Instant;

use fastrand::Rng;

use super::board::Target;

/// The time between the first probes of a real.
const FAST: Duration = Duration::from_millis(250);
/// The number of those probes.
const FAST_PROBES: u32 = 4;
/// The time between the first probes of different reals.
const APART: Duration = Duration::from_micros(100);

/// A probe that is due or in flight. Its number distinguishes it from an abandoned one of the same
/// target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Job {
    pub(super) target: Target,
    number: u64,
}

/// How often a target is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) interval: Duration,
    /// In percent of the interval.
    pub(super) jitter: u32,
}

/// A probed target.
#[derive(Clone, Copy, Debug)]
struct Row {
    number: u64,
    pace: Pace,
    fast_left: u32,
    is_on_its_way: bool,
    /// Probe it at once, as soon as it is not in flight.
    hurries: bool,
}

/// The probes to come.
pub(super) struct Schedule {
    rng: Rng,
    /// The largest number of probes in flight.
    limit: usize,
    on_their_way: usize,
    rows: BTreeMap<Target, Row>,
    due: BinaryHeap<Reverse<(Instant, Job)>>,
    last_number: u64,
}

impl Schedule {
    pub(super) fn new(limit: usize, seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            limit,
            on_their_way: 0,
            rows: BTreeMap::new(),
            due: BinaryHeap::new(),
            last_number: 0,
        }
    }

    /// Probes only these from now on.
    pub(super) fn follow(&mut self, targets: impl Iterator<Item = (Target, Pace)>, now: Instant) {
        let mut before = std::mem::take(&mut self.rows);
        let mut fresh = Vec::new();
        for (target, pace) in targets {
            let row = match before.remove(&target) {
                Some(row) => Row { pace, ..row },
                None => {
                    self.last_number += 1;
                    let number = self.last_number;
                    fresh.push(Job { target, number });
                    Row {
                        number,
                        pace,
                        fast_left: FAST_PROBES,
                        is_on_its_way: false,
                        hurries: false,
                    }
                }
            };
            self.rows.insert(target, row);
        }
        // Spread the targets of one VIP, and of one real.
        self.rng.shuffle(&mut fresh);
        for (job, at) in fresh.into_iter().zip(0..) {
            self.due.push(Reverse((now + APART * at, job)));
        }
        self.prune();
    }

    /// Removes outdated entries once they are the majority.
    fn prune(&mut self) {
        if self.due.len() > 2 * self.rows.len() {
            let rows = &self.rows;
            self.due.retain(|Reverse((_, job))| is_current(rows, job));
        }
    }

    /// Probes this target now, or right after its probe in flight.
    pub(super) fn hurry(&mut self, target: Target, now: Instant) {
        let Some(row) = self.rows.get_mut(&target) else {
            return;
        };
        if row.is_on_its_way {
            row.hurries = true;
            return;
        }
        // Its present entry becomes outdated.
        self.last_number += 1;
        row.number = self.last_number;
        let number = row.number;
        self.due.push(Reverse((now, Job { target, number })));
        self.prune();
    }

    /// The next probe that is due; report its end to [`finished`](Self::finished).
    pub(super) fn next(&mut self, now: Instant) -> Option<Job> {
        while self.on_their_way < self.limit {
            let Reverse((when, job)) = *self.due.peek()?;
            if when > now {
                return None;
            }
            self.due.pop();
            if let Some(row) = self.rows.get_mut(&job.target)
                && row.number == job.number
            {
                row.is_on_its_way = true;
                self.on_their_way += 1;
                return Some(job);
            }
        }
        None
    }

    /// When to ask for the next one; `None`: when a probe finishes or targets change.
    pub(super) fn wake(&self) -> Option<Instant> {
        let due = self.due.peek().map(|Reverse((when, _))| *when);
        due.filter(|_| self.on_their_way < self.limit)
    }

    /// Records the end of a probe; returns whether its result is still wanted.
    pub(super) fn finished(&mut self, job: &Job, now: Instant) -> bool {
        self.on_their_way -= 1;
        let Some(row) = self.rows.get_mut(&job.target) else {
            return false;
        };
        if row.number != job.number {
            return false;
        }
        row.is_on_its_way = false;
        let Pace { interval, jitter } = row.pace;
        let interval = match row.fast_left {
            0 => interval,
            _ => interval.min(FAST),
        };
        row.fast_left = row.fast_left.saturating_sub(1);
        let jitter = f64::from(jitter) / 100.0;
        let pause = match std::mem::take(&mut row.hurries) {
            true => Duration::ZERO,
            false => interval.mul_f64(1.0 - jitter + 2.0 * jitter * self.rng.f64()),
        };
        self.due.push(Reverse((now + pause, *job)));
        true
    }
}

fn is_current(rows: &BTreeMap<Target, Row>, job: &Job) -> bool {
    let row = rows.get(&job.target);
    row.is_some_and(|row| row.number == job.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hurried_again_and_again_leaves_nothing_behind() {
        let target = Target {
            vip: "203.0.113.1:80/tcp".parse().unwrap(),
            real: [198, 51, 100, 1].into(),
        };
        let interval = Duration::from_secs(3600);
        let pace = Pace {
            interval,
            jitter: 0,
        };
        let mut schedule = Schedule::new(1, 1);
        let now = Instant::now();
        schedule.follow([(target, pace)].into_iter(), now);
        for _ in 0..100 {
            schedule.hurry(target, now);
            let job = schedule.next(now).unwrap();
            assert!(schedule.finished(&job, now));
        }
        assert!(schedule.due.len() <= 2, "{}", schedule.due.len());
    }
}
