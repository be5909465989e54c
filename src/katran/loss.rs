//! Watching attachments: a thread tells the host application that one is gone, replaced, or back.
//!
//! It hears of changes of links, and asks the kernel about each attachment once a second besides: that
//! somebody takes a program off, or puts another in its place, it tells nobody. While a call is under way
//! nothing is told, for programs may change hands in it.

use std::any::Any;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;

use super::Katran;
use super::events::Events;
use crate::attach::Attached;
use crate::attach::AttachmentState;
use crate::attach::OnInterface;
use crate::attach::Witness;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::rtnetlink::Notices;
use crate::sys::namespace::Namespace;
use crate::sys::process::Owner;
use crate::sys::tenure::Tenure;

/// Between two looks, in milliseconds; and after one while a call was under way.
const EVERY: u16 = 1000;
const SOON: u16 = 20;

/// What a balancer is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachedTo {
    /// An interface, by XDP.
    Interface {
        /// Its name when it was seen last.
        name: String,
        /// The kernel's number of its network namespace.
        namespace: u64,
    },
    /// An entry of a root program.
    Entry {
        /// Where the array of entries is pinned.
        path: PathBuf,
        /// The entry's position in it, from 0.
        position: u32,
    },
}

/// An attachment is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttachmentChange {
    /// What is attached to.
    pub to: AttachedTo,
    /// What the kernel says of it now: it is gone, another program (such as another balancer's) is in its place, or it
    /// is there again.
    pub state: AttachmentState,
}

/// An attachment, and what says what has become of it.
struct Held {
    to: AttachedTo,
    witness: Witness,
}

/// What is attached, as the watching thread knows it.
#[derive(Default)]
pub(super) struct Board {
    laid: Mutex<Laid>,
    /// The process that has watched first.
    owner: OnceLock<Owner>,
}

#[derive(Default)]
struct Laid {
    watchers: Vec<Arc<Signals>>,
    held: Vec<Held>,
}

struct Signals {
    stop: AtomicBool,
    /// It is to stop, or to look.
    wake: EventFd,
}

impl Signals {
    fn wake(&self) {
        // It can only fail if 2^64 - 2 were not seen: then the thread is awake.
        let _ = self.wake.write(1);
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Laid> {
        self.laid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches attachments, until it is dropped: [`Events::watch_attachments`](crate::events::Events::watch_attachments).
#[must_use = "dropping it ends the watch"]
pub struct AttachmentWatch {
    board: Arc<Board>,
    signals: Arc<Signals>,
    thread: Option<JoinHandle<()>>,
    owner: Owner,
}

impl std::fmt::Debug for AttachmentWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttachmentWatch").finish_non_exhaustive()
    }
}

impl Drop for AttachmentWatch {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A child made by fork(2) has no such thread.
        if !self.owner.is_here() {
            return mem::forget(thread);
        }
        self.signals.stop.store(true, Ordering::Release);
        self.signals.wake();
        let mut laid = self.board.lock();
        laid.watchers.retain(|of| !Arc::ptr_eq(of, &self.signals));
        if laid.watchers.is_empty() {
            laid.held.clear();
        }
        drop(laid);
        // Its callback may be what drops it.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            log::error!("the thread that watches attachments has panicked");
        }
    }
}

type Callback = Box<dyn FnMut(&AttachmentChange) + Send>;

/// What the thread has.
struct Watcher {
    board: Arc<Board>,
    signals: Arc<Signals>,
    notices: Notices,
    tenure: Arc<Tenure>,
    callback: Callback,
    /// What it has told of each.
    told: Vec<(AttachedTo, AttachmentState)>,
}

impl Watcher {
    fn watch(mut self) {
        let mut patience = EVERY;
        loop {
            let mut events = [
                PollFd::new(self.signals.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.notices.as_fd(), PollFlags::POLLIN),
            ];
            // Interrupted or not: what there is to do is found out below.
            let _ = poll(&mut events, PollTimeout::from(patience));
            if self.signals.stop.load(Ordering::Acquire) || self.tenure.is_over() {
                return;
            }
            // What was written was seen, if anything was.
            let _ = self.signals.wake.read();
            while !self.notices.take().is_empty() {}
            let Some(changes) = self.look() else {
                patience = SOON;
                continue;
            };
            patience = EVERY;
            for change in changes {
                log::warn!("attachment: {:?} is {:?}", change.to, change.state);
                let called = panic::catch_unwind(AssertUnwindSafe(|| (self.callback)(&change)));
                if let Err(panic) = called {
                    log::error!(
                        "a callback has panicked, told of an attachment, and is not called again"
                    );
                    return forget(panic);
                }
            }
        }
    }

