//! The thread of a pinned balancer's owner. It gives signs of life, and hands the balancer over
//! when another process asks and no call is under way.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;

use super::Katran;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::maps::Live;
use crate::pins::Asked;
use crate::pins::Claim;
use crate::pins::Home;
use crate::pins::Identity;
use crate::sys::process::Owner;
use crate::sys::tenure::Call;
use crate::sys::tenure::End;
use crate::sys::tenure::Tenure;
use crate::sys::ticks::ticks;

/// The interval of signs of life, and of looking for a request in case its notice was missed.
const EVERY: Duration = Duration::from_secs(1);
/// How long new calls wait for a slow one before they proceed and the handover is retried.
const AT_ONCE: Duration = Duration::from_millis(50);

pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    owner: Owner,
}

struct Shared {
    path: PathBuf,
    claim: Arc<Claim>,
    identity: Arc<Identity>,
    /// What packets read, or are about to read, including what only replaced programs read, while
    /// those are held.
    lives: Mutex<Vec<Weak<Live>>>,
    tick: Duration,
    tenure: Arc<Tenure>,
    stop: AtomicBool,
    wake: EventFd,
}

impl Shared {
    fn lives(&self) -> MutexGuard<'_, Vec<Weak<Live>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_life(&self) {
        self.tenure.while_ours(|| {
            self.identity.show_life();
            let ticks = ticks(self.tick);
            self.lives().retain(|live| match live.upgrade() {
                Some(live) => {
                    live.show_life(ticks);
                    true
                }
                None => false,
            });
        });
    }

    /// The thread's loop, until it is stopped or the balancer is another process's.
    fn keep(&self) {
        let listener = self.claim.listen();
        if let Err(error) = &listener {
            log::warn!(
                "cannot listen for requests to take the balancer over, so one may wait for a \
                 second: {error}"
            );
        }
        let mut next = Instant::now();
        let mut is_blind = false;
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            if now >= next {
                self.show_life();
                next = now + EVERY;
            }
            match self.claim.asked() {
                Ok(Some(asked)) => {
                    if self.hand_over(asked) {
                        return;
                    }
                    // Retried at once.
                    continue;
                }
                Ok(None) => {}
                Err(error) if !is_blind => {
                    log::warn!("cannot look for requests to take the balancer over: {error}");
                    is_blind = true;
                }
                Err(_) => {}
            }
            // Rounded up: it must not be early.
            let left = next.saturating_duration_since(now) + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut events = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            if let Ok(listener) = &listener {
                events.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            }
            // Interrupted or not: the loop looks for work.
            let _ = poll(&mut events, timeout);
            if let Ok(listener) = &listener {
                listener.clear();
            }
        }
    }

    /// Hands the balancer over, if no call is under way; false: one is, or the request is gone.
    fn hand_over(&self, asked: Asked) -> bool {
        if !self.tenure.close_within(AT_ONCE) {
            return false;
        }
        // The requester may have run out of patience, or be dead.
        if !matches!(self.claim.asked(), Ok(Some(by)) if by == asked) {
            self.tenure.reopen();
            return false;
        }
        self.claim.give_up();
        // The requester waits no longer for the lock than for the balancer, so it may be gone.
        let asks = matches!(self.claim.asked(), Ok(Some(by)) if by == asked);
        if !asks && self.claim.take_back() {
            self.tenure.reopen();
            return false;
        }
        self.tenure.end(End::HandedOver {
            path: self.path.clone(),
            to: asked.by,
        });
        log::info!("handed over the balancer pinned in {}", self.path.display());
        true
    }
}

impl Keeper {
    /// Starts it for what is pinned in a directory.
    fn start(home: &Home, live: &Arc<Live>, tick: Duration) -> io::Result<Option<Self>> {
        let Some((claim, identity)) = home.claim_of_balancer() else {
            return Ok(None);
        };
        let shared = Arc::new(Shared {
            path: home.path().to_owned(),
            claim,
            identity,
            tenure: Arc::clone(live.tenure()),
            lives: Mutex::new(vec![Arc::downgrade(live)]),
            tick,
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let thread = start_thread(&shared)?;
        let keeper = Self {
            shared,
            thread: Mutex::new(Some(thread)),
            owner: Owner::new(),
        };
        keeper.show_life();
        Ok(Some(keeper))
    }

    /// Records that the owner lives, because it has called. Replaces a thread that has panicked.
    fn show_life(&self) {
        if !self.owner.is_here() {
            return;
        }
        self.shared.show_life();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.as_ref().is_none_or(|of| !of.is_finished()) || self.shared.tenure.is_over() {
            return;
        }
        log::error!("the thread that gives signs of life has ended: starting another");
        match start_thread(&self.shared) {
            Ok(started) => *thread = Some(started),
            Err(error) => log::error!(
                "cannot start the thread that gives signs of life, so only calls do: {error}"
            ),
        }
    }

    /// Sends signs of life to memory that packets are about to read, too, while something holds it.
    pub(super) fn also(&self, live: &Arc<Live>) {
        self.shared.lives().push(Arc::downgrade(live));
        self.show_life();
    }
}

fn start_thread(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new().name("katran-keeper".to_owned());
    thread.spawn(move || shared.keep())
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(thread) = thread.take() else {
            return;
        };
        if !self.owner.is_here() {
            mem::forget(thread);
            return;
        }
        self.shared.stop.store(true, Ordering::Release);
        // It can only fail with 2^64 - 2 unread events: then the thread is awake.
        let _ = self.shared.wake.write(1);
        if thread.join().is_err() {
            log::error!("the thread that gives signs of life has panicked");
        }
    }
}

/// # Handover
impl Katran {
    /// Begins a call that changes something: the balancer is not handed over before the returned
    /// value is dropped.
    ///
    /// # Errors
    /// [`Error::HandedOver`](crate::Error::HandedOver).
    pub(super) fn call(&self) -> Result<Call> {
        let call = self.maps.live.tenure().call()?;
        if let Some(keeper) = &self.keeper {
            keeper.show_life();
        }
        Ok(call)
    }

    /// Whether another process has taken over the pinned balancer
    /// ([`Builder::take_over`](crate::Builder::take_over)).
    ///
    /// From then on calls that change something or read what packets see return
    /// [`Error::HandedOver`](crate::Error::HandedOver); those without an error type do nothing. The
    /// handle's own knowledge, such as [`state`](Self::state), no longer changes. Drop the handle:
    /// that leaves the balancer alone.
    pub fn is_handed_over(&self) -> bool {
        self.maps.live.tenure().is_over()
    }

    /// Begins to give signs of life, and to hand the balancer over on request.
    ///
    /// # Errors
    /// If the thread cannot start, and packets depend on its signs.
    pub(super) fn keep_house(&mut self) -> Result<()> {
        let live = &self.maps.live;
        let home = self.home.as_ref();
        let started = home
            .map(|home| Keeper::start(home, live, self.fixed.tick))
            .transpose();
        match started {
            Ok(keeper) => self.keeper = keeper.flatten(),
            Err(error) if !self.config.orphan_limit.is_zero() => {
                return Err(kernel_error("start", "a thread for signs of life", error));
            }
            Err(error) => {
                log::error!(
                    "cannot start a thread, so the balancer gives no signs of life and cannot be \
                     taken over: {error}"
                )
            }
        }
        Ok(())
    }
}
