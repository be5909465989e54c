//! State shared by the follower's thread and its owner: what is known, and the memory that packets
//! read. No system call is made under its lock, and no thread waits under it except on the
//! condition variable. Recording a finding takes nanoseconds, and tens of thousands at once a
//! millisecond, so getters do not take the lock: they read the last published list.

use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::TryLockError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::hop::Followed;
use super::hop::Hop;
use super::hop::Ticket;
use super::hop::gateway;
use super::hop::gateways_from;
use super::list::Known;
use super::list::Names;
use super::list::NextHopList;
use super::pages::Pages;
use super::wanted::Wanted;
use crate::maps::HopCells;
use crate::maps::Live;
use crate::maps::ProbeCells;
use crate::types::ByFamily;
use crate::types::Family;
use crate::types::MacAddr;
use crate::types::NextHops;

/// How often, a millisecond apart, to try a lock whose holder may be gone.
const MOST_TRIES: u32 = 100;

/// What packets read.
pub(crate) struct Cells {
    pub(crate) live: Arc<Live>,
    pub(crate) hops: Option<Arc<HopCells>>,
    pub(crate) probes: Option<Arc<ProbeCells>>,
}

pub(super) struct Board {
    /// For IPv4 and IPv6: the six bytes of an address, or 0.
    gateways: ByFamily<AtomicU64>,
    posted: Mutex<Posted>,
    /// The list for getters. Its lock is held only to take or change a pointer, and is the last of
    /// all locks.
    shown: Mutex<NextHopList>,
    /// Signals that the owner's command is done, or that the gateways are known.
    changed: Condvar,
}

struct Posted {
    cells: Cells,
    wanted: Wanted,
    wish: Ticket,
    reals: Pages<Followed>,
    gateways: ByFamily<Hop>,
    names: Arc<Names>,
    /// The last ticket given out.
    tickets: Ticket,
    /// The last command, and the last one that is done.
    asked: u64,
    done: u64,
    news: News,
    /// The thread has ended.
    ended: bool,
    /// It follows nothing any more.
    left: bool,
}

/// The state of the gateways.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// One may still answer.
    pub(super) waiting: bool,
    /// Why no packet can leave.
    pub(super) missing: Option<String>,
}

/// Whether packets already go to reals that get numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entering {
    /// Not yet.
    New,
    /// They do, and what they read stays.
    InUse,
}

/// What the board did with findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    All,
    /// Hops were dropped, because something else is wanted now.
    NoHops,
}

/// What the thread found since its last report.
pub(super) struct Findings<'a> {
    pub(super) reals: Vec<(u16, Ticket, Hop)>,
    pub(super) gateways: &'a ByFamily<Hop>,
    pub(super) wish: Ticket,
    /// If they changed.
    pub(super) names: Option<Names>,
    pub(super) news: News,
    /// Commands up to this one are done; `None`: no more than before.
    pub(super) done: Option<u64>,
}

