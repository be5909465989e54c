//! A load balancer that probes its reals: each real of each VIP, through the tunnel and addressed to the
//! VIP, as clients reach it; and that sends flows only to those that answer.
//!
//! ```text
//! healthcheck --config lb.toml --interface eth0 [--check VIP=CHECK]... [--http VIP=PATH]...
//!             [--status 200] [--interval 2] [--timeout 1] [--rise 2] [--fall 3] [--first-mark N]
//! ```
//! TCP services are asked for a connection, UDP services to echo a datagram. By `--check`, a VIP's reals are
//! asked for something else: `203.0.113.1:53/udp=tcp:53` for a connection to another port, `...=tcp`,
//! `...=udp`, `...=http:/health` for a page with a status (`--http 203.0.113.1:80/tcp=/health` is short for
//! that), or `...=none` for nothing. The file needs `source_v4`, `source_v6` or both, by the
//! families of the reals: probes come from them.
//!
//! A real that does not answer, while another one of the VIP's does, is marked down: it gets no new
//! flows, and those that it has leave it with their next packets. It is up again when it answers.
//! Weights are the file's all the time, so one that the file drains stays drained. If none answers,
//! those in use stay so: then it is more likely the checker that is cut off. A probe that does not go
//! through the tunnel counts for nothing. With `--pin` reals that are down stay so when the program is started again, until
//! they answer. SIGHUP reads the file again, SIGUSR1 prints a diagnosis.

#[path = "../common/mod.rs"]
mod common;

mod board;
mod check;
mod probe;
mod schedule;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use board::Board;
use board::Notice;
use board::Target;
use board::Thresholds;
use check::Check;
use check::Checks;
use check::OfVip;
use clap::Parser;
use common::Keeper;
use common::Options;
use common::ROUND;
use common::say;
use common::with_causes;
use katran::Katran;
use katran::State;
use katran::Vip;
use probe::Outcome;
use probe::Question;
use probe::probe;
use schedule::Job;
use schedule::Schedule;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use tokio::runtime;
use tokio::runtime::Runtime;

/// Probes that are on their way at once: each has a descriptor, of which a process usually gets
/// 1024.
const MAX_ON_THEIR_WAY: usize = 512;
/// Between two attempts to apply what the kernel has refused.
const RETRY: Duration = Duration::from_secs(1);

/// Balances, and probes the reals through the tunnel.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// What to ask a VIP's reals, as in 203.0.113.1:53/udp=tcp:53; may be given several times
    #[arg(long, value_name = "VIP=none|tcp|tcp:PORT|http:PATH|udp")]
    check: Vec<OfVip>,
    /// Ask for a page, as in 203.0.113.1:80/tcp=/health; may be given several times
    #[arg(long, value_name = "VIP=PATH", value_parser = check::page)]
    http: Vec<OfVip>,
    /// The status that pages must have
    #[arg(long, default_value_t = 200)]
    status: u16,
    /// Seconds between two probes of a real, more or less a tenth
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    interval: Duration,
    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    timeout: Duration,
    /// Answers in a row that bring a real back
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rise: u32,
    /// Failures in a row that take it out
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    fall: u32,
    /// The first of the socket marks that probes have: as many as there are reals, and none of the
    /// file's
    #[arg(long, value_name = "MARK", default_value_t = 0x6b00_0000,
          value_parser = clap::value_parser!(u32).range(1..))]
    first_mark: u32,
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse()?;
    anyhow::ensure!((0.01..=3600.0).contains(&seconds), "0.01 to 3600 seconds");
    Ok(Duration::from_secs_f64(seconds))
}

/// What the main loop is told.
enum Message {
    Signal(i32),
    Probed(Probed),
}

