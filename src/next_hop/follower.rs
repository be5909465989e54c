//! The follower: a thread that resolves next hops and follows their changes (its rounds are in
//! `thread`), and the balancer's handle to it.
//!
//! # Ownership
//! The thread owns the [`Resolver`] and both netlink sockets. Nothing else asks the kernel for next
//! hops, and no lock of this module is held meanwhile. Thread and owner share the [`Board`], a
//! channel of commands, and an eventfd that wakes the thread. The board's lock is never held over a
//! system call. Getters do not take it: they take the last list that the board published, and the
//! gateways' addresses need no lock at all.
//!
//! # Messages
//! The owner sends commands, numbered in the order of the channel under the board's lock. The
//! thread reports findings (`Board::tell`) with the number of the last command that is done. A
//! caller that needs the outcome waits for that number, up to three seconds; then it continues, and
//! the thread catches up. The thread looks for commands after every few questions, so that they do
//! not wait behind thousands.
//!
//! # Writers of what packets read
//! Both sides write, under the board's lock. The owner writes what holds immediately: a number's
//! new owner ([`Watcher::add`]), or another wanted gateway. Each of these draws a ticket. The
//! thread reports findings with the tickets they were made for, and the board drops findings with
//! other tickets: a late finding for a removed real never reaches the next owner of its number.
//! Only the owner clears hops that are no longer followed, when no packet reads them any more.
//!
//! # Moving
//! When links change, and from time to time, the thread asks its [`Guide`] whether it is still
//! needed where it is. If it is needed in another network namespace, it goes there with new sockets
//! and an empty resolver; board and commands stay. If nothing needs it, it ends and records that on
//! the board. A guide has its own lock and asks the kernel under it (`katran/ground.rs`): calls
//! that change attachments or gateways wait for that, getters do not.
//!
//! # Stop, panics, fork
//! Stopping sets a flag, wakes the thread and joins it, which takes at most some tens of the
//! kernel's answers. One may be a list of all routes (a second with 200,000), for a default route
//! that may have changed. A stopped follower writes nothing. A thread that panics tells the board:
//! callers stop waiting, known hops stay, and configured addresses are still written.
//!
//! A child of fork(2) has no such thread: the handle knows ([`Owner`]), asks nothing of it and does
//! not join it, and getters return the last state. If the thread held a lock of the board at the
//! fork, nobody will release it in the child: the child tries for a tenth of a second, then has an
//! empty list and changes nothing. (The memory that packets read and the sockets are shared with
//! the parent: a child that changes its copy of the balancer changes the parent's.)

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

/// Resolves and follows next hops until dropped.
pub(crate) struct Watcher {
    board: Arc<Board>,
    commands: Sender<(u64, Command)>,
    signals: Arc<Signals>,
    thread: Option<JoinHandle<Option<Sockets>>>,
    /// The process of the thread.
    owner: Owner,
}

impl Watcher {
    /// Starts in the calling thread's network namespace; if nothing is redirected, that of the
    /// sockets will do.
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
        // Notices from now on are read, so no change is missed.
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

    /// Ends it; returns the sockets, which no longer receive notices.
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

    /// Its thread has ended without being stopped: it panicked, or nothing needed it.
    pub(crate) fn has_ended(&self) -> bool {
        self.owner.is_here() && self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// This is the process of the thread.
    pub(crate) fn is_here(&self) -> bool {
        self.owner.is_here()
    }

    /// The board; `None` in a child of fork(2) in which nobody would release its lock.
    fn board(&self) -> Option<&Board> {
        let usable = self.owner.is_here() || self.board.is_usable();
        usable.then_some(&*self.board)
    }

    /// Sends a command; returns its number, to wait for it.
    fn send(&self, command: Command) -> Option<u64> {
        if !self.owner.is_here() {
            // Nobody receives it.
            return None;
        }
        // If the thread has ended, nothing receives the command and no call waits.
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

    /// Waits until the gateways' addresses are known, if they must be resolved.
    ///
    /// # Errors
    /// [`Error::NoNextHop`] after three seconds, if neither family has one.
    pub(crate) fn wait(&self) -> Result<()> {
        let began = Instant::now();
        self.ask(Command::Look);
        // The thread may have been busy with other work.
        let left = PATIENCE.saturating_sub(began.elapsed());
        let reason = match self.board() {
            Some(board) => board.wait_known(left),
            None => Some("only the process before the fork looks for it".to_owned()),
        };
        match reason {
            Some(reason) => Err(Error::NoNextHop { reason }),
            None => Ok(()),
        }
    }

    /// The balancer is now attached to these interfaces.
    pub(crate) fn set_attached(&self, interfaces: Vec<u32>) {
        self.ask(Command::Attached(interfaces));
    }

    /// Another gateway is wanted. A configured address serves until one is resolved;
    /// [`wait`](Self::wait) waits for that.
    pub(crate) fn set_wanted(&self, wanted: Wanted) {
        if let Some(board) = self.board() {
            let wish = board.set_wanted(wanted);
            self.send(Command::Wanted(wanted, wish));
        }
    }

    /// The healthcheck program reads gateways here too.
    pub(crate) fn set_probes(&self, probes: Arc<ProbeCells>) {
        if let Some(board) = self.board() {
            board.set_probes(probes);
            self.ask(Command::Probes);
        }
    }

    /// Finds the path of probes to a real, for the healthcheck program.
    pub(crate) fn find_way(&self, real: IpAddr) {
        self.ask(Command::Probe(real));
    }

    /// Packets will go to these reals.
    pub(crate) fn add(&self, reals: impl IntoIterator<Item = (u16, IpAddr)>) {
        let board = self.board();
        let added = board.map_or_else(Vec::new, |board| board.add(reals.into_iter()));
        if !added.is_empty() {
            self.ask(Command::Add(added));
        }
    }

    /// No new packets go to these. Packets in flight keep what they read of them.
    pub(crate) fn remove(&self, numbers: impl IntoIterator<Item = u16>) {
        let numbers: Vec<_> = numbers.into_iter().collect();
        if let Some(board) = self.board() {
            board.remove(&numbers);
        }
        // Nobody waits for the effects.
        self.send(Command::Remove(numbers));
    }

    /// The current list.
    pub(crate) fn list(&self) -> NextHopList {
        self.board().map(Board::list).unwrap_or_default()
    }

    /// The MAC address of a family's gateway.
    pub(crate) fn gateway(&self, family: Family) -> Option<MacAddr> {
        self.board.gateway(family)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.join();
    }
}

/// Records on the board that the thread has ended, whatever ended it.
struct Ending(Arc<Board>);

impl Drop for Ending {
    fn drop(&mut self) {
        if thread::panicking() {
            log::error!(
                "the thread that follows next hops panicked: the known next hops stay in use"
            );
        }
        self.0.end();
    }
}
