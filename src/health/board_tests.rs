//! What results change, without a network, a balancer or a clock.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use proptest::prelude::*;

use super::board::Board;
use super::board::Target;
use super::check::Check;
use super::outcome::Cause;
use super::outcome::Outcome;
use super::policy::Policy;
use super::policy::Via;
use super::report::Event;
use super::score::Status;
use super::settings::MARKS;
use super::settings::Settings;
use crate::document::MarkState;
use crate::document::State;
use crate::document::VipState;
use crate::types::HashFunction;
use crate::types::Real;
use crate::types::Vip;

const WEB: &str = "203.0.113.1:80/tcp";

fn vip() -> Vip {
    WEB.parse().unwrap()
}

fn real(last: u8) -> IpAddr {
    [198, 51, 100, last].into()
}

fn failed() -> Outcome {
    Outcome::Failed(Cause::Refused, "refused".to_owned())
}

/// One VIP with reals .1, .2 and so on, of these weights.
fn wanted(weights: &[u32]) -> State {
    let mut of_vip = VipState::new(vip());
    for (weight, last) in weights.iter().zip(1..) {
        of_vip.reals.push(Real::new(real(last)).weight(*weight));
    }
    let mut state = State::default();
    state.vips.push(of_vip);
    state
}

/// A board with a clock.
struct Scene {
    board: Board,
    now: Instant,
    /// The state that was applied to the balancer.
    told: State,
}

impl Scene {
    fn with(policy: Policy, weights: &[u32]) -> Self {
        let settings = Settings {
            tcp: policy,
            first_mark: 100,
            history: 4,
            ..Settings::default()
        };
        let mut scene = Self {
            board: Board::new(Arc::new(settings)),
            now: Instant::now(),
            told: State::default(),
        };
        scene.follow(&wanted(weights));
        scene
    }

    fn new(rise: u32, fall: u32, weights: &[u32]) -> Self {
        let policy = Policy {
            rise,
            fall,
            ..Policy::new(Check::Tcp)
        };
        Self::with(policy, weights)
    }

    /// A board whose reals have all answered.
    fn up(policy: Policy, weights: &[u32]) -> Self {
        let mut scene = Self::with(policy, weights);
        for last in 1..=weights.len() as u8 {
            scene.is(last, Outcome::Passed);
        }
        scene
    }

    fn follow(&mut self, wanted: &State) {
        self.board.follow_document(wanted).unwrap();
        let mut state = wanted.clone();
        self.tell(&mut state);
    }

    fn tell(&mut self, state: &mut State) {
        self.board.put_into(state, self.now);
        self.board.told(state);
        self.told = state.clone();
    }

    /// One round of the driver, after others have changed the balancer.
    fn round(&mut self, others: fn(&mut State)) {
        let mut state = self.told.clone();
        others(&mut state);
        self.board.follow_balancer(&state).unwrap();
        self.tell(&mut state);
    }

    /// Records a probe's result and returns the events. Checks that exactly the necessary changes
    /// are applied to the balancer.
    fn is(&mut self, last: u8, outcome: Outcome) -> Vec<Event> {
        self.now += Duration::from_millis(100);
        let target = Target {
            vip: vip(),
            real: real(last),
        };
        // Weights that climb have climbed until now.
        self.round(|_| ());
        let before = self.weights();
        let (effects, events) = self.board.record(target, outcome, self.now);
        self.round(|_| ());
        assert!(effects.tell || self.weights() == before, "{events:?}");
        events
    }

    fn times(&mut self, count: u32, last: u8, outcome: &Outcome) {
        for _ in 0..count {
            self.is(last, outcome.clone());
        }
    }

    /// The weights of reals in the ring: 0 for those that are down.
    fn weights(&self) -> Vec<u32> {
        let of_vip = &self.told.vips[0];
        let weight = |real: &Real| match of_vip.down.contains(&real.address()) {
            true => 0,
            false => real.get_weight(),
        };
        of_vip.reals.iter().map(weight).collect()
    }

    fn status(&self, last: u8) -> Status {
        self.board.services[&vip()].members[&real(last)]
            .score
            .status()
    }
}

