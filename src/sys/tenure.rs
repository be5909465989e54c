//! A process's tenure of a balancer. It ends with the process, or when another process takes the
//! balancer over. That happens between two calls, and between two writes of the library's threads,
//! so nothing is left half done. Afterwards calls are refused and threads write nothing.
//!
//! All shared data is `State`, behind one mutex. While a process waits for the end (`closing`),
//! anything new waits, unless a call is under way, because that call may need its threads. So the
//! end comes after one call, however many follow, and the waiting process can change its mind.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;

use crate::error::Error;
use crate::error::Result;

/// How it ended, and where the balancer is pinned.
#[derive(Debug)]
pub(crate) enum End {
    /// Another process took the balancer over.
    HandedOver {
        path: PathBuf,
        /// The process, if it is visible from here.
        to: Option<u32>,
    },
    /// The handle was dropped: what outlives it must leave the balancer alone.
    Dropped { path: PathBuf },
}

/// The time that this process has a balancer.
#[derive(Debug, Default)]
pub(crate) struct Tenure {
    state: Mutex<State>,
    changed: Condvar,
    end: OnceLock<End>,
}

#[derive(Debug, Default)]
struct State {
    /// Calls that change something, including nested ones.
    calls: u32,
    /// Other writers at this moment.
    writers: u32,
    /// Of these, threads that calls have started.
    threads: u32,
    closing: bool,
}

impl State {
    /// Whether anything new must wait.
    fn is_closed(&self) -> bool {
        self.closing && self.calls == 0
    }
}

/// A call that changes something, while this lives.
#[derive(Debug)]
#[must_use = "the balancer can be handed over when it is dropped"]
pub(crate) struct Call(Arc<Tenure>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.lock().calls -= 1;
        self.0.changed.notify_all();
    }
}

/// A write, or an exclusive read, while this lives. Do not take a second one.
#[derive(Debug)]
#[must_use = "the balancer can be handed over when it is dropped"]
pub(crate) struct Permit<'a>(&'a Tenure);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.end_writing();
    }
}

/// The same, for a thread that writes on after the call that started it.
#[derive(Debug)]
#[must_use = "the balancer can be handed over when it is dropped"]
pub(crate) struct ThreadPermit(Arc<Tenure>);

impl Drop for ThreadPermit {
    fn drop(&mut self) {
        self.0.lock().threads -= 1;
        self.0.end_writing();
    }
}

impl Tenure {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete, even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once something may begin.
    fn open(&self) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_while(self.lock(), |of| of.is_closed());
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call, possibly within another.
    ///
    /// # Errors
    /// [`Error::HandedOver`].
    pub(crate) fn call(self: &Arc<Self>) -> Result<Call> {
        let mut state = self.open();
        self.check()?;
        state.calls += 1;
        Ok(Call(Arc::clone(self)))
    }

