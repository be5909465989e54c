//! Where encapsulated packets go next: the Ethernet addresses of gateways, or of each real, found out
//! from the kernel's routing and neighbour tables and followed as they change.
//!
//! A thread of its own listens for changes and asks again; what it finds it writes into memory that
//! packets read. Balancers whose gateway's address is given have none.

mod filters;
mod netlink;
mod probes;
mod resolver;

use std::io;
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

use crate::Error;
use crate::MacAddr;
use crate::NextHops;
use crate::Result;
use crate::maps::ProbeCells;
use crate::maps::kernel_error;

pub(crate) use filters::TcProgram;
use netlink::Notices;
pub(crate) use netlink::Requests;
pub(crate) use netlink::Route;

pub(crate) use probes::probe_way;
pub(crate) use resolver::Cells;
use resolver::Resolver;
pub(crate) use resolver::Wanted;

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
}

/// What the tables say of next hops now, without asking any neighbour: what a balancer would begin with
/// that is not attached yet.
pub(crate) fn preview(
    wanted: Wanted,
    reals: impl IntoIterator<Item = IpAddr>,
) -> io::Result<Vec<NextHop>> {
    let mut requests = Requests::new()?;
    let reals: Vec<_> = reals.into_iter().collect();
    let mut found = Vec::new();
    let mut add = |requests: &mut Requests, real, address: IpAddr, route: Option<Route>| {
        let hop = match route {
            Some(route) => {
                let next = route.gateway.unwrap_or(address);
                NextHop {
                    real,
                    address: Some(next),
                    interface: requests.interface(route.interface)?.map(|of| of.name),
                    mac: requests.neighbour(route.interface, next)?,
                }
            }
            None => NextHop {
                real,
                address: None,
                interface: None,
                mac: None,
            },
        };
        found.push(hop);
        Ok::<(), io::Error>(())
    };
    if wanted.mode != NextHops::Gateway {
        for real in reals {
            let route = requests.route(real)?;
            add(&mut requests, Some(real), real, route)?;
        }
        return Ok(found);
    }
    for v6 in [false, true] {
        let mut route = None;
        for real in reals.iter().filter(|real| real.is_ipv6() == v6) {
            let of_real = requests.route(*real)?;
            route = route.or(of_real.filter(|route| route.gateway.is_some()));
        }
        let route = match route {
            Some(route) => Some(route),
            None => requests.default_route(v6)?,
        };
        // A family without a way of its own takes the other's.
        if let Some(gateway) = route.and_then(|route| route.gateway) {
            add(&mut requests, None, gateway, route)?;
        }
    }
    Ok(found)
}

/// Finds out next hops and follows them, until it is dropped.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
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
    /// Starts in the calling thread's network namespace.
    pub(crate) fn start(
        wanted: Wanted,
        cells: Cells,
        reals: impl IntoIterator<Item = (u16, IpAddr)>,
    ) -> Result<Self> {
        let failed = |error| kernel_error("open", "a netlink socket", error);
        // Told of changes before it looks for the first time, so that none is missed.
        let notices = Notices::new().map_err(failed)?;
        let requests = Requests::new().map_err(failed)?;
        let mut resolver = Resolver::new(requests, wanted, cells);
        for (number, address) in reals {
            resolver.add(number, address);
        }
        resolver.settle(true);
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
            .spawn(move || follow(&of_thread, &notices))
            .map_err(|error| kernel_error("start", "a thread for next hops", error))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Waits until a gateway's address is known, if it has to be found out.
    ///
    /// # Errors
    /// [`Error::NoNextHop`] after some seconds.
    pub(crate) fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.shared.ask(self.shared.lock(), |_| ());
            let missing = state.resolver.missing();
            drop(state);
            match missing {
                None => return Ok(()),
                Some(reason) if Instant::now() >= deadline => {
                    return Err(Error::NoNextHop { reason });
                }
                Some(_) => thread::sleep(SETTLING),
            }
        }
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
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; if it did, it has ended.
            let _ = thread.join();
        }
    }
}

/// Asks again whenever something has changed, until it is told to stop.
fn follow(shared: &Shared, notices: &Notices) {
    let mut refreshed = Instant::now();
    loop {
        let known = shared.lock().resolver.all_known();
        let period = if known { REFRESH } else { RETRY };
        let left = period.saturating_sub(refreshed.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut events = [
            PollFd::new(notices.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN),
        ];
        // Interrupted or not: what there is to do is found out below.
        let _ = poll(&mut events, timeout);
        let woken = events[1].any().unwrap_or(false);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        if woken {
            let _ = shared.wake.read();
        } else {
            thread::sleep(SETTLING);
            notices.drain();
        }
        let due = refreshed.elapsed() >= period;
        if due {
            refreshed = Instant::now();
        }
        let mut state = shared.lock();
        match woken && !due {
            true => state.resolver.settle_new(),
            false => state.resolver.settle(due),
        }
        state.done = state.asked;
        drop(state);
        shared.done.notify_all();
    }
}
