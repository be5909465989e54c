//! Probes that run a program on this host.

use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::process;
use std::process::Child;
use std::process::ChildStderr;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
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
/// How often to ask whether a killed program has died.
const DEATH: Duration = Duration::from_millis(2);

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
    let mut program = process::Command::new(&command.program);
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
        .process_group(0);
    if let Some(mark) = place.mark {
        program.env("KATRAN_MARK", mark.to_string());
    }
    let child = program.spawn().map_err(Failure::not_sent)?;
    // A probe that is dropped cannot wait for its program, so another task does.
    let (_probe, dropped) = oneshot::channel();
    let kept = tokio::spawn(keep(child, dropped, living)).await;
    let (status, words) = kept
        .map_err(Failure::not_sent)?
        .map_err(Failure::not_sent)?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words);
    Err(Failure::answer(format!("{status}: {}", words.trim())))
}

/// Waits until a program has exited, or kills it if its probe is dropped before; returns its status
/// and the start of its standard error.
///
/// tokio's own processes need a handler for SIGCHLD, which would interrupt the embedder's system
/// calls.
async fn keep(
    mut child: Child,
    dropped: oneshot::Receiver<Infallible>,
    _living: Living,
) -> io::Result<(ExitStatus, Vec<u8>)> {
    let leader = Pid::from_raw(child.id().cast_signed());
    let mut group = Group(Some(leader));
    let words = tokio::select! {
        words = watch(leader, child.stderr.take()) => words,
        _ = dropped => Ok(Vec::new()),
    };
    // Kills what the program left in the background, too.
    group.kill();
    let status = loop {
        match child.try_wait() {
            Ok(None) => tokio::time::sleep(DEATH).await,
            Ok(Some(status)) => break status,
            Err(error) => return Err(error),
        }
    };
    Ok((status, words?))
}

/// Waits until a program has exited; returns the start of its standard error.
async fn watch(leader: Pid, stderr: Option<ChildStderr>) -> io::Result<Vec<u8>> {
    let ended = pidfd::open(leader)?;
    let mut stderr = stderr
        .map(|open| pipe::Receiver::from_owned_fd(open.into()))
        .transpose()?;
    let mut words = Vec::new();
    let mut piece = [0; 512];
    loop {
        let Some(open) = &mut stderr else {
            ended.readable().await?.retain_ready();
            break;
        };
        let read = tokio::select! {
            ready = ended.readable() => {
                ready?.retain_ready();
                break;
            }
            read = open.read(&mut piece) => read,
        };
        match read {
            Ok(0) | Err(_) => stderr = None,
            // A program may write without end.
            Ok(length) if words.len() < MAX_WORDS => words.extend_from_slice(&piece[..length]),
            Ok(_) => {}
        }
    }
    if let Some(open) = &mut stderr
        && let Ok(Ok(length)) = tokio::time::timeout(LAST_WORDS, open.read(&mut piece)).await
    {
        words.extend_from_slice(&piece[..length]);
    }
    words.truncate(MAX_WORDS);
    Ok(words)
}
