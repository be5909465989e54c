//! The thread that collects results and changes the balancer accordingly: one change for all
//! results that have arrived.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::board::Board;
use super::board::Target;
use super::outcome::Outcome;
use super::plan::Probes;
use super::plan::Questions;
use super::plan::questions;
use super::report::Event;
use super::runner::Finished;
use super::runner::Order;
use crate::document::Changes;
use crate::document::State;
use crate::error::Error;
use crate::error::Result;
use crate::katran::Katran;
use crate::types::Vip;

/// How long to collect further results after one has arrived.
const GATHER: Duration = Duration::from_millis(20);
/// The time between attempts to apply a refused change.
const RETRY: Duration = Duration::from_secs(1);
/// How often an idle thread checks whether the balancer still exists.
const IDLE: Duration = Duration::from_secs(1);

/// A message to the thread.
pub(super) enum Message {
    Finished(Finished),
    /// Look at the balancer, which may have ended or been changed by another caller.
    Look,
}

/// What is known and what was done.
pub(super) struct Known {
    pub(super) board: Board,
    pub(super) probes: Probes,
    pub(super) questions: Arc<Questions>,
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) not_sent: u64,
    pub(super) applied: u64,
    pub(super) refused: Option<String>,
    pub(super) ended: Option<String>,
    /// There are changes to apply to the balancer.
    pub(super) pending: bool,
    /// No part of the checks is running any more.
    pub(super) gone: bool,
}

