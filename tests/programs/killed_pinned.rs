//! A pinned balancer whose process is killed: connections go on, the next process learns whose it is, and whatever it
//! was doing, all of it is taken away afterwards.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::examples::configuration;
use crate::program::Running;
use crate::program::Scratch;
use crate::program::example;
use crate::traced::Call;
use crate::traced::run_until;

const SIGTERM: i32 = 15;

/// A lab, a file for its balancer, and a directory for it to be pinned in.
struct Place {
    lab: Lab,
    file: Scratch,
    directory: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        require_root();
        let directory = private_bpf_fs().unwrap().join("katran");
        let lab = Lab::new(LabConfig::default()).unwrap();
        let file = Scratch::new(name);
        file.write(&configuration(&lab, 0));
        Self {
            lab,
            file,
            directory,
        }
    }

    fn host(&self) -> &Host {
        &self.lab.balancers[0].host
    }

    fn balancer(&self) -> Command {
        let mut command = example("balancer");
        command.arg("--config").arg(&self.file.0);
        command
            .args(["--interface", "eth0", "--pin"])
            .arg(&self.directory);
        command
    }

    fn removal(&self) -> Command {
        let mut command = example("balancer");
        command.args(["--remove", "--pin"]).arg(&self.directory);
        command
    }

    /// Has it taken away, after which there is nothing.
    fn remove(&self) {
        let output = self.host().output(self.removal()).unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(self.is_clean());
    }

    fn is_clean(&self) -> bool {
        let has_xdp = self.host().ip("link show eth0").unwrap().contains("xdp");
        !has_xdp && pins(self.directory.parent().unwrap()).is_empty()
    }
}

/// What is in a directory; the file system has some entries of its own, with dots.
fn pins(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.contains('.')).collect()
}

#[test]
fn connections_go_on_when_the_process_is_killed() {
    let place = Place::new("killed_pinned.toml");
    let lab = &place.lab;
    let _servers = lab.serve_tcp(80).unwrap();
    let decaps: Vec<Running> = lab
        .backends
        .iter()
        .map(|backend| {
            let mut command = example("decap");
            command.args(["--interface", &backend.interface]);
            let mut decap = Running::start(&backend.host, command);
            decap.says("stripping tunnels");
            decap
        })
        .collect();
    let start = || {
        let mut balancer = Running::start(place.host(), place.balancer());
        balancer.says("balancing on eth0 in native mode");
        balancer
    };
    let mut killed = start();
    let mut connection = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    // As long as it lives nobody else has it.
    let id = killed.process.id();
    for command in [place.balancer(), place.removal()] {
        let refused = place.host().output(command).unwrap();
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success());
        assert!(text.contains(&format!("belongs to process {id}")), "{text}");
    }
    killed.process.kill().unwrap();
    for vip in [lab.vip4(), lab.vip6()] {
        let mut new = TcpClient::connect(&lab.client, (vip, 80).into()).unwrap();
        assert_eq!(new.ask("who").unwrap(), "backend0");
    }
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    let refused = place.host().output(place.balancer()).unwrap();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("exists already"), "{text}");
    place.remove();

    // One that is told to end leaves it, too.
    let mut stopped = start();
    stopped.end(SIGTERM);
    stopped.says("balancing on without this program");
    let mut new = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
    assert_eq!(new.ask("who").unwrap(), "backend0");
    place.remove();
    drop(decaps);
}

/// What ends a start: the link is made, pinned, and has its name.
const ATTACHED: [Call; 4] = [Call::Attach, Call::Unlink, Call::Pin, Call::Rename];

/// Runs a command on the balancer's host; see [`run_until`].
fn run(
    place: &Place,
    command: Command,
    is_last: impl FnMut(&[Call], Pid) -> bool + Send,
) -> (Vec<Call>, bool) {
    place.host().run(|| run_until(command, is_last))
}

/// Loading and attaching, killed after each call that leaves something behind (of those that pin maps, the first and
/// the last ones); then the removal, killed after each of its calls.
#[test]
fn whatever_it_was_doing_it_can_be_removed() {
    let place = Place::new("killed_anywhere.toml");
    let (all, killed) = run(&place, place.balancer(), |calls, _| {
        calls.ends_with(&ATTACHED)
    });
    assert!(killed && all.len() > 20, "{all:?}");
    assert!(place.host().ip("link show eth0").unwrap().contains("xdp"));
    place.remove();
    let pins = all.iter().filter(|call| **call == Call::Pin).count();
    let mut nth_pin = 0;
    for (index, call) in all.iter().enumerate() {
        nth_pin += usize::from(*call == Call::Pin);
        if *call == Call::Pin && (3..pins - 1).contains(&nth_pin) {
            continue;
        }
        let is_last = |calls: &[Call], _| calls.len() == index + 1;
        let (calls, killed) = run(&place, place.balancer(), is_last);
        assert!(killed && calls == all[..=index], "{index}: {calls:?}");
        place.remove();
    }

    let (_, killed) = run(&place, place.balancer(), |calls, _| {
        calls.ends_with(&ATTACHED)
    });
    assert!(killed);
    let mut removed = Vec::new();
    loop {
        let (calls, killed) = run(&place, place.removal(), |calls, _| calls.len() == 1);
        removed.extend(calls);
        if !killed {
            break;
        }
    }
    assert!(place.is_clean());
    for call in [Call::Unlink, Call::RemoveDirectory] {
        assert!(removed.contains(&call), "{removed:?}");
    }
    assert!(removed.len() > 20, "{removed:?}");
}

/// A reload, killed after each of its calls (of those that pin and unpin, the first and the last of each kind): what is
/// attached works on with all that it hands packets on to.
#[test]
fn a_reload_that_is_cut_off_leaves_a_program_that_works() {
    let place = Place::new("killed_reload.toml");
    let lab = &place.lab;
    let before = configuration(lab, 0);
    let after = before.replacen(
        "[balancer]",
        "[balancer]\nfeatures = [\"source-routing\"]",
        1,
    );
    // Until the reload has come to its end: the last directory is gone.
    let reload = |last: Option<usize>| {
        place.file.write(&before);
        let mut begun = None;
        run(&place, place.balancer(), |calls, id| {
            let Some(begun) = begun else {
                if calls.ends_with(&ATTACHED) {
                    begun = Some(calls.len());
                    place.file.write(&after);
                    kill(id, Signal::SIGHUP).unwrap();
                }
                return false;
            };
            match last {
                Some(last) => calls.len() == begun + last,
                None => calls.ends_with(&[Call::RemoveDirectory]),
            }
        })
    };
    let (all, killed) = reload(None);
    assert!(killed);
    let begun = all.windows(4).position(|calls| *calls == ATTACHED).unwrap() + 4;
    let calls = &all[begun..];
    for call in [
        Call::MakeDirectory,
        Call::Pin,
        Call::Switch,
        Call::Rename,
        Call::Unlink,
    ] {
        assert!(calls.contains(&call), "{calls:?}");
    }
    let works = || {
        // An echo request goes by a program besides the one that is attached.
        let ping = lab
            .client
            .tool("ping", &format!("-c 1 -W 5 {}", lab.vip4()));
        assert!(ping.is_ok(), "{ping:?}");
    };
    works();
    place.remove();
    for (index, call) in calls.iter().enumerate() {
        let neighbours = [index.checked_sub(1), Some(index + 1)];
        let alike = |at: &Option<usize>| at.and_then(|at| calls.get(at)) == Some(call);
        if neighbours.iter().all(alike) {
            continue;
        }
        let (_, killed) = reload(Some(index + 1));
        assert!(killed, "{index}");
        works();
        place.remove();
    }
}
