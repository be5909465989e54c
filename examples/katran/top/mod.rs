//! A load balancer with a live view of its traffic: VIPs and reals by packets and bits per second,
//! the flow table's hit rate, packets by settled slots, bases and entries, VIPs with unsettled slots and their entries in the flow tables, drops by reason, and how evenly the CPUs are loaded.
//!
//! ```text
//! top --config lb.toml --interface eth0 [--interval 1] [--refreshes N] [--plain]
//! top --owner --pin /sys/fs/bpf/katran
//! ```
//! `q`, Esc and Ctrl-C end it, as SIGINT and SIGTERM do; SIGHUP applies the file again, SIGUSR1 shows
//! what keeps the balancer from working. It is a balancer itself, in place of another; with `--owner` it
//! tells again and again whose a pinned one is that is not its own. With
//! `--plain`, and where standard output is no terminal, it prints text instead.

mod common;
#[path = "top/rates.rs"]
mod rates;
#[path = "top/screen.rs"]
mod screen;
#[path = "top/view.rs"]
mod view;

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use common::Keeper;
use common::Options;
use common::say;
use common::with_causes;
use env_logger::Target;
use katran::Katran;
use katran::diagnosis::Severity;
use rates::Rates;
use rates::Sample;
use screen::Screen;
use screen::Wish;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGUSR1;
use view::Status;

/// Balances the VIPs of a configuration file, and shows the traffic.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Seconds from one refresh to the next: 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// Ends after so many refreshes
    #[arg(long, value_name = "NUMBER")]
    refreshes: Option<u64>,
    /// Prints text, also to a terminal
    #[arg(long)]
    plain: bool,
}

/// What a refresh may be interrupted by.
enum News {
    Signal(i32),
    Wish(Wish),
    /// A line of the library's log, which would otherwise be written across the screen.
    Log(String),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.options.owner {
        return common::exit("top", follow_owner(&arguments));
    }
    if let Some(done) = arguments.options.without_balancing() {
        return common::exit("top", done);
    }
    let live = !arguments.plain && io::stdout().is_terminal();
    let (sender, news) = mpsc::channel();
    let mut log =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"));
    if live {
        log.target(Target::Pipe(Box::new(Log(sender.clone()))));
    }
    log.init();
    let result = top(&arguments, live, sender, &news);
    // What no screen has shown.
    for unseen in news.try_iter() {
        if let News::Log(line) = unseen {
            eprintln!("{line}");
        }
    }
    common::exit("top", result)
}

/// Tells whose a pinned balancer is, again and again: of one that is another process's, or nobody's.
fn follow_owner(arguments: &Arguments) -> Result<()> {
    let signals = common::signals()?;
    let mut left = arguments.refreshes;
    loop {
        // What is wrong with it has been said.
        let _ = arguments.options.look_for_owner();
        left = left.map(|left| left.saturating_sub(1));
        if left == Some(0) {
            return Ok(());
        }
        match signals.recv_timeout(arguments.interval) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return Ok(()),
        }
    }
}

fn top(
    arguments: &Arguments,
    live: bool,
    sender: Sender<News>,
    news: &Receiver<News>,
) -> Result<()> {
    // First, so that no signal from now on ends the process halfway.
    let signals = common::signals()?;
    let signal_sender = sender.clone();
    thread::spawn(move || {
        for signal in signals {
            if signal_sender.send(News::Signal(signal)).is_err() {
                return;
            }
        }
    });

    let mut katran = arguments.options.start()?;
    let mut output = if live {
        screen::listen(sender, News::Wish);
        let place = arguments.options.place(&katran);
        Output::Live(
            Screen::enter()?,
            Status {
                title: title(&place),
                message: String::new(),
            },
        )
    } else {
        Output::Plain
    };
    let result = run(&mut katran, arguments, &mut output, news);
    // The terminal first: what is said from here on is to be read.
    drop(output);
    arguments.options.stop(&mut katran);
    result
}

