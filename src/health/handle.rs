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
use tokio::sync::mpsc::channel;
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

/// The largest number of results that wait for the balancer.
const WAITING: usize = 16_384;

/// Running health checks. Dropping the handle ends them and leaves the balancer as it is: reals
/// that are down stay down.
///
/// The checks share the balancer. They lock it to change something, for as long as an
/// [`apply`](Katran::apply) of a few changes takes, and briefly after results to read counters.
/// While you hold the lock, probing continues.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use std::sync::Mutex;
/// use katran::health::Health;
/// use katran::health::Settings;
///
/// # fn example(katran: &Arc<Mutex<katran::Katran>>) -> katran::Result<()> {
/// let health = Health::start_with(katran, Settings::default(), |event| println!("{event}"))?;
/// let out = health.report().vips.into_iter().flat_map(|vip| vip.reals);
/// println!("{} reals are out", out.filter(|real| real.out).count());
/// # Ok(())
/// # }
/// ```
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

/// # Starting, changing and reporting
impl Health {
    /// Starts probing the balancer's reals. A real that is down stays down until it answers.
    ///
    /// Call it before [`attach`](Katran::attach), then [`wait`](Self::wait). If there is a
    /// [`healthcheck_interface`](crate::Builder::healthcheck_interface), this attaches the
    /// healthcheck program.
    ///
    /// Threads: `katran-health`, and [`Settings::threads`] that probe, in the caller's network
    /// namespace.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for settings out of range, unreadable certificates, or too many
    /// reals; [`Error::Kernel`] if no thread can start; the errors of
    /// [`ProbesMut::map_mark`](crate::probes::ProbesMut::map_mark),
    /// [`register`](crate::probes::ProbesMut::register) and
    /// [`attach`](crate::probes::ProbesMut::attach).
    pub fn start(katran: &Arc<Mutex<Katran>>, settings: Settings) -> Result<Self> {
        Self::start_with(katran, settings, |_| ())
    }

    /// The same, and reports events. The checks' thread calls `on_event` without holding the
    /// balancer; a panic in it ends the checks.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
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
                // Checks may use the direct path, or an embedder attaches the program.
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
        let (living, mut last) = channel(1);
        let ask = move |question: &Question| {
            let probe = question.probe.clone();
            probe.ask(question.place, living.clone())
        };
        let runner = handle.spawn(runner::run(taken_orders, schedule, report, ask));
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
            runtime.end(async {
                runner.abort();
                // It ends only when each sender has been dropped: nothing is ever sent.
                let _ = last.recv().await;
            });
            ending.be_gone();
        };
        thread.spawn(work).map_err(no_thread)?;
        Ok(health)
    }

    /// Makes the balancer equal to `wanted`, as [`Katran::apply`] does, except for what the checks
    /// decide: reals that are out stay down, weights may be climbing, and the checks' marks and
    /// counters exist. While checks run, change weights, reals and VIPs with this call. Results of
    /// reals that stay are kept. A real that joins others of its VIP gets flows after its first
    /// answer.
    ///
    /// The checks notice changes by other calls at the next change or by [`look`](Self::look), and
    /// keep them; until then, a [`Katran::apply`] would bring back reals that are out.
    ///
    /// # Errors
    /// Those of [`Katran::apply`], and then nothing has changed; [`Error::InvalidConfig`] if the
    /// checks use a mark of `wanted`; [`Error::NotFound`] if the balancer is gone. The caller must
    /// not hold the balancer.
    pub fn apply(&self, wanted: &State) -> Result<Changes> {
        self.take(wanted, None)
    }

    /// The same, with other settings. Results of reals that stay are kept; reals with another check
    /// are probed at once, reals without one are in use, and certificates are read again.
    /// `concurrency` and `threads` keep their values from the start.
    ///
    /// # Errors
    /// Those of [`apply`](Self::apply) and [`start`](Self::start).
    pub fn reconfigure(&self, wanted: &State, settings: Settings) -> Result<Changes> {
        let probes = Probes::new(&settings)?;
        self.take(wanted, Some((Arc::new(settings), probes)))
    }

    /// What [`apply`](Self::apply), or [`reconfigure`](Self::reconfigure) with other settings,
    /// would change now.
    ///
    /// # Errors
    /// The same.
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

    /// With other settings or, if `None`, the current ones when the balancer is locked.
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
            // If the runner has ended, the report says why.
            let _ = self.orders.send(Order::Hurry(target));
        }
        Ok(changes)
    }

    /// Targets whose check differs from the settings before.
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

    /// Makes the checks look at the balancer at once, after other calls changed reals or VIPs.
    pub fn look(&self) {
        // If the queue is full, the thread is about to look anyway.
        let _ = self.messages.try_send(Message::Look);
    }

    /// Waits until the health of all reals is known and applied, up to `limit`; returns whether it
    /// is. Between start and [`attach`](Katran::attach) this keeps clients' packets from dead
    /// reals. Blocks.
    pub fn wait(&self, limit: Duration) -> bool {
        let ended_or_clear = |known: &super::driver::Known| {
            known.ended.is_some() || (!known.pending && known.board.is_clear())
        };
        self.shared.wait(limit, ended_or_clear) && self.shared.known().ended.is_none()
    }

    /// Ends the checks as dropping does, and waits up to `limit` until no thread and no program of
    /// a [`Check::Command`](super::Check::Command) is left; returns whether that is so. Blocks. The
    /// caller must not hold the balancer.
    pub fn stop(self, limit: Duration) -> bool {
        let shared = Arc::clone(&self.shared);
        let is_ours = self.process == std::process::id();
        drop(self);
        // A forked child has no part of them.
        !is_ours || shared.wait(limit, |known| known.gone)
    }

    /// The current state of the checks. Does not wait for the balancer.
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
        // A forked child has no threads that would let go.
        if self.process == std::process::id() {
            self.shared.stop();
            self.look();
        }
    }
}

/// A runtime that does not wait when dropped: probes in flight need no end, and an asynchronous
/// caller must not block.
struct Background(Option<Runtime>);

impl Background {
    /// Waits for its last task, and then for its threads, whose probes are dropped at their next
    /// await.
    fn end(mut self, last: impl Future<Output = ()>) {
        if let Some(runtime) = self.0.take() {
            runtime.block_on(last);
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
        applied_weight: member.applied_weight(),
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

/// Converts moments to the time of day, by the clock's current setting.
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
        what: "the balancer of the health checks (its handle was dropped)".to_owned(),
    }
}

fn no_thread(error: std::io::Error) -> Error {
    Error::Kernel {
        operation: "start",
        object: "a thread of health checks".to_owned(),
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
