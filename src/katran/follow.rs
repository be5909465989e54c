//! For what reasons next hops are followed, and in which network namespaces. Reasons are worked out from
//! what is attached, so a call that fails half way leaves exactly those that hold.
//!
//! A balancer's packets read one set of next hops, so of several namespaces those of the first count,
//! until no reason is left there. Sockets and descriptors of namespaces, which keep them alive, are held only
//! while anything has to be found out: not with a gateway that was given.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::Katran;
use super::gateway::GatewaysMut;
use crate::attach::here;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::next_hop::Cells;
use crate::next_hop::Sockets;
use crate::next_hop::Wanted;
use crate::next_hop::Watcher;
use crate::sys::namespace::Namespace;
use crate::types::NextHops;

/// Between two looks at what is attached, which take some calls of the kernel's.
const LOOK: Duration = Duration::from_secs(1);

/// Why next hops are followed in a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The program is attached to the interface with this index.
    Interface(u32),
    /// It is an entry of a root program.
    Entry,
    /// Probes leave there.
    HealthChecks,
    /// The embedder has said so, who attaches by means of its own.
    Embedder,
}

/// The network namespaces with reasons, in the order in which they came.
#[derive(Default)]
pub(super) struct Following {
    namespaces: Vec<Followed>,
    /// Of the first of them, if anything has to be found out.
    pub(super) watcher: Option<Watcher>,
    /// The namespace in which the embedder has asked for it.
    embedder: Option<u64>,
    /// Which attached interfaces the follower was told of; `None`: those that it was started with.
    told: Option<Vec<u32>>,
    /// When it was last looked what is attached.
    looked: Option<Instant>,
}

struct Followed {
    /// The kernel's number of the namespace.
    number: u64,
    /// While anything has to be found out.
    way: Option<Way>,
}

/// What it takes to find out next hops in a namespace, wherever the caller is.
struct Way {
    namespace: Namespace,
    /// While nothing is followed here. Opened by the thread that came first, for whom it took no privilege.
    sockets: Option<Sockets>,
}

impl Way {
    /// Into the calling thread's namespace.
    fn here() -> Result<Self> {
        let namespace = Namespace::here();
        Ok(Self {
            namespace: namespace
                .map_err(|error| kernel_error("ask for", "the network namespace", error))?,
            // Without them nothing can be found out here, which is told if it has to be.
            sockets: Sockets::open().ok(),
        })
    }

    /// Into the namespace with this number, of which nothing was held until now.
    fn to(number: u64) -> Result<Self> {
        let found = Namespace::find(number);
        let found =
            found.map_err(|error| kernel_error("look for", "a network namespace", error))?;
        Ok(Self {
            namespace: found.ok_or_else(hidden)?,
            sockets: None,
        })
    }
}

impl Following {
    pub(super) fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// A follower whose thread has ended, as it has panicked, makes room for another.
    fn replace_ended(&mut self) {
        if self.watcher.as_ref().is_some_and(Watcher::has_ended) {
            log::error!("the thread that follows next hops has ended: another one is started");
            self.stop();
        }
    }

    /// Ends it in the first namespace; it may be started again there.
    pub(super) fn stop(&mut self) {
        self.told = None;
        if let Some(watcher) = self.watcher.take() {
            let sockets = watcher.stop();
            if let Some(way) = self.namespaces.first_mut().and_then(|of| of.way.as_mut()) {
                way.sockets = sockets;
            }
        }
    }

    /// Opens what it takes to follow next hops in the calling thread's namespace, if that has a reason.
    fn open_here(&mut self) -> Result<()> {
        let here = here();
        let mut namespaces = self.namespaces.iter_mut();
        let of_here = namespaces.find(|of| Some(of.number) == here && of.way.is_none());
        if let Some(followed) = of_here {
            followed.way = Some(Way::here()?);
        }
        Ok(())
    }

    /// Nothing has to be found out: nothing is held of any namespace.
    fn let_go(&mut self) {
        self.stop();
        for followed in &mut self.namespaces {
            followed.way = None;
        }
    }
}

