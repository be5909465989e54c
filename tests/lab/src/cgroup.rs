//! Control groups, for programs that affect only some threads' sockets.

use std::fs;
use std::io;
use std::panic;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;

/// Prefix of the directories' names, by which those of a killed process are found.
const PREFIX: &str = "katran-lab-";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A version 2 control group for threads, below this process's own. Dropping it removes it; what a
/// killed process has left behind, the next one removes.
#[must_use = "the group goes when it is dropped"]
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a group.
    ///
    /// # Errors
    ///
    /// If no cgroup file system of version 2 is mounted, and those of the kernel.
    pub fn new() -> io::Result<Self> {
        let own = own_group()?;
        remove_orphans(&own)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = own.join(format!("{PREFIX}{}-{number}", process::id()));
        fs::create_dir(&path)?;
        let group = Self { path };
        fs::write(group.path.join("cgroup.type"), "threaded")?;
        Ok(group)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a closure on a thread in the group and returns what it returns. Sockets made there, and
    /// threads started there, stay in the group.
    ///
    /// # Panics
    ///
    /// With the closure's own panic, and if the group cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let threads = self.path.join("cgroup.threads");
        let inside = || match fs::write(&threads, "0") {
            Ok(()) => f(),
            Err(e) => panic!("cannot enter {}: {e}", threads.display()),
        };
        thread::scope(|scope| {
            let joined = scope.spawn(inside).join();
            joined.unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Threads that are ending may still be in it.
        for _ in 0..2000 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(10));
        }
        eprintln!("cannot remove {}", self.path.display());
    }
}

/// The directory of this process's group.
fn own_group() -> io::Result<PathBuf> {
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then_some(path)
    });
    let mount = mount.ok_or_else(|| {
        missing("no cgroup file system of version 2 is mounted: `mount -t cgroup2`")
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or_else(|| missing("this process has no group of version 2"))?;
    Ok(Path::new(mount).join(own))
}

/// Removes the groups of ended processes.
fn remove_orphans(own: &Path) -> io::Result<()> {
    for entry in fs::read_dir(own)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let of = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'));
        if let Some((process, _)) = of
            && !Path::new("/proc").join(process).exists()
        {
            // Another process may have removed it.
            let _ = fs::remove_dir(own.join(&*name));
        }
    }
    Ok(())
}
