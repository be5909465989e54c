//! What is asked of a real.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use hyper::Uri;
use hyper::header::HeaderName;
use rustls::pki_types::ServerName;

use crate::error::Error;
use crate::error::Result;
use crate::types::Protocol;

/// The longest body of which the beginning is looked at, in bytes.
const MAX_BODY: usize = 1 << 20;
/// The longest path, in bytes.
const MAX_PATH: usize = 65_534;
/// Words of ALPN, and the longest of them in bytes (RFC 7301, 3.1).
const MAX_WORDS: usize = 64;
const MAX_WORD: usize = 255;

/// What a real is asked, and what counts as an answer. The [time-out](super::Policy::timeout) is for all of it, so a
/// server that hangs, or sends its answer byte by byte, has failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Check {
    /// A TCP connection is accepted. It is closed at once.
    Tcp,
    /// An HTTP or HTTPS request is answered as is wanted.
    Http(Box<Http>),
    /// A SYN is answered by a SYN-ACK. A RST follows, so the server's program sees no connection.
    Syn,
    /// A datagram is answered.
    Udp(Box<Udp>),
    /// A DNS query is answered.
    Dns(Box<Dns>),
    /// A QUIC handshake is completed. The connection is closed at once.
    Quic(Box<Quic>),
    /// A program of this host ends with status 0.
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

    /// What packets of the check are made of; `None`: that is not known.
    pub(super) fn protocol(&self) -> Option<Protocol> {
        match self {
            Self::Tcp | Self::Http(_) | Self::Syn => Some(Protocol::Tcp),
            Self::Udp(_) | Self::Quic(_) => Some(Protocol::Udp),
            Self::Dns(dns) => Some(dns.protocol),
            Self::Command(_) => None,
        }
    }
}

/// How an HTTP request is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// The page is asked for.
    #[default]
    Get,
    /// Its headers are.
    Head,
}

/// A request by HTTP/1.1, and the answer to it. Redirections are not followed.
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
    /// The path, and the query if there is one: begins with `/`, up to 65,534 bytes, without spaces, `#`, `<` and `>`. Default: `/`.
    pub path: String,
    /// How it is asked for. Default: [`Method::Get`].
    pub method: Method,
    /// The header `Host`. Default: the name of the server in [`Tls`], else the address that is probed.
    pub host: Option<String>,
    /// More headers of the request: names and values.
    pub headers: Vec<(String, String)>,
    /// Any of these statuses is an answer. Range: 100 to 999; default: 200 to 299.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// A header that the answer must have, and text that must be in its value. Default: none.
    pub answer_header: Option<(String, String)>,
    /// Text that must be in the first [`max_body`](Self::max_body) bytes of the body. Default: none.
    pub answer_body: Option<String>,
    /// How much of the body is read, in bytes. What comes after that is not waited for. Range: 0 to 1,048,576;
    /// default: 65,536.
    pub max_body: usize,
    /// HTTPS. Default: none, so plain HTTP.
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
            return Err(invalid("path", found, "at most 65,534 bytes"));
        }
        let has_other = |byte: u8| !byte.is_ascii_graphic() || b"#<>".contains(&byte);
        if !self.path.starts_with('/')
            || self.path.bytes().any(has_other)
            || self.path.parse::<Uri>().is_err()
        {
            return Err(invalid(
                "path",
                &self.path,
                "it begins with / and has no spaces, #, < or >: write %20, %23, %3C, %3E",
            ));
        }
        if self.max_body > MAX_BODY {
            return Err(invalid("max_body", self.max_body, "0 to 1,048,576 bytes"));
        }
        let is_range = |range: &RangeInclusive<u16>| {
            (100..=*range.end()).contains(range.start()) && *range.end() <= 999
        };
        if self.statuses.is_empty() || !self.statuses.iter().all(is_range) {
            let found = format!("{:?}", self.statuses);
            return Err(invalid(
                "statuses",
                found,
                "ranges of 100 to 999, at least one",
            ));
        }
        if self.answer_body.is_some() && (self.max_body == 0 || self.method == Method::Head) {
            let reason = "no body is read: take GET, and a max_body above 0";
            return Err(invalid("answer_body", self.max_body, reason));
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
                    "a name and a value in ASCII, each in one line",
                ));
            }
        }
        if let Some(host) = &self.host
            && (host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(invalid(
                "host",
                host,
                "a name or address, and a port if need be",
            ));
        }
        if let Some((name, _)) = &self.answer_header
            && (name.is_empty() || !name.bytes().all(is_token))
        {
            return Err(invalid("answer_header", name, "the name of a header"));
        }
        self.tls.as_ref().map_or(Ok(()), Tls::validate)
    }
}

