//! One or two hosts: closures, processes, interfaces, and a real ping.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use katran_lab::Host;
use katran_lab::TcpClient;
use katran_lab::TcpServer;
use katran_lab::require_root;
use katran_lab::veth;

fn interfaces() -> Vec<String> {
    let list = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let name = |line: &str| line.split(':').next().unwrap().trim().to_owned();
    list.lines().skip(2).map(name).collect()
}

/// Two hosts, 192.0.2.1 and .2, 2001:db8::1 and ::2.
fn pair() -> (Host, Host) {
    require_root();
    let (a, b) = (Host::new("a").unwrap(), Host::new("b").unwrap());
    veth(
        a.port("eth0").mac([2, 0, 0, 0, 0, 1]),
        b.port("eth0").takes_xdp_tx(),
        1600,
    )
    .unwrap();
    for (host, i) in [(&a, 1), (&b, 2)] {
        host.ip(&format!("addr add 192.0.2.{i}/24 dev eth0"))
            .unwrap();
        host.ip(&format!("addr add 2001:db8::{i}/64 dev eth0 nodad"))
            .unwrap();
    }
    (a, b)
}

#[test]
fn a_closure_runs_inside_and_its_caller_stays_outside() {
    require_root();
    let host = Host::new("h").unwrap();
    let outside = interfaces();
    let text = String::from("borrowed");
    let (inside, length) = host.run(|| (interfaces(), text.len()));
    assert_eq!(inside, ["lo"]);
    assert_eq!(length, 8);
    assert_eq!(interfaces(), outside);
}

#[test]
fn a_guard_moves_the_thread_in_and_out() {
    require_root();
    let host = Host::new("h").unwrap();
    let outside = interfaces();
    let not_send = Rc::new(());
    {
        let _inside = host.enter().unwrap();
        assert_eq!(interfaces(), ["lo"]);
        assert_eq!(Rc::strong_count(&not_send), 1);
        let other = Host::new("other").unwrap();
        other.run(|| assert_eq!(interfaces(), ["lo"]));
    }
    assert_eq!(interfaces(), outside);
}

#[test]
fn a_panic_inside_is_the_callers() {
    require_root();
    let host = Host::new("h").unwrap();
    let code = std::process::id();
    let panicking = AssertUnwindSafe(|| host.run(|| panic!("error {code}")));
    let payload = panic::catch_unwind(panicking).unwrap_err();
    let message = payload.downcast_ref::<String>().unwrap();
    assert_eq!(*message, format!("error {code}"));
    assert_eq!(host.run(|| 1), 1, "the host still works");
}

#[test]
fn pings_over_veth_in_both_families_at_full_size() {
    let (a, _b) = pair();
    let full4 = 1600 - 20 - 8;
    let full6 = 1600 - 40 - 8;
    a.tool(
        "ping",
        &format!("-c 2 -i 0.01 -W 2 -M do -s {full4} 192.0.2.2"),
    )
    .unwrap();
    a.tool(
        "ping",
        &format!("-c 2 -i 0.01 -W 2 -M do -s {full6} 2001:db8::2"),
    )
    .unwrap();
    a.tool("ping", "-c 1 -W 0.2 192.0.2.77")
        .expect_err("nobody there");
}

#[test]
fn interfaces_are_as_asked_for() {
    let (a, b) = pair();
    assert!(
        a.ip("link show eth0")
            .unwrap()
            .contains("02:00:00:00:00:01")
    );
    assert!(a.interface_index("eth0").unwrap() > 0);
    a.interface_index("eth1").expect_err("no such interface");
    for host in [&a, &b] {
        let features = host.tool("ethtool", "-k eth0").unwrap();
        for (feature, state) in [
            ("tx-checksumming", "off"),
            ("tcp-segmentation-offload", "off"),
            ("generic-segmentation-offload", "off"),
            ("generic-receive-offload", "off"),
        ] {
            let line = format!("{feature}: {state}");
            assert!(features.contains(&line), "no `{line}` in {features}");
        }
        for key in ["all", "default", "eth0"] {
            let path = format!("/proc/sys/net/ipv4/conf/{key}/rp_filter");
            let filter = host.run(|| std::fs::read_to_string(&path).unwrap());
            assert_eq!(filter.trim(), "0", "{path}");
        }
    }
}

#[test]
fn a_failure_says_what_failed_where_and_why() {
    require_root();
    let host = Host::new("h").unwrap();
    let error = host.ip("link set nonesuch up").unwrap_err().to_string();
    for part in ["ip link set nonesuch up", "in h", "nonesuch"] {
        assert!(error.contains(part), "{error}");
    }
    let error = host.sysctl("net.ipv4.nonesuch", 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("net.ipv4.nonesuch"), "{error}");
    let error = host.tool("/nonesuch", "").unwrap_err();
    assert!(error.to_string().contains("/nonesuch"), "{error}");
}

