//! When probes are sent, with a clock under the tests' control.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc::unbounded_channel;
use tokio::time::Instant;

use super::board::Target;
use super::outcome::Cause;
use super::outcome::Outcome;
use super::plan::Question;
use super::plan::Questions;
use super::probe::Place;
use super::probe::Probe;
use super::runner::Finished;
use super::runner::Order;
use super::runner::run;
use super::schedule::Pace;
use super::schedule::Schedule;

fn target(number: u32) -> Target {
    Target {
        vip: "203.0.113.1:80/tcp".parse().unwrap(),
        real: IpAddr::from((0x0a00_0000 + number).to_be_bytes()),
    }
}

/// So many targets, probed each second.
fn questions(count: u32, timeout: Duration) -> Arc<Questions> {
    let question = |number| {
        let question = Question {
            probe: Probe::Tcp,
            place: Place {
                target: target(number),
                to: (target(number).real, 80).into(),
                mark: None,
            },
            timeout,
            pace: Pace {
                interval: Duration::from_secs(1),
                jitter: 10,
            },
            counted: None,
        };
        (target(number), question)
    };
    Arc::new((0..count).map(question).collect())
}

/// What a run has seen.
#[derive(Default)]
struct Seen {
    started: Mutex<Vec<(Duration, IpAddr)>>,
    finished: Mutex<Vec<Finished>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Seen {
    fn by_real(&self) -> BTreeMap<IpAddr, Vec<Duration>> {
        let mut by_real: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (at, real) in self.started.lock().unwrap().iter() {
            by_real.entry(*real).or_default().push(*at);
        }
        by_real
    }
}

/// Runs for a time, with probes of the given duration; orders come at their times.
async fn run_for(
    length: Duration,
    limit: usize,
    probe: Duration,
    orders: Vec<(Duration, Order)>,
) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let (sender, receiver) = unbounded_channel();
    let began = Instant::now();
    let (asking, reporting) = (Arc::clone(&seen), Arc::clone(&seen));
    let ask = move |question: &Question| {
        let seen = Arc::clone(&asking);
        let started = (began.elapsed(), question.place.to.ip());
        seen.started.lock().unwrap().push(started);
        let now = seen.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        seen.most_at_once.fetch_max(now, Ordering::Relaxed);
        async move {
            /// An abandoned probe is no longer in flight.
            struct Ends(Arc<Seen>);
            impl Drop for Ends {
                fn drop(&mut self) {
                    self.0.at_once.fetch_sub(1, Ordering::Relaxed);
                }
            }
            let ends = Ends(seen);
            tokio::time::sleep(probe).await;
            assert!(
                began.elapsed() < Duration::from_secs(1000),
                "late ones panic"
            );
            drop(ends);
            Outcome::Passed
        }
    };
    let report = move |finished| reporting.finished.lock().unwrap().push(finished);
    let running = tokio::spawn(run(receiver, Schedule::new(limit, 7), report, ask));
    for (at, order) in orders {
        tokio::time::sleep_until(began + at).await;
        sender.send(order).unwrap();
    }
    tokio::time::sleep_until(began + length).await;
    drop(sender);
    running.await.unwrap();
    seen
}

fn follow(count: u32, timeout: Duration) -> Vec<(Duration, Order)> {
    let order = Order::Follow(questions(count, timeout));
    vec![(Duration::ZERO, order)]
}

const MS: fn(u64) -> Duration = Duration::from_millis;

