//! The example `healthcheck`: what it makes of probes, and at work with reals that come and go.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../examples/healthcheck/board.rs"]
mod board;
#[path = "common/program.rs"]
mod program;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use board::Board;
use board::Notice;
use board::Thresholds;
use katran::Real;
use katran::State;
use katran::Vip;
use katran::VipState;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::require_root;
use program::Running;
use program::Scratch;
use program::example;

const SIGHUP: i32 = 1;
const SIGTERM: i32 = 15;

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

fn board(weights: &[u32]) -> Board {
    let thresholds = Thresholds { rise: 2, fall: 3 };
    Board::new(wanted(weights), thresholds, 100)
}

fn weights(board: &mut Board) -> Vec<u32> {
    let (state, _) = board.state();
    state.vips[0].reals.iter().map(Real::get_weight).collect()
}

/// So many probes of a real, with the notices that they make.
fn probes(board: &mut Board, last: u8, works: bool, count: u32) -> Vec<Notice> {
    (0..count)
        .filter_map(|_| board.record(vip(WEB), real(last), works))
        .collect()
}

#[test]
fn it_takes_several_probes_to_change_ones_mind() {
    let mut board = board(&[3, 4]);
    assert_eq!(weights(&mut board), [3, 4]);
    assert!(probes(&mut board, 1, false, 2).is_empty());
    assert!(probes(&mut board, 1, true, 1).is_empty());
    // The two before do not count any more.
    assert!(probes(&mut board, 1, false, 2).is_empty());
    assert_eq!(weights(&mut board), [3, 4]);
    let down = Notice::Changed {
        vip: vip(WEB),
        real: real(1),
        up: false,
    };
    assert_eq!(probes(&mut board, 1, false, 1), [down]);
    assert_eq!(weights(&mut board), [0, 4]);
    assert!(probes(&mut board, 1, true, 1).is_empty());
    assert_eq!(probes(&mut board, 1, true, 1).len(), 1);
    assert_eq!(weights(&mut board), [3, 4]);
}

#[test]
fn the_last_set_stays_if_all_fail() {
    let mut board = board(&[1, 1, 1]);
    probes(&mut board, 1, false, 3);
    assert_eq!(weights(&mut board), [0, 1, 1]);
    probes(&mut board, 2, false, 3);
    probes(&mut board, 3, false, 3);
    let (state, notices) = board.state();
    assert_eq!(notices, [Notice::Kept { vip: vip(WEB) }]);
    let of = state.vips[0].reals.iter().map(Real::get_weight);
    assert_eq!(of.collect::<Vec<_>>(), [0, 1, 1], "those of before");
    assert!(board.state().1.is_empty(), "said once");
    probes(&mut board, 1, true, 2);
    let (_, notices) = board.state();
    assert_eq!(notices, [Notice::Recovered { vip: vip(WEB) }]);
    assert_eq!(weights(&mut board), [1, 0, 0]);
}

#[test]
fn what_an_operator_has_drained_stays_drained() {
    let mut board = board(&[1, 0]);
    assert_eq!(weights(&mut board), [1, 0]);
    probes(&mut board, 2, true, 5);
    assert_eq!(weights(&mut board), [1, 0]);
    // Also if it is the only one that works.
    probes(&mut board, 1, false, 3);
    assert_eq!(weights(&mut board), [1, 0]);
    // And one that goes down and is drained meanwhile comes back as drained.
    board.set_wanted(wanted(&[0, 2]));
    assert_eq!(weights(&mut board), [0, 2]);
    probes(&mut board, 1, true, 2);
    assert_eq!(weights(&mut board), [0, 2]);
    board.set_wanted(wanted(&[5, 2]));
    assert_eq!(weights(&mut board), [5, 2]);
}

