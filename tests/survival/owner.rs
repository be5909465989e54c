//! A process that owns a pinned balancer and changes it: this test binary, run again. Line by line,
//! its standard output announces what it will do, has done, and has found, so that the test that
//! kills it knows what must be there.

use std::env;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use fastrand::Rng;
use katran::Builder;
use katran::Flow;
use katran::FlowTracking;
use katran::Katran;
use katran::MacAddr;
use katran::Protocol;
use katran::Start;
use katran::XdpMode;
use katran::attachments::TcHook;
use katran_lab::Host;
use katran_lab::Process;
use serde::Deserialize;
use serde::Serialize;

use crate::changes;
use crate::changes::BACK;
use crate::changes::Draw;
use crate::common::frames::frame;
use crate::common::frames::syn;
use crate::common::layout::relay;
use crate::ending;
use crate::ending::Done;
use crate::met::meet;
use crate::model::Model;
use crate::model::difference;
use crate::model::first;
use crate::model::is_service;

/// The variable with such a process's job.
const JOB: &str = "KATRAN_SURVIVAL_JOB";
/// The prefix of its lines; the test harness prints some, too.
const MARK: &str = "@survival ";
/// How long to wait for a line on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) directory: PathBuf,
    pub(crate) shared: PathBuf,
    pub(crate) gateway: [u8; 6],
    pub(crate) seed: u64,
    /// Probes leave by a clsact filter, even where tcx links are available.
    pub(crate) clsact: bool,
    /// The memory cgroup to join.
    pub(crate) group: Option<PathBuf>,
    pub(crate) task: Task,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Restores the start of every run, and ends.
    Begin,
    /// The same, with counted packets.
    Count,
    /// Makes changes of every kind until killed.
    Anything,
    /// Makes the same change from the same start: killed after `last` calls and stores (at the
    /// latest at its end), or, with 0, not at all.
    One { kind: String, last: u64 },
    /// Adopts it with another layout in these parts, whichever of the two sets is in effect: killed
    /// as with `One`.
    Relaid { parts: Vec<usize>, last: u64 },
    /// Begins a replacement that packets use, and kills itself before it takes effect.
    Meet,
}

/// What it prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// It owns the balancer.
    Owns(Owned),
    /// It has restored the start of every run.
    Begins(Owned),
    /// It is about to make a change that leads to this state.
    Tries { kind: String, after: String },
    /// The change was made, or refused.
    Made { refused: Option<String>, done: Done },
}

/// What an owner has found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Owned {
    pub(crate) adopted: bool,
    /// See [`Model::text`].
    pub(crate) text: String,
    pub(crate) descriptors: usize,
    /// Maps and programs in the balancer's directory.
    pub(crate) pins: usize,
    /// Counters that never go back, by name.
    pub(crate) counters: Vec<(String, u64)>,
    pub(crate) milliseconds: u64,
}

/// The settings of all balancers in these tests.
pub(crate) fn builder(job: &Job) -> Builder {
    first(MacAddr::new(job.gateway))
        .builder()
        .unwrap()
        .flow_tracking(match job.task {
            // Every connection gets an entry.
            Task::Meet => FlowTracking::All,
            _ => FlowTracking::Changed,
        })
        .flow_table_size(10_000)
        .ring_size(61)
        .max_vips(40)
        .max_reals(64)
        .max_server_ids(100)
        .max_source_routes(100)
        .healthcheck_interface("eth0")
        .healthcheck_hook(match job.clsact {
            true => TcHook::Clsact,
            false => TcHook::Auto,
        })
        .pin(&job.directory)
}

