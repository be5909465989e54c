//! The handle of the checks.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use tokio::runtime;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::mpsc::unbounded_channel;

use super::board::Board;
use super::board::Target;
use super::driver::Driver;
use super::driver::Message;
use super::driver::Shared;
use super::driver::Tunnels;
use super::outcome::Outcome;
use super::plan::Probes;
use super::plan::Question;
use super::report::Event;
use super::report::RealHealth;
use super::report::Report;
use super::report::Transition;
use super::report::VipHealth;
use super::runner;
use super::runner::Order;
use super::schedule::Schedule;
use super::service::Member;
use super::settings::Settings;
use crate::document::Changes;
use crate::document::State;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Katran;

/// For threads that probe, when checks end.
const LAST_PROBES: Duration = Duration::from_secs(5);
/// Results that wait for the balancer, at most.
const WAITING: usize = 16_384;

/// Health checks at work. Dropping it ends them, and leaves the balancer as it is: reals that are down stay so.
///
/// The balancer is shared: the checks lock it when they have something to change, and twenty milliseconds after a
/// result to look at a counter. They hold it as long as an [`apply`](Katran::apply) of a few changes takes. Checks go on
/// while somebody else holds it.
#[must_use = "dropping it ends the checks"]
pub struct Health {
    shared: Arc<Shared>,
    orders: UnboundedSender<Order>,
    messages: SyncSender<Message>,
    process: u32,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

impl Health {
    /// Probes the reals that the balancer has, and goes on with what it says of them: one that is down stays so until
    /// it answers. Call it before [`attach`](Katran::attach), and [`wait`](Self::wait): the path of probes is attached here,
    /// if there is a [`healthcheck_interface`](crate::Builder::healthcheck_interface).
    ///
    /// Threads: `katran-health`, and [`Settings::threads`] that probe, in the network namespace of the caller.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for settings out of range, certificates that cannot be read, or too many reals; what
    /// [`ProbesMut::map_mark`](crate::probes::ProbesMut::map_mark) and
    /// [`register`](crate::probes::ProbesMut::register) and [`attach`](crate::probes::ProbesMut::attach) return; [`Error::Kernel`] without threads.
    pub fn start(katran: &Arc<Mutex<Katran>>, settings: Settings) -> Result<Self> {
        Self::start_with(katran, settings, |_| ())
    }

