//! Network namespaces by the kernel's number (cookie), which identifies one for good and, unlike a
//! descriptor, does not keep it alive. The kernel offers no way from a number back to its
//! namespace, so `find` searches what keeps namespaces alive: threads, mounts and descriptors.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::path::PathBuf;
use std::thread;

use nix::libc;
use nix::sched::CloneFlags;
use nix::sched::setns;

use super::text::unescaped;

/// As in asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The kernel's number of the calling thread's network namespace, which no other has or will have
/// until the host restarts.
pub(crate) fn network_namespace() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the place for the result outlives the call, and is as long as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A network namespace, kept alive by this value.
#[derive(Debug)]
pub(crate) struct Namespace {
    number: u64,
    file: File,
}

impl Namespace {
    /// The calling thread's.
    pub(crate) fn here() -> io::Result<Self> {
        Ok(Self {
            number: network_namespace()?,
            file: File::open("/proc/thread-self/ns/net")?,
        })
    }

    /// The one of the process's first thread.
    pub(crate) fn of_process() -> io::Result<Self> {
        let [path, own] = ["/proc/self/ns/net", "/proc/thread-self/ns/net"];
        let file = File::open(path)?;
        let number = match fs::read_link(path)? == fs::read_link(own)? {
            true => network_namespace(),
            false => elsewhere(|| {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                network_namespace()
            })?,
        }?;
        Ok(Self { number, file })
    }

    /// The kernel's number of it.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The namespace with this number: the calling thread's, or one found through a thread in it, a
    /// mount, or a descriptor of any process that this one may inspect. Entering it takes
    /// `CAP_SYS_ADMIN`. `None`: it is gone, or hidden from this process.
    pub(crate) fn find(number: u64) -> io::Result<Option<Self>> {
        let here = Self::here()?;
        if here.number == number {
            return Ok(Some(here));
        }
        let search = || {
            let mut seen = BTreeSet::new();
            let mut all = candidates();
            all.find_map(|path| {
                // The link's text has the inode, so each namespace is examined once.
                let is_new = seen.insert(name_of_namespace(&path)?);
                let file = File::open(&path).ok().filter(|_| is_new)?;
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).ok()?;
                let found = network_namespace().ok()? == number;
                found.then_some(Self { number, file })
            })
        };
        elsewhere(search)
    }

    /// Another descriptor of it.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            number: self.number,
            file: self.file.try_clone()?,
        })
    }

    /// Moves the calling thread there for good. If it is there already, this takes no privilege.
    pub(crate) fn enter(&self) -> io::Result<()> {
        match network_namespace()? == self.number {
            true => Ok(()),
            false => Ok(setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?),
        }
    }

    /// Runs `f` in this namespace: directly if the caller is there, which takes no privilege, else
    /// on a separate thread, so that the caller stays where it is.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        if network_namespace()? == self.number {
            return Ok(f());
        }
        elsewhere(|| {
            self.enter()?;
            Ok(f())
        })?
    }

    /// The same, but if this process may not enter the namespace, `f` runs in the caller's.
    pub(crate) fn run_if_allowed<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        if network_namespace()? == self.number {
            return Ok(f());
        }
        elsewhere(|| {
            if let Err(error) = self.enter() {
                log::info!("a thread cannot enter the network namespace: {error}");
            }
            f()
        })
    }
}

/// Runs `f` on a separate thread, which it may move elsewhere.
fn elsewhere<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, f)?;
        let panicked = |_| io::Error::other("the thread has panicked");
        thread.join().map_err(panicked)
    })
}

/// Files of network namespaces, the cheapest to find first: of this process's threads and
/// descriptors, of mounts, of other processes, and of their threads and descriptors.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let of_threads = |process: &Path| {
        let threads = entries(&process.join("task"));
        threads.map(|thread| thread.join("ns/net"))
    };
    let of_descriptors = |process: &Path| {
        let descriptors = entries(&process.join("fd"));
        descriptors.filter(|path| name_of_namespace(path).is_some())
    };
    let own = Path::new("/proc/self");
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let processes = || {
        let all = entries(Path::new("/proc"));
        all.filter(|path| path.join("ns").exists())
    };
    of_threads(own)
        .chain(of_descriptors(own))
        .chain(mounted(&mounts))
        .chain(processes().map(|process| process.join("ns/net")))
        .chain(processes().flat_map(move |process| of_threads(&process)))
        .chain(processes().flat_map(move |process| of_descriptors(&process)))
}

