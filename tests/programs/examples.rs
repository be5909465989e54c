//! The example programs, run as a user would: the binaries that `cargo test` built, on test hosts,
//! with signals, files and exit statuses. `simulate` has its own file.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Output;

use katran_lab::Backend;
use katran_lab::Balancer;
use katran_lab::Cgroup;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::Newer;
use katran_lab::TcpClient;
use katran_lab::TcpServer;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::program::Running;
use crate::program::Scratch;
use crate::program::decap;
use crate::program::example;
use crate::program::katran;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

fn has_xdp(host: &Host) -> bool {
    host.ip("link show eth0").unwrap().contains("xdp")
}

fn gateway(balancer: &Balancer) -> String {
    let octets = balancer.gateway_mac.map(|octet| format!("{octet:02x}"));
    octets.join(":")
}

/// A configuration with a VIP in each family, with one real each.
pub(crate) fn configuration(lab: &Lab, backend: usize) -> String {
    let Backend { v4, v6, .. } = &lab.backends[backend];
    let mut text = format!(
        "[balancer]\ngateway_mac = \"{}\"\nflow_table_size = 10_000\n",
        gateway(&lab.balancers[0])
    );
    for (vip, real) in [(lab.vip4(), IpAddr::from(*v4)), (lab.vip6(), (*v6).into())] {
        text += &format!(
            "[[vip]]\naddress = \"{vip}\"\nport = 80\nprotocol = \"tcp\"\n\
             reals = [{{ address = \"{real}\" }}]\n"
        );
    }
    text
}

/// A running balancer, whose VIPs have the first backend.
pub(crate) fn balancing(lab: &Lab, file: &Scratch) -> Running {
    file.write(&configuration(lab, 0));
    let mut command = katran("run");
    command.arg("--config").arg(&file.0);
    command.args(["--interface", "eth0"]);
    let mut balancer = Running::start(&lab.balancers[0].host, command);
    balancer.says("balancing on eth0 in native mode");
    balancer
}

/// The backends that answer new connections.
fn answers(lab: &Lab, vip: IpAddr, connections: usize) -> BTreeSet<String> {
    (0..connections)
        .map(|_| {
            let mut client = TcpClient::connect(&lab.client, (vip, 80).into()).unwrap();
            client.ask("who?").unwrap()
        })
        .collect()
}

fn both(lab: &Lab) -> Vec<String> {
    let all = [lab.vip4(), lab.vip6()].map(|vip| answers(lab, vip, 10));
    all.into_iter().flatten().collect()
}

#[test]
fn balancer_and_decap_carry_connections_and_follow_the_file() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    let mut decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let file = Scratch::new("balancer.toml");
    file.write(&configuration(&lab, 0));
    let host = &lab.balancers[0].host;
    let mut command = katran("run");
    command.arg("--config").arg(&file.0);
    command.args(["--interface", "eth0", "--counters"]);
    let mut balancer = Running::start(host, command);
    balancer.says("203.0.113.1:80/tcp: real 198.51.100.1 added");
    balancer.says("balancing on eth0 in native mode");
    assert!(has_xdp(host));
    assert_eq!(both(&lab), ["backend0", "backend0"]);
    balancer.counts(0);

    // The file changes: new connections reach the other backend.
    file.write(&configuration(&lab, 1));
    balancer.process.signal(SIGHUP).unwrap();
    balancer.says("203.0.113.1:80/tcp: real 198.51.100.2 added");
    balancer.says("[2001:db8:1::1]:80/tcp: real 2001:db8:2::1 removed");
    assert_eq!(both(&lab), ["backend1", "backend1"]);

    // A broken file changes nothing.
    for (broken, complaint) in [
        (configuration(&lab, 0) + "weight = 3\n", ".toml:14:1: "),
        ("[[vip]".to_owned(), ".toml:1:"),
        (
            configuration(&lab, 0).replace("10_000", "10_000\nmax_vips = 1"),
            "max_vips",
        ),
    ] {
        file.write(&broken);
        balancer.process.signal(SIGHUP).unwrap();
        balancer.says(complaint);
        balancer.says("the balancer keeps its configuration");
        assert_eq!(both(&lab), ["backend1", "backend1"]);
    }

    // Valid again, with another size, and then with the old one.
    let larger = configuration(&lab, 1).replace("10_000", "20_000");
    file.write(&larger);
    balancer.process.signal(SIGHUP).unwrap();
    balancer.says("1 setting changed (flow_table_size)");
    assert_eq!(both(&lab), ["backend1", "backend1"]);
    balancer.process.signal(SIGHUP).unwrap();
    balancer.says("no changes");

    balancer.end(SIGTERM);
    balancer.says("detached from eth0");
    let row = balancer.says("203.0.113.1:80/tcp");
    let packets = row.split_whitespace().nth(1).unwrap();
    assert!(packets.parse::<u64>().unwrap() >= 30, "{row}");
    assert!(!has_xdp(host));

    for (decap, backend) in decaps.iter_mut().zip(&lab.backends) {
        // Tunnels of both families were used.
        decap.counts(1);
        decap.counts(2);
        assert!(has_xdp(&backend.host));
        decap.end(SIGINT);
        decap.says("detached from eth0");
        assert!(!has_xdp(&backend.host));
    }
}

