//! Probes of the reals: each real of each VIP, through the tunnel and addressed to the VIP, as clients reach it.
//!
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
//! they answer.

pub(crate) mod board;
pub(crate) mod check;
mod probe;
mod schedule;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::sync::mpsc::Sender;
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
use katran::Katran;
use katran::State;
use katran::Vip;
use probe::Outcome;
use probe::Question;
use probe::probe;
use schedule::Job;
use schedule::Schedule;
use tokio::runtime;
use tokio::runtime::Runtime;

use crate::common::say;
use crate::run::Message;

/// Probes that are on their way at once: each has a descriptor, of which a process usually gets
/// 1024.
const MAX_ON_THEIR_WAY: usize = 512;

/// A probe that has ended.
pub(crate) struct Probed {
    job: Job,
    /// Where it went to, and how many packets had gone there through the tunnel before.
    to: Vip,
    before: u64,
    outcome: Outcome,
}

/// Whether and how reals are probed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Probes")]
#[group(id = "probes")]
pub(crate) struct Options {
    /// Probe the reals through the tunnel, and send flows only to those that answer
    #[arg(long)]
    probe: bool,
    /// Probe, and ask a VIP's reals so, as in 203.0.113.1:53/udp=tcp:53; may be given several times
    #[arg(long, value_name = "VIP=none|tcp|tcp:PORT|http:PATH|udp")]
    check: Vec<OfVip>,
    /// Probe, and ask for a page, as in 203.0.113.1:80/tcp=/health; may be given several times
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

impl Options {
    pub(crate) fn are_on(&self) -> bool {
        self.probe || !self.check.is_empty() || !self.http.is_empty()
    }

    /// What is known of reals before any is probed.
    pub(crate) fn board(&self) -> Board {
        let thresholds = Thresholds {
            rise: self.rise,
            fall: self.fall,
        };
        Board::new(thresholds, self.first_mark)
    }
}

/// What probes the reals of a balancer.
pub(crate) struct Prober {
    options: Options,
    checks: Checks,
    runtime: Runtime,
    sender: Sender<Message>,
    schedule: Schedule,
    /// VIPs whose probes do not go through the tunnel.
    silent: BTreeSet<Vip>,
}

impl Prober {
    /// One that does not probe yet.
    pub(crate) fn new(options: &Options, wanted: &State, sender: Sender<Message>) -> Result<Self> {
        let checks = Checks::new(options.check.iter().chain(&options.http))?;
        if let Some(vip) = checks.unknown(wanted).first() {
            anyhow::bail!("{vip} has a check and is not in the file: correct one of them");
        }
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the threads that probe")?;
        Ok(Self {
            options: options.clone(),
            checks,
            runtime,
            sender,
            schedule: Schedule::new(options.interval, MAX_ON_THEIR_WAY),
            silent: BTreeSet::new(),
        })
    }

    pub(crate) fn checks(&self) -> &Checks {
        &self.checks
    }

    /// When there is something to do; `None`: when a probe has ended.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.schedule.wake()
    }

    /// Probes that are on their way need no end.
    pub(crate) fn end(self) {
        self.runtime.shutdown_background();
    }

    /// Probes what is in force.
    pub(crate) fn follow(&mut self, board: &Board) {
        let targets = board.targets();
        self.schedule.follow(&targets, Instant::now());
        let probed = |vip: &Vip| targets.iter().any(|target| target.vip == *vip);
        self.silent.retain(probed);
        for of_vip in board.vips() {
            let vip = of_vip.vip;
            let check = self.checks.of(vip);
            if check == Check::None || check.destination(vip).is_some() {
                continue;
            }
            for real in &of_vip.reals {
                let real = real.address();
                say(format!(
                    "{vip}: real {real} is not probed: any port, or a prefix"
                ));
            }
        }
    }

    /// Sends the probes that are due.
    pub(crate) fn send_due(&mut self, katran: &Katran) {
        while let Some(job) = self.schedule.next(Instant::now()) {
            let Target { vip, mark, .. } = job.target;
            let check = self.checks.of(vip);
            // Only what has a destination is a target.
            let to = check.destination(vip).unwrap_or(vip);
            let before = katran.probes().counter(to).unwrap_or(0);
            let question = Question {
                to,
                mark,
                check,
                status: self.options.status,
            };
            let probing = probe(question, self.options.timeout);
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

    /// Takes the result of a probe, if it is one: it must have gone through the tunnel. Returns whether the balancer is to be
    /// told something else now.
    pub(crate) fn record(&mut self, probed: &Probed, katran: &Katran, board: &mut Board) -> bool {
        if !self.schedule.finished(&probed.job, Instant::now()) {
            return false;
        }
        let Target { vip, real, .. } = probed.job.target;
        if let Some(why) = why_not_tunnelled(probed, katran) {
            if self.silent.insert(vip) {
                say(format!(
                    "{vip}: probes do not go through the tunnel, so their results count for nothing: {why}"
                ));
            }
            return false;
        }
        if self.silent.remove(&vip) {
            say(format!("{vip}: probes go through the tunnel again"));
        }
        let failure = match &probed.outcome {
            Outcome::Failed(failure) => Some(failure.as_str()),
            _ => None,
        };
        let notices = board.record(vip, real, failure.is_none());
        notices.iter().for_each(|notice| show(notice, failure));
        notices.iter().any(Notice::is_of_state)
    }
}

/// Why a probe says nothing of the real that it was for. All probes of a VIP go the same way,
/// so it does not matter which of them a packet was that was counted meanwhile.
fn why_not_tunnelled(probed: &Probed, katran: &Katran) -> Option<String> {
    if let Outcome::NotSent(error) = &probed.outcome {
        return Some(error.clone());
    }
    match katran.probes().counter(probed.to) {
        Ok(now) if now != probed.before => return None,
        Ok(_) => {}
        Err(error) => return Some(error.to_string()),
    }
    if is_own(probed.to) {
        return Some("the VIP is an address of this host: remove it here".to_owned());
    }
    let attachment = katran.probes().attachment();
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

pub(crate) fn show(notice: &Notice, failure: Option<&str>) {
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
