//! The follower: a thread that finds out next hops and follows them (its rounds are in `thread`), and the handle by
//! which a balancer speaks to it.
//!
//! # Who owns what
//! The thread owns the [`Resolver`] and both netlink sockets: nobody else asks the kernel for next hops, and no
//! lock of this module is held while it does. It and its owner share three things: the [`Board`], a channel of commands, and an
//! eventfd that wakes the thread. The board's lock is never held over a system call, and getters do not take it:
//! the board publishes lists, and who asks takes the last one; the gateways' addresses take no lock at all.
//!
//! # Messages
//! Down go commands, numbered in the order of the channel under the board's lock. Up goes what was found
//! out (`Board::tell`), with the number of the last command that is done. A caller that needs the outcome
//! waits for that number, three seconds at most; then it goes on, and the thread catches up. The thread
//! looks for commands after every few questions, so that they do not wait for thousands of others.
//!
//! # Who writes what packets read
//! Both sides do, under the board's lock. The owner writes what is right from this moment on: that a number
//! has another owner ([`Watcher::add`]), or that another gateway is wanted. Each of these draws a ticket. The
//! thread hands in its findings with the tickets that they were made for, and the board drops those of
//! others: a finding for a real that is gone does not reach the next owner of its number, however late it
//! is. The owner alone clears hops that nobody follows, when no packet reads them any more.
//!
//! # Moving on
//! When links have changed, and from time to time, the thread asks its [`Guide`] whether it is still wanted where it
//! is. If it is wanted in another network namespace, it goes there: with other sockets and a resolver that knows
//! nothing yet; the board stays, and the commands. If it is wanted nowhere, it ends and says so on the board.
//! A guide has what it looks at under a lock of its own, and asks the kernel under it (`katran/ground.rs`): calls that
//! change attachments or gateways wait for that, no getter does.
//!
//! # Stop, panics, fork
//! To stop is to set a flag, to wake the thread, and to join it, which takes some tens of the kernel's answers
//! at most; one of them may be a list of all routes (a second with 200,000), which is asked for when a default
//! route is needed and may have changed. A stopped follower writes nothing. A thread that panics tells the board on its way out: callers
//! stop waiting for it, what was known stays, and given addresses go on to be written. In a child made by
//! fork(2) the thread is not there: the handle knows ([`Owner`]), asks nothing of it, and does not join
//! it; getters tell what was known. If the thread had a lock of the board at the moment of the fork, nobody gives it
//! up there: the child tries for a tenth of a second, and then has an empty list and changes nothing; the
//! gateways' addresses take no lock. (The memory that packets read is shared with the parent, as are the
//! sockets: a child that goes on to change its copy of the balancer changes the parent's.)

use std::io;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::mpsc::channel;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;

use super::NextHopList;
use super::Sockets;
use super::board::Board;
use super::board::Cells;
use super::guide::Guide;
use super::guide::Site;
use super::resolver::Resolver;
use super::thread::Command;
use super::thread::Ended;
use super::thread::Follower;
use super::thread::Signals;
use super::wanted::Wanted;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::maps::ProbeCells;
use crate::sys::process::Owner;
use crate::types::Family;
use crate::types::MacAddr;

/// How long attaching waits for a gateway's address, and any caller for the thread.
const PATIENCE: Duration = Duration::from_secs(3);

/// Finds out next hops and follows them, until it is dropped.
pub(crate) struct Watcher {
    board: Arc<Board>,
    commands: Sender<(u64, Command)>,
    signals: Arc<Signals>,
    thread: Option<JoinHandle<Option<Sockets>>>,
    /// The process that the thread is in.
    owner: Owner,
}

