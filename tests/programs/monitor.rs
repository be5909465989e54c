//! `katran monitor`, run as a user would: its options, and how it copes with a balancer that
//! changes.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;

use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::program::Commanded;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;
use crate::program::katran;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// The payload of a datagram whose frame is above `max_frame`, and that frame's length.
const PAYLOAD: usize = 700;
const FRAME: usize = 14 + 20 + 8 + PAYLOAD;

/// The features do not include the one that events need; frames that are too big are dropped.
fn configuration(lab: &Lab, real: usize) -> String {
    let mac = lab.balancers[0].gateway_mac;
    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    format!(
        "[balancer]\ngateway_mac = \"{mac}\"\nflow_table_size = 10_000\nmax_frame = 600\n\
         features = [\"source-routing\"]\n\
         [[vip]]\naddress = \"{}\"\nport = 80\nprotocol = \"udp\"\n\
         reals = [{{ address = \"{}\" }}]\n",
        lab.vip4(),
        lab.backends[real].v4,
    )
}

/// Sends oversized datagrams, one by one.
fn send(lab: &Lab, number: usize) {
    let socket = lab.client.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    for _ in 0..number {
        socket.send_to(&[0; PAYLOAD], (lab.vip4(), 80)).unwrap();
    }
}

/// A temporary directory.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("katran-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn options_select_limit_and_cut_and_the_file_still_applies() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let file = Scratch::new("monitor-options.toml");
    file.write(&configuration(&lab, 0));
    let directory = Directory::new("monitor-options");
    let mut running = Commanded::start(host, &file, &["--interface", "eth0"]);
    let socket = running.socket().to_owned();
    let command = |kind: &str| {
        let mut command = katran("monitor");
        command.arg("--socket").arg(&socket);
        command.arg("--directory").arg(&directory.0);
        command.args(["--event", kind, "--packet-limit", "2"]);
        command.args(["--snap-length", "60", "--rate-limit", "1000"]);
        command
    };
    // A failed run leaves no files in the next one's way.
    let mut wrong = command("packet_too_big");
    wrong.args(["--event", "quic_real_gone", "--rate-limit", "0"]);
    let output = host.output(wrong).unwrap();
    assert!(!output.status.success());
    assert!(directory.files().is_empty(), "{:?}", directory.files());

    let mut monitor = Running::start(host, command("packet_too_big"));
    monitor.says("switched introspection on");
    monitor.says("listening");
    // Only one monitor runs at a time.
    let (worked, text) = running.say(host, "monitor", &[]);
    assert!(!worked, "{text}");
    send(&lab, 3);
    // The file still lists no introspection; the balancer keeps the feature for the monitor, and
    // applies the rest.
    file.write(&configuration(&lab, 1));
    running.balancer.process.signal(SIGHUP).unwrap();
    let added = format!("real {} added", lab.backends[1].v4);
    running.balancer.says(&added);
    send(&lab, 2);
    // One client's frames arrive in order, so the earlier ones have arrived.
    let ping = lab.client.tool("ping", "-c 1 -W 30 10.0.0.2");
    assert!(ping.is_ok(), "{ping:?}");
    monitor.end(SIGINT);
    monitor.says(
        "events: 2 delivered; left out: 0 by the rate limit, 0 because buffers were full, 3 by",
    );
    assert_eq!(directory.files(), ["packet_too_big.pcap"]);
    let mut tshark = Command::new("tshark");
    tshark.arg("-n").arg("-r");
    tshark.arg(directory.0.join("packet_too_big.pcap"));
    tshark.args(["-T", "fields", "-e", "frame.cap_len", "-e", "frame.len"]);
    let output = tshark.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("60\t{FRAME}\n60\t{FRAME}\n"));

    // An existing file is not overwritten.
    let output = host.output(command("packet_too_big")).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("packet_too_big.pcap"), "{errors}");
    assert!(output.stdout.is_empty());

    // A killed monitor makes room for the next; introspection then follows the file again.
    let mut killed = Running::start(host, running.command("monitor"));
    killed.says("switched introspection on");
    killed.says("listening");
    killed.process.kill().unwrap();
    let mut next = None;
    eventually("there is room for another", || {
        let mut command = running.command("monitor");
        command.args(["--event", "packet_too_big"]);
        let mut monitor = Running::start(host, command);
        let said = monitor.line("either", |_| true);
        let is_there = said == "switched introspection on";
        next = is_there.then_some(monitor);
        is_there
    });
    next.unwrap().end(SIGINT);
    running.balancer.end(SIGTERM);
    running.balancer.says("detached from eth0");
}

#[test]
fn it_may_share_the_interface_and_limits_the_rate() {
    require_root();
    let pins = private_bpf_fs().unwrap();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let path = pins.join("monitor").display().to_string();
    let root = |arguments: &[&str]| {
        let mut command = example("root");
        command.args(arguments).args(["--path", &path]);
        let output = host.output(command).unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    root(&["attach", "--interface", "eth0"]);
    let file = Scratch::new("monitor-shared.toml");
    file.write(&configuration(&lab, 0));
    let mut running = Commanded::start(host, &file, &["--shared", &path, "--position", "1"]);
    let mut command = running.command("monitor");
    command.args(["--rate-limit", "1"]);
    let mut monitor = Running::start(host, command);
    monitor.says("listening");
    send(&lab, 50);
    let line = monitor.says("packet_too_big");
    assert!(line.contains("> 203.0.113.1 port 80"), "{line}");
    assert!(line.ends_with(&format!(", {FRAME} bytes")), "{line}");
    let ping = lab.client.tool("ping", "-c 1 -W 30 10.0.0.2");
    assert!(ping.is_ok(), "{ping:?}");
    monitor.end(SIGINT);
    let line = monitor.says("events: ");
    let numbers: Vec<u64> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    // The sum over all CPUs and all seconds.
    assert_eq!(numbers[0] + numbers[1], 50, "{line}");
    assert!(numbers[1] > 0, "{line}");
    running.balancer.end(SIGTERM);
    running.balancer.says("left ");
    root(&["remove"]);
}
