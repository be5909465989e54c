//! One process hands a pinned balancer over to the next, under traffic: no connection and no
//! datagram is lost, whichever of the two is stopped or killed on the way.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran_lab::StopOnDrop;
use katran_lab::TcpClient;
use katran_lab::UdpClient;
use katran_lab::UdpServer;
use katran_lab::eventually;
use nix::unistd::Pid;

use crate::examples::configuration;
use crate::place::Place;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::decap;
use crate::program::katran;
use crate::traced::Call;
use crate::traced::run_until;

const SIGHUP: i32 = 1;
const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;
const LONG: Duration = Duration::from_secs(30);

/// A place that serves TCP and UDP.
fn place(name: &str) -> Place {
    let place = Place::new(name);
    let tcp = configuration(&place.lab, 0);
    let udp = tcp.replace("\"tcp\"", "\"udp\"");
    let (_, udp) = udp.split_once("[[vip]]").unwrap();
    place.file.write(&format!("{tcp}[[vip]]{udp}"));
    place
}

fn is_asked(place: &Place) -> bool {
    place.directory.join("handover").exists()
}

/// The old process says who took over, and exits with success.
pub(crate) fn ends(old: &mut Running, by: &Running) {
    old.says(&format!("was handed over to process {}", by.process.id()));
    let status = old.process.wait(LONG).unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn nothing_is_lost_from_one_process_to_the_next() {
    let place = place("taken_over.toml");
    let lab = &place.lab;
    let servers = (lab.serve_tcp(80).unwrap(), lab.serve_udp(80).unwrap());
    let decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let mut balancer = place.start(&[]);
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let asked = thread::scope(|scope| {
        let traffic: Vec<_> = [lab.vip4(), lab.vip6()]
            .map(|vip| {
                let mut tcp = TcpClient::connect(&lab.client, (vip, 80).into()).unwrap();
                let udp = UdpClient::connect(&lab.client, (vip, 80).into()).unwrap();
                let (stop, served) = (&stop, &served);
                scope.spawn(move || {
                    let mut asked = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // A lost datagram is not retransmitted: there would be no answer.
                        assert_eq!(udp.ask(b"who").unwrap(), "backend0");
                        assert_eq!(tcp.ask("who").unwrap(), "backend0");
                        asked += 1;
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    asked
                })
            })
            .into();
        // A panic below ends the threads.
        let _stop = StopOnDrop(&stop);
        // Successive balancers listen on the same address and socket.
        let socket = Scratch::new("taken_over.sock");
        for listens in [false, true, true, false] {
            let mut command = place.command("katran", &["--take-over"]);
            if listens {
                command = place.listening(&["--take-over", "--listen"], &socket);
            }
            let mut next = Running::start(place.host(), command);
            next.says("continuing with the balancer in");
            next.says("balancing on eth0 in native mode");
            if listens {
                next.says("metrics on http://127.0.0.1:9957/metrics");
                next.says("commands at");
                let mut status = katran("status");
                status.arg("--socket").arg(&socket.0);
                let output = place.host().output(status).unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                assert!(
                    text.contains(&format!("process {},", next.process.id())),
                    "{text}"
                );
            }
            ends(&mut balancer, &next);
            balancer = next;
            let before = served.load(Ordering::Relaxed);
            eventually("clients are served on", || {
                served.load(Ordering::Relaxed) > before + 100
            });
        }
        stop.store(true, Ordering::Relaxed);
        traffic
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum::<u64>()
    });
    assert_eq!(
        servers
            .1
            .iter()
            .map(|server| server.received())
            .sum::<u64>(),
        asked
    );
    balancer.process.kill().unwrap();
    place.remove();
    drop((decaps, servers));
}

#[test]
fn a_hung_owner_keeps_the_balancer_until_killed() {
    let place = place("not_answered.toml");
    let mut owner = place.start(&[]);
    owner.process.signal(SIGSTOP).unwrap();
    let id = owner.process.id();
    let refused = place.host().output(place.balancer(&["--take-over"]));
    let text = String::from_utf8(refused.unwrap().stderr).unwrap();
    assert!(text.contains(&format!("belongs to process {id}")), "{text}");
    assert!(!is_asked(&place));
    let whose = || {
        let mut command = katran("status");
        command.arg("--pin").arg(&place.directory);
        let output = place.host().output(command).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), text)
    };
    let (works, text) = whose();
    let seconds = text.split("no sign of life for ").nth(1);
    let seconds = seconds.and_then(|text| text.split(' ').next()?.parse().ok());
    assert!(!works && seconds >= Some(10), "{text}");
    // It does not know that it was stopped.
    owner.process.signal(SIGCONT).unwrap();
    owner.process.signal(SIGHUP).unwrap();
    owner.says("no changes");
    let (works, text) = whose();
    assert!(
        works && text.contains(&format!("owner: process {id};")),
        "{text}"
    );

    owner.process.signal(SIGSTOP).unwrap();
    let mut next = Running::start(place.host(), place.balancer(&["--take-over"]));
    eventually("it asks", || is_asked(&place));
    owner.process.kill().unwrap();
    next.says("balancing on eth0 in native mode");
    assert!(!is_asked(&place));
    next.process.kill().unwrap();
    let (works, text) = whose();
    assert!(!works && text.contains("no owner for "), "{text}");
    place.remove();
}

