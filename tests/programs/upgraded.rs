//! A pinned balancer goes from one build of its program to another and back: by restart and by
//! handover, with the same document and with other sizes and features. Clients are served
//! throughout: no connection and no frame is lost, connections of a drained real stay there, and
//! the link stays the same.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Decap;
use katran::XdpMode;
use katran::diagnosis::PinnedOwner;
use katran_lab::Lab;
use katran_lab::StopOnDrop;
use katran_lab::eventually;

use crate::examples::configuration;
use crate::next_build::Next;
use crate::objects;
use crate::place::Place;
use crate::place::pins;
use crate::program::Running;
use crate::program::example;
use crate::taken_over::ends;
use crate::traffic;
use crate::traffic::Answers;
use crate::traffic::LASTING;
use crate::traffic::PORT;

const SIGHUP: i32 = 1;
const SIGTERM: i32 = 15;
/// How long connections may take to close.
const LAST_FRAMES: Duration = Duration::from_secs(20);

/// How the balancer gets to the next process.
#[derive(Clone, Copy, Debug)]
enum How {
    /// The old process gets the signal to end.
    Stopped,
    Killed,
    /// The old process hands over when the next one asks.
    HandsOver,
}

/// Which build the program is, or which document it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Present,
    Next,
}

/// There and back in every way: how, to which build, with which document.
const STEPS: [(How, Of, Of); 7] = [
    (How::Stopped, Of::Next, Of::Present),
    (How::Killed, Of::Present, Of::Present),
    (How::HandsOver, Of::Next, Of::Next),
    (How::HandsOver, Of::Present, Of::Present),
    (How::Stopped, Of::Next, Of::Next),
    (How::Killed, Of::Present, Of::Present),
    (How::Killed, Of::Next, Of::Next),
];

#[test]
fn nothing_is_lost_to_a_build_with_other_programs_and_back() {
    upgraded(Next::Program);
}

#[test]
fn nothing_is_lost_to_a_build_with_another_layout_and_back() {
    upgraded(Next::Layout);
}

/// Services with both backends, one of which may be drained.
fn document(lab: &Lab, of: Of, drained: Option<&str>) -> String {
    let settings = match of {
        Of::Present => "max_vips = 16\nmax_reals = 64\nflow_table_size = 10_000",
        Of::Next => {
            "max_vips = 77\nmax_reals = 99\nflow_table_size = 17_000\n\
             features = [\"source-routing\", \"global-flow-table\"]"
        }
    };
    let usual = configuration(lab, 0);
    let (balancer, _) = usual.split_once("[[vip]]").unwrap();
    let mut text = balancer.replace("flow_table_size = 10_000", settings);
    assert_ne!(text, balancer);
    for (vip, protocol) in [
        (lab.vip4(), "tcp"),
        (lab.vip6(), "tcp"),
        (lab.vip4(), "udp"),
    ] {
        let real = |backend: &katran_lab::Backend| {
            let address: IpAddr = match vip {
                IpAddr::V4(_) => backend.v4.into(),
                IpAddr::V6(_) => backend.v6.into(),
            };
            let weight = u32::from(drained != Some(backend.host.name()));
            format!("{{ address = \"{address}\", weight = {weight} }}")
        };
        let reals: Vec<_> = lab.backends.iter().map(real).collect();
        text += &format!(
            "[[vip]]\naddress = \"{vip}\"\nport = {PORT}\nprotocol = \"{protocol}\"\nreals = [{}]\n",
            reals.join(", ")
        );
    }
    text
}

fn decaps(lab: &Lab) -> Vec<Decap> {
    let decaps = lab.backends.iter().map(|backend| {
        let mut decap = Decap::builder().load().unwrap();
        let attach = || decap.attach(&backend.interface, XdpMode::Native).unwrap();
        backend.host.run(attach);
        decap
    });
    decaps.collect()
}

fn taken_out(decaps: &[Decap]) -> u64 {
    let of = decaps.iter().map(|decap| decap.counters().unwrap());
    of.map(|of| of.ipip_v4 + of.ipip_v6).sum()
}

/// The ids of the only pinned link and of its program.
fn link(place: &Place) -> (u32, u32) {
    let attached = place.directory.join("attached");
    let [name] = &pins(&attached)[..] else {
        panic!("{:?}", pins(&attached));
    };
    objects::link(objects::open(&attached.join(name)).as_fd())
}

/// The total packets since the first load, from each line that a balancer prints every second.
fn packets(lines: &[String]) -> Vec<u64> {
    let numbers = lines.iter().filter_map(|line| {
        let numbers: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
        numbers.ok()?.first().copied()
    });
    numbers.map(|number| number as u64).collect()
}

/// Packets by VIP, as printed at its end.
fn packets_of_vips(lines: &[String]) -> BTreeMap<String, u64> {
    let of_vip = lines.iter().filter_map(|line| {
        let (vip, rest) = line.split_once(char::is_whitespace)?;
        let is_vip = vip.ends_with("/tcp") || vip.ends_with("/udp");
        let packets = rest.split_whitespace().next()?.parse().ok()?;
        is_vip.then(|| (vip.to_owned(), packets))
    });
    of_vip.collect()
}

/// What the processes have counted.
#[derive(Default)]
struct Counted {
    all: u64,
    of_vips: BTreeMap<String, u64>,
}

impl Counted {
    /// Checks that a process's counters continue its predecessors', and that it reports no fault.
    fn go_on(&mut self, lines: &[String]) {
        for all in packets(lines) {
            assert!(all >= self.all, "{} to {all}", self.all);
            self.all = all;
        }
        for (vip, packets) in packets_of_vips(lines) {
            let before = self.of_vips.insert(vip.clone(), packets);
            assert!(Some(packets) >= before, "{vip}: {before:?} to {packets}");
        }
        let complaint = |line: &&String| line.contains(" WARN ") || line.contains(" ERROR ");
        assert_eq!(lines.iter().find(complaint), None);
    }
}

