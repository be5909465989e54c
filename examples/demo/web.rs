//! The web servers: nginx, one process on each backend, and a client that can keep a connection.
//!
//! A server answers with its name and the client's address as it sees it; `/download` is a large
//! file at a limited rate.

use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;

use katran_lab::Host;
use katran_lab::Process;
use katran_lab::TcpClient;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;

use crate::Result;

/// How long to wait for a connection and for every read.
const PATIENCE: Duration = Duration::from_secs(3);
/// The clients' first port: below the kernel's ephemeral ports, and above those of part 3.
const FIRST_PORT: u16 = 21_000;
/// Bytes of `/download`.
pub(crate) const DOWNLOAD: usize = 32 << 20;
/// The rate of `/download`, in bytes a second for each connection.
const RATE: &str = "4m";

/// Writes the file behind `/download`.
pub(crate) fn write_download(scratch: &Path) -> io::Result<()> {
    fs::write(scratch.join("download"), download())
}

/// The content of `/download`: unpredictable bytes, so that a missing, repeated or misplaced piece
/// shows.
pub(crate) fn download() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(DOWNLOAD / 8).flatten().collect()
}

/// Starts nginx on a backend. All its files are in `scratch`; it reports errors on our standard
/// error.
pub(crate) fn start(host: &Host, scratch: &Path) -> Result<Process> {
    let name = host.name();
    let directory = scratch.display();
    // nginx creates the directories for bodies at the start, needed or not.
    let configuration = format!(
        r#"daemon off;
master_process off;
pid {directory}/{name}.pid;
error_log stderr error;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {directory}/{name}.body;
    proxy_temp_path {directory}/{name}.proxy;
    fastcgi_temp_path {directory}/{name}.fastcgi;
    uwsgi_temp_path {directory}/{name}.uwsgi;
    scgi_temp_path {directory}/{name}.scgi;
    server {{
        listen 80 backlog=1024;
        listen [::]:80 backlog=1024 ipv6only=on;
        default_type text/plain;
        location / {{ return 200 "{name} $remote_addr\n"; }}
        location = /download {{
            alias {directory}/download;
            limit_rate {RATE};
            add_header X-Backend {name};
        }}
    }}
}}
"#
    );
    let file = scratch.join(format!("{name}.conf"));
    fs::write(&file, configuration)?;
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(scratch)
        .arg("-c")
        .arg(file)
        // Ctrl-C is for the demo: nginx would react too, and complain about missing files.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Ok(host.spawn_command(command)?)
}

/// An answer: who gave it, and which client it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) backend: String,
    pub(crate) client: IpAddr,
}

/// A connection to a VIP.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    server: SocketAddr,
}

impl Connection {
    /// Connects from an address that the kernel chooses, and from a port that the demo has not used
    /// yet. The kernel reuses free ports, and the balancer sends a SYN from a recently used port to
    /// the same real as the connection before.
    pub(crate) fn new(host: &Host, server: SocketAddr) -> io::Result<Self> {
        static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let domain = Domain::for_address(server);
        let socket = host.run(|| Socket::new(domain, Type::STREAM, None))?;
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.connect_timeout(&server.into(), PATIENCE)?;
        Self::from_stream(socket.into(), server)
    }

    /// Connects from this address and port of the host.
    pub(crate) fn from(host: &Host, local: SocketAddr, server: SocketAddr) -> io::Result<Self> {
        let stream = TcpClient::connect_from(host, local, server)?.into_stream();
        Self::from_stream(stream, server)
    }

    fn from_stream(stream: TcpStream, server: SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let stream = BufReader::new(stream);
        Ok(Self { stream, server })
    }

    /// The client's own address and port.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().local_addr()
    }

    /// Asks who is there, and keeps the connection open.
    pub(crate) fn ask(&mut self) -> io::Result<Answer> {
        self.request("/", "keep-alive")?;
        self.answer()
    }

    /// Asks who is there for the last time: the server closes first, so that the client's port is
    /// free at once.
    pub(crate) fn ask_and_close(mut self) -> io::Result<Answer> {
        self.request("/", "close")?;
        let answer = self.answer()?;
        match self.stream.read(&mut [0])? {
            0 => Ok(answer),
            _ => Err(invalid("more than was asked for")),
        }
    }

    /// Requests the file; returns the server's name and the connection to read from.
    pub(crate) fn download(mut self) -> io::Result<(String, BufReader<TcpStream>)> {
        self.request("/download", "close")?;
        let headers = self.headers()?;
        match (
            header(&headers, "x-backend"),
            header(&headers, "content-length"),
        ) {
            (Some(name), Some(length)) if length.parse() == Ok(DOWNLOAD) => {
                Ok((name.to_owned(), self.stream))
            }
            _ => Err(invalid(&headers.join(", "))),
        }
    }

    fn request(&mut self, path: &str, connection: &str) -> io::Result<()> {
        let server = self.server;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: {connection}\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())
    }

    /// The status line and the headers of an answer.
    fn headers(&mut self) -> io::Result<Vec<String>> {
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => headers.push(line.to_owned()),
            }
        }
        match headers.first() {
            Some(status) if status.starts_with("HTTP/1.1 200 ") => Ok(headers),
            other => Err(invalid(other.map_or("none", String::as_str))),
        }
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let headers = self.headers()?;
        let length = header(&headers, "content-length").and_then(|length| length.parse().ok());
        let length: u64 = length.ok_or_else(|| invalid("no length"))?;
        let mut body = String::new();
        (&mut self.stream).take(length).read_to_string(&mut body)?;
        let answer = body.trim_end().split_once(' ').and_then(|(name, client)| {
            let (backend, client) = (name.to_owned(), client.parse().ok()?);
            Some(Answer { backend, client })
        });
        answer.ok_or_else(|| invalid(&body))
    }
}

fn header<'a>(headers: &'a [String], name: &str) -> Option<&'a str> {
    headers.iter().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn invalid(what: &str) -> io::Error {
    let message = format!("not the answer that was expected: {what}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}
