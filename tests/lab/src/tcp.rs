//! A TCP server that answers with its name, and a client.
//!
//! Every line a client sends is answered by one line: the server's name, so that the client knows
//! which backend holds its connection. The line `fill <n>` is answered by the name, a space and `n`
//! dots: a long answer, in full-size segments.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::Ipv6Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::sockopt;
use nix::sys::time::TimeVal;

use crate::Host;

/// How long a client waits for a connection, and for an answer, by default.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the last acknowledgement of a closed connection may take.
const LAST_ACKNOWLEDGEMENT: Duration = Duration::from_secs(20);

/// Enough for a thread that serves one connection; there may be thousands.
const STACK: usize = 128 << 10;

/// A server that answers each line with its name. Dropping it closes all of its connections.
#[must_use = "the server ends when it is dropped"]
#[derive(Debug)]
pub struct TcpServer {
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    acceptor: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    stop: AtomicBool,
    accepted: AtomicU64,
    /// Open connections by running number, to close at the server's end.
    open: Mutex<HashMap<u64, TcpStream>>,
}

impl TcpServer {
    /// Listens on a port of every address of the host, IPv4 and IPv6, VIPs on `lo` included.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub fn start(host: &Host, port: u16, name: impl Into<String>) -> io::Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let listener = Arc::new(host.run(|| TcpListener::bind(any))?);
        let shared = Arc::new(Shared {
            name: name.into(),
            stop: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let acceptor = thread::Builder::new().stack_size(STACK).spawn({
            let listener = Arc::clone(&listener);
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        })?;
        Ok(Self {
            listener,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// The name it answers with.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.shared.open().len()
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread. An error means that it has woken already.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        // The connections' threads see the end of their streams.
        for stream in self.shared.open().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            // A client that left before it was accepted, or the server's end.
            continue;
        };
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        if let Ok(clone) = stream.try_clone() {
            shared.open().insert(number, clone);
        }
        let server = Arc::clone(shared);
        let started = thread::Builder::new().stack_size(STACK).spawn(move || {
            // The client notices a broken connection.
            let _ = serve(stream, &server.name);
            server.open().remove(&number);
        });
        if started.is_err() {
            shared.open().remove(&number);
        }
    }
}

fn serve(stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut answers = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let mut answer = name.to_owned();
        if let Some(Ok(n)) = line?.strip_prefix("fill ").map(str::parse) {
            answer.push(' ');
            answer.extend(std::iter::repeat_n('.', n));
        }
        answer.push('\n');
        answers.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// A connection to a [`TcpServer`].
#[derive(Debug)]
pub struct TcpClient {
    stream: BufReader<TcpStream>,
}

impl TcpClient {
    /// Connects from a host, from an address and port that the kernel chooses. It waits 20 seconds
    /// for the connection, and for every answer unless [`TcpClient::set_patience`] changes that.
    ///
    /// # Errors
    ///
    /// If the connection is refused, unreachable or takes too long.
    pub fn connect(host: &Host, remote: SocketAddr) -> io::Result<Self> {
        Self::new(host.run(|| TcpStream::connect_timeout(&remote, PATIENCE))?)
    }

    /// Connects from this address and port of the host, so that the whole flow is known.
    ///
    /// A closed connection of the same flow may still wait for the last acknowledgement (RFC 9293,
    /// LAST-ACK); this waits for it, too.
    ///
    /// # Errors
    ///
    /// As [`TcpClient::connect`], and if `local` is no address of the host or stays taken.
    pub fn connect_from(host: &Host, local: SocketAddr, remote: SocketAddr) -> io::Result<Self> {
        let family = match local {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let close_on_exec = SockFlag::SOCK_CLOEXEC;
        let fd = host.run(|| socket::socket(family, SockType::Stream, close_on_exec, None))?;
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        // The timeout of `connect`, which the standard library offers only for its own sockets.
        let limit = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        socket::setsockopt(&fd, sockopt::SendTimeout, &limit)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(local))?;
        let last = Instant::now() + LAST_ACKNOWLEDGEMENT;
        loop {
            match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(remote)) {
                Err(Errno::EADDRNOTAVAIL) if Instant::now() < last => {
                    thread::sleep(Duration::from_millis(1));
                }
                done => break done?,
            }
        }
        Self::new(TcpStream::from(fd))
    }

    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let client = Self {
            stream: BufReader::new(stream),
        };
        client.set_patience(PATIENCE)?;
        Ok(client)
    }

    /// Sets how long to wait for an answer, and for room to send.
    ///
    /// # Errors
    ///
    /// If `limit` is zero.
    pub fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(limit))?;
        self.stream.get_ref().set_write_timeout(Some(limit))
    }

    /// The client's own address and port.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().local_addr()
    }

    /// The connection itself, for another protocol. Only before the first answer is read.
    pub fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }

    /// Sends a line (without its end) and returns the answer: the server's name, and for
    /// `fill <n>` a space and `n` dots.
    ///
    /// # Errors
    ///
    /// If the connection is closed or reset, or the answer takes too long.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.stream
            .get_ref()
            .write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        if answer.pop() != Some('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    }
}

/// In [`tcp_states`], a socket that listens (LISTEN in RFC 9293).
pub const TCP_LISTEN: u8 = 10;
/// In [`tcp_states`], a connection that has sent its last acknowledgement (TIME-WAIT in RFC 9293).
pub const TCP_TIME_WAIT: u8 = 6;

/// The states of a host's TCP sockets of both families, as in proc(5).
///
/// # Errors
///
/// If the kernel does not list them.
pub fn tcp_states(host: &Host) -> io::Result<Vec<u8>> {
    let mut states = Vec::new();
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{table}");
        for socket in host.run(|| fs::read_to_string(path))?.lines().skip(1) {
            // sl, local_address, rem_address, st, ...
            let state = socket.split_whitespace().nth(3).unwrap_or_default();
            states.push(u8::from_str_radix(state, 16).map_err(io::Error::other)?);
        }
    }
    Ok(states)
}