/// The process that takes over is killed after each of its first calls: before the owner lets go,
/// the owner continues; after that, the balancer is there for the next.
#[test]
fn a_process_that_dies_taking_over_leaves_the_balancer_to_others() {
    let place = place("died_taking.toml");
    let first = [Call::MakeDirectory, Call::RemoveDirectory];
    let mut owner = place.start(&[]);
    for last in 1..=2 {
        let is_last = |calls: &[Call], _: Pid| {
            assert!(first.starts_with(&calls[..calls.len().min(2)]), "{calls:?}");
            calls.len() == last
        };
        let command = place.balancer(&["--take-over"]);
        let (calls, killed) = place.host().run(|| run_until(command, is_last));
        assert!(killed && calls.len() == last, "{calls:?}");
        let has_let_go = calls.len() > 1;
        if has_let_go {
            owner.says("was handed over to");
            assert!(owner.process.wait(LONG).unwrap().success());
        } else {
            owner.process.signal(SIGHUP).unwrap();
            owner.says("no changes");
        }
        let next = match has_let_go {
            true => place.start(&[]),
            false => place.start(&["--take-over"]),
        };
        assert!(!is_asked(&place));
        if !has_let_go {
            ends(&mut owner, &next);
        }
        owner = next;
    }
    owner.process.kill().unwrap();
    place.remove();
}

/// With a limit, forwarding stops once no owner has given a sign of life for that long, and resumes
/// with the next owner.
#[test]
fn an_orphan_stops_after_its_limit() {
    let place = place("orphan_limit.toml");
    let text = std::fs::read_to_string(&place.file.0).unwrap();
    place
        .file
        .write(&text.replacen("[balancer]", "[balancer]\norphan_limit = 5", 1));
    let lab = &place.lab;
    let servers = (lab.serve_tcp(80).unwrap(), lab.serve_udp(80).unwrap());
    let decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let mut owner = place.start(&[]);
    let mut tcp = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
    let udp = UdpClient::connect(&lab.client, (lab.vip6(), 80).into()).unwrap();
    // What passes is answered, too, so that no answer has to be waited for in vain.
    let vip = format!("addr add {}/128 dev lo nodad", lab.vip6());
    place.host().ip(&vip).unwrap();
    let passed = UdpServer::start(place.host(), &[lab.vip6()], 80, "passed").unwrap();
    let answers = || udp.ask(b"who").unwrap();
    // An owner that hangs, and one that is gone.
    for signal in [SIGSTOP, 9] {
        assert_eq!(answers(), "backend0");
        assert_eq!(tcp.ask("who").unwrap(), "backend0");
        owner.process.signal(signal).unwrap();
        let began = Instant::now();
        // A busy machine may have kept the owner from its last sign of life.
        let silence = katran::pinned(&place.directory).unwrap().silence.unwrap();
        eventually("it passes", || answers() == "passed");
        let limit = began.elapsed() + silence;
        assert!(limit > Duration::from_secs(4), "{limit:?}");
        thread::sleep(Duration::from_secs(1));
        assert_eq!(answers(), "passed");
        match signal {
            SIGSTOP => owner.process.signal(SIGCONT).unwrap(),
            _ => owner = place.start(&[]),
        }
        eventually("it forwards", || answers() == "backend0");
    }
    assert_eq!(tcp.ask("who").unwrap(), "backend0");
    owner.process.kill().unwrap();
    place.remove();
    drop((decaps, servers, passed));
}
