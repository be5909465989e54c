//! A pinned balancer whose process is killed: connections go on, the next process learns whose it is, and whatever it
//! was doing, all of it is taken away afterwards.

use std::env;
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
use crate::program::decap;
use crate::program::example;
use crate::traced::Call;
use crate::traced::run_until;

const SIGTERM: i32 = 15;

/// A lab, a file for its balancer, and a directory for it to be pinned in.
struct Place {
    lab: Lab,
    file: Scratch,
    directory: PathBuf,
    /// Where a root program is pinned whose entry it is, instead of being attached itself.
    shared: Option<PathBuf>,
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
            shared: None,
        }
    }

    /// One with a root program on the interface.
    fn shared(name: &str) -> Self {
        let mut place = Self::new(name);
        let path = place.directory.with_file_name("shared");
        let mut root = example("root");
        root.args(["attach", "--interface", "eth0", "--path"])
            .arg(&path);
        let output = place.host().output(root).unwrap();
        assert!(output.status.success(), "{output:?}");
        place.shared = Some(path);
        place
    }

    fn host(&self) -> &Host {
        &self.lab.balancers[0].host
    }

    fn balancer(&self) -> Command {
        let mut command = example("balancer");
        command.arg("--config").arg(&self.file.0);
        match &self.shared {
            Some(path) => command.arg("--shared").arg(path),
            None => command.args(["--interface", "eth0"]),
        };
        command.arg("--pin").arg(&self.directory);
        command
    }

    /// The last calls of a start.
    fn attached(&self) -> &'static [Call] {
        match self.shared {
            Some(_) => &ENTERED,
            None => &ATTACHED,
        }
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
        let pins = pins(self.directory.parent().unwrap());
        if self.shared.is_some() {
            // The array, the program, what it counts in and the attachment.
            return pins.len() == 4 && pins[3].starts_with("shared_xdp_");
        }
        let has_xdp = self.host().ip("link show eth0").unwrap().contains("xdp");
        !has_xdp && pins.is_empty()
    }
}

/// What is in a directory; the file system has some entries of its own, with dots.
fn pins(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.contains('.')).collect();
    names.sort();
    names
}

/// The same, and what is in the directories inside.
fn all_pins(directory: &Path) -> Vec<String> {
    if !directory.is_dir() {
        return Vec::new();
    }
    let mut all = pins(directory);
    let inside: Vec<_> = all
        .iter()
        .map(|name| all_pins(&directory.join(name)))
        .collect();
    all.extend(inside.into_iter().flatten());
    all
}

#[test]
fn connections_go_on_when_the_process_is_killed() {
    let place = Place::new("killed_pinned.toml");
    let lab = &place.lab;
    let _servers = lab.serve_tcp(80).unwrap();
    let decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
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
    // The next one goes on with it.
    let mut next = Running::start(place.host(), place.balancer());
    next.says("goes on with the balancer in");
    next.says("no changes");
    next.says("balancing on eth0 in native mode");
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    next.process.kill().unwrap();
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

/// The same for an entry: it is noted, and what belongs to it is pinned. Then it is set.
const ENTERED: [Call; 4] = [Call::Unlink, Call::Link, Call::Rename, Call::Pin];

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
    let removed = remove_in_pieces(&place);
    for call in [Call::Unlink, Call::RemoveDirectory] {
        assert!(removed.contains(&call), "{removed:?}");
    }
    assert!(removed.len() > 20, "{removed:?}");
}

/// A removal that is killed after each of its calls until one is not; the calls.
fn remove_in_pieces(place: &Place) -> Vec<Call> {
    let mut removed = Vec::new();
    let mut last = 1;
    loop {
        let before = all_pins(&place.directory);
        let (calls, killed) = run(place, place.removal(), |calls, _| calls.len() == last);
        removed.extend(calls);
        if !killed {
            break;
        }
        // Its first calls may be for what is gone already.
        last = match all_pins(&place.directory) == before {
            true => last + 1,
            false => 1,
        };
    }
    assert!(place.is_clean());
    removed
}

