//! The sockops program of both ends: loading, attaching to cgroups, and refusals. What it writes is
//! tested end to end in `tests/e2e/server_ids.rs`, and here on loopback connections.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;

use katran::Error;
use katran::ServerIdOption;
use katran_lab::Cgroup;
use katran_lab::Host;
use katran_lab::require_root;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use crate::common;

/// Connects a client to a listener, each in its group, and sends ten bytes back and forth this many
/// times.
fn talk(host: &Host, server: &Cgroup, client: &Cgroup, rounds: usize) {
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener = server.run(|| host.run(|| TcpListener::bind(any).unwrap()));
    exchange(host, &listener, client, rounds);
}

fn exchange(host: &Host, listener: &TcpListener, client: &Cgroup, rounds: usize) {
    let (mut out, mut back) = connect(host, listener, client);
    rally(&mut out, &mut back, rounds);
}

/// Both ends of a connection: the client's, then the server's.
pub(super) fn connect(
    host: &Host,
    listener: &TcpListener,
    client: &Cgroup,
) -> (TcpStream, TcpStream) {
    let address = listener.local_addr().unwrap();
    let connect = || host.run(|| TcpStream::connect(address).unwrap());
    let out = client.run(connect);
    let (back, _) = listener.accept().unwrap();
    (out, back)
}

pub(super) fn rally(out: &mut TcpStream, back: &mut TcpStream, rounds: usize) {
    let mut bytes = [0; 10];
    for _ in 0..rounds {
        out.write_all(&bytes).unwrap();
        back.read_exact(&mut bytes).unwrap();
        back.write_all(&bytes).unwrap();
        out.read_exact(&mut bytes).unwrap();
    }
}

/// An IPv4 TCP packet, reduced to what matters for the option.
struct Seen {
    from_port: u16,
    /// SYN and ACK.
    opens: [bool; 2],
    /// The option's kind and id.
    option: Option<(u8, u32)>,
}

/// The packet in a loopback frame; `None`: not TCP over IPv4.
fn look(frame: &[u8]) -> Option<Seen> {
    let packet = frame.get(14..).filter(|ip| ip[0] == 0x45 && ip[9] == 6)?;
    let tcp = &packet[20..];
    let mut options = &tcp[20..usize::from(tcp[12] >> 4) * 4];
    let mut option = None;
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => &[],
            (1, rest) => rest,
            (0xb6 | 0xb7, [6, a, b, c, d, ..]) => {
                assert_eq!(option, None, "two options in a packet");
                option = Some((*kind, u32::from_le_bytes([*a, *b, *c, *d])));
                &options[6..]
            }
            (_, [length, ..]) => &options[usize::from(*length)..],
            (_, []) => panic!("an option without a length"),
        };
    }
    Some(Seen {
        from_port: u16::from_be_bytes([tcp[0], tcp[1]]),
        opens: [tcp[13] & 2 != 0, tcp[13] & 16 != 0],
        option,
    })
}

