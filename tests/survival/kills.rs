//! Kills at random moments of random changes, while clients are served: no connection and no frame
//! is lost, each next owner finds the state after the last completed call, or all of the
//! interrupted one, and nothing is left over.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Decap;
use katran::RootProgram;
use katran::Vip;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::StopOnDrop;
use katran_lab::eventually;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::common::seed::seeded;
use crate::common::vip;
use crate::group::Group;
use crate::model::SERVICES;
use crate::owner::Job;
use crate::owner::Known;
use crate::owner::Owned;
use crate::owner::Owner;
use crate::owner::Task;
use crate::owner::builder;
use crate::traffic;
use crate::traffic::Answers;
use crate::traffic::LASTING;
use crate::traffic::PORT;

/// The longest life of an owner once it has begun changes, in milliseconds.
const LONGEST_LIFE: u64 = 400;
/// The same for every fifth one, for changes that need the verifier.
const LONG_LIFE: u64 = 3000;
/// How long connections may take to end.
const LAST_FRAMES: Duration = Duration::from_secs(20);
/// How much more memory may be accounted at the end: the kernel accounts in per-CPU batches.
const ACCOUNTED_MORE: u64 = 1 << 20;

/// A network with clients, and the balancer's directory.
struct Place {
    lab: Lab,
    decaps: Vec<Decap>,
    directory: PathBuf,
    shared: PathBuf,
    group: Option<Group>,
    _root: RootProgram,
}

impl Place {
    fn new() -> Self {
        require_root();
        let files = private_bpf_fs().unwrap();
        let lab = Lab::new(LabConfig::default()).unwrap();
        let decaps = lab.backends.iter().map(|backend| {
            let mut decap = Decap::builder().load().unwrap();
            let attach = || decap.attach(&backend.interface, XdpMode::Native).unwrap();
            backend.host.run(attach);
            decap
        });
        let decaps = decaps.collect();
        // Something else for changes to attach to.
        let host = &lab.balancers[0].host;
        host.ip("link add eth1 type veth peer name peer1").unwrap();
        host.ip("link set eth1 up").unwrap();
        let shared = files.join("shared");
        let mut root = RootProgram::builder().load().unwrap();
        root.pin(&shared).unwrap();
        Self {
            decaps,
            directory: files.join("katran"),
            shared,
            group: Group::new()
                .inspect_err(|why| eprintln!("memory is not looked at: {why}"))
                .ok(),
            _root: root,
            lab,
        }
    }

    fn job(&self, seed: u64, task: Task) -> Job {
        Job {
            directory: self.directory.clone(),
            shared: self.shared.clone(),
            gateway: self.lab.balancers[0].gateway_mac,
            seed,
            clsact: false,
            group: self.group.as_ref().map(|group| group.path().to_owned()),
            task,
        }
    }

    fn start(&self, seed: u64, task: Task) -> Owner {
        Owner::start(&self.lab.balancers[0].host, &self.job(seed, task))
    }

    /// An owner restores the start of every run, and ends. Returns what it found, and what it left.
    fn begin(&self) -> (Owned, Left) {
        let mut owner = self.start(0, Task::Begin);
        let found = owner.owns();
        let begun = owner.begins();
        assert!(owner.ended().success());
        let left = Left {
            descriptors: begun.descriptors,
            pins: begun.pins,
            memory: self.group.as_ref().map(Group::in_use),
        };
        (found, left)
    }

    /// Frames by who counts them: sent by clients, counted by the balancer for the services, and
    /// unwrapped by backends.
    fn frames(&self) -> [u64; 3] {
        let job = self.job(0, Task::Begin);
        let katran = self.lab.balancers[0].host.run(|| builder(&job).adopt());
        let katran = katran.unwrap();
        let of = |vip: Vip| katran.stats().vip(vip).unwrap().forwarded.packets;
        let counted = SERVICES.iter().map(|(service, _)| of(vip(service))).sum();
        let taken_out = self.decaps.iter().map(|decap| {
            let of = decap.counters().unwrap();
            of.ipip_v4 + of.ipip_v6
        });
        [traffic::sent(&self.lab.client), counted, taken_out.sum()]
    }
}

/// What an owner leaves in the same state.
#[derive(Debug)]
struct Left {
    descriptors: usize,
    pins: usize,
    memory: Option<u64>,
}

