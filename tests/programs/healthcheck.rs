//! The probes of `katran run --probe`: what it makes of probes, and at work (`healthcheck/at_work.rs`) with
//! reals that come and go.

mod at_work;
#[allow(dead_code, reason = "these tests use a part")]
#[path = "../../examples/katran/probing/board.rs"]
mod board;
#[path = "../../examples/katran/probing/check.rs"]
mod check;
#[allow(dead_code, reason = "the tests ask no questions of their own")]
#[path = "../../examples/katran/probing/probe.rs"]
mod probe;
#[path = "../../examples/katran/probing/schedule.rs"]
mod schedule;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

use board::Board;
use board::Notice;
use board::Target;
use board::Thresholds;
use check::Check;
use check::Checks;
use check::OfVip;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::state::MarkState;
use katran::state::VipState;
use schedule::Schedule;

fn real(last: u8) -> IpAddr {
    [198, 51, 100, last].into()
}

fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

const WEB: &str = "203.0.113.1:80/tcp";

/// One VIP with reals of these weights: .1, .2, and on.
fn wanted(weights: &[u32]) -> State {
    let mut of_vip = VipState::new(vip(WEB));
    for (weight, last) in weights.iter().zip(1..) {
        of_vip.reals.push(Real::new(real(last)).weight(*weight));
    }
    let mut state = State::default();
    state.vips.push(of_vip);
    state
}

/// Probes of the VIP go to the VIP.
fn probed() -> BTreeMap<Vip, Vip> {
    BTreeMap::from([(vip(WEB), vip(WEB))])
}

fn follow(board: &mut Board, weights: &[u32]) -> Vec<Notice> {
    board.set_wanted(wanted(weights), probed())
}

fn board_with(rise: u32, fall: u32, weights: &[u32]) -> Board {
    let mut board = Board::new(Thresholds { rise, fall }, 100);
    assert!(follow(&mut board, weights).is_empty());
    board
}

fn board(weights: &[u32]) -> Board {
    board_with(2, 3, weights)
}

/// The weights of reals as the ring has them: 0 for those that are down.
fn weights(board: &Board) -> Vec<u32> {
    let state = board.state();
    let of_vip = &state.vips[0];
    let weight = |real: &Real| match of_vip.down.contains(&real.address()) {
        true => 0,
        false => real.get_weight(),
    };
    of_vip.reals.iter().map(weight).collect()
}

/// What an operator says of reals is not touched by what probes say.
#[test]
fn weights_stay_those_of_the_file() {
    let mut board = board(&[3, 0, 2]);
    probes(&mut board, 1, false, 3);
    probes(&mut board, 2, false, 3);
    probes(&mut board, 3, true, 1);
    let of_vip = &board.state().vips[0];
    let weights: Vec<_> = of_vip.reals.iter().map(Real::get_weight).collect();
    assert_eq!(weights, [3, 0, 2]);
    assert_eq!(of_vip.down, [real(1), real(2)], "the drained one, too");
    // One that the file takes for dead is so once, whatever probes say, and proves nothing.
    let mut state = wanted(&[3, 1, 2]);
    state.vips[0].down = vec![real(1)];
    assert!(board.set_wanted(state, probed()).is_empty());
    probes(&mut board, 1, true, 5);
    assert_eq!(board.state().vips[0].down, [real(1), real(2)]);
}

/// So many probes of a real, with the notices that they make.
fn probes(board: &mut Board, last: u8, works: bool, count: u32) -> Vec<Notice> {
    let mut all = Vec::new();
    for _ in 0..count {
        let before = weights(board);
        let notices = board.record(vip(WEB), real(last), works);
        // Nothing is applied that is not said.
        let is_said = notices.iter().any(Notice::is_of_state);
        assert!(is_said || weights(board) == before, "{notices:?}");
        all.extend(notices);
    }
    all
}

fn changed(last: u8, up: bool) -> Notice {
    Notice::Changed {
        vip: vip(WEB),
        real: real(last),
        up,
    }
}

fn out(last: u8) -> Notice {
    Notice::Out {
        vip: vip(WEB),
        real: real(last),
    }
}

