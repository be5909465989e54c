//! The thread of a pinned balancer's owner: it says from time to time that there is one, and hands the balancer over when
//! another process asks for it and nothing is under way.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
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
use crate::maps::Live;
use crate::pins::Asked;
use crate::pins::Claim;
use crate::pins::Home;
use crate::pins::Identity;
use crate::sys::process::Owner;
use crate::sys::tenure::Call;
use crate::sys::tenure::Successor;
use crate::sys::tenure::Tenure;
use crate::sys::ticks::ticks;

/// Between two signs of life; so often the thread also looks whether somebody asks, should it not have heard.
const EVERY: Duration = Duration::from_secs(1);
/// For how long new calls wait at most for one that takes longer, before they go on and it is tried again.
const AT_ONCE: Duration = Duration::from_millis(50);

/// The thread, while it runs.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    owner: Owner,
}

struct Shared {
    path: PathBuf,
    claim: Arc<Claim>,
    identity: Arc<Identity>,
    live: Arc<Live>,
    tick: Duration,
    tenure: Arc<Tenure>,
    stop: AtomicBool,
    /// It is to stop.
    wake: EventFd,
}

impl Shared {
    fn show_life(&self) {
        self.tenure.while_ours(|| {
            self.identity.show_life();
            self.live.show_life(ticks(self.tick));
        });
    }

    /// What the thread does, until it is to stop, or the balancer is another process's.
    fn keep(&self) {
        let listener = self.claim.listen();
        if let Err(error) = &listener {
            log::warn!(
                "another process that asks for the balancer is heard within a second: {error}"
            );
        }
        let mut next = Instant::now();
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
                    // It is tried again at once.
                    continue;
                }
                Ok(None) => {}
                Err(error) => log::warn!("cannot see whether another process asks: {error}"),
            }
            // Rounded up, so that it is not too early when the time has come.
            let left = next.saturating_duration_since(now) + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut events = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            if let Ok(listener) = &listener {
                events.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            }
            // Interrupted or not: what there is to do is found out above.
            let _ = poll(&mut events, timeout);
            if let Ok(listener) = &listener {
                listener.clear();
            }
        }
    }

    /// Hands the balancer over, if nothing is under way; false: something is, or nobody asks any more.
    fn hand_over(&self, asked: Asked) -> bool {
        if !self.tenure.close_within(AT_ONCE) {
            return false;
        }
        // It may have waited for too long, or be dead.
        if !matches!(self.claim.asked(), Ok(Some(by)) if by == asked) {
            self.tenure.reopen();
            return false;
        }
        self.tenure.end(Successor {
            path: self.path.clone(),
            process: asked.by,
        });
        self.claim.give_up();
        log::info!(
            "the balancer pinned in {} is handed over",
            self.path.display()
        );
        true
    }
}

impl Keeper {
    /// Starts it for what is pinned in a directory.
    fn start(home: &Home, live: Arc<Live>, tick: Duration) -> io::Result<Option<Self>> {
        let Some((claim, identity)) = home.claim_of_balancer() else {
            return Ok(None);
        };
        let shared = Arc::new(Shared {
            path: home.path().to_owned(),
            claim,
            identity,
            tenure: Arc::clone(live.tenure()),
            live,
            tick,
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let mut keeper = Self {
            shared,
            thread: None,
            owner: Owner::new(),
        };
        keeper.show_life();
        keeper.start_thread()?;
        Ok(Some(keeper))
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("katran-keeper".to_owned());
        self.thread = Some(thread.spawn(move || shared.keep())?);
        Ok(())
    }

    /// The owner lives: it has called.
    fn show_life(&self) {
        if self.owner.is_here() {
            self.shared.show_life();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if !self.owner.is_here() {
            mem::forget(thread);
            return;
        }
        self.shared.stop.store(true, Ordering::Release);
        // It can only fail if 2^64 - 2 were not seen: then the thread is awake.
        let _ = self.shared.wake.write(1);
        if thread.join().is_err() {
            log::error!("the thread that says that the balancer has an owner has panicked");
        }
    }
}

impl Katran {
    /// Begins a call that changes something: the balancer is not handed over before what is returned is dropped.
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

    /// Whether another process has taken the pinned balancer over ([`Builder::take_over`](crate::Builder::take_over)). From then
    /// on calls that change something, and those that read what packets see, are
    /// [`Error::HandedOver`](crate::Error::HandedOver); those that return no error change nothing. What the handle knows of
    /// itself, such as [`state`](Self::state), stays what it was. Drop it: that leaves the balancer alone.
    pub fn is_handed_over(&self) -> bool {
        self.maps.live.tenure().is_over()
    }

    /// Gives signs of life from now on, and hands the balancer over to who asks.
    pub(super) fn keep_house(&mut self) {
        let live = Arc::clone(&self.maps.live);
        let home = self.home.as_ref();
        let started = home
            .map(|home| Keeper::start(home, live, self.fixed.tick))
            .transpose();
        match started {
            Ok(keeper) => self.keeper = keeper.flatten(),
            Err(error) => log::error!(
                "nobody is told that the balancer has an owner, and it cannot be taken over: {error}"
            ),
        }
    }
}
