//! The thread that owns the balancer: all that changes it, and its clocks.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
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
use katran::health;
use katran::health::Document;
use katran::health::Health;
use katran::health::Settings;
use katran::state::Changes;
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
use crate::common::complain;
use crate::common::keeper::Keeper;
use crate::common::keeper::ROUND;
use crate::common::say;
use crate::common::with_causes;
use crate::metrics::Recount;
use crate::options;
use crate::options::described;
use crate::options::placed;
use crate::report::Applied;

/// For the first answers of reals before the balancer is attached: as long as they may take, and no longer than this.
const FIRST_ROUND: Duration = Duration::from_secs(5);

/// For probes that are on their way in the end.
const LAST_PROBES: Duration = Duration::from_secs(5);

/// The balancer, and what is known of it.
pub(crate) struct Owner {
    pub(super) arguments: Arguments,
    /// What probes reals, if anything does. It is gone before the balancer is.
    pub(super) health: Option<Health>,
    katran: Arc<Mutex<Katran>>,
    pub(super) began: Instant,
    handle: Handle,
    /// The document that was applied last, without drains by command.
    wanted: Wanted,
    pub(super) drains: Drains,
    pub(super) silences: Silences,
    pub(super) recount: Recount,
    lines: Option<Lines>,
    keeper: Keeper,
    /// The features before a monitor had introspection switched on.
    monitored: Option<Features>,
    pub(super) last_apply: Option<Applied>,
    pub(super) refused: Option<Applied>,
    pub(super) past: Past,
    /// When to look around next.
    next: Instant,
    /// Of the reading of a file that counts.
    readings: u64,
}

impl Owner {
    /// A balancer with the settings and VIPs of the file, attached to its interfaces.
    pub(super) fn start(arguments: Arguments, sender: Sender<Message>) -> Result<Self> {
        let options = &arguments.options;
        let keep = options.keep;
        let document = options.document()?;
        let wanted = prepared(&arguments, &document)?;
        let loaded = options.load_or_go_on(&wanted.state);
        let (katran, start) = loaded.map_err(|error| placed(&document, error))?;
        let shared = Arc::new(Mutex::new(katran));
        let checks = wanted.settings.clone();
        let health = checks.map(|checks| start_checks(&shared, checks));
        let health = health.transpose();
        let health = health.map_err(|error| document.placed(error))?;
        let (changes, applied) = timed(|| match &health {
            Some(health) => health.apply(&wanted.state),
            None => lock(&shared).apply(&wanted.state),
        });
        let changes = changes.map_err(|error| placed(&document, error))?;
        say(described(&changes, "applied"));
        if let Some(health) = &health {
            // No client's packet meets a dead real then.
            let _ = health.wait(FIRST_ROUND);
        }
        let mut katran = lock(&shared);
        watch(&mut katran, arguments.watch_misses)?;
        let attached = options.attach(&mut katran);
        attached.map_err(|error| placed(&document, error))?;
        let mut silences = Silences::default();
        silences.follow(&katran);
        let recount = Recount::begin(&katran, arguments.recount)?;
        let lines = arguments.counters.then(|| Lines::begin(&katran));
        let lines = lines.transpose()?;
        let source = options.config.display().to_string();
        let mut past = Past::begin(start.as_ref(), source);
        past.look(&katran);
        drop(katran);
        let owner = Self {
            recount,
            lines,
            arguments,
            health,
            katran: shared,
            began: Instant::now(),
            handle: Handle::new(sender),
            wanted,
            drains: Drains::default(),
            silences,
            keeper: Keeper::new(keep),
            monitored: None,
            past,
            last_apply: Some(applied),
            refused: None,
            next: Instant::now() + ROUND,
            readings: 0,
        };
        owner.publish();
        Ok(owner)
    }

