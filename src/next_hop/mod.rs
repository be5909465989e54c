//! Where encapsulated packets go next: the Ethernet addresses of gateways, or of each real, found out
//! from the kernel's routing and neighbour tables and followed as they change.
//!
//! A thread of its own listens for changes and asks again; what it finds it writes into memory that
//! packets read. Balancers whose gateway's address is given have none.

mod interfaces;
mod ports;
mod probes;
mod resolver;
mod wanted;

use std::io;
use std::mem;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
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
use nix::sys::eventfd::EventFd;

use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::maps::ProbeCells;
use crate::rtnetlink::Notices;
use crate::rtnetlink::Requests;
use crate::sys::process::Owner;
use crate::types::MacAddr;

pub(crate) use probes::probe_way;
use resolver::Ask;
pub(crate) use resolver::Cells;
use resolver::Resolver;
pub(crate) use wanted::Wanted;

/// How long attaching waits for a gateway's address.
const PATIENCE: Duration = Duration::from_secs(3);
/// After a change more tend to follow.
const SETTLING: Duration = Duration::from_millis(20);
/// Between two attempts to find out an address that is not known.
const RETRY: Duration = Duration::from_secs(1);
/// Between two confirmations of addresses that are known: the kernel does not see that packets are
/// sent there, so it would not look after them.
const REFRESH: Duration = Duration::from_secs(15);

/// Where packets go next, and what is known of that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NextHop {
    /// The real; `None`: all reals of the address's family.
    pub real: Option<IpAddr>,
    /// The router, or the real itself if it is on this host's segment; `None`: there is no route.
    pub address: Option<IpAddr>,
    /// The interface that leads there, if there is a route.
    pub interface: Option<String>,
    /// The Ethernet address in use; `None`: not known, packets are dropped.
    pub mac: Option<MacAddr>,
    /// The address answers for itself, or its Ethernet address was given. If it does not, `mac` is the
    /// last one that was known.
    pub answers: bool,
    /// Packets come to the interface from where the balancer is attached: to it, to the link that it
    /// lies on, or to a member of it. True as well if that cannot be told, and with
    /// [`NextHops::Redirect`](crate::NextHops::Redirect), which sends them there.
    pub attached: bool,
    /// The real is an address of this host.
    pub here: bool,
}

/// What the tables say of next hops now, without asking any neighbour: what a balancer would begin with
/// that is attached to these interfaces, but is not yet.
pub(crate) fn preview(
    wanted: Wanted,
    attached: Vec<u32>,
    reals: impl IntoIterator<Item = (u16, IpAddr)>,
) -> io::Result<Vec<NextHop>> {
    let mut resolver = Resolver::new(Requests::new()?, wanted, None);
    resolver.set_attached(attached);
    for (number, address) in reals {
        resolver.add(number, address);
    }
    resolver.settle(Ask::New);
    let mut list = resolver.list();
    // A family without a way of its own takes the other's.
    list.retain(|hop| hop.real.is_some() || hop.address.is_some());
    Ok(list)
}

/// What the kernel is asked by, and told by; of the network namespace in which they were opened.
pub(crate) struct Sockets {
    requests: Requests,
    notices: Notices,
}

impl Sockets {
    /// Of the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let failed = |error| kernel_error("open", "a netlink socket", error);
        Ok(Self {
            requests: Requests::new().map_err(failed)?,
            notices: Notices::new().map_err(failed)?,
        })
    }
}

/// Finds out next hops and follows them, until it is dropped.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Notices>>,
    owner: Owner,
}

struct Shared {
    state: Mutex<State>,
    /// Another round is done.
    done: Condvar,
    stop: AtomicBool,
    wake: EventFd,
}

