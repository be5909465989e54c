//! How a pinned balancer moves from one live process to another: through its directory, whatever
//! network or mount namespaces they are in.
//!
//! The process that wants it makes a request: it locks the directory `handover` inside. If it dies,
//! the request is gone. It then sets that directory's mode to its current value, which inotify(7)
//! reports to the owner, and waits for the lock of the balancer's own directory. When nothing is
//! under way, the owner checks that the request is still there and releases that lock. No other
//! process takes it meanwhile: one that gets the lock and finds another's request releases it
//! again.

use std::fs::File;
use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::inotify::AddWatchFlags;
use nix::sys::inotify::InitFlags;
use nix::sys::inotify::Inotify;

use crate::sys::directory;
use crate::sys::lock::Lock;
use crate::sys::lock::Locked;
use crate::sys::lock::holder;
use crate::sys::lock::is_locked;

/// The directory that a requesting process locks.
const REQUEST: &str = "handover";
const MODE: u32 = 0o700;

/// How often to try a lock that another process has.
pub(super) const TRY_EVERY: Duration = Duration::from_millis(1);

/// A directory and the lock on it.
pub(crate) struct Claim {
    pub(super) directory: File,
    pub(super) lock: Lock,
}

/// Another process's request for the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The process, if it is visible from here.
    pub(crate) by: Option<u32>,
}

impl Claim {
    /// Whether another process asks for it now.
    pub(crate) fn asked(&self) -> io::Result<Option<Asked>> {
        asked(&self.directory)
    }

    /// Lets that process have it.
    pub(crate) fn give_up(&self) {
        self.lock.give_up();
    }

    /// Takes it again, unless another process has.
    pub(crate) fn take_back(&self) -> bool {
        self.lock.take_back()
    }

    /// Listens for requests.
    pub(crate) fn listen(&self) -> io::Result<Listener> {
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // inotify takes no descriptors, and this path works whatever mounts lead there.
        let path = format!("/proc/thread-self/fd/{}/.", self.directory.as_raw_fd());
        events.add_watch(path.as_str(), AddWatchFlags::IN_ATTRIB)?;
        Ok(Listener(events))
    }
}

/// Becomes readable when there may be a request.
pub(crate) struct Listener(Inotify);

impl Listener {
    /// Discards what has arrived.
    pub(crate) fn clear(&self) {
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a process asks for the balancer in a directory.
pub(super) fn asked(directory: &File) -> io::Result<Option<Asked>> {
    let Some(file) = directory::open(directory, REQUEST)? else {
        return Ok(None);
    };
    match is_locked(&file)? {
        true => Ok(Some(Asked { by: holder(&file) })),
        false => Ok(None),
    }
}

/// Removes the request of a process that has died. A live request is locked, so it stays.
pub(super) fn remove_left(directory: &File) -> io::Result<()> {
    let Some(file) = directory::open(directory, REQUEST)? else {
        return Ok(());
    };
    match Lock::take(&file)? {
        Locked::Ours(_lock) if is_present(directory, &file)? => remove(directory),
        _ => Ok(()),
    }
}

/// Whether this is the current directory of requests, not a removed one. While it is locked, that
/// does not change.
fn is_present(directory: &File, file: &File) -> io::Result<bool> {
    directory::is_present(directory, REQUEST, file)
}

/// Removes the directory of requests, even while a process asks: the balancer is gone.
pub(super) fn remove(directory: &File) -> io::Result<()> {
    directory::remove(directory, REQUEST)
}

/// This process's request for a balancer, until it is dropped.
#[derive(Debug)]
pub(super) struct Request {
    directory: File,
    locked: File,
    _lock: Lock,
}

impl Request {
    /// Makes a request once no other process has one; `None`: one had for too long.
    pub(super) fn make(directory: &File, until: Instant) -> io::Result<Option<Self>> {
        loop {
            directory::make(directory, REQUEST, MODE)?;
            if let Some(made) = Self::lock(directory)? {
                return Ok(Some(made));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            thread::sleep(TRY_EVERY);
        }
    }

    /// `None`: another process asks, or has just removed the directory.
    fn lock(directory: &File) -> io::Result<Option<Self>> {
        let Some(file) = directory::open(directory, REQUEST)? else {
            return Ok(None);
        };
        let Locked::Ours(lock) = Lock::take(&file)? else {
            return Ok(None);
        };
        if !is_present(directory, &file)? {
            return Ok(None);
        }
        // From here the request is withdrawn on drop.
        let made = Self {
            directory: directory.try_clone()?,
            locked: file,
            _lock: lock,
        };
        made.locked.set_permissions(Permissions::from_mode(MODE))?;
        Ok(Some(made))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // While it is locked, so that no other request is removed. If the balancer is gone, so is
        // the request.
        let removed = match is_present(&self.directory, &self.locked) {
            Ok(true) => remove(&self.directory),
            present => present.map(drop),
        };
        if let Err(error) = removed {
            log::warn!("cannot remove {REQUEST}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use katran_lab::private_bpf_fs;
    use nix::poll::PollFd;
    use nix::poll::PollFlags;
    use nix::poll::poll;

    use super::*;

    fn wait(listener: &Listener) -> bool {
        let mut events = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let happened = poll(&mut events, 1000u16).unwrap() == 1;
        listener.clear();
        happened
    }

    #[test]
    #[cfg_attr(miri, ignore = "locks are the kernel's")]
    fn the_owner_hears_of_a_request_and_none_is_left() {
        let path = private_bpf_fs().unwrap();
        let directory = File::open(&path).unwrap();
        let Locked::Ours(lock) = Lock::take(&directory).unwrap() else {
            panic!("nobody has it");
        };
        let claim = Claim {
            directory: directory.try_clone().unwrap(),
            lock,
        };
        let listener = claim.listen().unwrap();
        assert_eq!(claim.asked().unwrap(), None);
        for _ in 0..2 {
            let request = Request::make(&directory, Instant::now()).unwrap().unwrap();
            assert!(wait(&listener));
            let by = Some(std::process::id());
            assert_eq!(claim.asked().unwrap(), Some(Asked { by }));
            // Another process waits for its turn.
            let until = Instant::now() + Duration::from_millis(20);
            assert!(Request::make(&directory, until).unwrap().is_none());
            drop(request);
            assert_eq!(claim.asked().unwrap(), None);
            assert!(!path.join(REQUEST).exists());
        }
        // Left by a process that died.
        fs::create_dir(path.join(REQUEST)).unwrap();
        assert_eq!(claim.asked().unwrap(), None);
        remove_left(&directory).unwrap();
        assert!(!path.join(REQUEST).exists());
        fs::create_dir(path.join(REQUEST)).unwrap();
        let request = Request::make(&directory, Instant::now()).unwrap().unwrap();
        assert!(wait(&listener));
        assert!(matches!(Lock::take(&directory).unwrap(), Locked::Others(_)));
        claim.give_up();
        assert!(claim.take_back());
        claim.give_up();
        let Locked::Ours(next) = Lock::take(&directory).unwrap() else {
            panic!("it was given up");
        };
        assert!(!claim.take_back());
        drop(next);
        // A pending request is removed only with the balancer, and a process that does not own the
        // balancer leaves another process's request alone.
        remove_left(&directory).unwrap();
        assert!(path.join(REQUEST).exists());
        remove(&directory).unwrap();
        fs::create_dir(path.join(REQUEST)).unwrap();
        drop(request);
        assert!(path.join(REQUEST).exists());
        remove_left(&directory).unwrap();
        assert!(!path.join(REQUEST).exists());
    }
}
