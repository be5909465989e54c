//! Probes of servers on the loopback interface: good ones, and those that hang, trickle or have the
//! wrong certificate.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rcgen::CertifiedKey;
use rcgen::generate_simple_self_signed;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::board::Target;
use super::check::Check;
use super::check::Http;
use super::check::Method;
use super::check::Tls;
use super::check::Trust;
use super::outcome::Cause;
use super::outcome::Outcome;
use super::probe::Authorities;
use super::probe::Place;
use super::probe::Probe;
use crate::types::Vip;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A server on the loopback interface that handles each connection with `answer`.
pub(super) async fn serve<F>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream));
        }
    });
    address
}

/// Reads a request and returns its head.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A server that sends this to every client, and waits for the end.
async fn says(text: &'static str) -> SocketAddr {
    serve(move |mut stream| async move {
        request(&mut stream).await;
        // A client may be gone once it has what it wants.
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.read_u8().await;
    })
    .await
}

pub(super) async fn ask(check: &Check, to: SocketAddr) -> Outcome {
    within(PATIENCE, check, to).await
}

pub(super) async fn within(limit: Duration, check: &Check, to: SocketAddr) -> Outcome {
    let probe = Probe::new(check, &mut Authorities::default()).unwrap();
    let (living, _last) = mpsc::channel(1);
    let asked = tokio::time::timeout(limit, probe.ask(place(to), living)).await;
    asked.unwrap_or_else(|_| Outcome::Failed(Cause::Timeout, "too late".to_owned()))
}

pub(super) fn place(to: SocketAddr) -> Place {
    let target = Target {
        vip: Vip::tcp(to),
        real: to.ip(),
    };
    Place {
        target,
        to,
        mark: None,
    }
}

pub(super) fn why(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed(_, why) => why,
        other => panic!("{other:?}"),
    }
}

fn http(change: impl FnOnce(&mut Http)) -> Check {
    let mut http = Http::new("/health?a=b");
    change(&mut http);
    http.into()
}

/// A closed port of the loopback interface. The socket keeps it from others.
fn nobody() -> (SocketAddr, TcpSocket) {
    let bound = TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (bound.local_addr().unwrap(), bound)
}

#[tokio::test]
async fn a_connection_is_accepted_or_refused() {
    let open = serve(|_| async {}).await;
    assert_eq!(ask(&Check::Tcp, open).await, Outcome::Passed);
    let (closed, _bound) = nobody();
    for check in [Check::Tcp, http(|_| ())] {
        let refused = why(ask(&check, closed).await);
        assert!(refused.contains("refused"), "{refused}");
    }
    // The missing route is this host's own.
    let nowhere = ask(&Check::Tcp, "255.255.255.255:80".parse().unwrap()).await;
    assert!(matches!(nowhere, Outcome::NotSent(_)), "{nowhere:?}");
}