/// Rounds are the thread's affair: the kernel takes an interface's index for one of the network
/// namespace of the thread that names it.
struct State {
    resolver: Resolver,
    asked: u64,
    done: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread look again after `change`, and waits until it has.
    fn ask<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        change: impl FnOnce(&mut Resolver),
    ) -> MutexGuard<'a, State> {
        change(&mut state.resolver);
        state.asked += 1;
        let asked = state.asked;
        // It can only fail if 2^64 - 2 rounds were asked for and none was done.
        let _ = self.wake.write(1);
        let waited = self
            .done
            .wait_timeout_while(state, PATIENCE, |state| state.done < asked);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Watcher {
    /// Starts, for a balancer that is attached to these interfaces, in the calling thread's network
    /// namespace; where nothing is redirected that of the sockets will do.
    pub(crate) fn start(
        sockets: Sockets,
        wanted: Wanted,
        attached: Vec<u32>,
        cells: Cells,
        reals: impl IntoIterator<Item = (u16, IpAddr)>,
    ) -> Result<Self> {
        let Sockets { requests, notices } = sockets;
        // It is told of changes before it looks for the first time, so that none is missed.
        notices.drain();
        let mut resolver = Resolver::new(requests, wanted, Some(cells));
        resolver.set_attached(attached);
        for (number, address) in reals {
            resolver.add(number, address);
        }
        resolver.settle(Ask::All);
        let wake = EventFd::new()
            .map_err(|errno| kernel_error("make", "an eventfd", io::Error::from(errno)))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                resolver,
                asked: 0,
                done: 0,
            }),
            done: Condvar::new(),
            stop: AtomicBool::new(false),
            wake,
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("katran-next-hop".to_owned())
            .spawn(move || {
                follow(&of_thread, &notices);
                notices
            })
            .map_err(|error| kernel_error("start", "a thread for next hops", error))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            owner: Owner::new(),
        })
    }

    /// Ends it; the sockets are left.
    pub(crate) fn stop(mut self) -> Option<Sockets> {
        let notices = self.join()?;
        let shared = Arc::clone(&self.shared);
        drop(self);
        let state = Arc::into_inner(shared)?.state.into_inner();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        Some(Sockets {
            requests: state.resolver.into_requests(),
            notices,
        })
    }

    fn join(&mut self) -> Option<Notices> {
        if !self.owner.is_here() {
            // Its thread is the parent's.
            mem::forget(self.thread.take());
            return None;
        }
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
        // It panics nowhere; if it did, it has ended.
        self.thread.take()?.join().ok()
    }

    /// Waits until the gateways' addresses are known, if they have to be found out.
    ///
    /// # Errors
    /// [`Error::NoNextHop`] after some seconds, if neither family has one.
    pub(crate) fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.shared.ask(self.shared.lock(), |_| ());
            let (waits, missing) = (state.resolver.is_waiting(), state.resolver.missing());
            drop(state);
            if waits && Instant::now() < deadline {
                thread::sleep(SETTLING);
                continue;
            }
            return match missing {
                Some(reason) => Err(Error::NoNextHop { reason }),
                None => Ok(()),
            };
        }
    }

    /// The balancer is attached to these interfaces from now on.
    pub(crate) fn set_attached(&self, interfaces: Vec<u32>) {
        let state = self.shared.lock();
        drop(
            self.shared
                .ask(state, |resolver| resolver.set_attached(interfaces)),
        );
    }

    /// Another gateway from now on.
    pub(crate) fn set_wanted(&self, wanted: Wanted) {
        let state = self.shared.lock();
        drop(
            self.shared
                .ask(state, |resolver| resolver.set_wanted(wanted)),
        );
    }

    /// The path of health checks reads gateways here, too.
    pub(crate) fn set_probes(&self, probes: Arc<ProbeCells>) {
        let state = self.shared.lock();
        drop(
            self.shared
                .ask(state, |resolver| resolver.set_probes(probes)),
        );
    }

    /// Packets will be sent to these reals.
    pub(crate) fn add(&self, reals: impl IntoIterator<Item = (u16, IpAddr)>) {
        let mut reals = reals.into_iter().peekable();
        if reals.peek().is_some() {
            let state = self.shared.lock();
            drop(self.shared.ask(state, |resolver| {
                for (number, address) in reals {
                    resolver.add(number, address);
                }
            }));
        }
    }

    /// No more packets are sent to these.
    pub(crate) fn remove(&self, numbers: impl IntoIterator<Item = u16>) {
        let mut state = self.shared.lock();
        for number in numbers {
            state.resolver.remove(number);
        }
        drop(state);
        // Nobody waits for what follows from it.
        let _ = self.shared.wake.write(1);
    }

    /// What is known now.
    pub(crate) fn list(&self) -> Vec<NextHop> {
        self.shared.lock().resolver.list()
    }

    /// The Ethernet address of a family's gateway.
    pub(crate) fn gateway(&self, v6: bool) -> Option<MacAddr> {
        self.shared.lock().resolver.gateway(v6)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.join();
    }
}

/// Looks again whenever something has changed, until it is told to stop.
fn follow(shared: &Shared, notices: &Notices) {
    let mut confirmed = Instant::now();
    let mut tried = confirmed;
    loop {
        let all_known = shared.lock().resolver.all_known();
        let mut left = REFRESH.saturating_sub(confirmed.elapsed());
        if !all_known {
            left = left.min(RETRY.saturating_sub(tried.elapsed()));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut events = [
            PollFd::new(notices.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN),
        ];
        // Interrupted or not: what there is to do is found out below.
        let _ = poll(&mut events, timeout);
        let [noticed, woken] = events.map(|event| event.any().unwrap_or(false));
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        if woken {
            // Somebody waits for it; what was noticed is looked at in the next round.
            let _ = shared.wake.read();
        } else if noticed {
            thread::sleep(SETTLING);
            notices.drain();
        }
        let confirm = confirmed.elapsed() >= REFRESH;
        let mut state = shared.lock();
        if confirm {
            confirmed = Instant::now();
            state.resolver.settle(Ask::All);
        } else if noticed && !woken {
            state.resolver.settle(Ask::New);
        } else if woken || state.done < state.asked {
            // Somebody may have asked since it was looked whether anybody has.
            state.resolver.settle_new();
        }
        if tried.elapsed() >= RETRY {
            tried = Instant::now();
            state.resolver.settle_unknown();
        }
        state.done = state.asked;
        drop(state);
        shared.done.notify_all();
    }
}
