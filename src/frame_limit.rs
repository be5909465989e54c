//! The longest frame that is forwarded, where that is to be found out: what the interfaces that frames leave
//! by can send, less what the encapsulation adds. A thread hears of changes and writes the number into the
//! memory that packets read.
//!
//! # Other network namespaces
//! A socket keeps its network namespace alive, and a balancer must not do that to a container. So both sockets
//! belong to the namespace of the process, which gives the others numbers (`ip netns list-id`): by these
//! the kernel tells of their interfaces, and of changes there. A number keeps nothing alive. When its
//! namespace is gone it may be given to another one, so an interface that was not there once is not asked
//! for any more. A thread keeps its namespace alive as well, so this one is in that of the process.

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

use nix::libc;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;

use crate::maps::Live;
use crate::rtnetlink::Notice;
use crate::rtnetlink::Notices;
use crate::rtnetlink::Requests;
use crate::sys::namespace::Namespace;
use crate::sys::namespace::network_namespace;
use crate::sys::process::Owner;
use crate::types::Encapsulation;
use crate::types::Family;
use crate::types::MaxFrame;

/// Of an Ethernet interface of the usual MTU, while nothing is attached.
const UNATTACHED: u32 = 1514;
const ETHERNET: u32 = 14;
/// The range of the setting: every IPv4 host takes packets of 576 bytes, and there are none above 65,535.
const SHORTEST: u32 = 590;
const LONGEST: u32 = 65_549;
/// When a question that has failed is asked again, in milliseconds, if nothing changes before.
const AGAIN: u16 = 15_000;

/// The longest frame that an interface of this MTU can send with so much around it.
pub(crate) fn longest_frame(mtu: u32, overhead: u32) -> u32 {
    let longest = mtu.saturating_sub(overhead).saturating_add(ETHERNET);
    longest.clamp(SHORTEST, LONGEST)
}

/// An interface that frames leave by: the number of its network namespace, and its index there.
pub(crate) type Exit = (u64, u32);

/// Sees to it that packets know the longest frame.
pub(crate) struct FrameLimit {
    encapsulation: Encapsulation,
    live: Arc<Live>,
    /// If it is to be found out.
    auto: bool,
    /// How many reals have addresses of IPv6.
    reals_v6: usize,
    /// While the balancer is attached.
    follower: Option<Follower>,
}

impl FrameLimit {
    pub(crate) fn new(wanted: MaxFrame, encapsulation: Encapsulation, live: Arc<Live>) -> Self {
        let longest = match wanted {
            MaxFrame::Bytes(bytes) => bytes,
            MaxFrame::Auto => UNATTACHED,
        };
        live.set_max_frame(longest);
        Self {
            encapsulation,
            live,
            auto: wanted == MaxFrame::Auto,
            reals_v6: 0,
            follower: None,
        }
    }

    /// The number that packets go by now.
    pub(crate) fn longest(&self) -> u32 {
        self.live.max_frame()
    }

    /// So many reals of IPv6 have come, or gone. Headers around packets to them are the longer ones; which
    /// real a packet goes to is not known yet where its length is looked at.
    pub(crate) fn count_reals(&mut self, come: usize, gone: usize) {
        let before = self.overhead();
        self.reals_v6 = (self.reals_v6 + come).saturating_sub(gone);
        let overhead = self.overhead();
        if let Some(follower) = &self.follower
            && overhead != before
        {
            follower.set_overhead(overhead);
        }
    }

    fn overhead(&self) -> u32 {
        let outer = match self.reals_v6 {
            0 => Family::V4,
            _ => Family::V6,
        };
        self.encapsulation.overhead(outer)
    }

    /// Frames leave by these interfaces from now on. New ones are in the calling thread's network namespace.
    pub(crate) fn set_exits(&mut self, exits: &[Exit]) {
        if !self.auto {
            return;
        }
        if exits.is_empty() {
            if let Some(follower) = self.follower.take() {
                follower.stop();
                self.live.set_max_frame(UNATTACHED);
            }
            return;
        }
        if self.follower.is_none() {
            match Follower::start(Arc::clone(&self.live), self.overhead()) {
                Ok(follower) => self.follower = Some(follower),
                Err(error) => {
                    log::warn!("MTUs are not followed: {error}");
                    self.ask_once(exits);
                    return;
                }
            }
        }
        if let Some(follower) = &self.follower {
            follower.set_exits(exits);
        }
    }

    /// Where nothing can be followed: goes by the MTUs in the calling thread's namespace as they are now.
    fn ask_once(&self, exits: &[Exit]) {
        let (Ok(here), Ok(mut requests)) = (network_namespace(), Requests::new()) else {
            return;
        };
        let exits = exits.iter().filter(|exit| exit.0 == here);
        let mtus = exits.filter_map(|exit| ask(&mut requests, *exit, None).ok()?);
        if let Some(mtu) = mtus.min() {
            self.live.set_max_frame(longest_frame(mtu, self.overhead()));
        }
    }
}

