//! Health checks in `katran run`: reals that start and stop, a checker that is cut off, probes that
//! miss the tunnel, and documents with other keys, or unusable ones.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::net::IpAddr;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::exposition::Dialect;
use crate::exposition::Page;
use crate::program::Commanded;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::decap;
use crate::program::example;
use crate::program::katran;

const SIGHUP: i32 = 1;
const SIGTERM: i32 = 15;

/// A file with the settings that all tests need, short intervals, and `more`.
fn configuration(name: &str, more: &str) -> Scratch {
    let file = Scratch::new(name);
    file.write(&format!("{SETTINGS}{HEALTH}{more}"));
    file
}

/// The timeout is long, as a busy machine may refuse late.
const HEALTH: &str = "[health]\ninterval = 0.1\ntimeout = 10\n";

const SETTINGS: &str = "[balancer]\ngateway_mac = \"auto\"\nflow_table_size = 10_000\n\
                        source_v4 = \"10.0.0.2\"\nsource_v6 = \"2001:db8:b::2\"\n";

/// For the VIP before it in the document: for probes that get no answer at all, but longer than a
/// busy machine takes for one.
const SHORT: &str = "[vip.health]\ntimeout = 2\n";

/// A VIP with both backends.
fn service(port: u16, protocol: &str) -> String {
    format!(
        "[[vip]]\naddress = \"203.0.113.1\"\nport = {port}\nprotocol = \"{protocol}\"\n\
         reals = [{{ address = \"198.51.100.1\" }}, {{ address = \"198.51.100.2\" }}]\n"
    )
}

/// A balancer that reads this file.
fn checker(file: &Scratch, arguments: &[&str]) -> Command {
    let mut command = katran("run");
    command.arg("--config").arg(&file.0).args(arguments);
    command
}

/// A running balancer's status, once it has these words.
fn status(host: &Host, running: &Commanded, wanted: &[&str]) -> String {
    let mut text = String::new();
    eventually(format_args!("{wanted:?} in the status"), || {
        text = running.say(host, "status", &[]).1;
        wanted.iter().all(|wanted| text.contains(wanted))
    });
    text
}

/// A UDP service that echoes until a datagram "stop" closes its socket.
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
            // A dead backend refuses until the checks know.
            let client = TcpClient::connect(&lab.client, (vip, 80).into());
            let answer = client.and_then(|mut client| client.ask("who?"));
            answer.unwrap_or_else(|error| error.to_string())
        })
        .collect()
}

/// Waits until these backends answer on a VIP, and no other.
fn until(lab: &Lab, vip: IpAddr, expected: &[&str]) {
    let expected: BTreeSet<_> = expected.iter().map(|name| (*name).to_owned()).collect();
    eventually(format_args!("{expected:?} at {vip}"), || {
        names(lab, vip) == expected
    });
}