/// Kills this many times under traffic.
fn killed(times: usize) {
    let place = Place::new();
    let lab = &place.lab;
    let _tcp = lab.serve_tcp(PORT).unwrap();
    let _udp = lab.serve_udp(PORT).unwrap();
    let (seed, mut rng) = seeded();
    // The root program's pins.
    let files = place.directory.parent().unwrap();
    let others = names(files);
    let (_, before) = place.begin();
    let lost_before = traffic::lost(lab);
    let frames_before = place.frames();

    let (answers, stop) = (Answers::default(), AtomicBool::new(false));
    let (mut made, mut cut_off, mut finished, mut slowest) = (0, 0, 0, 0);
    let began = Instant::now();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        traffic::serve(scope, lab, &answers, &stop);
        let mut known: Option<Known> = None;
        let mut counted: Vec<(String, u64)> = Vec::new();
        for kill in 0..=times {
            let what = format!("kill {kill}");
            let task = match kill == times {
                true => Task::Begin,
                false => Task::Anything,
            };
            let mut owner = place.start(rng.u64(..), task);
            let owned = owner.owns();
            assert!(owned.adopted, "{what}");
            if let Some(known) = &known {
                finished += usize::from(known.assert_found(&owned.text, &what));
            }
            Known::assert_counted(&counted, &owned.counters, &what);
            counted = owned.counters.clone();
            slowest = slowest.max(owned.milliseconds);
            if kill == times {
                assert!(owner.ended().success());
                break;
            }
            let mut now = Known::new(&owned);
            // The changes begin.
            owner.begins();
            let longest = match kill % 5 {
                4 => LONG_LIFE,
                _ => LONGEST_LIFE,
            };
            thread::sleep(Duration::from_millis(rng.u64(0..longest)));
            owner.kill();
            while let Some(said) = owner.next() {
                now.hear(said);
            }
            made += now.made;
            cut_off += usize::from(now.tried.is_some());
            known = Some(now);
            // Leave it without an owner for a while.
            if kill % 4 == 0 {
                thread::sleep(Duration::from_millis(rng.u64(0..100)));
            }
        }
        let served = answers.all();
        eventually("clients are served on", || answers.are_more(served, 10));
    });
    let took = began.elapsed();
    let [lasting, new, datagrams] = answers.all();
    eprintln!(
        "{times} kills in {:.0} s ({made} changes made, {cut_off} cut off, {finished} of these found whole), adopted within \
         {slowest} ms; {} lasting connections and {new} new ones, {lasting} answers, {datagrams} datagrams",
        took.as_secs_f64(),
        2 * LASTING,
    );
    // Most kills interrupt a change.
    assert!(cut_off > times / 2, "{cut_off}");
    let frames = || {
        let now = place.frames();
        [0, 1, 2].map(|who| now[who] - frames_before[who])
    };
    assert_eq!(
        traffic::lost(lab),
        lost_before,
        "frames that interfaces have lost"
    );
    // The last frames are on their way.
    let end = Instant::now() + LAST_FRAMES;
    let mut last = frames();
    while last != [last[0]; 3] && Instant::now() < end {
        last = frames();
    }
    assert_eq!(last, [last[0]; 3], "sent, counted, and taken out");
    assert!(last[0] > lasting + new + datagrams, "{last:?}");

    let (_, after) = place.begin();
    eprintln!("{before:?}, then {after:?}");
    assert!(after.descriptors <= before.descriptors);
    assert!(after.pins <= before.pins);
    if let (Some(before), Some(group)) = (before.memory, &place.group) {
        // The kernel frees maps a while after their last holder is gone.
        eventually("memory is freed", || {
            group.in_use() <= before + ACCOUNTED_MORE
        });
    }
    katran::remove(&place.directory).unwrap();
    assert!(!place.directory.exists());
    assert!(!has_xdp(&lab.balancers[0].host), "something is attached");
    assert_eq!(names(files), others);
    drop(seed);
}

fn has_xdp(host: &Host) -> bool {
    host.ip("link show").unwrap().contains("xdp")
}

/// The entries of a directory; the file system's own entries have dots.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.contains('.')).collect()
}

#[test]
fn connections_outlive_kills_at_any_moment() {
    killed(40);
}

#[test]
#[ignore = "make soak"]
fn connections_outlive_200_kills() {
    killed(200);
}