#[test]
fn each_end_writes_its_own_kind_of_option() {
    const ALL: i32 = 3; // ETH_P_ALL
    const ID: u32 = 0x1234_5678;
    require_root();
    let host = Host::new("host").unwrap();
    let [servers, clients] = [(); 2].map(|()| Cgroup::new().unwrap());
    let mut server = ServerIdOption::server(ID).unwrap();
    let mut client = ServerIdOption::client().unwrap();
    server.attach(servers.path()).unwrap();
    client.attach(clients.path()).unwrap();
    let mut wire = host.run(|| {
        let protocol = Protocol::from(i32::from((ALL as u16).to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener = servers.run(|| host.run(|| TcpListener::bind(any).unwrap()));
    let port = listener.local_addr().unwrap().port();
    exchange(&host, &listener, &clients, 5);

    let mut frame = [0; 2048];
    let mut written = [0; 2];
    while let Ok(length) = wire.read(&mut frame) {
        let Some(seen) = look(&frame[..length]) else {
            continue;
        };
        match (seen.from_port == port, seen.opens, seen.option) {
            (false, [true, false], option) => assert_eq!(option, None, "a SYN"),
            (true, [true, true], option) => assert_eq!(option, Some((0xb6, ID)), "a SYN-ACK"),
            (true, _, None) => {}
            (true, _, option) => assert_eq!(option, Some((0xb6, ID))),
            (false, _, option) => assert_eq!(option, Some((0xb7, ID))),
        }
        written[usize::from(seen.option.is_some_and(|(kind, _)| kind == 0xb7))] += 1;
    }
    assert!(written[0] >= 1 && written[1] >= 5, "{written:?}");
}

#[test]
fn an_id_changes_while_servers_run_and_clients_report_what_they_heard() {
    require_root();
    let host = Host::new("host").unwrap();
    let [servers, clients, others] = [(); 3].map(|()| Cgroup::new().unwrap());
    let mut server = ServerIdOption::server(7).unwrap();
    let mut client = ServerIdOption::client().unwrap();
    server.attach(servers.path()).unwrap();
    client.attach(clients.path()).unwrap();
    assert_eq!((server.id(), client.id()), (Some(7), None));
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener = servers.run(|| host.run(|| TcpListener::bind(any).unwrap()));

    let (mut out, mut back) = connect(&host, &listener, &clients);
    assert_eq!(client.learned_id(&out).unwrap(), Some(7));
    assert_eq!(server.learned_id(&back).unwrap(), None, "the server's end");
    server.set_id(0x8000_0008).unwrap();
    assert_eq!(server.id(), Some(0x8000_0008));
    // The existing connection keeps its id; the next one gets the new id.
    rally(&mut out, &mut back, 3);
    assert_eq!(client.learned_id(&out).unwrap(), Some(7));
    let (mut later, mut later_back) = connect(&host, &listener, &clients);
    rally(&mut later, &mut later_back, 3);
    assert_eq!(client.learned_id(&later).unwrap(), Some(0x8000_0008));
    let zero = server.set_id(0).unwrap_err();
    assert!(matches!(zero, Error::InvalidConfig { .. }), "{zero}");
    assert_eq!(server.id(), Some(0x8000_0008), "the id is unchanged");

    // A socket that has received no id, and a descriptor that is no socket.
    let plain = host.run(|| TcpListener::bind(any).unwrap());
    let (plain_out, _plain_back) = connect(&host, &plain, &clients);
    assert_eq!(client.learned_id(&plain_out).unwrap(), None);
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = client.learned_id(&file).unwrap_err();
    assert!(matches!(error, Error::Kernel { .. }), "{error}");

    // Two servers on a host, each with its own id; then one whose cgroup had clients.
    let mut second = ServerIdOption::client().unwrap();
    second.attach(others.path()).unwrap();
    second.set_id(9).unwrap();
    let beside = others.run(|| host.run(|| TcpListener::bind(any).unwrap()));
    for (listener, id) in [(&listener, 0x8000_0008), (&beside, 9)] {
        let (out, _back) = connect(&host, listener, &clients);
        assert_eq!(client.learned_id(&out).unwrap(), Some(id));
    }
}

#[test]
fn a_client_repeats_what_a_server_writes() {
    require_root();
    let host = Host::new("host").unwrap();
    let [servers, clients, others] = [(); 3].map(|()| Cgroup::new().unwrap());
    let mut server = ServerIdOption::server(u32::MAX).unwrap();
    let mut client = ServerIdOption::client().unwrap();
    server.attach(servers.path()).unwrap();
    client.attach(clients.path()).unwrap();

    // The other group is not affected, nor is a peer without the option.
    talk(&host, &others, &others, 3);
    assert_eq!(server.counters().unwrap(), Default::default());
    talk(&host, &others, &clients, 3);
    assert_eq!(client.counters().unwrap(), Default::default());
    talk(&host, &servers, &others, 3);
    let alone = server.counters().unwrap();
    assert_eq!((alone.served, alone.heard), (1, 0));
    // In the SYN-ACK and in every later packet, as the client never repeats it.
    assert!(alone.written >= 4, "{alone:?}");

    talk(&host, &servers, &clients, 20);
    let counters = server.counters().unwrap();
    assert_eq!(counters.served, 2);
    // The client has it from the SYN-ACK: the server stops writing it once the client repeats it.
    let written = counters.written - alone.written;
    assert!((1..5).contains(&written), "{counters:?}");
    let heard = client.counters().unwrap();
    assert_eq!((heard.served, heard.heard), (0, 1));
    assert!(heard.written >= 20, "in every packet: {heard:?}");

    // A server in front of another one is also a client.
    client.detach(clients.path()).unwrap();
    let mut both = ServerIdOption::server(7).unwrap();
    both.attach(clients.path()).unwrap();
    talk(&host, &servers, &clients, 5);
    talk(&host, &clients, &others, 5);
    let counters = both.counters().unwrap();
    assert_eq!((counters.served, counters.heard), (1, 1));
}

#[test]
fn a_socket_that_listened_before_writes_from_the_second_packet_on() {
    require_root();
    let host = Host::new("host").unwrap();
    let [servers, clients] = [(); 2].map(|()| Cgroup::new().unwrap());
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener = servers.run(|| host.run(|| TcpListener::bind(any).unwrap()));
    let mut server = ServerIdOption::server(1).unwrap();
    let mut client = ServerIdOption::client().unwrap();
    server.attach(servers.path()).unwrap();
    client.attach(clients.path()).unwrap();
    exchange(&host, &listener, &clients, 20);
    assert_eq!(client.counters().unwrap().heard, 1);
    assert!(client.counters().unwrap().written >= 18);
    // Detached, it leaves connections alone.
    server.detach(servers.path()).unwrap();
    let before = server.counters().unwrap();
    exchange(&host, &listener, &clients, 3);
    assert_eq!(server.counters().unwrap(), before);
    assert_eq!(client.counters().unwrap().heard, 1);
}

#[test]
fn invalid_requests_are_refused() {
    require_root();
    let error = ServerIdOption::server(0).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    let group = Cgroup::new().unwrap();
    let mut option = ServerIdOption::server(1).unwrap();
    option.attach(group.path()).unwrap();
    let twice = option.attach(group.path()).unwrap_err();
    assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
    let elsewhere = option.attach("/proc").unwrap_err();
    assert!(
        matches!(elsewhere, Error::Unsupported { .. }),
        "{elsewhere}"
    );
    let absent = option.attach("/proc/no/such/cgroup").unwrap_err();
    assert!(matches!(absent, Error::Kernel { .. }), "{absent}");
    option.detach(group.path()).unwrap();
    let gone = option.detach(group.path()).unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    // Several owners' programs can be attached side by side.
    let mut other = ServerIdOption::client().unwrap();
    other.attach(group.path()).unwrap();
    option.attach(group.path()).unwrap();
    let missing = common::faults::without_capabilities(
        &[caps::Capability::CAP_BPF, caps::Capability::CAP_SYS_ADMIN],
        || ServerIdOption::client().unwrap_err(),
    );
    assert!(matches!(missing, Error::Privilege { .. }), "{missing}");
}
