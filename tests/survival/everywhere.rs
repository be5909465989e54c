//! Every kind of change, killed after each of its system calls and stores: the next owner finds all
//! of it or nothing.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Instant;

use katran::RootProgram;
use katran_lab::Host;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::changes::BACK;
use crate::changes::KINDS;
use crate::changes::TURNING;
use crate::common::seed::seeded;
use crate::ending::Done;
use crate::owner::Job;
use crate::owner::Known;
use crate::owner::Owned;
use crate::owner::Owner;
use crate::owner::Said;
use crate::owner::Task;

pub(crate) const SIGKILL: i32 = 9;
/// Descriptors by which owners of the same state may differ, as threads hold some for a moment. A
/// set of maps has dozens.
const MORE: usize = 8;

/// A host with two interfaces, and a root program for its entries.
pub(crate) struct Place {
    pub(crate) host: Host,
    pub(crate) directory: PathBuf,
    shared: PathBuf,
    clsact: bool,
    _root: RootProgram,
}

impl Place {
    pub(crate) fn new(clsact: bool) -> Self {
        require_root();
        let files = private_bpf_fs().unwrap();
        let host = Host::new("survivor").unwrap();
        for (one, other) in [("eth0", "peer0"), ("eth1", "peer1")] {
            let pair = format!("link add {one} type veth peer name {other}");
            host.ip(&pair).unwrap();
            host.ip(&format!("link set {one} up")).unwrap();
            host.ip(&format!("link set {other} up")).unwrap();
        }
        let shared = files.join("shared");
        let mut root = RootProgram::builder().load().unwrap();
        root.pin(&shared).unwrap();
        Self {
            host,
            directory: files.join("katran"),
            shared,
            clsact,
            _root: root,
        }
    }

    pub(crate) fn job(&self, seed: u64, task: Task) -> Job {
        Job {
            directory: self.directory.clone(),
            shared: self.shared.clone(),
            gateway: [2, 0, 0, 0, 0, 1],
            seed,
            clsact: self.clsact,
            group: None,
            task,
        }
    }

    /// Makes a change, with the process ended after `last` calls and stores; with 0 it is not, and
    /// this returns what was done.
    pub(crate) fn run(
        &self,
        known: &mut Option<Found>,
        kind: &str,
        seed: u64,
        last: u64,
    ) -> Option<Done> {
        let task = Task::One {
            kind: kind.to_owned(),
            last,
        };
        let what = format!("{kind} after {last}");
        // Printed if a process fails.
        eprintln!("{what}");
        let mut owner = Owner::start(&self.host, &self.job(seed, task));
        let owned = owner.owns();
        if let Some(known) = known {
            known.assert_found(&owned, &what);
        }
        let begun = owner.begins();
        if let Some(known) = known {
            assert_eq!(begun.pins, known.begun.pins, "{what}: pins");
            let descriptors = [begun.descriptors, known.begun.descriptors];
            let allowed = descriptors[1] + MORE;
            assert!(descriptors[0] <= allowed, "{what}: {descriptors:?}");
        }
        let known = known.insert(Found {
            known: Known::new(&begun),
            begun,
        });
        let mut done = None;
        while let Some(said) = owner.next() {
            if let Said::Made { refused, done: all } = &said {
                assert_eq!(*refused, None, "{what}");
                done = Some(*all);
            }
            known.known.hear(said);
        }
        let status = owner.ended();
        match done {
            Some(_) => assert!(status.success(), "{what}: {status}"),
            None => assert_eq!(status.signal(), Some(SIGKILL), "{what}: {status}"),
        }
        done
    }
}

/// What the next owner must find.
pub(crate) struct Found {
    pub(crate) known: Known,
    /// The state before the change.
    pub(crate) begun: Owned,
}

impl Found {
    pub(crate) fn assert_found(&self, owned: &Owned, what: &str) {
        self.known.assert_found(&owned.text, what);
        Known::assert_counted(&self.begun.counters, &owned.counters, what);
    }
}

/// Calls `kill` for each kind of change.
fn killed(clsact: bool, mut kill: impl FnMut(&Place, &mut Option<Found>, &str, u64)) {
    let chosen = std::env::var("KATRAN_KINDS").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split(';').filter(|of| !of.is_empty()).collect();
    let place = Place::new(clsact);
    let (seed, mut rng) = seeded();
    let mut known = None;
    let both_ways = KINDS.iter().flat_map(|(kind, _)| {
        let back = TURNING.contains(kind).then(|| format!("{kind}{BACK}"));
        [(*kind).to_owned()].into_iter().chain(back)
    });
    for kind in both_ways {
        let seed = rng.u64(..);
        if chosen.is_empty() || chosen.contains(&&*kind) {
            kill(&place, &mut known, &kind, seed);
        }
    }
    // What the last one left.
    let mut owner = Owner::start(&place.host, &place.job(0, Task::Begin));
    let found = owner.owns();
    known.unwrap().assert_found(&found, "the end");
    owner.begins();
    assert!(owner.ended().success());
    katran::remove(&place.directory).unwrap();
    let filters = place
        .host
        .tool("tc", "filter show dev eth0 egress")
        .unwrap();
    assert!(filters.is_empty(), "{filters}");
    let qdiscs = place.host.tool("tc", "qdisc show dev eth0").unwrap();
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    drop(seed);
}

/// Each kind of change, killed at its beginning, at some points within, and when only its answer is
/// missing.
#[test]
fn a_change_killed_anywhere_is_whole_or_undone() {
    killed(false, |place, known, kind, seed| {
        for last in [1 + seed % 8, 9 + seed % 100, u64::MAX] {
            assert_eq!(place.run(known, kind, seed, last), None);
        }
    });
}

/// Killed after each thing that it does. `KATRAN_KINDS`, names separated by semicolons, selects
/// kinds; `KATRAN_FROM` skips to a number, and `KATRAN_EVERY` takes every n-th.
#[test]
#[ignore = "hours: make soak"]
fn a_change_killed_everywhere_is_whole_or_undone() {
    let number = |name| {
        let number = std::env::var(name).map(|of| of.parse().unwrap());
        number.unwrap_or(1)
    };
    let (first, every) = (number("KATRAN_FROM"), number("KATRAN_EVERY"));
    killed(false, |place, known, kind, seed| {
        let began = Instant::now();
        let done = place.run(known, kind, seed, 0).unwrap();
        assert!(done.all() > 0, "{kind}");
        eprintln!("{kind}: {} calls and {} stores", done.calls, done.stores);
        let mut kills = 0;
        for last in (first..=done.all() + 1).step_by(every as usize) {
            // The library's threads add to the count, so another run may end earlier.
            assert_eq!(place.run(known, kind, seed, last), None);
            kills += 1;
        }
        let took = began.elapsed().as_secs_f64();
        eprintln!("{kind}: killed {kills} times, in {took:.0} s");
    });
}

/// A clsact filter, which no link keeps: killed after each step of attaching and detaching it.
#[test]
fn a_filter_killed_everywhere_is_whole_or_undone() {
    killed(true, |place, known, kind, seed| {
        let kind_of = kind.trim_end_matches(BACK);
        if !["the way of probes", "attach and detach"].contains(&kind_of) {
            return;
        }
        let done = place.run(known, kind, seed, 0).unwrap();
        // The records beside a link are system calls; most other calls are queries of the thread
        // that follows next hops.
        for last in 1..=done.all().min(12) + 1 {
            assert_eq!(place.run(known, kind, seed, last), None);
        }
    });
}
