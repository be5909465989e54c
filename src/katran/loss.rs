//! Watching attachments: a thread tells the host application when one is gone, replaced or back.
//!
//! The kernel notifies the thread of changed links, but not of a removed or replaced program, so
//! the thread also asks about each attachment once a second. It reports nothing during a call,
//! which may replace programs itself.

use std::any::Any;
use std::fmt;
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

/// Between two looks, in milliseconds; also after one that met a call under way.
const EVERY: u16 = 1000;
const SOON: u16 = 20;

/// What a balancer is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachedTo {
    /// An interface, by XDP.
    Interface {
        /// The last name seen.
        name: String,
        /// The inode number of its network namespace.
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

impl fmt::Display for AttachedTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface { name, .. } => write!(f, "interface {name}"),
            Self::Entry { path, position } => write!(f, "entry {position} of {}", path.display()),
        }
    }
}

/// A change of an attachment's state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttachmentChange {
    /// Where it is attached.
    pub to: AttachedTo,
    /// Its new state by the kernel: gone, replaced by another program (perhaps another balancer's),
    /// or attached again.
    pub state: AttachmentState,
}

struct Held {
    to: AttachedTo,
    witness: Witness,
}

/// The attachments as the watching thread knows them.
#[derive(Default)]
pub(super) struct Board {
    laid: Mutex<Laid>,
    /// The process that watched first.
    owner: OnceLock<Owner>,
}

#[derive(Default)]
struct Laid {
    watchers: Vec<Arc<Signals>>,
    held: Vec<Held>,
}

struct Signals {
    stop: AtomicBool,
    /// Stops the thread, or makes it look.
    wake: EventFd,
}

impl Signals {
    fn wake(&self) {
        // It can only fail with 2^64 - 2 unread events: then the thread is awake.
        let _ = self.wake.write(1);
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Laid> {
        self.laid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches attachments until it is dropped:
/// [`Events::watch_attachments`](crate::events::Events::watch_attachments).
#[must_use = "dropping it ends the watch"]
pub struct AttachmentWatch {
    board: Arc<Board>,
    signals: Arc<Signals>,
    thread: Option<JoinHandle<()>>,
    owner: Owner,
}

impl fmt::Debug for AttachmentWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

struct Watcher {
    board: Arc<Board>,
    signals: Arc<Signals>,
    notices: Notices,
    tenure: Arc<Tenure>,
    callback: Callback,
    /// What it last reported of each.
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
            // Interrupted or not: what follows looks for changes.
            let _ = poll(&mut events, PollTimeout::from(patience));
            if self.signals.stop.load(Ordering::Acquire) || self.tenure.is_over() {
                return;
            }
            // This looks at everything announced so far.
            let _ = self.signals.wake.read();
            while !self.notices.take().is_empty() {}
            let Some(changes) = self.look() else {
                patience = SOON;
                continue;
            };
            patience = EVERY;
            for change in changes {
                log::warn!("attachment to {}: {}", change.to, change.state);
                let called = panic::catch_unwind(AssertUnwindSafe(|| (self.callback)(&change)));
                if let Err(panic) = called {
                    log::error!("a callback for attachments has panicked and is not called again");
                    return forget(panic);
                }
            }
        }
    }

    /// The changes; `None`: a call is under way.
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
        // A call that began meanwhile may have changed a program before the kernel was asked.
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

/// A panic's payload may itself panic when dropped.
fn forget(panic: Box<dyn Any + Send>) {
    mem::forget(panic);
}

/// # Attachments
impl Events<'_> {
    /// Calls `callback` with each change of an attachment's state, by XDP or as an entry of a root
    /// program: [gone](AttachmentState::Gone), because its interface was removed;
    /// [replaced](AttachmentState::Replaced), because another balancer took the entry over; or
    /// [attached](AttachmentState::Attached) again by [`reattach`](Katran::reattach). An attachment
    /// that is already lost is reported at once. Detaching is not reported.
    ///
    /// The callback runs on a thread of the library, until you drop the returned watch or another
    /// process takes the balancer over ([`is_handed_over`](Katran::is_handed_over)). The library
    /// reports a removed interface at once, and any other change within a second or after the call
    /// that is changing the balancer. A callback that panics is logged and not called again.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) if the library cannot start a thread or open a
    /// socket.
    ///
    /// ```no_run
    /// # fn f(katran: &katran::Katran) -> katran::Result<()> {
    /// let (lost, losses) = std::sync::mpsc::channel();
    /// let watch = katran.events().watch_attachments(move |change| {
    ///     // The thread that owns the balancer decides whether to `reattach`.
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

    pub(super) fn lay_losses(&self) {
        // In a child made by fork(2) nothing may be left to release the lock.
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
                .inspect_err(|error| log::error!("cannot watch the attachment to {to}: {error}"))
                .ok()?;
            Some(Held { to, witness })
        });
        laid.held = held.collect();
        laid.watchers.iter().for_each(|of| of.wake());
    }
}
