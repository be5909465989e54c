//! A child process that belongs to a host.
//!
//! The handle kills the process by its own id and waits for it, so that neither a process nor a
//! zombie is left.

use std::fmt;
use std::io;
use std::process::Child;
use std::process::ChildStderr;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::ExitStatus;
use std::process::Output;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// The interval of polling in waits with a time limit.
const POLL: Duration = Duration::from_millis(5);

/// A process started by [`Host::spawn_command`](crate::Host::spawn_command). Dropping the handle
/// kills it.
#[must_use = "the process is killed when the handle is dropped"]
pub struct Process {
    program: String,
    /// Taken only by [`Process::wait_with_output`].
    child: Option<Child>,
}

impl Process {
    pub(crate) fn new(program: String, child: Child) -> Self {
        Self {
            program,
            child: Some(child),
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The process' standard input, once, if the command piped it.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.as_mut()?.stdin.take()
    }

    /// The process' standard output, once, if the command piped it.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.as_mut()?.stdout.take()
    }

    /// The process' standard error, once, if the command piped it.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.as_mut()?.stderr.take()
    }

    /// Whether the process still runs.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.child()?.try_wait()?.is_none())
    }

    /// Sends the process a signal, by number as in `kill -l` (2: SIGINT, 15: SIGTERM, ...).
    ///
    /// # Errors
    ///
    /// If there is no such signal, or the process has ended.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        let signal = Signal::try_from(signal)?;
        if !self.is_running()? {
            return Err(self.error("has ended"));
        }
        // Not waited for yet, so the id is still this process's.
        let id = i32::try_from(self.id()).map_err(io::Error::other)?;
        Ok(nix::sys::signal::kill(Pid::from_raw(id), signal)?)
    }

    /// Waits until the process ends by itself.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child()?.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                let message = format!("{} still runs after {limit:?}", self.program);
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until the process ends by itself, however long that takes, and returns what it wrote
    /// to the streams that the command piped.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        match self.child.take() {
            Some(child) => child.wait_with_output(),
            None => Err(self.error("has ended")),
        }
    }

    /// Kills the process with SIGKILL, which nothing can delay, and waits for it.
    ///
    /// # Errors
    ///
    /// Those of the kernel. A process that has ended is no error.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        let child = self.child()?;
        child.kill()?;
        child.wait()
    }

    fn child(&mut self) -> io::Result<&mut Child> {
        let message = format!("{} has ended", self.program);
        self.child.as_mut().ok_or_else(|| io::Error::other(message))
    }

    fn error(&self, what: &str) -> io::Error {
        io::Error::other(format!("{} {what}", self.program))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_some() {
            // An error means that it has ended already.
            let _ = self.kill();
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("program", &self.program)
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
