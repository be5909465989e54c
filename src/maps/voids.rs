//! Void entries of flow tables: those that name a real which their VIP has given up, or which is
//! down for it.
//!
//! A pair of VIP and real in the kernel's map `down_reals`, and a bit in the VIP's word that
//! packets read, void the entries at once. A thread then walks through the tables in small steps
//! and removes them, and withdraws pair and bit afterwards: only meanwhile do the VIP's packets pay
//! for a lookup. The thread ends when nothing is left to remove.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::flows::FlowTables;
use super::sweep::Held;
use super::sweep::Jobs;
use super::sweep::Shared;
use super::sweep::Void;
use super::sweep::VoidReason;
use super::task::Task;
use super::vips::VipCell;
use super::vips::VipCells;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::KernelCalls;
use crate::skel::katran::types;
use crate::sys::map::PerCpuArray;
use crate::sys::map::Typed;
use crate::sys::rcu::GracePeriod;
use crate::sys::tenure::Tenure;

/// What happens to entries of a real that is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lasting {
    /// The thread removes them; otherwise their flows' next packets do.
    pub(crate) sweep: bool,
    /// The pair stays while the real is down, because more than the ring may lead to it.
    pub(crate) keep: bool,
}

/// Whether entries of a VIP that is gone may become valid if the same VIP is added again with the
/// same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entries {
    /// None names a real that is still known.
    Void,
    /// Some may become valid.
    MayCount,
}

/// Changes of one VIP's void entries.
#[derive(Debug, Default)]
#[must_use = "nothing changes until it is prepared and switched to"]
pub(crate) struct VoidChange {
    /// Reals whose entries become void, by their ids.
    void: Vec<(u32, VoidReason, Lasting)>,
    /// Reals whose entries become valid again.
    lift: Vec<u32>,
}

impl VoidChange {
    /// Voids entries of a real that the VIP gives up.
    pub(crate) fn remove(&mut self, id: u32) {
        let lasting = Lasting {
            sweep: true,
            keep: false,
        };
        self.void.push((id, VoidReason::Removed, lasting));
    }

    /// Voids entries of a real that is down for the VIP.
    pub(crate) fn down(&mut self, id: u32, lasting: Lasting) {
        self.void.push((id, VoidReason::Down, lasting));
    }

    /// Makes entries of this real valid again.
    pub(crate) fn lift(&mut self, id: u32) {
        self.lift.push(id);
    }

    /// Whether nothing changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.void.is_empty() && self.lift.is_empty()
    }

    /// What the map should say about each real.
    fn wanted(&self) -> impl Iterator<Item = (u32, Option<VoidReason>)> {
        let voids = self.void.iter();
        let voids = voids.map(|(id, reason, _)| (*id, Some(*reason)));
        voids.chain(self.lift.iter().map(|id| (*id, None)))
    }
}

/// The void entries of all VIPs.
pub(crate) struct VoidFlows {
    shared: Arc<Shared>,
    task: Task,
}

/// A change that the kernel knows of.
#[must_use = "switch to it, or abandon it"]
pub(crate) struct Voiding {
    change: VoidChange,
    _held: Held,
}

/// The map's capacity in pairs: all reals may be down, and a VIP may give up as many at once.
pub(crate) fn void_pairs(max_reals: u32) -> u32 {
    2 * max_reals
}