#[test]
fn nobody_is_out_before_it_was_probed_and_the_first_result_counts() {
    let mut scene = Scene::new(2, 3, &[1, 1, 1]);
    assert_eq!(scene.weights(), [1, 1, 1]);
    assert!(!scene.board.is_clear());
    scene.is(1, failed());
    assert_eq!(scene.status(1), Status::Down);
    assert_eq!(scene.weights(), [1, 1, 1], "it may be the checker");
    // Failures before any answer say nothing.
    scene.is(2, Outcome::Passed);
    assert_eq!(scene.weights(), [1, 1, 1]);
    scene.is(1, failed());
    assert_eq!(scene.weights(), [1, 1, 1]);
    scene.is(2, Outcome::Passed);
    assert_eq!(scene.weights(), [0, 1, 1]);
    assert!(!scene.board.is_clear(), "the third has not answered");
    scene.is(3, Outcome::NotSent("no descriptor".to_owned()));
    assert_eq!(scene.status(3), Status::Unknown);
    assert!(scene.board.is_clear(), "and it cannot be asked");
    assert_eq!(scene.weights(), [0, 1, 1]);
}

#[test]
fn it_takes_several_results_to_change_ones_mind() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[3, 4]);
    scene.times(2, 1, &failed());
    scene.is(1, Outcome::Passed);
    scene.times(2, 1, &failed());
    assert_eq!(scene.status(1), Status::Up);
    let events = scene.is(1, failed());
    let line = events[0].to_string();
    assert_eq!(
        line,
        "203.0.113.1:80/tcp: real 198.51.100.1 is down: refused"
    );
    assert_eq!(scene.weights(), [3, 4], "until another one answers");
    let events = scene.is(2, Outcome::Passed);
    assert_eq!(
        events[0].to_string(),
        "203.0.113.1:80/tcp: real 198.51.100.1 gets no flows"
    );
    assert_eq!(scene.weights(), [0, 4]);
    for outcome in [Outcome::Passed, failed(), Outcome::Passed] {
        scene.is(1, outcome);
        assert_eq!(scene.weights(), [0, 4]);
    }
    let events = scene.is(1, Outcome::Passed);
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(scene.weights(), [3, 4]);
}

/// A believed failure asks for an answer that proves it.
#[test]
fn an_answer_of_another_real_is_asked_for() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[1, 1, 0]);
    scene.times(2, 1, &failed());
    let target = Target {
        vip: vip(),
        real: real(1),
    };
    let (effects, _) = scene.board.record(target, failed(), scene.now);
    assert_eq!(effects.ask, Some(real(2)), "not the drained one");
}

#[test]
fn a_checker_that_is_cut_off_takes_nobody_out() {
    for (rise, fall) in [(2, 3), (1, 1), (3, 1), (1, 4)] {
        let policy = Policy {
            rise,
            fall,
            ..Policy::new(Check::Tcp)
        };
        let mut scene = Scene::up(policy, &[1, 2, 3]);
        let mut panics = 0;
        for round in 0..12 {
            for i in 0..3 {
                let events = scene.is(1 + (round + i) % 3, failed());
                let told = |event: &&Event| matches!(event, Event::Panics { panics: true, .. });
                panics += events.iter().filter(told).count();
                assert_eq!(scene.weights(), [1, 2, 3], "{rise} {fall}");
            }
        }
        assert_eq!(panics, 1);
        // The first comes up well before the others, whose earlier probes fail in the meantime.
        scene.times(rise, 2, &Outcome::Passed);
        for last in [1, 3] {
            scene.times(fall - 1, last, &failed());
        }
        for _ in 0..rise {
            for last in [3, 2, 1] {
                scene.is(last, Outcome::Passed);
                assert_eq!(scene.weights(), [1, 2, 3], "{rise} {fall}");
            }
        }
        assert!(!scene.board.services[&vip()].panics);
    }
}

#[test]
fn the_last_set_stays_if_too_few_work() {
    let policy = Policy {
        panic_threshold: 50,
        ..Policy::new(Check::Tcp)
    };
    let mut scene = Scene::up(policy, &[1, 1, 1, 1]);
    for last in [1, 2] {
        scene.times(3, last, &failed());
        scene.is(4, Outcome::Passed);
    }
    assert_eq!(scene.weights(), [0, 0, 1, 1], "half of them are enough");
    scene.times(2, 3, &failed());
    let events = scene.is(3, failed());
    assert!(events.contains(&Event::Panics {
        vip: vip(),
        panics: true
    }));
    scene.times(3, 4, &Outcome::Passed);
    assert_eq!(scene.weights(), [0, 0, 1, 1], "a quarter is not");
    assert!(scene.board.is_clear());
    scene.times(2, 1, &Outcome::Passed);
    assert!(!scene.board.services[&vip()].panics);
    assert_eq!(scene.weights(), [1, 0, 0, 1]);
}

