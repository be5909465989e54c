//! The thread that owns the balancer: all that changes it, and its clocks.

use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use anyhow::Result;
use katran::Features;
use katran::Katran;
use katran::State;
use katran::Vip;
use katran::events::Event;
use katran::events::Monitor;
use katran::events::MonitorOptions;
use katran::state::Changes;
use katran::state::Document;
use katran::stats::EventCounters;

use super::Arguments;
use super::Message;
use super::drains::Drains;
use super::drains::Silences;
use super::lines;
use super::lines::Lines;
use super::past::Past;
use super::snapshot::Handle;
use super::snapshot::Snapshot;
use crate::common::keeper::Keeper;
use crate::common::keeper::ROUND;
use crate::common::say;
use crate::common::with_causes;
use crate::metrics::Recount;
use crate::options;
use crate::options::described;
use crate::options::placed;
use crate::probing;
use crate::probing::Prober;
use crate::probing::board::Board;
use crate::report::Applied;

/// Between two attempts to apply what the kernel has refused.
const RETRY: Duration = Duration::from_secs(1);

/// The balancer, and what is known of it.
pub(crate) struct Owner {
    pub(super) arguments: Arguments,
    pub(super) katran: Katran,
    pub(super) began: Instant,
    handle: Handle,
    /// The document that was applied last, without drains by command.
    wanted: State,
    pub(super) drains: Drains,
    pub(super) silences: Silences,
    /// What follows from document, drains and probes.
    pub(super) board: Board,
    pub(super) prober: Option<Prober>,
    pub(super) recount: Recount,
    lines: Option<Lines>,
    keeper: Keeper,
    /// The features before a monitor had introspection switched on.
    monitored: Option<Features>,
    pub(super) last_apply: Option<Applied>,
    pub(super) refused: Option<Applied>,
    pub(super) past: Past,
    /// When to apply again what was refused, and with which words it was.
    retry: Option<(Instant, String)>,
    /// When to look around next.
    next: Instant,
    /// Of the reading of a file that counts.
    readings: u64,
}

impl Owner {
    /// A balancer with the settings and VIPs of the file, attached to its interfaces.
    pub(super) fn start(arguments: Arguments, sender: Sender<Message>) -> Result<Self> {
        let options = &arguments.options;
        let document = options.document()?;
        let wanted = prepared(&arguments, document.state().clone())?;
        let mut prober = match arguments.probes.are_on() {
            true => Some(Prober::new(&arguments.probes, &wanted, sender.clone())?),
            false => None,
        };
        let mut board = arguments.probes.board();
        let destinations = prober
            .as_ref()
            .map(|prober| prober.checks().destinations(&wanted));
        let mut notices = board.set_wanted(wanted.clone(), destinations.unwrap_or_default());
        let loaded = options.load_or_go_on(&board.state());
        let (mut katran, start) = loaded.map_err(|error| placed(&document, error))?;
        if prober.is_some() {
            notices.extend(board.go_on(&katran.state()));
        }
        let (changes, applied) = apply(&mut katran, &board.state());
        let changes = changes.map_err(|error| placed(&document, error))?;
        say(described(&changes, "applied"));
        watch(&mut katran, arguments.watch_misses)?;
        let attached = options.attach(&mut katran);
        attached.map_err(|error| placed(&document, error))?;
        notices
            .iter()
            .for_each(|notice| probing::show(notice, None));
        if let Some(prober) = &mut prober {
            prober.follow(&board);
        }
        let mut silences = Silences::default();
        silences.follow(&katran);
        let source = options.config.display().to_string();
        let owner = Self {
            recount: Recount::begin(&katran, arguments.recount)?,
            lines: match arguments.counters {
                true => Some(Lines::begin(&katran)?),
                false => None,
            },
            arguments,
            katran,
            began: Instant::now(),
            handle: Handle::new(sender),
            wanted,
            drains: Drains::default(),
            silences,
            board,
            prober,
            keeper: Keeper::new(),
            monitored: None,
            past: Past::begin(start.as_ref(), source),
            last_apply: Some(applied),
            refused: None,
            retry: None,
            next: Instant::now() + ROUND,
            readings: 0,
        };
        owner.publish();
        Ok(owner)
    }

