//! Probes by HTTP/1.1, with TLS or without.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::BodyExt;
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header;
use hyper::header::HeaderName;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::super::check::Http;
use super::super::check::Method;
use super::super::check::invalid;
use super::super::outcome::Cause;
use super::Failure;
use super::Place;
use super::connect;
use super::tls;
use super::tls::Authorities;
use crate::error::Result;

/// The longest head of an answer in bytes, and the largest number of its headers.
const MAX_HEAD: usize = 16_384;
const MAX_HEADERS: usize = 100;

/// A request that is ready to send.
pub(in crate::health) struct HttpProbe {
    http: Http,
    answer_header: Option<(HeaderName, String)>,
    tls: Option<(TlsConnector, Option<ServerName<'static>>)>,
}

impl HttpProbe {
    pub(super) fn new(http: &Http, authorities: &mut Authorities) -> Result<Self> {
        let answer_header = match &http.answer_header {
            Some((name, text)) => match name.parse() {
                Ok(name) => Some((name, text.clone())),
                Err(_) => {
                    return Err(invalid(
                        "answer_header",
                        name,
                        "must begin with the name of a header",
                    ));
                }
            },
            None => None,
        };
        let tls = match &http.tls {
            Some(tls) => {
                let mut config = tls::client(tls, authorities)?;
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Some((TlsConnector::from(Arc::new(config)), tls::server_name(tls)?))
            }
            None => None,
        };
        Ok(Self {
            http: http.clone(),
            answer_header,
            tls,
        })
    }

    pub(super) async fn ask(&self, place: Place) -> std::result::Result<(), Failure> {
        let stream = connect(place).await?;
        let Some((connector, name)) = &self.tls else {
            return self.exchange(stream, place.to).await;
        };
        let name = name.clone().unwrap_or(ServerName::from(place.to.ip()));
        let stream = connector.connect(name, stream).await;
        let stream =
            stream.map_err(|error| Failure::Failed(Cause::Handshake, format!("TLS: {error}")))?;
        self.exchange(stream, place.to).await
    }

    async fn exchange<S>(&self, stream: S, to: SocketAddr) -> std::result::Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // The connection ends with this set.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = sender.send_request(self.request(to)?).await;
        let answer = answer.map_err(failed)?;
        let status = answer.status().as_u16();
        if !self
            .http
            .statuses
            .iter()
            .any(|range| range.contains(&status))
        {
            return Err(Failure::answer(format!("status {status}")));
        }
        if let Some((name, text)) = &self.answer_header {
            let mut values = answer.headers().get_all(name).iter();
            let has = |value: &header::HeaderValue| find(value.as_bytes(), text.as_bytes());
            if !values.any(has) {
                return Err(Failure::answer(format!("no header {name} with `{text}`")));
            }
        }
        let body = read(answer.into_body(), self.http.max_body).await?;
        match &self.http.answer_body {
            Some(text) if !find(&body, text.as_bytes()) => Err(Failure::answer(format!(
                "the first {} bytes of the body do not contain `{text}`",
                body.len()
            ))),
            _ => Ok(()),
        }
    }

    fn request(&self, to: SocketAddr) -> std::result::Result<Request<Empty<Bytes>>, Failure> {
        let http = &self.http;
        let named = http.tls.as_ref().and_then(|tls| tls.server_name.clone());
        let host = http
            .host
            .clone()
            .or(named)
            .unwrap_or_else(|| to.to_string());
        let method = match http.method {
            Method::Get => hyper::Method::GET,
            Method::Head => hyper::Method::HEAD,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(&http.path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, "katran-health")
            .header(header::CONNECTION, "close");
        for (name, value) in &http.headers {
            request = request.header(name, value);
        }
        request.body(Empty::new()).map_err(Failure::not_sent)
    }
}

/// The beginning of a body, up to `most` bytes.
async fn read(mut body: Incoming, most: usize) -> std::result::Result<Vec<u8>, Failure> {
    let mut read = Vec::new();
    while read.len() < most {
        let Some(frame) = body.frame().await else {
            break;
        };
        let frame = frame.map_err(failed)?;
        if let Ok(data) = frame.into_data() {
            let room = most - read.len();
            read.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(read)
}

fn find(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

/// An error of the exchange, from the connection or from the answer.
fn failed(error: hyper::Error) -> Failure {
    let mut below = std::error::Error::source(&error);
    let io = std::iter::from_fn(|| {
        let this = below?;
        below = this.source();
        Some(this)
    });
    let io = io.filter_map(|error| error.downcast_ref::<io::Error>());
    let cause = match io.last() {
        Some(error) => super::cause(error),
        None if error.is_incomplete_message() || error.is_closed() => Cause::Closed,
        None if error.is_parse() => Cause::Answer,
        None => Cause::Other,
    };
    Failure::Failed(cause, format!("HTTP: {}", chain(&error)))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}
