//! Probes by datagrams, DNS, QUIC, half-open connections and programs, of servers on the loopback
//! interface.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::CertifiedKey;
use rcgen::generate_simple_self_signed;
use rustls::pki_types::PrivateKeyDer;
use simple_dns::CLASS;
use simple_dns::Name;
use simple_dns::Packet;
use simple_dns::RCODE;
use simple_dns::ResourceRecord;
use simple_dns::rdata::A;
use simple_dns::rdata::RData;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::check::Answer;
use super::check::Check;
use super::check::Command;
use super::check::Dns;
use super::check::Quic;
use super::check::Tls;
use super::check::Trust;
use super::check::Udp;
use super::outcome::Outcome;
use super::probe::Authorities;
use super::probe::Probe;
use super::probe_tests::PATIENCE;
use super::probe_tests::ask;
use super::probe_tests::place;
use super::probe_tests::serve;
use super::probe_tests::why;
use super::probe_tests::within;
use crate::types::Protocol;

const SHORT: Duration = Duration::from_millis(200);

/// A server that answers each datagram with these.
async fn datagrams(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut question = [0; 2000];
        loop {
            let (length, from) = socket.recv_from(&mut question).await.unwrap();
            for answer in answers(&question[..length]) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    address
}

/// A port that takes datagrams from one address only, which is another one's. The socket keeps it
/// from others.
async fn closed() -> (SocketAddr, UdpSocket) {
    let [socket, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0"));
    let (socket, other) = (socket.await.unwrap(), other.await.unwrap());
    socket.connect(other.local_addr().unwrap()).await.unwrap();
    (socket.local_addr().unwrap(), socket)
}

#[tokio::test]
async fn datagrams_are_answered_as_is_wanted() {
    let server = datagrams(|question| vec![b"late".to_vec(), [b"re: ", question].concat()]).await;
    let check = |answer: Answer| {
        let mut udp = Udp::new("ping");
        udp.answer = answer;
        Check::from(udp)
    };
    for good in [
        Answer::Any,
        Answer::Exactly(b"re: ping".to_vec()),
        Answer::Contains(b": p".to_vec()),
        Answer::Contains(Vec::new()),
    ] {
        assert_eq!(ask(&check(good), server).await, Outcome::Passed);
    }
    for bad in [Answer::Echo, Answer::Exactly(b"re:".to_vec())] {
        assert_eq!(why(within(SHORT, &check(bad), server).await), "too late");
    }
    let echo = datagrams(|question| vec![question.to_vec()]).await;
    assert_eq!(ask(&check(Answer::Echo), echo).await, Outcome::Passed);
    let silent = datagrams(|_| Vec::new()).await;
    assert_eq!(
        why(within(SHORT, &check(Answer::Any), silent).await),
        "too late"
    );
    let (closed, _bound) = closed().await;
    let refused = why(ask(&check(Answer::Any), closed).await);
    assert!(refused.contains("refused"), "{refused}");
    let long = Check::from(Udp::new(vec![0; 1401])).validate().unwrap_err();
    assert!(long.to_string().contains("1,400"), "{long}");
}

/// The answer of a name server with one name.
fn resolve(query: &[u8]) -> Vec<u8> {
    let query = Packet::parse(query).unwrap();
    let mut reply = Packet::new_reply(query.id());
    reply.questions = query.questions.clone();
    let asked = query.questions[0].qname.to_string().to_lowercase();
    match asked.as_str() {
        "www.example.com" => {
            let address = u32::from_be_bytes([192, 0, 2, 7]);
            let record = RData::A(A { address });
            let name = Name::new("www.example.com").unwrap();
            reply
                .answers
                .push(ResourceRecord::new(name, CLASS::IN, 60, record));
        }
        _ => *reply.rcode_mut() = RCODE::NameError,
    }
    reply.build_bytes_vec().unwrap()
}

#[tokio::test]
async fn queries_are_answered_by_udp_and_tcp() {
    let by_udp = datagrams(|query| {
        // Ignored: another id, the query itself, and something that is not DNS.
        let mut other = resolve(query);
        other[0] ^= 1;
        vec![other, query.to_vec(), b"no DNS".to_vec(), resolve(query)]
    })
    .await;
    let by_tcp = serve(|mut stream| async move {
        let mut query = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut query).await.unwrap();
        let reply = resolve(&query);
        stream.write_u16(reply.len() as u16).await.unwrap();
        stream.write_all(&reply).await.unwrap();
    })
    .await;
    for (server, protocol) in [(by_udp, Protocol::Udp), (by_tcp, Protocol::Tcp)] {
        let check = |name: &str, change: fn(&mut Dns)| {
            let mut dns = Dns::new(name);
            dns.protocol = protocol;
            change(&mut dns);
            Check::from(dns)
        };
        let known = "www.example.com";
        assert_eq!(ask(&check(known, |_| ()), server).await, Outcome::Passed);
        assert_eq!(
            ask(&check("WWW.example.com.", |_| ()), server).await,
            Outcome::Passed
        );
        let address = check(known, |dns| dns.address = Some([192, 0, 2, 7].into()));
        assert_eq!(ask(&address, server).await, Outcome::Passed);
        let other = check(known, |dns| dns.address = Some([192, 0, 2, 8].into()));
        assert_eq!(
            why(ask(&other, server).await),
            "192.0.2.8 is not among the answers"
        );
        let unknown = "x.example.com";
        assert_eq!(
            why(ask(&check(unknown, |_| ()), server).await),
            "response code 3"
        );
        let wanted = check(unknown, |dns| dns.codes = vec![0, 3]);
        assert_eq!(ask(&wanted, server).await, Outcome::Passed);
    }
    // Cut off, and hanging.
    let cut = serve(|mut stream| async move {
        stream.write_all(&[0, 100, 1, 2]).await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let mut dns = Dns::new("www.example.com");
    dns.protocol = Protocol::Tcp;
    let outcome = why(within(SHORT, &Check::from(dns), cut).await);
    assert!(!outcome.is_empty());
    for name in ["", &"a".repeat(64), "ä.example"] {
        assert!(Check::from(Dns::new(name)).validate().is_err(), "{name}");
    }
}

#[tokio::test]
async fn quic_handshakes_are_completed_or_not() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["quic.example.com".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h3".to_vec()];
    let config = QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(config));
    let server = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    connection.closed().await;
                }
            });
        }
    });
    let check = |name: &str, trust: Trust| {
        Quic::new(Tls {
            server_name: Some(name.to_owned()),
            trust,
        })
    };
    let own = Trust::Authorities(cert.pem());
    let good = Check::from(check("quic.example.com", own.clone()));
    assert_eq!(ask(&good, address).await, Outcome::Passed);
    let other = why(ask(&check("other.example.com", own).into(), address).await);
    assert!(other.starts_with("QUIC: "), "{other}");
    let any = check("other.example.com", Trust::Any);
    assert_eq!(ask(&any.clone().into(), address).await, Outcome::Passed);
    let mut protocol = any.clone();
    protocol.alpn = vec!["something else".to_owned()];
    assert!(why(ask(&protocol.into(), address).await).starts_with("QUIC: "));
    let hung = datagrams(|_| Vec::new()).await;
    assert_eq!(why(within(SHORT, &any.into(), hung).await), "too late");
}