    /// For those who want something of it.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Does what is due. Returns for how long there is nothing to do.
    pub(super) fn go_on(&mut self) -> Result<Duration> {
        if let Some(prober) = &mut self.prober {
            prober.send_due(&self.katran);
        }
        self.keeper.keep(&mut self.katran)?;
        if let Err(error) = self.recount.go_on(&self.katran) {
            eprintln!("{}", with_causes(&error.into()));
        }
        if self
            .retry
            .as_ref()
            .is_some_and(|(when, _)| *when <= Instant::now())
        {
            self.apply_health();
        }
        if self.next <= Instant::now() {
            self.silences.look(&self.katran).into_iter().for_each(say);
            self.past.look(&self.katran);
            // Packets flow all the same.
            if let Some(Err(error)) = self.lines.as_mut().map(|lines| lines.next(&self.katran)) {
                eprintln!("{}", with_causes(&error));
            }
            // A process that was stopped for a while does not catch up.
            self.next = (self.next + ROUND).max(Instant::now());
        }
        let probes = self.prober.as_ref().and_then(Prober::wake);
        let retry = self.retry.as_ref().map(|(when, _)| *when);
        let wake = [probes, retry, Some(self.next)].into_iter().flatten().min();
        let wait = wake.map_or(ROUND, |wake| wake.saturating_duration_since(Instant::now()));
        Ok(wait.min(self.recount.pause(ROUND)))
    }

    /// Takes what is true now, for those who ask while it is busy.
    fn publish(&self) {
        match Snapshot::diagnosed(self) {
            Ok(snapshot) => self.handle.publish(snapshot),
            Err(error) => eprintln!("{}", with_causes(&error)),
        }
    }

    /// Reads the file again, on another thread, and applies it then; only the last time counts.
    pub(super) fn read_again(&mut self) {
        self.readings += 1;
        let (reading, handle) = (self.readings, self.handle());
        let config = self.arguments.options.config.clone();
        thread::spawn(move || {
            let read = options::read(&config);
            let source = config.display().to_string();
            handle.tell(move |owner| {
                if owner.readings != reading {
                    return;
                }
                match owner.apply_document(read, source) {
                    Ok(changes) => say(described(&changes, "applied")),
                    Err(error) => eprintln!(
                        "{}\nnothing was changed: the old configuration stays in force",
                        with_causes(&error)
                    ),
                }
            });
        });
    }

    /// Makes the balancer what a document says, but for drains by command. If that fails, or the document could not be
    /// read, all stays as it is, and it is remembered that one was refused.
    pub(crate) fn apply_document(
        &mut self,
        read: Result<Document>,
        source: String,
    ) -> Result<Changes> {
        let wanted = read.and_then(|document| {
            let wanted = prepared(&self.arguments, document.state().clone())?;
            Ok((wanted, document))
        });
        let (wanted, document) = wanted.inspect_err(|error| {
            self.past.refused += 1;
            self.refused = Some(Applied {
                time: now(),
                took: 0.0,
                result: with_causes(error),
            });
        })?;
        let changes = self.apply(wanted, self.drains.clone()).map_err(|error| {
            let error = placed(&document, error);
            if let Some(refused) = &mut self.refused {
                refused.result = with_causes(&error);
            }
            error
        });
        if changes.is_ok() {
            self.past.source = source;
        }
        if let Err(error) = watch(&mut self.katran, self.arguments.watch_misses) {
            eprintln!("{}", with_causes(&error));
        }
        changes
    }

    /// What [`apply_document`](Self::apply_document) would change.
    pub(crate) fn would_change(&self, document: &Document) -> Result<Changes> {
        let wanted = prepared(&self.arguments, document.state().clone())?;
        let (board, _) = self.board_of(&wanted, &mut self.drains.clone());
        let changes = self.katran.changes_to(&self.introspected(board.state()));
        Ok(changes.map_err(|error| document.placed(error))?)
    }

    /// What is known of reals, under another document.
    fn board_of(
        &self,
        wanted: &State,
        drains: &mut Drains,
    ) -> (Board, Vec<probing::board::Notice>) {
        let mut board = self.board.clone();
        let wanted = drains.applied(wanted.clone());
        let prober = self.prober.as_ref();
        let destinations = prober.map(|prober| prober.checks().destinations(&wanted));
        let notices = board.set_wanted(wanted, destinations.unwrap_or_default());
        (board, notices)
    }

    fn apply(&mut self, wanted: State, mut drains: Drains) -> Result<Changes> {
        self.publish();
        let (board, notices) = self.board_of(&wanted, &mut drains);
        let state = self.introspected(board.state());
        let (changes, applied) = apply(&mut self.katran, &state);
        let changes = changes.inspect_err(|_| {
            self.past.refused += 1;
            self.refused = Some(applied.clone());
        })?;
        self.past.applied += 1;
        (self.last_apply, self.refused, self.retry) = (Some(applied), None, None);
        (self.wanted, self.drains, self.board) = (wanted, drains, board);
        self.silences.follow(&self.katran);
        notices
            .iter()
            .for_each(|notice| probing::show(notice, None));
        if let Some(prober) = &mut self.prober {
            for vip in prober.checks().unknown(&self.wanted) {
                say(format!("{vip} has a check and is not in the file any more"));
            }
            prober.follow(&self.board);
        }
        Ok(changes)
    }