    /// What has changed; `None`: a call is under way.
    fn look(&mut self) -> Option<Vec<AttachmentChange>> {
        let laid = self.board.lock();
        if !self.tenure.is_idle() {
            return None;
        }
        let states: Vec<_> = laid
            .held
            .iter()
            .map(|held| (held.to.clone(), (held.witness)()))
            .collect();
        // One that has begun meanwhile may have changed a program before it was asked for.
        if !self.tenure.is_idle() {
            return None;
        }
        drop(laid);
        let before = mem::replace(&mut self.told, states);
        let changed = self.told.iter().filter_map(|(to, state)| {
            let told = before.iter().find(|(of, _)| of == to);
            let told = told.map_or(AttachmentState::Attached, |(_, state)| *state);
            (told != *state).then(|| AttachmentChange {
                to: to.clone(),
                state: *state,
            })
        });
        Some(changed.collect())
    }
}

/// What a panic has left may itself panic when it is dropped.
fn forget(panic: Box<dyn Any + Send>) {
    mem::forget(panic);
}

impl Events<'_> {
    /// Calls `callback` with each change of what the kernel says of an attachment, by XDP or as an entry of a root
    /// program: that it is [gone](AttachmentState::Gone), as its interface was removed, [replaced](AttachmentState::Replaced),
    /// as another balancer has taken the entry over, or [there again](AttachmentState::Attached), as
    /// [`reattach`](Katran::reattach) has put it back. One that is lost already is told of at once. To detach is no
    /// change.
    ///
    /// The callback runs on a thread that the library starts, until what is returned is dropped or another process takes the
    /// balancer over ([`is_handed_over`](Katran::is_handed_over)). A removed interface is told of at once, all else
    /// within a second, and nothing while a call changes the balancer. If it panics, that is logged, and it
    /// is not called again.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) if there is no thread or no socket for it.
    ///
    /// ```no_run
    /// # fn f(katran: &katran::Katran) -> katran::Result<()> {
    /// let (lost, losses) = std::sync::mpsc::channel();
    /// let watch = katran.events().watch_attachments(move |change| {
    ///     // Whoever has the balancer decides whether to `reattach`.
    ///     let _ = lost.send(change.clone());
    /// })?;
    /// # Ok(()) }
    /// ```
    pub fn watch_attachments(
        &self,
        callback: impl FnMut(&AttachmentChange) + Send + 'static,
    ) -> Result<AttachmentWatch> {
        let _call = self.katran.call()?;
        let started = self.katran.start_watch(Box::new(callback));
        let watch =
            started.map_err(|error| kernel_error("start", "a watch of attachments", error))?;
        self.katran.lay_losses();
        Ok(watch)
    }
}

impl Katran {
    fn start_watch(&self, callback: Callback) -> io::Result<AttachmentWatch> {
        let home = Namespace::of_process()?;
        let notices = home.run(|| {
            let mut notices = Notices::new()?;
            notices.listen_to_links()?;
            Ok::<_, io::Error>(notices)
        })??;
        let signals = Arc::new(Signals {
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let watcher = Watcher {
            board: Arc::clone(&self.losses),
            signals: Arc::clone(&signals),
            notices,
            tenure: Arc::clone(self.maps.live.tenure()),
            callback,
            told: Vec::new(),
        };
        let thread = thread::Builder::new().name("katran-attached".to_owned());
        // A thread begins in the namespace of the one that starts it, and keeps it alive.
        let thread = home.run(|| thread.spawn(move || watcher.watch()))??;
        self.losses.owner.get_or_init(Owner::new);
        self.losses.lock().watchers.push(Arc::clone(&signals));
        Ok(AttachmentWatch {
            board: Arc::clone(&self.losses),
            signals,
            thread: Some(thread),
            owner: Owner::new(),
        })
    }

    /// Attachments, or their programs, have changed.
    pub(super) fn lay_losses(&self) {
        // In a child made by fork(2) nobody may be left to give up the lock.
        let owner = self.losses.owner.get();
        if owner.is_none_or(|owner| !owner.is_here()) {
            return;
        }
        let mut laid = self.losses.lock();
        if laid.watchers.is_empty() {
            return;
        }
        let interfaces = self.attachments.iter().map(|link| {
            let to = AttachedTo::Interface {
                name: link.target().last_name(),
                namespace: link.target().place.namespace,
            };
            (to, link.witness())
        });
        let entries = self.shared.iter().map(|entry| {
            let (path, position) = entry.asked();
            (AttachedTo::Entry { path, position }, entry.witness())
        });
        let held = interfaces.chain(entries).filter_map(|(to, witness)| {
            let witness = witness
                .inspect_err(|error| log::error!("{to:?} is not watched: {error}"))
                .ok()?;
            Some(Held { to, witness })
        });
        laid.held = held.collect();
        laid.watchers.iter().for_each(|of| of.wake());
    }
}
