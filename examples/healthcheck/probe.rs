//! One probe: a TCP connection, an HTTP request or a UDP datagram, to the VIP, with the mark that leads to
//! one real.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use katran::Protocol;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;

use crate::board::Target;

/// What counts as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// A connection is accepted.
    Connect,
    /// A GET request for `path` is answered with this status.
    Http { path: String, status: u16 },
    /// A datagram comes back as it was.
    Echo,
}

impl Check {
    /// What is asked of VIPs that nothing else is said of.
    pub(crate) fn usual(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Connect,
            Protocol::Udp => Self::Echo,
        }
    }
}

/// Probes a real of a VIP once.
pub(crate) fn probe(target: &Target, check: &Check, timeout: Duration) -> io::Result<()> {
    let to = SocketAddr::from((target.vip.address(), target.vip.port()));
    let deadline = Instant::now() + timeout;
    match check {
        Check::Echo => echo(socket(to, Type::DGRAM, target.mark)?, to, deadline),
        Check::Connect => connect(target, to, deadline).map(drop),
        Check::Http { path, status } => {
            let found = http(connect(target, to, deadline)?, to, path, deadline)?;
            match found == *status {
                true => Ok(()),
                false => Err(io::Error::other(format!("status {found}, not {status}"))),
            }
        }
    }
}

fn socket(to: SocketAddr, kind: Type, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    socket.set_mark(mark)?;
    Ok(socket)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        false => Ok(left),
        true => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn connect(target: &Target, to: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let socket = socket(to, Type::STREAM, target.mark)?;
    socket.connect_timeout(&to.into(), left(deadline)?)?;
    Ok(socket.into())
}

/// The status of the answer to a GET request.
fn http(mut stream: TcpStream, host: SocketAddr, path: &str, deadline: Instant) -> io::Result<u16> {
    stream.set_write_timeout(Some(left(deadline)?))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: katran-healthcheck\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let length = stream.read(&mut piece)?;
        answer.extend_from_slice(&piece[..length]);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        // The status is known long before all headers are.
        let parsed = response.parse(&answer).map_err(io::Error::other)?;
        if let Some(status) = response.code {
            return Ok(status);
        }
        if parsed.is_complete() || length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn echo(socket: Socket, to: SocketAddr, deadline: Instant) -> io::Result<()> {
    let socket = UdpSocket::from(socket);
    socket.connect(to)?;
    let question = format!("katran-healthcheck {}", fastrand::u64(..));
    socket.send(question.as_bytes())?;
    let mut answer = [0; 128];
    loop {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let length = socket.recv(&mut answer)?;
        // Anything else is a late answer to another one.
        if answer[..length] == *question.as_bytes() {
            return Ok(());
        }
    }
}
