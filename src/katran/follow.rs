//! Why next hops are followed, and in which network namespace. The reasons are derived from what is
//! attached, so a call that fails half way leaves exactly those that hold.
//!
//! A balancer's packets read one set of next hops. With attachments in several namespaces those of
//! the first count, until it has no reason left. Sockets and descriptors keep a namespace alive, so
//! they are held only while there is something to discover: not with a configured gateway.

use std::mem;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::Katran;
use super::change::Left;
use super::change::Prepared;
use super::gateway::GatewaysMut;
use super::ground::Common;
use super::ground::Ground;
use super::ground::Held;
use super::ground::Reason;
use super::remember::nothing_else;
use crate::attach::here;
use crate::error::Result;
use crate::kernel::kernel_error;
use crate::next_hop::Cells;
use crate::next_hop::Site;
use crate::next_hop::Wanted;
use crate::next_hop::Watcher;
use crate::types::NextHops;

/// Between two looks at what is attached, which take some system calls.
const LOOK: Duration = Duration::from_secs(1);

/// The follower, and where it works.
#[derive(Default)]
pub(super) struct Following {
    /// In the first namespace of the ground, if there is anything to discover.
    pub(super) watcher: Option<Watcher>,
    /// Where the ground lies between calls, for the watcher's thread.
    common: Common,
    /// The ground during a call, or without a watcher.
    ground: Ground,
    /// The namespace in which the embedder called `follow`.
    pub(super) embedder: Option<u64>,
    /// When the attachments were last looked at.
    looked: Option<Instant>,
}

/// How long a call waits for a follower that it has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Started,
    /// Until the gateway is known, if it must be discovered.
    Known,
}

impl Following {
    /// Takes the ground: the watcher's thread stays where it is from now on.
    pub(super) fn take(&mut self) -> &mut Ground {
        let elsewhere = self
            .watcher
            .as_ref()
            .is_some_and(|watcher| !watcher.is_here());
        let taken = match elsewhere {
            true => self.common.take_if_free(),
            false => self.common.take(),
        };
        if let Some(ground) = taken {
            self.ground = ground;
        }
        &mut self.ground
    }

    /// Lays the ground down for the watcher's thread, if there is one, with the current reasons.
    fn lay(&mut self, reasons: Vec<Held>) {
        if self.watcher.as_ref().is_some_and(Watcher::is_here) {
            self.common.lay(mem::take(&mut self.ground), reasons);
        }
    }

    /// Makes room for another follower if the thread has ended: by a panic, or because nothing
    /// needed it.
    fn replace_ended(&mut self) {
        let has_panicked = self.watcher.as_ref().is_some_and(Watcher::has_ended);
        if has_panicked && !self.ground.is_left {
            log::error!("the thread that follows next hops has ended: starting another");
        }
        if has_panicked || self.ground.is_left {
            self.stop();
        }
    }

    /// Ends it in the first namespace, where it may start again.
    fn stop(&mut self) {
        self.take();
        self.ground.forget();
        if let Some(watcher) = self.watcher.take() {
            let sockets = watcher.stop();
            let first = self.ground.namespaces.first_mut();
            if let Some(way) = first.and_then(|of| of.way.as_mut()) {
                way.sockets = sockets;
            }
        }
    }

    /// Packets read other memory from now on: later discoveries are written there.
    pub(super) fn start_again(&mut self) {
        self.stop();
        self.looked = None;
    }

    /// Nothing to discover: releases every namespace.
    fn let_go(&mut self) {
        self.stop();
        for followed in &mut self.ground.namespaces {
            followed.way = None;
        }
    }
}

/// # Following next hops
impl GatewaysMut<'_> {
    /// Starts to discover next hops, where needed, in the calling thread's network namespace, until
    /// [`stop_following`](Self::stop_following). Call it only if you attach
    /// [`program_fd`](Katran::program_fd) yourself: [`attach`](Katran::attach) does it for the
    /// library's own attachments.
    ///
    /// # Errors
    /// [`Error::NoNextHop`](crate::Error::NoNextHop); [`Error::Kernel`](crate::Error::Kernel) if
    /// netlink sockets are refused. Nothing has changed then.
    pub fn follow(&mut self) -> Result<()> {
        let _call = self.katran.call()?;
        let katran = &mut *self.katran;
        let before = katran.following.embedder.take();
        let written = Prepared::plain(nothing_else).write_in_sight(katran, |katran| {
            katran.follow_next_hops_for(Reason::Embedder)
        });
        katran.following.embedder = match &written {
            Ok(_) => here(),
            Err(_) => before,
        };
        katran.note_attached();
        written?.switch(katran, |_, ()| Left::Nothing).end(katran);
        Ok(())
    }

    /// Undoes [`follow`](Self::follow). The library still follows next hops while it has anything
    /// attached.
    pub fn stop_following(&mut self) {
        let Ok(_call) = self.katran.call() else {
            return;
        };
        self.katran.change_surely(nothing_else, |katran| {
            katran.following.embedder = None;
            katran.note_attached();
        });
    }
}

impl Katran {
    /// Follows next hops for something about to be attached in the calling thread's network
    /// namespace, and waits until the gateway is known, if it must be discovered. The caller calls
    /// [`note_attached`](Self::note_attached) next, whatever the outcome.
    pub(super) fn follow_next_hops_for(&mut self, reason: Reason) -> Result<()> {
        let mut reasons = self.reasons();
        if let Some(here) = here() {
            reasons.push(Held::until_told(here, reason));
            let needs_watching = self.wanted().needs_watching();
            let ground = self.following.take();
            ground.add(here);
            if needs_watching {
                ground.open_here()?;
            }
        }
        self.follow_for(&reasons, Until::Known)
    }