#[tokio::test]
async fn statuses_headers_and_bodies_are_looked_at() {
    let chunked = says(
        "HTTP/1.1 200 OK\r\nX-State: all green\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab\n\r\n5\r\nready\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!(ask(&http(|_| ()), chunked).await, Outcome::Passed);
    let header = |value: &str| Some(("x-state".to_owned(), value.to_owned()));
    let green = http(|http| http.answer_header = header("green"));
    assert_eq!(ask(&green, chunked).await, Outcome::Passed);
    let red = http(|http| http.answer_header = header("red"));
    assert!(why(ask(&red, chunked).await).contains("no header x-state with `red`"));
    // Across chunks.
    let body = |text: &str| http(|http| http.answer_body = Some(text.to_owned()));
    assert_eq!(ask(&body("b\nre"), chunked).await, Outcome::Passed);
    let other = why(ask(&body("not"), chunked).await);
    assert!(
        other.contains("the first 8 bytes of the body do not contain `not`"),
        "{other}"
    );
    let unavailable = says("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(why(ask(&http(|_| ()), unavailable).await), "status 503");
    let wanted = http(|http| http.statuses = vec![200..=200, 500..=599]);
    assert_eq!(ask(&wanted, unavailable).await, Outcome::Passed);
    let nonsense = why(ask(&http(|_| ()), says("SSH-2.0-x\r\n\r\n").await).await);
    assert!(nonsense.contains("HTTP"), "{nonsense}");
}

#[tokio::test]
async fn a_request_has_what_it_was_told() {
    let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let server = serve(move |mut stream| {
        let sender = sender.clone();
        async move {
            sender.send(request(&mut stream).await).unwrap();
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    let check = http(|http| {
        http.method = Method::Head;
        http.host = Some("www.example.com".to_owned());
        http.headers = vec![("X-Probe".to_owned(), "yes please".to_owned())];
    });
    assert_eq!(ask(&check, server).await, Outcome::Passed);
    let head = requests.recv().await.unwrap().to_lowercase();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("head /health?a=b http/1.1"));
    let lines: Vec<_> = lines.collect();
    for line in [
        "host: www.example.com",
        "x-probe: yes please",
        "connection: close",
    ] {
        assert!(lines.contains(&line), "{head}");
    }
}

/// Whatever a server does, only a complete answer in time counts.
#[tokio::test]
async fn servers_that_hang_or_trickle_are_down() {
    let limit = Duration::from_millis(300);
    let hangs = serve(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let trickles = serve(|mut stream| async move {
        request(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
        for byte in head.iter().chain([b'.'; 1000].iter()) {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let check = http(|_| ());
    for server in [hangs, trickles] {
        let began = Instant::now();
        assert_eq!(why(within(limit, &check, server).await), "too late");
        assert!(began.elapsed() < PATIENCE);
    }
    let cut_off = says("HTTP/1.1 200 OK\r\nConte").await;
    assert_eq!(why(within(limit, &check, cut_off).await), "too late");
    let ends = serve(|mut stream| async move {
        request(&mut stream).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")
            .await;
    })
    .await;
    assert!(why(ask(&check, ends).await).contains("HTTP"));
}

/// Only the beginning of an endless body is read, and an endless head is no answer.
#[tokio::test]
async fn what_is_read_is_bounded() {
    async fn endless(mut stream: TcpStream, head: &'static str, line: &'static str) {
        request(&mut stream).await;
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(line.as_bytes()).await.is_ok() {}
    }
    let body = serve(|stream| endless(stream, "HTTP/1.1 200 OK\r\n\r\n", "no end of it\n")).await;
    assert_eq!(ask(&http(|_| ()), body).await, Outcome::Passed);
    let check = http(|http| {
        http.answer_body = Some("something else".to_owned());
        http.max_body = 1000;
    });
    assert!(why(ask(&check, body).await).contains("first 1000 bytes"));
    for line in ["X-Again: and again\r\n", "X"] {
        let head = serve(move |stream| endless(stream, "HTTP/1.1 200 OK\r\n", line)).await;
        let refused = why(ask(&http(|_| ()), head).await);
        assert!(refused.contains("HTTP"), "{refused}");
    }
}

/// A web server with a certificate for this name; returns the certificate too.
async fn secure(name: &str) -> (SocketAddr, String) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                answer(&mut stream, name).await;
            }
        }
    });
    (server.await, cert.pem())
}

async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), name: Option<String>) {
    request(stream).await;
    let name = name.unwrap_or("nobody".to_owned());
    let head = format!("HTTP/1.1 200 OK\r\nX-Asked: {name}\r\nContent-Length: 0\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.shutdown().await;
}

#[tokio::test]
async fn certificates_are_looked_at_as_is_wanted() {
    let (server, pem) = secure("www.example.com").await;
    let asked = |name: &'static str, trust: &Trust, header: &'static str| {
        let tls = Tls {
            server_name: Some(name.to_owned()),
            trust: trust.clone(),
        };
        http(|http| {
            http.tls = Some(tls);
            http.answer_header = Some(("X-Asked".to_owned(), header.to_owned()));
        })
    };
    let own_pem = pem.clone();
    let own = Trust::Authorities(pem);
    let good = asked("www.example.com", &own, "www.example.com");
    assert_eq!(ask(&good, server).await, Outcome::Passed);
    let other = why(ask(&asked("other.example.com", &own, ""), server).await);
    assert!(
        other.starts_with("TLS: ") && other.contains("not valid for name"),
        "{other}"
    );
    let (_, unrelated) = secure("www.example.com").await;
    let unknown = asked("www.example.com", &Trust::Authorities(unrelated), "");
    assert!(why(ask(&unknown, server).await).starts_with("TLS: "));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &own_pem).unwrap();
    let of_file = Trust::File(file.path().to_owned());
    let good = asked("www.example.com", &of_file, "www.example.com");
    assert_eq!(ask(&good, server).await, Outcome::Passed);
    let any = asked("other.example.com", &Trust::Any, "other.example.com");
    assert_eq!(ask(&any, server).await, Outcome::Passed);
    // Without a name there is no SNI.
    let mut nameless =
        http(|http| http.answer_header = Some(("X-Asked".to_owned(), "nobody".to_owned())));
    if let Check::Http(http) = &mut nameless {
        http.tls = Some(Tls::any());
    }
    assert_eq!(ask(&nameless, server).await, Outcome::Passed);
    // One without TLS, and one that hangs in the handshake.
    let plain = says("HTTP/1.1 200 OK\r\n\r\n").await;
    assert_eq!(
        why(within(Duration::from_millis(300), &any, plain).await),
        "too late"
    );
    assert!(why(ask(&any, serve(|_| async {}).await).await).starts_with("TLS: "));
}

/// The causes of failures.
#[tokio::test]
async fn failures_have_a_cause() {
    let short = Duration::from_millis(300);
    let (closed, _bound) = nobody();
    let closes = serve(|mut stream| async move {
        request(&mut stream).await;
    })
    .await;
    let trickles = says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab").await;
    let tls = http(|http| http.tls = Some(Tls::any()));
    for (check, to, expected) in [
        (&http(|_| ()), closed, Cause::Refused),
        (&http(|_| ()), closes, Cause::Closed),
        (
            &http(|_| ()),
            says("HTTP/1.1 404 No\r\n\r\n").await,
            Cause::Answer,
        ),
        (
            &http(|_| ()),
            says("SSH-2.0-OpenSSH\r\n").await,
            Cause::Answer,
        ),
        (&tls, serve(|_| async {}).await, Cause::Handshake),
        (&http(|_| ()), trickles, Cause::Timeout),
    ] {
        let limit = match expected {
            Cause::Timeout => short,
            _ => PATIENCE,
        };
        let outcome = within(limit, check, to).await;
        match outcome {
            Outcome::Failed(cause, _) => assert_eq!(cause, expected),
            other => panic!("{other:?}, not {expected}"),
        }
    }
}

/// Both checks see the file at one moment, whatever happens to it later.
#[tokio::test]
async fn a_file_is_read_once_for_all_checks() {
    let (_, pem) = secure("www.example.com").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    let check = |path: &str| {
        let mut check = Http::new(path);
        check.tls = Some(Tls {
            server_name: None,
            trust: Trust::File(file.path().to_owned()),
        });
        Check::from(check)
    };
    let mut authorities = Authorities::default();
    Probe::new(&check("/one"), &mut authorities)
        .map(drop)
        .unwrap();
    std::fs::write(file.path(), "").unwrap();
    Probe::new(&check("/two"), &mut authorities)
        .map(drop)
        .unwrap();
    let mut others = Authorities::default();
    assert!(Probe::new(&check("/two"), &mut others).is_err());
}

#[test]
fn what_is_no_certificate_or_name_is_refused() {
    let refused = |tls: Tls| {
        let check = http(|http| http.tls = Some(tls));
        let probe = Probe::new(&check, &mut Authorities::default());
        probe.err().unwrap().to_string()
    };
    let with = |pem: &str| Tls {
        server_name: None,
        trust: Trust::Authorities(pem.to_owned()),
    };
    assert!(refused(with("")).contains("at least one"));
    let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(refused(with(empty)).contains("not a certificate"));
    // Opening a socket gives another error: what is not a regular file is not opened.
    let socket = std::env::temp_dir().join(format!("katran-no-file-{}", std::process::id()));
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let of_socket = refused(Tls {
        server_name: None,
        trust: Trust::File(socket.clone()),
    });
    std::fs::remove_file(&socket).unwrap();
    assert!(of_socket.contains("not a regular file"), "{of_socket}");
    for path in ["/nowhere/to/be/found", "/", "/dev/zero"] {
        let tls = Tls {
            server_name: None,
            trust: Trust::File(path.into()),
        };
        let said = refused(tls);
        assert!(
            said.starts_with(&format!("configuration: authorities = {path}: ")),
            "{said}"
        );
    }
    let mut named = Tls::any();
    named.server_name = Some("a b".to_owned());
    assert!(refused(named).contains("a DNS name"));
}