#[test]
fn reals_that_do_not_answer_get_no_new_flows_until_they_do() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let (web, other) = (lab.vip4(), lab.vip6());
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    let mut servers = lab.serve_tcp(80).unwrap();
    let mut echoes: Vec<_> = lab
        .backends
        .iter()
        .map(|backend| echo(&backend.host, web))
        .collect();
    let file = configuration("healthcheck.toml", "");
    let write = |weight: u32| {
        let [a, b] = [0, 1].map(|i| (lab.backends[i].v4, lab.backends[i].v6));
        file.write(&format!(
            "{SETTINGS}{HEALTH}\
             udp_check = {{ kind = \"udp\", payload = \"who?\", answer = \"echo\" }}\n\
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
    let host = &lab.balancers[0].host;
    let options = ["--interface", "eth0", "--listen", "127.0.0.1:9957"];
    let mut running = Commanded::start(host, &file, &options);
    until(&lab, web, &["backend0", "backend1"]);

    drop(servers.remove(0));
    running
        .balancer
        .says("203.0.113.1:80/tcp: real 198.51.100.1 is down: Connection refused");
    running
        .balancer
        .says("203.0.113.1:80/tcp: real 198.51.100.1 gets no flows");
    for vip in [web, other] {
        until(&lab, vip, &["backend1"]);
    }
    let refused = "weight 1; does not answer: Connection refused (os error 111); DOWN";
    status(host, &running, &[refused, "weight 1; up\n"]);
    let scrape = || {
        let page = "127.0.0.1:9957".parse().unwrap();
        let answer = katran_lab::http_get(host, page, "/metrics", Duration::from_secs(30));
        let body = String::from_utf8(answer.unwrap().body).unwrap();
        Page::parse(&body, Dialect::Plain)
    };
    let page = "127.0.0.1:9957".parse().unwrap();
    let path = "/api/reals?vip=203.0.113.1:80/tcp";
    let answer = katran_lab::http_get(host, page, path, Duration::from_secs(30)).unwrap();
    let reals: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let real = &reals["reals"][0];
    assert_eq!(real["result"], "Connection refused (os error 111)");
    let turns = real["history"].as_array().unwrap();
    let ups: Vec<_> = turns.iter().map(|of| of["up"].as_bool().unwrap()).collect();
    assert_eq!(ups, [true, false], "{real}");
    let dead = [("vip", "203.0.113.1:80/tcp"), ("real", "198.51.100.1")];
    let well = [("vip", "203.0.113.1:80/tcp"), ("real", "198.51.100.2")];
    let page = scrape();
    assert_eq!(page.get("katran_health_up", &dead), 0.0);
    assert_eq!(page.get("katran_health_up", &well), 1.0);
    assert_eq!(page.get("katran_health_transitions_total", &dead), 2.0);
    let vip = dead[0];
    let refused = [vip, ("cause", "refused")];
    assert!(page.get("katran_health_failures_total", &refused) >= 3.0);
    assert_eq!(
        page.get("katran_health_reals", &[vip, ("state", "down")]),
        1.0
    );
    let answers = page.get("katran_health_probes_total", &[vip, ("result", "passed")]);
    let within = page.get("katran_health_answers_within_total", &[vip, ("le", "+Inf")]);
    assert!(answers > 0.0 && answers == within, "{answers} {within}");
    // The UDP service on the same host still answers: each VIP is checked alone.
    stop_echo(&lab.backends[1].host, web);
    running
        .balancer
        .says("203.0.113.1:7/udp: real 198.51.100.2 is down: Connection refused");
    echoes.push(echo(&lab.backends[1].host, web));
    running
        .balancer
        .says("203.0.113.1:7/udp: real 198.51.100.2 is up");

    // The last one stops, too: the set stays.
    drop(servers.remove(0));
    running
        .balancer
        .says("203.0.113.1:80/tcp: too few reals answer: no more are taken out");
    status(host, &running, &["TOO FEW REALS ANSWER"]);
    let mut servers = lab.serve_tcp(80).unwrap();
    running
        .balancer
        .says("203.0.113.1:80/tcp: enough reals answer again");
    for vip in [web, other] {
        until(&lab, vip, &["backend0", "backend1"]);
    }

    // An operator drains the second one, and it stays drained, whatever its health.
    write(0);
    running.balancer.process.signal(SIGHUP).unwrap();
    running.balancer.says("1 weight changed");
    until(&lab, web, &["backend0"]);
    let second = servers.remove(1);
    drop(second);
    running
        .balancer
        .says("203.0.113.1:80/tcp: real 198.51.100.2 is down");
    servers.push(katran_lab::TcpServer::start(&lab.backends[1].host, 80, "backend1").unwrap());
    running
        .balancer
        .says("203.0.113.1:80/tcp: real 198.51.100.2 is up");
    assert_eq!(names(&lab, web), BTreeSet::from(["backend0".to_owned()]));

    // The first one stops: the drained one serves, and a drain of it cannot end.
    drop(servers.remove(0));
    status(host, &running, &["ALL OTHERS ARE DOWN"]);
    until(&lab, web, &["backend1"]);
    let drain = ["198.51.100.2", "203.0.113.1:80/tcp", "--wait"];
    let (worked, text) = running.say(host, "drain", &drain);
    let why = "198.51.100.2 is no longer drained for 203.0.113.1:80/tcp: all others are down";
    assert!(!worked && text.contains(why), "{text}");

    running.balancer.end(SIGTERM);
    let sent = running.balancer.says("probe packets: ");
    assert!(!sent.contains("packets: 0 "), "{sent}");
    running.balancer.says("detached from eth0");
    for backend in &lab.backends {
        stop_echo(&backend.host, web);
    }
    for echo in echoes {
        echo.join().unwrap();
    }
    drop((servers, decaps));
}

/// Marks, counters and the reals' health outlive the process: a dead real never gets flows again.
#[test]
fn a_killed_checkers_results_are_kept() {
    require_root();
    let directory = private_bpf_fs().unwrap().join("katran");
    let lab = Lab::new(LabConfig::default()).unwrap();
    let web = lab.vip4();
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    let mut servers = lab.serve_tcp(80).unwrap();
    let file = configuration("killed-healthcheck.toml", &service(80, "tcp"));
    let host = &lab.balancers[0].host;
    let start = || {
        let mut command = checker(&file, &["--interface", "eth0"]);
        command.arg("--pin").arg(&directory);
        Running::start(host, command)
    };
    let mut checker = start();
    checker.says("balancing on eth0 in native mode");
    drop(servers.remove(0));
    checker.says("203.0.113.1:80/tcp: real 198.51.100.1 gets no flows");
    until(&lab, web, &["backend1"]);
    checker.process.kill().unwrap();
    assert_eq!(names(&lab, web), BTreeSet::from(["backend1".to_owned()]));

    let mut next = start();
    next.says("continuing with the balancer in");
    next.says("no changes");
    next.says("balancing on eth0 in native mode");
    assert_eq!(names(&lab, web), BTreeSet::from(["backend1".to_owned()]));
    next.process.kill().unwrap();
    servers.push(katran_lab::TcpServer::start(&lab.backends[0].host, 80, "backend0").unwrap());
    let mut next = start();
    next.says("203.0.113.1:80/tcp: real 198.51.100.1 is up");
    until(&lab, web, &["backend0", "backend1"]);
    next.end(SIGTERM);
    // The total of all three processes.
    let sent = next.says("probe packets: ");
    assert!(!sent.contains("packets: 0 "), "{sent}");
    next.says("balancing continues without this program");
    until(&lab, web, &["backend0", "backend1"]);
    katran::remove(&directory).unwrap();
    drop((servers, decaps));
}

/// A web server that answers every request with this status.
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
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    let statuses = ["204 No Content", "503 Service Unavailable"];
    let pages = lab.backends.iter().zip(statuses);
    let pages: Vec<_> = pages
        .map(|(backend, status)| web(&backend.host, vip, status))
        .collect();
    let page = "[vip.health]\ncheck = { kind = \"http\", path = \"/health\", statuses = [204] }\n";
    let services = service(8080, "tcp") + page;
    let file = configuration("healthcheck-http.toml", &services);
    let command = checker(&file, &["--interface", "eth0"]);
    let mut checker = Running::start(&lab.balancers[0].host, command);
    checker.says("203.0.113.1:8080/tcp: real 198.51.100.2 is down: status 503");
    checker.end(SIGTERM);
    drop((pages, decaps));
}

#[test]
fn a_checker_that_is_cut_off_changes_nothing() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let vip = lab.vip4();
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    let servers = lab.serve_tcp(80).unwrap();
    let file = configuration("healthcheck-cut.toml", &(service(80, "tcp") + SHORT));
    let command = checker(&file, &["--interface", "eth0"]);
    let mut checker = Running::start(&lab.balancers[0].host, command);
    checker.says("balancing on eth0 in native mode");
    until(&lab, vip, &["backend0", "backend1"]);
    // Only answers to the checker are lost, not those to clients.
    lab.router.ip("route add blackhole 10.0.0.2/32").unwrap();
    let is_told = |line: &str| line.contains("no more are taken out") || line.contains("applied");
    let line = checker.line("either", is_told);
    let kept = "203.0.113.1:80/tcp: too few reals answer: no more are taken out";
    assert_eq!(line, kept);
    until(&lab, vip, &["backend0", "backend1"]);
    lab.router.ip("route del blackhole 10.0.0.2/32").unwrap();
    let is_told =
        |line: &str| line.contains("enough reals answer again") || line.contains("applied");
    let line = checker.line("either", is_told);
    assert_eq!(line, "203.0.113.1:80/tcp: enough reals answer again");
    until(&lab, vip, &["backend0", "backend1"]);
    checker.end(SIGTERM);
    drop((servers, decaps));
}