#[test]
fn drained_reals_serve_if_nobody_else_does() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[5, 7, 0, 0]);
    scene.times(3, 4, &failed());
    scene.times(3, 1, &failed());
    scene.times(2, 2, &failed());
    let events = scene.is(2, failed());
    let falls_back = |is: bool| Event::FallsBack {
        vip: vip(),
        falls_back: is,
    };
    assert!(events.contains(&falls_back(true)), "{events:?}");
    assert_eq!(scene.weights(), [5, 7, 1, 0]);
    scene.is(3, Outcome::Passed);
    assert_eq!(scene.weights(), [0, 0, 1, 0]);
    assert!(!scene.board.services[&vip()].panics);
    // The drained one goes too, so that all is as before.
    scene.times(3, 3, &failed());
    assert_eq!(scene.weights(), [5, 7, 0, 0]);
    scene.times(2, 3, &Outcome::Passed);
    assert_eq!(scene.weights()[2], 1);
    scene.is(1, Outcome::Passed);
    let events = scene.is(1, Outcome::Passed);
    assert!(events.contains(&falls_back(false)), "{events:?}");
    assert_eq!(scene.weights()[2], 0, "drained again");
    assert_eq!(scene.weights()[0], 5);
}

#[test]
fn drained_reals_stay_so_if_the_policy_says_so() {
    let policy = Policy {
        drained_fallback: false,
        ..Policy::new(Check::Tcp)
    };
    let mut scene = Scene::up(policy, &[5, 0]);
    scene.times(3, 1, &failed());
    scene.times(3, 2, &Outcome::Passed);
    assert_eq!(scene.weights(), [5, 0]);
    assert!(scene.board.services[&vip()].panics);
}

#[test]
fn one_that_joins_others_waits_for_its_first_answer() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[1, 1]);
    scene.follow(&wanted(&[1, 1, 1, 1, 1]));
    assert_eq!(scene.weights(), [1, 1, 0, 0, 0]);
    assert!(!scene.board.is_clear());
    scene.is(3, Outcome::Passed);
    scene.is(4, failed());
    // A real without a check is not to blame.
    scene.is(5, Outcome::NotSent("no route".to_owned()));
    assert_eq!(scene.weights(), [1, 1, 1, 0, 1]);
    // If all others are down, it does not wait.
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[1]);
    scene.times(3, 1, &failed());
    scene.follow(&wanted(&[1, 1]));
    assert_eq!(scene.weights(), [1, 1]);
}

#[test]
fn the_weight_of_one_that_comes_back_climbs() {
    let policy = Policy {
        rise: 1,
        fall: 1,
        slow_start: Duration::from_secs(40),
        slow_start_steps: 4,
        ..Policy::new(Check::Tcp)
    };
    let mut scene = Scene::up(policy.clone(), &[3, 5]);
    assert_eq!(scene.weights(), [3, 5], "not at the start");
    scene.is(1, failed());
    scene.is(2, Outcome::Passed);
    assert_eq!(scene.weights(), [0, 5]);
    let began = scene.now + Duration::from_millis(100);
    scene.is(1, Outcome::Passed);
    assert_eq!(scene.weights(), [3, 20], "a quarter of its share");
    for (step, weights) in [(1, [6, 20]), (2, [9, 20]), (3, [3, 5])] {
        let due = scene.board.next_step(scene.now).unwrap();
        assert_eq!(due, began + Duration::from_secs(10 * step));
        scene.now = due - Duration::from_millis(1);
        let before = scene.weights();
        scene.round(|_| ());
        assert_eq!(scene.weights(), before);
        scene.now = due;
        scene.round(|_| ());
        assert_eq!(scene.weights(), weights);
    }
    assert_eq!(scene.board.next_step(scene.now), None);
    // It goes down during its climb, an operator changes weights, and the other hash function has
    // no ratios.
    scene.is(1, failed());
    scene.is(2, Outcome::Passed);
    scene.is(1, Outcome::Passed);
    scene.follow(&wanted(&[8, 5]));
    assert_eq!(scene.weights(), [8, 20]);
    let mut maglev = wanted(&[8, 5]);
    maglev.vips[0].hash = Some(HashFunction::Maglev);
    scene.follow(&maglev);
    assert_eq!(scene.weights(), [8, 5]);
    scene.follow(&wanted(&[u32::MAX, 5]));
    assert_eq!(scene.weights(), [u32::MAX, 5], "no room to multiply");
    // All at once: there is no other real to serve.
    let mut scene = Scene::with(policy, &[2, 2]);
    scene.round(|state| state.vips[0].down = vec![real(1), real(2)]);
}