#[test]
#[ignore = "a process that the other tests start"]
fn owner() {
    let Ok(job) = env::var(JOB) else {
        return;
    };
    let job: Job = serde_json::from_str(&job).unwrap();
    if let Some(group) = &job.group {
        fs::write(group.join("cgroup.procs"), "0").unwrap();
    }
    if let Task::One { .. } = job.task {
        ending::prepare();
    }
    let mut relaid = Done::default();
    if let Task::Relaid { parts, last } = &job.task {
        relay(&job.directory.join("set"), parts);
        ending::prepare();
        ending::arm(*last);
    }
    let began = Instant::now();
    let (mut katran, start) = builder(&job).adopt_or_load().unwrap();
    if let Task::Relaid { last, .. } = job.task {
        relaid = ending::disarm();
        if last > relaid.all() {
            ending::end();
        }
    }
    let owned = |katran: &Katran| {
        let took = began.elapsed();
        Owned {
            adopted: start != Start::Loaded,
            text: Model::text_of(katran, "adopted"),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            pins: files(&job.directory),
            counters: counters(katran),
            milliseconds: took.as_millis() as u64,
        }
    };
    say(&Said::Owns(owned(&katran)));
    assert_packets_see(&katran);
    match job.task.clone() {
        Task::Begin => {
            begin(&mut katran, &job);
            say(&Said::Begins(owned(&katran)));
        }
        Task::Count => {
            begin(&mut katran, &job);
            count_some(&katran);
            say(&Said::Begins(owned(&katran)));
        }
        Task::Anything => {
            begin_if_new(&mut katran, &job, &start);
            say(&Said::Begins(owned(&katran)));
            anything(katran, &job);
        }
        Task::One { kind, last } => {
            begin(&mut katran, &job);
            count_some(&katran);
            say(&Said::Begins(owned(&katran)));
            one(&mut katran, &job, &kind, last, owned);
        }
        Task::Relaid { .. } => say(&Said::Made {
            refused: None,
            done: relaid,
        }),
        Task::Meet => {
            begin(&mut katran, &job);
            say(&Said::Begins(owned(&katran)));
            meet(&mut katran, &job);
        }
    }
}

