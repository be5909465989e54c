//! Checks: what to send to a real, and which answers to expect.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use hyper::Uri;
use hyper::header::HeaderName;
use rustls::pki_types::ServerName;

use crate::error::Error;
use crate::error::Result;
use crate::types::Protocol;

/// The largest limit of the part of a body that is read, in bytes.
const MAX_BODY: usize = 1 << 20;
/// The longest path, in bytes.
const MAX_PATH: usize = 65_534;
/// The largest number of ALPN words, and their largest length in bytes (RFC 7301, 3.1).
const MAX_WORDS: usize = 64;
const MAX_WORD: usize = 255;

/// What to send to a real, and which answer to expect. The [timeout](super::Policy::timeout) covers
/// all of it, so a server that hangs or trickles its answer fails.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Check {
    /// Opens a TCP connection and closes it at once.
    Tcp,
    /// Sends an HTTP or HTTPS request and checks the answer.
    Http(Box<Http>),
    /// Sends a SYN, waits for the SYN-ACK and answers it with a RST, so the server's program sees
    /// no connection.
    Syn,
    /// Sends a datagram and waits for an answer.
    Udp(Box<Udp>),
    /// Sends a DNS query and checks the answer.
    Dns(Box<Dns>),
    /// Completes a QUIC handshake and closes the connection at once.
    Quic(Box<Quic>),
    /// Runs a program on this host, which must exit with status 0.
    Command(Box<Command>),
}

impl From<Udp> for Check {
    fn from(udp: Udp) -> Self {
        Self::Udp(Box::new(udp))
    }
}

impl From<Dns> for Check {
    fn from(dns: Dns) -> Self {
        Self::Dns(Box::new(dns))
    }
}

impl From<Quic> for Check {
    fn from(quic: Quic) -> Self {
        Self::Quic(Box::new(quic))
    }
}

impl From<Command> for Check {
    fn from(command: Command) -> Self {
        Self::Command(Box::new(command))
    }
}

impl From<Http> for Check {
    fn from(http: Http) -> Self {
        Self::Http(Box::new(http))
    }
}

impl Check {
    pub(super) fn validate(&self) -> Result<()> {
        match self {
            Self::Tcp | Self::Syn => Ok(()),
            Self::Quic(quic) => quic.validate(),
            Self::Http(http) => http.validate(),
            Self::Udp(udp) => udp.validate(),
            Self::Dns(dns) => dns.validate(),
            Self::Command(command) => command.validate(),
        }
    }

    /// The protocol of the check's packets; `None` if unknown.
    pub(super) fn protocol(&self) -> Option<Protocol> {
        match self {
            Self::Tcp | Self::Http(_) | Self::Syn => Some(Protocol::Tcp),
            Self::Udp(_) | Self::Quic(_) => Some(Protocol::Udp),
            Self::Dns(dns) => Some(dns.protocol),
            Self::Command(_) => None,
        }
    }
}

/// The method of an HTTP request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Requests the page.
    #[default]
    Get,
    /// Requests only its headers.
    Head,
}

/// An HTTP/1.1 request and the expected answer. Redirections are not followed.
///
/// ```
/// use katran::health::Check;
/// use katran::health::Http;
/// use katran::health::Tls;
///
/// let mut http = Http::new("/healthz");
/// http.statuses = vec![200..=200];
/// http.tls = Some(Tls::new("www.example.com"));
/// let check = Check::from(http);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Http {
    /// The path, with the query if there is one. It begins with `/` and has up to 65,534 bytes
    /// without spaces, `#`, `<` and `>`. Default: `/`.
    pub path: String,
    /// The method. Default: [`Method::Get`].
    pub method: Method,
    /// The header `Host`. Default: the server name in [`Tls`], else the probed address.
    pub host: Option<String>,
    /// More request headers: names and values.
    pub headers: Vec<(String, String)>,
    /// The accepted statuses. Range: 100 to 999; default: 200 to 299.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// A header that the answer must have, and text that its value must contain. Default: none.
    pub answer_header: Option<(String, String)>,
    /// Text that the first [`max_body`](Self::max_body) bytes of the body must contain. Default:
    /// none.
    pub answer_body: Option<String>,
    /// How much of the body to read, in bytes; the probe does not wait for the rest. Range: 0 to
    /// 1,048,576; default: 65,536.
    pub max_body: usize,
    /// TLS, for HTTPS. Default: none.
    pub tls: Option<Tls>,
}

