//! Decapsulation at tc ingress, by tcx links and clsact filters, beside foreign programs.

use std::net::IpAddr;

use katran::Decap;
use katran::Encapsulation;
use katran::Error;
use katran::Vip;
use katran::XdpMode;
use katran::attachments::TcHook;
use katran_lab::Host;
use katran_lab::LabConfig;
use katran_lab::Newer;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// Each mix of VIP and tunnel family, and whether a tc program can strip it on this kernel.
fn mixes(site: &Site) -> [(IpAddr, IpAddr, bool); 4] {
    let (v4, v6) = (site.lab.vip4(), site.lab.vip6());
    [(v4, v4), (v4, v6), (v6, v4), (v6, v6)].map(|(vip, like)| {
        let across = vip.is_ipv4() != like.is_ipv4();
        (vip, like, !across || Newer::DecapAcrossFamilies.is_here())
    })
}

fn dropped(site: &Site) -> u64 {
    let counters = |decap: &Decap| decap.counters().unwrap().drop_head;
    site.decaps.iter().map(counters).sum()
}

/// Replaces every backend's XDP decapsulator with one at tc.
fn to_tc(site: &mut Site, hook: TcHook) {
    site.decaps.clear();
    for backend in &site.lab.backends {
        let mut decap = Decap::builder().load().unwrap();
        let attached = backend.host.run(|| decap.attach_tc("eth0", hook).unwrap());
        assert_eq!(attached.hook, hook);
        assert_eq!(
            attached.index,
            backend.host.interface_index("eth0").unwrap()
        );
        assert!(decap.interfaces().is_empty());
        site.decaps.push(decap);
    }
}

fn filters(host: &Host) -> String {
    host.tool("tc", "filter show dev eth0 ingress").unwrap()
}

#[test]
fn connections_work_in_all_mixes_of_families() {
    for (hook, encapsulation) in [
        (site::first_choice(), Encapsulation::Ipip),
        (TcHook::Clsact, Encapsulation::Ipip),
        (site::first_choice(), Encapsulation::Gue),
        (TcHook::Clsact, Encapsulation::Gue),
    ] {
        let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
            builder
                .encapsulation(encapsulation)
                .source_v4("10.0.0.2".parse().unwrap())
                .source_v6("2001:db8:b::2".parse().unwrap())
        });
        to_tc(&mut site, hook);
        let servers = (
            site.lab.serve_tcp(PORT).unwrap(),
            site.lab.serve_udp(PORT).unwrap(),
        );
        for (vip, like, stripped) in mixes(&site) {
            let before = site.decapsulated();
            let (tcp, udp) = (Vip::tcp((vip, PORT).into()), Vip::udp((vip, PORT).into()));
            let reals = site::reals(&site.lab, like);
            for vip in [tcp, udp] {
                site.add_service(vip, &reals);
            }
            if stripped {
                let lost = dropped(&site);
                for backend in ["backend0", "backend1"] {
                    let mut connection = site.connect_to(tcp, backend);
                    assert_eq!(connection.ask("again").unwrap(), backend);
                }
                site::udp(&site.lab.client, udp).ask(b"who").unwrap();
                let after = site.decapsulated();
                match like.is_ipv4() {
                    true => assert!(after.0 > before.0 && after.1 == before.1),
                    false => assert!(after.1 > before.1 && after.0 == before.0),
                }
                assert_eq!(dropped(&site), lost);
            } else {
                let lost = dropped(&site);
                site::ask_udp_in_vain(&site::udp(&site.lab.client, udp));
                site::eventually("it is counted", || dropped(&site) == lost + 1);
                assert_eq!(site.decapsulated(), before);
            }
            for vip in [tcp, udp] {
                site.katran.remove_vip(vip).unwrap();
            }
        }
        drop(servers);
    }
}

#[test]
fn merged_packets_are_stripped_whole() {
    let mut site = Site::new(LabConfig::default());
    to_tc(&mut site, site::first_choice());
    // GRO merges segments before tc sees them.
    for backend in &site.lab.backends {
        backend.host.tool("ethtool", "-K eth0 gro on").unwrap();
    }
    let server = site.lab.serve_tcp(PORT).unwrap();
    let (mut frames, mut packets) = (0, 0);
    for (vip, like, _) in mixes(&site).into_iter().filter(|mix| mix.2) {
        let service = Vip::tcp((vip, PORT).into());
        let reals = site::reals(&site.lab, like);
        site.add_service(service, &reals);
        let mut connection = site::connect(&site.lab.client, service);
        let line = "x".repeat(300_000);
        for _ in 0..5 {
            let answer = connection.ask(&line).unwrap();
            assert!(answer.starts_with("backend"), "{answer}");
        }
        packets += site.katran.stats().vip(service).unwrap().forwarded.packets;
        site.katran.remove_vip(service).unwrap();
    }
    for decap in &site.decaps {
        let counters = decap.counters().unwrap();
        frames += counters.ipip_v4 + counters.ipip_v6;
        assert_eq!(counters.drop_head, 0);
    }
    // Proves that some were merged; a slow machine merges fewer.
    assert!(
        frames < packets / 4 * 3,
        "{packets} packets in {frames} frames"
    );
    drop(server);
}

