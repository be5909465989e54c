//! Killed programs of a backend: tunnels are still stripped and ids written, the next process
//! adopts what it finds, and whatever the killed one was doing, all of it can be removed.

use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use katran_lab::Cgroup;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::TcpServer;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::unistd::Pid;

use crate::examples::balancing;
use crate::objects;
use crate::place::is_only_of;
use crate::place::takes_connections;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;
use crate::traced::Call;
use crate::traced::run_until;

const SIGTERM: i32 = 15;

/// The links pinned in a directory: names and kernel ids.
fn links(attached: &Path) -> Vec<(String, u32)> {
    let names = objects::tree(attached).into_iter().map(|(name, _)| name);
    let names = names.filter(|name| !name.starts_with("path_"));
    let link = |name: String| {
        let pinned = objects::open(&attached.join(&name));
        (name, objects::link(pinned.as_fd()).0)
    };
    names.map(link).collect()
}

/// A program on a host, and the directory for its pins.
struct Place<'a> {
    host: &'a Host,
    directory: PathBuf,
    name: &'static str,
    arguments: Vec<String>,
    /// Whether the host shows the program as attached.
    is_attached: &'a (dyn Fn() -> bool + Sync),
}

impl Place<'_> {
    fn start(&self) -> Command {
        let mut command = example(self.name);
        command.args(&self.arguments);
        command.arg("--pin").arg(&self.directory);
        command
    }

    fn removal(&self) -> Command {
        let mut command = example(self.name);
        command.args(["--remove", "--pin"]).arg(&self.directory);
        command
    }

    fn remove(&self) {
        let output = self.host.output(self.removal()).unwrap();
        assert!(output.status.success(), "{output:?}");
        self.check_clean();
    }

    fn check_clean(&self) {
        let left = objects::tree(self.directory.parent().unwrap());
        assert!(left.is_empty(), "{left:?}");
        assert!(!(self.is_attached)());
    }

    fn run(
        &self,
        command: Command,
        is_last: impl FnMut(&[Call], Pid) -> bool + Send,
    ) -> (Vec<Call>, bool) {
        self.host.run(|| run_until(command, is_last))
    }

    /// Kills a start after each call that leaves something behind, and a removal likewise.
    /// `attached`: a start's last calls.
    fn kill_everywhere(&self, attached: &[Call]) {
        let (all, killed) = self.run(self.start(), |calls, _| calls.ends_with(attached));
        assert!(killed && all.len() > 12, "{all:?}");
        assert!((self.is_attached)());
        self.remove();
        for last in 1..=all.len() {
            let (calls, killed) = self.run(self.start(), |calls, _| calls.len() == last);
            assert!(killed && calls == all[..last], "{last}: {calls:?}");
            // Then it is removed directly, or adopted first.
            if last % 2 == 0 {
                self.go_on();
            }
            self.remove();
        }
        let mut removed = Vec::new();
        self.go_on();
        let mut last = 1;
        loop {
            let before = objects::tree(self.directory.parent().unwrap());
            let (calls, killed) = self.run(self.removal(), |calls, _| calls.len() == last);
            removed.extend(calls);
            if !killed {
                break;
            }
            // Its first calls may be for things already gone.
            last = match objects::tree(self.directory.parent().unwrap()) == before {
                true => last + 1,
                false => 1,
            };
        }
        assert!(removed.contains(&Call::RemoveDirectory) && removed.len() > 12);
        self.check_clean();
    }

    /// Starts the next process, waits until it works, and kills it.
    fn go_on(&self) {
        let mut next = Running::start(self.host, self.start());
        next.line("that it works", |line| {
            line.starts_with("stripping ") || line.starts_with("writing ")
        });
        assert!((self.is_attached)());
        next.process.kill().unwrap();
    }

    /// Kills an adoption after each of its calls: what exists keeps working, and the next process
    /// adopts it.
    fn kill_adoptions(&self, mut works: impl FnMut()) {
        self.go_on();
        let attached = self.directory.join("attached");
        let before = links(&attached);
        assert_eq!(before.len(), 1);
        // An adoption ends by unpinning the old program.
        let mut is_switched = false;
        let (all, killed) = self.run(self.start(), |calls, _| {
            is_switched |= calls.ends_with(&[Call::Switch]);
            is_switched
                && calls.ends_with(&[Call::RemoveDirectory, Call::Unlink, Call::RemoveDirectory])
        });
        assert!(killed, "{all:?}");
        for call in [Call::Pin, Call::Switch, Call::Rename, Call::Unlink] {
            assert!(all.contains(&call), "{all:?}");
        }
        works();
        for last in 1..=all.len() {
            let (_, killed) = self.run(self.start(), |calls, _| calls.len() == last);
            assert!(killed, "{last}");
            works();
            self.go_on();
            works();
            assert_eq!(links(&attached), before, "{last}");
        }
        let left = objects::tree(&self.directory);
        assert!(
            left.iter().all(|(name, _)| !name.starts_with("next_set")),
            "{left:?}"
        );
        self.remove();
    }
}