fn kept() -> Notice {
    Notice::Kept { vip: vip(WEB) }
}

fn recovered() -> Notice {
    Notice::Recovered { vip: vip(WEB) }
}

#[test]
fn it_takes_several_probes_to_change_ones_mind() {
    let mut board = board(&[3, 4]);
    assert_eq!(weights(&board), [3, 4]);
    assert!(probes(&mut board, 1, false, 2).is_empty());
    assert!(probes(&mut board, 1, true, 1).is_empty());
    // The two before do not count any more.
    assert!(probes(&mut board, 1, false, 2).is_empty());
    assert!(probes(&mut board, 2, true, 1).is_empty());
    assert_eq!(weights(&board), [3, 4]);
    assert_eq!(probes(&mut board, 1, false, 1), [changed(1, false)]);
    // The checker may be to blame, until another one answers.
    assert_eq!(weights(&board), [3, 4]);
    assert_eq!(probes(&mut board, 2, true, 1), [out(1)]);
    assert_eq!(weights(&board), [0, 4]);
    assert!(probes(&mut board, 1, true, 1).is_empty());
    assert!(probes(&mut board, 1, false, 1).is_empty());
    assert!(probes(&mut board, 1, true, 1).is_empty());
    assert_eq!(weights(&board), [0, 4]);
    assert_eq!(probes(&mut board, 1, true, 1), [changed(1, true)]);
    assert_eq!(weights(&board), [3, 4]);
}

/// The checker is cut off, and comes back: no weight changes on the way, in whatever order probes
/// are.
#[test]
fn the_whole_set_stays_if_the_checker_is_cut_off() {
    for (rise, fall) in [(2, 3), (1, 1), (3, 1), (1, 4)] {
        let mut board = board_with(rise, fall, &[1, 2, 3]);
        let step = |board: &mut Board, last: u8, works: bool| {
            let notices = board.record(vip(WEB), real(last), works);
            assert_eq!(weights(board), [1, 2, 3], "{rise} {fall}: {last} {works}");
            notices
        };
        let mut notices = Vec::new();
        for round in 0..12 {
            for i in 0..3 {
                notices.extend(step(&mut board, 1 + (round + i) % 3, false));
            }
        }
        assert_eq!(
            notices.iter().filter(|notice| **notice == kept()).count(),
            1
        );
        assert_eq!(notices.len(), 4, "{notices:?}");
        // The first of them rises well before the others; the last probes from before fail
        // meanwhile.
        let mut notices = Vec::new();
        for _ in 0..rise {
            notices.extend(step(&mut board, 2, true));
        }
        assert_eq!(notices, [changed(2, true)]);
        for last in [1, 3] {
            if fall > 1 {
                assert!(step(&mut board, last, false).is_empty());
            }
        }
        for _ in 0..rise {
            for last in [3, 2, 1] {
                notices.extend(step(&mut board, last, true));
            }
        }
        let all = [
            changed(2, true),
            changed(3, true),
            changed(1, true),
            recovered(),
        ];
        assert_eq!(notices, all, "{rise} {fall}");
    }
}

#[test]
fn the_last_set_stays_if_all_fail() {
    let mut board = board(&[1, 1, 1]);
    probes(&mut board, 1, false, 3);
    probes(&mut board, 3, true, 1);
    assert_eq!(weights(&board), [0, 1, 1]);
    assert_eq!(probes(&mut board, 2, false, 3), [changed(2, false)]);
    assert_eq!(weights(&board), [0, 1, 1]);
    assert_eq!(probes(&mut board, 3, false, 3), [changed(3, false), kept()]);
    assert_eq!(weights(&board), [0, 1, 1], "those of before");
    assert!(probes(&mut board, 3, false, 9).is_empty(), "said once");
    // One that works is in, whatever it was before. Of the others it is not known yet.
    assert_eq!(probes(&mut board, 1, true, 2), [changed(1, true)]);
    assert_eq!(weights(&board), [1, 1, 1]);
    assert!(probes(&mut board, 1, true, 5).is_empty());
    // What failed before says nothing: it takes as many failures as for any other.
    assert!(probes(&mut board, 2, false, 2).is_empty());
    assert!(probes(&mut board, 1, true, 1).is_empty());
    assert!(probes(&mut board, 2, false, 1).is_empty());
    assert_eq!(weights(&board), [1, 1, 1]);
    assert_eq!(probes(&mut board, 1, true, 1), [out(2)]);
    assert_eq!(weights(&board), [1, 0, 1]);
    let up = [changed(3, true), recovered()];
    assert_eq!(probes(&mut board, 3, true, 2), up);
    assert_eq!(weights(&board), [1, 0, 1]);
}