#[test]
fn what_probes_have_found_outlives_another_file() {
    let mut board = board(&[1, 1]);
    probes(&mut board, 2, false, 3);
    let marks = board.targets();
    board.set_wanted(wanted(&[1, 7, 1]));
    assert_eq!(weights(&mut board), [1, 0, 1]);
    assert_eq!(board.targets()[..2], marks[..], "the same marks");
    assert_eq!(board.targets().len(), 3);
    let (state, _) = board.state();
    let of: BTreeSet<_> = state.marks.iter().map(|state| state.mark).collect();
    assert_eq!(of, BTreeSet::from([100, 101, 102]));
    // A real that is gone is forgotten.
    board.set_wanted(wanted(&[1]));
    assert!(board.record(vip(WEB), real(2), true).is_none());
    board.set_wanted(wanted(&[1, 1]));
    assert_eq!(weights(&mut board), [1, 1]);
}

/// A UDP service that sends back what it gets, until its socket is closed by a datagram "stop".
fn echo(host: &Host, vip: IpAddr) -> thread::JoinHandle<()> {
    let socket = host.run(|| UdpSocket::bind((vip, 7)).unwrap());
    thread::spawn(move || {
        let mut bytes = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut bytes).unwrap();
            if bytes[..length] == *b"stop" {
                return;
            }
            socket.send_to(&bytes[..length], from).unwrap();
        }
    })
}

fn stop_echo(host: &Host, vip: IpAddr) {
    host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"stop", (vip, 7)).unwrap();
    });
}

fn names(lab: &Lab, vip: IpAddr) -> BTreeSet<String> {
    (0..20)
        .map(|_| {
            // One that is down, and not known to be yet, refuses.
            let client = TcpClient::connect(&lab.client, (vip, 80).into());
            let answer = client.and_then(|mut client| client.ask("who?"));
            answer.unwrap_or_else(|error| error.to_string())
        })
        .collect()
}

/// Waits until these backends answer on a VIP, and no other.
fn until(lab: &Lab, vip: IpAddr, expected: &[&str]) {
    let expected: BTreeSet<_> = expected.iter().map(|name| (*name).to_owned()).collect();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let names = names(lab, vip);
        if names == expected {
            return;
        }
        assert!(Instant::now() < end, "{vip}: {names:?}");
    }
}

#[test]
fn reals_that_do_not_answer_get_no_new_flows_until_they_do() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let (web, other) = (lab.vip4(), lab.vip6());
    let mut decaps = Vec::new();
    for backend in &lab.backends {
        let mut command = example("decap");
        command.args(["--interface", "eth0"]);
        let mut decap = Running::start(&backend.host, command);
        decap.says("stripping tunnels on eth0");
        decaps.push(decap);
    }
    let mut servers = lab.serve_tcp(80).unwrap();
    let echoes: Vec<_> = lab
        .backends
        .iter()
        .map(|backend| echo(&backend.host, web))
        .collect();
    let file = Scratch::new("healthcheck.toml");
    let write = |weight: u32| {
        let [a, b] = [0, 1].map(|i| (lab.backends[i].v4, lab.backends[i].v6));
        file.write(&format!(
            "[balancer]\ngateway_mac = \"auto\"\nflow_table_size = 10_000\n\
             source_v4 = \"10.0.0.2\"\nsource_v6 = \"2001:db8:b::2\"\n\
             [[vip]]\naddress = \"{web}\"\nport = 80\nprotocol = \"tcp\"\n\
             reals = [{{ address = \"{}\" }}, {{ address = \"{}\", weight = {weight} }}]\n\
             [[vip]]\naddress = \"{other}\"\nport = 80\nprotocol = \"tcp\"\n\
             reals = [{{ address = \"{}\" }}, {{ address = \"{}\" }}]\n\
             [[vip]]\naddress = \"{web}\"\nport = 7\nprotocol = \"udp\"\n\
             reals = [{{ address = \"{}\" }}, {{ address = \"{}\" }}]\n\
             [[vip]]\naddress = \"{web}\"\nport = 0\nprotocol = \"udp\"\n\
             reals = [{{ address = \"{}\" }}]\n",
            a.0, b.0, a.1, b.1, a.0, b.0, a.0
        ));
    };
    write(1);
    let mut command = example("healthcheck");
    command.arg("--config").arg(&file.0);
    command.args([
        "--interface",
        "eth0",
        "--interval",
        "0.1",
        "--timeout",
        "0.3",
    ]);
    let mut checker = Running::start(&lab.balancers[0].host, command);
    checker.says("balancing on eth0 in native mode");
    checker.says("203.0.113.1:0/udp: real 198.51.100.1 is not probed");
    until(&lab, web, &["backend0", "backend1"]);

    drop(servers.remove(0));
    checker.says("203.0.113.1:80/tcp: real 198.51.100.1 is down: Connection refused");
    for vip in [web, other] {
        until(&lab, vip, &["backend1"]);
    }
    // The UDP service on the same host answers: it is each VIP's own affair.
    stop_echo(&lab.backends[1].host, web);
    checker.says("203.0.113.1:7/udp: real 198.51.100.2 is down");

    // The last one goes, too: the set stays.
    drop(servers.remove(0));
    checker.says("203.0.113.1:80/tcp: no real answers: the last weights stay in force");
    let mut servers = lab.serve_tcp(80).unwrap();
    checker.says("203.0.113.1:80/tcp: reals answer again");
    for vip in [web, other] {
        until(&lab, vip, &["backend0", "backend1"]);
    }

    // An operator drains the second one, and it stays so, whatever its health.
    write(0);
    checker.process.signal(SIGHUP).unwrap();
    checker.says("1 weight changed");
    until(&lab, web, &["backend0"]);
    let second = servers.remove(1);
    drop(second);
    checker.says("203.0.113.1:80/tcp: real 198.51.100.2 is down");
    servers.push(katran_lab::TcpServer::start(&lab.backends[1].host, 80, "backend1").unwrap());
    checker.says("203.0.113.1:80/tcp: real 198.51.100.2 is up");
    assert_eq!(names(&lab, web), BTreeSet::from(["backend0".to_owned()]));

    checker.end(SIGTERM);
    let sent = checker.says("packets of probes sent");
    assert!(!sent.starts_with("0 "), "{sent}");
    checker.says("detached from eth0");
    stop_echo(&lab.backends[0].host, web);
    for echo in echoes {
        echo.join().unwrap();
    }
    drop(servers);
}

