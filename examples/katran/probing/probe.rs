//! One probe: a TCP connection, an HTTP request or a UDP datagram, to the VIP, with the mark that leads to
//! one real.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use katran::Protocol;
use katran::Vip;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;

use super::check::Check;

/// The longest beginning of an HTTP answer in which its status is looked for, in bytes.
const MAX_STATUS_LINE: usize = 8192;

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    Failed(String),
    /// It was never sent: that says nothing of the real.
    NotSent(String),
}

/// What to ask whom.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// Where the probe goes to.
    pub(crate) to: Vip,
    pub(crate) mark: u32,
    pub(crate) check: Check,
    /// The status that pages must have.
    pub(crate) status: u16,
}

/// Probes a real of a VIP once.
pub(crate) async fn probe(question: Question, timeout: Duration) -> Outcome {
    let to = SocketAddr::from((question.to.address(), question.to.port()));
    let socket = match socket(to, question.to.protocol(), question.mark) {
        Ok(socket) => socket,
        Err(error) => return Outcome::NotSent(error.to_string()),
    };
    match tokio::time::timeout(timeout, ask(socket, to, &question)).await {
        Ok(Ok(())) => Outcome::Answered,
        Ok(Err(error)) => Outcome::Failed(error.to_string()),
        Err(_) => Outcome::Failed(format!("no answer within {} s", timeout.as_secs_f64())),
    }
}

fn socket(to: SocketAddr, protocol: Protocol, mark: u32) -> io::Result<Socket> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    socket.set_nonblocking(true)?;
    socket.set_mark(mark)?;
    Ok(socket)
}

async fn ask(socket: Socket, to: SocketAddr, question: &Question) -> io::Result<()> {
    if question.to.protocol() == Protocol::Udp {
        return echo(UdpSocket::from_std(socket.into())?, to).await;
    }
    let socket = TcpSocket::from_std_stream(socket.into());
    let stream = socket.connect(to).await?;
    let Check::Http { path } = &question.check else {
        return Ok(());
    };
    let (found, wanted) = (http(&stream, to, path).await?, question.status);
    match found == wanted {
        true => Ok(()),
        false => Err(io::Error::other(format!("status {found}, not {wanted}"))),
    }
}

/// The status of the answer to a GET request.
async fn http(stream: &TcpStream, host: SocketAddr, path: &str) -> io::Result<u16> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: katran-healthcheck\r\n\
         Connection: close\r\n\r\n"
    );
    let mut rest = request.as_bytes();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while answer.len() < MAX_STATUS_LINE {
        stream.readable().await?;
        let length = match stream.try_read(&mut piece) {
            Ok(0) => return Err(io::Error::other("the answer ends before its status")),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        answer.extend_from_slice(&piece[..length]);
        if let Some(status) = status(&answer)? {
            return Ok(status);
        }
    }
    Err(io::Error::other("no status in the answer"))
}

/// The status of an answer of which this has come; `None`: not enough of it.
pub(crate) fn status(answer: &[u8]) -> io::Result<Option<u16>> {
    // No room for headers: the status is known before them, and whatever is wrong with them.
    let mut response = httparse::Response::new(&mut []);
    let parsed = response.parse(answer);
    match (response.code, parsed) {
        (Some(status), _) => Ok(Some(status)),
        (None, Ok(_)) => Ok(None),
        (None, Err(error)) => Err(io::Error::other(format!("no HTTP answer: {error}"))),
    }
}

async fn echo(socket: UdpSocket, to: SocketAddr) -> io::Result<()> {
    socket.connect(to).await?;
    let question = format!("katran-healthcheck {}", fastrand::u64(..));
    socket.send(question.as_bytes()).await?;
    let mut answer = [0; 128];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Anything else is a late answer to another one.
        if answer[..length] == *question.as_bytes() {
            return Ok(());
        }
    }
}
