//! The network namespaces with reasons to follow next hops, and what reports whether a reason still
//! holds. A call of the handle takes this over; between calls it lies where the follower's thread
//! finds it, which can so move on, or end, without a call.
//!
//! Under the lock the thread asks the kernel some questions, and opens sockets when it moves on.
//! Only changes of attachments and gateways wait for it, no getter.

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::TryLockError;
use std::thread;
use std::time::Duration;

use super::Katran;
use crate::attach::Attached;
use crate::attach::AttachmentState;
use crate::attach::OnInterface;
use crate::attach::Witness;
use crate::attach::here;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::next_hop::Guide;
use crate::next_hop::Look;
use crate::next_hop::Site;
use crate::next_hop::Sockets;
use crate::sys::namespace::Namespace;
use crate::types::NextHops;

/// When the thread looks again without a notice of a link: if there is a namespace to move to, ...
const SOON: Duration = Duration::from_secs(1);
/// ... and if there is none, or none that it can reach.
const LATER: Duration = Duration::from_secs(15);
/// How often, a millisecond apart, a child made by fork(2) tries a lock whose holder may not exist
/// there.
const MOST_TRIES: u32 = 100;

/// Why next hops are followed in a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The program is attached to the interface with this index.
    Interface(u32),
    /// It is in an entry of a root program.
    Entry,
    HealthChecks,
    /// The embedder, which attaches the program itself, called `follow`.
    Embedder,
}

/// A reason that held when the handle last looked.
pub(super) struct Held {
    pub(super) namespace: u64,
    pub(super) reason: Reason,
    /// Reports whether it still does. `None`: it does until the handle says otherwise.
    witness: Option<Witness>,
}

impl Held {
    /// One that holds until the handle says otherwise.
    pub(super) fn until_told(namespace: u64, reason: Reason) -> Self {
        Self {
            namespace,
            reason,
            witness: None,
        }
    }

    fn witnessed(namespace: u64, reason: Reason, witness: io::Result<Witness>) -> Self {
        let witness = witness.inspect_err(|error| {
            log::warn!(
                "cannot watch an attachment: its loss shows only with the next change: {error}"
            );
        });
        Self {
            namespace,
            reason,
            witness: witness.ok(),
        }
    }

    fn holds(&self) -> bool {
        let state = self.witness.as_ref().map(|witness| witness());
        state.is_none_or(|state| state == AttachmentState::Attached)
    }
}

/// The network namespaces with reasons, oldest first. Next hops are followed in the first.
#[derive(Default)]
pub(super) struct Ground {
    pub(super) namespaces: Vec<Followed>,
    /// The attached interfaces last passed to the follower; `None`: those that it was started with.
    pub(super) told: Option<Vec<u32>>,
    /// Those that held when the handle laid this down.
    reasons: Vec<Held>,
    /// The thread found no reason left, and has ended.
    pub(super) is_left: bool,
    /// The thread has no reason left where it is, and could not reach the next namespace.
    is_stuck: bool,
}

pub(super) struct Followed {
    /// The namespace's inode number.
    pub(super) number: u64,
    pub(super) way: Option<Way>,
}

/// What it takes to discover next hops in a namespace, wherever the caller is.
pub(super) struct Way {
    pub(super) namespace: Namespace,
    /// While nothing is followed here. Opened by the thread that came first, which needed no
    /// privilege.
    pub(super) sockets: Option<Sockets>,
}

impl Way {
    /// Into the calling thread's namespace.
    fn here() -> Result<Self> {
        let namespace = Namespace::here();
        Ok(Self {
            namespace: namespace
                .map_err(|error| kernel_error("identify", "the network namespace", error))?,
            // Without them nothing can be discovered here; that is reported once it must be.
            sockets: Sockets::open().ok(),
        })
    }

    /// Into the namespace with this number, of which nothing was held before.
    fn to(number: u64) -> Result<Self> {
        let found = Namespace::find(number);
        let found =
            found.map_err(|error| kernel_error("identify", "a network namespace", error))?;
        Ok(Self {
            namespace: found.ok_or_else(hidden)?,
            sockets: None,
        })
    }

    /// Takes the sockets, or opens others.
    pub(super) fn sockets(&mut self) -> Result<Sockets> {
        let failed = |error| kernel_error("enter", "a network namespace", error);
        match self.sockets.take() {
            Some(sockets) => Ok(sockets),
            None => self.namespace.run(Sockets::open).map_err(failed)?,
        }
    }
}

impl Followed {
    pub(super) fn way(&mut self) -> Result<&mut Way> {
        match &mut self.way {
            Some(way) => Ok(way),
            none => Ok(none.insert(Way::to(self.number)?)),
        }
    }
}

impl Ground {
    /// Nothing is followed any more. Drops the witnesses, too: they hold descriptors of
    /// attachments.
    pub(super) fn forget(&mut self) {
        let namespaces = mem::take(&mut self.namespaces);
        *self = Self {
            namespaces,
            ..Self::default()
        };
    }

    pub(super) fn add(&mut self, number: u64) {
        if !self.namespaces.iter().any(|of| of.number == number) {
            self.namespaces.push(Followed { number, way: None });
        }
    }