/// A web server that answers every request with a status.
fn web(host: &Host, address: IpAddr, status: &'static str) -> std::net::TcpListener {
    use std::io::Read;
    use std::io::Write;
    let listener = host.run(|| std::net::TcpListener::bind((address, 8080)).unwrap());
    let accepting = listener.try_clone().unwrap();
    thread::spawn(move || {
        for stream in accepting.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap_or(0);
            let asked = request[..length].starts_with(b"GET /health HTTP/1.1\r\n");
            let status = if asked { status } else { "400 Bad Request" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        }
    });
    listener
}

#[test]
fn pages_must_have_the_status_that_is_wanted() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let vip = lab.vip4();
    let mut decaps = Vec::new();
    let mut pages = Vec::new();
    for (backend, status) in lab
        .backends
        .iter()
        .zip(["204 No Content", "503 Service Unavailable"])
    {
        let mut command = example("decap");
        command.args(["--interface", "eth0"]);
        let mut decap = Running::start(&backend.host, command);
        decap.says("stripping tunnels on eth0");
        decaps.push(decap);
        pages.push(web(&backend.host, vip, status));
    }
    let file = Scratch::new("healthcheck-http.toml");
    file.write(&format!(
        "[balancer]\ngateway_mac = \"auto\"\nflow_table_size = 10_000\nsource_v4 = \"10.0.0.2\"\n\
         [[vip]]\naddress = \"{vip}\"\nport = 8080\nprotocol = \"tcp\"\n\
         reals = [{{ address = \"198.51.100.1\" }}, {{ address = \"198.51.100.2\" }}]\n"
    ));
    let mut command = example("healthcheck");
    command.arg("--config").arg(&file.0);
    command.args([
        "--interface",
        "eth0",
        "--interval",
        "0.1",
        "--status",
        "204",
    ]);
    command.args(["--http", "203.0.113.1:8080/tcp=/health"]);
    let mut checker = Running::start(&lab.balancers[0].host, command);
    checker.says("203.0.113.1:8080/tcp: real 198.51.100.2 is down: status 503, not 204");
    checker.end(SIGTERM);
    drop(pages);
}