/// An entry of a root program: neither the entry nor what is pinned beside it is forgotten.
#[test]
fn whatever_it_was_doing_with_an_entry_it_can_be_removed() {
    let place = Place::shared("killed_entry.toml");
    // What is pinned in its directory comes before.
    let mut all = Vec::new();
    for last in 1..=ENTERED.len() {
        let is_last = |calls: &[Call], _| calls.ends_with(&ENTERED[..last]);
        let (calls, killed) = run(&place, place.balancer(), is_last);
        assert!(killed, "{calls:?}");
        place.remove();
        all = calls;
    }
    assert!(all.len() > 20, "{all:?}");
    let mut whole = Running::start(place.host(), place.balancer());
    whole.says("balancing as entry 2 of");
    whole.process.kill().unwrap();
    remove_in_pieces(&place);
}

/// A reload, killed after each of its calls (of those that pin and unpin, the first and the last of each kind): what is
/// attached works on with all that it hands packets on to.
#[test]
fn a_reload_that_is_cut_off_leaves_a_program_that_works() {
    let place = Place::new("killed_reload.toml");
    cut_off_reloads(&place, RELOAD, &[Call::Switch]);
}

/// The same in an entry: what is pinned for either program goes in the end.
#[test]
fn a_reload_in_an_entry_that_is_cut_off_leaves_a_program_that_works() {
    cut_off_reloads(&Place::shared("killed_shared.toml"), RELOAD, &[]);
}

/// A replacement, likewise: there may be two sets, of which one goes. Of its calls every third is taken here, and what
/// switches and exchanges; `make soak` takes all.
#[test]
fn a_replacement_that_is_cut_off_leaves_a_balancer_that_works() {
    let place = Place::new("killed_replacement.toml");
    cut_off_reloads(&place, REPLACEMENT, &[Call::Switch]);
}

#[test]
fn a_replacement_in_an_entry_that_is_cut_off_leaves_a_balancer_that_works() {
    let place = Place::shared("killed_replaced_entry.toml");
    cut_off_reloads(&place, REPLACEMENT, &[]);
}

/// What a file says more, and how many directories have been removed when it has come to its end.
type Change = (&'static str, usize);

const RELOAD: Change = ("features = [\"source-routing\"]", 1);
/// There may have been another set before it; then the one goes that it has taken the place of.
const REPLACEMENT: Change = ("max_vips = 77\nmax_reals = 99", 4);

fn cut_off_reloads(place: &Place, (more, directories): Change, own_calls: &[Call]) {
    let lab = &place.lab;
    let before = configuration(lab, 0);
    let after = before.replacen("[balancer]", &format!("[balancer]\n{more}"), 1);
    // Until it has come to its end: the last directory is gone.
    let reload = |last: Option<usize>| {
        place.file.write(&before);
        let mut begun = None;
        run(place, place.balancer(), |calls, id| {
            let Some(begun) = begun else {
                if calls.ends_with(place.attached()) {
                    begun = Some(calls.len());
                    place.file.write(&after);
                    kill(id, Signal::SIGHUP).unwrap();
                }
                return false;
            };
            match last {
                Some(last) => calls.len() == begun + last,
                None => {
                    let removed = calls[begun..].iter();
                    removed
                        .filter(|call| **call == Call::RemoveDirectory)
                        .count()
                        == directories
                }
            }
        })
    };
    let (all, killed) = reload(None);
    assert!(killed);
    let begun = all
        .windows(4)
        .position(|calls| calls == place.attached())
        .unwrap()
        + 4;
    let calls = &all[begun..];
    let expected = [Call::MakeDirectory, Call::Pin, Call::Rename, Call::Unlink];
    for call in expected.iter().chain(own_calls) {
        assert!(calls.contains(call), "{calls:?}");
    }
    let is_soak = env::var_os("KATRAN_SOAK").is_some();
    let step = match directories > RELOAD.1 && !is_soak {
        true => 3,
        false => 1,
    };
    let mut points = 0;
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
        points += 1;
        if points % step != 0 && !matches!(call, Call::Switch | Call::Rename) {
            continue;
        }
        let (_, killed) = reload(Some(index + 1));
        assert!(killed, "{index}");
        works();
        // The next one goes on as before it, and brings it about.
        let mut next = Running::start(place.host(), place.balancer());
        next.says("goes on with the balancer in");
        // On its interface, or as an entry.
        next.says("balancing ");
        works();
        next.process.kill().unwrap();
        works();
        place.remove();
    }
}
