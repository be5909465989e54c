//! Commands for a running balancer: who may give them, what is refused, and that no client keeps
//! others waiting.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::UdpClient;
use katran_lab::eventually;
use katran_lab::require_root;
use serde_json::Value;

use crate::program::Commanded;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::decap;
use crate::program::example;

const SIGTERM: i32 = 15;

const DOCUMENT: &str = "[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\n\
    [[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n\
    reals = [{ address = \"198.51.100.1\", weight = 3 }, { address = \"198.51.100.2\" }]\n";
const VIP: &str = "203.0.113.1:443/tcp";

fn idle(name: &str) -> (Host, Scratch, Commanded) {
    require_root();
    let host = Host::new("host").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    let file = Scratch::new(name);
    file.write(DOCUMENT);
    let running = Commanded::start(&host, &file, &["--interface", "eth0"]);
    (host, file, running)
}

/// The answer to a line.
fn ask(stream: &UnixStream, line: &str) -> Value {
    let mut writer = stream;
    writeln!(writer, "{line}").unwrap();
    next(stream)
}

fn next(stream: &UnixStream) -> Value {
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn error(answer: &Value) -> &str {
    answer["error"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn wrong_requests_are_refused_and_change_nothing() {
    let (host, file, mut running) = idle("wrong.toml");
    let stream = UnixStream::connect(running.socket()).unwrap();
    for (line, says) in [
        ("", "not a request"),
        ("status", "not a request"),
        ("{\"command\": \"destroy\"}", "unknown variant `destroy`"),
        (
            "{\"command\": \"status\", \"colour\": 1}",
            "unknown field `colour`",
        ),
        ("{\"command\": \"drain\", \"real\": \"x\"}", "not a request"),
        (
            "{\"command\": \"drain\", \"real\": \"192.0.2.1\"}",
            "no VIP has a real",
        ),
        (
            "{\"command\": \"drain\", \"real\": \"198.51.100.1\", \"vip\": \"203.0.113.9:1/tcp\"}",
            "203.0.113.9:1/tcp has no real",
        ),
        (
            "{\"command\": \"apply\", \"document\": \"[[vip]\"}",
            "line 1",
        ),
        (
            "{\"command\": \"monitor\", \"events\": [\"x\"], \"rate_limit\": 1, \"snap_length\": 60}",
            "x",
        ),
    ] {
        let answer = ask(&stream, line);
        assert!(error(&answer).contains(says), "{line}: {answer}");
    }
    // The same client, and the answer it got.
    let report = ask(&stream, "{\"command\": \"status\"}")["ok"].take();
    assert_eq!(report["vips"][0]["reals"][0]["weight"], 3, "{report}");
    let refused = report["refused"]["result"].as_str().unwrap();
    assert!(refused.contains("line 1"), "{refused}");
    drop(stream);

    // An unfinished line, and one that is too long at the same time.
    let [long, longer] = [0, 1].map(|_| UnixStream::connect(running.socket()).unwrap());
    let piece = vec![b'x'; 100_000];
    (&long).write_all(&piece).unwrap();
    let mut writer = &longer;
    // The refusal may come before all of it is written.
    let _ = writer.write_all(&piece);
    let answers = [next(&longer), next(&long)];
    // Whichever the balancer reads later is refused.
    let mut answers = answers.each_ref().map(error);
    answers.sort_unstable();
    assert!(answers[1].contains("within 10 s"), "{answers:?}");
    assert!(
        answers[0].contains("another client is sending a long request"),
        "{answers:?}"
    );

    let (worked, text) = running.say(&host, "apply", &[file.0.to_str().unwrap()]);
    assert!(worked && text.contains("no changes"), "{text}");
    running.balancer.end(SIGTERM);
}

#[test]
fn only_root_may_connect_and_a_socket_has_one_balancer() {
    let (host, file, mut running) = idle("rights.toml");
    let socket = running.socket().to_owned();
    let found = fs::metadata(&socket).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    // Another user cannot connect; with the file's mode changed, the balancer still refuses it.
    let as_other = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.arg(example("katran").get_program()).arg("status");
        command.arg("--socket").arg(&socket);
        let output = host.output(command).unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let text = as_other();
    assert!(text.contains("Permission denied"), "{text}");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let text = as_other();
    assert!(text.contains("only root and the balancer's user"), "{text}");

    // A living process keeps its socket.
    let config = file.0.to_str().unwrap();
    let start = |path: &Path| {
        let mut command = example("katran");
        command.args(["run", "--config", config, "--interface", "eth0"]);
        command.arg("--socket").arg(path);
        command
    };
    let output = host.output(start(&socket)).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("another balancer listens there"), "{text}");
    assert_eq!(fs::metadata(&socket).unwrap().ino(), found.ino());
    assert!(running.say(&host, "status", &["--over", "0.1"]).0);

    // A dead process's socket is replaced.
    running.balancer.process.kill().unwrap();
    assert!(socket.exists());
    let mut next = Running::start(&host, start(&socket));
    next.says("commands at");
    assert!(running.say(&host, "status", &["--over", "0.1"]).0);
    next.end(SIGTERM);
    assert!(!socket.exists() && !socket.with_extension("sock.lock").exists());
    // A file that is no socket stays.
    let text = Scratch::new("rights.text");
    text.write("mine");
    let output = host.output(start(&text.0)).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("not a socket"), "{errors}");
    assert_eq!(fs::read_to_string(&text.0).unwrap(), "mine");
    assert!(!text.0.with_extension("text.lock").exists());
    assert!(!host.ip("link show eth0").unwrap().contains("xdp"));
}

#[test]
fn many_clients_are_served_and_silent_ones_delay_nobody() {
    let (host, _file, mut running) = idle("clients.toml");
    let silent: Vec<_> = (0..16)
        .map(|_| UnixStream::connect(running.socket()).unwrap())
        .collect();
    for client in &silent {
        assert!(ask(client, "{\"command\": \"status\"}")["ok"].is_object());
    }
    let refused = UnixStream::connect(running.socket()).unwrap();
    assert!(error(&next(&refused)).contains("too many clients"));
    // Clients that close make room.
    drop(silent);
    eventually("there is room", || {
        running.say(&host, "status", &["--over", "0.1"]).0
    });
    running.balancer.end(SIGTERM);
}

#[test]
fn other_clients_are_answered_while_a_document_is_applied() {
    let (host, file, mut running) = idle("applied.toml");
    let other = Scratch::new("applied-other.toml");
    // Another size loads a second set of programs: a second or more.
    let changed = DOCUMENT
        .replace("weight = 3", "weight = 5")
        .replace("10_000", "20_000");
    other.write(&changed);
    let path = other.0.to_str().unwrap().to_owned();
    let (worked, text) = running.say(&host, "apply", &[&path, "--dry-run"]);
    assert!(worked && text.contains("would be applied"), "{text}");
    for says in ["real 198.51.100.1 has another weight", "flow_table_size"] {
        assert!(text.contains(says), "{text}");
    }
    let socket = running.socket().to_owned();
    // A client that is silent for ten seconds, as between these, is let go.
    let connect = || UnixStream::connect(&socket).unwrap();
    let weight = || {
        let report = ask(&connect(), "{\"command\": \"status\"}")["ok"].take();
        report["vips"][0]["reals"][0]["weight"].as_u64().unwrap()
    };
    assert_eq!(weight(), 3);

    let mut apply = running.command("apply");
    apply.arg(&path);
    let mut apply = Running::start(&host, apply);
    let (mut oldest, mut slowest) = (0.0_f64, 0.0_f64);
    let stream = connect();
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let began = Instant::now();
        let report = ask(&stream, "{\"command\": \"status\"}")["ok"].take();
        slowest = slowest.max(began.elapsed().as_secs_f64());
        oldest = oldest.max(report["age"].as_f64().unwrap());
        if report["vips"][0]["reals"][0]["weight"] == 5 {
            break;
        }
        assert!(Instant::now() < end, "{report}");
    }
    apply.says("in total");
    running.balancer.says("in total");
    // It was busy for longer than any client waited.
    assert!(oldest > 0.2 && oldest > slowest / 2.0, "{oldest} {slowest}");

    // A bad document names the line, and changes nothing.
    other.write(&format!("{changed}colour = 1\n"));
    for more in [&[][..], &["--dry-run"]] {
        let (worked, text) = running.say(&host, "apply", &[&[path.as_str()], more].concat());
        assert!(!worked && text.contains("line 9"), "{text}");
    }
    assert_eq!(weight(), 5);
    // Reading the file again makes the balancer follow it.
    running.balancer.process.signal(1).unwrap();
    running.balancer.says("applied:");
    running.balancer.says("in total");
    assert_eq!(weight(), 3);
    let (worked, text) = running.say(&host, "check", &[]);
    assert!(!worked, "{text}");
    let mut check = example("katran");
    check.arg("check").arg(&file.0);
    let output = host.output(check).unwrap();
    assert!(output.status.success(), "{output:?}");
    running.balancer.end(SIGTERM);
}

