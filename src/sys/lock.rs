//! A lock on a directory for the life of a process: flock(2), which the kernel keeps with the
//! directory itself, whatever network or mount namespace the process is in, and releases when the
//! process dies.
//!
//! A child made by fork(2) shares the parent's lock, which would then outlive the parent. So the
//! child closes its copies before fork(2) returns there, and no thread forks while another opens or
//! closes one. posix_spawn(3) runs no such handler, and its child has copies until the new program
//! runs: so the library releases a lock explicitly and does not only close it.

use std::fs;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::sync::Once;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::libc;

use super::directory;
use super::process::Owner;

/// The most locks of one process.
pub(crate) const MOST: usize = 64;

/// How long to try a lock whose owner cannot be seen: it may be an `is_locked`, on a thread that
/// waits for a CPU.
const PATIENCE: Duration = Duration::from_millis(250);

const FREE: i32 = -1;
const RESERVED: i32 = -2;

/// The descriptors of this process's locks, for children to close.
static LOCKS: [AtomicI32; MOST] = [const { AtomicI32::new(FREE) }; MOST];
static REGISTER: Once = Once::new();

/// A thread forks, or opens or closes a lock's descriptor.
static IS_CHANGING: AtomicBool = AtomicBool::new(false);

extern "C" fn begin_change() {
    while IS_CHANGING.swap(true, Ordering::Acquire) {
        thread::yield_now();
    }
}

extern "C" fn end_change() {
    IS_CHANGING.store(false, Ordering::Release);
}

/// While this lives no other thread forks.
struct NoFork;

impl NoFork {
    fn new() -> Self {
        begin_change();
        Self
    }
}

impl Drop for NoFork {
    fn drop(&mut self) {
        end_change();
    }
}

extern "C" fn close_in_child() {
    end_change();
    for lock in &LOCKS {
        let fd = lock.swap(FREE, Ordering::AcqRel);
        if fd >= 0 {
            // SAFETY: a child of a process with threads may call close(2); the descriptor is a
            // `Lock`'s, which does not close it in a child.
            unsafe { libc::close(fd) };
        }
    }
}

/// A directory that only this process has locked. Released on drop, or when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Closed by hand, because a child has closed its copy already.
    fd: ManuallyDrop<OwnedFd>,
    place: &'static AtomicI32,
    owner: Owner,
}

/// The result of an attempt.
#[derive(Debug)]
pub(crate) enum Locked {
    Ours(Lock),
    /// The process that has it, if it is visible from here.
    Others(Option<u32>),
}