#[test]
fn weights_and_marks_of_the_operator_stay() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[3, 0, 2]);
    scene.times(3, 1, &failed());
    scene.times(3, 2, &failed());
    scene.is(3, Outcome::Passed);
    let weights: Vec<_> = scene.told.vips[0]
        .reals
        .iter()
        .map(Real::get_weight)
        .collect();
    assert_eq!(weights, [3, 0, 2]);
    assert_eq!(
        scene.told.vips[0].down,
        [real(1), real(2)],
        "the drained one, too"
    );
    // A real that the document marks down is down, whatever probes say, and proves nothing.
    let mut state = wanted(&[3, 1, 2]);
    state.vips[0].down = vec![real(1)];
    scene.follow(&state);
    scene.times(5, 1, &Outcome::Passed);
    assert_eq!(scene.told.vips[0].down, [real(1), real(2)]);
    let mut state = wanted(&[1]);
    state.marks.push(MarkState::new(100 + MARKS - 1, real(1)));
    let error = scene.board.follow_document(&state).unwrap_err().to_string();
    assert!(error.contains("the health checks use it"), "{error}");
}

/// Changes by other calls are kept.
#[test]
fn what_others_change_is_kept() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[3, 4, 5]);
    scene.times(3, 1, &failed());
    scene.is(2, Outcome::Passed);
    assert_eq!(scene.weights(), [0, 4, 5]);
    scene.round(|state| {
        let reals = &mut state.vips[0].reals;
        reals[1] = reals[1].weight(0);
        reals.push(Real::new([198, 51, 100, 4].into()).weight(6));
        state.vips[0].down.push([198, 51, 100, 3].into());
        let other = "203.0.113.9:80/tcp".parse().unwrap();
        state.vips.push(VipState::new(other));
        state
            .marks
            .push(MarkState::new(7, [198, 51, 100, 1].into()));
        state.probes.push(other);
    });
    assert_eq!(scene.weights(), [0, 0, 0, 6]);
    let targets = scene.board.targets();
    assert_eq!(targets.len(), 4, "the new one is probed");
    let marks: BTreeSet<_> = scene.told.marks.iter().map(|state| state.mark).collect();
    assert_eq!(marks, BTreeSet::from([7, 100, 101, 102, 103]));
    assert_eq!(scene.told.probes.len(), 2);
    // A removed VIP is forgotten, with the marks and counters of its reals.
    scene.round(|state| state.vips.retain(|state| state.vip != WEB.parse().unwrap()));
    assert!(scene.board.targets().is_empty());
    let marks: Vec<_> = scene.told.marks.iter().map(|state| state.mark).collect();
    assert_eq!(marks, [7]);
    assert_eq!(scene.told.probes, ["203.0.113.9:80/tcp".parse().unwrap()]);
}

/// The balancer has what the previous process found.
#[test]
fn a_start_goes_on_with_what_is_down() {
    let mut first = Scene::up(Policy::new(Check::Tcp), &[1, 1, 1]);
    first.times(3, 2, &failed());
    first.is(1, Outcome::Passed);
    let mut state = first.told.clone();
    // Marks stay, whatever the order of reals.
    state.marks[0].mark = 105;
    let mut scene = Scene::with(Policy::new(Check::Tcp), &[]);
    scene.board.follow_balancer(&state).unwrap();
    let before = state.clone();
    scene.tell(&mut state);
    assert_eq!(scene.weights(), [1, 0, 1]);
    assert_eq!(
        BTreeSet::from_iter(state.marks),
        BTreeSet::from_iter(before.marks)
    );
    scene.follow(&wanted(&[1, 1, 1]));
    assert_eq!(
        scene.weights(),
        [1, 0, 1],
        "though the document says nothing of it"
    );
    scene.times(2, 2, &Outcome::Passed);
    assert_eq!(scene.weights(), [1, 1, 1]);
    // Only reals that are down may be left.
    let mut scene = Scene::with(Policy::new(Check::Tcp), &[]);
    first.told.vips[0].down = vec![real(1), real(2), real(3)];
    scene.board.follow_balancer(&first.told).unwrap();
    let mut state = first.told.clone();
    scene.tell(&mut state);
    assert_eq!(scene.weights(), [1, 1, 1]);
}

