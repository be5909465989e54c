//! `katran top`: a live view of the running balancer: VIPs and reals by traffic, the flow table's
//! hit rate, packets by what chose their real, unsettled slots, drops by reason, and the load of
//! CPUs; the reals of a VIP with weights and health, and the VIPs of a real.
//!
//! The last line of the screen shows keys, `?` all of them: tables can be scrolled, sorted and
//! filtered. `q`, Ctrl-C and signals end it; the balancer continues. With `--plain` or `--once`, or
//! if standard output is not a terminal, it prints text.

mod keys;
mod panes;
mod rates;
mod screen;
mod table;
mod view;

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use env_logger::Target;
use keys::Outcome;
use keys::View;
use ratatui::crossterm::event::KeyEvent;
use rates::Rates;
use screen::Screen;
use screen::Wish;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGQUIT;
use signal_hook::consts::SIGTERM;
use signal_hook::consts::SIGTSTP;
use signal_hook::iterator::Signals;
use view::Status;

use crate::client::To;
use crate::common;
use crate::common::say;
use crate::common::with_causes;
use crate::report;
use crate::report::Report;

/// The options of `top`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Seconds between refreshes: 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// Exit after this many refreshes
    #[arg(long, value_name = "NUMBER")]
    refreshes: Option<u64>,
    /// Print plain text even to a terminal
    #[arg(long)]
    plain: bool,
    /// Print plain text once, after one interval
    #[arg(long, conflicts_with = "refreshes")]
    once: bool,
    #[command(flatten)]
    to: To,
}

fn interval(text: &str) -> Result<Duration, String> {
    common::seconds(text, 0.1..=3600.0)
}

/// What may interrupt a refresh.
enum News {
    /// Exit.
    Signal,
    /// Suspend.
    Suspend,
    Wish(Wish),
    /// A line of the log, which must not be written across the screen.
    Log(String),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let live = !arguments.plain && !arguments.once && io::stdout().is_terminal();
    let (sender, news) = mpsc::channel();
    let mut log =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"));
    if live {
        log.target(Target::Pipe(Box::new(Log(sender.clone()))));
    }
    log.init();
    let result = top(arguments, live, sender, &news);
    // Lines that no screen has shown.
    for unseen in news.try_iter() {
        if let News::Log(line) = unseen {
            eprintln!("{line}");
        }
    }
    result
}

fn top(
    arguments: &Arguments,
    live: bool,
    sender: Sender<News>,
    news: &Receiver<News>,
) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    if live {
        signals.add_signal(SIGTSTP)?;
    }
    let signal_sender = sender.clone();
    thread::spawn(move || {
        let mut signals = signals.forever();
        signals.try_for_each(|signal| {
            signal_sender.send(match signal {
                SIGTSTP => News::Suspend,
                _ => News::Signal,
            })
        })
    });
    // Reports a missing balancer before the terminal changes.
    let first = arguments.to.report(false)?;
    let mut output = if live {
        screen::listen(sender, News::Wish);
        let status = Status {
            title: title(&first),
            message: String::new(),
        };
        Output::Live(Screen::enter()?, status, Box::new(View::new()))
    } else {
        Output::Plain
    };
    refresh(arguments, first, &mut output, news)
}

/// Refreshes until the user exits.
fn refresh(
    arguments: &Arguments,
    mut last: Report,
    output: &mut Output,
    news: &Receiver<News>,
) -> Result<()> {
    // Names, before there are figures.
    let mut rates = Rates::between(&last, &last);
    let mut next = Instant::now() + arguments.interval;
    let mut left = match arguments.once {
        true => Some(1),
        false => arguments.refreshes,
    };
    output.redraw(&rates)?;
    while left != Some(0) {
        match news.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(News::Log(line)) => {
                output.note(line);
                output.redraw(&rates)?;
            }
            Ok(News::Wish(Wish::Deaf(why))) => {
                output.note(why);
                output.redraw(&rates)?;
            }
            Ok(News::Wish(Wish::Redraw)) => output.redraw(&rates)?,
            Ok(News::Wish(Wish::Key(key))) => match output.press(key, &rates) {
                Outcome::Redraw => output.redraw(&rates)?,
                Outcome::Suspend => output.suspend(&rates)?,
                Outcome::Quit => return Ok(()),
            },
            Ok(News::Suspend) => output.suspend(&rates)?,
            Ok(News::Signal) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                match arguments.to.report(false) {
                    Ok(now) => {
                        rates = Rates::between(&last, &now);
                        output.title(&now);
                        last = now;
                        output.show(&rates)?;
                    }
                    Err(error) if arguments.once => return Err(error),
                    // It may have been restarted.
                    Err(error) => {
                        output.note(with_causes(&error));
                        output.redraw(&rates)?;
                    }
                }
                left = left.map(|left| left - 1);
                // After a pause, a process does not catch up.
                next = (next + arguments.interval).max(Instant::now());
            }
        }
    }
    Ok(())
}

fn title(report: &Report) -> String {
    let attached = report.attachments.iter().filter(|of| of.is_there());
    let places = attached.map(|of| match &of.mode {
        Some(mode) => format!("{} ({mode})", of.place),
        None => of.place.clone(),
    });
    let places: Vec<_> = places.collect();
    match places.is_empty() {
        true => "katran, attached to NOTHING".to_owned(),
        false => format!("katran on {}", places.join(", ")),
    }
}

/// Where the view is drawn.
enum Output {
    Live(Screen, Status, Box<View>),
    Plain,
}

impl Output {
    /// Shows new figures.
    fn show(&mut self, rates: &Rates) -> Result<()> {
        if let Self::Plain = self {
            say(view::text(rates));
        }
        self.redraw(rates)
    }

    /// Shows the same figures again; text is not printed again.
    fn redraw(&mut self, rates: &Rates) -> Result<()> {
        if let Self::Live(screen, status, view) = self {
            screen.draw(|frame| view::draw(frame, status, view, rates))?;
        }
        Ok(())
    }

    fn press(&mut self, key: KeyEvent, rates: &Rates) -> Outcome {
        match self {
            Self::Live(_, _, view) => view.press(key, rates),
            Self::Plain => Outcome::Redraw,
        }
    }

    fn suspend(&mut self, rates: &Rates) -> Result<()> {
        if let Self::Live(screen, ..) = self {
            screen.suspend()?;
        }
        self.redraw(rates)
    }

    /// Attachments may have changed, and the balancer answers.
    fn title(&mut self, report: &Report) {
        if let Self::Live(_, status, _) = self {
            status.title = title(report);
            status.message = match (report.is_old(), &report.refused) {
                (true, _) => format!("busy with a change: {:.1} s old", report.age),
                (false, Some(refused)) => format!("a document was refused: {}", refused.result),
                (false, None) => String::new(),
            }
            // A TOML error has several lines.
            .replace('\n', " ");
        }
    }

    fn note(&mut self, message: String) {
        match self {
            Self::Live(_, status, _) => status.message = message,
            Self::Plain => eprintln!("{message}"),
        }
    }
}

/// The log, one message for each line.
struct Log(Sender<News>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            // The screen is gone.
            let _ = self.0.send(News::Log(line.to_owned()));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