impl Watcher {
    /// Starts, in the calling thread's network namespace; where nothing is redirected that of the sockets
    /// will do.
    pub(crate) fn start(
        site: Site,
        guide: Box<dyn Guide>,
        wanted: Wanted,
        cells: Cells,
        reals: impl IntoIterator<Item = (u16, IpAddr)>,
    ) -> Result<Self> {
        let Sockets {
            requests,
            mut notices,
        } = site.sockets;
        let listening = notices.listen();
        listening.map_err(|error| kernel_error("listen to", "notices of changes", error))?;
        // Notices from now on are looked at, so that no change is missed.
        notices.take();
        let tenure = Arc::clone(cells.live.tenure());
        let board = Arc::new(Board::new(wanted, cells));
        let mut resolver =
            Resolver::new(requests, site.namespace, wanted, Some(Arc::clone(&board)));
        resolver.confirm();
        resolver.set_attached(site.attached);
        for (number, address, ticket) in board.take_over(reals.into_iter()) {
            resolver.add(number, address, ticket);
        }
        while resolver.step() {}
        resolver.tell(None);
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| kernel_error("make", "an eventfd", io::Error::from(errno)))?;
        let signals = Arc::new(Signals {
            stop: AtomicBool::new(false),
            wake,
        });
        let (commands, received) = channel();
        let mut follower = Follower {
            signals: Arc::clone(&signals),
            commands: received,
            guide,
            notices,
            resolver,
            done: 0,
            tenure,
        };
        let ending = Ending(Arc::clone(&board));
        let thread = thread::Builder::new()
            .name("katran-next-hop".to_owned())
            .spawn(move || {
                let ending = ending;
                match follower.follow() {
                    Ended::Told => Some(Sockets {
                        requests: follower.resolver.into_requests(),
                        notices: follower.notices,
                    }),
                    Ended::Unwanted => {
                        ending.0.leave();
                        None
                    }
                }
            })
            .map_err(|error| kernel_error("start", "a thread for next hops", error))?;
        Ok(Self {
            board,
            commands,
            signals,
            thread: Some(thread),
            owner: Owner::new(),
        })
    }

    /// Ends it; the sockets are left, and hear nothing.
    pub(crate) fn stop(mut self) -> Option<Sockets> {
        self.join()
    }

    fn join(&mut self) -> Option<Sockets> {
        let thread = self.thread.take()?;
        if !self.owner.is_here() {
            mem::forget(thread);
            return None;
        }
        self.signals.stop.store(true, Ordering::Release);
        self.signals.wake();
        let mut sockets = thread.join().ok()??;
        sockets.notices.rest();
        Some(sockets)
    }

    /// Its thread has ended by itself: it has panicked, or was wanted nowhere.
    pub(crate) fn has_ended(&self) -> bool {
        self.owner.is_here() && self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The process is the one that the thread is in.
    pub(crate) fn is_here(&self) -> bool {
        self.owner.is_here()
    }

    /// The board; `None`: in a child made by fork(2) nobody is left who would give up its lock.
    fn board(&self) -> Option<&Board> {
        let usable = self.owner.is_here() || self.board.is_usable();
        usable.then_some(&*self.board)
    }

    /// Hands a command over; its number, by which to wait for it.
    fn send(&self, command: Command) -> Option<u64> {
        if !self.owner.is_here() {
            // Nobody takes it.
            return None;
        }
        // If the thread has ended nobody takes it, and nobody waits.
        let asked = self
            .board
            .ask(|asked| drop(self.commands.send((asked, command))));
        self.signals.wake();
        Some(asked)
    }

    /// The same, and waits until it is done.
    fn ask(&self, command: Command) {
        if let Some(asked) = self.send(command) {
            self.board.wait_done(asked, PATIENCE);
        }
    }

    /// Waits until the gateways' addresses are known, if they have to be found out.
    ///
    /// # Errors
    /// [`Error::NoNextHop`] after three seconds, if neither family has one.
    pub(crate) fn wait(&self) -> Result<()> {
        let began = Instant::now();
        self.ask(Command::Look);
        // The thread may have been long about other work.
        let left = PATIENCE.saturating_sub(began.elapsed());
        let reason = match self.board() {
            Some(board) => board.wait_known(left),
            None => Some("it is looked for by the process before the fork".to_owned()),
        };
        match reason {
            Some(reason) => Err(Error::NoNextHop { reason }),
            None => Ok(()),
        }
    }

    /// The balancer is attached to these interfaces from now on.
    pub(crate) fn set_attached(&self, interfaces: Vec<u32>) {
        self.ask(Command::Attached(interfaces));
    }

    /// Another gateway from now on. An address that was given until now serves until one is found, for which
    /// [`wait`](Self::wait) waits.
    pub(crate) fn set_wanted(&self, wanted: Wanted) {
        if let Some(board) = self.board() {
            let wish = board.set_wanted(wanted);
            self.send(Command::Wanted(wanted, wish));
        }
    }

    /// The path of health checks reads gateways here, too.
    pub(crate) fn set_probes(&self, probes: Arc<ProbeCells>) {
        if let Some(board) = self.board() {
            board.set_probes(probes);
            self.ask(Command::Probes);
        }
    }

    /// Finds the way of probes to a real, which is told to the path of health checks.
    pub(crate) fn find_way(&self, real: IpAddr) {
        self.ask(Command::Probe(real));
    }

    /// Packets will be sent to these reals.
    pub(crate) fn add(&self, reals: impl IntoIterator<Item = (u16, IpAddr)>) {
        let board = self.board();
        let added = board.map_or_else(Vec::new, |board| board.add(reals.into_iter()));
        if !added.is_empty() {
            self.ask(Command::Add(added));
        }
    }

    /// No more packets are sent to these. What packets under way read of them stays.
    pub(crate) fn remove(&self, numbers: impl IntoIterator<Item = u16>) {
        let numbers: Vec<_> = numbers.into_iter().collect();
        if let Some(board) = self.board() {
            board.remove(&numbers);
        }
        // Nobody waits for what follows from it.
        self.send(Command::Remove(numbers));
    }

    /// What is known now.
    pub(crate) fn list(&self) -> NextHopList {
        self.board().map(Board::list).unwrap_or_default()
    }

    /// The Ethernet address of a family's gateway.
    pub(crate) fn gateway(&self, family: Family) -> Option<MacAddr> {
        self.board.gateway(family)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.join();
    }
}

/// Tells the board that the thread has ended, however it does.
struct Ending(Arc<Board>);

impl Drop for Ending {
    fn drop(&mut self) {
        if thread::panicking() {
            log::error!(
                "the thread that follows next hops has panicked: what is known stays in use"
            );
        }
        self.0.end();
    }
}