/// A lab with a working balancer, and a server on the first backend.
struct Site {
    directory: PathBuf,
    lab: Lab,
    _balancer: Running,
    _file: Scratch,
}

impl Site {
    fn new(name: &str) -> Self {
        require_root();
        let directory = private_bpf_fs().unwrap().join("pinned");
        let lab = Lab::new(LabConfig {
            backends: 1,
            ..LabConfig::default()
        });
        let lab = lab.unwrap();
        let file = Scratch::new(name);
        let balancer = balancing(&lab, &file);
        Self {
            directory,
            lab,
            _balancer: balancer,
            _file: file,
        }
    }

    fn decap<'a>(&'a self, is_attached: &'a (dyn Fn() -> bool + Sync), more: &[&str]) -> Place<'a> {
        let arguments = ["--interface", "eth0"].iter().chain(more);
        Place {
            host: &self.lab.backends[0].host,
            directory: self.directory.clone(),
            name: "decap",
            arguments: arguments.map(|word| (*word).to_owned()).collect(),
            is_attached,
        }
    }
}

/// Whether a decapsulator is on the interface.
fn has_decap(host: &Host) -> bool {
    let link = host.ip("link show eth0").unwrap();
    let qdiscs = host.tool("tc", "qdisc show dev eth0").unwrap();
    link.contains("xdp") || qdiscs.contains("clsact")
}

#[test]
fn connections_survive_a_killed_decapsulator() {
    let site = Site::new("killed_decap.toml");
    let lab = &site.lab;
    let _server = lab.serve_tcp(80).unwrap();
    let host = &lab.backends[0].host;
    let is_attached = || has_decap(host);
    for more in [&[][..], &["--tc", "--tc-hook", "clsact"]] {
        let place = site.decap(&is_attached, more);
        let mut killed = Running::start(host, place.start());
        killed.says("stripping tunnels on eth0");
        let mut connection = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
        assert_eq!(connection.ask("who").unwrap(), "backend0");
        let others = [place.start(), place.removal()];
        is_only_of(killed.process.id(), host, others);
        killed.process.kill().unwrap();
        takes_connections(lab);
        assert_eq!(connection.ask("who").unwrap(), "backend0");
        let mut next = Running::start(host, place.start());
        next.says("continuing with the decapsulator in");
        next.says("stripping tunnels on eth0");
        // The counters of both families continue.
        next.counts(1);
        next.counts(2);
        assert_eq!(connection.ask("who").unwrap(), "backend0");
        // Other options take effect at once; tunnelled packets to the VIP are no longer accepted.
        next.process.kill().unwrap();
        let mut other = place.start();
        other.args(["--to", "192.0.2.0/24"]);
        let mut next = Running::start(host, other);
        next.says("stripping tunnels on eth0");
        assert!(TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).is_err());
        next.counts(5);
        next.process.kill().unwrap();
        let mut next = Running::start(host, place.start());
        next.says("stripping tunnels on eth0");
        assert_eq!(connection.ask("who").unwrap(), "backend0");
        next.end(SIGTERM);
        next.says("stripping continues without this program");
        assert_eq!(connection.ask("who").unwrap(), "backend0");
        place.remove();
    }
}