    /// The same, and tells what happens. `on_event` runs in the thread of the checks, which does not hold the balancer
    /// then; a panic in it ends the checks.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        katran: &Arc<Mutex<Katran>>,
        settings: Settings,
        on_event: impl FnMut(&Event) + Send + 'static,
    ) -> Result<Self> {
        let probes = Probes::new(&settings)?;
        let settings = Arc::new(settings);
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads as usize)
            .thread_name("katran-probes")
            .enable_all()
            .build()
            .map_err(no_thread)?;
        let handle = runtime.handle().clone();
        let runtime = Background(Some(runtime));
        let board = Board::new(Arc::clone(&settings));
        let shared = Arc::new(Shared::new(Arc::downgrade(katran), board, probes));
        let told = shared.with_katran(|katran| {
            match katran.probes_mut().attach() {
                // Checks may go another way, or an embedder attaches the program.
                Ok(()) | Err(Error::Unsupported { .. }) => {}
                Err(error) => return Err(error),
            }
            let mut state = katran.state();
            let mut board = shared.known().board.clone();
            board.follow_hash(&state);
            state.balancer = None;
            board.follow_balancer(&state)?;
            shared.tell(katran, board, state, None)
        });
        told.ok_or_else(gone)??;
        let (orders, taken_orders) = unbounded_channel();
        let (messages, taken_messages) = sync_channel(WAITING);
        let schedule = Schedule::new(settings.concurrency as usize, fastrand::u64(..));
        let (sender, losing) = (messages.clone(), Arc::clone(&shared));
        let report = move |finished| {
            if sender.try_send(Message::Finished(finished)).is_err() {
                losing.lose();
            }
        };
        let ask = |question: &Question| question.probe.clone().ask(question.place);
        handle.spawn(runner::run(taken_orders, schedule, report, ask));
        let driver = Driver {
            shared: Arc::clone(&shared),
            messages: taken_messages,
            orders: orders.clone(),
            on_event: Box::new(on_event),
            tunnels: Tunnels::default(),
        };
        let health = Self {
            shared,
            orders,
            messages,
            process: std::process::id(),
        };
        health.shared.follow(&health.orders);
        let thread = thread::Builder::new().name("katran-health".to_owned());
        let ending = Arc::clone(&health.shared);
        let work = move || {
            driver.run();
            runtime.end();
            ending.be_gone();
        };
        thread.spawn(work).map_err(no_thread)?;
        Ok(health)
    }

    /// Makes the balancer equal to `wanted`, as [`Katran::apply`] does, but for what the checks say: reals that are out
    /// are down, weights may be climbing, and the checks' marks and counters are there. This is how weights, reals and
    /// VIPs are changed while checks are at work. A real that joins others of its VIP gets flows when it has answered once.
    /// What was found of reals that stay is kept.
    ///
    /// What other calls change of the balancer is kept, too, and seen at the next change or by
    /// [`look`](Self::look); a [`Katran::apply`] would bring back reals that are out until then.
    ///
    /// # Errors
    /// As [`Katran::apply`], and nothing has changed then; [`Error::InvalidConfig`] if a mark of `wanted` is the checks';
    /// [`Error::NotFound`] if the balancer is gone. The caller must not hold the balancer.
    pub fn apply(&self, wanted: &State) -> Result<Changes> {
        self.take(wanted, None)
    }

    /// The same, with other settings. What is known of reals stays; those that are to be asked otherwise are probed at once, and
    /// certificates are read again. One that is no longer probed is in use. `concurrency` and `threads` stay those of the start.
    ///
    /// # Errors
    /// As [`apply`](Self::apply) and [`start`](Self::start).
    pub fn reconfigure(&self, wanted: &State, settings: Settings) -> Result<Changes> {
        let probes = Probes::new(&settings)?;
        self.take(wanted, Some((Arc::new(settings), probes)))
    }

    /// What [`apply`](Self::apply), or [`reconfigure`](Self::reconfigure) with other settings, would change now.
    ///
    /// # Errors
    /// As they.
    pub fn changes_to(&self, wanted: &State, settings: Option<Settings>) -> Result<Changes> {
        if let Some(settings) = &settings {
            settings.check()?;
        }
        let told = self.shared.with_katran(|katran| {
            let mut board = self.shared.known().board.clone();
            if let Some(settings) = settings {
                board.settings = Arc::new(settings);
            }
            board.follow_hash(&katran.state());
            board.follow_hash(wanted);
            board.follow_document(wanted)?;
            let mut state = wanted.clone();
            board.put_into(&mut state, Instant::now());
            katran.changes_to(&state)
        });
        told.ok_or_else(gone)?
    }

    /// With other settings, or (`None`) those that there are once the balancer is held.
    fn take(&self, wanted: &State, other: Option<(Arc<Settings>, Probes)>) -> Result<Changes> {
        let shared = &self.shared;
        let told = shared.with_katran(|katran| {
            let mut board = shared.known().board.clone();
            let before = Arc::clone(&board.settings);
            let probes = other.map(|(settings, probes)| {
                board.settings = settings;
                probes
            });
            board.follow_hash(&katran.state());
            board.follow_hash(wanted);
            board.follow_document(wanted)?;
            let changes = shared.tell(katran, board, wanted.clone(), probes)?;
            Ok((changes, before))
        });
        let (changes, before) = told.ok_or_else(gone)??;
        self.shared.follow(&self.orders);
        for target in self.asked_otherwise(&before) {
            // If nobody probes any more the report says why.
            let _ = self.orders.send(Order::Hurry(target));
        }
        Ok(changes)
    }

    /// Those that were probed in another way by the settings of before.
    fn asked_otherwise(&self, before: &Arc<Settings>) -> Vec<Target> {
        let known = self.shared.known();
        let now = &known.board.settings;
        if Arc::ptr_eq(before, now) {
            return Vec::new();
        }
        let is_other = |target: &&Target| {
            let Target { vip, real } = **target;
            let probing = before.of(vip).of_real(vip, real);
            probing.is_some_and(|before| now.of(vip).of_real(vip, real) != Some(before))
        };
        known.questions.keys().filter(is_other).copied().collect()
    }

    /// Has the checks look at the balancer at once, after other calls have changed reals or VIPs.
    pub fn look(&self) {
        // If there is no room it has a lot to look at anyway.
        let _ = self.messages.try_send(Message::Look);
    }

    /// Waits until it is known of all reals whether they work, and the balancer has been told, for as long at most; whether
    /// it is. After a start before [`attach`](Katran::attach) no client's packet meets a dead real. It blocks.
    pub fn wait(&self, limit: Duration) -> bool {
        let ended_or_clear = |known: &super::driver::Known| {
            known.ended.is_some() || (!known.pending && known.board.is_clear())
        };
        self.shared.wait(limit, ended_or_clear) && self.shared.known().ended.is_none()
    }

    /// Ends the checks as dropping them does, and waits until nothing of them is at work: no thread, and no program of
    /// a [`Check::Command`](super::Check::Command). For as long at most; whether it is so. It blocks, and the caller must not hold the balancer.
    pub fn stop(self, limit: Duration) -> bool {
        let shared = Arc::clone(&self.shared);
        let is_ours = self.process == std::process::id();
        drop(self);
        // A child has nothing of them.
        !is_ours || shared.wait(limit, |known| known.gone)
    }

    /// What is known. It does not wait for the balancer.
    pub fn report(&self) -> Report {
        let known = self.shared.known();
        let clock = Clock::now();
        let board = &known.board;
        let vips = board.services.iter().map(|(vip, service)| VipHealth {
            vip: *vip,
            panics: service.panics,
            falls_back: service.falls_back,
            probes: service.tally.clone(),
            reals: service
                .members
                .iter()
                .map(|(real, member)| {
                    let target = Target {
                        vip: *vip,
                        real: *real,
                    };
                    let probed = known.questions.contains_key(&target);
                    let climbs = service.climbs(member, board.settings.of(*vip), clock.0);
                    RealHealth {
                        climbs,
                        ..real_health(*real, probed, member, &clock)
                    }
                })
                .collect(),
        });
        Report {
            vips: vips.collect(),
            passed: known.passed,
            failed: known.failed,
            not_sent: known.not_sent,
            lost: self.shared.lost.load(Ordering::Relaxed),
            applied: known.applied,
            refused: known.refused.clone(),
            ended: known.ended.clone(),
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        // A child has no threads that would let go.
        if self.process == std::process::id() {
            self.shared.stop();
            self.look();
        }
    }
}