#[test]
fn a_recreated_interface_is_attached_again() {
    require_root();
    let host = Host::new("host").unwrap();
    let make = |name: &str| {
        let peer = format!("link add {name} type veth peer name {name}x");
        host.ip(&peer).unwrap();
    };
    let file = Scratch::new("again.toml");
    file.write(
        "[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\n\
         healthcheck_interface = \"eth0\"\nsource_v4 = \"10.0.0.2\"\n\
         [[vip]]\naddress = \"203.0.113.1\"\nport = 443\nprotocol = \"tcp\"\n\
         reals = [{ address = \"198.51.100.1\" }]\n",
    );
    for more in [&[][..], &["--listen", "127.0.0.1:0", "--probe"]] {
        make("eth0");
        make("eth2");
        let mut command = katran("run");
        command.arg("--config").arg(&file.0);
        command.args(["--interface", "eth0", "--interface", "eth2"]);
        command.args(more);
        let mut running = Running::start(&host, command);
        running.says("balancing on eth2");
        assert!(has_xdp(&host), "{more:?}");
        host.ip("link del eth0").unwrap();
        running.says("gone: the program on eth0");
        make("eth0");
        running.says("put back: the program on eth0");
        assert!(has_xdp(&host), "{more:?}");
        running.end(SIGTERM);
        running.says("detached from eth0");
        for interface in ["eth0", "eth2"] {
            host.ip(&format!("link del {interface}")).unwrap();
        }
    }
}

#[test]
fn root_is_set_up_joined_and_removed() {
    require_root();
    let pins = private_bpf_fs().unwrap();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    let _decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let host = &lab.balancers[0].host;
    let path = pins.join("example").display().to_string();
    let root_at = |path: &str, arguments: &[&str]| {
        let mut command = example("root");
        command.args(arguments).args(["--path", path]);
        let output = host.output(command).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), text + &errors)
    };
    let root = |arguments: &[&str]| root_at(&path, arguments);
    let (worked, text) = root(&["attach", "--interface", "eth0"]);
    assert!(
        worked && text.contains("root program with 3 entries on eth0 in native mode"),
        "{text}"
    );
    let file = Scratch::new("shared.toml");
    file.write(&configuration(&lab, 0));
    let mut command = katran("run");
    command
        .arg("--config")
        .arg(&file.0)
        .args(["--shared", &path]);
    let mut balancer = Running::start(host, command);
    balancer.says("balancing as entry 2 of");
    assert_eq!(both(&lab), ["backend0", "backend0"]);
    let (_, text) = root(&["show"]);
    assert!(
        text.contains("1: empty") && text.contains("2: katran ("),
        "{text}"
    );
    balancer.end(SIGTERM);
    balancer.says("left /sys/fs/bpf/example");
    // A second root cannot attach there.
    let (worked, text) = root_at(&format!("{path}_2"), &["attach", "--interface", "eth0"]);
    assert!(!worked && text.contains("katran_root"), "{text}");
    // The same root stays where it is, and is attached to the new interface as well.
    let (worked, text) = root(&["attach", "--interface", "eth0", "--interface", "lo"]);
    assert!(
        worked && text.contains("on eth0 in native mode") && text.contains("on lo in generic mode"),
        "{text}"
    );
    let (worked, text) = root(&["attach", "--interface", "eth0", "--entries", "4"]);
    assert!(!worked && text.contains("has 3 entries"), "{text}");
    assert!(has_xdp(host));
    assert!(root(&["remove"]).0);
    assert!(!has_xdp(host));
    assert!(!root(&["show"]).0);
}

