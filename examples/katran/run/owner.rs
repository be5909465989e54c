//! The thread that owns the balancer: everything that changes it, and its clocks.

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

/// The longest wait for reals' first answers before attaching; shorter if their checks are.
const FIRST_ROUND: Duration = Duration::from_secs(5);

/// How long to wait for probes in flight at the end.
const LAST_PROBES: Duration = Duration::from_secs(5);

/// The balancer, and what goes with it.
pub(crate) struct Owner {
    pub(super) arguments: Arguments,
    /// The health checks, if any. They end before the balancer does.
    pub(super) health: Option<Health>,
    katran: Arc<Mutex<Katran>>,
    pub(super) began: Instant,
    handle: Handle,
    /// The last applied document, without drains by command.
    wanted: Wanted,
    pub(super) drains: Drains,
    pub(super) silences: Silences,
    pub(super) recount: Recount,
    lines: Option<Lines>,
    keeper: Keeper,
    /// The features before a monitor switched introspection on.
    monitored: Option<Features>,
    pub(super) last_apply: Option<Applied>,
    pub(super) refused: Option<Applied>,
    pub(super) past: Past,
    /// When to look around next.
    next: Instant,
    /// The number of the reading that counts.
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
            // So that no client's packet meets a dead real.
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
        past.look(&katran)?;
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