#[test]
fn a_killed_decapsulator_can_be_removed_whatever_it_was_doing() {
    let site = Site::new("killed_decap_anywhere.toml");
    let host = &site.lab.backends[0].host;
    let is_attached = || has_decap(host);
    let place = site.decap(&is_attached, &[]);
    place.kill_everywhere(&[Call::Attach, Call::Unlink, Call::Pin, Call::Rename]);
    // Netlink makes the filter itself, after its pin.
    let place = site.decap(&is_attached, &["--tc", "--tc-hook", "clsact"]);
    let (_, killed) = place.run(place.start(), |calls, _| {
        calls.ends_with(&[Call::Pin, Call::Unlink, Call::Pin, Call::Rename])
    });
    assert!(killed);
    place.remove();
}

#[test]
fn an_adoption_that_is_cut_off_leaves_a_decapsulator_that_works() {
    let site = Site::new("killed_decap_adoption.toml");
    let lab = &site.lab;
    let _server = lab.serve_tcp(80).unwrap();
    let host = &lab.backends[0].host;
    let is_attached = || has_decap(host);
    let place = site.decap(&is_attached, &[]);
    place.kill_adoptions(|| {
        let mut new = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
        assert_eq!(new.ask("who").unwrap(), "backend0");
    });
}

/// Runs `test` with a server id option for a new cgroup.
fn with_option(name: &str, test: impl FnOnce(&Site, &Cgroup, Place<'_>)) {
    let site = Site::new(name);
    let servers = Cgroup::new().unwrap();
    let is_attached = || objects::programs_of_cgroup(servers.path()) > 0;
    let cgroup = servers.path().display().to_string();
    let place = Place {
        host: &site.lab.backends[0].host,
        directory: site.directory.clone(),
        name: "server_id",
        arguments: ["--id", "1000", "--cgroup", &cgroup]
            .map(str::to_owned)
            .to_vec(),
        is_attached: &is_attached,
    };
    test(&site, &servers, place);
}

#[test]
fn ids_are_written_when_the_process_is_killed() {
    with_option("killed_option.toml", |site, servers, place| {
        let lab = &site.lab;
        let host = &lab.backends[0].host;
        let plain = site.decap(&|| true, &[]);
        let mut decap = example("decap");
        decap.args(&plain.arguments);
        let mut decap = Running::start(host, decap);
        decap.says("stripping tunnels on eth0");
        let mut killed = Running::start(host, place.start());
        killed.says("writing server id 1000 for");
        killed.process.kill().unwrap();
        let _server = servers.run(|| TcpServer::start(host, 80, "backend0").unwrap());
        let to = (lab.vip4(), 80).into();
        let mut client = TcpClient::connect(&lab.client, to).unwrap();
        assert_eq!(client.ask("who?").unwrap(), "backend0");
        let mut next = Running::start(host, place.start());
        next.says("continuing with the server id option in");
        next.says("writing server id 1000 for");
        // Counted and written while no process ran.
        next.counts(0);
        next.counts(2);
        next.process.kill().unwrap();
        // Without the id, the option must not be taken for a client's.
        let mut without = example("server_id");
        without.arg("--cgroup").arg(servers.path());
        without.arg("--pin").arg(&place.directory);
        let refused = host.output(without).unwrap();
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains("writes server id 1000"), "{text}");
        let mut next = Running::start(host, place.start());
        next.says("continuing with the server id option in");
        next.says("writing server id 1000 for");
        next.end(SIGTERM);
        next.says("working continues without this program");
        place.remove();
    });
}

#[test]
fn a_killed_server_id_option_can_be_removed_whatever_it_was_doing() {
    with_option("killed_option_anywhere.toml", |_, _, place| {
        // The record of the cgroup, then the link.
        let attached = [Call::Rename, Call::Unlink, Call::Pin, Call::Rename];
        place.kill_everywhere(&attached);
        place.kill_adoptions(|| assert!((place.is_attached)()));
    });
}