/// What is known of an interface that frames leave by.
struct Watched {
    exit: Exit,
    way: Way,
    /// `None`: it is gone, or nothing is known yet.
    mtu: Option<u32>,
    /// The last question has failed, and is asked again.
    is_open: bool,
}

/// How the kernel is asked for an interface.
#[derive(Clone, Copy)]
enum Way {
    /// It is in the namespace of the process.
    Home,
    /// By the number that its namespace has there.
    Numbered(i32),
    /// Not again: its namespace has no number, for which this process lacks a privilege, or it is not there any
    /// more, and its number may be another one's.
    Never,
}

impl Watched {
    fn new(exit: Exit, way: Way) -> Self {
        Self {
            exit,
            way,
            mtu: None,
            is_open: false,
        }
    }

    fn ask(&mut self, requests: &mut Requests) {
        let namespace = match self.way {
            Way::Home => None,
            Way::Numbered(number) => Some(number),
            Way::Never => return,
        };
        self.take(ask(requests, self.exit, namespace));
    }

    /// Takes the kernel's answer. An error leaves what was known.
    fn take(&mut self, answer: io::Result<Option<u32>>) {
        let is_numbered = matches!(self.way, Way::Numbered(_));
        let answer = match answer {
            // The number is nobody's: the namespace is gone.
            Err(error) if is_numbered && error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            answer => answer,
        };
        match answer {
            Ok(mtu) => {
                (self.mtu, self.is_open) = (mtu, false);
                if mtu.is_none() && is_numbered {
                    self.way = Way::Never;
                }
            }
            Err(error) => {
                if !self.is_open {
                    let index = self.exit.1;
                    log::warn!("the MTU of interface {index} is asked for again: {error}");
                }
                self.is_open = true;
            }
        }
    }
}

/// The thread, and what it shares with its owner.
struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The process that the thread is in.
    owner: Owner,
    /// The namespace of the process.
    home: u64,
}

struct Shared {
    known: Mutex<Known>,
    stop: AtomicBool,
    /// It is to stop, or a question is open.
    wake: EventFd,
}

struct Known {
    requests: Requests,
    watched: Vec<Watched>,
    overhead: u32,
    live: Arc<Live>,
}

impl Shared {
    /// The kernel is asked under the lock, so that what was asked for first is written first. Packets and
    /// getters take no lock.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Asks again for interfaces with these indexes (`None`: for all), and what is open.
    fn ask(&mut self, changed: &[Option<u32>]) {
        for watched in &mut self.watched {
            let index = Some(watched.exit.1);
            if watched.is_open || changed.contains(&None) || changed.contains(&index) {
                watched.ask(&mut self.requests);
            }
        }
        self.publish();
    }

    fn has_open(&self) -> bool {
        self.watched.iter().any(|watched| watched.is_open)
    }

    fn publish(&self) {
        let smallest = self.watched.iter().filter_map(|watched| watched.mtu).min();
        let longest = smallest.map_or(UNATTACHED, |mtu| longest_frame(mtu, self.overhead));
        if longest != self.live.max_frame() {
            log::info!("frames of up to {longest} bytes are forwarded");
            self.live.set_max_frame(longest);
        }
    }
}

/// The MTU of an interface; `None`: it is not there.
fn ask(requests: &mut Requests, exit: Exit, namespace: Option<i32>) -> io::Result<Option<u32>> {
    let interface = requests.interface_in(namespace, exit.1)?;
    Ok(interface.map(|interface| interface.mtu))
}