impl VoidFlows {
    pub(crate) fn new(
        map: Typed<types::down_real, u32>,
        max_reals: u32,
        cells: Arc<VipCells>,
        flows: Arc<FlowTables>,
        cpus: Arc<PerCpuArray<types::cpu>>,
        tenure: Arc<Tenure>,
    ) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                map,
                room: void_pairs(max_reals) as usize,
                most_kept: max_reals as usize,
                cells,
                flows,
                cpus,
                tenure,
                grace_period: GracePeriod::new()?,
                state: Mutex::default(),
                wake: Condvar::new(),
                step: Mutex::default(),
                cancelled: AtomicU64::new(0),
            }),
            task: Task::new("katran-sweep"),
        })
    }

    /// The pairs that another process left in the kernel's map: VIPs, reals' ids, and the reasons.
    pub(crate) fn found(&self) -> io::Result<Vec<(u16, u32, VoidReason)>> {
        let map = &self.shared.map;
        let mut found = Vec::new();
        let mut key = map.next_key(None)?;
        while let Some(at) = key {
            if let Some(value) = map.lookup(&at)? {
                let reason = match value == types::void_reason::VOID_DOWN.0 {
                    true => VoidReason::Down,
                    false => VoidReason::Removed,
                };
                found.push((at.vip as u16, at.real, reason));
            }
            key = map.next_key(Some(&at))?;
        }
        Ok(found)
    }

    /// Removes a pair that another process left and that is no longer valid.
    pub(crate) fn lift_found(&self, vip: u16, real: u32) -> io::Result<()> {
        self.shared.write(vip, real, None)
    }

    /// Pairs in the kernel's map.
    pub(crate) fn pairs(&self) -> usize {
        self.shared.lock().pairs
    }

    /// Why a VIP's entries of a real are void; `None`: they are valid.
    pub(crate) fn reason(&self, vip: u16, real: u32) -> Option<VoidReason> {
        let state = self.shared.lock();
        state.vips.get(&vip)?.reals.get(&real).map(|of| of.reason)
    }

    /// Whether entries of a real that the VIP gave up are still to be removed.
    pub(crate) fn is_being_removed(&self, vip: u16, real: u32) -> bool {
        self.reason(vip, real) == Some(VoidReason::Removed)
    }

    /// Whether entries of a VIP that had this number are still to be removed.
    pub(crate) fn is_gone(&self, vip: u16) -> bool {
        let state = self.shared.lock();
        state.vips.get(&vip).is_some_and(|of| of.gone.is_some())
    }

    /// Makes the thread wait.
    pub(crate) fn hold(&self) -> Held {
        self.shared.lock().held += 1;
        Held(Arc::clone(&self.shared))
    }

    /// Tells the kernel about a change. It takes effect at the [`switch`](Self::switch) if nothing
    /// of the VIP is void yet. Otherwise packets already look at the map, so it takes effect at
    /// once: flows move some microseconds before the ring does, and the old ring gives them a real.
    /// A change that is [abandoned](Self::abandon) may have moved some flows in this way. If there
    /// is no room, this waits until void entries are removed.
    ///
    /// # Errors
    /// If the kernel refuses, or too many reals are down; nothing has changed then.
    pub(crate) fn prepare(
        &self,
        kernel: &KernelCalls,
        vip: u16,
        change: VoidChange,
    ) -> Result<Voiding> {
        let held = self.hold();
        self.check_room(kernel, &[(vip, &change)])?;
        self.write(kernel, vip, &change)?;
        Ok(Voiding {
            change,
            _held: held,
        })
    }

    /// The same for several VIPs, all or none.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub(crate) fn prepare_all(
        &self,
        kernel: &KernelCalls,
        changes: Vec<(u16, VoidChange)>,
    ) -> Result<Vec<(u16, Voiding)>> {
        let held = self.hold();
        let of_vips: Vec<_> = changes.iter().map(|(vip, change)| (*vip, change)).collect();
        self.check_room(kernel, &of_vips)?;
        let mut prepared = Vec::new();
        for (vip, change) in changes {
            if let Err(error) = self.write(kernel, vip, &change) {
                self.abandon_all(&prepared);
                return Err(error);
            }
            let voiding = Voiding {
                change,
                _held: self.hold(),
            };
            prepared.push((vip, voiding));
        }
        drop(held);
        Ok(prepared)
    }

    /// Tells the kernel, or leaves it unchanged.
    fn write(&self, kernel: &KernelCalls, vip: u16, change: &VoidChange) -> Result<()> {
        let mut done = Vec::new();
        for (id, reason) in change.wanted() {
            let before = self.reason(vip, id);
            if before == reason {
                continue;
            }
            if let Err(error) = self.shared.write(vip, id, reason) {
                self.restore(vip, &done);
                return kernel.check("void the flows of a real in", "down_reals", Err(error));
            }
            done.push((id, before));
        }
        Ok(())
    }

    fn check_room(&self, kernel: &KernelCalls, changes: &[(u16, &VoidChange)]) -> Result<()> {
        let state = self.shared.lock();
        let (mut new, mut keep) = (0, 0);
        for (vip, change) in changes {
            let of = state.vips.get(vip);
            for (id, _, lasting) in &change.void {
                let known = of.and_then(|of| of.reals.get(id));
                new += usize::from(known.is_none());
                keep += usize::from(lasting.keep && known.is_none_or(|void| !void.keep));
            }
        }
        if keep > 0 && state.kept + keep > self.shared.most_kept {
            return Err(Error::Exhausted {
                what: "down reals that server ids, source routes or flags can still choose \
                       (max_reals)",
                limit: self.shared.most_kept as u64,
            });
        }
        let full = state.pairs + new > self.shared.room;
        drop(state);
        match full {
            true => self.remove_now(kernel, None),
            false => Ok(()),
        }
    }

    /// Undoes a [`prepare`](Self::prepare) that is not followed by a switch.
    pub(crate) fn abandon(&self, vip: u16, prepared: &Voiding) {
        let ids = prepared.change.wanted().map(|(id, _)| id);
        let before: Vec<_> = ids.map(|id| (id, self.reason(vip, id))).collect();
        self.restore(vip, &before);
    }

    /// The same for several VIPs.
    pub(crate) fn abandon_all(&self, prepared: &[(u16, Voiding)]) {
        for (vip, voiding) in prepared {
            self.abandon(*vip, voiding);
        }
    }

    fn restore(&self, vip: u16, before: &[(u32, Option<VoidReason>)]) {
        for (id, reason) in before {
            if let Err(error) = self.shared.write(vip, *id, *reason) {
                log::warn!("cannot undo a change of reals that are down: {error}");
            }
        }
    }

    /// Switches what packets see of a VIP, together with a prepared change, if there is one.
    pub(crate) fn switch(&mut self, vip: u16, mut cell: VipCell, prepared: Option<Voiding>) {
        if let Some(Voiding { change, .. }) = &prepared {
            let mut state = self.shared.lock();
            for (id, reason, lasting) in &change.void {
                let job = lasting.sweep.then(|| state.job());
                let void = Void {
                    reason: *reason,
                    keep: lasting.keep,
                    job,
                };
                state.put(vip, *id, void);
            }
            for id in &change.lift {
                state.take(vip, *id);
            }
            state.tidy(vip);
            drop(state);
            // Before packets make valid entries.
            if !change.lift.is_empty() {
                self.shared.cancel();
            }
        }
        let state = self.shared.lock();
        let of = state.vips.get(&vip);
        cell.void_flows = of.is_some_and(|of| !of.reals.is_empty());
        self.shared.cells.set(vip, cell);
        drop(state);
        drop(prepared);
        self.start();
    }

    /// Packets no longer find the VIP: starts to remove those of its entries that may become valid
    /// again.
    pub(crate) fn vip_gone(&mut self, vip: u16, entries: Entries) {
        let mut state = self.shared.lock();
        if entries == Entries::MayCount || state.vips.contains_key(&vip) {
            state.all_gone(vip);
        }
        drop(state);
        self.start();
    }

    /// The same for a VIP that another process left, with its pairs in the kernel's map.
    pub(crate) fn found_gone(&mut self, vip: u16, reals: impl Iterator<Item = u32>) {
        let mut state = self.shared.lock();
        for real in reals {
            let void = Void {
                reason: VoidReason::Removed,
                keep: false,
                job: None,
            };
            state.put(vip, real, void);
        }
        state.all_gone(vip);
        drop(state);
        self.start();
    }

    /// Removes void entries, of one VIP or of all, before it returns: some tenths of a second with
    /// millions of flows, more with the kernel's LRU hash.
    ///
    /// # Errors
    /// If the kernel refuses; some entries are removed then, and the thread continues.
    pub(crate) fn remove_now(&self, kernel: &KernelCalls, vip: Option<u16>) -> Result<()> {
        let jobs = self.shared.lock().jobs(vip);
        self.do_now(kernel, &jobs)
    }

    /// The same for all VIPs that are gone.
    ///
    /// # Errors
    /// As [`remove_now`](Self::remove_now).
    pub(crate) fn remove_gone(&self, kernel: &KernelCalls) -> Result<()> {
        let jobs = self.shared.lock().jobs(None).of_gone();
        match jobs.is_empty() {
            true => Ok(()),
            false => self.do_now(kernel, &jobs),
        }
    }

    fn do_now(&self, kernel: &KernelCalls, jobs: &Jobs) -> Result<()> {
        let removed = self.shared.remove(jobs, || true);
        let removed = removed.and_then(|_| self.shared.finish(&mut self.shared.lock(), jobs));
        // The thread may be at the same jobs.
        self.shared.cancel();
        kernel.check("remove void flows from", "the flow tables", removed)
    }

    /// Starts the thread, if it has something to do and is not there.
    fn start(&mut self) {
        let mut state = self.shared.lock();
        if state.running || state.pending == 0 {
            return;
        }
        let shared = Arc::clone(&self.shared);
        match self.task.start(move || shared.follow()) {
            Ok(()) => state.running = true,
            // They are void; the next change tries again.
            Err(error) => log::warn!("cannot remove void flow entries: {error}"),
        }
    }
}

impl AsFd for VoidFlows {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.map.as_fd()
    }
}

impl Drop for VoidFlows {
    fn drop(&mut self) {
        // Waits for the thread, so that the tables are gone with the handle.
        self.task.end(|| {
            self.shared.lock().stop = true;
            self.shared.wake.notify_all();
        });
    }
}
