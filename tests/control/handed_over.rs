//! Another handle takes over a pinned balancer while the old one lives: from then on the old one
//! refuses calls and changes nothing, whatever it was doing; the new one knows all that the old one
//! had done.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Error;
use katran::Features;
use katran::Katran;
use katran::Protocol;
use katran::Real;
use katran::Result;
use katran::ServerId;
use katran::VipFlags;
use katran::XdpMode;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::PinnedKind;
use katran::diagnosis::PinnedOwner;
use katran::diagnosis::PinnedStage;
use katran::diagnosis::Severity;
use katran::events::MonitorOptions;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sched::unshare;

use crate::common::all_in_table;
use crate::common::bpf;
use crate::common::builder;
use crate::common::faults::without_call;
use crate::common::fixtures::A;
use crate::common::fixtures::B;
use crate::common::fixtures::C;
use crate::common::fixtures::VIP4;
use crate::common::flows;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::ip;
use crate::common::load;
use crate::common::serve;
use crate::common::vip;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn directory() -> PathBuf {
    require_root();
    private_bpf_fs().unwrap().join("katran")
}

fn take_over(directory: &Path, patience: Duration) -> Result<Katran> {
    builder().pin(directory).take_over(patience).adopt()
}

fn is_asked(directory: &Path) -> bool {
    directory.join("handover").exists()
}

fn assert_handed_over<T>(result: Result<T>, call: &str) {
    match result {
        Err(Error::HandedOver { to, .. }) => assert_eq!(to, Some(std::process::id()), "{call}"),
        Err(other) => panic!("{call}: {other}"),
        Ok(_) => panic!("{call}: it was made"),
    }
}

#[test]
fn the_old_handle_neither_reports_nor_changes_anything() {
    let directory = directory();
    let features = Features::default() | Features::INTROSPECTION | Features::INLINE_DECAP;
    let mut old = load(
        builder()
            .pin(&directory)
            .features(features)
            .healthcheck_interface("lo"),
    );
    let tcp = serve(&mut old, VIP4, VipFlags::empty(), &[A, B]);
    let monitor = old.events().to_list(MonitorOptions::new(), 10).unwrap();
    for flow in flows(Protocol::Tcp, "203.0.113.1:443", 40) {
        old.simulate(&syn(flow)).unwrap();
    }
    // Gives the threads work.
    old.remove_real(tcp, ip(B)).unwrap();
    let (state, counted) = (old.state(), old.counters().unwrap().totals);
    assert!(!old.is_handed_over());

    let mut new = take_over(&directory, LONG).unwrap();
    assert!(old.is_handed_over() && !new.is_handed_over());
    assert!(!is_asked(&directory));
    assert_eq!(new.state(), state);
    assert_eq!(new.counters().unwrap().totals, counted);
    eventually("the old monitor says why", || {
        let failure = monitor.stats().failure.unwrap_or_default();
        failure.contains("handed over")
    });
    let listening = new.events().to_list(MonitorOptions::new(), 10).unwrap();
    assert!(new.events().is_running());

    let real = Real::new(ip(C));
    let mac = "0a:00:00:00:00:77".parse().unwrap();
    let flow = flows(Protocol::Tcp, "203.0.113.1:443", 1)[0];
    assert_handed_over(
        old.add_vip(vip("203.0.113.9:1/tcp"), VipFlags::empty()),
        "add",
    );
    assert_handed_over(old.remove_vip(tcp), "remove_vip");
    assert_handed_over(old.set_vip_flags(tcp, VipFlags::DPORT_HASH), "flags");
    assert_handed_over(old.add_real(tcp, real), "add_real");
    assert_handed_over(old.mark_down(tcp, ip(A)), "mark_down");
    assert_handed_over(old.apply(&state), "apply");
    assert_handed_over(old.reload(features), "reload");
    assert_handed_over(old.attach("lo", XdpMode::Generic), "attach");
    assert_handed_over(old.reattach(), "reattach");
    assert_handed_over(old.gateways_mut().set_mac(mac), "set_mac");
    assert_handed_over(old.gateways_mut().set_source(ip("192.0.2.9")), "source");
    assert_handed_over(old.gateways_mut().follow(), "follow");
    assert_handed_over(old.server_ids_mut().add(&[ServerId::new(1, ip(A))]), "ids");
    assert_handed_over(old.decap_mut().remove(ip("10.0.0.9")), "decap");
    assert_handed_over(old.probes_mut().map_mark(9, ip(A)), "mark");
    assert_handed_over(old.probes_mut().register(tcp), "probe");
    assert_handed_over(old.flows_mut().purge(tcp), "purge");
    assert_handed_over(old.flows_mut().remove(&flow), "forget");
    assert_handed_over(old.stats_mut().watch_misses(tcp), "watch");
    // Reads of what packets see: it may belong to other VIPs by now.
    assert_handed_over(old.counters(), "counters");
    assert_handed_over(old.stats().vip(tcp), "stats");
    assert_handed_over(old.flows().find(&flow), "find");
    assert_handed_over(old.real_for_flow(&flow), "real_for_flow");
    assert_handed_over(old.simulate(&syn(flow)), "simulate");
    assert_handed_over(old.events().to_list(MonitorOptions::new(), 1), "events");
    // Calls that return no error change nothing.
    old.detach_all();
    old.gateways_mut().stop_following();
    old.stats_mut().unwatch_misses();
    old.probes_mut().detach();
    assert!(!old.release_replaced_program());
    assert_eq!(old.state(), state);
    drop(monitor.stop());
    drop(old);

    // The new handle is unaffected.
    assert!(new.events().is_running());
    assert_eq!(listening.stats().failure, None);
    drop(listening);
    assert_eq!(new.state(), state);
    new.add_real(tcp, real).unwrap();
    for flow in flows(Protocol::Tcp, "203.0.113.1:443", 40) {
        assert!(new.simulate(&syn(flow)).unwrap().real.is_some());
    }
    // A handle that was taken over cannot remove the balancer.
    let third = take_over(&directory, LONG).unwrap();
    assert_handed_over(new.remove(), "remove");
    third.remove().unwrap();
    assert!(!directory.exists());
}