#[test]
fn check_reports_what_would_not_work() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let file = Scratch::new("check.toml");
    file.write(&configuration(&lab, 0));
    let host = &lab.balancers[0].host;
    let check = || {
        let mut command = katran("check");
        command.arg(&file.0).args(["--interface", "eth0"]);
        let output = host.output(command).unwrap();
        assert!(!has_xdp(host));
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (works, text) = check();
    assert!(works && text.contains("0 problems"), "{text}");
    host.ip("link set eth0 down").unwrap();
    let (works, text) = check();
    assert!(!works && text.contains("PROBLEM  interface"), "{text}");
    assert!(text.contains("-> ip link set eth0 up"), "{text}");

    let backend = &lab.backends[0].host;
    let check = |vip: &str| {
        let mut command = example("decap");
        command.args(["--interface", "eth0", "--check", "--vip", vip]);
        let output = backend.output(command).unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (works, text) = check("203.0.113.1");
    assert!(works, "{text}");
    let (works, text) = check("203.0.113.99");
    assert!(
        !works && text.contains("ip addr add 203.0.113.99/32 dev lo"),
        "{text}"
    );
}

#[test]
fn decap_works_at_tc() {
    require_root();
    let lab = Lab::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    })
    .unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    let mut command = example("decap");
    command.args(["--interface", "eth0", "--tc"]);
    let host = &lab.backends[0].host;
    let mut decap = Running::start(host, command);
    let hook = if Newer::Tcx.is_here() {
        "tcx"
    } else {
        "clsact"
    };
    decap.says(&format!(
        "stripping tunnels on eth0 at tc ingress by {hook}"
    ));
    assert!(!has_xdp(host));
    let file = Scratch::new("decap-tc.toml");
    let mut balancer = balancing(&lab, &file);
    assert_eq!(both(&lab), ["backend0", "backend0"]);
    decap.counts(1);
    decap.end(SIGTERM);
    decap.says("detached from eth0");
    balancer.end(SIGTERM);
}

/// As in real use, the balancer's process is in its interface's network namespace.
#[test]
fn balancer_follows_the_mtu_of_its_interface() {
    require_root();
    let lab = Lab::new(LabConfig {
        inner_mtu: 1500,
        ..LabConfig::default()
    })
    .unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    let _decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let file = Scratch::new("mtu.toml");
    file.write(&configuration(&lab, 0));
    let host = &lab.balancers[0].host;
    let mut command = katran("run");
    command.arg("--config").arg(&file.0);
    command.args(["--interface", "eth0"]);
    let mut balancer = Running::start(host, command);
    balancer.says("balancing on eth0 in native mode");
    let mut client = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
    // The document also has IPv6 reals.
    for (mtu, expected) in [(1500, 1460), (1400, 1360)] {
        host.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
        let router = format!("link set bal0 mtu {mtu}");
        lab.router.ip(&router).unwrap();
        eventually(format_args!("the client learns {expected}"), || {
            assert_eq!(client.ask(&"x".repeat(100_000)).unwrap(), "backend0");
            let learnt = lab.client.ip("route get 203.0.113.1").unwrap();
            learnt.contains(&format!("mtu {expected}"))
        });
    }
    balancer.end(SIGTERM);
}

