//! Callbacks for reals that come and go, and the VIP whose new flows are counted per real.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::net::IpAddr;
use std::panic;
use std::panic::AssertUnwindSafe;

use super::Katran;
use super::apply::not_undone;
use super::change::Left;
use super::change::News;
use super::change::Prepared;
use super::change::RealNews;
use super::counters::Stats;
use super::counters::StatsMut;
use super::remember::only;
use crate::error::Result;
use crate::ledger::Change;
use crate::table::RealRecord;
use crate::types::RealNumber;
use crate::types::Vip;

/// Identifies a registered callback, for removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallbackId(u64);

type Callback = Box<dyn FnMut(IpAddr, RealNumber) + Send + Sync>;

#[derive(Default)]
pub(super) struct Callbacks {
    last: u64,
    pub(super) panicked: u64,
    added: BTreeMap<CallbackId, Callback>,
    removed: BTreeMap<CallbackId, Callback>,
}

impl Callbacks {
    fn next(&mut self) -> CallbackId {
        self.last += 1;
        CallbackId(self.last)
    }

    /// Calls those that this concerns. After a panic a callback is in an unknown state, so it is
    /// not called again.
    fn run(&mut self, news: RealNews) {
        let (callbacks, address, number) = match news {
            RealNews::Added(address, number) => (&mut self.added, address, number),
            RealNews::Removed(address, number) => (&mut self.removed, address, number),
        };
        let mut panicked = Vec::new();
        for (id, callback) in callbacks.iter_mut() {
            let called = panic::catch_unwind(AssertUnwindSafe(|| callback(address, number)));
            if let Err(panic) = called {
                forget(panic);
                panicked.push(*id);
            }
        }
        for id in panicked {
            self.panicked += 1;
            log::error!("a callback for reals has panicked at {address} and is not called again");
            let callback = callbacks.remove(&id);
            // What it owns may panic, too.
            let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(callback)));
            dropped.unwrap_or_else(forget);
        }
    }
}

/// A panic's payload may itself panic when dropped.
fn forget(panic: Box<dyn Any + Send>) {
    mem::forget(panic);
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks")
            .field("added", &self.added.len())
            .field("removed", &self.removed.len())
            .finish()
    }
}

/// The watched VIP, and each real's misses when the watch began, by the real's number.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) vip: Vip,
    before: BTreeMap<u32, u64>,
}

impl StatsMut<'_> {
    /// Counts, from zero, the new flows of this VIP that each real gets, in
    /// [`RealCounters::misses`](crate::stats::RealCounters::misses). Only one VIP is watched at a
    /// time; this ends the watch of another.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound); [`Error::Kernel`](crate::Error::Kernel). The
    /// previous watch continues then.
    #[doc(alias = "setVipLruMissStats")]
    pub fn watch_misses(&mut self, vip: Vip) -> Result<()> {
        let _call = self.katran.call()?;
        let number = self.katran.entry(vip)?.number;
        // The counters of a number that is given out later begin at zero.
        let mut numbers: Vec<u32> = self
            .katran
            .table
            .reals()
            .map(|(_, entry)| entry.number.get())
            .collect();
        numbers.sort_unstable();
        let mut before = BTreeMap::new();
        let written = Prepared::plain(only(Change::Watched(Some(vip.into())))).write(
            self.katran,
            |katran| {
                katran.read_real_counters(&numbers, |number, values| {
                    let misses: u64 = values.iter().map(|value| value.misses).sum();
                    if misses != 0 {
                        before.insert(number, misses);
                    }
                })?;
                Ok(before)
            },
        )?;
        let switched = written.switch(self.katran, |katran, before| {
            katran.watch = Some(Watch { vip, before });
            katran.maps.live.set_watched_vip(Some(number.0));
            Left::Nothing
        });
        switched.end(self.katran);
        Ok(())
    }

    /// Ends the watch, if there is one.
    pub fn unwatch_misses(&mut self) {
        let Ok(_call) = self.katran.call() else {
            return;
        };
        let kept = only(Change::Watched(None));
        self.katran.change_surely(kept, Katran::end_watch);
    }
}

/// # Watched VIP
impl Stats<'_> {
    /// The watched VIP.
    pub fn watched_vip(&self) -> Option<Vip> {
        self.katran.watch.as_ref().map(|watch| watch.vip)
    }
}

/// # Callbacks
impl Katran {
    /// Calls `callback` with address and number of each real when something first names it.
    ///
    /// It runs on the calling thread, at the end of the call that adds the real, after the change.
    /// With [`apply`](Self::apply) it runs after all changes, and not at all if they were undone.
    /// If the callback panics, the call still succeeds, and the library logs the panic,
    /// counts it in
    /// [`LibraryCounters::panicked_callbacks`](crate::stats::LibraryCounters::panicked_callbacks)
    /// and removes the callback.
    #[doc(alias = "setRealsIdCallback")]
    pub fn on_real_added(
        &mut self,
        callback: impl FnMut(IpAddr, RealNumber) + Send + Sync + 'static,
    ) -> CallbackId {
        let id = self.callbacks.next();
        self.callbacks.added.insert(id, Box::new(callback));
        id
    }

    /// Calls `callback` with address and number of each real when nothing names it any more. The
    /// number may be given to another address later.
    ///
    /// It runs as [`on_real_added`](Self::on_real_added) describes.
    pub fn on_real_removed(
        &mut self,
        callback: impl FnMut(IpAddr, RealNumber) + Send + Sync + 'static,
    ) -> CallbackId {
        let id = self.callbacks.next();
        self.callbacks.removed.insert(id, Box::new(callback));
        id
    }

    /// Removes a callback; `false` if there is none.
    pub fn remove_callback(&mut self, id: CallbackId) -> bool {
        self.callbacks.added.remove(&id).is_some() | self.callbacks.removed.remove(&id).is_some()
    }

    pub(super) fn end_watch(&mut self) {
        self.maps.live.set_watched_vip(None);
        self.watch = None;
    }

    /// Continues the watch of a VIP that was removed and added again: from zero, or from the counts
    /// of `ended`.
    pub(super) fn watch_again(&mut self, vip: Vip, ended: Option<&Watch>) {
        if self.watch.is_some() {
            return;
        }
        if let Err(error) = self.stats_mut().watch_misses(vip) {
            return not_undone(&error);
        }
        let (Some(watch), Some(ended)) = (&mut self.watch, ended) else {
            return;
        };
        for (number, misses) in &mut watch.before {
            // Counters that went with their real meanwhile have begun again.
            *misses = ended.before.get(number).copied().unwrap_or(0).min(*misses);
        }
    }

    pub(super) fn misses_since_watch(&self, number: u32, misses: u64) -> u64 {
        let Some(watch) = &self.watch else {
            return 0;
        };
        misses.saturating_sub(watch.before.get(&number).copied().unwrap_or(0))
    }

    /// Notes that these numbers' counters have begun at zero.
    pub(super) fn count_from_zero(&mut self, added: &[RealRecord]) {
        if let Some(watch) = &mut self.watch {
            for record in added {
                watch.before.remove(&record.number.get());
            }
        }
    }

    /// The last phase of a change: runs the callbacks.
    pub(super) fn tell(&mut self, news: News) {
        for real in news.reals {
            self.callbacks.run(real);
        }
    }
}