/// The entries of a directory; none if it is gone, or this process may not read it.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.flatten().map(|entry| entry.path())
}

/// Where network namespaces are mounted, as by `ip netns`, from the text of `/proc/self/mountinfo`.
fn mounted(mounts: &[u8]) -> Vec<PathBuf> {
    let lines = mounts.split(|byte| *byte == b'\n');
    let of_line = |line: &[u8]| {
        // Number, parent, device, root within the file system, mount point.
        let mut words = line.split(|byte| *byte == b' ').skip(3);
        let root = words.next()?;
        let point = words.next().filter(|_| root.starts_with(b"net:["))?;
        Some(OsString::from_vec(unescaped(point)).into())
    };
    lines.filter_map(of_line).collect()
}

/// The text of a namespace's link, `net:[INODE]`, or a mount's path; `None` for any other file.
fn name_of_namespace(path: &Path) -> Option<OsString> {
    match fs::read_link(path) {
        Ok(target) => {
            let name = target.into_os_string();
            let is_one = name.as_encoded_bytes().starts_with(b"net:[");
            is_one.then_some(name)
        }
        // A mount is not a link.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Some(path.into()),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use nix::sched::unshare;

    use super::*;
    use crate::mutate;

    #[test]
    fn namespaces_have_numbers_of_their_own() {
        let here = network_namespace().unwrap();
        assert_eq!(network_namespace().unwrap(), here);
        let there = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            network_namespace().unwrap()
        });
        assert_ne!(there.join().unwrap(), here);
    }

    #[test]
    fn a_namespace_is_found_by_its_number_as_long_as_it_lives() {
        let here = network_namespace().unwrap();
        let found = Namespace::find(here).unwrap().unwrap();
        assert_eq!(found.number, here);
        let (tell, told) = channel();
        let (stop, stopped) = channel::<()>();
        let there = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(network_namespace().unwrap()).unwrap();
            let _ = stopped.recv();
        });
        let number = told.recv().unwrap();
        let found = Namespace::find(number).unwrap().unwrap();
        assert_eq!(found.run(network_namespace).unwrap().unwrap(), number);
        // The caller stays where it is.
        assert_eq!(network_namespace().unwrap(), here);
        drop(stop);
        there.join().unwrap();
        // Only its descriptor is left.
        assert!(Namespace::find(number).unwrap().is_some());
        drop(found);
        assert!(Namespace::find(u64::MAX).unwrap().is_none());
    }

    #[test]
    fn mounts_of_network_namespaces_are_told_from_others() {
        let mounts = br"22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw
301 28 0:4 net:[4026532256] /run/netns/blue rw shared:139 - nsfs nsfs rw
302 28 0:4 mnt:[4026532257] /run/snapd/ns/lxd.mnt rw - nsfs nsfs rw
303 28 0:4 net:[4026532258] /run/netns/two\040words\134 rw - nsfs nsfs rw
";
        let mounted = mounted(mounts);
        let expected = ["/run/netns/blue", r"/run/netns/two words\"];
        assert_eq!(mounted, expected.map(PathBuf::from));
        assert!(super::mounted(b"").is_empty());
    }

    /// Lines of other mounts neither hide a namespace nor add one, whatever they contain.
    #[test]
    fn other_mounts_change_nothing() {
        const OTHERS: &[u8] = br"22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw
302 28 0:4 mnt:[4026532257] /run/snapd/ns/a\040b.mnt rw - nsfs nsfs rw
";
        const OURS: &[u8] = b"301 28 0:4 net:[4026532256] /run/netns/\xff\\134 rw - nsfs nsfs rw\n";
        mutate::cases(10_000, |rng| {
            let mut others = OTHERS.to_vec();
            for _ in 0..rng.u32(1..4) {
                mutate::text(rng, &mut others);
            }
            let all = [&others[..], b"\n", OURS, &others].concat();
            let ours = PathBuf::from(OsString::from_vec(b"/run/netns/\xff\\".to_vec()));
            assert_eq!(mounted(&all), [ours]);
        });
    }
}
