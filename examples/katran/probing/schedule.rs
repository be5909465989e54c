//! When which real is probed: each at intervals of its own, a tenth shorter or longer each time, so
//! that they neither start at once nor fall into step. Pure, so that it can be tested without
//! waiting.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;
use std::time::Duration;
use std::time::Instant;

use super::board::Target;

/// A probe that is due or on its way. Its number tells it from one that was given up for the same
/// target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Job {
    pub(crate) target: Target,
    number: u64,
}

/// The probes to come.
pub(crate) struct Schedule {
    interval: Duration,
    /// How many may be on their way at once: each holds a descriptor.
    limit: usize,
    on_their_way: usize,
    current: BTreeMap<Target, u64>,
    due: BinaryHeap<Reverse<(Instant, Job)>>,
    last_number: u64,
}

impl Schedule {
    pub(crate) fn new(interval: Duration, limit: usize) -> Self {
        Self {
            interval,
            limit,
            on_their_way: 0,
            current: BTreeMap::new(),
            due: BinaryHeap::new(),
            last_number: 0,
        }
    }

    /// Probes these from now on, and no others.
    pub(crate) fn follow(&mut self, targets: &[Target], now: Instant) {
        let mut before = std::mem::take(&mut self.current);
        for target in targets {
            let number = before.remove(target).unwrap_or_else(|| {
                self.last_number += 1;
                let job = Job {
                    target: *target,
                    number: self.last_number,
                };
                let first = now + self.interval.mul_f64(fastrand::f64());
                self.due.push(Reverse((first, job)));
                self.last_number
            });
            self.current.insert(*target, number);
        }
    }

    /// A probe to send now, if there is one; to be told of by [`finished`](Self::finished).
    pub(crate) fn next(&mut self, now: Instant) -> Option<Job> {
        while self.on_their_way < self.limit {
            let Reverse((when, job)) = *self.due.peek()?;
            if when > now {
                return None;
            }
            self.due.pop();
            if self.is_current(&job) {
                self.on_their_way += 1;
                return Some(job);
            }
        }
        None
    }

    /// When to ask for the next one; `None`: when one is finished, or there are others.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let due = self.due.peek().map(|Reverse((when, _))| *when);
        due.filter(|_| self.on_their_way < self.limit)
    }

    /// A probe has ended; whether anybody still wants to know how.
    pub(crate) fn finished(&mut self, job: &Job, now: Instant) -> bool {
        self.on_their_way -= 1;
        let is_current = self.is_current(job);
        if is_current {
            let pause = self.interval.mul_f64(0.9 + 0.2 * fastrand::f64());
            self.due.push(Reverse((now + pause, *job)));
        }
        is_current
    }

    fn is_current(&self, job: &Job) -> bool {
        self.current.get(&job.target) == Some(&job.number)
    }
}