#[test]
fn probes_that_miss_the_tunnel_count_for_nothing() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let vip = lab.vip4();
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    let servers = lab.serve_tcp(80).unwrap();
    let file = configuration("healthcheck-miss.toml", &(service(80, "tcp") + SHORT));
    let host = &lab.balancers[0].host;
    // The VIP on this host is in the way from the start; even a server of this host answers.
    host.ip(&format!("addr add {vip}/32 dev lo")).unwrap();
    let own = host.run(|| std::net::TcpListener::bind((vip, 80)).unwrap());
    let command = checker(&file, &["--interface", "eth0"]);
    let mut checker = Running::start(host, command);
    checker.says("203.0.113.1:80/tcp: probes do not go through the tunnel");
    host.ip(&format!("addr del {vip}/32 dev lo")).unwrap();
    checker.says("203.0.113.1:80/tcp: probes go through the tunnel again");
    drop(own);
    // Another route than the tunnel's interface.
    host.ip("link add other type veth peer name end").unwrap();
    host.ip("link set other up").unwrap();
    host.ip("link set end up").unwrap();
    host.ip(&format!("route add {vip}/32 dev other")).unwrap();
    let line = checker.says("203.0.113.1:80/tcp: probes do not go through the tunnel");
    assert!(
        line.contains("no packet left through eth0 (no complete answer within 2 s)"),
        "{line}"
    );
    host.ip(&format!("route del {vip}/32 dev other")).unwrap();
    // No real was marked down for it.
    let is_told = |line: &str| line.contains("again") || line.contains(" down");
    let line = checker.line("either", is_told);
    assert_eq!(
        line,
        "203.0.113.1:80/tcp: probes go through the tunnel again"
    );
    checker.end(SIGTERM);
    drop((servers, decaps));
}