#[test]
fn server_id_writes_for_a_cgroup_and_decap_counts() {
    require_root();
    let lab = Lab::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    })
    .unwrap();
    let backend = &lab.backends[0];
    let (servers, clients) = (Cgroup::new().unwrap(), Cgroup::new().unwrap());
    let mut ends = Vec::new();
    let id = Scratch::new("server-id");
    id.write("1002\n");
    for (group, id) in [(&servers, Some(&id)), (&clients, None)] {
        let mut command = example("server_id");
        command.arg("--cgroup").arg(group.path());
        if let Some(id) = id {
            command.arg("--id-file").arg(&id.0);
        }
        let mut end = Running::start(&backend.host, command);
        end.says("server id");
        ends.push(end);
    }
    // A bad id changes nothing; a good one counts for new connections.
    for (text, told) in [("many", "the id is unchanged"), ("1000", "server id 1000")] {
        id.write(text);
        ends[0].process.signal(SIGHUP).unwrap();
        ends[0].says(told);
    }
    let mut command = example("decap");
    command.args(["--interface", "eth0", "--server-id", "1001"]);
    let mut decap = Running::start(&backend.host, command);
    decap.says("stripping tunnels on eth0 in native mode");
    let file = Scratch::new("server-id.toml");
    file.write(&configuration(&lab, 0));
    let mut command = katran("run");
    command.arg("--config").arg(&file.0);
    command.args(["--interface", "eth0"]);
    let mut balancer = Running::start(&lab.balancers[0].host, command);
    balancer.says("balancing on eth0 in native mode");

    let _server = servers.run(|| TcpServer::start(&backend.host, 80, "backend0").unwrap());
    let to = (lab.vip4(), 80).into();
    let mut client = clients.run(|| TcpClient::connect(&lab.client, to).unwrap());
    for _ in 0..5 {
        assert_eq!(client.ask("who?").unwrap(), "backend0");
    }
    // The server has accepted connections, the client has received the id, and decap has counted
    // packets with another id than its own.
    ends[0].counts(0);
    ends[1].counts(1);
    decap.counts(6);
    decap.counts(7);
    for end in &mut ends {
        end.end(SIGINT);
        end.says("detached from");
    }
    decap.end(SIGTERM);
    balancer.end(SIGTERM);
}