#[test]
fn a_process_runs_inside_and_dies_with_its_handle_or_host() {
    require_root();
    let host = Host::new("h").unwrap();
    let mut ip = Command::new("ip");
    ip.args(["-o", "link"]);
    let output = host.output(ip).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);

    let sleep = || {
        let mut command = Command::new("sleep");
        command.arg("1000");
        command
    };
    let alive = |id: u32| std::path::Path::new(&format!("/proc/{id}")).exists();

    let process = host.spawn_command(sleep()).unwrap();
    let id = process.id();
    assert!(alive(id));
    drop(process);
    assert!(!alive(id), "not even a zombie");

    let mut process = host.spawn_command(sleep()).unwrap();
    assert!(process.is_running().unwrap());
    let late = process.wait(Duration::from_millis(20)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    process.signal(15).unwrap();
    let status = process.wait(Duration::from_secs(5)).unwrap();
    assert!(!status.success());
    process.signal(15).expect_err("it has ended");

    let mut process = host.spawn_command(sleep()).unwrap();
    drop(host);
    let status = process.wait(Duration::from_secs(5)).unwrap();
    assert!(!status.success());
}

#[test]
fn a_process_can_be_talked_to() {
    require_root();
    let host = Host::new("h").unwrap();
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = host.spawn_command(command).unwrap();
    let mut stdin = process.take_stdin().unwrap();
    std::io::Write::write_all(&mut stdin, b"hello").unwrap();
    drop(stdin);
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"hello");
}

#[test]
fn a_server_answers_in_both_families_and_ends_its_connections() {
    let (a, b) = pair();
    let server = TcpServer::start(&b, 7, "b").unwrap();
    let v4: SocketAddr = "192.0.2.2:7".parse().unwrap();
    let v6: SocketAddr = "[2001:db8::2]:7".parse().unwrap();
    let local: SocketAddr = "192.0.2.1:40000".parse().unwrap();

    let mut one = TcpClient::connect_from(&a, local, v4).unwrap();
    let mut two = TcpClient::connect(&a, v6).unwrap();
    assert_eq!(one.local_addr().unwrap(), local);
    assert_eq!(one.ask("who?").unwrap(), "b");
    assert_eq!(two.ask("who?").unwrap(), "b");
    assert_eq!(two.ask("fill 100000").unwrap().len(), 100_002);
    assert_eq!(one.ask(&"long ".repeat(20_000)).unwrap(), "b");
    assert_eq!(
        (server.name(), server.accepted(), server.open()),
        ("b", 2, 2)
    );

    drop(server);
    one.ask("who?").expect_err("closed");
    two.ask("who?").expect_err("closed");
    let error = TcpClient::connect(&a, v4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_client_waits_until_the_last_connection_of_its_flow_has_ended() {
    let (a, b) = pair();
    let server: SocketAddr = "192.0.2.2:7".parse().unwrap();
    let local: SocketAddr = "192.0.2.1:40000".parse().unwrap();
    let listener = b.run(|| TcpListener::bind(server)).unwrap();

    let old = TcpClient::connect_from(&a, local, server).unwrap();
    drop(listener.accept().unwrap()); // The server closes first.
    let closing = Arc::new(AtomicBool::new(false));
    let closer = thread::spawn({
        let closing = Arc::clone(&closing);
        move || {
            thread::sleep(Duration::from_millis(100));
            closing.store(true, Ordering::SeqCst);
            drop(old);
        }
    });
    TcpClient::connect_from(&a, local, server).unwrap();
    let closed = closing.load(Ordering::SeqCst);
    assert!(closed, "the old connection was open");
    closer.join().unwrap();
}

#[test]
fn sys_has_the_host_s_own_interfaces() {
    let (a, b) = pair();
    a.sysfs("class/net/eth0/ifalias", "left").unwrap();
    assert!(a.ip("link show eth0").unwrap().contains("alias left"));
    assert!(!b.ip("link show eth0").unwrap().contains("alias"));
    let error = a.sysfs("class/net/eth1/ifalias", "left").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("eth1/ifalias = left in a"));
}

#[test]
fn packets_are_received_on_the_chosen_cpu() {
    /// `softnet_data.received_rps`: how often another CPU asked this one to process packets.
    fn asked(cpu: usize) -> u64 {
        let all = std::fs::read_to_string("/proc/thread-self/net/softnet_stat").unwrap();
        let line = all.lines().nth(cpu).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(9).unwrap(), 16).unwrap()
    }
    let (a, b) = pair();
    for (other, chosen) in [(1, 0), (0, 1)] {
        b.receive_on_cpu("eth1", 0).unwrap_err();
        // b's `eth0` has an XDP program, so packets to b bypass RPS: those to a do not.
        a.receive_on_cpu("eth0", chosen).unwrap();
        let before = asked(chosen as usize);
        // A CPU that is already processing is not asked.
        let asked = (0..20).any(|_| {
            let cpus = format!("-c {other} ping -c 20 -i 0.002 192.0.2.1");
            b.tool("taskset", &cpus).unwrap();
            asked(chosen as usize) >= before + 10
        });
        assert!(asked, "CPU {chosen}");
    }
}