/// Shared by the thread and the handle. To change the board, hold the balancer. To take both locks,
/// take the balancer first.
pub(super) struct Shared {
    katran: Weak<Mutex<Katran>>,
    known: Mutex<Known>,
    changed: Condvar,
    /// Set to stop further changes; held during a change.
    stopped: Mutex<bool>,
    pub(super) lost: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(katran: Weak<Mutex<Katran>>, board: Board, probes: Probes) -> Self {
        let known = Known {
            board,
            probes,
            questions: Arc::default(),
            passed: 0,
            failed: 0,
            not_sent: 0,
            applied: 0,
            refused: None,
            ended: None,
            pending: false,
            gone: false,
        };
        Self {
            katran,
            known: Mutex::new(known),
            changed: Condvar::new(),
            stopped: Mutex::new(false),
            lost: AtomicU64::new(0),
        }
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Waits until the condition holds, up to `limit`; returns whether it does.
    pub(super) fn wait(&self, limit: Duration, is_so: impl Fn(&Known) -> bool) -> bool {
        let wait = self
            .changed
            .wait_timeout_while(self.known(), limit, |known| !is_so(known));
        let (known, _) = wait.unwrap_or_else(PoisonError::into_inner);
        is_so(&known)
    }

    /// Makes the runner probe what is on the board now. Orders follow the order of changes.
    pub(super) fn follow(&self, orders: &UnboundedSender<Order>) {
        let known = self.known();
        // If the runner has ended, the report says why.
        let _ = orders.send(Order::Follow(Arc::clone(&known.questions)));
    }

    /// Counts a result that the thread has no room for.
    pub(super) fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for a change in progress and prevents further ones.
    pub(super) fn stop(&self) {
        *lock(&self.stopped) = true;
    }

    /// The thread's last action.
    pub(super) fn be_gone(&self) {
        self.known().gone = true;
        self.changed.notify_all();
    }

    /// Calls `f` with the balancer; `None` if it is gone. A panic does not poison the lock.
    pub(super) fn with_katran<T>(&self, f: impl FnOnce(&mut Katran) -> T) -> Option<T> {
        let katran = self.katran.upgrade()?;
        let done = {
            let mut katran = lock(&katran);
            catch_unwind(AssertUnwindSafe(|| f(&mut katran)))
        };
        Some(done.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Makes the balancer match the board for this state, unless stopped. `None` leaves the probes
    /// alone.
    pub(super) fn tell(
        &self,
        katran: &mut Katran,
        mut board: Board,
        mut state: State,
        probes: Option<Probes>,
    ) -> Result<Changes> {
        let stopped = lock(&self.stopped);
        if *stopped {
            return Ok(Changes::default());
        }
        board.put_into(&mut state, Instant::now());
        let changes = katran.apply(&state)?;
        board.told(&state);
        let mut known = self.known();
        if let Some(probes) = probes {
            known.probes = probes;
        }
        known.questions = Arc::new(questions(&board, &known.probes));
        known.board = board;
        known.pending = false;
        known.refused = None;
        known.applied += u64::from(!changes.is_empty());
        drop(known);
        self.changed.notify_all();
        Ok(changes)
    }
}

/// Why the thread has ended.
enum End {
    /// The handle was dropped.
    Stopped,
    /// The balancer was dropped.
    BalancerGone,
    Failed(String),
}

/// The thread's data.
pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) messages: Receiver<Message>,
    pub(super) orders: UnboundedSender<Order>,
    pub(super) on_event: Box<dyn FnMut(&Event) + Send>,
    pub(super) tunnels: Tunnels,
}

impl Driver {
    /// Runs until the handle or the balancer is gone.
    pub(super) fn run(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.work()));
        let why = match ended {
            Ok(End::Stopped) => return,
            Ok(End::BalancerGone) => {
                let why = "the balancer is gone";
                log::info!("health checks have ended: {why}");
                self.shared.known().ended = Some(why.to_owned());
                self.shared.changed.notify_all();
                return;
            }
            Ok(End::Failed(why)) => why,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                format!("a panic: {}", text.unwrap_or("of unknown kind"))
            }
        };
        log::error!("health checks have ended: {why}");
        self.shared.known().ended = Some(why.clone());
        self.shared.changed.notify_all();
        let event = Event::Ended { why };
        // Further failures have no consequence.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.on_event)(&event)));
    }

    fn work(&mut self) -> End {
        let mut not_before = Instant::now();
        loop {
            let now = Instant::now();
            let (wake, step) = {
                let known = self.shared.known();
                let step = known.board.next_step(now);
                (
                    if known.pending {
                        Some(not_before)
                    } else {
                        step
                    },
                    step,
                )
            };
            let wait = wake.map_or(IDLE, |wake| wake.saturating_duration_since(now).min(IDLE));
            match self.messages.recv_timeout(wait) {
                Ok(Message::Finished(first)) => {
                    thread::sleep(GATHER);
                    let mut batch = vec![first];
                    let mut look = false;
                    for message in self.messages.try_iter() {
                        match message {
                            Message::Finished(finished) => batch.push(finished),
                            Message::Look => look = true,
                        }
                    }
                    if self.record(batch).is_none() {
                        return End::BalancerGone;
                    }
                    self.shared.known().pending |= look;
                }
                Ok(Message::Look) => self.shared.known().pending = true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return End::Stopped,
            }
            if *lock(&self.shared.stopped) {
                return End::Stopped;
            }
            if self.shared.katran.strong_count() == 0 {
                return End::BalancerGone;
            }
            let now = Instant::now();
            let pending = {
                let mut known = self.shared.known();
                // A step due within the pause waits for its end, even the last step.
                known.pending |= step.is_some_and(|step| step <= now);
                known.pending
            };
            if pending && now >= not_before {
                match self.round() {
                    Ok(pause) => not_before = Instant::now() + pause,
                    Err(end) => return end,
                }
            }
        }
    }

    /// Records results, without those of probes that should have gone through the tunnel but did
    /// not. `None` if the balancer is gone.
    fn record(&mut self, batch: Vec<Finished>) -> Option<()> {
        let shared = Arc::clone(&self.shared);
        let tunnels = &mut self.tunnels;
        let (events, hurried) = shared.with_katran(|katran| {
            let questions = Arc::clone(&shared.known().questions);
            let mut events = tunnels.look(katran, &questions, &batch);
            let mut known = shared.known();
            let mut hurried = BTreeSet::new();
            let now = Instant::now();
            for Finished {
                target,
                started,
                took,
                outcome,
            } in batch
            {
                let Some(question) = questions.get(&target) else {
                    continue;
                };
                let outcome = match question.counted.and_then(|to| tunnels.missed(to, started)) {
                    Some(why) => Outcome::Missed(why),
                    None => outcome,
                };
                match &outcome {
                    Outcome::Passed => known.passed += 1,
                    Outcome::Failed(..) => known.failed += 1,
                    Outcome::NotSent(_) | Outcome::Missed(_) => known.not_sent += 1,
                }
                known.board.count(target, &outcome, took);
                let (effects, more) = known.board.record(target, outcome, now);
                events.extend(more);
                known.pending |= effects.tell;
                let vip = target.vip;
                hurried.extend(effects.ask.map(|real| Target { vip, real }));
            }
            (events, hurried)
        })?;
        self.shared.changed.notify_all();
        for target in hurried {
            // If the runner has ended, nothing can be probed sooner.
            let _ = self.orders.send(Order::Hurry(target));
        }
        for event in events {
            log::info!("{event}");
            (self.on_event)(&event);
        }
        Some(())
    }

    /// Applies the wanted state to the balancer. Returns how long to leave it alone then, or why
    /// there will be no more rounds.
    fn round(&mut self) -> std::result::Result<Duration, End> {
        let shared = Arc::clone(&self.shared);
        let told = shared.with_katran(|katran| {
            let mut state = katran.state();
            let mut board = shared.known().board.clone();
            board.follow_hash(&state);
            state.balancer = None;
            board.follow_balancer(&state)?;
            let before = Arc::clone(&shared.known().questions);
            let changes = shared.tell(katran, board, state, None)?;
            let known = shared.known();
            let others = !before.keys().eq(known.questions.keys());
            Ok((changes, others, known.board.settings.pause))
        });
        let why = match told {
            None => return Err(End::BalancerGone),
            Some(Ok((changes, others, pause))) => {
                if others {
                    self.shared.follow(&self.orders);
                }
                if !changes.is_empty() {
                    let changes = Box::new(changes);
                    let event = Event::Applied { changes };
                    log::info!("{event}");
                    (self.on_event)(&event);
                }
                return Ok(pause);
            }
            Some(Err(error @ Error::HandedOver { .. })) => {
                return Err(End::Failed(error.to_string()));
            }
            Some(Err(error)) => error.to_string(),
        };
        // Packets flow as before.
        let is_news = {
            let mut known = self.shared.known();
            known.pending = true;
            let before = known.refused.replace(why.clone());
            before.as_ref() != Some(&why)
        };
        if is_news {
            let event = Event::Refused { why };
            log::warn!("{event}");
            (self.on_event)(&event);
        }
        Ok(RETRY)
    }
}

