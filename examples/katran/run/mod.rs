//! `katran run`: a load balancer from a configuration file.
//!
//! One thread owns the balancer (`owner.rs`): signals and what clients of the socket and of `/metrics` want come to it as
//! messages, one after the other. The library's health checks lock the balancer for what follows from their probes. Nobody else waits for it longer than a moment: while it applies a
//! document they get the snapshot that was taken before (`snapshot.rs`). Documents are read by other threads.
//!
//! SIGHUP applies the file again and prints what changed; a file that is not valid is reported and changes nothing.
//! SIGUSR1 prints what keeps the balancer from working. An interface that is removed and made again is attached to again. It
//! prints `drained: ...` when nothing has gone to a drained real for a minute. SIGINT and SIGTERM detach and end it. With
//! `--pin` it forwards on, whatever ends the program, until `katran remove`; the next one goes on with it, with `--take-over`
//! also while this one runs, which ends then. `RUST_LOG=info` shows more of what the library does.

mod drains;
mod health;
mod lines;
mod owner;
mod past;
mod snapshot;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use katran::Vip;
pub(crate) use owner::Owner;
pub(crate) use past::Past;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;
pub(crate) use snapshot::Handle;
pub(crate) use snapshot::OfReal;
pub(crate) use snapshot::OfVip;
pub(crate) use snapshot::Snapshot;

use crate::common::say;
use crate::metrics;
use crate::options;
use crate::page;
use crate::socket;

/// Until a former process has ended that has let go.
const FORMER: Duration = Duration::from_secs(10);

/// What to balance, and what else to do.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: options::Options,
    /// Print a line of counters every second, and a summary at the end
    #[arg(long)]
    counters: bool,
    /// Where `status`, `apply`, `drain`, `top` and `monitor` find it
    #[arg(long, value_name = "PATH", default_value = socket::PATH)]
    socket: PathBuf,
    /// Take no commands by a socket
    #[arg(long, conflicts_with = "socket")]
    no_socket: bool,
    /// Serve a page, JSON and /metrics, there or on 127.0.0.1:9957; anybody who reaches it can read it
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:9957")]
    listen: Option<SocketAddr>,
    /// Take commands by HTTP, too, from clients that send the token in this file
    #[arg(long, value_name = "FILE", requires = "listen")]
    token_file: Option<PathBuf>,
    /// Count the new flows of this VIP for each real, such as 203.0.113.1:443/tcp
    #[arg(long, value_name = "VIP")]
    watch_misses: Option<Vip>,
    /// Seconds from one count of the flow tables' entries to the next: 1 to 86400
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    recount: Duration,
    /// Probe the reals, also if the document has no key `health`: TCP services by a connection
    #[arg(long)]
    pub(crate) probe: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("a number of seconds from 1 to 86400".to_owned()),
    }
}

/// What the thread that owns the balancer is told.
pub(crate) enum Message {
    Signal(i32),
    /// A client's wish.
    Do(Box<dyn FnOnce(&mut Owner) + Send>),
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let token = arguments.token_file.as_deref().map(page::Token::read);
    let token = token.transpose()?;
    let (sender, messages) = mpsc::channel();
    // First, so that no signal from now on ends the process halfway.
    forward_signals(sender.clone())?;
    // Before any packet is touched: an address in use is no reason to interrupt traffic. Only, a process that is to let go
    // has it until it ends.
    let doors = match arguments.options.take_over {
        true => None,
        false => Some(Doors::open(&arguments, Duration::ZERO)?),
    };
    let mut owner = Owner::start(arguments, sender)?;
    let doors = match doors {
        Some(doors) => doors,
        None => Doors::open(&owner.arguments, FORMER)?,
    };
    let server = match doors.metrics {
        None => None,
        Some(listener) => {
            say(format!(
                "page on http://{0}/, metrics on http://{0}/metrics",
                listener.local_addr()?
            ));
            Some(metrics::serve(listener, owner.handle(), token)?)
        }
    };
    let socket = doors.socket.map(|socket| socket.serve(owner.handle()));
    let socket = socket.transpose()?;
    let ended = work(&mut owner, &messages);
    drop(socket);
    if let Some(server) = server {
        server.shutdown_timeout(metrics::LAST_ANSWERS);
    }
    ended?;
    owner.stop()
}

/// Where others come in.
struct Doors {
    metrics: Option<TcpListener>,
    socket: Option<socket::Bound>,
}

impl Doors {
    fn open(arguments: &Arguments, patience: Duration) -> Result<Self> {
        let listen = |address| listen(address, patience);
        let metrics = arguments.listen.map(listen).transpose()?;
        let socket = match arguments.no_socket {
            true => None,
            false => Some(socket::Bound::new(&arguments.socket, patience)?),
        };
        Ok(Self { metrics, socket })
    }
}

/// An address that is in use is tried again for some time.
fn listen(address: SocketAddr, patience: Duration) -> Result<TcpListener> {
    let end = Instant::now() + patience;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                thread::sleep(Duration::from_millis(10));
            }
            bound => return bound.with_context(|| format!("cannot listen on {address}")),
        }
    }
}

/// Does what there is to do until a signal ends it, or another process has the balancer.
fn work(owner: &mut Owner, messages: &Receiver<Message>) -> Result<()> {
    loop {
        let wait = owner.go_on()?;
        match messages.recv_timeout(wait) {
            Ok(Message::Signal(SIGHUP)) => owner.read_again(),
            Ok(Message::Signal(SIGUSR1)) => owner.print_diagnosis(),
            Ok(Message::Signal(_)) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Message::Do(wish)) => wish(owner),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn forward_signals(sender: Sender<Message>) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1])?;
    thread::spawn(move || {
        let mut signals = signals.forever();
        signals.try_for_each(|signal| sender.send(Message::Signal(signal)))
    });
    Ok(())
}