impl GatewaysMut<'_> {
    /// Starts to find out next hops, if any have to be, in the calling thread's network namespace, until
    /// [`stop_following`](Self::stop_following).
    /// [`attach`](Katran::attach) does it, until the last [`detach`](Katran::detach); only those who attach
    /// [`program_fd`](Katran::program_fd) by other means have to.
    ///
    /// # Errors
    /// [`Error::NoNextHop`]; [`Error::Kernel`] if netlink
    /// sockets are refused. Nothing has changed then.
    pub fn follow(&mut self) -> Result<()> {
        let katran = &mut *self.katran;
        let before = katran.following.embedder.take();
        let followed = katran.follow_next_hops_for(Reason::Embedder);
        katran.following.embedder = match &followed {
            Ok(()) => here(),
            Err(_) => before,
        };
        katran.note_attached();
        followed
    }

    /// Ends what [`follow`](Self::follow) has begun. Next hops are followed on as long
    /// as the library has anything attached.
    pub fn stop_following(&mut self) {
        self.katran.following.embedder = None;
        self.katran.note_attached();
    }
}

impl Katran {
    /// Follows next hops for something that is about to be in the calling thread's network namespace, and
    /// waits until the gateway is known, if it has to be. In any case [`note_attached`](Self::note_attached)
    /// comes next, when it has been found out what is there.
    pub(super) fn follow_next_hops_for(&mut self, reason: Reason) -> Result<()> {
        let mut reasons = self.reasons();
        if let Some(here) = here() {
            reasons.push((here, reason));
            let namespaces = &mut self.following.namespaces;
            if !namespaces.iter().any(|of| of.number == here) {
                namespaces.push(Followed {
                    number: here,
                    way: None,
                });
            }
            if self.wanted().needs_watching() {
                self.following.open_here()?;
            }
        }
        self.follow_for(&reasons, true)
    }

    /// Something is about to change: looks whether what was attached still is, unless that was done a moment
    /// ago; interfaces go without a call of ours. Next hops are followed, and probes leave, where something is.
    pub(super) fn look_at_attachments(&mut self) {
        let looked = self.following.looked;
        let is_elsewhere = |watcher: &Watcher| !watcher.is_here();
        if self.following.is_empty()
            || looked.is_some_and(|at| at.elapsed() < LOOK)
            || self.following.watcher.as_ref().is_some_and(is_elsewhere)
        {
            return;
        }
        let mains = self.attachments.places();
        if let Some(checks) = &mut self.healthchecks
            && let Err(error) = checks.route(&mains)
        {
            log::warn!("health checks leave by an interface that is not ours: {error}");
        }
        self.note_attached();
        self.following.looked = Some(Instant::now());
    }

    /// Attachments have changed: next hops and MTUs are followed for those that are there.
    pub(super) fn note_attached(&mut self) {
        let reasons = self.reasons();
        if let Err(error) = self.follow_for(&reasons, false) {
            log::error!("next hops are not followed: {error}");
            // The next call tries again; nothing is followed where no reason is left.
            self.following.stop();
        }
        let namespaces = &mut self.following.namespaces;
        namespaces.retain(|of| reasons.iter().any(|(has, _)| *has == of.number));
        let exits = reasons
            .iter()
            .filter_map(|(namespace, reason)| match reason {
                Reason::Interface(index) => Some((*namespace, *index)),
                Reason::Entry | Reason::HealthChecks | Reason::Embedder => None,
            });
        self.frame_limit.set_exits(&exits.collect::<Vec<_>>());
    }

    /// The reasons that hold, with their namespaces.
    fn reasons(&self) -> Vec<(u64, Reason)> {
        let interfaces = self.attachments.places().into_iter();
        let interfaces = interfaces.map(|of| (of.namespace, Reason::Interface(of.index)));
        let entries = self.shared.present();
        let entries = entries.filter_map(|entry| Some((entry.namespace()?, Reason::Entry)));
        let checks = self.healthchecks.as_ref();
        let checks =
            checks.and_then(|checks| Some((checks.place()?.namespace, Reason::HealthChecks)));
        let embedder = self.following.embedder;
        let embedder = embedder.map(|namespace| (namespace, Reason::Embedder));
        interfaces
            .chain(entries)
            .chain(checks)
            .chain(embedder)
            .collect()
    }