/// What names of headers are made of (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A datagram, and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Udp {
    /// What is sent. Range: 0 to 1,400 bytes.
    pub payload: Vec<u8>,
    /// What comes back. Other datagrams are passed over.
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
            length => Err(invalid("payload", length, "0 to 1,400 bytes")),
        }
    }
}

/// What a datagram is answered by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Answer {
    /// Any datagram.
    Any,
    /// The payload.
    Echo,
    /// One with these bytes in it.
    Contains(Vec<u8>),
    /// These bytes.
    Exactly(Vec<u8>),
}

/// A DNS query (RFC 1035), and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Dns {
    /// The name that is asked for, in ASCII.
    pub name: String,
    /// Of which type: 1 (A), 28 (AAAA), 6 (SOA), ... Default: 1.
    pub record_type: u16,
    /// UDP, or TCP. Default: UDP.
    pub protocol: Protocol,
    /// Any of these response codes is an answer: 0 (NOERROR), 3 (NXDOMAIN), ... Default: 0.
    pub codes: Vec<u8>,
    /// An address that must be among the answers. Default: none.
    pub address: Option<IpAddr>,
}

impl Dns {
    /// Asks for the IPv4 addresses of a name, by UDP.
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
                "a DNS name: labels of up to 63 bytes",
            ));
        }
        if self.codes.is_empty() || self.codes.iter().any(|code| *code > 15) {
            let found = format!("{:?}", self.codes);
            return Err(invalid("codes", found, "0 to 15, at least one"));
        }
        Ok(())
    }
}

/// A QUIC handshake (RFC 9000).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Quic {
    /// Who the server is.
    pub tls: Tls,
    /// The protocols above it that are offered; the server must take one. Range: up to 64 words of 1 to 255 bytes; default:
    /// `h3`.
    pub alpn: Vec<String>,
}

impl Quic {
    /// HTTP/3.
    pub fn new(tls: Tls) -> Self {
        Self {
            tls,
            alpn: vec!["h3".to_owned()],
        }
    }

    fn validate(&self) -> Result<()> {
        let range = "up to 64 words of 1 to 255 bytes";
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

/// A program of this host: status 0 is an answer. It finds `KATRAN_VIP`, `KATRAN_REAL`, `KATRAN_ADDRESS` and `KATRAN_PORT`
/// (where to probe) and, if probes go through the tunnel, `KATRAN_MARK` (for `SO_MARK`) in its environment. Whether its
/// packets went through the tunnel is not looked at.
///
/// It leads a process group of its own, all of which is killed when it ends, at the [time-out](super::Policy::timeout), and
/// when the checks end. The beginning of what it writes to standard error is told when it fails; its standard output goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Command {
    /// Its path, from the root.
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
                "a path from the root",
            )),
        }
    }
}

/// TLS 1.2 or 1.3, for HTTPS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tls {
    /// The server's name: it is asked for (SNI), and the certificate must be for it. `None`: the address that is
    /// probed, and nothing is asked for.
    pub server_name: Option<String>,
    /// Whose certificates are good. Default: [`Trust::System`].
    pub trust: Trust,
}

impl Tls {
    /// A certificate for this name, from whom the system trusts.
    pub fn new(server_name: impl Into<String>) -> Self {
        Self {
            server_name: Some(server_name.into()),
            trust: Trust::System,
        }
    }

    /// Any certificate, whoever it is for.
    pub fn any() -> Self {
        Self {
            server_name: None,
            trust: Trust::Any,
        }
    }

    fn validate(&self) -> Result<()> {
        match &self.server_name {
            Some(name) if ServerName::try_from(name.as_str()).is_err() => {
                Err(invalid("server_name", name, "a DNS name, or an address"))
            }
            _ => Ok(()),
        }
    }
}

/// Whose certificates are good.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trust {
    /// Those of the authorities of this host (`/etc/ssl/certs`, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` say). They are
    /// read when checks start.
    System,
    /// Those of these authorities: certificates in PEM.
    Authorities(String),
    /// Those of the authorities in this file, in PEM. It is read when checks start or get other settings.
    File(PathBuf),
    /// All, also those that have ended or are for another name: the check is of the server, not of its certificate.
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
        assert!(with(|http| http.path = "a".to_owned()).contains("begins with /"));
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
        assert!(with(|http| http.statuses.clear()).contains("at least one"));
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
        assert!(with(nothing_read).contains("no body is read"));
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
