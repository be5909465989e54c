//! Runs alternately: the wrapper alone, one hash lookup, and the timed programs, each in every
//! round, so that disturbances of the machine hit all.

use katran_yardstick::Peer;
use katran_yardstick::Yardstick;

use crate::options::Effort;
use crate::timed::Balancer;
use crate::timed::Ours;
use crate::traffic::PASS;
use crate::traffic::Traffic;

/// Nanoseconds a packet, for each round in order, minus the wrapper's.
pub(crate) struct Runs {
    pub(crate) ours: Vec<f64>,
    /// Empty without a program of Katran's.
    pub(crate) katrans: Vec<f64>,
    pub(crate) lookups: Vec<f64>,
}

impl Runs {
    /// Times the balancer, and Katran's if there is one, on packets of `flows` flows, of which the
    /// balancer has not seen `unknown`.
    pub(crate) fn take(
        ours: Ours<'_>,
        peer: Option<&Peer>,
        traffic: &Traffic,
        flows: u32,
        unknown: u32,
        effort: &Effort,
    ) -> Self {
        let stick = Yardstick::new(&traffic.frame, flows).unwrap();
        let mut balancers = vec![Balancer::Ours(ours)];
        balancers.extend(peer.map(Balancer::Katrans));
        // All flows once, so that the flow table knows them; if they never repeat, until it is
        // full.
        let first = u64::from(flows).min(2 * effort.flow_table_size) as u32;
        for balancer in &balancers {
            balancer.run(&stick, traffic, first, unknown);
        }

        let mut runs = Self {
            ours: Vec::new(),
            katrans: Vec::new(),
            lookups: Vec::new(),
        };
        for _ in 0..effort.rounds {
            let run = |program| stick.run(program, effort.packets).unwrap();
            let wrapper = run(stick.nothing());
            let lookup = run(stick.one_lookup());
            assert_eq!((wrapper.action, lookup.action), (PASS, PASS));
            runs.lookups.push(lookup.nanoseconds - wrapper.nanoseconds);
            for balancer in &balancers {
                let measured = balancer.run(&stick, traffic, effort.packets, 0);
                let times = match balancer {
                    Balancer::Ours(_) => &mut runs.ours,
                    Balancer::Katrans(_) => &mut runs.katrans,
                };
                times.push(measured.nanoseconds - wrapper.nanoseconds);
            }
            // The first in one round is the last in the next.
            balancers.reverse();
        }
        for balancer in &balancers {
            for flow in [0, flows / 2, flows - 1] {
                balancer.check_frame(&stick, traffic, flow, ours.katran);
            }
        }
        runs
    }
}
