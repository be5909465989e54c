//! A SYN flood and what it affects: the flood guard, and established flows that each send at their
//! own interval. Time advances in steps, so that a model and a kernel can play the same.

use crate::FlowTable;
use crate::traffic::scattered;

/// Milliseconds from one step to the next.
const STEP: u32 = 50;
const STEPS_A_SECOND: u32 = 1000 / STEP;

/// The traffic.
#[derive(Clone, Debug)]
pub struct Flood {
    /// For each group of established flows, the milliseconds between a flow's packets; a multiple
    /// of 50.
    pub intervals: Vec<u32>,
    /// Flows in each group.
    pub flows: u32,
    /// SYNs a second, each of a new flow.
    pub rate: u32,
    /// New flows a second that the flood guard allows: the second's first ones.
    pub limit: u32,
}

impl Flood {
    /// A group's flows that send in a step; over an interval, each sends once.
    pub fn established(&self, group: usize, step: u32) -> impl Iterator<Item = u32> {
        let steps = (self.intervals[group] / STEP).max(1);
        let flows = self.flows;
        let first = group as u32 * flows;
        let due = (0..flows).filter(move |flow| flow * steps / flows == step % steps);
        due.map(move |flow| scattered(first + flow))
    }

    /// A step's new flows that are remembered. SYNs are not looked up, so the others leave no trace
    /// in a table.
    pub fn remembered(&self, step: u32) -> impl Iterator<Item = u32> {
        let established = self.intervals.len() as u32 * self.flows;
        let first = established + step * self.a_step();
        let room = self.limit.saturating_sub(self.in_window(step));
        (first..first + self.a_step().min(room)).map(scattered)
    }

    /// Whether the guard already acts when a step begins, so that no new flow is remembered.
    pub fn guarded(&self, step: u32) -> bool {
        self.in_window(step) >= self.limit
    }

    fn a_step(&self) -> u32 {
        self.rate / STEPS_A_SECOND
    }

    /// SYNs of the current second before a step. The guard also counts packets of established flows
    /// that lost their entry, but these are few.
    fn in_window(&self, step: u32) -> u32 {
        step % STEPS_A_SECOND * self.a_step()
    }

    /// All established flows, in sending order.
    pub fn all_established(&self) -> impl Iterator<Item = u32> {
        (0..self.intervals.len()).flat_map(move |group| {
            let steps = 0..self.intervals[group] / STEP;
            steps.flat_map(move |step| self.established(group, step))
        })
    }

    /// Plays these seconds on a table that knows all established flows; returns, for each second
    /// and group, the share of packets that found their flow. The table's clock ticks once a step.
    pub fn play(&self, table: &mut impl FlowTable, seconds: u32) -> Vec<Vec<f64>> {
        self.all_established()
            .for_each(|flow| table.remember(flow, 0));
        self.shares(seconds, |step, packets| match packets {
            Packets::Established(flows) => {
                let mut hits = 0;
                for flow in flows {
                    if table.find(*flow, step + 1) {
                        hits += 1;
                    } else if !self.guarded(step) {
                        table.remember(*flow, step + 1);
                    }
                }
                hits
            }
            Packets::Remembered(flows) => {
                flows
                    .iter()
                    .for_each(|flow| table.remember(*flow, step + 1));
                0
            }
        })
    }

    /// The same on anything else: `send` returns how many packets of established flows found their
    /// flow.
    pub fn shares(
        &self,
        seconds: u32,
        mut send: impl FnMut(u32, Packets<'_>) -> u64,
    ) -> Vec<Vec<f64>> {
        let second = |second| {
            let mut hits = vec![Share::default(); self.intervals.len()];
            for step in second * STEPS_A_SECOND..(second + 1) * STEPS_A_SECOND {
                for (group, hits) in hits.iter_mut().enumerate() {
                    let flows: Vec<u32> = self.established(group, step).collect();
                    if !flows.is_empty() {
                        hits.some += send(step, Packets::Established(&flows));
                        hits.all += flows.len() as u64;
                    }
                }
                let flows: Vec<u32> = self.remembered(step).collect();
                if !flows.is_empty() {
                    send(step, Packets::Remembered(&flows));
                }
            }
            hits.iter().map(Share::share).collect()
        };
        (0..seconds).map(second).collect()
    }
}

/// One step's packets, by flow.
#[derive(Clone, Copy, Debug)]
pub enum Packets<'a> {
    /// Packets of established flows.
    Established(&'a [u32]),
    /// SYNs that the guard allows.
    Remembered(&'a [u32]),
}

#[derive(Clone, Copy, Default)]
struct Share {
    some: u64,
    all: u64,
}

impl Share {
    fn share(&self) -> f64 {
        self.some as f64 / self.all as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::num::NonZeroUsize;

    use super::*;
    use crate::ExactLru;

    fn flood(intervals: [u32; 2], flows: u32, limit: u32) -> Flood {
        Flood {
            intervals: intervals.into(),
            flows,
            rate: 1000,
            limit,
        }
    }

    #[test]
    fn each_flow_sends_once_an_interval_and_no_syn_comes_twice() {
        let flood = flood([250, 150], 12, u32::MAX);
        let mut seen = HashSet::new();
        for (group, steps) in [(0, 5), (1, 3)] {
            let flows: Vec<u32> = (7..7 + steps)
                .flat_map(|step| flood.established(group, step))
                .collect();
            assert_eq!(flows.len(), 12);
            seen.extend(flows);
        }
        assert_eq!(seen, flood.all_established().collect());
        (0..20).for_each(|step| seen.extend(flood.remembered(step)));
        assert_eq!(seen.len(), 2 * 12 + 20 * 50);
    }

    #[test]
    fn the_guard_lets_the_first_of_each_second_pass() {
        let flood = flood([250, 150], 12, 120);
        for second in [0, 1, 7] {
            let steps = (0..4).map(|step| second * STEPS_A_SECOND + step);
            let passed: Vec<(bool, usize)> = steps
                .map(|step| (flood.guarded(step), flood.remembered(step).count()))
                .collect();
            assert_eq!(passed, [(false, 50), (false, 50), (false, 20), (true, 0)]);
        }
    }

    #[test]
    fn an_exact_lru_keeps_what_sends_before_so_many_others_came() {
        // 100 remembered a second, 300 entries: flows that send every 2 s stay, those every 5 s do
        // not.
        let table = || ExactLru::new(NonZeroUsize::new(300).unwrap());
        let seconds = flood([2000, 5000], 20, 100).play(&mut table(), 20);
        assert_eq!(seconds.len(), 20);
        assert!(seconds.iter().all(|second| second[0] == 1.0), "{seconds:?}");
        assert!(seconds[10..].iter().all(|second| second[1] < 0.1));
        // Without a limit ten times as many are remembered.
        let seconds = flood([2000, 5000], 20, u32::MAX).play(&mut table(), 10);
        assert!(seconds[5..].iter().all(|second| second[0] == 0.0));
    }
}