impl Http {
    /// A GET request for this path.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            method: Method::Get,
            host: None,
            headers: Vec::new(),
            statuses: vec![200..=299],
            answer_header: None,
            answer_body: None,
            max_body: 65_536,
            tls: None,
        }
    }

    fn validate(&self) -> Result<()> {
        if self.path.len() > MAX_PATH {
            let found = format!("{} bytes", self.path.len());
            return Err(invalid("path", found, "must have at most 65,534 bytes"));
        }
        let has_other = |byte: u8| !byte.is_ascii_graphic() || b"#<>".contains(&byte);
        if !self.path.starts_with('/')
            || self.path.bytes().any(has_other)
            || self.path.parse::<Uri>().is_err()
        {
            return Err(invalid(
                "path",
                &self.path,
                "must begin with /, without spaces, #, < and >: write %20, %23, %3C, %3E",
            ));
        }
        if self.max_body > MAX_BODY {
            return Err(invalid(
                "max_body",
                self.max_body,
                "must be 0 to 1,048,576 bytes",
            ));
        }
        let is_range = |range: &RangeInclusive<u16>| {
            (100..=*range.end()).contains(range.start()) && *range.end() <= 999
        };
        if self.statuses.is_empty() || !self.statuses.iter().all(is_range) {
            let found = self.statuses.iter().map(|of| match of.start() == of.end() {
                true => of.start().to_string(),
                false => format!("\"{}-{}\"", of.start(), of.end()),
            });
            let found = format!("[{}]", found.collect::<Vec<_>>().join(", "));
            return Err(invalid(
                "statuses",
                found,
                "must be one or more ranges within 100 to 999",
            ));
        }
        if let Some(text) = &self.answer_body
            && (self.max_body == 0 || self.method == Method::Head)
        {
            let reason = "needs the method `get`, and a max_body above 0";
            return Err(invalid("answer_body", text, reason));
        }
        for (name, value) in &self.headers {
            let is_name = !name.is_empty()
                && name.bytes().all(is_token)
                && name.parse::<HeaderName>().is_ok();
            let is_value = value
                .bytes()
                .all(|byte| byte == b' ' || byte.is_ascii_graphic());
            if !is_name || !is_value {
                let found = format!("{name}: {value}");
                return Err(invalid(
                    "headers",
                    found,
                    "must be a name and a value, in ASCII and on one line",
                ));
            }
        }
        if let Some(host) = &self.host
            && (host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(invalid(
                "host",
                host,
                "must be a name or address, optionally with a port",
            ));
        }
        if let Some((name, _)) = &self.answer_header
            && (name.is_empty() || !name.bytes().all(is_token))
        {
            return Err(invalid(
                "answer_header",
                name,
                "must begin with the name of a header",
            ));
        }
        self.tls.as_ref().map_or(Ok(()), Tls::validate)
    }
}

/// The characters of header names (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A datagram and the expected answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Udp {
    /// The datagram to send. Range: 0 to 1,400 bytes.
    pub payload: Vec<u8>,
    /// The expected answer. Other datagrams are ignored.
    pub answer: Answer,
}

impl Udp {
    /// This payload, and any answer.
    pub fn new(payload: impl Into<Vec<u8>>) -> Self {
        Self {
            payload: payload.into(),
            answer: Answer::Any,
        }
    }

    fn validate(&self) -> Result<()> {
        match self.payload.len() {
            0..=1400 => Ok(()),
            length => Err(invalid("payload", length, "must have 0 to 1,400 bytes")),
        }
    }
}