    /// Opens what it takes to follow next hops in the calling thread's namespace, if that has a
    /// reason.
    pub(super) fn open_here(&mut self) -> Result<()> {
        let here = here();
        let mut namespaces = self.namespaces.iter_mut();
        let of_here = namespaces.find(|of| Some(of.number) == here && of.way.is_none());
        if let Some(followed) = of_here {
            followed.way = Some(Way::here()?);
        }
        Ok(())
    }

    /// The position of the first namespace with a reason.
    pub(super) fn first(&self, reasons: &[Held]) -> Option<usize> {
        let has_reason = |of: &Followed| reasons.iter().any(|held| held.namespace == of.number);
        self.namespaces.iter().position(has_reason)
    }

    /// The indexes of the interfaces that the program is attached to in a namespace; empty if some
    /// are unknown.
    pub(super) fn attached(&self, at: usize, reasons: &[Held]) -> Vec<u32> {
        attached_in(self.namespaces[at].number, reasons.iter())
    }

    /// Where the follower's thread goes from the first namespace.
    fn look(&mut self, mode: NextHops, is_there: &dyn Fn(u32) -> bool) -> Look {
        let again = match self.namespaces.len() > 1 {
            true => SOON,
            false => LATER,
        };
        let Some(first) = self.namespaces.first().map(|of| of.number) else {
            return Look::Stay(again);
        };
        let holds = |held: &&Held| match held.reason {
            // A witness may not notice that an interface was moved.
            Reason::Interface(index) if held.namespace == first && !is_there(index) => false,
            _ => held.holds(),
        };
        let holding: Vec<_> = self.reasons.iter().filter(holds).collect();
        if holding.iter().any(|held| held.namespace == first) {
            self.is_stuck = false;
            return Look::Stay(again);
        }
        let is_last = holding.is_empty();
        for (position, next) in self.namespaces.iter_mut().enumerate().skip(1) {
            if !holding.iter().any(|held| held.namespace == next.number) {
                continue;
            }
            match site(next, mode, &holding) {
                Ok(site) => {
                    self.told = Some(site.attached.clone());
                    self.namespaces.drain(..position);
                    self.is_stuck = false;
                    return Look::MoveOn(site);
                }
                Err(error) if self.is_stuck => {
                    log::debug!("still cannot follow next hops there: {error}");
                }
                Err(error) => {
                    log::error!("cannot follow next hops in the next network namespace: {error}")
                }
            }
        }
        match is_last {
            true => {
                *self = Self {
                    is_left: true,
                    ..Self::default()
                };
                Look::Leave
            }
            false => {
                // Each attempt may search all processes.
                self.is_stuck = true;
                Look::Stay(LATER)
            }
        }
    }
}

/// What the follower's thread needs in a namespace. Takes the thread there if permitted; device
/// maps require it.
fn site(to: &mut Followed, mode: NextHops, reasons: &[&Held]) -> Result<Site> {
    let namespace = to.number;
    let attached = attached_in(namespace, reasons.iter().copied());
    let way = to.way()?;
    let sockets = way.sockets()?;
    // The thread keeps its namespace alive.
    match way.namespace.enter() {
        Ok(()) => {}
        // The kernel resolves an interface's index in the thread's namespace.
        Err(error) if mode == NextHops::Redirect => {
            way.sockets = Some(sockets);
            return Err(kernel_error("enter", "a network namespace", error));
        }
        Err(error) => log::info!("a thread cannot enter a network namespace: {error}"),
    }
    Ok(Site {
        sockets,
        namespace,
        attached,
    })
}

fn attached_in<'a>(namespace: u64, reasons: impl Iterator<Item = &'a Held>) -> Vec<u32> {
    let mut attached = Vec::new();
    for held in reasons.filter(|held| held.namespace == namespace) {
        match held.reason {
            Reason::Interface(index) => attached.push(index),
            Reason::Entry | Reason::Embedder => return Vec::new(),
            Reason::HealthChecks => {}
        }
    }
    attached
}

/// Where the ground lies while the handle does not have it.
#[derive(Clone, Default)]
pub(super) struct Common(Arc<Mutex<Option<Ground>>>);

impl Common {
    /// Takes the ground; the thread stays where it is from now on.
    pub(super) fn take(&self) -> Option<Ground> {
        // A panic leaves it whole.
        let mut ground = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ground.take()
    }