/// Runs `f`; returns the longest time for which the balancer in a directory had no owner meanwhile.
fn watched<T>(directory: &Path, f: impl FnOnce() -> T) -> (T, Duration) {
    let stop = AtomicBool::new(false);
    let watch = || {
        // Counts from one look without an owner to the last such look: this thread may have to
        // wait for a CPU.
        let (mut longest, mut first) = (Duration::ZERO, None);
        while !stop.load(Relaxed) {
            let looked = Instant::now();
            match katran::pinned(directory).unwrap().owner {
                PinnedOwner::Nobody => {
                    let first = *first.get_or_insert_with(Instant::now);
                    longest = longest.max(looked.saturating_duration_since(first));
                }
                _ => first = None,
            }
            thread::sleep(Duration::from_millis(1));
        }
        longest
    };
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let watching = scope.spawn(watch);
        let done = f();
        stop.store(true, Relaxed);
        (done, watching.join().unwrap())
    })
}

/// Checks the owner and its version, as an operator would.
fn is_owned_by(place: &Place, name: &str, process: u32, version: &str) {
    let mut command = example(name);
    command.args(["status", "--pin"]).arg(&place.directory);
    let output = place.host().output(command).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let owner = format!("owner: process {process}; katran {version} ");
    assert!(text.contains(&owner), "{text}");
}

fn upgraded(next: Next) {
    let name = next.example();
    let place = Place::new(&format!("{name}.toml"));
    let lab = &place.lab;
    let decaps = decaps(lab);
    let _servers = (lab.serve_tcp(PORT).unwrap(), lab.serve_udp(PORT).unwrap());
    place.file.write(&document(lab, Of::Present, None));
    let mut balancer = place.start(&[]);
    let (link_id, mut program) = link(&place);
    let (sent_before, lost_before) = (traffic::sent(&lab.client), traffic::lost(lab));
    let (answers, stop) = (Answers::default(), AtomicBool::new(false));
    let mut counted = Counted::default();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        traffic::serve(scope, lab, &answers, &stop);
        eventually("all connections are there", || {
            answers.homes().values().sum::<usize>() == 2 * LASTING
        });
        // The real with the most connections is drained.
        let homes = answers.homes();
        let drained = homes.iter().max_by_key(|(_, number)| **number);
        let drained = drained.unwrap().0.as_str();
        place.file.write(&document(lab, Of::Present, Some(drained)));
        balancer.process.signal(SIGHUP).unwrap();
        balancer.says("has another weight");

        let mut made_by = env!("CARGO_PKG_VERSION");
        let mut in_force = Of::Present;
        for (how, program_of, document_of) in STEPS {
            let what = format!("{how:?}, {program_of:?}, {document_of:?}");
            let began = Instant::now();
            place.file.write(&document(lab, document_of, Some(drained)));
            let (name, version) = match program_of {
                Of::Present => ("katran", env!("CARGO_PKG_VERSION")),
                Of::Next => (name, next.version()),
            };
            let start = |options: &[&str]| {
                let mut next = Running::start(
                    place.host(),
                    place.command(name, &[&["--counters"], options].concat()),
                );
                let said = next.says("continuing with the balancer in");
                assert!(said.ends_with(&format!(" {made_by}")), "{what}: {said}");
                next.says("balancing on eth0 in native mode");
                next
            };
            let after = match how {
                How::HandsOver => {
                    let (after, longest) = watched(&place.directory, || start(&["--take-over"]));
                    assert!(longest < Duration::from_secs(1), "{what}: {longest:?}");
                    ends(&mut balancer, &after);
                    after
                }
                How::Stopped => {
                    balancer.end(SIGTERM);
                    start(&[])
                }
                How::Killed => {
                    balancer.process.kill().unwrap();
                    start(&[])
                }
            };
            let before = mem::replace(&mut balancer, after);
            counted.go_on(&before.said());
            if document_of != in_force || next == Next::Layout {
                made_by = version;
                in_force = document_of;
            }
            // The same link has another program.
            let (id, other) = link(&place);
            assert_eq!(id, link_id, "{what}");
            assert_ne!(other, program, "{what}");
            program = other;
            is_owned_by(&place, name, balancer.process.id(), version);
            let served = answers.all();
            eventually(format!("{what}: clients are served on"), || {
                answers.are_more(served, 50)
            });
            eprintln!("{what}: {:.1} s", began.elapsed().as_secs_f64());
        }
        stop.store(true, Relaxed);
        // All of them, so none was lost.
        assert_eq!(answers.homes(), homes);
    });
    assert_eq!(
        traffic::lost(lab),
        lost_before,
        "frames that interfaces have lost"
    );
    // The last frames are on their way: acknowledgements of closed connections, too.
    eventually("all connections are closed", || traffic::are_closed(lab));
    let sent = || traffic::sent(&lab.client) - sent_before;
    let last = Instant::now() + LAST_FRAMES;
    while sent() != taken_out(&decaps) && Instant::now() < last {
        thread::sleep(Duration::from_millis(50));
    }
    balancer.end(SIGTERM);
    counted.go_on(&balancer.said());
    let of_vips = counted.of_vips.values().sum::<u64>();
    let frames = [sent(), of_vips, taken_out(&decaps)];
    assert_eq!(frames, [frames[0]; 3], "sent, counted, and taken out");
    let served = answers.all();
    eprintln!("{served:?} answers, {} frames", frames[0]);
    assert!(frames[0] > served.iter().sum());
    place.remove();
}