/// The expected answer to a datagram.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Answer {
    /// Any datagram.
    Any,
    /// The same payload.
    Echo,
    /// A datagram that contains these bytes.
    Contains(Vec<u8>),
    /// Exactly these bytes.
    Exactly(Vec<u8>),
}

/// A DNS query (RFC 1035) and the expected answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Dns {
    /// The name to query, in ASCII.
    pub name: String,
    /// The record type: 1 (A), 28 (AAAA), 6 (SOA), ... Default: 1.
    pub record_type: u16,
    /// UDP or TCP. Default: UDP.
    pub protocol: Protocol,
    /// The accepted response codes: 0 (NOERROR), 3 (NXDOMAIN), ... Default: 0.
    pub codes: Vec<u8>,
    /// An address that the answer must contain. Default: none.
    pub address: Option<IpAddr>,
}

impl Dns {
    /// Queries the IPv4 addresses of a name over UDP.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            record_type: 1,
            protocol: Protocol::Udp,
            codes: vec![0],
            address: None,
        }
    }

    fn validate(&self) -> Result<()> {
        if self.name.is_empty()
            || !self.name.is_ascii()
            || simple_dns::Name::new(&self.name).is_err()
        {
            return Err(invalid(
                "name",
                &self.name,
                "must be a DNS name: labels of up to 63 bytes",
            ));
        }
        if self.codes.is_empty() || self.codes.iter().any(|code| *code > 15) {
            let found = format!("{:?}", self.codes);
            return Err(invalid(
                "codes",
                found,
                "must be one or more codes from 0 to 15",
            ));
        }
        Ok(())
    }
}

/// A QUIC handshake (RFC 9000).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Quic {
    /// The server's name and certificate.
    pub tls: Tls,
    /// The application protocols to offer; the server must choose one. Range: up to 64 words of 1
    /// to 255 bytes; default: `h3`.
    pub alpn: Vec<String>,
}

impl Quic {
    /// A handshake that offers `h3`.
    pub fn new(tls: Tls) -> Self {
        Self {
            tls,
            alpn: vec!["h3".to_owned()],
        }
    }

    fn validate(&self) -> Result<()> {
        let range = "must be up to 64 words of 1 to 255 bytes";
        if self.alpn.len() > MAX_WORDS {
            return Err(invalid("alpn", format!("{} words", self.alpn.len()), range));
        }
        let lengths = 1..=MAX_WORD;
        if let Some(word) = self.alpn.iter().find(|word| !lengths.contains(&word.len())) {
            return Err(invalid("alpn", format!("`{word}`"), range));
        }
        self.tls.validate()
    }
}

/// A program on this host; exit status 0 is success.
///
/// Its environment has `KATRAN_VIP`, `KATRAN_REAL`, `KATRAN_ADDRESS` and `KATRAN_PORT` (where to
/// probe) and, for probes through the tunnel, `KATRAN_MARK` (for `SO_MARK`). The library does not
/// check that its packets went through the tunnel.
///
/// The program leads its own process group, which is killed when it exits, at the
/// [timeout](super::Policy::timeout), and when the checks end. If it fails, the first 300 bytes of
/// its standard error are reported; standard output is discarded. The library waits for it without
/// a signal handler.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Command {
    /// Its absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Command {
    /// This program, without arguments.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
        }
    }

    fn validate(&self) -> Result<()> {
        match self.program.is_absolute() {
            true => Ok(()),
            false => Err(invalid(
                "program",
                self.program.display(),
                "must be an absolute path",
            )),
        }
    }
}

/// TLS 1.2 or 1.3, for HTTPS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tls {
    /// The name for SNI, which the certificate must be for. `None`: no SNI, and a certificate for
    /// the probed address.
    pub server_name: Option<String>,
    /// The trusted authorities. Default: [`Trust::System`].
    pub trust: Trust,
}

impl Tls {
    /// A certificate for this name from an authority that the system trusts.
    pub fn new(server_name: impl Into<String>) -> Self {
        Self {
            server_name: Some(server_name.into()),
            trust: Trust::System,
        }
    }

