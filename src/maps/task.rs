//! A thread that is there only while it has something to do: it ends by itself, and is started again when there is
//! more.

use std::io;
use std::mem;
use std::thread;
use std::thread::JoinHandle;

use crate::sys::process::Owner;

/// Such a thread. Those who share a lock with it note there whether it runs.
#[derive(Debug)]
pub(super) struct Task {
    name: &'static str,
    thread: Option<JoinHandle<()>>,
    owner: Owner,
}

impl Task {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            thread: None,
            owner: Owner::new(),
        }
    }

    /// Whether this is the process that the thread belongs to, and no child made by fork(2): that has none, and nobody may be
    /// left in it to give up the lock.
    pub(super) fn is_here(&self) -> bool {
        self.owner.is_here()
    }

    /// Whether there is no thread any more, also if it has panicked.
    pub(super) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts the thread. The one before has ended, or is about to.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn start(&mut self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(self.name.to_owned());
        self.thread = Some(thread.spawn(work)?);
        Ok(())
    }

    /// Has the thread end, which `tell` asks it to, and waits until it has.
    pub(super) fn end(&mut self, tell: impl FnOnce()) {
        if !self.is_here() {
            mem::forget(self.thread.take());
            return;
        }
        tell();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported.
            let _ = thread.join();
        }
    }
}