impl Lock {
    /// Locks a directory, or says which process has. An error of kind `QuotaExceeded` if this
    /// process has too many locks.
    pub(crate) fn take(directory: &File) -> io::Result<Locked> {
        REGISTER.call_once(|| {
            // SAFETY: the functions close descriptors, yield and store to atomics, all allowed in a
            // child, and exist as long as the code that registers them.
            let failed = unsafe {
                libc::pthread_atfork(Some(begin_change), Some(end_change), Some(close_in_child))
            };
            if failed != 0 {
                log::warn!("cannot watch for fork(2): a child will share its parent's locks");
            }
        });
        let free = LOCKS.iter().find(|place| {
            let taken = place.compare_exchange(FREE, RESERVED, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok()
        });
        let place = free.ok_or_else(|| io::Error::from(io::ErrorKind::QuotaExceeded))?;
        let owner = Owner::new();
        let no_fork = NoFork::new();
        // A separate opening, because a lock belongs to one, and `directory` may have copies.
        let fd = match directory::again(directory) {
            Ok(file) => OwnedFd::from(file),
            Err(error) => {
                place.store(FREE, Ordering::Release);
                return Err(error);
            }
        };
        place.store(fd.as_raw_fd(), Ordering::Release);
        drop(no_fork);
        let lock = Self {
            fd: ManuallyDrop::new(fd),
            place,
            owner,
        };
        let begun = Instant::now();
        loop {
            // The last try must come after all this time, even if this thread waits for a CPU.
            let waited = begun.elapsed();
            // SAFETY: the call passes numbers by value, and the kernel accesses no memory of ours;
            // `lock` keeps the descriptor open.
            match unsafe { libc::flock(lock.fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
                0 => return Ok(Locked::Ours(lock)),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::WouldBlock => {
                        let holder = holder(directory);
                        if holder.is_some() || waited > PATIENCE {
                            return Ok(Locked::Others(holder));
                        }
                    }
                    error => return Err(error),
                },
            }
            // Another process may just be checking the lock.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Lock {
    /// Releases it before it is dropped, for a process that waits for it.
    pub(crate) fn give_up(&self) {
        if self.owner.is_here() {
            // SAFETY: the call passes numbers by value, and the kernel accesses no memory of ours;
            // `self` keeps the descriptor open.
            unsafe { libc::flock(self.fd.as_raw_fd(), libc::LOCK_UN) };
        }
    }

    /// Locks it again after that; false: another process has it.
    pub(crate) fn take_back(&self) -> bool {
        // SAFETY: the call passes numbers by value, and the kernel accesses no memory of ours;
        // `self` keeps the descriptor open.
        self.owner.is_here()
            && unsafe { libc::flock(self.fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.owner.is_here() {
            return;
        }
        // SAFETY: the call passes numbers by value, and the kernel accesses no memory of ours;
        // `self` keeps the descriptor open.
        unsafe { libc::flock(self.fd.as_raw_fd(), libc::LOCK_UN) };
        let _no_fork = NoFork::new();
        self.place.store(FREE, Ordering::Release);
        // SAFETY: in this process nothing else has closed it, and `drop` is its last use.
        drop(unsafe { OwnedFd::from_raw_fd(self.fd.as_raw_fd()) });
    }
}

/// Whether any process has locked a directory. A [`Lock::take`] at this moment tries again.
pub(crate) fn is_locked(directory: &File) -> io::Result<bool> {
    // A separate opening, as in `Lock::take`.
    let file = directory::again(directory)?;
    let fd = file.as_raw_fd();
    // SAFETY: the call passes numbers by value, and the kernel accesses no memory of ours;
    // `file` keeps the descriptor open.
    match unsafe { libc::flock(fd, libc::LOCK_SH | libc::LOCK_NB) } {
        0 => {
            // Release it and do not only close it, because a child made meanwhile may have a copy.
            // SAFETY: the call passes numbers by value, and the kernel accesses no memory of ours;
            // `file` keeps the descriptor open.
            unsafe { libc::flock(fd, libc::LOCK_UN) };
            Ok(false)
        }
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            error => Err(error),
        },
    }
}

/// The process that has locked a directory, if this process can see it.
pub(crate) fn holder(directory: &File) -> Option<u32> {
    let metadata = directory.metadata().ok()?;
    let device = metadata.st_dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{}", metadata.st_ino());
    // If the file cannot be read, the holder is unknown.
    holder_in(&fs::read_to_string("/proc/locks").ok()?, &wanted)
}

/// The same from the text of `/proc/locks` (proc_locks(5)): number, `FLOCK`, `ADVISORY`, `WRITE`,
/// process, file. A waiting process has an arrow before `FLOCK`.
fn holder_in(locks: &str, wanted: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_lock = words.next() == Some("FLOCK") && words.nth(1) == Some("WRITE");
        let process = words.next()?;
        let is_it = is_lock && words.next() == Some(wanted);
        process.parse().ok().filter(|_| is_it)
    })
}

#[cfg(test)]
mod tests {
    use std::process;

    use nix::sys::wait::waitpid;
    use nix::unistd::ForkResult;
    use nix::unistd::fork;

    use super::*;
    use crate::mutate;

    #[test]
    #[cfg_attr(miri, ignore = "locks are the kernel's")]
    fn a_directory_is_locked_once_and_its_holder_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let directory = File::open(directory.path()).unwrap();
        let Locked::Ours(lock) = Lock::take(&directory).unwrap() else {
            panic!("nobody has it");
        };
        // A child does not keep it. SAFETY: the child sleeps, and ends without using anything else
        // of this process.
        let child = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                drop(lock);
                thread::sleep(Duration::from_secs(1));
                // SAFETY: the call passes a number, and nothing of this process runs after it.
                unsafe { libc::_exit(0) }
            }
        };
        for _ in 0..MOST + 1 {
            match Lock::take(&directory).unwrap() {
                Locked::Others(holder) => assert_eq!(holder, Some(process::id())),
                Locked::Ours(_) => panic!("it is locked"),
            }
        }
        // Nor does a program that is about to run, which may have a copy.
        let copy = lock.fd.try_clone().unwrap();
        drop(lock);
        assert!(matches!(Lock::take(&directory).unwrap(), Locked::Ours(_)));
        drop(copy);
        waitpid(child, None).unwrap();
    }

    #[test]
    #[cfg_attr(miri, ignore = "locks are the kernel's")]
    fn no_thread_forks_while_a_lock_is_opened_or_closed() {
        let directory = tempfile::tempdir().unwrap();
        let directory = File::open(directory.path()).unwrap();
        drop(Lock::take(&directory).unwrap());
        let has_forked = AtomicBool::new(false);
        let no_fork = NoFork::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: the child ends at once.
                match unsafe { fork() }.unwrap() {
                    ForkResult::Parent { child } => {
                        has_forked.store(true, Ordering::Release);
                        waitpid(child, None).unwrap();
                    }
                    // SAFETY: the call passes a number, and nothing of this process runs after it.
                    ForkResult::Child => unsafe { libc::_exit(0) },
                }
            });
            thread::sleep(Duration::from_millis(200));
            assert!(!has_forked.load(Ordering::Acquire));
            drop(no_fork);
        });
        assert!(has_forked.load(Ordering::Acquire));
    }

    /// Checking takes the lock for a moment, which is long on a busy machine.
    #[test]
    #[cfg_attr(miri, ignore = "locks are the kernel's")]
    fn who_looks_keeps_nobody_out() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = File::open(temporary.path()).unwrap();
        let looking = File::open(temporary.path()).unwrap();
        let flock = |operation| {
            // SAFETY: the call passes numbers by value, and the kernel accesses no memory of ours;
            // `looking` keeps the descriptor open.
            assert_eq!(unsafe { libc::flock(looking.as_raw_fd(), operation) }, 0);
        };
        // A busy machine may look for too long: then it tries again.
        let within = (0..20).any(|_| {
            flock(libc::LOCK_SH | libc::LOCK_NB);
            thread::scope(|scope| {
                let began = Instant::now();
                let taken = scope.spawn(|| Lock::take(&directory).unwrap());
                thread::sleep(Duration::from_millis(80));
                flock(libc::LOCK_UN);
                let within = began.elapsed() < PATIENCE;
                let is_taken = matches!(taken.join().unwrap(), Locked::Ours(_));
                assert!(is_taken || !within);
                within
            })
        });
        assert!(within, "this machine is too busy");
        // If it is never released, the result names its holder if possible.
        flock(libc::LOCK_SH | libc::LOCK_NB);
        assert!(matches!(Lock::take(&directory), Ok(Locked::Others(None))));
    }

    #[test]
    fn the_holder_is_found_among_other_locks() {
        const TEXT: &str = "1: POSIX  ADVISORY  WRITE 7 00:27:8971015 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 8 00:27:8971015 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 9 00:27:89710 0 EOF\n\
            5: FLOCK  ADVISORY  READ 9 00:27:8971015 0 EOF\n";
        const OURS: &str = "4: FLOCK  ADVISORY  WRITE 10 00:27:8971015 0 EOF\n";
        let found = |text: &str| holder_in(text, "00:27:8971015");
        assert_eq!(found(TEXT), None);
        assert_eq!(found(&format!("{TEXT}{OURS}")), Some(10));
        mutate::cases(10_000, |rng| {
            let mut others = TEXT.as_bytes().to_vec();
            mutate::text(rng, &mut others);
            let others = String::from_utf8_lossy(&others);
            assert_eq!(found(&format!("{OURS}{others}")), Some(10));
        });
    }
}