#[test]
fn an_unusable_file_leaves_health_checks_running() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let vip = lab.vip4();
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    let mut servers = lab.serve_tcp(80).unwrap();
    let file = configuration("healthcheck-bad.toml", &service(80, "tcp"));
    let command = checker(&file, &["--interface", "eth0"]);
    let mut checker = Running::start(&lab.balancers[0].host, command);
    checker.says("balancing on eth0 in native mode");
    until(&lab, vip, &["backend0", "backend1"]);
    // Too little room, and reals that no host has.
    let other = service(80, "tcp").replace("198.51.100", "198.51.101");
    file.write(&format!("{SETTINGS}max_reals = 1\n{HEALTH}{other}"));
    checker.process.signal(SIGHUP).unwrap();
    checker.says("max_reals");
    checker.says("nothing was changed: the balancer keeps its configuration");
    drop(servers.remove(0));
    checker.says("203.0.113.1:80/tcp: real 198.51.100.1 gets no flows");
    checker.says("applied: 1 real's health changed");
    until(&lab, vip, &["backend1"]);
    servers.push(katran_lab::TcpServer::start(&lab.backends[0].host, 80, "backend0").unwrap());
    until(&lab, vip, &["backend0", "backend1"]);
    checker.end(SIGTERM);
    drop((servers, decaps));
}