/// A probe that has ended.
struct Probed {
    job: Job,
    /// Where it went to, and how many packets had gone there through the tunnel before.
    to: Vip,
    before: u64,
    outcome: Outcome,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    if let Some(done) = arguments.options.without_balancing() {
        return common::exit("healthcheck", done);
    }
    common::exit("healthcheck", run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let checks = Checks::new(arguments.check.iter().chain(&arguments.http))?;
    let (sender, messages) = mpsc::channel();
    forward(common::signals()?, sender.clone());
    let wanted = read(arguments)?;
    if let Some(vip) = checks.unknown(&wanted).first() {
        anyhow::bail!("{vip} has a check and is not in the file: correct one of them");
    }
    let thresholds = Thresholds {
        rise: arguments.rise,
        fall: arguments.fall,
    };
    let mut board = Board::new(thresholds, arguments.first_mark);
    let destinations = checks.destinations(&wanted);
    let mut notices = board.set_wanted(wanted, destinations);
    let settings = board.state();
    let katran = arguments.options.start_by(&settings, |katran| {
        notices.extend(board.go_on(&katran.state()));
        board.state()
    })?;
    notices.iter().for_each(|notice| show(notice, None));
    let mut checker = Checker {
        arguments,
        checks,
        runtime: runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the threads that probe")?,
        sender,
        schedule: Schedule::new(arguments.interval, MAX_ON_THEIR_WAY),
        katran,
        board,
        silent: BTreeSet::new(),
        retry: None,
    };
    checker.follow();
    checker.work(&messages)?;
    let Checker {
        runtime,
        mut katran,
        ..
    } = checker;
    // Probes that are on their way need no end.
    runtime.shutdown_background();
    let counters = katran.probes().counters()?;
    say(format!(
        "{} packets of probes sent, {} dropped",
        counters.processed, counters.dropped
    ));
    arguments.options.stop(&mut katran);
    Ok(())
}

/// What the file says, with an interface for probes.
fn read(arguments: &Arguments) -> Result<State> {
    let mut state = arguments.options.state()?;
    let of_probes = &mut state.balancer.get_or_insert_default().healthcheck_interface;
    if of_probes.is_none() {
        *of_probes = arguments.options.interface.first().cloned();
    }
    anyhow::ensure!(
        of_probes.is_some(),
        "probes have no interface to leave by: set healthcheck_interface in [balancer], as --shared names none"
    );
    Ok(state)
}

/// The balancer, and what is known of its reals.
struct Checker<'a> {
    arguments: &'a Arguments,
    checks: Checks,
    runtime: Runtime,
    sender: Sender<Message>,
    schedule: Schedule,
    katran: Katran,
    board: Board,
    /// VIPs whose probes do not go through the tunnel.
    silent: BTreeSet<Vip>,
    /// When to apply again what was refused, and with which words it was.
    retry: Option<(Instant, String)>,
}

