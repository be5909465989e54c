//! The socket for commands to the running balancer.
//!
//! It is a Unix stream socket of mode 0600. A client writes a request, a JSON object on one line,
//! and gets one line: `{"ok": ...}` or `{"error": "..."}`. Then it may write another request.
//! Requests:
//!
//! | request | answer under `ok` |
//! | --- | --- |
//! | `{"command": "status", "diagnose": true}` | the report of `report.rs`, with problems only if `diagnose` is true |
//! | `{"command": "apply", "document": "...", "dry_run": false}` | what the TOML document changed, as text |
//! | `{"command": "drain", "real": "198.51.100.1", "vip": "203.0.113.1:80/tcp", "undo": false}` | the VIPs for which the real is drained; without `vip`, all its VIPs |
//! | `{"command": "monitor", "events": ["packet_too_big"], "rate_limit": 100, "snap_length": 128, "packet_limit": null}` | `{"switched_on": true}`, then a line for each event, `{"event": ...}`, until the client hangs up or writes something, which the last line answers: `{"ok": {"delivered": 1, "over_limit": 0, "limited": 0, "lost": 0}}` |
//!
//! A line may have 64 MiB, but only one client at a time may send more than 64 KiB. A request must
//! arrive within ten seconds, and its answer must be read within ten. There may be 16 clients. Only
//! root and the balancer's user may connect (`SO_PEERCRED`), because a document can run programs as
//! that user. The same requests over HTTP may not add commands or files.
//!
//! The balancer that listens holds a lock on `PATH.lock`, so it replaces a socket that a dead
//! process left, but not another balancer's.

mod answer;
mod line;

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) use answer::By;
pub(crate) use answer::Heard;
pub(crate) use answer::Heeded;
pub(crate) use answer::Listening;
pub(crate) use answer::Request;
pub(crate) use answer::done;
use anyhow::Context;
use anyhow::Result;
pub(crate) use line::LONGEST;
use line::Lines;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;

use crate::common::say;
use crate::run::Handle;

/// The default path.
pub(crate) const PATH: &str = "/run/katran.sock";

/// How long to wait for a request, and for the client to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_CLIENTS: usize = 16;

/// A socket that does not listen yet.
pub(crate) struct Bound {
    listener: UnixListener,
    place: Place,
}

/// The socket's file while this process owns it.
struct Place {
    path: PathBuf,
    /// Held while the process lives.
    _lock: Lock,
}

/// The locked file beside it.
struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A process that opened it in the meantime finds that the name leads elsewhere.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Bound {
    /// Takes a path; retries for some time if another process has it.
    pub(crate) fn new(path: &Path, patience: Duration) -> Result<Self> {
        let cannot = || format!("cannot take commands at {}", path.display());
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let lock = lock(beside(".lock"), patience).with_context(cannot)?;
        if let Ok(there) = fs::symlink_metadata(path) {
            anyhow::ensure!(
                there.file_type().is_socket(),
                "{}: the file there is not a socket: remove it, or choose another --socket",
                cannot()
            );
        }
        // Clients connect only after its mode is right.
        let new = beside(".new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(cannot);
            }
            _ => {}
        }
        let listener = UnixListener::bind(&new).with_context(cannot)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600)).with_context(cannot)?;
        fs::rename(&new, path).with_context(cannot)?;
        let place = Place {
            path: path.to_owned(),
            _lock: lock,
        };
        Ok(Self { listener, place })
    }

    /// Answers clients, on threads, until the returned value is dropped.
    pub(crate) fn serve(self, handle: Handle) -> Result<impl Drop> {
        let Self { listener, place } = self;
        say(format!("commands at {}", place.path.display()));
        // One more than the limit: all other holders are clients.
        let clients = Arc::new(());
        let long = Arc::default();
        let accept = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // Out of descriptors: wait until clients end.
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let client = Arc::clone(&clients);
                let (handle, long) = (handle.clone(), Arc::clone(&long));
                let is_full = Arc::strong_count(&clients) > MAX_CLIENTS + 1;
                let serve = move || {
                    let _client = client;
                    // A client that is gone does not learn of it.
                    let _ = match is_full {
                        true => refuse(&stream, "too many clients: try again later"),
                        false => serve(&stream, &handle, long),
                    };
                };
                // If no thread can start, the client is dropped.
                let _ = thread::Builder::new().spawn(serve);
            }
        };
        thread::Builder::new().spawn(accept)?;
        Ok(place)
    }
}

fn lock(path: PathBuf, patience: Duration) -> Result<Lock> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let end = Instant::now() + patience;
    loop {
        match Flock::lock(options.open(&path)?, FlockArg::LockExclusiveNonblock) {
            // A client that ended in the meantime removed it.
            Ok(file) => {
                let same = |there: fs::Metadata| Ok(there.ino() == file.metadata()?.ino());
                if fs::metadata(&path).and_then(same).unwrap_or(false) {
                    return Ok(Lock { path, _file: file });
                }
            }
            Err((_, nix::Error::EWOULDBLOCK)) => {
                anyhow::ensure!(
                    Instant::now() < end,
                    "another balancer listens there: choose another --socket, or use --no-socket"
                );
                thread::sleep(Duration::from_millis(10));
            }
            Err((_, error)) => return Err(error.into()),
        }
    }
}

fn refuse(mut stream: &UnixStream, why: &str) -> Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "{}", serde_json::json!({ "error": why }))?;
    Ok(())
}

/// Answers one client until it hangs up.
fn serve(stream: &UnixStream, handle: &Handle, long: line::Long) -> Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return refuse(
            stream,
            "only root and the balancer's user may send commands",
        );
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = Lines::new(stream, long);
    loop {
        match lines.next(PATIENCE) {
            Ok(Some(line)) => answer::answer(&line, stream, handle)?,
            Ok(None) => return Ok(()),
            Err(error) => return refuse(stream, &error.to_string()),
        }
    }
}