#[test]
fn udp_services_are_checked_by_tcp_or_left_alone() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    // One of the two answers on the probed port; neither is asked by UDP.
    let mut servers = lab.serve_tcp(81).unwrap();
    drop(servers.remove(0));
    let by_tcp = "health = { check = \"tcp\", port = 81 }\n";
    let services = [&service(53, "udp"), by_tcp, &service(54, "udp")].concat();
    let file = configuration("healthcheck-udp.toml", &services);
    let command = checker(&file, &["--interface", "eth0"]);
    let mut checker = Running::start(&lab.balancers[0].host, command);
    let down = checker.says(" is down: ");
    let expected = "203.0.113.1:53/udp: real 198.51.100.1 is down: Connection refused";
    assert!(down.starts_with(expected), "{down}");
    checker.says("203.0.113.1:53/udp: real 198.51.100.1 gets no flows");
    servers.push(katran_lab::TcpServer::start(&lab.backends[0].host, 81, "backend0").unwrap());
    let next = checker.line("up or down", |line| {
        line.contains(" is up") || line.contains(" is down")
    });
    assert_eq!(next, "203.0.113.1:53/udp: real 198.51.100.1 is up");
    checker.end(SIGTERM);
    drop((servers, decaps));
}

/// A remembered flow whose client keeps its port, as resolvers and QUIC clients do.
#[test]
fn a_client_with_a_fixed_port_leaves_a_dead_backend() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    // TCP probes decide; by UDP both backends keep answering, which shows where the flow goes.
    let mut servers = lab.serve_tcp(81).unwrap();
    let udp = lab.serve_udp(53).unwrap();
    let by_tcp = "health = { check = \"tcp\", port = 81 }\n";
    let file = configuration("healthcheck-fixed.toml", &(service(53, "udp") + by_tcp));
    let command = checker(&file, &["--interface", "eth0"]);
    let mut checker = Running::start(&lab.balancers[0].host, command);
    checker.says("balancing on eth0 in native mode");
    let local = "192.0.2.2:40000".parse().unwrap();
    let remote = (lab.vip4(), 53).into();
    let client = katran_lab::UdpClient::connect_from(&lab.client, local, remote).unwrap();
    let first = client.ask(b"who?").unwrap();
    assert_eq!(client.ask(b"who?").unwrap(), first);
    let (dead, other) = match first.as_str() {
        "backend0" => (0, "backend1"),
        _ => (1, "backend0"),
    };
    drop(servers.remove(dead));
    checker.says(" gets no flows");
    let moved = Instant::now() + Duration::from_secs(20);
    while client.ask(b"who?").unwrap() != other {
        assert!(Instant::now() < moved, "it stays on {first}");
    }
    // When the first one is back, the flow stays where it went.
    let host = &lab.backends[dead].host;
    servers.push(katran_lab::TcpServer::start(host, 81, first).unwrap());
    checker.says(" is up");
    for _ in 0..20 {
        assert_eq!(client.ask(b"who?").unwrap(), other);
    }
    checker.end(SIGTERM);
    drop((servers, udp, decaps));
}

