//! A pinned balancer whose process is killed: connections continue, the next process adopts it, and
//! whatever the killed one was doing, all of it can be removed.

use std::env;
use std::path::Path;
use std::process::Command;

use katran_lab::TcpClient;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::examples::configuration;
use crate::place::Place;
use crate::place::is_only_of;
use crate::place::pins;
use crate::place::takes_connections;
use crate::program::Running;
use crate::program::decap;
use crate::traced::Call;
use crate::traced::run_until;

const SIGTERM: i32 = 15;

/// All entries below a directory.
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
fn connections_survive_a_killed_process() {
    let place = Place::new("killed_pinned.toml");
    let lab = &place.lab;
    let _servers = lab.serve_tcp(80).unwrap();
    let decaps: Vec<Running> = lab.backends.iter().map(decap).collect();
    let mut killed = place.start(&[]);
    let mut connection = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    let others = [place.balancer(&[]), place.removal()];
    is_only_of(killed.process.id(), place.host(), others);
    killed.process.kill().unwrap();
    takes_connections(lab);
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    // The next process adopts it.
    let mut next = Running::start(place.host(), place.balancer(&[]));
    next.says("continuing with the balancer in");
    next.says("no changes");
    next.says("balancing on eth0 in native mode");
    assert_eq!(connection.ask("who").unwrap(), "backend0");
    next.process.kill().unwrap();
    place.remove();

    // A process that is asked to end leaves it, too.
    let mut stopped = place.start(&[]);
    stopped.end(SIGTERM);
    stopped.says("balancing continues without this program");
    let mut new = TcpClient::connect(&lab.client, (lab.vip4(), 80).into()).unwrap();
    assert_eq!(new.ask("who").unwrap(), "backend0");
    place.remove();
    drop(decaps);
}

/// A start's last calls: the link is made, pinned, and renamed.
const ATTACHED: [Call; 4] = [Call::Attach, Call::Unlink, Call::Pin, Call::Rename];

/// The same for an entry: its record and pins are made, then it is set.
const ENTERED: [Call; 4] = [Call::Unlink, Call::Link, Call::Rename, Call::Pin];

/// The last calls of a start.
fn last_calls(place: &Place) -> &'static [Call] {
    match place.shared {
        Some(_) => &ENTERED,
        None => &ATTACHED,
    }
}

/// Runs a command on the balancer's host; see [`run_until`].
fn run(
    place: &Place,
    command: Command,
    is_last: impl FnMut(&[Call], Pid) -> bool + Send,
) -> (Vec<Call>, bool) {
    place.host().run(|| run_until(command, is_last))
}

/// Kills a start after each call that leaves something behind (of those that pin maps, only the
/// first and last), then the removal after each of its calls.
#[test]
fn a_killed_balancer_can_be_removed_whatever_it_was_doing() {
    let place = Place::new("killed_anywhere.toml");
    let (all, killed) = run(&place, place.balancer(&[]), |calls, _| {
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
        let (calls, killed) = run(&place, place.balancer(&[]), is_last);
        assert!(killed && calls == all[..=index], "{index}: {calls:?}");
        place.remove();
    }

    let (_, killed) = run(&place, place.balancer(&[]), |calls, _| {
        calls.ends_with(&ATTACHED)
    });
    assert!(killed);
    let removed = remove_in_pieces(&place);
    for call in [Call::Unlink, Call::RemoveDirectory] {
        assert!(removed.contains(&call), "{removed:?}");
    }
    assert!(removed.len() > 20, "{removed:?}");
}

/// Kills a removal after each of its calls until one ends by itself; returns the calls.
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
        // Its first calls may be for things already gone.
        last = match all_pins(&place.directory) == before {
            true => last + 1,
            false => 1,
        };
    }
    assert!(place.is_clean());
    removed
}

/// A root entry: neither the entry nor the pins beside it are forgotten.
#[test]
fn a_killed_balancer_with_an_entry_can_be_removed_whatever_it_was_doing() {
    let place = Place::shared("killed_entry.toml");
    // The pins in the balancer's own directory come first.
    let mut all = Vec::new();
    for last in 1..=ENTERED.len() {
        let is_last = |calls: &[Call], _| calls.ends_with(&ENTERED[..last]);
        let (calls, killed) = run(&place, place.balancer(&[]), is_last);
        assert!(killed, "{calls:?}");
        place.remove();
        all = calls;
    }
    assert!(all.len() > 20, "{all:?}");
    let mut whole = Running::start(place.host(), place.balancer(&[]));
    whole.says("balancing as entry 2 of");
    whole.process.kill().unwrap();
    remove_in_pieces(&place);
}

/// Kills a reload after each of its calls (of those that pin and unpin, the first and last of each
/// kind): the attached program keeps working with every program it hands packets to.
#[test]
fn a_reload_that_is_cut_off_leaves_a_program_that_works() {
    let place = Place::new("killed_reload.toml");
    cut_off_reloads(&place, RELOAD, &[Call::Switch]);
}

/// The same in an entry: in the end the pins of both programs are removed.
#[test]
fn a_reload_in_an_entry_that_is_cut_off_leaves_a_program_that_works() {
    cut_off_reloads(&Place::shared("killed_shared.toml"), RELOAD, &[]);
}

/// A replacement likewise: there may be two sets, of which one is removed. Takes every third call
/// here, and those that switch; `make soak` takes all.
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

/// Lines added to the file, and how many directories the finished change has removed.
type Change = (&'static str, usize);

const RELOAD: Change = ("features = [\"source-routing\"]", 1);
/// An earlier change may have left a set, which the replacement removes, too.
const REPLACEMENT: Change = ("max_vips = 77\nmax_reals = 99", 4);

fn cut_off_reloads(place: &Place, (more, directories): Change, own_calls: &[Call]) {
    let lab = &place.lab;
    let before = configuration(lab, 0);
    let after = before.replacen("[balancer]", &format!("[balancer]\n{more}"), 1);
    // Runs a reload to this call, or to its end: the last directory is removed.
    let reload = |last: Option<usize>| {
        place.file.write(&before);
        let mut begun = None;
        run(place, place.balancer(&[]), |calls, id| {
            let Some(begun) = begun else {
                if calls.ends_with(last_calls(place)) {
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
        .position(|calls| calls == last_calls(place))
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
        // An echo request needs a program besides the attached one.
        let ping = lab
            .client
            .tool("ping", &format!("-c 1 -W 30 {}", lab.vip4()));
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
        // The next process continues with the old document, then applies the new one.
        let mut next = Running::start(place.host(), place.balancer(&[]));
        next.says("continuing with the balancer in");
        // On its interface, or as an entry.
        next.says("balancing ");
        works();
        next.process.kill().unwrap();
        works();
        place.remove();
    }
}