    /// Before a change: checks whether attachments still exist, unless that was done a moment ago,
    /// because interfaces go without a call of ours. Next hops are followed, and probes leave,
    /// where something is attached.
    pub(super) fn look_at_attachments(&mut self) {
        let looked = self.following.looked;
        let is_elsewhere = |watcher: &Watcher| !watcher.is_here();
        if looked.is_some_and(|at| at.elapsed() < LOOK)
            || self.following.watcher.as_ref().is_some_and(is_elsewhere)
        {
            return;
        }
        let mains = self.attachments.places();
        if let Some(checks) = &mut self.healthchecks
            && let Err(error) = checks.route(&mains)
        {
            log::warn!(
                "health checks may leave through an interface without the balancer: {error}"
            );
        }
        self.note_attached();
        self.following.looked = Some(Instant::now());
    }

    /// After a change of attachments: follows next hops, MTUs and Ethernet addresses for those that
    /// exist.
    pub(super) fn note_attached(&mut self) {
        let reasons = self.reasons();
        let ground = self.following.take();
        // One that was moved away, or replaced, may have come back.
        reasons.iter().for_each(|held| ground.add(held.namespace));
        if let Err(error) = self.follow_for(&reasons, Until::Started) {
            log::error!("cannot follow next hops: {error}");
            // The next call tries again; without a reason nothing is followed.
            self.following.stop();
        }
        let namespaces = &mut self.following.take().namespaces;
        namespaces.retain(|of| reasons.iter().any(|held| held.namespace == of.number));
        // The kernel does not report in which namespace a root program has its interfaces. An
        // interface of the same index elsewhere has another address, and all frames would pass.
        let places = reasons.iter().filter_map(|held| match held.reason {
            Reason::Interface(index) => Some((held.namespace, index)),
            Reason::Entry | Reason::HealthChecks | Reason::Embedder => None,
        });
        self.links.set(&places.collect::<Vec<_>>());
        self.following.lay(reasons);
        self.lay_losses();
    }

    /// Follows next hops for these reasons, which were another balancer's, and waits until the
    /// gateway is known.
    pub(super) fn follow_for_all(&mut self, reasons: &[Held]) -> Result<()> {
        let ground = self.following.take();
        reasons.iter().for_each(|held| ground.add(held.namespace));
        self.follow_for(reasons, Until::Known)
    }

    /// Follows next hops in the first namespace that has a reason. If that fails, it stays where it
    /// was.
    fn follow_for(&mut self, reasons: &[Held], until: Until) -> Result<()> {
        let wanted = self.wanted();
        let following = &mut self.following;
        let Some(first) = following.take().first(reasons) else {
            following.stop();
            return Ok(());
        };
        let attached = following.ground.attached(first, reasons);
        following.replace_ended();
        if first == 0
            && let Some(watcher) = &following.watcher
        {
            if following.ground.told.as_ref() != Some(&attached) {
                watcher.set_attached(attached.clone());
                following.ground.told = Some(attached);
            }
            return Ok(());
        }
        following.stop();
        let started = match wanted.needs_watching() {
            true => self
                .start_following(first, wanted, attached, until)
                .map(Some),
            false => Ok(None),
        };
        match started {
            Ok(watcher) => {
                self.following.watcher = watcher;
                // The namespace before has no reason left.
                self.following.ground.namespaces.drain(..first);
                Ok(())
            }
            Err(error) => {
                if first > 0 {
                    self.following.watcher = self
                        .start_following(0, wanted, Vec::new(), Until::Started)
                        .ok();
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
        until: Until,
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
        let guide = self.following.common.guide(wanted.mode);
        let ground = &mut self.following.ground;
        ground.open_here()?;
        let followed = &mut ground.namespaces[at];
        let namespace = followed.number;
        let way = followed.way()?;
        let site = Site {
            sockets: way.sockets()?,
            namespace,
            attached,
        };
        let start = || Watcher::start(site, guide, wanted, cells, reals);
        // A thread keeps its namespace alive, so the follower's is not in the caller's.
        let started = match wanted.mode {
            // The kernel resolves an interface's index in the thread's namespace.
            NextHops::Redirect => way.namespace.run(start),
            NextHops::Gateway | NextHops::PerReal => way.namespace.run_if_allowed(start),
        };
        let failed = |error| kernel_error("enter", "a network namespace", error);
        let watcher = started.map_err(failed)??;
        if until == Until::Known
            && let Err(error) = watcher.wait()
        {
            way.sockets = watcher.stop();
            return Err(error);
        }
        Ok(watcher)
    }

    /// Discovers what `wanted` asks for and follows it from now on, or continues as before. The
    /// caller still [writes](Self::write_gateways) the configured addresses.
    pub(super) fn follow(&mut self, wanted: Wanted) -> Result<()> {
        // Now: with no reason left there is nothing to discover.
        self.following.looked = None;
        self.look_at_attachments();
        self.following.take();
        let changed = self.follow_as(wanted);
        let reasons = self.reasons();
        self.following.lay(reasons);
        changed
    }

    fn follow_as(&mut self, wanted: Wanted) -> Result<()> {
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
            None if wanted.needs_watching() && !self.following.ground.namespaces.is_empty() => {
                let reasons = self.reasons();
                let attached = self.following.ground.attached(0, &reasons);
                let started = self.start_following(0, before, attached, Until::Started);
                let started = started.and_then(|watcher| {
                    // The configured address serves until another is found.
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
        Ok(())
    }
}