    /// Has next hops followed in the first namespace that has a reason. If that cannot be, it goes on
    /// where it was.
    fn follow_for(&mut self, reasons: &[(u64, Reason)], wait: bool) -> Result<()> {
        let has_reason = |of: &Followed| reasons.iter().any(|(has, _)| *has == of.number);
        let Some(first) = self.following.namespaces.iter().position(has_reason) else {
            self.following.stop();
            return Ok(());
        };
        let attached = attached_in(&self.following.namespaces[first], reasons);
        self.following.replace_ended();
        if first == 0
            && let Some(watcher) = &self.following.watcher
        {
            if self.following.told.as_ref() != Some(&attached) {
                watcher.set_attached(attached.clone());
                self.following.told = Some(attached);
            }
            return Ok(());
        }
        self.following.stop();
        let wanted = self.wanted();
        let started = match wanted.needs_watching() {
            true => self
                .start_following(first, wanted, attached, wait)
                .map(Some),
            false => Ok(None),
        };
        match started {
            Ok(watcher) => {
                self.following.watcher = watcher;
                // That before it has no reason any more.
                self.following.namespaces.drain(..first);
                Ok(())
            }
            Err(error) => {
                if first > 0 {
                    self.following.watcher =
                        self.start_following(0, wanted, Vec::new(), false).ok();
                }
                Err(error)
            }
        }
    }

    /// Starts it in one of the namespaces, with none running.
    fn start_following(
        &mut self,
        at: usize,
        wanted: Wanted,
        attached: Vec<u32>,
        wait: bool,
    ) -> Result<Watcher> {
        let cells = Cells {
            live: Arc::clone(&self.maps.live),
            hops: self.maps.next_hops.clone(),
            probes: self.probe_cells(),
        };
        let reals = self.table.reals();
        let reals: Vec<_> = reals
            .map(|(address, entry)| (entry.number.0, address))
            .collect();
        let failed = |error| kernel_error("enter", "a network namespace", error);
        self.following.open_here()?;
        let at = &mut self.following.namespaces[at];
        let place = at.number;
        let way = match &mut at.way {
            Some(way) => way,
            none => none.insert(Way::to(place)?),
        };
        let Way { namespace, sockets } = way;
        let taken = match sockets.take() {
            Some(sockets) => sockets,
            None => namespace.run(Sockets::open).map_err(failed)??,
        };
        let start = || Watcher::start((taken, place), wanted, attached, cells, reals);
        let watcher = match wanted.mode {
            // The kernel takes an interface's index for one of the thread's namespace.
            NextHops::Redirect => namespace.run(start).map_err(failed)?,
            _ => start(),
        }?;
        if wait && let Err(error) = watcher.wait() {
            *sockets = watcher.stop();
            return Err(error);
        }
        Ok(watcher)
    }

    /// Does as `wanted` from now on, or goes on as before.
    pub(super) fn follow(&mut self, wanted: Wanted) -> Result<()> {
        // Now: where nothing is left nothing has to be found out.
        self.following.looked = None;
        self.look_at_attachments();
        let before = self.wanted();
        self.following.replace_ended();
        match &self.following.watcher {
            Some(watcher) if wanted.needs_watching() => {
                watcher.set_wanted(wanted);
                if let Err(error) = watcher.wait() {
                    watcher.set_wanted(before);
                    return Err(error);
                }
            }
            Some(_) => self.following.let_go(),
            None if wanted.needs_watching() && !self.following.is_empty() => {
                let reasons = self.reasons();
                let attached = attached_in(&self.following.namespaces[0], &reasons);
                let started = self.start_following(0, before, attached, false);
                let started = started.and_then(|watcher| {
                    // The address that was given serves until another is found.
                    watcher.set_wanted(wanted);
                    watcher.wait().map(|()| watcher)
                });
                match started {
                    Ok(watcher) => self.following.watcher = Some(watcher),
                    Err(error) => {
                        self.following.let_go();
                        self.write_gateways(before);
                        return Err(error);
                    }
                }
            }
            None => {}
        }
        self.write_gateways(wanted);
        Ok(())
    }
}

/// The error for a namespace of which nothing was held, and that is not found.
fn hidden() -> Error {
    Error::InvalidConfig {
        setting: "gateway_mac",
        value: "auto".to_owned(),
        reason: "is found out in the network namespace of the first attachment, which this process cannot \
                 find: call from a thread there"
            .to_owned(),
    }
}

/// The indexes of the interfaces that the program is attached to in a namespace; none if some are not
/// known.
fn attached_in(followed: &Followed, reasons: &[(u64, Reason)]) -> Vec<u32> {
    let mut attached = Vec::new();
    for (namespace, reason) in reasons {
        match reason {
            _ if *namespace != followed.number => {}
            Reason::Interface(index) => attached.push(*index),
            Reason::Entry | Reason::Embedder => return Vec::new(),
            Reason::HealthChecks => {}
        }
    }
    attached
}
