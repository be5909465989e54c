//! The directory for nginx's files. It is removed when the demo ends or is interrupted; the next
//! demo removes what a killed one left.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::process;

use nix::fcntl::Flock;
use nix::fcntl::FlockArg;

/// The prefix of its name; the process id follows.
const NAME: &str = "katran-demo.";

/// A directory that only root can read, removed on drop.
pub(crate) struct Scratch {
    path: PathBuf,
    /// Held while the directory is in use, so that another demo can tell.
    _lock: Flock<File>,
}

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        remove_abandoned(&parent)?;
        let path = parent.join(format!("{NAME}{}", process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = lock(&path).inspect_err(|_| remove(&path))?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the directory, for exits that run no destructors.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("demo: cannot remove {}: {error}", path.display());
    }
}

/// A lock that ends with this process, however it ends.
fn lock(path: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno.into())
}

fn remove_abandoned(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        // The directory itself, not a link that another user put there.
        let ours = entry.file_name().to_string_lossy().starts_with(NAME);
        if ours && entry.file_type()?.is_dir() && lock(&entry.path()).is_ok() {
            remove(&entry.path());
        }
    }
    Ok(())
}
