//! A minimal HTTP client, enough to query a test server.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use crate::Host;

/// An HTTP server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code, 200 for success.
    pub status: u16,
    /// Lower-case names, with values, in order.
    pub headers: Vec<(String, String)>,
    /// Everything after the headers.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of the first header of this name, in whatever case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text, without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.")?;
        let status = status.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<_> = lines
            .map(|line| line.split_once(':'))
            .map(|header| header.map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())))
            .collect::<Option<_>>()?;
        let response = Self {
            status,
            headers,
            body: bytes[end + 4..].to_vec(),
        };
        // A connection that closed early must not pass for an answer.
        match response.header("content-length") {
            Some(length) if length.parse() != Ok(response.body.len()) => None,
            _ => Some(response),
        }
    }
}

/// Requests a path from a server, from a host, on a new connection. `limit` applies to connecting
/// and to every read.
///
/// # Errors
///
/// If the connection fails, takes too long or breaks off, or the answer is not HTTP.
pub fn http_get(
    host: &Host,
    server: SocketAddr,
    path: &str,
    limit: Duration,
) -> io::Result<Response> {
    let mut stream = host.run(|| TcpStream::connect_timeout(&server, limit))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Response::parse(&answer).ok_or_else(|| {
        let message = format!("{server} sent {} bytes that are no answer", answer.len());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn parses_an_answer() {
        let response = Response::parse(b"HTTP/1.1 404 Not Found\r\nX-Real: b1\r\n\r\nnone\n")
            .expect("well-formed");
        assert_eq!(response.status, 404);
        assert_eq!(response.header("x-real"), Some("b1"));
        assert_eq!(response.text(), "none");
    }

    #[test]
    fn refuses_invalid_and_truncated_answers() {
        for bytes in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhalf",
        ] {
            assert_eq!(Response::parse(bytes), None);
        }
    }
}