/// The server's program sees only complete connections.
#[tokio::test]
async fn a_half_open_connection_is_none_for_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // A busy machine may close the socket only when the kernel's delayed acknowledgement, after 40
    // ms, has completed the connection.
    let (mut early, mut late) = (0, 0);
    while early < 20 {
        let began = Instant::now();
        assert_eq!(ask(&Check::Syn, address).await, Outcome::Passed);
        match began.elapsed() < Duration::from_millis(30) {
            true => early += 1,
            false => late += 1,
        }
        assert!(late < 500, "this machine is too busy");
    }
    assert_eq!(ask(&Check::Tcp, address).await, Outcome::Passed);
    // Earlier ones would be first in the queue.
    let mut whole = 0;
    while let Ok(accepted) = tokio::time::timeout(SHORT, listener.accept()).await {
        accepted.unwrap();
        whole += 1;
    }
    assert!((1..=1 + late).contains(&whole), "{whole}, {late} late");
    drop(listener);
    let reserved = TcpSocket::new_v4().unwrap();
    reserved.set_reuseaddr(true).unwrap();
    reserved.bind(address).unwrap();
    assert!(why(ask(&Check::Syn, address).await).contains("refused"));
}

fn shell(script: &str) -> Check {
    let mut command = Command::new("/bin/sh");
    command.arguments = vec!["-c".to_owned(), script.to_owned()];
    command.into()
}