/// Errors that only a balancer can find name their line, too.
#[test]
fn errors_found_late_name_their_line() {
    require_root();
    let host = Host::new("host").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    let balancer = "[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\n";
    let vips = |count: u32| -> String {
        let vip = |port| {
            format!("[[vip]]\naddress = \"203.0.113.1\"\nport = {port}\nprotocol = \"tcp\"\n")
        };
        (1..=count).map(vip).collect()
    };
    let file = Scratch::new("late.toml");
    let name = file.0.display().to_string();
    let stops = |command: &str, arguments: &[&str]| {
        let mut program = example("katran");
        program.arg(command).args(arguments);
        let output = host.output(program).unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    // Errors that depend on the defaults, on other settings, on the machine, on the network.
    for (text, at) in [
        (
            format!("{balancer}{}", vips(513)),
            "2052:1: max_vips = 512 leaves no room",
        ),
        (
            format!("{balancer}max_reals = 40000\n"),
            "4:13: max_reals = 40000: must be 1 to 32767",
        ),
        (
            format!("{balancer}forwarding_cpus = [99999]\n"),
            "4:19: forwarding_cpus = [99999]: this machine",
        ),
        (vips(1), "1:1: gateway_mac is missing"),
    ] {
        file.write(&text);
        let said = stops("check", &[&name]);
        assert!(said.contains(&format!("{name}:{at}")), "{said}");
    }
    file.write(&format!("{balancer}healthcheck_interface = \"nowhere0\"\n"));
    let run = ["--config", &name, "--interface", "eth0", "--no-socket"];
    let said = stops("run", &run);
    let at = format!("{name}:4:25: interface nowhere0 does not exist");
    assert!(said.contains(&at), "{said}");
    file.write(&format!("{balancer}orphan_limit = 30\n"));
    let said = stops("run", &run);
    assert!(
        said.contains(&format!("{name}:4:16: orphan_limit = 30s: ")),
        "{said}"
    );

    // Errors that depend on the running balancer, whose settings the document does not repeat.
    file.write(&format!(
        "{balancer}max_vips = 2\nfeatures = []\n{}",
        vips(2)
    ));
    let mut running = Commanded::start(&host, &file, &["--interface", "eth0"]);
    let other = Scratch::new("other.toml");
    let path = other.0.display().to_string();
    for (text, at) in [
        (
            vips(3),
            "line 9, column 1: max_vips = 2 leaves no room for this VIP",
        ),
        (
            format!(
                "{}[[decap]]\naddress = \"192.0.2.9\"\nmode = \"inline\"\n",
                vips(1)
            ),
            "line 5, column 1: a decap address is not supported",
        ),
    ] {
        other.write(&text);
        for more in [&[][..], &["--dry-run"]] {
            let (worked, said) = running.say(&host, "apply", &[&[path.as_str()], more].concat());
            assert!(!worked && said.contains(at), "{said}");
        }
        let (_, status) = running.say(&host, "status", &["--over", "0.1"]);
        assert!(
            status.contains("REFUSED") && status.contains(at),
            "{status}"
        );
    }
    running.balancer.end(SIGTERM);
}

#[test]
fn a_drained_backend_gets_no_new_flows_and_its_end_is_reported() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let servers = lab.serve_udp(53).unwrap();
    let decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let host = &lab.balancers[0].host;
    let mac = lab.balancers[0].gateway_mac;
    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    let file = Scratch::new("drained.toml");
    let [first, second] = [0, 1].map(|index| lab.backends[index].v4.to_string());
    // Flows end after ten seconds of silence, longer than a busy machine takes for a command.
    file.write(&format!(
        "[balancer]\ngateway_mac = \"{mac}\"\nflow_table_size = 10_000\nudp_timeout = 10\n\
         [[vip]]\naddress = \"{}\"\nport = 53\nprotocol = \"udp\"\n\
         reals = [{{ address = \"{first}\" }}, {{ address = \"{second}\" }}]\n",
        lab.vip4()
    ));
    let mut running = Commanded::start(host, &file, &["--interface", "eth0"]);
    // All of them have the same home once in 2^29 times.
    let clients: Vec<_> = (0..30)
        .map(|_| UdpClient::connect(&lab.client, (lab.vip4(), 53).into()).unwrap())
        .collect();
    let answers = || -> Vec<String> {
        let answers = clients.iter().map(|client| client.ask(b"who").unwrap());
        answers.collect()
    };
    let homes = answers();
    assert!(homes.iter().any(|home| home == "backend0"));
    let (worked, text) = running.say(host, "drain", &[&first]);
    assert!(
        worked && text.contains("gets no new flows from 203.0.113.1:53/udp"),
        "{text}"
    );
    assert!(text.contains("off yet"), "{text}");
    // Flows stay, also after reading the file again.
    assert_eq!(answers(), homes);
    running.balancer.process.signal(1).unwrap();
    running.balancer.says("applied: no changes");
    assert_eq!(answers(), homes);
    let (_, text) = running.say(host, "status", &["--over", "0.1"]);
    assert!(text.contains("weight 0; drained"), "{text}");
    let (worked, text) = running.say(host, "drain", &[&first, "--wait"]);
    assert!(worked && text.ends_with("can be switched off\n"), "{text}");
    // By now every slot leads new flows elsewhere.
    for _ in 0..20 {
        let new = UdpClient::connect(&lab.client, (lab.vip4(), 53).into()).unwrap();
        assert_eq!(new.ask(b"who").unwrap(), "backend1");
    }
    running
        .balancer
        .says(&format!("drained: {first} of 203.0.113.1:53/udp"));
    let (_, text) = running.say(host, "status", &["--over", "0.1"]);
    assert!(text.contains("can be switched off"), "{text}");

    let (worked, text) = running.say(host, "drain", &[&first, "203.0.113.1:53/udp", "--undo"]);
    assert!(
        worked && text.contains("has the document's weight again"),
        "{text}"
    );
    let (_, text) = running.say(host, "status", &["--over", "0.1", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    for real in report["vips"][0]["reals"].as_array().unwrap() {
        assert_eq!((&real["weight"], &real["drain"]), (&1.into(), &Value::Null));
    }
    running.balancer.end(SIGTERM);
    drop((servers, decaps));
}

#[test]
fn status_names_what_is_wrong() {
    let (host, _file, mut running) = idle("status.toml");
    let (_, text) = running.say(&host, "status", &["--over", "0.1"]);
    for says in [
        "attached eth0 in generic mode",
        VIP,
        "198.51.100.1",
        "weight 3",
        "PROBLEM  eth0 interface",
        "-> ip link set eth0 up",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    running.balancer.end(SIGTERM);
    let (worked, text) = running.say(&host, "status", &[]);
    assert!(!worked && text.contains("start `katran run`"), "{text}");
}

/// A server in the balancer's place that closes without an answer.
#[test]
fn a_balancer_that_hangs_up_is_reported() {
    require_root();
    let host = Host::new("host").unwrap();
    let socket = Scratch::new("mute.sock");
    let listener = UnixListener::bind(&socket.0).unwrap();
    let mut command = example("katran");
    command.arg("status").arg("--socket").arg(&socket.0);
    let client = Running::start(&host, command);
    drop(listener.accept().unwrap());
    let said = client.said();
    assert!(
        said.iter()
            .any(|line| line.contains("the balancer has ended")),
        "{said:?}"
    );
}