#[test]
fn the_only_real_of_a_vip_stays() {
    let mut board = board(&[5]);
    assert_eq!(probes(&mut board, 1, false, 9), [changed(1, false), kept()]);
    assert_eq!(weights(&board), [5]);
    assert_eq!(
        probes(&mut board, 1, true, 2),
        [changed(1, true), recovered()]
    );
    assert_eq!(weights(&board), [5]);
}

#[test]
fn what_an_operator_has_drained_stays_drained() {
    let mut board = board(&[1, 0]);
    assert_eq!(weights(&board), [1, 0]);
    probes(&mut board, 2, true, 5);
    assert_eq!(weights(&board), [1, 0]);
    // Also if it is the only one that works, and then it proves nothing of the others.
    assert_eq!(probes(&mut board, 1, false, 3), [changed(1, false), kept()]);
    assert!(probes(&mut board, 2, true, 5).is_empty());
    assert_eq!(weights(&board), [1, 0]);
    // And one that goes down and is drained meanwhile comes back as drained.
    assert_eq!(follow(&mut board, &[0, 2]), [recovered()]);
    assert_eq!(weights(&board), [0, 2]);
    probes(&mut board, 1, true, 2);
    assert_eq!(weights(&board), [0, 2]);
    follow(&mut board, &[5, 2]);
    assert_eq!(weights(&board), [5, 2]);
    // Drained are all but those that are out: they are better than none.
    probes(&mut board, 1, false, 3);
    assert_eq!(probes(&mut board, 2, true, 1), [out(1)]);
    assert_eq!(weights(&board), [0, 2]);
    assert_eq!(follow(&mut board, &[5, 0]), [kept()]);
    assert_eq!(weights(&board), [5, 0]);
    // And all drained is what an operator may want.
    assert!(follow(&mut board, &[0, 0]).is_empty());
    assert_eq!(weights(&board), [0, 0]);
}

#[test]
fn what_probes_have_found_outlives_another_file() {
    let mut board = board(&[1, 1]);
    probes(&mut board, 2, false, 3);
    probes(&mut board, 1, true, 1);
    let marks = board.targets();
    follow(&mut board, &[1, 7, 1]);
    assert_eq!(weights(&board), [1, 0, 1]);
    assert_eq!(board.targets()[..2], marks[..], "the same marks");
    assert_eq!(board.targets().len(), 3);
    let state = board.state();
    let of: BTreeSet<_> = state.marks.iter().map(|state| state.mark).collect();
    assert_eq!(of, BTreeSet::from([100, 101, 102]));
    assert_eq!(state.probes, [vip(WEB)]);
    // A real that is gone is forgotten.
    follow(&mut board, &[1]);
    assert!(board.record(vip(WEB), real(2), true).is_empty());
    follow(&mut board, &[1, 1]);
    assert_eq!(weights(&board), [1, 1]);
}

/// As a pinned balancer says it to the next process.
#[test]
fn what_probes_have_found_outlives_the_process() {
    let mut before = board(&[2, 3, 0]);
    let _ = probes(&mut before, 1, false, 3);
    let _ = probes(&mut before, 3, false, 3);
    let _ = probes(&mut before, 2, true, 1);
    let left = before.state();
    assert_eq!(left.vips[0].down, [real(1), real(3)]);
    let mut next = board(&[2, 3, 0]);
    assert!(next.state().vips[0].down.is_empty());
    assert_eq!(next.go_on(&left), [out(1), out(3)]);
    assert_eq!(next.state().vips[0].down, [real(1), real(3)]);
    assert_eq!(probes(&mut next, 1, true, 2), [changed(1, true)]);
    assert_eq!(next.state().vips[0].down, [real(3)]);
    // Those that are left are in use, whatever was known of them.
    let mut drained = board(&[2, 0, 0]);
    let _ = drained.go_on(&left);
    assert!(drained.state().vips[0].down.is_empty());
    // Another file has nothing of it.
    let mut other = board(&[]);
    assert!(other.go_on(&left).is_empty());
}

