//! A thread that exists only while it has something to do: it ends by itself, and is started again
//! when there is more.

use std::io;
use std::mem;
use std::thread;
use std::thread::JoinHandle;

use crate::sys::process::Owner;

/// Such a thread. Users of a lock that they share with it record there whether it runs.
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

    /// Whether this is the thread's process, and not a child made by fork(2): a child has no
    /// thread, and a lock that the thread held would never be released there.
    pub(super) fn is_here(&self) -> bool {
        self.owner.is_here()
    }

    /// Whether the thread has ended, by a panic or otherwise.
    pub(super) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts the thread. The previous one has ended, or is about to.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn start(&mut self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(self.name.to_owned());
        self.thread = Some(thread.spawn(work)?);
        Ok(())
    }

    /// Asks the thread to end, by `tell`, and waits until it has.
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
