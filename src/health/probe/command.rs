//! Probes that run a program on this host.

use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;

use super::super::check::Command;
use super::Failure;
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

pub(super) async fn run(command: &Command, place: Place) -> std::result::Result<(), Failure> {
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
    let mut child = program.spawn().map_err(Failure::not_sent)?;
    // Dropped before the child, which is reaped later.
    let leader = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(leader.map(Pid::from_raw));
    let ended = group.0.map_or(Err(Errno::ESRCH.into()), pidfd::open);
    let ended = ended.map_err(Failure::not_sent)?;
    let mut words = Vec::new();
    let mut stderr = child.stderr.take();
    let mut piece = [0; 512];
    loop {
        let Some(open) = &mut stderr else {
            ended.readable().await?.retain_ready();
            break;
        };
        tokio::select! {
            ready = ended.readable() => {
                ready?.retain_ready();
                break;
            }
            read = open.read(&mut piece) => match read {
                Ok(0) | Err(_) => stderr = None,
                // A program may write without end.
                Ok(length) if words.len() < MAX_WORDS => words.extend_from_slice(&piece[..length]),
                Ok(_) => {}
            },
        }
    }
    // Kills what the program left in the background.
    group.kill();
    if let Some(open) = &mut stderr
        && let Ok(Ok(length)) = tokio::time::timeout(LAST_WORDS, open.read(&mut piece)).await
    {
        words.extend_from_slice(&piece[..length]);
    }
    let status = child.wait().await.map_err(Failure::not_sent)?;
    if status.success() {
        return Ok(());
    }
    words.truncate(MAX_WORDS);
    let words = String::from_utf8_lossy(&words);
    Err(Failure::answer(format!("{status}: {}", words.trim())))
}