impl Board {
    pub(super) fn new(wanted: Wanted, cells: Cells) -> Self {
        let board = Self {
            gateways: Default::default(),
            posted: Mutex::new(Posted {
                cells,
                wanted,
                wish: 0,
                reals: Pages::default(),
                gateways: ByFamily::default(),
                names: Arc::default(),
                tickets: 0,
                asked: 0,
                done: 0,
                news: News::default(),
                ended: false,
                left: false,
            }),
            shown: Mutex::default(),
            changed: Condvar::new(),
        };
        let posted = board.lock();
        board.show_gateways(&posted);
        board.publish(&posted);
        drop(posted);
        board
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        // Each change is complete before anything could panic.
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_shown(&self) -> MutexGuard<'_, NextHopList> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the locks are available: not in a child of fork(2) if another thread held one at the
    /// time.
    pub(super) fn is_usable(&self) -> bool {
        is_free(&self.posted) && is_free(&self.shown)
    }

    /// Publishes the current state for getters; ends each change of the list or the gateways.
    fn publish(&self, posted: &Posted) {
        let known = Known {
            wanted: posted.wanted,
            gateways: posted.gateways,
            reals: posted.reals.clone(),
            names: Arc::clone(&posted.names),
        };
        let list = match posted.left {
            true => NextHopList::default(),
            false => NextHopList::from(known),
        };
        let before = mem::replace(&mut *self.lock_shown(), list);
        // Not under the lock: this may be the last reference.
        drop(before);
    }

    /// The current list.
    pub(super) fn list(&self) -> NextHopList {
        self.lock_shown().clone()
    }

    fn show_gateways(&self, posted: &Posted) {
        for family in Family::ALL {
            let mac = gateway(&posted.wanted, &posted.gateways, family);
            let word = mac.map_or(0, |mac| {
                let [a, b, c, d, e, f] = mac.octets();
                u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
            });
            self.gateways[family].store(word, Ordering::Relaxed);
            if let Some(mac) = mac.filter(|_| posted.wanted.mode == NextHops::Gateway) {
                posted.cells.live.set_gateway_mac(family, mac);
                if let Some(probes) = &posted.cells.probes {
                    probes.set_gateway_mac(family, mac);
                }
            }
        }
    }

    /// The MAC address of a family's gateway.
    pub(super) fn gateway(&self, family: Family) -> Option<MacAddr> {
        let word = self.gateways[family].load(Ordering::Relaxed);
        let [a, b, c, d, e, f, ..] = word.to_ne_bytes();
        Some(MacAddr::new([a, b, c, d, e, f])).filter(|_| word != 0)
    }

    /// Counts a command; `send` hands commands over in the order of their numbers.
    pub(super) fn ask(&self, send: impl FnOnce(u64)) -> u64 {
        let mut posted = self.lock();
        posted.asked += 1;
        send(posted.asked);
        posted.asked
    }

    /// Waits up to `patience` until a command is done.
    pub(super) fn wait_done(&self, asked: u64, patience: Duration) {
        let posted = self.lock();
        let open = |posted: &mut Posted| posted.done < asked && !posted.ended;
        drop(self.changed.wait_timeout_while(posted, patience, open));
    }

    /// Waits until no gateway may still answer; returns why no packet can leave, if none can.
    pub(super) fn wait_known(&self, patience: Duration) -> Option<String> {
        let posted = self.lock();
        let open = |posted: &mut Posted| posted.news.waiting && !posted.ended;
        let waited = self.changed.wait_timeout_while(posted, patience, open);
        let posted = waited.unwrap_or_else(PoisonError::into_inner).0;
        let ended = || {
            posted
                .ended
                .then(|| "the thread that looks for it has ended".to_owned())
        };
        posted.news.missing.clone().or_else(ended)
    }

    /// Gives numbers to new reals. Until more is known, packets go to the configured address; reals
    /// that already have their number do not change.
    pub(super) fn add(
        &self,
        reals: impl Iterator<Item = (u16, IpAddr)>,
    ) -> Vec<(u16, IpAddr, Ticket)> {
        self.enter(reals, Entering::New)
    }

    /// The same for reals that packets already go to: these keep their hops until more is known.
    pub(super) fn take_over(
        &self,
        reals: impl Iterator<Item = (u16, IpAddr)>,
    ) -> Vec<(u16, IpAddr, Ticket)> {
        self.enter(reals, Entering::InUse)
    }

    fn enter(
        &self,
        reals: impl Iterator<Item = (u16, IpAddr)>,
        entering: Entering,
    ) -> Vec<(u16, IpAddr, Ticket)> {
        let mut posted = self.lock();
        let mut added = Vec::new();
        for (number, address) in reals {
            if posted
                .reals
                .get(number)
                .is_some_and(|real| real.address == address)
            {
                continue;
            }
            posted.tickets += 1;
            let ticket = posted.tickets;
            let fixed = posted.wanted.fixed(Family::of(address));
            let hop = Hop::default().or_given(fixed, &Hop::default());
            if entering == Entering::New {
                posted.write(number, &hop);
            }
            posted.reals.set(
                number,
                Some(Followed {
                    ticket,
                    address,
                    hop,
                }),
            );
            added.push((number, address, ticket));
        }
        self.publish(&posted);
        added
    }

    /// These numbers are no longer followed. Packets keep what they read of them.
    pub(super) fn remove(&self, numbers: &[u16]) {
        let mut posted = self.lock();
        numbers
            .iter()
            .for_each(|number| posted.reals.set(*number, None));
        self.publish(&posted);
    }

    /// Something else is wanted. From now on, findings for the previous wish do not reach packets.
    pub(super) fn set_wanted(&self, wanted: Wanted) -> Ticket {
        let mut posted = self.lock();
        posted.gateways = gateways_from(&posted.wanted, &wanted, posted.gateways);
        posted.wanted = wanted;
        posted.wish += 1;
        self.show_gateways(&posted);
        self.publish(&posted);
        posted.wish
    }

    pub(super) fn set_probes(&self, probes: Arc<ProbeCells>) {
        let mut posted = self.lock();
        posted.cells.probes = Some(probes);
        self.show_gateways(&posted);
    }

    pub(super) fn hop_cells(&self) -> Option<Arc<HopCells>> {
        self.lock().cells.hops.clone()
    }

    pub(super) fn probe_cells(&self) -> Option<Arc<ProbeCells>> {
        self.lock().cells.probes.clone()
    }

    /// Tells getters and packets what was found.
    pub(super) fn tell(&self, findings: Findings<'_>) -> Told {
        let mut posted = self.lock();
        let told = match findings.wish == posted.wish {
            true => Told::All,
            false => Told::NoHops,
        };
        let mut has_changed = false;
        if told == Told::All {
            has_changed = !findings.reals.is_empty();
            for (number, ticket, hop) in findings.reals {
                let real = posted.reals.get(number).copied();
                // The number may have another owner now.
                if let Some(real) = real.filter(|real| real.ticket == ticket) {
                    posted.write(number, &hop);
                    posted.reals.set(number, Some(Followed { hop, ..real }));
                }
            }
            if posted.gateways != *findings.gateways {
                posted.gateways = *findings.gateways;
                self.show_gateways(&posted);
                has_changed = true;
            }
        }
        if let Some(names) = findings.names {
            posted.names = Arc::new(names);
            has_changed = true;
        }
        if has_changed {
            self.publish(&posted);
        }
        posted.news = findings.news;
        posted.done = findings.done.unwrap_or(posted.done);
        drop(posted);
        self.changed.notify_all();
        told
    }

    /// Forgets the gateways and these reals, because they are followed elsewhere from now on.
    /// Packets keep what they read of them until more is known.
    pub(super) fn start_over(&self, numbers: impl Iterator<Item = u16>) {
        let mut posted = self.lock();
        for number in numbers {
            if let Some(real) = posted.reals.get(number).copied() {
                let fixed = posted.wanted.fixed(Family::of(real.address));
                let hop = Hop::default().or_given(fixed, &Hop::default());
                posted.reals.set(number, Some(Followed { hop, ..real }));
            }
        }
        posted.gateways = ByFamily::default();
        posted.names = Arc::default();
        self.show_gateways(&posted);
        self.publish(&posted);
    }

    /// Nothing is followed or known any more. Packets keep what they read.
    pub(super) fn leave(&self) {
        let mut posted = self.lock();
        posted.gateways = ByFamily::default();
        posted.left = true;
        self.show_gateways(&posted);
        self.publish(&posted);
    }

    /// The thread has ended: no call needs to wait for it.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// Whether a lock that is held for at most a millisecond is ever free.
fn is_free<T>(mutex: &Mutex<T>) -> bool {
    (0..MOST_TRIES).any(|_| {
        let is_free = !matches!(mutex.try_lock(), Err(TryLockError::WouldBlock));
        if !is_free {
            thread::sleep(Duration::from_millis(1));
        }
        is_free
    })
}

impl Posted {
    fn write(&self, number: u16, hop: &Hop) {
        let Some(hops) = &self.cells.hops else {
            return;
        };
        match hop.mac {
            Some(mac) => hops.set(number, mac, hop.port),
            None => hops.clear(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_nobody_gives_up_is_not_waited_for() {
        let mutex = Mutex::new(());
        assert!(is_free(&mutex));
        let locked = mutex.lock();
        assert!(!is_free(&mutex));
        drop(locked);
        thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _locked = mutex.lock();
                panic!("on purpose");
            });
            assert!(panics.join().is_err());
        });
        assert!(is_free(&mutex), "what a panic has left is whole");
    }
}
