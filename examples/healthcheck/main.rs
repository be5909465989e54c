//! A load balancer that probes its reals: each real of each VIP, through the tunnel and addressed to the
//! VIP, as clients reach it; and that gives new flows only to those that answer.
//!
//! ```text
//! healthcheck --config lb.toml --interface eth0 [--http VIP=PATH]... [--status 200]
//!             [--interval 2] [--timeout 1] [--rise 2] [--fall 3]
//! ```
//! TCP services are asked for a connection, or by `--http 203.0.113.1:80/tcp=/health` for a page with a
//! status; UDP services to echo a datagram. The file needs `source_v4` and `source_v6`, the address that
//! probes come from. A real that does not answer gets the weight 0, and its own again when it does; one
//! that the file gives the weight 0 keeps it. If none of a VIP's reals answers, the last weights stay:
//! then it is more likely the checker that is cut off. SIGHUP reads the file again.

#[path = "../common/mod.rs"]
mod common;

mod board;
mod probe;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use board::Board;
use board::Notice;
use board::Target;
use board::Thresholds;
use clap::Parser;
use common::Options;
use common::say;
use common::with_causes;
use katran::Katran;
use katran::State;
use katran::Vip;
use probe::Check;
use probe::probe;
use signal_hook::consts::SIGHUP;

/// Balances, and probes the reals through the tunnel.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Ask for a page, as in 203.0.113.1:80/tcp=/health; may be given several times
    #[arg(long, value_name = "VIP=PATH")]
    http: Vec<Page>,
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
    /// The first of the socket marks that probes have: as many as there are reals
    #[arg(long, value_name = "MARK", default_value_t = 0x6b00_0000)]
    first_mark: u32,
}

/// A page of a VIP.
#[derive(Clone)]
struct Page {
    vip: Vip,
    path: String,
}

impl FromStr for Page {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (vip, path) = text.split_once('=').context("it is VIP=PATH")?;
        anyhow::ensure!(path.starts_with('/'), "a path begins with /");
        Ok(Self {
            vip: vip.parse()?,
            path: path.to_owned(),
        })
    }
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse()?;
    anyhow::ensure!((0.01..=3600.0).contains(&seconds), "0.01 to 3600 seconds");
    Ok(Duration::from_secs_f64(seconds))
}

/// What the main loop is told.
enum Message {
    Signal(i32),
    Probed {
        target: Target,
        failure: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    common::exit("healthcheck", run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let (sender, messages) = mpsc::channel();
    forward(common::signals()?, sender.clone());
    let wanted = read(arguments)?;
    let thresholds = Thresholds {
        rise: arguments.rise,
        fall: arguments.fall,
    };
    let mut board = Board::new(wanted, thresholds, arguments.first_mark);
    let mut katran = arguments.options.start_from(&board.state().0)?;
    let mut probers = Probers {
        arguments,
        sender,
        running: BTreeMap::new(),
    };
    probers.follow(&board.targets());
    for message in &messages {
        match message {
            Message::Signal(SIGHUP) => match read(arguments) {
                Ok(wanted) => {
                    board.set_wanted(wanted);
                    apply(&mut katran, &mut board);
                    probers.follow(&board.targets());
                }
                Err(error) => eprintln!("{}", with_causes(&error)),
            },
            Message::Signal(_) => break,
            Message::Probed { target, failure } => {
                let Target { vip, real, .. } = target;
                let Some(notice) = board.record(vip, real, failure.is_none()) else {
                    continue;
                };
                show(&notice, failure.as_deref());
                apply(&mut katran, &mut board);
            }
        }
    }
    drop(probers);
    let counters = katran.healthcheck_counters()?;
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
    let balancer = state.balancer.get_or_insert_default();
    if let Some(interface) = arguments.options.interface.first() {
        let of_probes = &mut balancer.healthcheck_interface;
        of_probes.get_or_insert_with(|| interface.clone());
    }
    Ok(state)
}

fn apply(katran: &mut Katran, board: &mut Board) {
    let (state, notices) = board.state();
    for notice in notices {
        show(&notice, None);
    }
    match katran.apply(&state) {
        Ok(changes) if changes.is_empty() => {}
        Ok(changes) => say(format!("applied: {changes}")),
        // Packets flow as before; the next change brings it again.
        Err(error) => eprintln!("{error}"),
    }
}

fn show(notice: &Notice, failure: Option<&str>) {
    say(match (notice, failure) {
        (
            Notice::Changed {
                vip,
                real,
                up: true,
            },
            _,
        ) => format!("{vip}: real {real} is up"),
        (Notice::Changed { vip, real, .. }, failure) => {
            format!(
                "{vip}: real {real} is down: {}",
                failure.unwrap_or("no answer")
            )
        }
        (Notice::Kept { vip }, _) => {
            format!("{vip}: no real answers: the last weights stay in force")
        }
        (Notice::Recovered { vip }, _) => format!("{vip}: reals answer again"),
    });
}

/// Whether there is an address and port to send probes to.
fn can_be_probed(vip: Vip) -> bool {
    !vip.is_prefix() && vip.port() != 0
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

/// A thread for each target.
struct Probers<'a> {
    arguments: &'a Arguments,
    sender: Sender<Message>,
    running: BTreeMap<Target, Arc<AtomicBool>>,
}

impl Probers<'_> {
    /// Starts threads for targets that are new, and stops those whose targets are gone.
    fn follow(&mut self, targets: &[Target]) {
        self.running.retain(|target, stop| {
            let stays = targets.contains(target);
            stop.store(!stays, Ordering::Relaxed);
            stays
        });
        for target in targets {
            if self.running.contains_key(target) {
                continue;
            }
            if !can_be_probed(target.vip) {
                let Target { vip, real, .. } = target;
                say(format!(
                    "{vip}: real {real} is not probed: any port, or a prefix"
                ));
            } else {
                self.start(*target);
            }
            self.running.entry(*target).or_default();
        }
    }

    fn start(&mut self, target: Target) {
        let pages = self.arguments.http.iter();
        let page = pages.clone().find(|page| page.vip == target.vip);
        let check = match page {
            Some(page) => Check::Http {
                path: page.path.clone(),
                status: self.arguments.status,
            },
            None => Check::usual(target.vip.protocol()),
        };
        let (interval, timeout) = (self.arguments.interval, self.arguments.timeout);
        let sender = self.sender.clone();
        let stop = Arc::<AtomicBool>::default();
        self.running.insert(target, Arc::clone(&stop));
        thread::spawn(move || {
            // So that not all of them are sent at once.
            thread::sleep(interval.mul_f64(fastrand::f64()));
            while !stop.load(Ordering::Relaxed) {
                let failure = probe(&target, &check, timeout).err();
                let failure = failure.map(|error| error.to_string());
                if sender.send(Message::Probed { target, failure }).is_err() {
                    return;
                }
                thread::sleep(interval.mul_f64(0.9 + 0.2 * fastrand::f64()));
            }
        });
    }
}