#[tokio::test]
async fn programs_are_judged_by_their_status() {
    let to: SocketAddr = "127.0.0.1:8443".parse().unwrap();
    let environment = "test \"$KATRAN_ADDRESS $KATRAN_PORT $KATRAN_REAL $KATRAN_VIP ${KATRAN_MARK-none}\" = \
                       '127.0.0.1 8443 127.0.0.1 127.0.0.1:8443/tcp none'";
    assert_eq!(ask(&shell(environment), to).await, Outcome::Passed);
    let failed = why(ask(&shell("echo no disk >&2; echo said; exit 3"), to).await);
    assert_eq!(failed, "exit status: 3: no disk");
    let killed = why(ask(&shell("kill -9 $$"), to).await);
    assert!(killed.contains("signal: 9"), "{killed}");
    let lines = why(ask(&shell("printf 'a\\nb\\033[1m' >&2; exit 1"), to).await);
    assert_eq!(lines, "exit status: 1: a b [1m");
    // However much it writes.
    let long = why(ask(&shell("yes again | head -c 1000000 >&2; exit 1"), to).await);
    assert!((100..400).contains(&long.len()), "{long}");
    let missing = ask(&Command::new("/nowhere/to/be/found").into(), to).await;
    assert!(matches!(missing, Outcome::NotSent(_)), "{missing:?}");
    assert!(Check::from(Command::new("sh")).validate().is_err());
}

/// A handler for SIGCHLD would interrupt system calls of the embedder, whose signal it is.
#[tokio::test]
async fn programs_end_without_a_signal_handler() {
    let to: SocketAddr = "127.0.0.1:80".parse().unwrap();
    assert_eq!(ask(&shell("exit 0"), to).await, Outcome::Passed);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    assert_eq!(caught & 1 << (Signal::SIGCHLD as u32 - 1), 0, "{caught:x}");
}

/// At the timeout the program is killed with its children, and leaves no zombie.
#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    let script = format!(
        "sleep 1000 & echo $! >{0}; echo $$ >>{0}; mv {0} {0}.done; wait",
        pids.display()
    );
    let to: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let check = shell(&script);
    let probe = Probe::new(&check, &mut Authorities::default()).unwrap();
    let (living, mut last) = mpsc::channel(1);
    let done = pids.with_extension("done");
    let is_done = async {
        while !done.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // At its timeout a probe is dropped.
    tokio::select! {
        outcome = probe.ask(place(to), living) => panic!("{outcome:?}"),
        () = is_done => {}
    }
    let gone = tokio::time::timeout(PATIENCE, last.recv()).await;
    assert!(gone.is_ok(), "the shell runs on");
    let pids = std::fs::read_to_string(done).unwrap();
    let pids: Vec<u32> = pids.lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    let shell = format!("/proc/{}", pids[1]);
    assert!(!Path::new(&shell).exists(), "not even as a zombie");
    for pid in pids {
        // Another process may have to reap a killed child of the shell.
        let mut tries = 0;
        while is_running(pid) {
            tries += 1;
            assert!(tries < 3000, "{pid} runs on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// So is what it leaves in the background, however long its timeout is.
#[tokio::test]
async fn what_a_program_leaves_in_the_background_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    let script = format!("sleep 1000 & echo $! >{}; exit 0", pid.display());
    let to: SocketAddr = "127.0.0.1:80".parse().unwrap();
    assert_eq!(ask(&shell(&script), to).await, Outcome::Passed);
    let pid = std::fs::read_to_string(pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let mut tries = 0;
    while is_running(pid) {
        tries += 1;
        assert!(tries < 3000, "{pid} runs on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit(") ").next().unwrap_or_default();
    !state.is_empty() && !state.starts_with('Z')
}
