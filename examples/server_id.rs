//! The ends of TCP connections that balancers route by server id: writes the id into a TCP option,
//! so that servers and clients need not change.
//!
//! ```text
//! server_id --id 1000 --cgroup PATH...       on a backend: accepted connections carry its id
//! server_id --id-file FILE --cgroup PATH...  the same; SIGHUP reads the id again
//! server_id --cgroup PATH...                 on a client or proxy: repeats the ids it receives
//! server_id --id 1000 --cgroup PATH... --pin /sys/fs/bpf/katran_server_id
//! server_id --remove --pin /sys/fs/bpf/katran_server_id
//! ```
//! PATH is the directory of a version 2 cgroup, such as that of a systemd service
//! (`/sys/fs/cgroup/system.slice/nginx.service`): the program handles its processes' sockets. Load
//! the balancer with `features = ["tcp-server-id", ...]` and list the ids as `[[server_id]]`.
//! Prints counters every second. The program attaches again to a cgroup that is removed and created
//! again, as when a service restarts. SIGINT and SIGTERM detach and end it. With `--pin`, it works
//! on after the program's end, until `--remove`; the next start adopts it and applies its own
//! options.

mod common;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use clap::Parser;
use common::keeper;
use common::keeper::Keeper;
use common::pin::Pin;
use common::say;
use katran::ServerIdOption;
use katran::attachments::AttachmentState;
use katran::attachments::CgroupAttachment;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

const INTERVAL: Duration = Duration::from_secs(1);

/// Write server ids into TCP packets, or repeat received ones.
#[derive(Parser)]
#[command(max_term_width = 80)]
struct Arguments {
    /// This server's id, 1 to 4294967295; without it, only repeat received ids
    #[arg(long, value_name = "NUMBER")]
    id: Option<u32>,
    /// Read the id from this file, and again at SIGHUP for new connections
    #[arg(long, value_name = "FILE", conflicts_with = "id")]
    id_file: Option<PathBuf>,
    /// Handle the sockets of the cgroup with this directory (cgroup v2); repeatable
    #[arg(long, value_name = "PATH", required_unless_present = "remove")]
    cgroup: Vec<PathBuf>,
    #[command(flatten)]
    keep: keeper::Keep,
    #[command(flatten)]
    pin: Pin,
    /// Remove the pins in the directory of --pin, and exit
    #[arg(long, requires = "pin")]
    remove: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    common::log();
    common::exit(
        "server_id",
        match arguments.remove {
            true => arguments.pin.remove(),
            false => run(&arguments),
        },
    )
}

fn run(arguments: &Arguments) -> Result<()> {
    // First, so that no later signal ends the process halfway.
    let (sender, signals) = mpsc::channel();
    let mut caught = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || caught.forever().try_for_each(|signal| sender.send(signal)));

    let id = match &arguments.id_file {
        Some(file) => Some(read_id(file)?),
        None => arguments.id,
    };
    let mut option = load(&arguments.pin, id)?;
    attach(&mut option, &arguments.cgroup)?;
    for cgroup in &arguments.cgroup {
        let what = match id {
            Some(id) => format!("writing server id {id} for"),
            None => "repeating server ids for".to_owned(),
        };
        say(format!("{what} {}", cgroup.display()));
    }
    say("   accepted      heard    written");
    let mut keeper = Keeper::new(arguments.keep);
    loop {
        match (signals.recv_timeout(INTERVAL), &arguments.id_file) {
            (Err(RecvTimeoutError::Timeout), _) => {}
            // Without a file there is nothing to read again.
            (Ok(SIGHUP), None) => {}
            (Ok(SIGHUP), Some(file)) => match change_id(&mut option, file) {
                Ok(id) => say(format!("writing server id {id} for new connections")),
                Err(error) => eprintln!("server_id: the id is unchanged: {error:#}"),
            },
            _ => break,
        }
        keeper.keep(&mut option)?;
        let now = option.counters()?;
        say(format!(
            "{:>11} {:>10} {:>10}",
            now.served, now.heard, now.written
        ));
    }
    if arguments.pin.leaves("working") {
        return Ok(());
    }
    for cgroup in &arguments.cgroup {
        option.detach(cgroup)?;
        say(format!("detached from {}", cgroup.display()));
    }
    Ok(())
}

/// Loads one with this id, or adopts the pinned one and sets the id.
fn load(pin: &Pin, id: Option<u32>) -> Result<ServerIdOption> {
    let Some(directory) = pin.directory() else {
        return Ok(match id {
            Some(id) => ServerIdOption::server(id)?,
            None => ServerIdOption::client()?,
        });
    };
    let (mut option, start) = ServerIdOption::adopt_or_load(directory)?;
    pin.report("server id option", &start);
    match (id, option.id()) {
        (Some(id), _) => option.set_id(id)?,
        (None, Some(id)) => anyhow::bail!(
            "the pinned option in {} writes server id {id}: pass it with --id, or remove it with --remove first",
            directory.display()
        ),
        (None, None) => {}
    }
    Ok(option)
}

/// Attaches it to exactly these cgroups.
fn attach(option: &mut ServerIdOption, cgroups: &[PathBuf]) -> Result<()> {
    option.reattach()?;
    let there = option.cgroups();
    let mut wanted = Vec::new();
    for cgroup in cgroups {
        let path = cgroup.canonicalize().unwrap_or_else(|_| cgroup.clone());
        let is_there =
            |of: &CgroupAttachment| of.path == path && of.state == AttachmentState::Attached;
        if !there.iter().any(is_there) {
            option.attach(cgroup)?;
        }
        wanted.push(path);
    }
    for other in there.iter().filter(|of| !wanted.contains(&of.path)) {
        option.detach(&other.path)?;
        say(format!("detached from {}", other.path.display()));
    }
    Ok(())
}

fn read_id(file: &Path) -> Result<u32> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let id = text.trim().parse();
    id.with_context(|| format!("{}: not a number from 1 to 4294967295", file.display()))
}

fn change_id(option: &mut ServerIdOption, file: &Path) -> Result<u32> {
    let id = read_id(file)?;
    option.set_id(id)?;
    Ok(id)
}