/// Whether probes go through the tunnel, from the counters of the healthcheck program. All probes
/// to an address take the same path, so it does not matter which probe a packet belonged to.
#[derive(Default)]
pub(super) struct Tunnels(BTreeMap<Vip, Tunnel>);

struct Tunnel {
    count: u64,
    /// When packets were last seen to go through.
    rose: Instant,
    missed: Option<String>,
    /// The VIP for which that was reported.
    vip: Vip,
}

impl Tunnels {
    /// Reads the counters of what was probed, and returns the events to report.
    fn look(&mut self, katran: &Katran, questions: &Questions, batch: &[Finished]) -> Vec<Event> {
        let mut first: BTreeMap<Vip, &Finished> = BTreeMap::new();
        for finished in batch {
            let question = questions.get(&finished.target);
            if let Some(to) = question.and_then(|question| question.counted) {
                first.entry(to).or_insert(finished);
            }
        }
        let now = Instant::now();
        let mut events = Vec::new();
        for (to, finished) in first {
            let counter = katran.probes().counter(to);
            let tunnel = self.0.entry(to).or_insert(Tunnel {
                count: 0,
                rose: finished.started,
                missed: None,
                vip: finished.target.vip,
            });
            let why = match counter {
                Ok(count) if count != tunnel.count => {
                    (tunnel.count, tunnel.rose) = (count, now);
                    None
                }
                Ok(_) if tunnel.count > 0 && tunnel.rose >= finished.started => None,
                Ok(_) => Some(why_missed(katran, to, &finished.outcome)),
                Err(error) => Some(error.to_string()),
            };
            if why.is_some() != tunnel.missed.is_some() {
                let vip = tunnel.vip;
                let why = why.clone();
                events.push(Event::Missed { vip, why });
            }
            tunnel.missed = why;
        }
        self.0.retain(|_, tunnel| is_probed(questions, tunnel.vip));
        events
    }

    /// Why a probe that began then says nothing about its real.
    fn missed(&self, to: Vip, started: Instant) -> Option<String> {
        let tunnel = self.0.get(&to)?;
        match tunnel.rose >= started && tunnel.count > 0 {
            true => None,
            false => tunnel
                .missed
                .clone()
                .or_else(|| Some("no packet left".to_owned())),
        }
    }
}

/// Whether any real of a VIP is probed.
fn is_probed(questions: &Questions, vip: Vip) -> bool {
    let real = IpAddr::from([0; 4]); // Before all others.
    let mut from = questions.range(Target { vip, real }..);
    from.next().is_some_and(|(target, _)| target.vip == vip)
}

fn why_missed(katran: &Katran, to: Vip, outcome: &Outcome) -> String {
    if let Outcome::NotSent(why) = outcome {
        return why.clone();
    }
    if is_own(to) {
        return "the VIP is an address of this host: remove it from this host".to_owned();
    }
    let attachment = katran.probes().attachment();
    let interface = attachment.map_or(String::new(), |attachment| attachment.interface);
    format!(
        "no packet left through {interface} ({outcome}): route the VIP there, to a next hop that answers"
    )
}

/// Whether packets to an address stay on this host.
fn is_own(to: Vip) -> bool {
    let to = SocketAddr::from((to.address(), to.port()));
    let any = match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    // This sends no packet: the kernel only chooses the source address.
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(to)?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == to.ip())
}