#[test]
fn marks_are_none_of_the_file() {
    let mut board = board(&[1, 1]);
    let marks = |board: &Board| -> BTreeMap<u32, IpAddr> {
        let state = board.state();
        assert_eq!(state.marks.len(), 3);
        state.marks.iter().map(|of| (of.mark, of.real)).collect()
    };
    let mut state = wanted(&[1, 1]);
    // One that is in use already.
    state.marks.push(MarkState::new(101, real(9)));
    board.set_wanted(state, probed());
    let expected = [(100, real(1)), (101, real(9)), (102, real(2))];
    assert_eq!(marks(&board), BTreeMap::from(expected));
    // After the last one the first are used, but for 0, which is none.
    let mut board = Board::new(Thresholds { rise: 1, fall: 1 }, u32::MAX);
    let mut state = wanted(&[1, 1]);
    state.marks.push(MarkState::new(1, real(9)));
    board.set_wanted(state, probed());
    let expected = [(u32::MAX, real(1)), (1, real(9)), (2, real(2))];
    assert_eq!(marks(&board), BTreeMap::from(expected));
    // A VIP that is not probed needs none.
    board.set_wanted(wanted(&[1, 1]), BTreeMap::new());
    assert!(board.state().marks.is_empty() && board.targets().is_empty());
}

