//! The ready-made network, with plain servers in the load balancer's place.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use katran_lab::Lab;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::TcpServer;
use katran_lab::UdpClient;
use katran_lab::http_get;
use katran_lab::require_root;

/// Connections by the answering host's name, from many ports.
fn spread(lab: &Lab, vip: IpAddr) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..60 {
        let mut client = TcpClient::connect(&lab.client, (vip, 80).into()).unwrap();
        *answers.entry(client.ask("who?").unwrap()).or_default() += 1;
    }
    answers
}

#[test]
fn every_host_reaches_every_other() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let ping = |from: &katran_lab::Host, options: &str, to: IpAddr| {
        from.tool("ping", &format!("-c 1 -W 2 {options} {to}"))
            .unwrap();
    };
    for backend in &lab.backends {
        // The largest packet on the client's link.
        ping(&lab.client, "-M do -s 1472", backend.v4.into());
        ping(&lab.client, "-M do -s 1452", backend.v6.into());
        for balancer in &lab.balancers {
            // There is room for the outer header behind the router.
            ping(&balancer.host, "-M do -s 1552", backend.v4.into());
            ping(&balancer.host, "-M do -s 1552", backend.v6.into());
        }
    }
}

#[test]
fn backends_serve_on_their_own_addresses_and_answer_from_vips() {
    require_root();
    let lab = Lab::new(LabConfig {
        backends: 3,
        ..LabConfig::default()
    })
    .unwrap();
    let _tcp = lab.serve_tcp(80).unwrap();
    let udp = lab.serve_udp(53).unwrap();
    for (i, backend) in lab.backends.iter().enumerate() {
        let name = format!("backend{i}");
        for address in [IpAddr::from(backend.v4), IpAddr::from(backend.v6)] {
            let mut client = TcpClient::connect(&lab.client, (address, 80).into()).unwrap();
            assert_eq!(client.ask("who?").unwrap(), name);
            let client = UdpClient::connect(&lab.client, (address, 53).into()).unwrap();
            assert_eq!(client.ask(b"who?").unwrap(), name);
        }
        assert_eq!(udp[i].received(), 2);
        // The VIPs are on `lo`.
        for vip in [lab.vip4(), lab.vip6()] {
            let client = UdpClient::connect(&backend.host, (vip, 53).into()).unwrap();
            assert_eq!(client.ask(b"who?").unwrap(), name);
        }
    }
}

#[test]
fn the_router_spreads_vips_over_the_balancers_in_the_route() {
    require_root();
    let lab = Lab::new(LabConfig {
        balancers: 3,
        backends: 0,
        ..LabConfig::default()
    })
    .unwrap();
    let mut servers = Vec::new();
    for balancer in &lab.balancers {
        for (vip, bits) in [(lab.vip4(), 32), (lab.vip6(), 128)] {
            balancer
                .host
                .ip(&format!("addr add {vip}/{bits} dev lo"))
                .unwrap();
        }
        servers.push(TcpServer::start(&balancer.host, 80, balancer.host.name()).unwrap());
    }
    let names = |who: &[&str]| who.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
    let all = names(&["balancer0", "balancer1", "balancer2"]);
    let seen = |vip| spread(&lab, vip).into_keys().collect::<Vec<_>>();

    for vip in [lab.vip4(), lab.vip6()] {
        assert_eq!(seen(vip), all);
        lab.remove_balancer_route(1).unwrap();
        assert_eq!(seen(vip), names(&["balancer0", "balancer2"]));
        lab.remove_balancer_route(2).unwrap();
        assert_eq!(seen(vip), names(&["balancer0"]));
        lab.remove_balancer_route(0).unwrap();
        let error = TcpClient::connect(&lab.client, (vip, 80).into()).unwrap_err();
        // The router answers "host unreachable" in IPv4 and "no route" in IPv6.
        let expected = match vip {
            IpAddr::V4(_) => std::io::ErrorKind::HostUnreachable,
            IpAddr::V6(_) => std::io::ErrorKind::NetworkUnreachable,
        };
        assert_eq!(error.kind(), expected);
        for i in 0..3 {
            lab.add_balancer_route(i).unwrap();
        }
        assert_eq!(seen(vip), all);
    }
}

#[test]
fn the_gateway_and_interface_addresses_are_the_real_ones() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let text = |mac: katran_lab::MacAddr| mac.map(|b| format!("{b:02x}")).join(":");
    let balancer = &lab.balancers[0];
    let own = balancer.host.ip("link show eth0").unwrap();
    assert!(own.contains(&text(balancer.mac)), "{own}");
    let gateway = &balancer.router_interface;
    let gateway = lab.router.ip(&format!("link show {gateway}")).unwrap();
    assert!(gateway.contains(&text(balancer.gateway_mac)), "{gateway}");
    let backend = &lab.backends[1];
    let own = backend.host.ip("link show eth0").unwrap();
    assert!(own.contains(&text(backend.mac)), "{own}");
}

#[test]
fn a_narrow_path_to_the_client_is_told_by_the_router() {
    require_root();
    let lab = Lab::new(LabConfig::default()).unwrap();
    let _servers = lab.serve_tcp(80).unwrap();
    lab.limit_client_mtu(1300).unwrap();
    let backend = &lab.backends[0];
    for address in [IpAddr::from(backend.v4), IpAddr::from(backend.v6)] {
        let mut client = TcpClient::connect(&lab.client, (address, 80).into()).unwrap();
        assert_eq!(client.ask("fill 50000").unwrap().len(), 50_009);
    }
    let learnt = backend.host.ip("route get 192.0.2.2").unwrap();
    assert!(learnt.contains("mtu 1300"), "{learnt}");
    let learnt = backend.host.ip("route get 2001:db8:c::2").unwrap();
    assert!(learnt.contains("mtu 1300"), "{learnt}");
}

#[test]
fn http_is_spoken() {
    require_root();
    let lab = Lab::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    })
    .unwrap();
    let backend = &lab.backends[0];
    let listener = backend
        .host
        .run(|| std::net::TcpListener::bind("[::]:80"))
        .unwrap();
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1000];
            let length = std::io::Read::read(&mut stream, &mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            assert!(request.starts_with("GET /name HTTP/1.0\r\n"), "{request}");
            let answer = b"HTTP/1.1 200 OK\r\nServer: me\r\nContent-Length: 9\r\n\r\nbackend0\n";
            std::io::Write::write_all(&mut stream, answer).unwrap();
        }
    });
    for address in [IpAddr::from(backend.v4), IpAddr::from(backend.v6)] {
        let server = SocketAddr::from((address, 80));
        let response = http_get(&lab.client, server, "/name", Duration::from_secs(2)).unwrap();
        assert_eq!(response.status, 200);
        assert_eq!(response.header("Server"), Some("me"));
        assert_eq!(response.text(), "backend0");
    }
    server.join().unwrap();
}

#[test]
fn too_many_hosts_are_refused() {
    let error = Lab::new(LabConfig {
        backends: 251,
        ..LabConfig::default()
    })
    .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}
