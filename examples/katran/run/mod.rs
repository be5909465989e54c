//! `katran run`: a load balancer from a configuration file.
//!
//! One thread owns the balancer (`owner.rs`) and receives signals and clients' requests as
//! messages, one after the other. The library's health checks lock the balancer to apply results.
//! Others never wait long: while a document is applied they get the previous snapshot
//! (`snapshot.rs`). Other threads read documents.
//!
//! SIGHUP applies the file again and prints the changes; an invalid file is reported and changes
//! nothing. SIGUSR1 prints a diagnosis. The program attaches again to an interface that is removed
//! and created again. It prints `drained: ...` when a drained real has had no packet for a minute.
//! SIGINT and SIGTERM detach and end it. With `--pin` the balancer forwards on without the program,
//! until `katran remove`; the next start adopts it, with `--take-over` even while this program
//! runs, which then ends. `RUST_LOG=info` logs more of the library's work.

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

/// How long to wait for a previous process that let go to end.
const FORMER: Duration = Duration::from_secs(10);

/// The options of `run`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: options::Options,
    /// Print counters every second, and a summary at the end
    #[arg(long)]
    counters: bool,
    /// The socket for `status`, `apply`, `drain`, `top` and `monitor`
    #[arg(long, value_name = "PATH", default_value = socket::PATH)]
    socket: PathBuf,
    /// Do not listen on a socket
    #[arg(long, conflicts_with = "socket")]
    no_socket: bool,
    /// Serve a web page, JSON and /metrics over HTTP, by default on 127.0.0.1:9957, to anyone who
    /// can connect
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:9957")]
    listen: Option<SocketAddr>,
    /// Also take commands over HTTP from clients that send the token in this file
    #[arg(long, value_name = "FILE", requires = "listen")]
    token_file: Option<PathBuf>,
    /// Count new flows to each real of this VIP, such as 203.0.113.1:443/tcp
    #[arg(long, value_name = "VIP")]
    watch_misses: Option<Vip>,
    /// Seconds between counts of the flow tables' entries: 1 to 86400
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    recount: Duration,
    /// Probe reals even if the document has no key `health`: TCP VIPs by connecting
    #[arg(long)]
    pub(crate) probe: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("must be a number of seconds from 1 to 86400".to_owned()),
    }
}

/// A message to the thread that owns the balancer.
pub(crate) enum Message {
    Signal(i32),
    /// A client's request.
    Do(Box<dyn FnOnce(&mut Owner) + Send>),
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let token = arguments.token_file.as_deref().map(page::Token::read);
    let token = token.transpose()?;
    let (sender, messages) = mpsc::channel();
    // First, so that no later signal ends the process halfway.
    forward_signals(sender.clone())?;
    // Before any packet is touched: an address in use must not interrupt traffic. A process that is
    // to let go keeps the address until it ends.
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

/// The ways for clients to connect.
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

/// Binds an address; retries for some time if it is in use.
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

/// Works until a signal, or until another process takes the balancer.
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
