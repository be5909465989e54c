//! The thread that follows the state of links. It runs in the process's network namespace, because
//! it would keep another one alive, as its sockets would (see `watched`). If it panics, the next
//! change of attachments starts it again.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
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

use super::Place;
use super::Told;
use super::link::ask_once;
use super::watched::Watched;
use super::watched::Way;
use crate::environment::hears_other_namespaces;
use crate::rtnetlink::Notice;
use crate::rtnetlink::Notices;
use crate::rtnetlink::Requests;
use crate::sys::namespace::Namespace;
use crate::sys::namespace::network_namespace;
use crate::sys::process::Owner;
use crate::sys::tenure::Tenure;

/// How long, in milliseconds, to wait before repeating a failed question, and between questions
/// about changes that the kernel may not report.
const AGAIN: u16 = 15_000;

/// The thread, and what it shares with its owner.
pub(super) struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The process of the thread.
    owner: Owner,
    /// The namespace of the process.
    home: Namespace,
}

struct Shared {
    known: Mutex<Known>,
    notices: Notices,
    tenure: Arc<Tenure>,
    stop: AtomicBool,
    /// It should stop, or a question is open.
    wake: EventFd,
}

struct Known {
    requests: Requests,
    watched: Vec<Watched>,
    overhead: u32,
    told: Told,
    /// The kernel reports no changes in other namespaces, because a privilege is missing.
    is_deaf: bool,
}

impl Shared {
    /// The kernel is asked under the lock, so that answers are written in order. Packets and
    /// getters take no lock.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails only after 2^64 - 2 unread events; then the thread is awake.
        let _ = self.wake.write(1);
    }

    /// The thread's loop, until it should stop.
    fn follow(&self) {
        // Notices without a thread are in the queue; unfinished work may be there.
        let mut changed = vec![None];
        loop {
            let Ok(permit) = self.tenure.permit() else {
                return;
            };
            let patience = self.known().ask(&changed);
            drop(permit);
            let mut events = [
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.notices.as_fd(), PollFlags::POLLIN),
            ];
            // Interrupted or not, what follows finds the work.
            let happened = poll(&mut events, patience);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            // If anything was written, it has been seen.
            let _ = self.wake.read();
            let notices = self.notices.take().into_iter();
            let interfaces = notices.filter_map(|notice| match notice {
                Notice::Link { index } => Some(Some(index)),
                Notice::Anything => Some(None),
                _ => None,
            });
            changed = interfaces.collect();
            if happened == Ok(0) && self.known().misses_notices() {
                changed.push(None);
            }
        }
    }
}

impl Known {
    /// Asks again for what changes of these interfaces may touch (`None`: all), and for what is
    /// open. Returns how long to wait for the next change.
    fn ask(&mut self, changed: &[Option<u32>]) -> PollTimeout {
        for watched in &mut self.watched {
            let is_about = |of: &Option<u32>| of.is_none_or(|index| watched.is_about(index));
            if watched.is_open || changed.iter().any(is_about) {
                watched.ask(&mut self.requests);
            }
        }
        self.publish();
        match self.has_open() || self.misses_notices() {
            true => PollTimeout::from(AGAIN),
            false => PollTimeout::NONE,
        }
    }

    fn has_open(&self) -> bool {
        self.watched.iter().any(|watched| watched.is_open)
    }

    fn misses_notices(&self) -> bool {
        self.is_deaf && self.watched.iter().any(Watched::is_elsewhere)
    }

    fn publish(&mut self) {
        let found = self.watched.iter();
        let found = found.filter_map(|of| Some((of.place.1, of.found.as_ref()?)));
        self.told.tell(found, self.overhead);
    }
}