#[test]
fn each_vip_has_a_check_of_its_own() {
    let of = |text: &str| text.parse::<OfVip>();
    let given = [
        of("203.0.113.1:53/udp=tcp:5353").unwrap(),
        of("203.0.113.1:443/udp=none").unwrap(),
        of("203.0.113.1:0/udp=tcp:22").unwrap(),
        of("203.0.113.1:54/udp=tcp").unwrap(),
        check::page("203.0.113.1:80/tcp=/health").unwrap(),
    ];
    let checks = Checks::new(&given).unwrap();
    let to = |text: &str| {
        let vip = vip(text);
        checks.of(vip).destination(vip).map(|to| to.to_string())
    };
    for (of, expected) in [
        ("203.0.113.1:53/udp", Some("203.0.113.1:5353/tcp")),
        ("203.0.113.1:443/udp", None),
        ("203.0.113.1:0/udp", Some("203.0.113.1:22/tcp")),
        ("203.0.113.1:54/udp", Some("203.0.113.1:54/tcp")),
        ("203.0.113.1:80/tcp", Some("203.0.113.1:80/tcp")),
        // Nothing was said of these.
        ("203.0.113.2:7/udp", Some("203.0.113.2:7/udp")),
        ("203.0.113.2:80/tcp", Some("203.0.113.2:80/tcp")),
        ("203.0.113.2:0/tcp", None),
        ("203.0.113.0/24:80/tcp", None),
    ] {
        assert_eq!(to(of).as_deref(), expected, "{of}");
    }
    let path = "/health".to_owned();
    assert_eq!(checks.of(vip(WEB)), Check::Http { path });
    assert_eq!(checks.unknown(&wanted(&[1])).len(), 4);
    assert_eq!(checks.destinations(&wanted(&[1])), probed());
    let wrong = |given: &[OfVip], says: &str| {
        let error = Checks::new(given).map(drop).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let page = check::page("203.0.113.1:53/udp=/x").unwrap();
    wrong(&[page], "no TCP service");
    wrong(&[given[0].clone(), given[0].clone()], "two checks");
    wrong(&[of("203.0.113.0/24:80/tcp=tcp").unwrap()], "one address");
    wrong(&[of("203.0.113.1:0/udp=udp").unwrap()], "one address");
    for text in [
        "203.0.113.1:53/udp",
        "203.0.113.1:53/udp=",
        "203.0.113.1:53/udp=tcp:0",
        "203.0.113.1:53/udp=tcp:x",
        "203.0.113.1:80/tcp=http:health",
        "203.0.113.1:80/tcp=http:/a b",
        "203.0.113.1:80/tcp=icmp",
        "nothing=tcp",
    ] {
        assert!(of(text).is_err(), "{text}");
    }
}

#[test]
fn the_status_of_a_page_is_read_before_its_headers() {
    let status = |text: &str| probe::status(text.as_bytes());
    assert_eq!(status("HTTP/1.1 204 No Content\r\n").unwrap(), Some(204));
    assert_eq!(
        status("HTTP/1.0 503 Busy\r\nA: b\r\n\r\n").unwrap(),
        Some(503)
    );
    let many = "A: b\r\n".repeat(200);
    let many = status(&format!("HTTP/1.1 200 OK\r\n{many}\r\n"));
    assert_eq!(many.unwrap(), Some(200));
    let broken = status("HTTP/1.1 200 OK\r\n\x01 : nonsense\r\n\r\n");
    assert_eq!(broken.unwrap(), Some(200));
    for short in ["", "HTT", "HTTP/1.1 20"] {
        assert_eq!(status(short).unwrap(), None, "{short}");
    }
    let error = status("SSH-2.0-OpenSSH\r\n").unwrap_err();
    assert!(error.to_string().contains("no HTTP answer"), "{error}");
}

/// So many targets, of one VIP.
fn targets(number: u8) -> Vec<Target> {
    let target = |last| Target {
        vip: vip(WEB),
        real: real(last),
        mark: last.into(),
    };
    (1..=number).map(target).collect()
}

#[test]
fn probes_are_spread_and_do_not_fall_into_step() {
    const INTERVAL: Duration = Duration::from_secs(10);
    let start = Instant::now();
    let mut schedule = Schedule::new(INTERVAL, 1000);
    schedule.follow(&targets(100), start);
    let mut last = BTreeMap::new();
    let (mut firsts, mut pauses) = (Vec::new(), Vec::new());
    while pauses.len() < 1000 {
        let now = schedule.wake().unwrap();
        let job = schedule.next(now).unwrap();
        assert!(schedule.finished(&job, now));
        match last.insert(job.target, now) {
            None => firsts.push((now - start).as_secs_f64()),
            Some(before) => pauses.push((now - before).as_secs_f64()),
        }
    }
    assert_eq!(firsts.len(), 100, "all of them are probed");
    assert!(firsts.iter().all(|at| (0.0..10.0).contains(at)));
    assert!(pauses.iter().all(|pause| (8.999..=11.001).contains(pause)));
    // Each tenth of what is possible is used; by chance one test in a hundred
    // million would find that it is not.
    for (all, from, to) in [(&firsts[..], 0.0, 10.0), (&pauses[..], 9.0, 11.0)] {
        let part = |at: &f64| (((at - from) / (to - from) * 5.0) as usize).min(4);
        let used: BTreeSet<_> = all.iter().map(part).collect();
        assert_eq!(used.len(), 5, "{all:?}");
    }
}

#[test]
fn so_many_probes_are_on_their_way_and_no_more() {
    let start = Instant::now();
    let late = start + Duration::from_secs(60);
    let mut schedule = Schedule::new(Duration::from_secs(10), 2);
    schedule.follow(&targets(3), start);
    assert!(schedule.wake().is_some());
    let jobs = [schedule.next(late).unwrap(), schedule.next(late).unwrap()];
    assert!(schedule.next(late).is_none() && schedule.wake().is_none());
    assert!(schedule.finished(&jobs[0], late));
    let third = schedule.next(late).unwrap();
    assert!(third.target != jobs[0].target && third.target != jobs[1].target);
    // What is not wanted any more counts for nothing, also if it is wanted again.
    schedule.follow(&[], late);
    schedule.follow(&targets(3), late);
    assert!(!schedule.finished(&jobs[1], late) && !schedule.finished(&third, late));
    let later = late + Duration::from_secs(10);
    let again: BTreeSet<_> = (0..2).map(|_| schedule.next(later).unwrap()).collect();
    assert_eq!(again.len(), 2);
    assert!(again.iter().all(|job| *job != jobs[1] && *job != third));
}