#[test]
fn what_has_no_place_to_go_to_is_not_probed() {
    let mut state = wanted(&[1, 1]);
    for text in [
        "203.0.113.0/24:80/tcp",
        "203.0.113.1:0/tcp",
        "203.0.113.1:53/udp",
    ] {
        let mut of_vip = VipState::new(text.parse().unwrap());
        of_vip.reals.push(Real::new(real(1)));
        state.vips.push(of_vip);
    }
    let mut policy = Policy::new(Check::Tcp);
    policy.reals.insert(
        real(2),
        super::policy::RealPolicy {
            probed: false,
            ..Default::default()
        },
    );
    let mut scene = Scene::with(policy, &[]);
    scene.follow(&state);
    let targets: Vec<_> = scene
        .board
        .targets()
        .iter()
        .map(|target| (target.vip, target.real))
        .collect();
    assert_eq!(targets, [(vip(), real(1))]);
    assert_eq!(scene.told.marks, [MarkState::new(100, real(1))]);
    // Their own addresses have ports and no prefix.
    let mut direct = Policy::new(Check::Tcp);
    (direct.via, direct.port) = (Via::Direct, Some(8080));
    let mut scene = Scene::with(direct, &[]);
    scene.follow(&state);
    assert_eq!(scene.board.targets().len(), 4);
    assert!(scene.told.marks.is_empty() && scene.told.probes.is_empty());
}

#[test]
fn history_is_bounded_and_has_reasons() {
    let mut scene = Scene::new(1, 1, &[1, 1]);
    for _ in 0..5 {
        scene.is(1, failed());
        scene.is(1, Outcome::Passed);
    }
    let score = &scene.board.services[&vip()].members[&real(1)].score;
    let history: Vec<_> = score
        .history()
        .map(|turn| (turn.to, turn.reason.as_str()))
        .collect();
    let pair = [(Status::Down, "refused"), (Status::Up, "answers")];
    assert_eq!(history, [pair, pair].concat());
    assert_eq!(score.last(), Some(&(scene.now, Outcome::Passed)));
}

proptest! {
    /// Whatever happens: a VIP that had a real in use keeps one, a real that just answered often
    /// enough is in, weights have the operator's ratio, and no real goes out while none answers.
    #[test]
    fn no_vip_is_emptied(
        weights in prop::collection::vec(0..4_u32, 1..6),
        (rise, fall) in (1..4_u32, 1..4_u32),
        (threshold, slow, fallback) in (0..101_u32, any::<bool>(), any::<bool>()),
        results in prop::collection::vec((1..7_u8, 0..5_u8, 0..3_u8), 0..120),
    ) {
        let policy = Policy {
            rise,
            fall,
            panic_threshold: threshold,
            drained_fallback: fallback,
            slow_start: Duration::from_secs(if slow { 4 } else { 0 }),
            ..Policy::new(Check::Tcp)
        };
        let mut scene = Scene::with(policy, &weights);
        let mut document = weights.clone();
        for (last, what, pass) in results {
            let before = scene.weights();
            if what == 0 {
                // Another document: a weight changes, or a real joins.
                match document.get_mut(usize::from(last) - 1) {
                    Some(weight) => *weight = u32::from(pass),
                    None => document.push(u32::from(pass)),
                }
                scene.follow(&wanted(&document));
            } else {
                let outcome = match pass {
                    0 => failed(),
                    1 => Outcome::Passed,
                    _ => Outcome::NotSent("cut off".to_owned()),
                };
                let passed = outcome == Outcome::Passed;
                scene.is(last, outcome);
                // Drained reals stop serving when they are no longer needed.
                let now = scene.weights();
                let mut rows = document.iter().zip(before.iter().zip(now));
                let gone = rows.any(|(own, (before, now))| *own > 0 && *before > 0 && now == 0);
                prop_assert!(passed || !gone, "{before:?}");
                let service = &scene.board.services[&vip()];
                if let Some(member) = service.members.get(&real(last)) && passed && rise == 1 {
                    prop_assert!(!member.out);
                }
            }
            let told = scene.weights();
            if document.iter().any(|weight| *weight > 0) {
                prop_assert!(told.iter().any(|weight| *weight > 0), "{told:?} of {document:?}");
            }
            let all: Vec<u32> = scene.told.vips[0].reals.iter().map(Real::get_weight).collect();
            for (own, told) in document.iter().zip(&all) {
                prop_assert!(*own == 0 || (*told > 0 && *told <= own * 8), "{all:?} of {document:?}");
            }
            if scene.board.next_step(scene.now).is_none() && !scene.board.services[&vip()].falls_back {
                prop_assert_eq!(&all, &document);
            }
        }
    }
}