/// Refreshes until somebody wants it to end.
fn run(
    katran: &mut Katran,
    arguments: &Arguments,
    output: &mut Output,
    news: &Receiver<News>,
) -> Result<()> {
    // A twentieth of the time for counting the flow tables' entries.
    let counting = arguments.interval / 20;
    let mut count = katran.flows().count()?;
    let mut last = Sample::take(katran, &mut count, counting)?;
    // The names, before there are figures.
    let mut rates = Rates::between(&last, &last);
    let mut next = Instant::now() + arguments.interval;
    let mut left = arguments.refreshes;
    let mut keeper = Keeper::new();
    output.redraw(&rates)?;
    while left != Some(0) {
        match news.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(News::Signal(SIGHUP)) => {
                output.reload(katran, &arguments.options);
                output.redraw(&rates)?;
            }
            Ok(News::Signal(SIGUSR1)) => {
                output.diagnose(katran, &arguments.options);
                output.redraw(&rates)?;
            }
            Ok(News::Log(line)) => {
                output.note(line);
                output.redraw(&rates)?;
            }
            Ok(News::Wish(Wish::Redraw)) => output.redraw(&rates)?,
            Ok(News::Signal(_) | News::Wish(Wish::Quit)) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {
                let news = keeper.look(katran)?;
                if !news.is_empty() {
                    output.moved(news, arguments.options.place(katran));
                }
                match Sample::take(katran, &mut count, counting) {
                    Ok(now) => {
                        rates = Rates::between(&last, &now);
                        last = now;
                        output.show(&rates)?;
                    }
                    // Packets flow all the same.
                    Err(error) => output.note(with_causes(&error)),
                }
                left = left.map(|left| left - 1);
                // A process that was stopped for a while does not catch up.
                next = (next + arguments.interval).max(Instant::now());
            }
        }
    }
    Ok(())
}

fn title(place: &str) -> String {
    format!("katran on {place}   q quits")
}

/// Where the view goes.
enum Output {
    Live(Screen, Status),
    Plain,
}

impl Output {
    /// New figures.
    fn show(&mut self, rates: &Rates) -> Result<()> {
        if let Self::Plain = self {
            say(view::text(rates));
        }
        self.redraw(rates)
    }

    /// The same figures; text is not printed again.
    fn redraw(&mut self, rates: &Rates) -> Result<()> {
        if let Self::Live(screen, status) = self {
            screen.draw(|frame| view::draw(frame, status, rates))?;
        }
        Ok(())
    }

    fn note(&mut self, message: String) {
        match self {
            Self::Live(_, status) => status.message = message,
            Self::Plain => eprintln!("{message}"),
        }
    }

    /// It is attached to something less, or again.
    fn moved(&mut self, news: Vec<String>, place: String) {
        if let Self::Live(_, status) = self {
            status.title = title(&place);
        }
        self.note(news.join("; "));
    }

    fn reload(&mut self, katran: &mut Katran, options: &Options) {
        match self {
            Self::Live(_, status) => {
                status.message = match options.reload(katran) {
                    Ok(changes) => changes.to_string(),
                    Err(error) => format!("nothing was changed: {}", with_causes(&error)),
                }
                // An error of TOML has several lines.
                .replace('\n', " ");
            }
            Self::Plain => options.follow(katran),
        }
    }

    /// All of it as text; on the screen, what is bad.
    fn diagnose(&mut self, katran: &Katran, options: &Options) {
        let Self::Live(_, status) = self else {
            return options.report_diagnosis(katran);
        };
        status.message = match options.diagnose(katran) {
            Ok(diagnoses) => {
                let findings = diagnoses.iter().flat_map(|(_, found)| found.findings());
                let bad = findings.filter(|finding| finding.severity >= Severity::Warning);
                let bad: Vec<_> = bad
                    .map(|finding| format!("{}: {}", finding.subject, finding.message))
                    .collect();
                match bad.is_empty() {
                    true => "nothing keeps it from working".to_owned(),
                    false => bad.join("; "),
                }
            }
            Err(error) => with_causes(&error),
        };
    }
}

/// The log, as messages a line.
struct Log(Sender<News>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            // Nobody shows it any more.
            let _ = self.0.send(News::Log(line.to_owned()));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 0.1..=3600.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0.1 to 3600".to_owned()),
    }
}