fn say(said: &Said) {
    let line = serde_json::to_string(said).unwrap();
    // The harness may have left an unfinished line.
    let line = format!("\n{MARK}{line}\n");
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

fn begin_if_new(katran: &mut Katran, job: &Job, start: &Start) {
    if *start == Start::Loaded {
        begin(katran, job);
    }
}

/// Restores the start of every run, from whatever state.
fn begin(katran: &mut Katran, job: &Job) {
    let first = first(MacAddr::new(job.gateway));
    let mut bare = first.clone();
    bare.vips.retain(|of| is_service(of.vip));
    bare.server_ids.clear();
    bare.source_routes.clear();
    let _ = katran.apply(&bare).unwrap();
    // A real that was held and then lost track of would still have its number.
    Model::text_of(katran, "nothing but services");
    let _ = katran.apply(&first).unwrap();
    // What a state leaves alone if it does not mention it.
    katran.gateways_mut().set_mac_v6(None).unwrap();
    katran.stats_mut().unwatch_misses();
    let attached = katran.interfaces();
    if attached.iter().any(|of| of.interface == "eth1") {
        katran.detach("eth1").unwrap();
    }
    if attached.iter().all(|of| of.interface != "eth0") {
        katran.attach("eth0", XdpMode::Native).unwrap();
    }
    if !katran.shared_entries().is_empty() {
        katran.detach_shared(&job.shared).unwrap();
    }
    katran.probes_mut().attach().unwrap();
}

fn anything(mut katran: Katran, job: &Job) {
    let mut rng = Rng::with_seed(job.seed);
    let mut model = Model::of(&katran);
    loop {
        let mut draw = Draw {
            rng: &mut rng,
            model: &model,
            shared: &job.shared,
        };
        let (kind, change) = changes::some(&mut draw);
        let after = change.after.text();
        say(&Said::Tries {
            kind: kind.to_owned(),
            after: after.clone(),
        });
        let made = (change.call)(&mut katran);
        let refused = made.map_err(|error| error.to_string()).err();
        if refused.is_none() {
            model = change.after;
        }
        // So that the test's own mistakes are not blamed on an adoption.
        let text = Model::text_of(&katran, kind);
        let other = difference(&text, &model.text());
        assert!(other.is_empty(), "{kind}: {refused:?}\n{other}");
        say(&Said::Made {
            refused,
            done: Done::default(),
        });
    }
}

fn one(katran: &mut Katran, job: &Job, kind: &str, last: u64, owned: impl Fn(&Katran) -> Owned) {
    let mut rng = Rng::with_seed(job.seed);
    if kind == "watch no more" {
        // This kind needs a watch first.
        let vip = katran.vips()[0];
        katran.stats_mut().watch_misses(vip).unwrap();
        say(&Said::Begins(owned(katran)));
    }
    let turned = kind.strip_suffix(BACK);
    let mut draw = |katran: &Katran| {
        let model = Model::of(katran);
        let draw = &mut Draw {
            rng: &mut rng,
            model: &model,
            shared: &job.shared,
        };
        changes::of_kind(turned.unwrap_or(kind), draw)
    };
    if turned.is_some() {
        let there = draw(katran);
        (there.call)(katran).unwrap();
        say(&Said::Begins(owned(katran)));
    }
    let change = draw(katran);
    say(&Said::Tries {
        kind: kind.to_owned(),
        after: change.after.text(),
    });
    ending::arm(last);
    let made = (change.call)(katran);
    let done = ending::disarm();
    if last > done.all() {
        // Everything is done, but no answer was given.
        ending::end();
    }
    let refused = made.map_err(|error| error.to_string()).err();
    say(&Said::Made { refused, done });
}

/// Checks that new connections of every VIP go to a real that takes some, if there is one. Clients
/// do that for the services, whose frames are counted.
fn assert_packets_see(katran: &Katran) {
    for of in katran.state().vips {
        let takes = |real: IpAddr| {
            let mut reals = of.reals.iter().filter(|real| real.get_weight() != 0);
            reals.any(|known| known.address() == real && !of.down.contains(&real))
        };
        let is_served = of.reals.iter().any(|real| takes(real.address()));
        if of.vip.protocol() == Protocol::Udp || is_service(of.vip) {
            continue;
        }
        for _ in 0..8 {
            // A new client: a recent connection would follow its entry.
            let client = u32::from(Ipv4Addr::new(100, 64, 0, 0)) | fastrand::u32(..1 << 22);
            let client: IpAddr = match of.vip.address() {
                IpAddr::V4(_) => Ipv4Addr::from(client).into(),
                IpAddr::V6(_) => Ipv6Addr::from(0x2001_0db8_000c << 80 | u128::from(client)).into(),
            };
            let to = (of.vip.address(), of.vip.port().max(1));
            let flow = Flow::tcp((client, fastrand::u16(1024..)).into(), to.into());
            let ran = katran.simulate(&syn(flow)).unwrap();
            let real = ran.real;
            let right = match real {
                Some(real) => takes(real),
                None => !is_served,
            };
            assert!(right, "{flow}: {ran:?} of {of:?}");
        }
    }
}

/// Makes every service count a packet.
fn count_some(katran: &Katran) {
    for (service, _) in crate::model::SERVICES {
        let service = crate::common::vip(service);
        let client: IpAddr = match service.address() {
            IpAddr::V4(_) => Ipv4Addr::new(100, 64, 0, 1).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 12, 0, 0, 0, 0, 1).into(),
        };
        let (client, to) = ((client, 4000), (service.address(), service.port()));
        let (client, to) = (client.into(), to.into());
        let packet = match service.protocol() {
            Protocol::Udp => frame(Flow::udp(client, to)),
            _ => syn(Flow::tcp(client, to)),
        };
        assert!(katran.simulate(&packet).unwrap().real.is_some());
    }
}