    /// The balancer. The checks wait for it, so nothing is asked of them while it is held.
    pub(super) fn katran(&self) -> MutexGuard<'_, Katran> {
        lock(&self.katran)
    }

    /// For those who want something of it.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Does what is due. Returns for how long there is nothing to do.
    pub(super) fn go_on(&mut self) -> Result<Duration> {
        let mut katran = lock(&self.katran);
        self.keeper.keep(&mut *katran)?;
        if let Err(error) = self.recount.go_on(&katran) {
            complain(with_causes(&error.into()));
        }
        if self.next <= Instant::now() {
            self.silences.look(&katran).into_iter().for_each(say);
            self.past.look(&katran);
            // Packets flow all the same.
            if let Some(Err(error)) = self.lines.as_mut().map(|lines| lines.next(&katran)) {
                complain(with_causes(&error));
            }
            // A process that was stopped for a while does not catch up.
            self.next = (self.next + ROUND).max(Instant::now());
        }
        let wait = self.next.saturating_duration_since(Instant::now());
        Ok(wait.min(self.recount.pause(ROUND)))
    }

    /// Takes what is true now, for those who ask while it is busy.
    fn publish(&self) {
        match Snapshot::diagnosed(self) {
            Ok(snapshot) => {
                let _ = self.handle.publish(snapshot);
            }
            Err(error) => complain(with_causes(&error)),
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
                    Err(error) => complain(format!(
                        "{}\nnothing was changed: the old configuration stays in force",
                        with_causes(&error)
                    )),
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
        let wanted =
            read.and_then(|document| Ok((prepared(&self.arguments, &document)?, document)));
        let (wanted, document) = wanted.inspect_err(|error| {
            self.refuse(Applied {
                time: now(),
                took: 0.0,
                result: with_causes(error),
            });
        })?;
        let changes = self.apply(wanted, self.drains.clone(), Checks::Read);
        let changes = changes.map_err(|error| {
            let error = placed(&document, error);
            if let Some(refused) = &mut self.refused {
                refused.result = with_causes(&error);
            }
            error
        });
        if changes.is_ok() {
            self.past.source = source;
        }
        let watched = watch(&mut self.katran(), self.arguments.watch_misses);
        if let Err(error) = watched {
            complain(with_causes(&error));
        }
        changes
    }

    fn refuse(&mut self, applied: Applied) {
        self.past.refused += 1;
        self.refused = Some(applied);
    }

    /// Refuses a document of somebody who may not have programs run or files read: those of the current one, and no others.
    pub(crate) fn check_commands(&self, document: &Document) -> Result<()> {
        let current = self.wanted.settings.iter();
        let files: HashSet<_> = current.clone().flat_map(Settings::authorities).collect();
        if let Some(file) = document.authorities().find(|file| !files.contains(file)) {
            anyhow::bail!(
                "a check takes authorities of {}, as the document in force does not: by HTTP no files come in; use `katran apply`",
                file.display()
            );
        }
        let commands: HashSet<_> = current.flat_map(Settings::commands).collect();
        let other = document
            .commands()
            .find(|command| !commands.contains(command));
        match other {
            None => Ok(()),
            Some(command) => anyhow::bail!(
                "a check runs {} with these arguments, as the document in force does not: by HTTP no commands come in; use `katran apply`",
                command.program.display()
            ),
        }
    }

    /// What [`apply_document`](Self::apply_document) would change.
    pub(crate) fn would_change(&self, document: &Document) -> Result<Changes> {
        let wanted = prepared(&self.arguments, document)?;
        let state = self.drains.clone().applied(wanted.state);
        let state = self.introspected(state);
        let changes = match (&self.health, wanted.settings) {
            (Some(health), Some(settings)) => health.changes_to(&state, Some(settings)),
            (None, Some(settings)) => settings
                .check()
                .and_then(|()| self.katran().changes_to(&state)),
            (_, None) => self.katran().changes_to(&state),
        };
        Ok(changes.map_err(|error| document.placed(error))?)
    }

    fn apply(&mut self, wanted: Wanted, mut drains: Drains, checks: Checks) -> Result<Changes> {
        self.publish();
        let state = drains.applied(wanted.state.clone());
        let state = self.introspected(state);
        let mut health = self.health.take();
        let (changes, applied) = timed(|| match &wanted.settings {
            Some(settings) => self.apply_checked(&mut health, &state, settings, checks),
            None => {
                let changes = self.katran().apply(&state)?;
                // What the checks have said meanwhile is over as well.
                if health.take().is_some() {
                    self.katran().apply(&state)?;
                }
                Ok(changes)
            }
        });
        self.health = health;
        let changes = changes.inspect_err(|_| self.refuse(applied.clone()))?;
        self.past.applied += 1;
        (self.last_apply, self.refused) = (Some(applied), None);
        (self.wanted, self.drains) = (wanted, drains);
        self.silences.follow(&lock(&self.katran));
        Ok(changes)
    }

    /// With checks: those that there are go on, and what they know stays.
    fn apply_checked(
        &self,
        health: &mut Option<Health>,
        state: &State,
        settings: &Settings,
        checks: Checks,
    ) -> katran::Result<Changes> {
        let before = self.katran().state();
        // Checks need what the document says, such as the interface that they leave by. Those that have ended still
        // know which reals are down.
        let changes = match (&*health, checks) {
            (None, _) => self.katran().apply(state)?,
            (Some(health), Checks::Keep) => health.apply(state)?,
            (Some(health), Checks::Read) => health.reconfigure(state, settings.clone())?,
        };
        let goes_on = |health: &Health| health.report().ended.is_none();
        if health.as_ref().is_some_and(goes_on) {
            return Ok(changes);
        }
        // After a mistake of theirs they begin again.
        let started = start_checks(&self.katran, settings.clone());
        let started = started.and_then(|started| {
            started.apply(state)?;
            Ok(started)
        });
        match (started, checks) {
            (Ok(started), _) => *health = Some(started),
            // Packets do not wait for them.
            (Err(error), Checks::Keep) => complain(format!("checks do not begin again: {error}")),
            (Err(error), Checks::Read) => {
                if let Err(other) = self.katran().apply(&before) {
                    complain(format!(
                        "the document before could not be applied again: {other}"
                    ));
                }
                return Err(error);
            }
        }
        Ok(changes)
    }

    /// Drains a real of a VIP, or of all that have it, or takes that back. Returns the VIPs.
    pub(crate) fn drain(&mut self, vip: Option<Vip>, real: IpAddr, undo: bool) -> Result<Vec<Vip>> {
        let mut drains = self.drains.clone();
        let vips = drains.set(&self.wanted.state, vip, real, undo)?;
        let changes = self.apply(self.wanted.clone(), drains, Checks::Keep)?;
        say(described(&changes, "applied"));
        let _ = self.silences.look(&lock(&self.katran));
        Ok(vips)
    }

    /// Listens to events, with introspection on until [`end_monitor`](Self::end_monitor), whatever the document says.
    pub(crate) fn monitor(
        &mut self,
        options: MonitorOptions,
        callback: impl FnMut(&Event) + Send + 'static,
    ) -> Result<(Monitor, bool)> {
        let features = self.katran().features();
        let is_on = features.contains(Features::INTROSPECTION);
        if !is_on {
            self.publish();
            self.katran().reload(features | Features::INTROSPECTION)?;
            self.monitored = Some(features);
        }
        let started = self.katran().events().start(options, callback);
        match started {
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
        Ok(self.katran().stats().events()?)
    }

    /// The features are those of the document again.
    pub(crate) fn end_monitor(&mut self) {
        let Some(before) = self.monitored.take() else {
            return;
        };
        let of_document = self
            .wanted
            .state
            .balancer
            .as_ref()
            .and_then(|of| of.features);
        self.publish();
        let reloaded = self.katran().reload(of_document.unwrap_or(before));
        if let Err(error) = reloaded {
            complain(format!("introspection stays on: {error}"));
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

    /// Prints what keeps it from working, or why that is not known.
    pub(super) fn print_diagnosis(&self) {
        let diagnoses = options::diagnose(&self.katran(), &self.arguments.options.interface);
        match diagnoses {
            Ok(diagnoses) => {
                for (interface, diagnosis) in diagnoses {
                    say(format!("{interface}:\n{diagnosis}"));
                }
            }
            Err(error) => complain(with_causes(&error)),
        }
    }

    /// Ends it, if it is not pinned.
    pub(super) fn stop(self) -> Result<()> {
        let Self {
            katran: mut shared,
            health,
            arguments,
            ..
        } = self;
        let probed = health.is_some();
        if !health.is_none_or(|health| health.stop(LAST_PROBES)) {
            complain("probes are still on their way");
        }
        // The thread of the checks may have it for another moment.
        let katran = loop {
            match Arc::try_unwrap(shared) {
                Ok(katran) => break katran,
                Err(again) => shared = again,
            }
            thread::sleep(Duration::from_millis(1));
        };
        let mut katran = katran.into_inner().unwrap_or_else(PoisonError::into_inner);
        if probed {
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

fn lock(katran: &Mutex<Katran>) -> MutexGuard<'_, Katran> {
    katran.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks whose findings are printed.
fn start_checks(katran: &Arc<Mutex<Katran>>, settings: Settings) -> katran::Result<Health> {
    Health::start_with(katran, settings, |event| match event {
        health::Event::Refused { .. } | health::Event::Ended { .. } => complain(format!("{event}")),
        _ => say(event.to_string()),
    })
}

/// What becomes of checks when something is applied.
#[derive(Clone, Copy)]
enum Checks {
    /// Their settings, and the files with certificates, are read again.
    Read,
    /// They stay as they are, whatever has become of files.
    Keep,
}

/// What a document says, and options. Where it says that is forgotten.
#[derive(Clone, Debug)]
struct Wanted {
    state: State,
    settings: Option<Settings>,
}

/// A document with checks if they are asked for, and an interface for them to leave by.
fn prepared(arguments: &Arguments, document: &Document) -> Result<Wanted> {
    let mut wanted = Wanted {
        state: document.state.clone(),
        settings: document.settings.clone(),
    };
    if arguments.probe {
        wanted.settings.get_or_insert_default();
    }
    if wanted.settings.is_some() {
        let settings = wanted.state.balancer.get_or_insert_default();
        let of_probes = &mut settings.healthcheck_interface;
        if of_probes.is_none() {
            *of_probes = arguments.options.interface.first().cloned();
        }
        anyhow::ensure!(
            of_probes.is_some(),
            "probes have no interface to leave by: set healthcheck_interface in [balancer], as --shared names none"
        );
    }
    Ok(wanted)
}

pub(super) fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

/// How long a change takes, and what comes of it.
fn timed(change: impl FnOnce() -> katran::Result<Changes>) -> (Result<Changes>, Applied) {
    let began = Instant::now();
    let changes = change().map_err(anyhow::Error::from);
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