    /// Begins to write.
    ///
    /// # Errors
    /// [`Error::HandedOver`].
    pub(crate) fn permit(&self) -> Result<Permit<'_>> {
        self.begin_to_write()?;
        Ok(Permit(self))
    }

    fn begin_to_write(&self) -> Result<()> {
        let mut state = self.open();
        self.check()?;
        state.writers += 1;
        Ok(())
    }

    fn end_writing(&self) {
        self.lock().writers -= 1;
        self.changed.notify_all();
    }

    /// A permit for a thread that is about to be started.
    ///
    /// # Errors
    /// [`Error::HandedOver`].
    pub(crate) fn thread_permit(self: &Arc<Self>) -> Result<ThreadPermit> {
        self.begin_to_write()?;
        self.lock().threads += 1;
        Ok(ThreadPermit(Arc::clone(self)))
    }

    /// Waits for the threads that calls have started.
    pub(crate) fn wait_for_threads(&self) {
        let waited = self
            .changed
            .wait_while(self.lock(), |state| state.threads > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Runs `stores`, which takes no time, unless the balancer is another process's.
    pub(crate) fn while_ours(&self, stores: impl FnOnce()) {
        let _state = self.open();
        if !self.is_over() {
            stores();
        }
    }

    /// Checks that the balancer is still this handle's.
    ///
    /// # Errors
    /// [`Error::HandedOver`]; [`Error::HandleDropped`].
    pub(crate) fn check(&self) -> Result<()> {
        match self.end.get() {
            None => Ok(()),
            Some(End::HandedOver { path, to }) => Err(Error::HandedOver {
                path: path.clone(),
                to: *to,
            }),
            Some(End::Dropped { path }) => Err(Error::HandleDropped { path: path.clone() }),
        }
    }

    /// Whether the tenure has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.end.get().is_some()
    }

    /// Whether no call is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().calls == 0
    }

    /// Waits up to `patience` until nothing is under way; then nothing begins before
    /// [`reopen`](Self::reopen) or [`end`](Self::end). False: something takes longer, and
    /// everything continues.
    pub(crate) fn close_within(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        state.closing = true;
        let busy = |state: &mut State| state.calls > 0 || state.writers > 0;
        let waited = self.changed.wait_timeout_while(state, patience, busy);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.closing = !busy(&mut state);
        self.changed.notify_all();
        state.closing
    }

    /// The balancer is not handed over after all.
    pub(crate) fn reopen(&self) {
        self.lock().closing = false;
        self.changed.notify_all();
    }

    /// Ends the tenure: nothing begins any more. Close it first to hand the balancer over.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.lock();
        // The first reason counts.
        let _ = self.end.set(end);
        state.closing = false;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;
    use std::thread;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    fn handed_over() -> End {
        End::HandedOver {
            path: "/there".into(),
            to: Some(7),
        }
    }

    #[test]
    fn it_ends_after_the_call_that_is_under_way_and_what_that_needs() {
        let tenure = Arc::new(Tenure::default());
        let call = tenure.call().unwrap();
        assert!(!tenure.close_within(SHORT));
        let begun = AtomicU32::new(0);
        thread::scope(|scope| {
            let closing = scope.spawn(|| tenure.close_within(LONG));
            while !tenure.lock().closing {
                thread::yield_now();
            }
            // Nested writes, and threads that the call may wait for.
            drop(tenure.permit().unwrap());
            let within = tenure.call().unwrap();
            drop(call);
            assert!(!closing.is_finished());
            drop(within);
            assert!(closing.join().unwrap());
            let next = scope.spawn(|| {
                let refused = tenure.call().is_err();
                begun.fetch_add(1, Ordering::Relaxed);
                refused
            });
            thread::sleep(SHORT);
            assert_eq!(begun.load(Ordering::Relaxed), 0);
            tenure.end(handed_over());
            assert!(next.join().unwrap());
        });
        let refused = tenure.permit().unwrap_err();
        assert!(
            matches!(refused, Error::HandedOver { to: Some(7), .. }),
            "{refused}"
        );
        tenure.while_ours(|| panic!("it is another one's"));
        // Its handle is dropped later.
        let path = || "/there".into();
        tenure.end(End::Dropped { path: path() });
        assert!(matches!(tenure.check(), Err(Error::HandedOver { .. })));
        let tenure = Tenure::default();
        tenure.end(End::Dropped { path: path() });
        assert!(matches!(tenure.check(), Err(Error::HandleDropped { .. })));
    }

    #[test]
    fn what_has_waited_goes_on_if_nobody_takes_over() {
        let tenure = Arc::new(Tenure::default());
        let permit = tenure.permit().unwrap();
        assert!(!tenure.close_within(SHORT));
        drop(permit);
        assert!(tenure.close_within(SHORT));
        thread::scope(|scope| {
            let call = scope.spawn(|| tenure.call().is_ok());
            thread::sleep(SHORT);
            assert!(!call.is_finished());
            tenure.reopen();
            assert!(call.join().unwrap());
        });
        let mut stored = false;
        tenure.while_ours(|| stored = true);
        assert!(stored);
    }

    /// Calls in a row without a pause do not keep another process out.
    #[test]
    fn calls_in_a_row_make_room() {
        let tenure = Arc::new(Tenure::default());
        let made = AtomicU32::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while let Ok(call) = tenure.call() {
                    made.fetch_add(1, Ordering::Relaxed);
                    drop(call);
                }
            });
            while made.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            assert!(tenure.close_within(LONG));
            tenure.end(handed_over());
        });
    }
}