    /// The same in a child made by fork(2), where nothing may be left to release the lock.
    pub(super) fn take_if_free(&self) -> Option<Ground> {
        for _ in 0..MOST_TRIES {
            match self.0.try_lock() {
                Ok(mut ground) => return ground.take(),
                Err(TryLockError::Poisoned(ground)) => return ground.into_inner().take(),
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    /// Lays the ground down for the thread, with the current reasons.
    pub(super) fn lay(&self, ground: Ground, reasons: Vec<Held>) {
        let ground = Ground { reasons, ..ground };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ground);
    }

    /// What leads a follower's thread.
    pub(super) fn guide(&self, mode: NextHops) -> Box<dyn Guide> {
        let common = self.clone();
        Box::new(Led { common, mode })
    }
}

struct Led {
    common: Common,
    mode: NextHops,
}

impl Guide for Led {
    fn look(&mut self, is_there: &dyn Fn(u32) -> bool) -> Look {
        let locked = self.common.0.lock();
        match &mut *locked.unwrap_or_else(PoisonError::into_inner) {
            Some(ground) => ground.look(self.mode, is_there),
            // A change is under way.
            None => Look::Stay(SOON),
        }
    }
}

impl Katran {
    pub(super) fn reasons(&self) -> Vec<Held> {
        let mut reasons = Vec::new();
        for link in self.attachments.present() {
            let place = link.target().place;
            let reason = Reason::Interface(place.index);
            reasons.push(Held::witnessed(place.namespace, reason, link.witness()));
        }
        for entry in self.shared.present() {
            if let Some(namespace) = entry.namespace() {
                reasons.push(Held::witnessed(namespace, Reason::Entry, entry.witness()));
            }
        }
        let checks = self.healthchecks.as_ref();
        if let Some((place, witness)) = checks.and_then(|checks| checks.witness()) {
            let reason = Reason::HealthChecks;
            reasons.push(Held::witnessed(place.namespace, reason, witness));
        }
        let embedder = self.following.embedder;
        reasons.extend(embedder.map(|of| Held::until_told(of, Reason::Embedder)));
        reasons
    }
}

/// The error for a namespace of which nothing was held, and that is not found.
fn hidden() -> Error {
    Error::InvalidConfig {
        setting: "gateway_mac",
        value: "auto".to_owned(),
        reason: "the library cannot find the network namespace of the first attachment, where it \
                 would look for the gateway: call from a thread in it"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;

    use super::*;

    /// A ground of the calling thread's namespace and of one that does not exist, each with an
    /// interface whose witnesses report these flags.
    fn ground(flags: [&Arc<AtomicBool>; 2]) -> Ground {
        let mut ground = Ground::default();
        for (namespace, flag) in [u64::MAX, here().unwrap()].into_iter().zip(flags) {
            ground.add(namespace);
            let flag = Arc::clone(flag);
            let witness: Witness = Box::new(move || match flag.load(Ordering::Relaxed) {
                true => AttachmentState::Attached,
                false => AttachmentState::Gone,
            });
            let reason = Reason::Interface(1);
            ground
                .reasons
                .push(Held::witnessed(namespace, reason, Ok(witness)));
        }
        ground
    }

    #[test]
    fn the_thread_moves_on_with_the_last_reason_and_leaves_with_the_last_of_all() {
        let there: [Arc<AtomicBool>; 2] = Default::default();
        let set = |first, second| {
            there[0].store(first, Ordering::Relaxed);
            there[1].store(second, Ordering::Relaxed);
        };
        let mut ground = ground([&there[0], &there[1]]);
        let look = |ground: &mut Ground, is_there: bool| {
            ground.look(NextHops::Gateway, &|index| is_there && index == 1)
        };
        set(true, true);
        assert!(matches!(look(&mut ground, true), Look::Stay(SOON)));
        set(true, false);
        assert!(matches!(look(&mut ground, true), Look::Stay(SOON)));
        set(false, true);
        let Look::MoveOn(site) = look(&mut ground, true) else {
            panic!("it stays");
        };
        assert_eq!((site.namespace, site.attached), (here().unwrap(), vec![1]));
        assert_eq!(ground.told, Some(vec![1]));
        // Alone, and then moved without its witness noticing.
        assert!(matches!(look(&mut ground, true), Look::Stay(LATER)));
        assert!(matches!(look(&mut ground, false), Look::Leave));
        assert!(ground.is_left && ground.namespaces.is_empty() && ground.reasons.is_empty());
    }

    #[test]
    fn a_thread_stays_where_it_is_if_the_next_place_is_not_found() {
        let there: [Arc<AtomicBool>; 2] = Default::default();
        let mut ground = ground([&there[0], &there[1]]);
        ground.namespaces.reverse();
        there[0].store(true, Ordering::Relaxed);
        let look = |ground: &mut Ground| ground.look(NextHops::Gateway, &|_| true);
        for _ in 0..2 {
            assert!(matches!(look(&mut ground), Look::Stay(LATER)));
            assert!(ground.is_stuck, "it would be logged again");
        }
        // A reason has come back where it is.
        there[1].store(true, Ordering::Relaxed);
        assert!(matches!(look(&mut ground), Look::Stay(SOON)));
        assert!(!ground.is_stuck);
    }

    #[test]
    fn what_the_handle_has_the_thread_does_not_touch() {
        let common = Common::default();
        let mut guide = common.guide(NextHops::Gateway);
        common.lay(ground([&Arc::default(), &Arc::default()]), Vec::new());
        let taken = common.take().unwrap();
        assert!(matches!(guide.look(&|_| false), Look::Stay(SOON)));
        assert!(common.take().is_none());
        common.lay(taken, Vec::new());
        assert!(matches!(guide.look(&|_| false), Look::Leave));
        assert!(common.take_if_free().is_some());
    }
}