#[test]
fn impossible_checks_are_refused_at_the_start() {
    require_root();
    let host = Host::new("balancer").unwrap();
    let file = configuration("healthcheck-refused.toml", &service(53, "udp"));
    let refused = |arguments: &[&str], says: &str| {
        let output = host.output(checker(&file, arguments)).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(says), "{text}");
    };
    let unsaid = service(80, "tcp") + "health = { check = \"udp\" }\n";
    file.write(&format!("{SETTINGS}{unsaid}"));
    let place = "healthcheck-refused.toml:11:20: check = \"udp\": this check needs more keys";
    refused(&["--interface", "lo"], place);
    let pem = "{ kind = \"https\", authorities = \"/nowhere/ca.pem\" }";
    file.write(&format!("{SETTINGS}[health]\ntcp_check = {pem}\n"));
    let place = "healthcheck-refused.toml:7:45: authorities = /nowhere/ca.pem: No such file";
    refused(&["--interface", "lo"], place);
    let checked = |says: &str| {
        let mut check = katran("check");
        let output = host.output({
            check.arg(&file.0);
            check
        });
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(says), "{text}");
    };
    checked(place);
    file.write(&format!(
        "[balancer]\ngateway_mac = \"0a:00:00:00:00:fe\"\n{HEALTH}{}",
        service(80, "tcp")
    ));
    checked("a probe of the real 198.51.100.1 needs source_v4 in [balancer]");
    refused(&["--interface", "lo"], "source_v4");
    file.write(&format!("{SETTINGS}{HEALTH}"));
    let shared = ["--shared", "/sys/fs/bpf/nothing"];
    refused(&shared, "set healthcheck_interface in [balancer]");
}

#[test]
fn probes_work_on_a_shared_interface() {
    require_root();
    let pins = private_bpf_fs().unwrap();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let vip = lab.vip4();
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    let mut servers = lab.serve_tcp(80).unwrap();
    let host = &lab.balancers[0].host;
    let path = pins.join("healthcheck").display().to_string();
    let mut root = example("root");
    root.args(["attach", "--interface", "eth0", "--path", &path]);
    let output = host.output(root).unwrap();
    assert!(output.status.success(), "{output:?}");
    let file = Scratch::new("healthcheck-shared.toml");
    let by = "healthcheck_interface = \"eth0\"\n";
    file.write(&[SETTINGS, by, HEALTH, &service(80, "tcp")].concat());
    let command = checker(&file, &["--shared", &path]);
    let mut checker = Running::start(host, command);
    checker.says("balancing as entry 2 of");
    until(&lab, vip, &["backend0", "backend1"]);
    drop(servers.remove(1));
    checker.says("203.0.113.1:80/tcp: real 198.51.100.2 gets no flows");
    until(&lab, vip, &["backend0"]);
    // Without an interface there would be no probes.
    file.write(&format!("{SETTINGS}{HEALTH}{}", service(80, "tcp")));
    checker.process.signal(SIGHUP).unwrap();
    checker.says("set healthcheck_interface in [balancer]");
    checker.end(SIGTERM);
    let mut root = example("root");
    root.args(["remove", "--path", &path]);
    assert!(host.output(root).unwrap().status.success());
    drop((servers, decaps));
}

