//! The example `monitor`, run as a user runs it: its options, and how it follows its file.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;

/// Bytes of a datagram in a frame above `max_frame`, and of that frame.
const PAYLOAD: usize = 700;
const FRAME: usize = 14 + 20 + 8 + PAYLOAD;

/// A list of features without the one that events need; frames that are too big are dropped.
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

/// Sends datagrams that are too big, one by one.
fn send(lab: &Lab, number: usize) {
    let socket = lab.client.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    for _ in 0..number {
        socket.send_to(&[0; PAYLOAD], (lab.vip4(), 80)).unwrap();
    }
}

fn has_xdp(host: &Host) -> bool {
    host.ip("link show eth0").unwrap().contains("xdp")
}

/// A directory that goes with the test.
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
fn its_options_choose_limit_and_cut_and_it_follows_its_file() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let host = &lab.balancers[0].host;
    let file = Scratch::new("monitor-options.toml");
    file.write(&configuration(&lab, 0));
    let directory = Directory::new("monitor-options");
    let command = |interface: &str| {
        let mut command = example("monitor");
        command.arg("--config").arg(&file.0);
        command.args(["--interface", interface]);
        command.arg("--directory").arg(&directory.0);
        command.args(["--event", "packet_too_big", "--packet-limit", "2"]);
        command.args(["--snap-length", "60", "--rate-limit", "1000"]);
        command
    };
    // What fails leaves no files that the next attempt would find.
    let output = host.output(command("eth9")).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("interface eth9 does not exist"), "{errors}");
    assert!(directory.files().is_empty());

    let mut monitor = Running::start(host, command("eth0"));
    monitor.says("switched introspection on");
    monitor.says("balancing on eth0 in native mode");
    monitor.says("listening");
    send(&lab, 3);
    // The file does not list introspection now, either: the rest of it is followed.
    file.write(&configuration(&lab, 1));
    monitor.process.signal(SIGHUP).unwrap();
    monitor.says(&format!("real {} added", lab.backends[1].v4));
    send(&lab, 2);
    // Frames of one client come in their order, so those before have come.
    let ping = lab.client.tool("ping", "-c 1 -W 5 10.0.0.2");
    assert!(ping.is_ok(), "{ping:?}");
    monitor.end(SIGINT);
    monitor.says("2 events delivered; left out: 0 by the rate limit, 0 for want of room, 3 by");
    monitor.says("detached from eth0");
    assert_eq!(directory.files(), ["packet_too_big.pcap"]);
    let mut tshark = Command::new("tshark");
    tshark.arg("-n").arg("-r");
    tshark.arg(directory.0.join("packet_too_big.pcap"));
    tshark.args(["-T", "fields", "-e", "frame.cap_len", "-e", "frame.len"]);
    let output = tshark.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("60\t{FRAME}\n60\t{FRAME}\n"));

    // A file that is there keeps it from touching any packet.
    let output = host.output(command("eth0")).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("packet_too_big.pcap"), "{errors}");
    assert!(!has_xdp(host));
    assert!(
        !String::from_utf8(output.stdout)
            .unwrap()
            .contains("balancing")
    );
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
    let mut command = example("monitor");
    command.arg("--config").arg(&file.0);
    command.args(["--shared", &path, "--position", "1", "--rate-limit", "1"]);
    let mut monitor = Running::start(host, command);
    monitor.says("balancing as entry 1 of");
    monitor.says("listening");
    send(&lab, 50);
    let line = monitor.says("packet_too_big");
    assert!(line.contains("> 203.0.113.1 port 80"), "{line}");
    assert!(line.ends_with(&format!(", {FRAME} bytes")), "{line}");
    let ping = lab.client.tool("ping", "-c 1 -W 5 10.0.0.2");
    assert!(ping.is_ok(), "{ping:?}");
    monitor.end(SIGINT);
    let line = monitor.says("events delivered");
    let numbers: Vec<u64> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    // Of all CPUs, and of as many seconds as it took.
    assert_eq!(numbers[0] + numbers[1], 50, "{line}");
    assert!(numbers[1] > 0, "{line}");
    monitor.says("left ");
    root(&["remove"]);
}