#[test]
fn a_call_that_takes_long_keeps_the_balancer() {
    let directory = directory();
    let mut old = load(builder().pin(&directory));
    let tcp = serve(&mut old, VIP4, VipFlags::empty(), &[A]);
    let (entered, has_entered) = channel();
    let (leave, may_leave) = channel::<()>();
    let may_leave = Mutex::new(may_leave);
    old.on_real_added(move |_, _| {
        entered.send(()).unwrap();
        let _ = may_leave.lock().unwrap().recv();
    });
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            let added = old.add_real(tcp, Real::new(ip(B)));
            (added, old)
        });
        has_entered.recv().unwrap();
        let began = Instant::now();
        let busy = take_over(&directory, SHORT).unwrap_err();
        assert!(matches!(busy, Error::Busy { owner: Some(_), .. }), "{busy}");
        assert!((SHORT..LONG).contains(&began.elapsed()));
        assert!(!is_asked(&directory));
        // The call ends, and later ones of the same process work.
        leave.send(()).unwrap();
        let (added, mut old) = call.join().unwrap();
        added.unwrap();
        old.remove_real(tcp, ip(B)).unwrap();
        let state = old.state();
        assert!(!old.is_handed_over());
        let new = take_over(&directory, LONG).unwrap();
        assert_eq!(new.state(), state);
        new.remove().unwrap();
    });
}

/// Calls without a pause in between: the next owner knows the last successful one.
#[test]
fn a_handover_waits_for_the_current_call() {
    let directory = directory();
    let mut katran = load(builder().pin(&directory));
    let tcp = serve(&mut katran, VIP4, VipFlags::empty(), &[A, B]);
    for _ in 0..5 {
        let made = AtomicU32::new(0);
        let (new, old, last) = thread::scope(|scope| {
            let calls = scope.spawn(|| {
                let mut last = katran.state();
                let mut old = katran;
                for weight in (2..).chain(2..) {
                    let real = Real::new(ip(A)).weight(weight % 1000 + 2);
                    match old.add_real(tcp, real) {
                        Ok(()) => last = old.state(),
                        Err(error) => {
                            assert!(matches!(error, Error::HandedOver { .. }), "{error}");
                            break;
                        }
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                }
                (old, last)
            });
            while made.load(Ordering::Relaxed) < 5 {
                thread::yield_now();
            }
            let new = take_over(&directory, LONG).unwrap();
            let (old, last) = calls.join().unwrap();
            (new, old, last)
        });
        assert_eq!(new.state(), last);
        drop(old);
        katran = new;
    }
    katran.remove().unwrap();
}

/// The directory is the only channel. Processes that ask take turns, and one that died does not
/// count. An owner without `/proc`, as in a chroot, notices a request within a second.
#[test]
fn an_owner_without_proc_lets_go() {
    let directory = directory();
    thread::scope(|scope| {
        let (owns, is_owner) = channel();
        let (leave, may_leave) = channel::<()>();
        let path = &directory;
        let owner = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let katran = load(builder().pin(path));
            let hidden = Command::new("mount")
                .args(["-t", "tmpfs", "none", "/proc"])
                .status();
            assert!(hidden.unwrap().success());
            assert!(!Path::new("/proc/self").exists());
            owns.send(()).unwrap();
            may_leave.recv().unwrap();
            katran.is_handed_over()
        });
        is_owner.recv().unwrap();
        let new = take_over(&directory, LONG).unwrap();
        leave.send(()).unwrap();
        assert!(owner.join().unwrap());
        new.remove().unwrap();
    });
}

