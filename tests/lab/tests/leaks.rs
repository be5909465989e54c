//! Nothing is left behind by a dropped host or by a process killed with SIGKILL.
//!
//! A single test, so that nothing else in this process makes namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::thread;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::eventually;
use katran_lab::require_root;
use katran_lab::veth;

/// Set for the process to be killed: the path of one of the test's namespaces.
const VICTIM: &str = "KATRAN_LAB_VICTIM";

/// The network namespaces that a process's threads are in and its descriptors hold.
fn namespaces(process: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let list = |dir: String| fs::read_dir(dir).into_iter().flatten().flatten();
    for task in list(format!("/proc/{process}/task")) {
        found.extend(fs::read_link(task.path().join("ns/net")));
    }
    for fd in list(format!("/proc/{process}/fd")) {
        let target = fs::read_link(fd.path());
        found.extend(target.into_iter().filter(|t| t.starts_with("net:")));
    }
    found
        .into_iter()
        .map(|path| path.display().to_string())
        .filter(|name| name.starts_with("net:"))
        .collect()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn has_interface(host: &Host, name: &str) -> bool {
    host.interface_index(name).is_ok()
}

#[test]
fn nothing_is_left_behind() {
    require_root();
    if let Ok(witness) = env::var(VICTIM) {
        be_the_victim(&witness);
    }
    let before = (namespaces("self"), threads());
    // The witness's interface lives exactly as long as the namespace at its other end.
    let witness = Host::new("witness").unwrap();
    a_dropped_host_is_gone(&witness);
    a_dropped_lab_is_gone();
    a_killed_process_leaves_nothing(&witness);
    drop(witness);
    eventually("namespaces and threads as before", || {
        (namespaces("self"), threads()) == before
    });
}

fn a_dropped_host_is_gone(witness: &Host) {
    let host = Host::new("host").unwrap();
    veth(host.port("eth0"), witness.port("w0"), 1500).unwrap();
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let process = host.spawn_command(sleep).unwrap();
    assert!(has_interface(witness, "w0"));
    drop(host);
    eventually("the dropped host's interface is gone", || {
        !has_interface(witness, "w0")
    });
    drop(process);
}

fn a_dropped_lab_is_gone() {
    let before = namespaces("self");
    let lab = Lab::new(LabConfig::default()).unwrap();
    let servers = lab.serve_tcp(80).unwrap();
    let server = (lab.backends[0].v4, 80).into();
    let mut client = TcpClient::connect(&lab.client, server).unwrap();
    client.ask("who?").unwrap();
    assert_eq!(namespaces("self").len(), before.len() + 5);
    drop((servers, client));
    drop(lab);
    eventually("the dropped lab's namespaces are gone", || {
        namespaces("self") == before
    });
}

fn a_killed_process_leaves_nothing(witness: &Host) {
    let mut victim = Command::new(env::current_exe().unwrap())
        .args(["--exact", "nothing_is_left_behind", "--nocapture"])
        .env(VICTIM, witness.namespace_path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(victim.stdout.take().unwrap());
    let is_ready = |line: &String| line.starts_with("ready ");
    let line = stdout.lines().map(Result::unwrap).find(is_ready).unwrap();
    let children: Vec<&str> = line.split(' ').skip(1).collect();
    assert_eq!(children.len(), 3);
    let running = |id: &&str| Path::new(&format!("/proc/{id}")).exists();
    assert!(children.iter().all(running));
    assert!(has_interface(witness, "v0"));
    // Its own namespace, the witness's, and those of its lab and two hosts.
    let victims = victim.id().to_string();
    assert_eq!(namespaces(&victims).len(), 1 + 5 + 2);

    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually("its children are gone", || !children.iter().any(running));
    eventually("its namespace is gone", || !has_interface(witness, "v0"));
}

/// Makes hosts, processes and an interface in the test's namespace, and waits to be killed.
fn be_the_victim(witness: &str) -> ! {
    let _lab = Lab::new(LabConfig::default()).unwrap();
    let hosts = ["one", "two"].map(|name| Host::new(name).unwrap());
    hosts[0]
        .ip(&format!(
            "link add eth0 type veth peer name v0 netns {witness}"
        ))
        .unwrap();
    let spawn = |host: &Host| {
        let mut command = Command::new("sleep");
        command.arg("1000");
        host.spawn_command(command).unwrap()
    };
    let children = [spawn(&hosts[0]), spawn(&hosts[0]), spawn(&hosts[1])];
    let [a, b, c] = children.each_ref().map(|child| child.id());
    println!("\nready {a} {b} {c}");
    loop {
        thread::park();
    }
}
