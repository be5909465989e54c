//! Probes that run a program on this host.

use std::convert::Infallible;
use std::io;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::process::ChildStderr;
use tokio::sync::oneshot;

use super::super::check::Command;
use super::Failure;
use super::Living;
use super::Place;
use crate::sys::pidfd;

/// How much of a program's standard error is reported, in bytes.
const MAX_WORDS: usize = 300;
/// How long to wait for the rest of it after the program has exited.
const LAST_WORDS: Duration = Duration::from_millis(10);

/// A process group that is killed before its leader is reaped: until then its number cannot be
/// reused.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(leader) = self.0.take() {
            // The group may hold only a leader that has exited.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(super) async fn run(
    command: &Command,
    place: Place,
    living: Living,
) -> std::result::Result<(), Failure> {
    let mut program = tokio::process::Command::new(&command.program);
    program
        .args(&command.arguments)
        .env("KATRAN_VIP", place.target.vip.to_string())
        .env("KATRAN_REAL", place.target.real.to_string())
        .env("KATRAN_ADDRESS", place.to.ip().to_string())
        .env("KATRAN_PORT", place.to.port().to_string())
        .env_remove("KATRAN_MARK")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(mark) = place.mark {
        program.env("KATRAN_MARK", mark.to_string());
    }
    let child = program.spawn().map_err(Failure::not_sent)?;
    // A probe that is dropped cannot wait for its program, so another task does.
    let (_probe, dropped) = oneshot::channel();
    let kept = tokio::spawn(keep(child, dropped, living)).await;
    let (status, words) = kept.map_err(Failure::not_sent)??;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words);
    Err(Failure::answer(format!("{status}: {}", words.trim())))
}

/// Waits until a program has exited, or kills it if its probe is dropped before; returns its status
/// and the start of its standard error.
async fn keep(
    mut child: Child,
    dropped: oneshot::Receiver<Infallible>,
    _living: Living,
) -> std::result::Result<(ExitStatus, Vec<u8>), Failure> {
    let leader = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(leader.map(Pid::from_raw));
    let mut stderr = child.stderr.take();
    let mut words = Vec::new();
    let watched = tokio::select! {
        watched = watch(group.0, &mut stderr, &mut words) => watched,
        _ = dropped => Ok(()),
    };
    // Kills what the program left in the background, too.
    group.kill();
    let mut piece = [0; MAX_WORDS];
    if let Some(open) = &mut stderr
        && let Ok(Ok(length)) = tokio::time::timeout(LAST_WORDS, open.read(&mut piece)).await
    {
        words.extend_from_slice(&piece[..length]);
    }
    words.truncate(MAX_WORDS);
    let status = child.wait().await.map_err(Failure::not_sent)?;
    watched.map_err(Failure::not_sent)?;
    Ok((status, words))
}

/// Reads a program's standard error until the program has exited.
async fn watch(
    leader: Option<Pid>,
    stderr: &mut Option<ChildStderr>,
    words: &mut Vec<u8>,
) -> io::Result<()> {
    let ended = leader.map_or(Err(Errno::ESRCH.into()), pidfd::open)?;
    let mut piece = [0; 512];
    loop {
        let Some(open) = stderr else {
            ended.readable().await?.retain_ready();
            return Ok(());
        };
        tokio::select! {
            ready = ended.readable() => {
                ready?.retain_ready();
                return Ok(());
            }
            read = open.read(&mut piece) => match read {
                Ok(0) | Err(_) => *stderr = None,
                // A program may write without end.
                Ok(length) if words.len() < MAX_WORDS => words.extend_from_slice(&piece[..length]),
                Ok(_) => {}
            },
        }
    }
}