/// The packets of a file as tshark prints them, one per line.
fn tshark(file: &std::path::Path) -> Vec<String> {
    let mut command = std::process::Command::new("tshark");
    command.arg("-n").arg("-r").arg(file);
    command.args([
        "-T",
        "fields",
        "-e",
        "ip.src",
        "-e",
        "tcp.dstport",
        "-e",
        "frame.len",
    ]);
    let output = command
        .output()
        .expect("tshark is installed by `make test`");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn monitor_prints_events_and_writes_files_that_tshark_reads() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    let _decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let file = Scratch::new("monitor.toml");
    // Where only changed flows are remembered, a connection without an entry makes no event.
    let all = "flow_tracking = \"all\"\nflow_table_size";
    file.write(&configuration(&lab, 0).replace("flow_table_size", all));
    let host = &lab.balancers[0].host;
    let directory = std::env::temp_dir().join(format!("katran-events-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let socket = Scratch::new("monitored.sock");
    for to_files in [false, true] {
        // A connection older than the balancer.
        let balance = |options: &[&str]| {
            let mut command = example("katran");
            command.arg("run").arg("--config").arg(&file.0);
            command.args(["--interface", "eth0"]).args(options);
            let mut balancer = Running::start(host, command);
            balancer.says("balancing on eth0 in native mode");
            balancer
        };
        let mut balancer = balance(&["--no-socket"]);
        let mut client = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
        client.ask("who?").unwrap();
        balancer.end(SIGTERM);

        let mut balancer = balance(&["--socket", socket.0.to_str().unwrap()]);
        balancer.says("commands at");
        let mut command = katran("monitor");
        command.arg("--socket").arg(&socket.0);
        if to_files {
            command.arg("--directory").arg(&directory);
        }
        let mut monitor = Running::start(host, command);
        monitor.says("switched introspection on");
        monitor.says("listening");
        client.ask("who?").unwrap();
        if !to_files {
            let line = monitor.says("tcp_non_syn_miss");
            assert!(line.contains("tcp 192.0.2.2 port"), "{line}");
            assert!(line.contains("> 203.0.113.1 port 80"), "{line}");
        }
        monitor.end(SIGINT);
        let line = monitor.says("events: ");
        assert!(!line.contains("events: 0 "), "{line}");
        balancer.end(SIGTERM);
        balancer.says("detached from eth0");
    }
    let packets = tshark(&directory.join("tcp_non_syn_miss.pcap"));
    assert!(!packets.is_empty());
    for packet in &packets {
        assert!(packet.starts_with("192.0.2.2\t80\t"), "{packet}");
    }
    assert!(tshark(&directory.join("packet_too_big.pcap")).is_empty());
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn quickstart_balances_until_ctrl_c() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    let _decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let mut command = example("quickstart");
    command.args(["eth0", &gateway(&lab.balancers[0])]);
    let host = &lab.balancers[0].host;
    let mut quickstart = Running::start(host, command);
    quickstart.says("203.0.113.1:80/tcp on eth0, native mode");
    // The chance to miss one, 0.75^60, is one in 30 million.
    let seen = answers(&lab, lab.vip4(), 60);
    assert_eq!(Vec::from_iter(seen), ["backend0", "backend1"]);
    quickstart.end(SIGINT);
    quickstart.line("packets", |line| {
        let packets = line.strip_prefix("sent ").and_then(|l| l.split(' ').next());
        packets.is_some_and(|packets| packets.parse::<u64>().unwrap() >= 180)
    });
    assert!(!has_xdp(host));
}

/// Runs to the end; returns the exit status and standard error.
fn fails(host: &Host, name: &str, arguments: &[&str]) -> (i32, String) {
    let mut command = example(name);
    command.args(arguments);
    let Output { status, stderr, .. } = host.output(command).unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn failures_say_what_to_do() {
    require_root();
    let host = Host::new("host").unwrap();
    let good = Scratch::new("good.toml");
    good.write("[balancer]\ngateway_mac = \"02:00:00:00:00:01\"\nflow_table_size = 10_000\n");
    let good = good.0.to_str().unwrap();
    let unknown = Scratch::new("unknown.toml");
    unknown.write("[balancer]\n\ngateway_mac = \"02:00:00:00:00:01\"\ncolour = \"red\"\n");
    let unknown = unknown.0.to_str().unwrap();
    let mac = "02:00:00:00:00:01";
    let absent = "interface eth9 does not exist in this network namespace";

    let of_balancer = |config, more: &[&str]| {
        let arguments = [&["run", "--no-socket", "--config", config], more].concat();
        fails(&host, "katran", &arguments)
    };
    for (failure, status, texts) in [
        (fails(&host, "quickstart", &["eth9", mac]), 1, [absent, ""]),
        (
            fails(&host, "decap", &["--interface", "eth9"]),
            1,
            [absent, ""],
        ),
        (of_balancer(good, &["--interface", "eth9"]), 1, [absent, ""]),
        (
            of_balancer(unknown, &["--interface", "lo"]),
            1,
            ["toml:4:1: ", "colour"],
        ),
        (
            of_balancer("absent.toml", &["--interface", "lo"]),
            1,
            ["absent.toml", "No such file"],
        ),
        (
            fails(&host, "quickstart", &["lo", "02:00"]),
            1,
            ["02:00", "MAC address"],
        ),
        // Usage.
        (fails(&host, "quickstart", &["lo"]), 2, ["Usage", ""]),
        (of_balancer(good, &[]), 2, ["--interface", "Usage"]),
        (
            of_balancer(good, &["--interface", "lo", "--mode", "fast"]),
            2,
            ["fast", "generic"],
        ),
        (
            fails(
                &host,
                "decap",
                &[
                    "--interface",
                    "lo",
                    "--destination",
                    "192.0.2.1",
                    "--destination",
                    "192.0.2.2",
                ],
            ),
            2,
            ["one address per family", "Usage"],
        ),
    ] {
        let (code, stderr) = failure;
        assert_eq!(code, status, "{stderr}");
        assert!(texts.iter().all(|text| stderr.contains(text)), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn a_foreign_program_is_left_alone() {
    require_root();
    let host = Host::new("host").unwrap();
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    let mut command = example("decap");
    command.args(["--interface", "eth0", "--destination", "192.0.2.1"]);
    command.args(["--destination", "2001:db8::1", "--mode", "generic"]);
    let mut decap = Running::start(&host, command);
    decap.says("stripping tunnels on eth0 in generic mode");
    let (code, stderr) = fails(&host, "quickstart", &["eth0", "02:00:00:00:00:01"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("already runs XDP program"), "{stderr}");
    assert!(has_xdp(&host));
    decap.end(SIGTERM);
    assert!(!has_xdp(&host));
}