#[test]
fn one_that_is_probed_no_more_is_in_use_again() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[1, 1]);
    for _ in 0..3 {
        scene.is(1, failed());
    }
    scene.is(2, Outcome::Passed);
    assert_eq!(scene.told.vips[0].down, [real(1)]);
    // New settings of a check that continues do not change a real's status.
    let with = |change: fn(&mut Policy)| {
        let mut settings = Settings::default();
        (settings.first_mark, settings.history) = (100, 4);
        change(&mut settings.tcp);
        Arc::new(settings)
    };
    scene.board.settings = with(|policy| policy.check = Some(Check::Syn));
    scene.follow(&wanted(&[1, 1]));
    assert_eq!(scene.told.vips[0].down, [real(1)]);
    scene.board.settings = with(|policy| policy.check = None);
    scene.follow(&wanted(&[1, 1]));
    assert!(scene.told.vips[0].down.is_empty());
    assert!(scene.board.is_clear());
}

#[test]
fn other_marks_take_the_place_of_those_of_before() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[1, 1]);
    let reals = |scene: &Scene| -> Vec<_> {
        let marks = scene.told.marks.iter();
        marks.map(|state| (state.mark, state.real)).collect()
    };
    assert_eq!(reals(&scene), [(100, real(1)), (101, real(2))]);
    // One mark is in both ranges and stays with its real.
    let settings = Settings {
        first_mark: 101,
        ..Settings::clone(&scene.board.settings)
    };
    scene.board.settings = Arc::new(settings);
    scene.follow(&wanted(&[1, 1]));
    for _ in 0..2 {
        assert_eq!(reals(&scene), [(102, real(1)), (101, real(2))]);
        scene.round(|_| ());
    }
    assert!(scene.told.check().is_ok());
}

#[test]
fn a_state_that_says_how_rings_are_filled_is_heard() {
    let mut policy = Policy::new(Check::Tcp);
    policy.slow_start = Duration::from_secs(10);
    let mut scene = Scene::up(policy, &[1, 1]);
    let by = |hash| {
        let mut state = State::default();
        state.balancer.get_or_insert_default().hash_function = hash;
        state
    };
    scene.times(3, 1, &failed());
    scene.is(2, Outcome::Passed);
    scene.times(2, 1, &Outcome::Passed);
    assert_eq!(scene.weights(), [1, 8]);
    scene.board.follow_hash(&by(Some(HashFunction::Maglev)));
    scene.round(|_| ());
    assert_eq!(scene.weights(), [1, 1]);
    scene.board.follow_hash(&by(Some(HashFunction::MaglevV2)));
    for silent in [by(None), State::default()] {
        scene.board.follow_hash(&silent);
        scene.round(|_| ());
        assert_eq!(scene.weights(), [1, 8]);
    }
}

/// Once, and at most once a minute if they come and go.
#[test]
fn it_is_said_that_probes_are_not_sent() {
    let mut scene = Scene::up(Policy::new(Check::Tcp), &[1, 1]);
    let not_sent = || Outcome::NotSent("no such file".to_owned());
    let lines = |events: Vec<Event>| -> Vec<_> { events.iter().map(Event::to_string).collect() };
    let said = "203.0.113.1:80/tcp: real 198.51.100.1: probe not sent: no such file";
    assert_eq!(lines(scene.is(1, not_sent())), [said]);
    for outcome in [not_sent(), Outcome::Passed, not_sent()] {
        assert!(scene.is(1, outcome).is_empty());
    }
    scene.now += Duration::from_secs(60);
    assert!(scene.is(1, not_sent()).is_empty(), "it continues");
    scene.is(1, Outcome::Passed);
    assert_eq!(lines(scene.is(1, not_sent())), [said]);
    // The VIP has reported those that miss the tunnel.
    assert!(
        scene
            .is(2, Outcome::Missed("no route".to_owned()))
            .is_empty()
    );
    assert_eq!(scene.weights(), [1, 1]);
}
