//! One probe of one real.

mod http;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use nix::errno::Errno;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;

use self::http::HttpProbe;
pub(super) use self::tls::Authorities;
use super::check::Check;
use super::outcome::Outcome;
use crate::error::Result;

/// A check that is ready to be made.
#[derive(Clone)]
pub(super) enum Probe {
    Tcp,
    Http(Arc<HttpProbe>),
}

impl Probe {
    /// Reads certificates, if need be.
    pub(super) fn new(check: &Check, authorities: &mut Authorities) -> Result<Self> {
        Ok(match check {
            Check::Tcp => Self::Tcp,
            Check::Http(http) => Self::Http(Arc::new(HttpProbe::new(http, authorities)?)),
        })
    }

    /// Asks a real once, and waits for the whole answer, for as long as it takes.
    pub(super) async fn ask(self, place: Place) -> Outcome {
        let asked = match &self {
            Self::Tcp => connect(place).await.map(drop),
            Self::Http(http) => http.ask(place).await,
        };
        match asked {
            Ok(()) => Outcome::Passed,
            Err(Failure::NotSent(error)) => Outcome::NotSent(error),
            Err(Failure::Failed(why)) => Outcome::Failed(why),
        }
    }
}

/// Where a probe goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) to: SocketAddr,
    /// By which the packet path knows the real.
    pub(super) mark: Option<u32>,
}

/// Why there is no answer.
enum Failure {
    Failed(String),
    NotSent(String),
}

impl Failure {
    fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }

    fn not_sent(error: impl ToString) -> Self {
        Self::NotSent(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        const OWN: [Errno; 10] = [
            Errno::ENETUNREACH,
            Errno::ENETDOWN,
            Errno::EADDRNOTAVAIL,
            Errno::EACCES,
            Errno::EPERM,
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOBUFS,
            Errno::ENOMEM,
            Errno::EINVAL,
        ];
        // The host's own word, before anything was sent.
        let is_own = error.raw_os_error().map(Errno::from_raw);
        match is_own.is_some_and(|errno| OWN.contains(&errno)) {
            true => Self::not_sent(error),
            false => Self::failed(error),
        }
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
    let socket = socket(place, Type::STREAM)?;
    Ok(TcpSocket::from_std_stream(socket.into())
        .connect(place.to)
        .await?)
}
