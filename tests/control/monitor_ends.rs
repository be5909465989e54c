//! How a monitor begins and ends: one at a time, from within its callback, by a panic; its
//! successor is not affected.

use std::sync::Arc;
use std::sync::Barrier;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use katran::Error;
use katran::Features;
use katran::events::Event;
use katran::events::EventKind;
use katran::events::Monitor;
use katran::events::MonitorOptions;
use katran::flows::Verdict;
use katran_lab::eventually;

use super::monitor::listen;
use super::monitor::tcp;
use super::monitor::too_big;
use super::monitor::wait;
use super::monitor::watched;

#[test]
fn a_panic_of_the_callback_ends_the_events_and_nothing_else() {
    let katran = watched();
    let (sender, events) = mpsc::channel();
    let monitor = katran
        .events()
        .start(MonitorOptions::new(), move |event| {
            sender.send(event.clone()).unwrap();
            assert!(event.kind != EventKind::PacketTooBig, "this one not");
        })
        .unwrap();
    katran.simulate(&tcp(1).frame()).unwrap();
    katran.simulate(&too_big()).unwrap();
    let stats = wait(&monitor, |stats| stats.failure.is_some());
    let failure = stats.failure.unwrap();
    assert!(failure.contains("panicked"), "{failure}");
    assert!(failure.contains("this one not"), "{failure}");
    assert_eq!(stats.delivered, 1);
    // The program reports no more events.
    let ran = katran.simulate(&tcp(2).frame()).unwrap();
    assert_eq!(ran.verdict, Verdict::Tx);
    assert_eq!(katran.stats().events().unwrap().tcp_non_syn_miss, 1);
    assert!(katran.events().is_running());
    assert_eq!(monitor.stop().delivered, 1);
    assert_eq!(events.iter().count(), 2);
    // The next one starts fresh.
    let (monitor, events) = listen(&katran, MonitorOptions::new());
    katran.simulate(&tcp(3).frame()).unwrap();
    assert_eq!(monitor.stop().delivered, 1);
    assert_eq!(events.iter().count(), 1);
}

#[test]
fn a_panic_payload_that_panics_when_dropped_is_harmless() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload panics");
        }
    }
    let katran = watched();
    let options = MonitorOptions::new();
    let panics = |_: &Event| std::panic::panic_any(Bomb);
    let monitor = katran.events().start(options, panics).unwrap();
    katran.simulate(&tcp(1).frame()).unwrap();
    let stats = wait(&monitor, |stats| stats.failure.is_some());
    let failure = stats.failure.unwrap();
    assert!(failure.contains("without a text"), "{failure}");
    assert_eq!(monitor.stop().delivered, 0);
    // The next one works.
    let (monitor, events) = listen(&katran, MonitorOptions::new());
    katran.simulate(&tcp(2).frame()).unwrap();
    events.recv_timeout(Duration::from_secs(5)).unwrap();
    drop(monitor);
}

#[test]
fn of_two_threads_that_start_a_monitor_at_once_one_does() {
    let katran = watched();
    for _ in 0..100 {
        let barrier = Barrier::new(2);
        let start = || {
            barrier.wait();
            katran.events().to_list(MonitorOptions::new(), 4)
        };
        let started = thread::scope(|scope| {
            let threads = [scope.spawn(start), scope.spawn(start)];
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(started.iter().filter(|of| of.is_ok()).count(), 1);
        assert!(katran.events().is_running());
        for refused in started.iter().filter_map(|of| of.as_ref().err()) {
            assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
        }
        drop(started);
        assert!(!katran.events().is_running());
    }
}

#[test]
fn one_monitor_at_a_time_and_only_with_the_feature() {
    let mut katran = watched();
    let (monitor, _events) = listen(&katran, MonitorOptions::new());
    let error = katran
        .events()
        .to_list(MonitorOptions::new(), 1)
        .unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    // While one runs, the feature cannot be disabled.
    let error = katran.reload(Features::default()).unwrap_err();
    assert!(error.to_string().contains("stop it first"), "{error}");
    // It keeps running when other features change.
    let more = katran.features() | Features::SOURCE_ROUTING;
    katran.simulate(&tcp(2).frame()).unwrap();
    wait(&monitor, |stats| stats.delivered == 1);
    katran.reload(more).unwrap();
    katran.simulate(&tcp(1).frame()).unwrap();
    wait(&monitor, |stats| stats.delivered == 2);
    // Counters do not restart, either.
    assert_eq!(katran.stats().events().unwrap().tcp_non_syn_miss, 2);
    drop(monitor);
    let bad = MonitorOptions::new().rate_limit(0);
    assert!(matches!(
        katran.events().to_list(bad, 1),
        Err(Error::InvalidConfig { .. })
    ));
    assert!(katran.events().to_list(MonitorOptions::new(), 0).is_err());
    katran.reload(Features::default()).unwrap();
    assert!(matches!(
        katran.events().to_list(MonitorOptions::new(), 1),
        Err(Error::Unsupported { .. })
    ));
}

/// The next monitor may begin as soon as the balancer has none, even if `stop` has not returned on
/// another thread.
#[test]
fn a_monitor_that_ends_leaves_its_successor_alone() {
    let katran = watched();
    let start = || loop {
        match katran.events().to_list(MonitorOptions::new(), 10) {
            Err(Error::AlreadyExists { .. }) => std::thread::yield_now(),
            started => return started.unwrap(),
        }
    };
    let mut monitor = start();
    for turn in 0..100 {
        let next = std::thread::scope(|scope| {
            scope.spawn(|| monitor.stop());
            start()
        });
        katran.simulate(&tcp(1000 + turn).frame()).unwrap();
        monitor = next;
        let made = katran.stats().events().unwrap().tcp_non_syn_miss;
        assert_eq!(made, u64::from(turn) + 1, "the successor is silent");
    }
}

#[test]
fn a_callback_may_end_its_own_monitor() {
    let katran = watched();
    for stop in [true, false] {
        let own = Arc::new(Mutex::new(None::<Monitor>));
        let (sender, ended) = mpsc::channel();
        let monitor = {
            let own = Arc::clone(&own);
            let callback = move |_: &Event| {
                let monitor = own.lock().unwrap().take().unwrap();
                let stats = stop.then(|| monitor.stop());
                sender.send(stats).unwrap();
            };
            katran
                .events()
                .start(MonitorOptions::new(), callback)
                .unwrap()
        };
        *own.lock().unwrap() = Some(monitor);
        katran.simulate(&tcp(10 + u16::from(stop)).frame()).unwrap();
        let stats = ended.recv_timeout(Duration::from_secs(60)).unwrap();
        // Its own event was still being delivered.
        assert_eq!(stats.map(|stats| stats.delivered), stop.then_some(0));
        eventually("the monitor ends", || !katran.events().is_running());
    }
}
