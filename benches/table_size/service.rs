//! Changes of the service while connections continue: when each real is drained, added and removed,
//! and the ring after it.

use std::net::Ipv4Addr;
use std::rc::Rc;

use katran::HashFunction;
use katran::ring::Endpoint;
use katran::ring::Ring;
use katran::ring::RingSize;

/// Ticks of the simulation in a second.
pub(crate) const SECOND: u32 = 50;
pub(crate) const REALS: u16 = 100;

/// A real's standing in the service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    /// Not added yet, or removed.
    Gone,
    Drained,
    TakesNew,
}

/// One change of the service, as by one call of `modify_reals`.
pub(crate) struct Change {
    pub(crate) at: u32,
    pub(crate) ring: Rc<[u16]>,
    /// The new standing of reals, by number.
    pub(crate) reals: Vec<(u16, Standing)>,
}

/// The kind of rolling deployment. Reals take turns in equal steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rollout {
    /// One change drains the real and adds another in its place; the old one is removed this many
    /// seconds later.
    Replaced { drained_for: u32 },
    /// The real is drained, removed this many seconds later, and the same address is added again a
    /// minute after that.
    Restarted { drained_for: u32 },
}

/// Seconds that a server takes to restart.
const RESTART: u32 = 60;

impl Rollout {
    /// The changes in order. The first one makes the service, at 0; the deployment starts at
    /// `start` and takes `length`, in ticks.
    pub(crate) fn changes(self, start: u32, length: u32) -> Vec<Change> {
        let all: Vec<_> = (1..=REALS)
            .map(|number| (0, number, number, Standing::TakesNew))
            .collect();
        let mut steps = all;
        for turn in 0..REALS {
            let at = start + length / u32::from(REALS) * u32::from(turn);
            let (old, new) = (1 + turn, 1 + REALS + turn);
            steps.push((at, old, old, Standing::Drained));
            match self {
                Self::Replaced { drained_for } => {
                    steps.push((at, new, new, Standing::TakesNew));
                    steps.push((at + drained_for * SECOND, old, old, Standing::Gone));
                }
                Self::Restarted { drained_for } => {
                    let removed = at + drained_for * SECOND;
                    steps.push((removed, old, old, Standing::Gone));
                    let back = removed + RESTART * SECOND;
                    steps.push((back, new, old, Standing::TakesNew));
                }
            }
        }
        steps.sort_by_key(|step| step.0);
        let mut service: Vec<Endpoint> = Vec::new();
        let mut changes: Vec<Change> = Vec::new();
        for same_time in steps.chunk_by(|one, next| one.0 == next.0) {
            for &(_, number, host, standing) in same_time {
                service.retain(|endpoint| endpoint.number() != number);
                if standing == Standing::TakesNew {
                    let address = Ipv4Addr::from_bits(0xc612_0000 + u32::from(host));
                    service.push(Endpoint::new(number, address.into(), 1));
                }
            }
            let ring = Ring::build(HashFunction::MaglevV2, RingSize::DEFAULT, &service).unwrap();
            changes.push(Change {
                at: same_time[0].0,
                ring: ring.slots().into(),
                reals: same_time.iter().map(|step| (step.1, step.3)).collect(),
            });
        }
        changes
    }
}