#[test]
fn those_who_ask_take_turns() {
    let directory = directory();
    drop(load(builder().pin(&directory)));
    // A process that asked has died.
    fs::create_dir(directory.join("handover")).unwrap();
    let first = take_over(&directory, LONG).unwrap();
    assert!(!is_asked(&directory));
    fs::create_dir(directory.join("handover")).unwrap();
    thread::sleep(SHORT);
    assert!(!first.is_handed_over());
    let stop = AtomicBool::new(false);
    let owned = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                let katran = take_over(&directory, LONG).unwrap();
                owned.fetch_add(1, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) && !katran.is_handed_over() {
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        eventually("each has owned it", || owned.load(Ordering::Relaxed) == 3);
        stop.store(true, Ordering::Relaxed);
    });
    assert!(first.is_handed_over() && !is_asked(&directory));
    drop(first);
    katran::remove(&directory).unwrap();
}

/// A handover goes only to the process that asked, and the owner lets go only for one that can
/// continue.
#[test]
fn a_handover_goes_to_the_process_that_asked() {
    let directory = directory();
    drop(load(builder().pin(&directory)));
    // As a process that has asked and is about to take over.
    let request = directory.join("handover");
    fs::create_dir(&request).unwrap();
    let request = fs::File::open(&request).unwrap();
    let request = nix::fcntl::Flock::lock(request, nix::fcntl::FlockArg::LockExclusiveNonblock);
    let request = request.unwrap();
    for refused in [
        builder().pin(&directory).adopt().unwrap_err(),
        builder().pin(&directory).load().unwrap_err(),
        katran::remove(&directory).unwrap_err(),
        take_over(&directory, SHORT).unwrap_err(),
    ] {
        assert!(matches!(refused, Error::Busy { .. }), "{refused}");
    }
    drop(request);
    let owner = builder().pin(&directory).adopt().unwrap();
    assert!(!owner.is_handed_over());
    owner.remove().unwrap();
    assert!(!directory.exists());
}

/// Any process can look up a balancer's owner, and how long there has been none. A former handle
/// that never had a sign-of-life thread has ended when the next owner comes; a monitor that
/// outlives it reports that.
#[test]
fn a_monitor_that_outlives_its_handle_leaves_the_next_one_alone() {
    for has_keeper in [true, false] {
        let directory = directory();
        let features = Features::default() | Features::INTROSPECTION;
        let settings = all_in_table().pin(&directory).features(features);
        let mut old = match has_keeper {
            true => load(settings),
            false => without_call(libc::SYS_clone3, Errno::EAGAIN, || load(settings)),
        };
        serve(&mut old, VIP4, VipFlags::empty(), &[A]);
        let monitor = old.events().to_list(MonitorOptions::new(), 10).unwrap();
        drop(old);
        let new = builder().pin(&directory).adopt().unwrap();
        eventually("the old monitor says why", || {
            let failure = monitor.stats().failure.unwrap_or_default();
            assert!(!failure.contains("handed over"), "{failure}");
            failure.contains("was dropped")
        });
        let listening = new.events().to_list(MonitorOptions::new(), 10).unwrap();
        drop(monitor.stop());
        // Packets of unknown flows.
        for flow in flows(Protocol::Tcp, "203.0.113.1:443", 3) {
            bpf::run(new.program_fd(), &frame(flow));
        }
        eventually("events come", || listening.stats().delivered > 0);
        drop(listening);
        new.remove().unwrap();
    }
}

#[test]
fn an_orphan_is_seen() {
    let directory = directory();
    let missing = katran::pinned(&directory).unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    assert!(!Diagnosis::of_pinned(&directory).works());
    let katran = load(builder().pin(&directory));
    let look = || katran::pinned(&directory).unwrap();
    let worst = || Diagnosis::of_pinned(&directory).worst();
    thread::sleep(Duration::from_millis(2500));
    let alive = Duration::from_millis(2000);
    eventually("a recent sign of life", || look().silence.unwrap() < alive);
    let owned = look();
    assert_eq!(owned.owner, PinnedOwner::Process(std::process::id()));
    assert_eq!(owned.stage, PinnedStage::Whole);
    assert_eq!(owned.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(owned.kind, PinnedKind::Balancer);
    assert!(owned.age > alive, "{owned:?}");
    assert_eq!(worst(), Severity::Ok);
    eventually("the owner knows of a recent one", || {
        let counted = katran.counters().unwrap().library.sign_of_life_age;
        counted.unwrap() < alive
    });
    // Looking it up blocks nothing.
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                look();
            }
        });
        drop(katran);
        for _ in 0..2 {
            drop(builder().pin(&directory).adopt().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
    });
    let began = Instant::now();
    drop(builder().pin(&directory).adopt().unwrap());
    thread::sleep(Duration::from_millis(1500));
    let orphan = look();
    assert_eq!(orphan.owner, PinnedOwner::Nobody);
    let silence = orphan.silence.unwrap();
    assert!(silence >= Duration::from_millis(1500), "{orphan:?}");
    assert!(silence < began.elapsed() + alive, "{orphan:?}");
    assert!(orphan.to_string().starts_with("no owner for "), "{orphan}");
    assert_eq!(worst(), Severity::Warning);
    katran::remove(&directory).unwrap();
    let ephemeral = load(builder()).counters().unwrap();
    assert_eq!(ephemeral.library.sign_of_life_age, None);
}