    /// The balancer. Ask the checks nothing while holding it: they wait for it.
    pub(super) fn katran(&self) -> MutexGuard<'_, Katran> {
        lock(&self.katran)
    }

    /// A handle for clients.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Does what is due; returns how long there is nothing to do.
    pub(super) fn go_on(&mut self) -> Result<Duration> {
        let mut katran = lock(&self.katran);
        self.keeper.keep(&mut *katran)?;
        if let Err(error) = self.recount.go_on(&katran) {
            complain(with_causes(&error.into()));
        }
        if self.next <= Instant::now() {
            self.silences.look(&katran).into_iter().for_each(say);
            if let Err(error) = self.past.look(&katran) {
                complain(with_causes(&error.into()));
            }
            // Packets flow regardless.
            if let Some(Err(error)) = self.lines.as_mut().map(|lines| lines.next(&katran)) {
                complain(with_causes(&error));
            }
            // After a pause, a process does not catch up.
            self.next = (self.next + ROUND).max(Instant::now());
        }
        let wait = self.next.saturating_duration_since(Instant::now());
        Ok(wait.min(self.recount.pause(ROUND)))
    }

    /// Publishes a snapshot, for those who ask during a change.
    fn publish(&self) {
        match Snapshot::diagnosed(self) {
            Ok(snapshot) => {
                let _ = self.handle.publish(snapshot);
            }
            Err(error) => complain(with_causes(&error)),
        }
    }

    /// Reads the file on another thread and then applies it; only the latest reading counts.
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
                        "{}\nnothing was changed: the balancer keeps its configuration",
                        with_causes(&error)
                    )),
                }
            });
        });
    }

    /// Makes the balancer match a document, except for drains by command. On failure, or if the
    /// document could not be read, everything stays and the refusal is recorded.
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

    /// Refuses a document over HTTP that names commands or files that the current document does
    /// not.
    pub(crate) fn check_commands(&self, document: &Document) -> Result<()> {
        let current = self.wanted.settings.iter();
        let files: HashSet<_> = current.clone().flat_map(Settings::authorities).collect();
        if let Some(file) = document.authorities().find(|file| !files.contains(file)) {
            anyhow::bail!(
                "over HTTP, a document cannot name new `authorities` files ({}): use `katran \
                 apply`",
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
                "over HTTP, a document cannot contain new commands or arguments ({}): use `katran \
                 apply`",
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
                // Nor what the checks reported in the meantime.
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

    /// With checks: those that run continue and keep their results.
    fn apply_checked(
        &self,
        health: &mut Option<Health>,
        state: &State,
        settings: &Settings,
        checks: Checks,
    ) -> katran::Result<Changes> {
        let before = self.katran().state();
        // Checks need settings of the document, such as the interface for probes. Ended checks
        // still know which reals are down.
        let changes = match (&*health, checks) {
            (None, _) => self.katran().apply(state)?,
            (Some(health), Checks::Keep) => health.apply(state)?,
            (Some(health), Checks::Read) => health.reconfigure(state, settings.clone())?,
        };
        let goes_on = |health: &Health| health.report().ended.is_none();
        if health.as_ref().is_some_and(goes_on) {
            return Ok(changes);
        }
        // After a panic, checks start again.
        let started = start_checks(&self.katran, settings.clone());
        let started = started.and_then(|started| {
            started.apply(state)?;
            Ok(started)
        });
        match (started, checks) {
            (Ok(started), _) => *health = Some(started),
            // Packets do not wait for them.
            (Err(error), Checks::Keep) => {
                complain(format!("cannot start the checks again: {error}"))
            }
            (Err(error), Checks::Read) => {
                if let Err(other) = self.katran().apply(&before) {
                    complain(format!("cannot apply the previous document again: {other}"));
                }
                return Err(error);
            }
        }
        Ok(changes)
    }

    /// Drains a real of one VIP or of all its VIPs, or undoes it. Returns these VIPs.
    pub(crate) fn drain(&mut self, vip: Option<Vip>, real: IpAddr, undo: bool) -> Result<Vec<Vip>> {
        let mut drains = self.drains.clone();
        let vips = drains.set(&self.wanted.state, vip, real, undo)?;
        let changes = self.apply(self.wanted.clone(), drains, Checks::Keep)?;
        say(described(&changes, "applied"));
        let _ = self.silences.look(&lock(&self.katran));
        Ok(vips)
    }

    /// Listens to events, with introspection on until [`end_monitor`](Self::end_monitor), whatever
    /// the document says.
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

    /// The counts of events that the program left out.
    pub(crate) fn events(&self) -> Result<EventCounters> {
        Ok(self.katran().stats().events()?)
    }

    /// Restores the document's features.
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

    /// The state, with introspection if a monitor switched it on.
    fn introspected(&self, mut state: State) -> State {
        let features = state.balancer.as_mut().and_then(|of| of.features.as_mut());
        if let (Some(features), Some(_)) = (features, self.monitored) {
            *features |= Features::INTROSPECTION;
        }
        state
    }

    /// Prints the diagnosis, or why there is none.
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

    /// Ends the balancer unless it is pinned.
    pub(super) fn stop(self) -> Result<()> {
        let Self {
            katran: mut shared,
            health,
            arguments,
            ..
        } = self;
        let probed = health.is_some();
        if !health.is_none_or(|health| health.stop(LAST_PROBES)) {
            complain("some probes have not ended yet");
        }
        // The checks' thread may hold it a moment longer.
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
                "probe packets: {} sent, {} dropped",
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

/// Starts checks whose events are printed.
fn start_checks(katran: &Arc<Mutex<Katran>>, settings: Settings) -> katran::Result<Health> {
    Health::start_with(katran, settings, |event| match event {
        health::Event::Refused { .. } | health::Event::Ended { .. } => complain(format!("{event}")),
        _ => say(event.to_string()),
    })
}

/// What happens to checks when a document is applied.
#[derive(Clone, Copy)]
enum Checks {
    /// Read their settings and certificate files again.
    Read,
    /// Leave them as they are, whatever happened to files.
    Keep,
}

/// A document and the options, without places.
#[derive(Clone, Debug)]
struct Wanted {
    state: State,
    settings: Option<Settings>,
}

/// The document, with checks if the options ask for them, and an interface for probes.
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
            "probes have no interface to leave through: with --shared, set healthcheck_interface in [balancer]"
        );
    }
    Ok(wanted)
}

pub(super) fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

/// Times a change.
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

/// Removing the VIP ends the watch, and a new watch counts from 0: start one only where it has
/// ended.
fn watch(katran: &mut Katran, vip: Option<Vip>) -> Result<()> {
    match vip {
        Some(vip) if katran.stats().watched_vip() != Some(vip) => katran
            .stats_mut()
            .watch_misses(vip)
            .context("cannot count new flows for --watch-misses"),
        _ => Ok(()),
    }
}
