//! A UDP server that answers with its name, and a client.
//!
//! It answers every datagram from the address that the datagram was sent to.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::Host;

/// How long a client waits for an answer by default.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a server checks whether to stop.
const POLL: Duration = Duration::from_millis(20);

const LARGEST_DATAGRAM: usize = 65_535;

/// A server that answers each datagram with its name.
#[must_use = "the server ends when it is dropped"]
#[derive(Debug)]
pub struct UdpServer {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl UdpServer {
    /// Listens on a port of each of these addresses of the host. One socket for all would answer
    /// from an address that the kernel chooses.
    ///
    /// # Errors
    ///
    /// If the port is taken, or an address is not the host's.
    pub fn start(host: &Host, addresses: &[IpAddr], port: u16, name: &str) -> io::Result<Self> {
        let mut server = Self {
            stop: Arc::default(),
            received: Arc::default(),
            threads: Vec::new(),
        };
        for &address in addresses {
            let socket = host.run(|| UdpSocket::bind((address, port)))?;
            socket.set_read_timeout(Some(POLL))?;
            let name = name.to_owned();
            let stop = Arc::clone(&server.stop);
            let received = Arc::clone(&server.received);
            let serve = move || serve(&socket, &name, &stop, &received);
            server.threads.push(thread::Builder::new().spawn(serve)?);
        }
        Ok(server)
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, name: &str, stop: &AtomicBool, received: &AtomicU64) {
    let mut datagram = vec![0; LARGEST_DATAGRAM];
    while !stop.load(Ordering::SeqCst) {
        // Errors are timeouts, or an ICMP error about an earlier answer.
        if let Ok((_, client)) = socket.recv_from(&mut datagram) {
            received.fetch_add(1, Ordering::Relaxed);
            let _ = socket.send_to(name.as_bytes(), client);
        }
    }
}

/// A socket that speaks to one [`UdpServer`].
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// Connects to `remote` from an address and port that the kernel chooses. It waits 20 seconds
    /// for an answer unless [`UdpClient::set_patience`] changes that.
    ///
    /// # Errors
    ///
    /// If there is no route.
    pub fn connect(host: &Host, remote: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::connect_from(host, (any, 0).into(), remote)
    }

    /// Connects to `remote` from this address and port, so that the whole flow is known.
    ///
    /// # Errors
    ///
    /// If there is no route, or `local` is taken or no address of the host.
    pub fn connect_from(host: &Host, local: SocketAddr, remote: SocketAddr) -> io::Result<Self> {
        let socket = host.run(|| UdpSocket::bind(local))?;
        socket.connect(remote)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Sets how long to wait for an answer.
    ///
    /// # Errors
    ///
    /// If `limit` is zero.
    pub fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(limit))
    }

    /// The client's own address and port.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends one datagram, once, and returns the answer: the server's name.
    ///
    /// # Errors
    ///
    /// If the server's port is closed, or no answer comes in time.
    pub fn ask(&self, datagram: &[u8]) -> io::Result<String> {
        self.socket.send(datagram)?;
        let mut answer = vec![0; LARGEST_DATAGRAM];
        let length = loop {
            match self.socket.recv(&mut answer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        answer.truncate(length);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}
