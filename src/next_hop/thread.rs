//! The follower's thread: in each round it takes commands and notices, asks some questions, reports
//! findings, and sleeps. `follower` has the handle and the reasons.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::eventfd::EventFd;

use super::Sockets;
use super::guide::Guide;
use super::guide::Look;
use super::guide::Site;
use super::hop::Ticket;
use super::resolver::Resolver;
use super::touched::Touched;
use super::wanted::Wanted;
use crate::rtnetlink::Notices;
use crate::sys::tenure::Tenure;

/// After a change, more tend to follow.
const SETTLING: Duration = Duration::from_millis(20);
/// The time between attempts to resolve an unknown address.
const RETRY: Duration = Duration::from_secs(1);
/// The time between confirmations of known addresses: the kernel does not see the packets sent
/// there, so it does not confirm them itself.
const REFRESH: Duration = Duration::from_secs(15);
/// The same for few addresses, so that a silent one is noticed within a minute: the kernel trusts
/// an address for up to 45 s, and asks for 8 s more.
const REFRESH_FEW: Duration = Duration::from_secs(5);
/// After handling notices, the thread ignores further ones for this many times as long, so that an
/// endless stream takes at most a fifth of a CPU...
const REST: u32 = 4;
/// ... but never longer than this.
const MOST_REST: Duration = Duration::from_secs(1);
/// When to ask for the first time whether the thread is wanted where it is.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// A command of the handle.
pub(super) enum Command {
    Wanted(Wanted, Ticket),
    Attached(Vec<u32>),
    Add(Vec<(u16, IpAddr, Ticket)>),
    Remove(Vec<u16>),
    /// There is a healthcheck program.
    Probes,
    /// The healthcheck program needs the path to this real.
    Probe(IpAddr),
    /// Look at the gateways.
    Look,
}

/// Wakes the thread.
pub(super) struct Signals {
    pub(super) stop: AtomicBool,
    /// There are commands, or it should stop.
    pub(super) wake: EventFd,
}

impl Signals {
    pub(super) fn wake(&self) {
        // It fails only after 2^64 - 2 unread events; then the thread is awake.
        let _ = self.wake.write(1);
    }
}

/// The thread's data.
pub(super) struct Follower {
    pub(super) signals: Arc<Signals>,
    pub(super) commands: Receiver<(u64, Command)>,
    pub(super) guide: Box<dyn Guide>,
    pub(super) notices: Notices,
    pub(super) resolver: Resolver,
    /// The last command taken.
    pub(super) done: u64,
    pub(super) tenure: Arc<Tenure>,
}

/// Why the thread ended.
pub(super) enum Ended {
    Told,
    Unwanted,
}

impl Follower {
    /// Follows until it is stopped or nothing needs it.
    pub(super) fn follow(&mut self) -> Ended {
        let mut confirmed = Instant::now();
        let mut tried = confirmed;
        let mut poked = confirmed;
        let mut look = confirmed + FIRST_LOOK;
        // When to take notices, and from when to wait for them.
        let mut settled: Option<Instant> = None;
        let mut rested = confirmed;
        let mut busy = Duration::ZERO;
        let mut open = false;
        let tenure = Arc::clone(&self.tenure);
        while !self.signals.stop.load(Ordering::Acquire) {
            let woken = !open && self.sleep(&mut settled, rested, (confirmed, poked), tried, look);
            let Ok(_permit) = tenure.permit() else {
                return Ended::Unwanted;
            };
            if woken || open {
                self.take_commands();
            }
            let began = Instant::now();
            if settled.is_some_and(|settled| settled <= began) {
                settled = None;
                if self.take_notices() {
                    look = began;
                }
            }
            if began >= look {
                match self.guide.look(&|index| self.resolver.has_interface(index)) {
                    Look::Stay(again) => look = began + again,
                    Look::MoveOn(site) => {
                        self.move_on(site);
                        (confirmed, settled, look) = (began, None, began + FIRST_LOOK);
                    }
                    Look::Leave => return Ended::Unwanted,
                }
            }
            if began >= confirmed + REFRESH {
                confirmed = began;
                self.resolver.confirm();
            }
            if began >= poked + REFRESH_FEW {
                poked = began;
                self.resolver.confirm_few();
            }
            if began >= tried + RETRY {
                tried = began;
                self.resolver.ask_unknown();
            }
            open = self.resolver.step();
            let done = match self.resolver.is_urgent() {
                true => None,
                false => Some(self.done),
            };
            self.resolver.tell(done);
            busy += began.elapsed();
            if !open {
                rested = Instant::now() + (busy * REST).min(MOST_REST);
                busy = Duration::ZERO;
            }
        }
        Ended::Told
    }

    /// Continues in another network namespace.
    fn move_on(&mut self, site: Site) {
        log::info!("following next hops in the next network namespace with an attachment");
        let Sockets {
            requests,
            mut notices,
        } = site.sockets;
        if let Err(error) = notices.listen() {
            // What is confirmed periodically still is.
            log::error!("cannot listen to notices of changes: {error}");
        }
        notices.take();
        self.notices = notices;
        self.resolver = self.resolver.elsewhere(requests, site.namespace);
        self.resolver.set_attached(site.attached);
    }

    /// Sleeps until there is something to do; returns whether that is a command.
    fn sleep(
        &self,
        settled: &mut Option<Instant>,
        rested: Instant,
        (confirmed, poked): (Instant, Instant),
        tried: Instant,
        look: Instant,
    ) -> bool {
        let mut until = look.min(confirmed + REFRESH).min(poked + REFRESH_FEW);
        if !self.resolver.all_known() {
            until = until.min(tried + RETRY);
        }
        until = until.min(settled.unwrap_or(until));
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so as not to wake too early.
        let left = left + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut events = vec![PollFd::new(self.signals.wake.as_fd(), PollFlags::POLLIN)];
        if settled.is_none() {
            events.push(PollFd::new(self.notices.as_fd(), PollFlags::POLLIN));
        }
        // Interrupted or not, what follows finds the work.
        let _ = poll(&mut events, timeout);
        let is_ready = |event: Option<&PollFd<'_>>| event.and_then(PollFd::any).unwrap_or(false);
        if is_ready(events.get(1)) {
            *settled = Some(rested.max(Instant::now() + SETTLING));
        }
        let woken = is_ready(events.first());
        if woken {
            let _ = self.signals.wake.read();
        }
        woken
    }

    fn take_commands(&mut self) {
        while let Ok((asked, command)) = self.commands.try_recv() {
            match command {
                Command::Wanted(wanted, wish) => self.resolver.set_wanted(wanted, wish),
                Command::Attached(interfaces) => self.resolver.set_attached(interfaces),
                Command::Add(reals) => {
                    for (number, address, ticket) in reals {
                        self.resolver.add(number, address, ticket);
                    }
                }
                Command::Remove(numbers) => {
                    for number in numbers {
                        self.resolver.remove(number);
                    }
                }
                Command::Probe(real) => self.resolver.ask_probed_one(real),
                Command::Probes => self.resolver.ask_probed_now(),
                Command::Look => self.resolver.ask_gateways(),
            }
            self.done = asked;
        }
    }

    /// Whether links changed.
    fn take_notices(&mut self) -> bool {
        let mut touched = Touched::default();
        for notice in self.notices.take() {
            touched.note(notice, |neighbour| self.resolver.uses(neighbour));
        }
        let links = touched.everything || !touched.links.is_empty();
        if touched != Touched::default() {
            self.resolver.touch(touched);
        }
        links
    }
}