impl Follower {
    pub(super) fn start(told: Told, overhead: u32) -> io::Result<Self> {
        let home = Namespace::of_process()?;
        let (requests, notices) = home.run(|| {
            let mut notices = Notices::new()?;
            notices.listen_to_links()?;
            Ok::<_, io::Error>((Requests::new()?, notices))
        })??;
        let shared = Arc::new(Shared {
            tenure: told.tenure(),
            known: Mutex::new(Known {
                requests,
                watched: Vec::new(),
                overhead,
                told,
                is_deaf: !hears_other_namespaces(),
            }),
            notices,
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let mut follower = Self {
            shared,
            thread: None,
            owner: Owner::new(),
            home,
        };
        follower.start_thread()?;
        Ok(follower)
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("katran-links".to_owned());
        // A thread starts in the namespace of its creator and keeps that alive.
        let spawned = self.home.run(|| thread.spawn(move || shared.follow()))??;
        self.thread = Some(spawned);
        Ok(())
    }

    /// Replaces a thread that panicked with one that continues from its state.
    fn replace_ended(&mut self) {
        if self.thread.as_ref().is_some_and(|of| !of.is_finished()) {
            return;
        }
        if self.thread.take().is_some_and(|of| of.join().is_err()) {
            log::error!("the thread that follows links panicked: starting another one");
        }
        if let Err(error) = self.start_thread() {
            log::error!("cannot follow links until the next change of attachments: {error}");
        }
    }

    pub(super) fn set_overhead(&self, overhead: u32) {
        // In a child of fork(2), nobody may be left to release the lock.
        if self.owner.is_here() {
            let mut known = self.shared.known();
            known.overhead = overhead;
            known.publish();
        }
    }

    pub(super) fn set_places(&mut self, places: &[Place]) {
        if !self.owner.is_here() {
            return;
        }
        self.replace_ended();
        let mut known = self.shared.known();
        let known = &mut *known;
        known.watched.retain(|of| places.contains(&of.place));
        let was_missing = known.misses_notices();
        for place in places {
            if known.watched.iter().any(|of| of.place == *place) {
                continue;
            }
            let watched = self.find(&mut known.requests, *place);
            known.watched.push(watched);
        }
        known.publish();
        let misses_notices = known.misses_notices();
        if misses_notices && !was_missing {
            let every = AGAIN / 1000;
            log::warn!(
                "without CAP_NET_BROADCAST, the library polls interfaces in other network \
                 namespaces every {every} seconds"
            );
        }
        if known.has_open() || misses_notices {
            self.shared.wake();
        }
    }

    /// How to ask for a place in the calling thread's namespace, and its state.
    fn find(&self, requests: &mut Requests, place: Place) -> Watched {
        let way = match place.0 == self.home.number() {
            true => Ok(Way::Home),
            false => number_of(requests, place.0).map(Way::Numbered),
        };
        match way {
            Ok(way) => {
                let mut watched = Watched::new(place, way);
                watched.ask(requests);
                watched
            }
            Err(error) => {
                log::warn!(
                    "interface {}: cannot follow MTU and MAC address: {error}",
                    place.1
                );
                Watched::once(place, ask_once(place))
            }
        }
    }

    fn join(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if !self.owner.is_here() {
            mem::forget(thread);
            return;
        }
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if thread.join().is_err() {
            log::error!("the thread that follows links panicked");
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.join();
    }
}

/// The number that the process's namespace has for the calling thread's.
fn number_of(requests: &mut Requests, namespace: u64) -> io::Result<i32> {
    if network_namespace()? != namespace {
        return Err(io::Error::other("it is in another network namespace"));
    }
    let here = File::open("/proc/thread-self/ns/net")?;
    requests.number_of_namespace(here.as_fd())
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::time::Duration;
    use std::time::Instant;

    use nix::sys::memfd::MFdFlags;
    use nix::sys::memfd::memfd_create;
    use nix::unistd::ftruncate;

    use super::*;
    use crate::links::Links;
    use crate::maps::Live;
    use crate::types::Encapsulation;
    use crate::types::MaxFrame;

    /// As packets read it, in memory of no map.
    fn live() -> Arc<Live> {
        let name = CString::new("live").unwrap();
        let file = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 1 << 16).unwrap();
        Arc::new(Live::new(file, Arc::default()).unwrap())
    }

    #[test]
    fn a_thread_that_has_panicked_is_replaced() {
        const LOOPBACK: u32 = 1;
        let live = live();
        let links = Links::new(MaxFrame::Auto, Encapsulation::Ipip, Arc::clone(&live));
        let mut follower = Follower::start(Told::new(&links), 0).unwrap();
        follower.join();
        follower.shared.stop.store(false, Ordering::Release);
        follower.thread = Some(thread::spawn(|| panic!("on purpose")));
        let is_over = |follower: &Follower| follower.thread.as_ref().unwrap().is_finished();
        let began = Instant::now();
        while !is_over(&follower) {
            assert!(began.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(1));
        }
        let here = network_namespace().unwrap();
        follower.set_places(&[(here, LOOPBACK)]);
        assert!(!is_over(&follower));
        assert_ne!(live.max_frame(), super::super::UNATTACHED);
        // It follows and stops like the first one: repeated questions are reported.
        let before = live.max_frame();
        {
            let mut known = follower.shared.known();
            known.overhead = 1000;
            known.watched[0].is_open = true;
        }
        follower.shared.wake();
        let began = Instant::now();
        while live.max_frame() == before {
            assert!(began.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(1));
        }
        drop(follower);
    }
}