#[test]
fn merged_gue_packets_are_not_lost_silently() {
    let mut site = Site::with(
        LabConfig {
            backends: 1,
            ..LabConfig::default()
        },
        XdpMode::Native,
        |builder| {
            builder
                .encapsulation(Encapsulation::Gue)
                .source_v6("2001:db8:b::2".parse().unwrap())
        },
    );
    to_tc(&mut site, site::first_choice());
    let servers = site.lab.serve_udp(PORT).unwrap();
    // Before Linux 6.18 the kernel merges no packets over IPv4 whose identification stays 0.
    let vip = Vip::udp((site.lab.vip6(), PORT).into());
    site.add_service(vip, &site::reals(&site.lab, vip.address()));
    let backend = &site.lab.backends[0].host;
    let to = site::service(vip);
    // As many as a server's socket buffer holds, when each datagram takes a whole page.
    const BURST: u64 = 32;
    let burst = |socket: &std::net::UdpSocket| {
        for _ in 0..BURST {
            socket.send_to(b"0123456789", to).unwrap();
        }
    };
    let socket = site
        .lab
        .client
        .run(|| std::net::UdpSocket::bind("[::]:0").unwrap());
    backend.tool("ethtool", "-K eth0 gro on").unwrap();
    burst(&socket);
    site::eventually("all arrive", || servers[0].received() == BURST);
    assert_eq!(site.decaps[0].counters().unwrap().drop_head, 0);
    backend
        .tool("ethtool", "-K eth0 rx-udp-gro-forwarding on")
        .unwrap();
    // Nanoseconds that GRO waits for more packets; without it a slow machine merges none.
    backend
        .sysfs("class/net/eth0/gro_flush_timeout", 50_000_000)
        .unwrap();
    site::eventually("merged packets are counted", || {
        burst(&socket);
        site.decaps[0].counters().unwrap().drop_head > 0
    });
    drop(servers);
}

/// The kernel removes one VLAN tag before tc sees the frame, and none before XDP does.
#[test]
fn tunnels_behind_one_vlan_tag_are_stripped_unlike_with_xdp() {
    let mut site = Site::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    });
    let backend = &site.lab.backends[0];
    let (v4, mac) = (backend.v4, katran::MacAddr::new(backend.mac));
    let router = &site.lab.router;
    // The backend does not answer tagged ARP requests.
    router
        .ip(&format!(
            "neigh replace {v4} lladdr {mac} nud permanent dev real0"
        ))
        .unwrap();
    router.tag("real0", &[(0x8100, 100)]).unwrap();
    let vip = Vip::udp((site.lab.vip4(), PORT).into());
    site.add_service(vip, &[v4.into()]);
    let socket = site
        .lab
        .client
        .run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    let send = || {
        for _ in 0..10 {
            socket.send_to(b"tagged", site::service(vip)).unwrap();
        }
    };
    let counters = |site: &Site| site.decaps[0].counters().unwrap();
    // First at XDP: the frames arrive, and the program does not unwrap them.
    site::eventually("frames arrive", || {
        send();
        counters(&site).total >= 10
    });
    assert_eq!(counters(&site).ipip_v4, 0);
    to_tc(&mut site, site::first_choice());
    site::eventually("they are stripped", || {
        send();
        counters(&site).ipip_v4 >= 10
    });
}

#[test]
fn attachments_are_distinguished_and_removed() {
    let mut site = Site::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    });
    let host = &site.lab.backends[0].host;
    let decap = &mut site.decaps[0];
    // Already attached at XDP.
    let twice = host.run(|| decap.attach_tc("eth0", TcHook::Auto).unwrap_err());
    assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
    decap.detach("eth0").unwrap();
    for hook in [TcHook::Tcx, TcHook::Clsact, TcHook::Auto] {
        if hook == TcHook::Tcx && !Newer::Tcx.is_here() {
            let error = host.run(|| decap.attach_tc("eth0", hook).unwrap_err());
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            continue;
        }
        let attached = host.run(|| decap.attach_tc("eth0", hook).unwrap());
        if hook == TcHook::Auto {
            assert_eq!(attached.hook, site::first_choice());
        }
        let by_filter = attached.hook == TcHook::Clsact;
        assert_eq!(decap.tc_interfaces(), [attached]);
        assert_eq!(filters(host).contains("decap_tc"), by_filter);
        let twice = host.run(|| decap.attach_tc("eth0", hook).unwrap_err());
        assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
        let twice = host.run(|| decap.attach("eth0", XdpMode::Native).unwrap_err());
        assert!(matches!(twice, Error::AlreadyExists { .. }), "{twice}");
        decap.detach("eth0").unwrap();
        assert!(decap.tc_interfaces().is_empty());
        assert!(filters(host).is_empty());
        assert!(
            !host
                .tool("tc", "qdisc show dev eth0")
                .unwrap()
                .contains("clsact")
        );
    }
    let missing = host.run(|| decap.attach_tc("eth7", TcHook::Auto).unwrap_err());
    assert!(
        matches!(missing, Error::NoSuchInterface { .. }),
        "{missing}"
    );
    // Dropped while this thread is in another namespace.
    host.run(|| decap.attach_tc("eth0", TcHook::Clsact).unwrap());
    site.decaps.clear();
    let host = &site.lab.backends[0].host;
    assert!(filters(host).is_empty());
}

#[test]
fn it_works_beside_a_foreign_xdp_program() {
    let mut site = Site::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    });
    site.decaps.clear();
    let backend = &site.lab.backends[0];
    // A decapsulator without addresses.
    let mut foreign = Decap::builder()
        .destination("198.51.100.99".parse().unwrap())
        .gue_port(0)
        .load()
        .unwrap();
    let mut decap = Decap::builder().load().unwrap();
    backend.host.run(|| {
        foreign.attach("eth0", XdpMode::Native).unwrap();
        decap.attach_tc("eth0", TcHook::Auto).unwrap();
    });
    site.decaps.push(decap);
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    site.add_service(vip, &site::reals(&site.lab, vip.address()));
    site.new_connections(vip, 3);
    assert!(site.decapsulated().0 > 0);
    drop((foreign, servers));
}