impl Checker<'_> {
    /// Probes and follows what comes of it, until a signal ends that.
    fn work(&mut self, messages: &Receiver<Message>) -> Result<()> {
        let mut keeper = Keeper::new();
        loop {
            self.send_due();
            keeper.keep(&mut self.katran)?;
            let retry = self.retry.as_ref().map(|(when, _)| *when);
            let wake = [self.schedule.wake(), retry].into_iter().flatten().min();
            let now = Instant::now();
            let wait = wake.map_or(ROUND, |wake| wake.saturating_duration_since(now));
            match messages.recv_timeout(wait.min(ROUND)) {
                Ok(Message::Signal(SIGHUP)) => {
                    if let Err(error) = self.reload() {
                        eprintln!(
                            "{}\nnothing was changed: the old configuration stays in force",
                            with_causes(&error)
                        );
                    }
                }
                Ok(Message::Signal(SIGINT | SIGTERM)) => return Ok(()),
                Ok(Message::Signal(_)) => self.arguments.options.report_diagnosis(&self.katran),
                Ok(Message::Probed(probed)) => self.record(probed),
                Err(RecvTimeoutError::Timeout) => {}
                // Not while there is a sender in `self`.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if retry.is_some_and(|when| when <= Instant::now()) {
                self.apply();
            }
        }
    }

    /// Reads the file again. If it cannot be in force, all stays as it is.
    fn reload(&mut self) -> Result<()> {
        let wanted = read(self.arguments)?;
        for vip in self.checks.unknown(&wanted) {
            say(format!("{vip} has a check and is not in the file any more"));
        }
        let mut board = self.board.clone();
        let destinations = self.checks.destinations(&wanted);
        let notices = board.set_wanted(wanted, destinations);
        let changes = self.katran.apply(&board.state())?;
        say(format!("applied: {changes}"));
        self.board = board;
        self.retry = None;
        notices.iter().for_each(|notice| show(notice, None));
        self.follow();
        Ok(())
    }

    /// Probes what is in force.
    fn follow(&mut self) {
        let targets = self.board.targets();
        self.schedule.follow(&targets, Instant::now());
        let probed = |vip: &Vip| targets.iter().any(|target| target.vip == *vip);
        self.silent.retain(probed);
        for of_vip in self.board.state().vips {
            let vip = of_vip.vip;
            let check = self.checks.of(vip);
            if check == Check::None || check.destination(vip).is_some() {
                continue;
            }
            for real in of_vip.reals {
                let real = real.address();
                say(format!(
                    "{vip}: real {real} is not probed: any port, or a prefix"
                ));
            }
        }
    }

    /// Sends the probes that are due.
    fn send_due(&mut self) {
        while let Some(job) = self.schedule.next(Instant::now()) {
            let Target { vip, mark, .. } = job.target;
            let check = self.checks.of(vip);
            // Only what has a destination is a target.
            let to = check.destination(vip).unwrap_or(vip);
            let before = self.katran.probes().counter(to).unwrap_or(0);
            let question = Question {
                to,
                mark,
                check,
                status: self.arguments.status,
            };
            let probing = probe(question, self.arguments.timeout);
            let sender = self.sender.clone();
            self.runtime.spawn(async move {
                let outcome = probing.await;
                // Nobody is left to be told when the program ends.
                let _ = sender.send(Message::Probed(Probed {
                    job,
                    to,
                    before,
                    outcome,
                }));
            });
        }
    }

    /// Takes the result of a probe, if it is one: it must have gone through the tunnel.
    fn record(&mut self, probed: Probed) {
        if !self.schedule.finished(&probed.job, Instant::now()) {
            return;
        }
        let Target { vip, real, .. } = probed.job.target;
        if let Some(why) = self.why_not_tunnelled(&probed) {
            if self.silent.insert(vip) {
                say(format!(
                    "{vip}: probes do not go through the tunnel, so their results count for nothing: {why}"
                ));
            }
            return;
        }
        if self.silent.remove(&vip) {
            say(format!("{vip}: probes go through the tunnel again"));
        }
        let failure = match &probed.outcome {
            Outcome::Failed(failure) => Some(failure.as_str()),
            _ => None,
        };
        let notices = self.board.record(vip, real, failure.is_none());
        notices.iter().for_each(|notice| show(notice, failure));
        if notices.iter().any(Notice::is_of_state) {
            self.apply();
        }
    }

    /// Why a probe says nothing of the real that it was for. All probes of a VIP go the same way,
    /// so it does not matter which of them a packet was that was counted meanwhile.
    fn why_not_tunnelled(&self, probed: &Probed) -> Option<String> {
        if let Outcome::NotSent(error) = &probed.outcome {
            return Some(error.clone());
        }
        match self.katran.probes().counter(probed.to) {
            Ok(now) if now != probed.before => return None,
            Ok(_) => {}
            Err(error) => return Some(error.to_string()),
        }
        if is_own(probed.to) {
            return Some("the VIP is an address of this host: remove it here".to_owned());
        }
        let attachment = self.katran.probes().attachment();
        let interface = attachment.map_or(String::new(), |attachment| attachment.interface);
        let found = match &probed.outcome {
            Outcome::Failed(failure) => format!(" ({failure})"),
            _ => String::new(),
        };
        Some(format!(
            "no packet left by {interface}{found}: the route to the VIP must lead there, and the next hop be \
             known"
        ))
    }

    /// Applies what probes have found.
    fn apply(&mut self) {
        match self.katran.apply(&self.board.state()) {
            Ok(changes) => {
                self.retry = None;
                if !changes.is_empty() {
                    say(format!("applied: {changes}"));
                }
            }
            // Packets flow as before.
            Err(error) => {
                let text = error.to_string();
                if self.retry.as_ref().is_none_or(|(_, known)| *known != text) {
                    eprintln!("{text}: it is tried again");
                }
                self.retry = Some((Instant::now() + RETRY, text));
            }
        }
    }
}

fn show(notice: &Notice, failure: Option<&str>) {
    say(match notice {
        Notice::Changed {
            vip,
            real,
            up: true,
        } => format!("{vip}: real {real} is up"),
        Notice::Changed { vip, real, .. } => {
            let failure = failure.unwrap_or("no answer");
            format!("{vip}: real {real} is down: {failure}")
        }
        Notice::Out { vip, real } => {
            format!("{vip}: real {real} gets no flows, as others answer")
        }
        Notice::Kept { vip } => {
            format!("{vip}: no real answers: those in use stay so")
        }
        Notice::Recovered { vip } => format!("{vip}: reals answer again"),
    });
}

/// Whether packets to an address stay on this host.
fn is_own(to: Vip) -> bool {
    let to = SocketAddr::from((to.address(), to.port()));
    let any = match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    // No packet is sent: the kernel chooses the source that it would have.
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(to)?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == to.ip())
}

fn forward(signals: Receiver<i32>, sender: Sender<Message>) {
    thread::spawn(move || {
        for signal in signals {
            if sender.send(Message::Signal(signal)).is_err() {
                return;
            }
        }
    });
}