    /// Drains a real of a VIP, or of all that have it, or takes that back. Returns the VIPs.
    pub(crate) fn drain(&mut self, vip: Option<Vip>, real: IpAddr, undo: bool) -> Result<Vec<Vip>> {
        let mut drains = self.drains.clone();
        let vips = drains.set(&self.wanted, vip, real, undo)?;
        let changes = self.apply(self.wanted.clone(), drains)?;
        say(described(&changes, "applied"));
        let _ = self.silences.look(&self.katran);
        Ok(vips)
    }

    /// Listens to events, with introspection on until [`end_monitor`](Self::end_monitor), whatever the document says.
    pub(crate) fn monitor(
        &mut self,
        options: MonitorOptions,
        callback: impl FnMut(&Event) + Send + 'static,
    ) -> Result<(Monitor, bool)> {
        let features = self.katran.features();
        let is_on = features.contains(Features::INTROSPECTION);
        if !is_on {
            self.publish();
            self.katran.reload(features | Features::INTROSPECTION)?;
            self.monitored = Some(features);
        }
        match self.katran.events().start(options, callback) {
            Ok(monitor) => Ok((monitor, !is_on)),
            Err(error) => {
                if !is_on {
                    self.end_monitor();
                }
                Err(error.into())
            }
        }
    }

    /// Events that the program has left out.
    pub(crate) fn events(&self) -> Result<EventCounters> {
        Ok(self.katran.stats().events()?)
    }

    /// The features are those of the document again.
    pub(crate) fn end_monitor(&mut self) {
        let Some(before) = self.monitored.take() else {
            return;
        };
        let of_document = self.wanted.balancer.as_ref().and_then(|of| of.features);
        self.publish();
        if let Err(error) = self.katran.reload(of_document.unwrap_or(before)) {
            eprintln!("introspection stays on: {error}");
        }
    }

    /// A state with introspection on if there is a monitor that had it switched on.
    fn introspected(&self, mut state: State) -> State {
        let features = state.balancer.as_mut().and_then(|of| of.features.as_mut());
        if let (Some(features), Some(_)) = (features, self.monitored) {
            *features |= Features::INTROSPECTION;
        }
        state
    }

    pub(super) fn record(&mut self, probed: &probing::Probed) {
        let Some(prober) = &mut self.prober else {
            return;
        };
        if prober.record(probed, &self.katran, &mut self.board) {
            self.apply_health();
        }
    }

    /// Applies what probes have found.
    fn apply_health(&mut self) {
        let state = self.introspected(self.board.state());
        match self.katran.apply(&state) {
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

    /// Prints what keeps it from working, or why that is not known.
    pub(super) fn print_diagnosis(&self) {
        match options::diagnose(&self.katran, &self.arguments.options.interface) {
            Ok(diagnoses) => {
                for (interface, diagnosis) in diagnoses {
                    say(format!("{interface}:\n{diagnosis}"));
                }
            }
            Err(error) => eprintln!("{}", with_causes(&error)),
        }
    }

    /// Ends it, if it is not pinned.
    pub(super) fn stop(self) -> Result<()> {
        let Self {
            mut katran,
            prober,
            arguments,
            ..
        } = self;
        if let Some(prober) = prober {
            prober.end();
            let counters = katran.probes().counters()?;
            say(format!(
                "{} packets of probes sent, {} dropped",
                counters.processed, counters.dropped
            ));
        }
        arguments.options.stop(&mut katran);
        match arguments.counters {
            true => lines::summary(&katran),
            false => Ok(()),
        }
    }
}

/// A document, with an interface for probes to leave by if there are any.
fn prepared(arguments: &Arguments, mut state: State) -> Result<State> {
    if arguments.probes.are_on() {
        let of_probes = &mut state.balancer.get_or_insert_default().healthcheck_interface;
        if of_probes.is_none() {
            *of_probes = arguments.options.interface.first().cloned();
        }
        anyhow::ensure!(
            of_probes.is_some(),
            "probes have no interface to leave by: set healthcheck_interface in [balancer], as --shared names none"
        );
    }
    Ok(state)
}

pub(super) fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

fn apply(katran: &mut Katran, state: &State) -> (Result<Changes>, Applied) {
    let began = Instant::now();
    let changes = katran.apply(state).map_err(anyhow::Error::from);
    let applied = Applied {
        time: now(),
        took: began.elapsed().as_secs_f64(),
        result: match &changes {
            Ok(changes) if changes.is_empty() => "no changes".to_owned(),
            Ok(changes) => changes.to_string(),
            Err(error) => with_causes(error),
        },
    };
    (changes, applied)
}

/// Removing the VIP ends the watch, and each watch counts from 0; so only where it has ended.
fn watch(katran: &mut Katran, vip: Option<Vip>) -> Result<()> {
    match vip {
        Some(vip) if katran.stats().watched_vip() != Some(vip) => katran
            .stats_mut()
            .watch_misses(vip)
            .context("cannot count the misses of --watch-misses"),
        _ => Ok(()),
    }
}
