//! One probe of one real.

mod command;
mod datagram;
mod dns;
mod http;
mod quic;
mod tls;

use std::convert::Infallible;
use std::io;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Domain;
use socket2::SockRef;
use socket2::Socket;
use socket2::Type;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use self::http::HttpProbe;
use self::quic::QuicProbe;
pub(super) use self::tls::Authorities;
use super::board::Target;
use super::check::Check;
use super::check::Command;
use super::check::Dns;
use super::check::Udp;
use super::outcome::Cause;
use super::outcome::Outcome;
use crate::error::Result;

/// A check that is ready to run.
#[derive(Clone)]
pub(super) enum Probe {
    Tcp,
    Http(Arc<HttpProbe>),
    Syn,
    Udp(Arc<Udp>),
    Dns(Arc<Dns>),
    Quic(Arc<QuicProbe>),
    Command(Arc<Command>),
}

impl Probe {
    /// Prepares a check, and reads certificates if it needs some.
    pub(super) fn new(check: &Check, authorities: &mut Authorities) -> Result<Self> {
        Ok(match check {
            Check::Tcp => Self::Tcp,
            Check::Http(http) => Self::Http(Arc::new(HttpProbe::new(http, authorities)?)),
            Check::Syn => Self::Syn,
            Check::Udp(udp) => Self::Udp(Arc::new(Udp::clone(udp))),
            Check::Dns(dns) => Self::Dns(Arc::new(Dns::clone(dns))),
            Check::Quic(quic) => Self::Quic(Arc::new(QuicProbe::new(quic, authorities)?)),
            Check::Command(command) => Self::Command(Arc::new(Command::clone(command))),
        })
    }

    /// Probes a real once and waits for the whole answer, without a limit. `living` is held until
    /// nothing of the probe is left, even if the probe is dropped.
    pub(super) async fn ask(self, place: Place, living: Living) -> Outcome {
        let asked = match &self {
            Self::Tcp => connect(place).await.map(drop),
            Self::Http(http) => http.ask(place).await,
            Self::Syn => half_open(place).await,
            Self::Udp(udp) => datagram::ask(udp, place).await,
            Self::Dns(dns) => dns::ask(dns, place).await,
            Self::Quic(quic) => quic.ask(place).await,
            Self::Command(command) => command::run(command, place, living).await,
        };
        match asked {
            Ok(()) => Outcome::Passed,
            Err(Failure::NotSent(error)) => Outcome::NotSent(one_line(&error)),
            Err(Failure::Failed(cause, why)) => Outcome::Failed(cause, one_line(&why)),
        }
    }
}

/// Held by all that probes, so that its receiver knows when nothing does any more.
pub(super) type Living = mpsc::Sender<Infallible>;

/// The longest reason to keep, in characters.
const MAX_REASON: usize = 500;

/// A reason as one line for logs and terminals: servers can choose its text (the closing words of
/// QUIC).
fn one_line(reason: &str) -> String {
    let shown = |letter: char| if letter.is_control() { ' ' } else { letter };
    reason.chars().take(MAX_REASON).map(shown).collect()
}

/// The target of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) to: SocketAddr,
    /// The mark by which the packet path knows the real.
    pub(super) mark: Option<u32>,
}

/// Why there is no good answer.
enum Failure {
    Failed(Cause, String),
    NotSent(String),
}

impl Failure {
    /// A wrong answer.
    fn answer(why: impl ToString) -> Self {
        Self::Failed(Cause::Answer, why.to_string())
    }

    fn not_sent(error: impl ToString) -> Self {
        Self::NotSent(error.to_string())
    }

    /// An error of connecting a socket. Missing routes are this host's own trouble, as nothing was
    /// sent.
    fn at_once(error: io::Error) -> Self {
        const OWN: [Errno; 7] = [
            Errno::ENETUNREACH,
            Errno::EHOSTUNREACH,
            Errno::ENETDOWN,
            Errno::EADDRNOTAVAIL,
            Errno::EACCES,
            Errno::EPERM,
            Errno::EINVAL,
        ];
        match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if OWN.contains(&errno) => Self::not_sent(error),
            _ => error.into(),
        }
    }
}

impl From<io::Error> for Failure {
    /// An error after sending. Only a lack of resources is this process's own trouble.
    fn from(error: io::Error) -> Self {
        const OWN: [Errno; 4] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
        match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if OWN.contains(&errno) => Self::not_sent(error),
            _ => Self::Failed(cause(&error), error.to_string()),
        }
    }
}

fn cause(error: &io::Error) -> Cause {
    match error.kind() {
        ErrorKind::ConnectionRefused => Cause::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Cause::Unreachable,
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof => Cause::Closed,
        ErrorKind::TimedOut => Cause::Timeout,
        ErrorKind::InvalidData => Cause::Answer,
        _ => Cause::Other,
    }
}

fn socket(place: Place, kind: Type) -> std::result::Result<Socket, Failure> {
    let socket =
        Socket::new(Domain::for_address(place.to), kind, None).map_err(Failure::not_sent)?;
    socket.set_nonblocking(true).map_err(Failure::not_sent)?;
    if let Some(mark) = place.mark {
        socket.set_mark(mark).map_err(Failure::not_sent)?;
    }
    Ok(socket)
}

async fn connect(place: Place) -> std::result::Result<TcpStream, Failure> {
    begin(socket(place, Type::STREAM)?, place).await
}

/// Connects a socket. Errors from routers come later than those of this host's routes.
async fn begin(socket: Socket, place: Place) -> std::result::Result<TcpStream, Failure> {
    match socket.connect(&place.to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
            return Err(Failure::at_once(error));
        }
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error.into()),
        None => Ok(stream),
    }
}

/// Sends a SYN, and a RST after the SYN-ACK. Without quick ACKs the kernel delays its ACK up to 200
/// ms to send data along; closing a socket without lingering sends a RST instead.
async fn half_open(place: Place) -> std::result::Result<(), Failure> {
    let socket = socket(place, Type::STREAM)?;
    socket.set_tcp_quickack(false).map_err(Failure::not_sent)?;
    let stream = begin(socket, place).await?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

/// A socket that accepts datagrams only from there.
async fn udp(place: Place) -> std::result::Result<UdpSocket, Failure> {
    let socket = UdpSocket::from_std(socket(place, Type::DGRAM)?.into())?;
    let connected = socket.connect(place.to).await;
    connected.map_err(Failure::at_once)?;
    Ok(socket)
}
