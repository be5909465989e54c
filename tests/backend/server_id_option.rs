//! The sockops program of both ends: loading, attaching to cgroups, and what it refuses. What it writes
//! is shown end to end in `tests/e2e/server_ids.rs`, and here on connections over the loopback.

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

use crate::common;

/// A connection between a listener and a client in their groups, and ten bytes back and forth, so often.
fn talk(host: &Host, server: &Cgroup, client: &Cgroup, rounds: usize) {
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener = server.run(|| host.run(|| TcpListener::bind(any).unwrap()));
    exchange(host, &listener, client, rounds);
}

fn exchange(host: &Host, listener: &TcpListener, client: &Cgroup, rounds: usize) {
    let address = listener.local_addr().unwrap();
    let connect = || host.run(|| TcpStream::connect(address).unwrap());
    let mut out = client.run(connect);
    let (mut back, _) = listener.accept().unwrap();
    let mut bytes = [0; 10];
    for _ in 0..rounds {
        out.write_all(&bytes).unwrap();
        back.read_exact(&mut bytes).unwrap();
        back.write_all(&bytes).unwrap();
        out.read_exact(&mut bytes).unwrap();
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

    // Nobody of the other group is concerned, and whoever does not understand the option is unharmed.
    talk(&host, &others, &others, 3);
    assert_eq!(server.counters().unwrap(), Default::default());
    talk(&host, &others, &clients, 3);
    assert_eq!(client.counters().unwrap(), Default::default());
    talk(&host, &servers, &others, 3);
    let alone = server.counters().unwrap();
    assert_eq!((alone.served, alone.heard), (1, 0));
    // In the SYN-ACK, and in every packet, for nobody repeats it.
    assert!(alone.written >= 4, "{alone:?}");

    talk(&host, &servers, &clients, 20);
    let counters = server.counters().unwrap();
    assert_eq!(counters.served, 2);
    // The client has it from the SYN-ACK: the server writes it only until it hears it itself.
    let written = counters.written - alone.written;
    assert!((1..5).contains(&written), "{counters:?}");
    let heard = client.counters().unwrap();
    assert_eq!((heard.served, heard.heard), (0, 1));
    assert!(heard.written >= 20, "in every packet: {heard:?}");

    // A server in front of another one is both.
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
fn what_cannot_be_is_refused() {
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
    // Programs of several owners are attached side by side.
    let mut other = ServerIdOption::client().unwrap();
    other.attach(group.path()).unwrap();
    option.attach(group.path()).unwrap();
    let missing = common::faults::without_capabilities(
        &[caps::Capability::CAP_BPF, caps::Capability::CAP_SYS_ADMIN],
        || ServerIdOption::client().unwrap_err(),
    );
    assert!(matches!(missing, Error::Privilege { .. }), "{missing}");
}