/// Changed keys take effect at once, and the reals' health stays known.
#[test]
fn checks_change_with_the_document() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let vip = lab.vip4();
    let decaps = lab.backends.iter().map(decap).collect::<Vec<_>>();
    let mut servers = lab.serve_tcp(80).unwrap();
    drop(servers.remove(0));
    let file = Scratch::new("healthcheck-keys.toml");
    let write = |of_all: &str, of_vip: &str| {
        let service = service(80, "tcp");
        file.write(&format!("{SETTINGS}{of_all}{service}{of_vip}"));
    };
    // Without keys nothing is probed.
    write("", "");
    let host = &lab.balancers[0].host;
    let mut running = Commanded::start(host, &file, &["--interface", "eth0"]);
    let quiet = status(host, &running, &["198.51.100.1"]);
    assert!(
        !quiet.contains("; up") && !quiet.contains("DOWN"),
        "{quiet}"
    );
    write(HEALTH, "");
    running.balancer.process.signal(SIGHUP).unwrap();
    running.balancer.says("198.51.100.1 gets no flows");
    until(&lab, vip, &["backend1"]);
    // Another check, set elsewhere in the document: the health stays known, so no flows move.
    write(
        HEALTH,
        "health = { check = \"syn\", interval = 0.2, rise = 100 }\n",
    );
    let (worked, text) = running.say(host, "apply", &[file.0.to_str().unwrap(), "--dry-run"]);
    assert!(worked && text.contains("no changes"), "{text}");
    running.balancer.process.signal(SIGHUP).unwrap();
    running.balancer.says("applied: no changes");
    assert_eq!(names(&lab, vip), BTreeSet::from(["backend1".to_owned()]));
    // A real that is not probed is in use.
    let spared = service(80, "tcp").replacen(".1\" }", ".1\", health = { check = \"none\" } }", 1);
    file.write(&format!("{SETTINGS}{HEALTH}{spared}"));
    running.balancer.process.signal(SIGHUP).unwrap();
    running.balancer.says("1 real's health changed");
    write(HEALTH, "");
    running.balancer.process.signal(SIGHUP).unwrap();
    // The report of the probes precedes the change: a document in between would apply it instead.
    running.balancer.says("198.51.100.1 gets no flows");
    running.balancer.says("1 real's health changed");
    // So are all reals when the document has no checks any more.
    write("", "");
    running.balancer.process.signal(SIGHUP).unwrap();
    running.balancer.says("1 real's health changed");
    let quiet = status(host, &running, &["198.51.100.1"]);
    assert!(!quiet.contains("DOWN"), "{quiet}");
    running.balancer.end(SIGTERM);
    drop((servers, decaps));
}

const SECRET: &str = "long-enough-that-nobody-guesses-it";

/// The socket is for those who may run programs anyway, HTTP for those with a token.
#[test]
fn commands_come_in_by_the_socket_and_not_by_http() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let token = Scratch::new("healthcheck-token");
    token.write(SECRET);
    std::fs::set_permissions(&token.0, Permissions::from_mode(0o600)).unwrap();
    let scratch = Scratch::new("healthcheck-ran");
    let with = |text: &str| {
        let command = format!(
            "{{ kind = \"command\", program = \"/bin/sh\", arguments = [\"-c\", \"echo {text} >>{}\"] }}",
            scratch.0.display()
        );
        let vip = service(80, "tcp");
        format!("{SETTINGS}{HEALTH}tcp_check = {command}\n{vip}")
    };
    let ran = |text: &str| {
        let found = std::fs::read_to_string(&scratch.0);
        found.is_ok_and(|found| found.contains(text))
    };
    let file = Scratch::new("healthcheck-command.toml");
    file.write(&with("one"));
    let address = "127.0.0.1:9957";
    let token_file = token.0.to_str().unwrap();
    let options = [
        "--interface",
        "eth0",
        "--listen",
        address,
        "--token-file",
        token_file,
    ];
    let mut running = Commanded::start(host, &file, &options);
    eventually("the first one has run", || ran("one"));
    let post = |document: &str| {
        let body = serde_json::json!({ "command": "apply", "document": document }).to_string();
        let request = format!(
            "POST /api/commands HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            SECRET,
            body.len()
        );
        host.run(|| {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
            std::io::read_to_string(stream).unwrap()
        })
    };
    let refused = post(&with("two"));
    assert!(
        refused.contains(" 422 ") && refused.contains("/bin/sh"),
        "{refused}"
    );
    // The current command may stay, and others may come by the socket.
    let taken = post(&with("one"));
    assert!(taken.contains(" 200 "), "{taken}");
    assert!(!ran("two"));
    // Nor may HTTP name files: the answer would tell whether they exist.
    for path in ["/etc/passwd", "/nowhere/ca.pem"] {
        let check = format!("{{ kind = \"https\", authorities = \"{path}\" }}");
        let document = format!(
            "{SETTINGS}{HEALTH}tcp_check = {check}\n{}",
            service(80, "tcp")
        );
        let refused = post(&document);
        let why = format!("new `authorities` files ({path})");
        assert!(
            refused.contains(" 422 ") && refused.contains(&why),
            "{refused}"
        );
    }
    file.write(&with("two"));
    let (worked, text) = running.say(host, "apply", &[file.0.to_str().unwrap()]);
    assert!(worked, "{text}");
    eventually("the other one has run", || ran("two"));
    // A dry run refuses the same documents.
    let missing = "{ kind = \"https\", authorities = \"/nowhere/ca.pem\" }";
    file.write(&format!(
        "{SETTINGS}{HEALTH}tcp_check = {missing}\n{}",
        service(80, "tcp")
    ));
    for options in [&["--dry-run"][..], &[]] {
        let arguments = [options, &[file.0.to_str().unwrap()]].concat();
        let (worked, text) = running.say(host, "apply", &arguments);
        assert!(
            !worked && text.contains("authorities = /nowhere/ca.pem: No such"),
            "{text}"
        );
        assert!(text.contains("line 9, column 45"), "{text}");
    }
    running.balancer.end(SIGTERM);
}