/// A runtime that waits for nothing when it is dropped: probes that are on their way need no end, and a caller that is
/// itself asynchronous may not wait.
struct Background(Option<Runtime>);

impl Background {
    /// Waits for the end of its probes, which is near: they are dropped where they wait for something.
    fn end(mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(LAST_PROBES);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn real_health(real: IpAddr, probed: bool, member: &Member, clock: &Clock) -> RealHealth {
    let last = member.score.last();
    let history = member.score.history().map(|turn| Transition {
        at: clock.time(turn.at),
        to: turn.to,
        reason: turn.reason.clone(),
    });
    RealHealth {
        real,
        probed,
        status: member.score.status(),
        out: member.out,
        weight: member.weight,
        told_weight: member.told_weight(),
        last: last.map(|(at, _)| clock.time(*at)),
        last_result: last.map(|(_, outcome)| outcome.to_string()),
        last_unsent: last.is_some_and(|(_, outcome)| !outcome.is_sent()),
        last_cause: last.and_then(|(_, outcome)| match outcome {
            Outcome::Failed(cause, _) => Some(*cause),
            _ => None,
        }),
        transitions: member.score.turns(),
        climbs: false,
        history: history.collect(),
    }
}

/// What time of day it was at a moment, by the clock as it is set now.
struct Clock(Instant, SystemTime);

impl Clock {
    fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    fn time(&self, at: Instant) -> SystemTime {
        let ago = self.0.saturating_duration_since(at);
        self.1.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

fn gone() -> Error {
    Error::NotFound {
        what: "the balancer of the health checks, whose handle was dropped,".to_owned(),
    }
}

fn no_thread(error: std::io::Error) -> Error {
    Error::Kernel {
        operation: "starting a thread of health checks",
        object: String::new(),
        errno: error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_start_that_fails_within_a_runtime_is_no_panic() {
        drop(Background(Some(Runtime::new().unwrap())));
    }
}