    /// Any certificate for any name.
    pub fn any() -> Self {
        Self {
            server_name: None,
            trust: Trust::Any,
        }
    }

    fn validate(&self) -> Result<()> {
        match &self.server_name {
            Some(name) if ServerName::try_from(name.as_str()).is_err() => Err(invalid(
                "server_name",
                name,
                "must be a DNS name or an address",
            )),
            _ => Ok(()),
        }
    }
}

/// The trusted authorities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trust {
    /// This host's (`/etc/ssl/certs`, or `SSL_CERT_FILE` and `SSL_CERT_DIR`), read when checks
    /// start.
    System,
    /// These, as certificates in PEM.
    Authorities(String),
    /// Those in this PEM file, read when checks start or are reconfigured.
    File(PathBuf),
    /// No verification: expired certificates and those for other names pass. The check then covers
    /// the server, not its certificate.
    Any,
}

pub(super) fn invalid(
    setting: &'static str,
    value: impl ToString,
    reason: impl Into<String>,
) -> Error {
    Error::InvalidConfig {
        setting,
        value: value.to_string(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_refused() {
        let good = Http::new("/a?b=c");
        assert!(good.validate().is_ok());
        let with = |change: fn(&mut Http)| {
            let mut http = good.clone();
            change(&mut http);
            Check::from(http).validate().unwrap_err().to_string()
        };
        assert!(with(|http| http.path = "a".to_owned()).contains("must begin with /"));
        assert!(with(|http| http.path = "/a\r\nHost: b".to_owned()).contains("path"));
        for path in ["/a<b", "/a>b", "/?a<b", "/a#b", "/?a#b", "/ä"] {
            let mut http = good.clone();
            http.path = path.to_owned();
            assert!(http.validate().is_err(), "{path}");
        }
        let long = |length: usize| {
            let mut http = good.clone();
            http.path = format!("/{}", "a".repeat(length - 1));
            http.validate()
        };
        assert!(long(MAX_PATH).is_ok());
        assert!(
            long(MAX_PATH + 1)
                .unwrap_err()
                .to_string()
                .contains("65,534")
        );
        assert!(
            with(|http| http.headers = vec![("a".repeat(70_000), String::new())])
                .contains("a name")
        );
        assert!(with(|http| http.max_body = MAX_BODY + 1).contains("1,048,576"));
        assert!(with(|http| http.statuses.clear()).contains("one or more"));
        assert!(with(|http| http.statuses = vec![99..=200]).contains("99"));
        #[allow(
            clippy::reversed_empty_ranges,
            reason = "that is what is wrong with it"
        )]
        let reversed = |http: &mut Http| http.statuses = vec![300..=200];
        assert!(with(reversed).contains("300"));
        let injected =
            |http: &mut Http| http.headers = vec![("A".to_owned(), "b\r\nC: d".to_owned())];
        assert!(with(injected).contains("one line"));
        assert!(
            with(|http| http.headers = vec![(String::new(), String::new())]).contains("a name")
        );
        assert!(with(|http| http.host = Some("a b".to_owned())).contains("host"));
        let nothing_read = |http: &mut Http| {
            http.answer_body = Some("ok".to_owned());
            http.method = Method::Head;
        };
        assert!(with(nothing_read).contains("a max_body above 0"));
    }

    #[test]
    fn what_tls_has_no_room_for_is_refused() {
        let offering = |alpn: Vec<String>| {
            let mut quic = Quic::new(Tls::any());
            quic.alpn = alpn;
            Check::from(quic)
                .validate()
                .map_err(|error| error.to_string())
        };
        assert_eq!(offering(vec!["a".repeat(255); 64]), Ok(()));
        for wrong in [
            vec![String::new()],
            vec!["h3".to_owned(), "a".repeat(256)],
            vec!["h3".to_owned(); 65],
        ] {
            assert!(offering(wrong).unwrap_err().contains("1 to 255 bytes"));
        }
    }
}