impl Follower {
    fn start(live: Arc<Live>, overhead: u32) -> io::Result<Self> {
        let home = Namespace::of_process()?;
        let (requests, notices) = home.run(|| {
            let mut notices = Notices::new()?;
            notices.listen_to_links()?;
            Ok::<_, io::Error>((Requests::new()?, notices))
        })??;
        let shared = Arc::new(Shared {
            known: Mutex::new(Known {
                requests,
                watched: Vec::new(),
                overhead,
                live,
            }),
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("katran-mtu".to_owned());
        // A thread begins in the namespace of the one that starts it, and keeps it alive.
        let thread = home.run(|| thread.spawn(move || follow(&of_thread, &notices)))??;
        Ok(Self {
            shared,
            thread: Some(thread),
            owner: Owner::new(),
            home: home.number(),
        })
    }

    fn set_overhead(&self, overhead: u32) {
        // In a child made by fork(2) nobody may be left to give up the lock.
        if self.owner.is_here() {
            let mut known = self.shared.known();
            known.overhead = overhead;
            known.publish();
        }
    }

    fn set_exits(&self, exits: &[Exit]) {
        if !self.owner.is_here() {
            return;
        }
        let mut known = self.shared.known();
        let known = &mut *known;
        known
            .watched
            .retain(|watched| exits.contains(&watched.exit));
        for exit in exits {
            if known.watched.iter().any(|watched| watched.exit == *exit) {
                continue;
            }
            let watched = self.find(&mut known.requests, *exit);
            known.watched.push(watched);
        }
        known.publish();
        if known.has_open() {
            // It can only fail if 2^64 - 2 were not seen: then the thread is awake.
            let _ = self.shared.wake.write(1);
        }
    }

    /// How to ask for an interface of the calling thread's namespace, and its MTU.
    fn find(&self, requests: &mut Requests, exit: Exit) -> Watched {
        let way = match exit.0 == self.home {
            true => Ok(Way::Home),
            false => number_of(requests, exit.0).map(Way::Numbered),
        };
        match way {
            Ok(way) => {
                let mut watched = Watched::new(exit, way);
                watched.ask(requests);
                watched
            }
            Err(error) => {
                log::warn!("the MTU of interface {} is not followed: {error}", exit.1);
                let is_here = network_namespace().is_ok_and(|here| here == exit.0);
                let requests = Requests::new().ok().filter(|_| is_here);
                let mtu = requests.and_then(|mut requests| ask(&mut requests, exit, None).ok()?);
                Watched {
                    mtu,
                    ..Watched::new(exit, Way::Never)
                }
            }
        }
    }

    fn stop(mut self) {
        self.join();
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
        // It can only fail if 2^64 - 2 were not seen: then the thread is awake.
        let _ = self.shared.wake.write(1);
        if thread.join().is_err() {
            log::error!("the thread that follows MTUs has panicked");
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.join();
    }
}

/// The number that the process's namespace has for the calling thread's, which is to be this one.
fn number_of(requests: &mut Requests, namespace: u64) -> io::Result<i32> {
    if network_namespace()? != namespace {
        return Err(io::Error::other("it is in another network namespace"));
    }
    let here = File::open("/proc/thread-self/ns/net")?;
    requests.number_of_namespace(here.as_fd())
}

/// What the thread does, until it is to stop.
fn follow(shared: &Shared, notices: &Notices) {
    let mut patience = PollTimeout::NONE;
    while !shared.stop.load(Ordering::Acquire) {
        let mut events = [
            PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(notices.as_fd(), PollFlags::POLLIN),
        ];
        // Interrupted or not: what there is to do is found out below.
        let _ = poll(&mut events, patience);
        // What was written was seen, if anything was.
        let _ = shared.wake.read();
        let changed = notices
            .take()
            .into_iter()
            .filter_map(|notice| match notice {
                Notice::Link { index } => Some(Some(index)),
                Notice::Anything => Some(None),
                _ => None,
            });
        let changed: Vec<_> = changed.collect();
        let mut known = shared.known();
        known.ask(&changed);
        patience = match known.has_open() {
            true => PollTimeout::from(AGAIN),
            false => PollTimeout::NONE,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_leaves_the_mtu_that_was_known_and_is_asked_again() {
        let error = |number| Err(io::Error::from_raw_os_error(number));
        let after = |way, answer| {
            let mut watched = Watched::new((1, 2), way);
            watched.take(Ok(Some(1500)));
            watched.take(answer);
            let is_asked = !matches!(watched.way, Way::Never);
            (watched.mtu, watched.is_open, is_asked)
        };
        for way in [Way::Home, Way::Numbered(3)] {
            assert_eq!(after(way, error(libc::ENOBUFS)), (Some(1500), true, true));
            assert_eq!(after(way, Ok(Some(1400))), (Some(1400), false, true));
        }
        assert_eq!(
            after(Way::Home, error(libc::EINVAL)),
            (Some(1500), true, true)
        );
        // At home it may come back, elsewhere the number may come to mean something else.
        assert_eq!(after(Way::Home, Ok(None)), (None, false, true));
        assert_eq!(after(Way::Numbered(3), Ok(None)), (None, false, false));
        assert_eq!(
            after(Way::Numbered(3), error(libc::EINVAL)),
            (None, false, false)
        );
        let mut watched = Watched::new((1, 2), Way::Home);
        watched.take(error(libc::ENOMEM));
        watched.take(Ok(Some(9000)));
        assert_eq!((watched.mtu, watched.is_open), (Some(9000), false));
    }

    #[test]
    fn what_comes_around_packets_is_taken_off_the_mtu() {
        use Encapsulation::Gue;
        use Encapsulation::Ipip;
        let cases = [
            (1500, Ipip, Family::V4, 1494),
            (1500, Ipip, Family::V6, 1474),
            (1500, Gue, Family::V4, 1486),
            (1500, Gue, Family::V6, 1466),
            (9000, Ipip, Family::V4, 8994),
            // No less than what every host takes, no more than there is.
            (68, Ipip, Family::V4, 590),
            (0, Gue, Family::V6, 590),
            (65_536, Ipip, Family::V4, 65_530),
            (u32::MAX, Gue, Family::V6, 65_549),
        ];
        for (mtu, encapsulation, outer, expected) in cases {
            let longest = longest_frame(mtu, encapsulation.overhead(outer));
            assert_eq!(longest, expected, "{mtu} {encapsulation} {outer:?}");
        }
    }
}