#[tokio::test(start_paused = true)]
async fn the_first_round_is_at_once_and_then_each_has_its_interval() {
    let seen = run_for(MS(30_000), 100, MS(5), follow(50, MS(500))).await;
    let by_real = seen.by_real();
    assert_eq!(by_real.len(), 50);
    for starts in by_real.values() {
        assert!(starts[0] < MS(20), "{starts:?}");
        let gaps: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for gap in &gaps[..3] {
            assert!((MS(225)..MS(290)).contains(gap), "{gaps:?}");
        }
        for gap in &gaps[4..] {
            assert!((MS(900)..MS(1110)).contains(gap), "{gaps:?}");
        }
    }
    // They do not synchronise: no tenth of the last seconds has a quarter of them.
    let started = seen.started.lock().unwrap();
    let mut tenths = BTreeMap::new();
    for (at, _) in started.iter().filter(|(at, _)| *at > MS(25_000)) {
        *tenths.entry(at.as_millis() / 100).or_insert(0) += 1;
    }
    assert!(tenths.values().all(|count| *count < 13), "{tenths:?}");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_are_probed_by_so_many_at_once() {
    let seen = run_for(MS(8000), 512, MS(20), follow(10_000, MS(500))).await;
    assert_eq!(seen.most_at_once.load(Ordering::Relaxed), 512);
    let by_real = seen.by_real();
    assert_eq!(by_real.len(), 10_000);
    // One round of all takes 10,000 / 512 * 20 ms, and no target is forgotten.
    for starts in by_real.values() {
        assert!(starts[0] < MS(2000) && starts.len() > 5, "{starts:?}");
    }
    // The first ones begin a little apart.
    let started = seen.started.lock().unwrap();
    assert!(started.iter().filter(|(at, _)| *at < MS(10)).count() < 150);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_is_given_up_and_holds_up_nobody() {
    let seen = run_for(MS(5000), 10, MS(100_000), follow(4, MS(300))).await;
    let finished = seen.finished.lock().unwrap();
    assert!(finished.len() > 20, "{}", finished.len());
    for Finished { outcome, .. } in finished.iter() {
        let why = "no complete answer within 0.3 s".to_owned();
        assert_eq!(*outcome, Outcome::Failed(Cause::Timeout, why));
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_says_nothing() {
    tokio::time::advance(Duration::from_secs(1)).await;
    let ask = |_: &Question| async { panic!("it was a mistake") };
    let (sender, receiver) = unbounded_channel();
    let finished = Arc::new(Mutex::new(Vec::new()));
    let reporting = Arc::clone(&finished);
    let report = move |done| reporting.lock().unwrap().push(done);
    let running = tokio::spawn(run(receiver, Schedule::new(3, 7), report, ask));
    sender.send(Order::Follow(questions(2, MS(100)))).unwrap();
    tokio::time::sleep(MS(3000)).await;
    drop(sender);
    running.await.unwrap();
    let finished = finished.lock().unwrap();
    assert!(finished.len() > 8, "it continues: {}", finished.len());
    for Finished { outcome, .. } in finished.iter() {
        assert!(
            matches!(outcome, Outcome::NotSent(why) if why.contains("panic")),
            "{outcome:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_are_given_up_are_probed_no_more_and_one_can_be_hurried() {
    let orders = vec![
        (Duration::ZERO, Order::Follow(questions(3, MS(500)))),
        (MS(10_000), Order::Hurry(target(1))),
        (MS(10_001), Order::Hurry(target(99))),
        (MS(20_000), Order::Follow(questions(2, MS(500)))),
        // It is new, so it is probed at once.
        (MS(30_000), Order::Follow(questions(3, MS(500)))),
    ];
    let seen = run_for(MS(32_000), 10, MS(5), orders).await;
    let by_real = seen.by_real();
    let hurried = &by_real[&target(1).real];
    assert!(
        hurried
            .iter()
            .any(|at| (MS(10_000)..MS(10_003)).contains(at)),
        "{hurried:?}"
    );
    let next = hurried.iter().find(|at| **at > MS(10_100)).unwrap();
    assert!((MS(10_900)..MS(11_120)).contains(next), "{next:?}");
    let gone = &by_real[&target(2).real];
    assert!(
        !gone.iter().any(|at| (MS(20_001)..MS(30_000)).contains(at)),
        "{gone:?}"
    );
    assert!(
        gone.iter().any(|at| (MS(30_000)..MS(30_010)).contains(at)),
        "{gone:?}"
    );
}

/// A target that is wanted while its probe is in flight is probed again right after it.
#[tokio::test(start_paused = true)]
async fn one_on_its_way_is_probed_again() {
    let orders = vec![
        (Duration::ZERO, Order::Follow(questions(1, MS(500)))),
        (MS(50), Order::Hurry(target(0))),
        (MS(60), Order::Hurry(target(0))),
    ];
    let seen = run_for(MS(300), 10, MS(100), orders).await;
    let starts = &seen.by_real()[&target(0).real];
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert!((MS(100)..MS(103)).contains(&starts[1]), "{starts:?}");
}