/// Draining must work in an emergency, even if other files are missing; only what is read again
/// must be valid.
#[test]
fn a_real_can_be_drained_even_without_certificate_files() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let authorities = Scratch::new("healthcheck-authorities.pem");
    let made = rcgen::generate_simple_self_signed(["www.example.com".to_owned()]).unwrap();
    authorities.write(&made.cert.pem());
    let path = authorities.0.display().to_string();
    let check = format!("tcp_check = {{ kind = \"https\", authorities = \"{path}\" }}\n");
    let file = configuration("healthcheck-drain.toml", &(check + &service(443, "tcp")));
    let mut running = Commanded::start(host, &file, &["--interface", "eth0"]);
    authorities.write("-----BEGIN CERTIF");
    running.balancer.process.signal(SIGHUP).unwrap();
    running.balancer.says("nothing was changed");
    for (options, weight) in [(&["198.51.100.1"][..], 1), (&["198.51.100.1", "--undo"], 0)] {
        let (worked, text) = running.say(host, "drain", options);
        assert!(worked, "{weight}: {text}");
    }
    let probed = status(host, &running, &["no complete answer"]);
    assert!(!probed.contains("drained"), "{probed}");
    running.balancer.end(SIGTERM);
}

/// Nothing else shows that a real that was up is no longer probed.
#[test]
fn checks_that_cannot_be_made_are_found() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let program = Scratch::new("healthcheck-program");
    program.write("#!/bin/sh\nexit 0\n");
    std::fs::set_permissions(&program.0, Permissions::from_mode(0o755)).unwrap();
    let path = program.0.display();
    let check = format!("tcp_check = {{ kind = \"command\", program = \"{path}\" }}\n");
    let file = configuration("healthcheck-found.toml", &(check + &service(80, "tcp")));
    let mut running = Commanded::start(host, &file, &["--interface", "eth0"]);
    let well = status(host, &running, &["; up"]);
    assert!(!well.contains("cannot be sent"), "{well}");
    std::fs::remove_file(&program.0).unwrap();
    running.balancer.says(": probe not sent: No such file");
    let found = status(
        host,
        &running,
        &["and 1 more is unknown: probes cannot be sent"],
    );
    let line = "warning  health: the health of real 198.51.100.1 of 203.0.113.1:80/tcp and 1 more is unknown: \
                probes cannot be sent (not sent: No such file";
    assert!(found.contains(line), "{found}");
    program.write("#!/bin/sh\nexit 0\n");
    std::fs::set_permissions(&program.0, Permissions::from_mode(0o755)).unwrap();
    eventually("the finding is gone", || {
        !running
            .say(host, "status", &[])
            .1
            .contains("cannot be sent")
    });
    running.balancer.end(SIGTERM);
}
