//! TCP connections by server id: both ends write the option, and the balancer follows it when ring
//! and flow table have changed.

use katran::Decap;
use katran::Features;
use katran::Real;
use katran::ServerId;
use katran::ServerIdOption;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::Cgroup;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::TcpServer;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// One has the top bit set.
const IDS: [u32; 3] = [1000, 70_000, 0x8000_0007];

struct Server {
    // Fields drop in this order: program and server before the group.
    option: ServerIdOption,
    _server: TcpServer,
    _group: Cgroup,
}

/// A site whose backends write their ids, and count connections.
fn site(config: LabConfig) -> (Site, Vec<Server>) {
    let mut site = Site::with(config, XdpMode::Native, |builder| {
        builder.features(Features::default() | Features::TCP_SERVER_ID)
    });
    site.decaps.clear();
    let servers = site.lab.backends.iter().zip(IDS).map(|(backend, id)| {
        let mut decap = Decap::builder().server_id(id).load().unwrap();
        backend
            .host
            .run(|| decap.attach(&backend.interface, XdpMode::Native).unwrap());
        site.decaps.push(decap);
        let group = Cgroup::new().unwrap();
        let mut option = ServerIdOption::server(id).unwrap();
        option.attach(group.path()).unwrap();
        let start = || TcpServer::start(&backend.host, PORT, backend.host.name()).unwrap();
        Server {
            option,
            _server: group.run(start),
            _group: group,
        }
    });
    let servers = servers.collect();
    (site, servers)
}

#[test]
fn connections_stay_with_their_server_when_ring_and_flow_table_are_lost() {
    let (mut site, servers) = site(LabConfig {
        backends: IDS.len(),
        ..LabConfig::default()
    });
    let clients = Cgroup::new().unwrap();
    let mut echo = ServerIdOption::client().unwrap();
    echo.attach(clients.path()).unwrap();

    for address in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::tcp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        site.add_service(vip, &reals);
        let ids = IDS.iter().zip(&reals);
        let ids: Vec<_> = ids.map(|(id, real)| ServerId::new(*id, *real)).collect();
        site.katran.server_ids_mut().add(&ids).unwrap();

        // Connections of clients that repeat the id, and of one that does not.
        let mut open: Vec<(TcpClient, String)> = Vec::new();
        for real in &reals {
            site.turn_to(vip, *real);
            for _ in 0..8 {
                let mut client = clients.run(|| site::connect(&site.lab.client, vip));
                let name = client.ask("who").unwrap();
                assert_eq!(name, site::backend_at(&site.lab, *real));
                open.push((client, name));
            }
        }
        let mut plain = site::connect(&site.lab.client, vip);
        let of_plain = plain.ask("who").unwrap();
        let before = site.katran.stats().tcp_server_id().unwrap();
        assert!(before.syn >= 25);

        // The ring leads to one backend, then to another; neither is that of the client that does
        // not repeat the id.
        let mut hosts = site.lab.backends.iter().map(|of| of.host.name());
        let last = hosts.position(|of| of != of_plain).unwrap();
        let last_name = site::backend_at(&site.lab, reals[last]);
        for real in [reals[(last + 1) % 3], reals[last]] {
            site.turn_to(vip, real);
            let mut moved = 0;
            for (client, name) in &mut open {
                // A packet without the id would go to the only real with a weight.
                let answer = site.katran.real_for_flow(&site::flow_of(client, vip));
                let by_ring = answer.unwrap().unwrap().real.unwrap();
                moved += u32::from(site::backend_at(&site.lab, by_ring) != *name);
                assert_eq!(client.ask("who").unwrap(), *name);
                assert_eq!(client.ask(&"x".repeat(30_000)).unwrap(), *name);
                let answer = client.ask("fill 30000").unwrap();
                assert_eq!(answer.len(), name.len() + 1 + 30_000);
            }
            assert!(moved > 0, "the ring has moved some");
        }
        let after = site.katran.stats().tcp_server_id().unwrap();
        assert!(after.sid_routed > before.sid_routed);
        // The id kept the connections: a client that does not repeat it has lost its server.
        assert!(plain.ask("who").is_err());

        // An invalid id leads nowhere.
        let (client, name) = open
            .iter_mut()
            .find(|(_, name)| *name != last_name)
            .unwrap();
        site.katran.server_ids_mut().invalidate(&IDS).unwrap();
        let _ = site.katran.flows_mut().purge(vip).unwrap();
        assert!(client.ask("who").is_err(), "{name}");

        drop(open);
        let counters = site.katran.stats().vip(vip).unwrap();
        assert!(counters.server_id_new >= 25);
        site.katran.server_ids_mut().remove(&IDS).unwrap();
        site.katran.remove_vip(vip).unwrap();
    }
    for (server, decap) in servers.iter().zip(&site.decaps) {
        let option = server.option.counters().unwrap();
        assert!(option.served > 0 && option.written > 0, "{option:?}");
        let counters = decap.counters().unwrap();
        assert!(counters.server_ids > 0, "{counters:?}");
    }
    let option = echo.counters().unwrap();
    assert_eq!((option.served, option.heard), (0, 48), "{option:?}");
    assert!(option.written > 48 * 4, "in every packet: {option:?}");
    // Packets sent while the ids were invalid.
    let others = site
        .decaps
        .iter()
        .map(|decap| decap.counters().unwrap().other_server_ids);
    assert!(others.sum::<u64>() > 0);
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}

/// Stable UDP routing: datagrams name their server.
#[test]
fn datagrams_stay_with_the_server_that_they_name() {
    let mut site = Site::with(
        LabConfig {
            backends: 2,
            ..LabConfig::default()
        },
        XdpMode::Native,
        |builder| builder.features(Features::default() | Features::UDP_STABLE_ROUTING),
    );
    let _servers = site.lab.serve_udp(PORT).unwrap();
    for address in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::udp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        site.katran
            .add_vip(vip, VipFlags::UDP_STABLE_ROUTING)
            .unwrap();
        // The ring has only the first one.
        site.katran.add_real(vip, Real::new(reals[0])).unwrap();
        let ids = [
            ServerId::new(1, reals[0]),
            ServerId::new(0xff_fffe, reals[1]),
        ];
        site.katran.server_ids_mut().add(&ids).unwrap();
        let client = site::udp(&site.lab.client, vip);
        for _ in 0..3 {
            assert_eq!(client.ask(b"\x52\xff\xff\xfe....").unwrap(), "backend1");
            assert_eq!(client.ask(b"\x52\x00\x00\x01....").unwrap(), "backend0");
        }
        // Nothing is remembered: a datagram without an id follows the ring.
        assert_eq!(client.ask(b"\x52\x00\x00\x07 unknown").unwrap(), "backend0");
        assert_eq!(client.ask(b"plain words").unwrap(), "backend0");
        site.katran
            .server_ids_mut()
            .invalidate(&[0xff_fffe])
            .unwrap();
        assert_eq!(client.ask(b"\x52\xff\xff\xfe....").unwrap(), "backend0");
        site.katran
            .server_ids_mut()
            .remove(&[1, 0xff_fffe])
            .unwrap();
    }
    let counters = site.katran.stats().stable_udp().unwrap();
    assert_eq!((counters.cid_routed, counters.ch_routed), (12, 6));
    assert_eq!(counters.cid_invalid_server_id, 4);
    assert_eq!(counters.invalid_packet_type, 2);
}