/// The files below a directory.
pub(crate) fn files(directory: &std::path::Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let count = |entry: fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => 1 + files(&entry.path()),
        false => usize::from(!entry.file_name().to_string_lossy().contains('.')),
    };
    entries.map(|entry| count(entry.unwrap())).sum()
}

fn counters(katran: &Katran) -> Vec<(String, u64)> {
    let totals = katran.stats().totals().unwrap();
    let mut counters = vec![
        ("packets".to_owned(), totals.total.packets),
        ("bytes".to_owned(), totals.total.bytes),
    ];
    for (service, _) in crate::model::SERVICES {
        // A new balancer does not have them yet.
        if let Ok(of) = katran.stats().vip(crate::common::vip(service)) {
            counters.push((service.to_owned(), of.forwarded.packets));
        }
    }
    counters
}

/// Such a process, as the test sees it.
pub(crate) struct Owner {
    process: Process,
    said: Receiver<Said>,
}

impl Owner {
    pub(crate) fn start(host: &Host, job: &Job) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.args(["owner::owner", "--exact", "--ignored", "--nocapture"]);
        command.env(JOB, serde_json::to_string(job).unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = host.spawn_command(command).unwrap();
        let out = process.take_stdout().unwrap();
        let (sender, said) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let Some(line) = line.strip_prefix(MARK) else {
                    continue;
                };
                // A truncated line does not count.
                if let Ok(said) = serde_json::from_str(line)
                    && sender.send(said).is_err()
                {
                    return;
                }
            }
        });
        Self { process, said }
    }

    /// The next message; `None`: it has ended.
    pub(crate) fn next(&self) -> Option<Said> {
        match self.said.recv_timeout(PATIENCE) {
            Ok(said) => Some(said),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it says nothing"),
        }
    }

    pub(crate) fn owns(&self) -> Owned {
        match self.next() {
            Some(Said::Owns(owned)) => owned,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn begins(&self) -> Owned {
        match self.next() {
            Some(Said::Begins(owned)) => owned,
            other => panic!("{other:?}"),
        }
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
    }

    /// Waits for its end. Success means that it ended by itself; otherwise it was killed, also by
    /// itself, or failed.
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        self.process.wait(PATIENCE).unwrap()
    }
}

/// What must be there, according to the owners.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) text: String,
    /// The change under way, and the state it leads to.
    pub(crate) tried: Option<(String, String)>,
    /// Changes made.
    pub(crate) made: usize,
}

impl Known {
    pub(crate) fn new(owned: &Owned) -> Self {
        Self {
            text: owned.text.clone(),
            tried: None,
            made: 0,
        }
    }

    /// Checks that counters have not gone back.
    pub(crate) fn assert_counted(before: &[(String, u64)], now: &[(String, u64)], what: &str) {
        for (name, number) in before {
            let of = now.iter().find(|(of, _)| of == name).unwrap();
            assert!(of.1 >= *number, "{what}: {name} {number} to {}", of.1);
        }
    }

    pub(crate) fn hear(&mut self, said: Said) {
        match said {
            Said::Tries { kind, after } => self.tried = Some((kind, after)),
            Said::Made { refused: None, .. } => {
                self.made += 1;
                self.text = self.tried.take().unwrap().1;
            }
            Said::Made { .. } => self.tried = None,
            Said::Owns(of) | Said::Begins(of) => (self.text, self.tried) = (of.text, None),
        }
    }

    /// Checks that another owner has found the state before or after the interrupted change;
    /// returns whether it was the latter.
    pub(crate) fn assert_found(&self, found: &str, what: &str) -> bool {
        if found == self.text {
            return false;
        }
        let known = difference(found, &self.text);
        let Some((kind, after)) = &self.tried else {
            panic!("{what}: found, and known\n{known}");
        };
        let tried = difference(found, after);
        assert!(
            tried.is_empty(),
            "{what}, {kind}: found, and known before it\n{known}and after it\n{tried}"
        );
        true
    }
}
