//! What is asked of a real.

use std::ops::RangeInclusive;

use crate::error::Error;
use crate::error::Result;

/// The longest body of which the beginning is looked at, in bytes.
const MAX_BODY: usize = 1 << 20;

/// What a real is asked, and what counts as an answer. The [time-out](super::Policy::timeout) is for all of it, so a
/// server that hangs, or sends its answer byte by byte, has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Check {
    /// A TCP connection is accepted. It is closed at once.
    Tcp,
    /// An HTTP or HTTPS request is answered as is wanted.
    Http(Box<Http>),
}

impl From<Http> for Check {
    fn from(http: Http) -> Self {
        Self::Http(Box::new(http))
    }
}

impl Check {
    pub(super) fn validate(&self) -> Result<()> {
        match self {
            Self::Tcp => Ok(()),
            Self::Http(http) => http.validate(),
        }
    }
}

/// How an HTTP request is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Http {
    /// The path, and the query if there is one: begins with `/`, without spaces. Default: `/`.
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
        let graphic = self.path.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.path.starts_with('/') || !graphic {
            return Err(invalid(
                "path",
                &self.path,
                "it begins with / and has no spaces: write %20",
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
            let is_name = !name.is_empty() && name.bytes().all(is_token);
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
        Ok(())
    }
}

/// What names of headers are made of (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// TLS 1.2 or 1.3, for HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// Whose certificates are good.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trust {
    /// Those of the authorities of this host (`/etc/ssl/certs`, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` say). They are
    /// read when checks start.
    System,
    /// Those of these authorities: certificates in PEM.
    Authorities(String),
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
}
