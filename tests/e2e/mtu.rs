//! Packets that are too big: for the client's network, where the router's ICMP error must find the
//! backend that sent them, and for the balancer, which answers with an ICMP error.

use std::net::IpAddr;

use katran::Encapsulation;
use katran::Features;
use katran::Real;
use katran::Vip;
use katran::XdpMode;
use katran::stats::DropReason;
use katran_lab::Host;
use katran_lab::LabConfig;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

const CLIENT_V4: &str = "192.0.2.2";
const CLIENT_V6: &str = "2001:db8:c::2";

/// Whether this host has learnt this path MTU to `address`.
fn has_learnt(host: &Host, address: &str, from: Option<IpAddr>, mtu: u32) -> bool {
    let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
    let route = host.ip(&format!("route get {address}{from}")).unwrap();
    route.contains(&format!("mtu {mtu} ")) || route.trim_end().ends_with(&format!("mtu {mtu}"))
}

#[test]
fn an_error_about_the_path_reaches_the_backend_that_owns_the_flow() {
    let mut site = Site::new(LabConfig::default());
    site::arrive_on_one_cpu(&site.lab);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    // The second limit counts as small; for IPv6 none does.
    for (address, client, limits) in [
        (site.lab.vip4(), CLIENT_V4, [1400, 1000]),
        (site.lab.vip6(), CLIENT_V6, [1400, 1280]),
    ] {
        let vip = Vip::tcp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        site.add_service(vip, &reals);
        let mut connection = site.connect_to(vip, "backend0");
        // From now on the ring alone would send the error to the wrong backend.
        let drained = Real::new(reals[0]).weight(0);
        site.katran.add_real(vip, drained).unwrap();

        for limit in limits {
            site.lab.limit_client_mtu(limit).unwrap();
            let answer = connection.ask("fill 400000").unwrap();
            assert_eq!(answer.len(), "backend0 ".len() + 400_000);
            let learnt = |backend: usize| {
                let host = &site.lab.backends[backend].host;
                has_learnt(host, client, Some(address), limit)
            };
            assert!(learnt(0), "{}", site.report());
            assert!(!learnt(1), "the other backend learnt the MTU too");
        }
        site.lab.limit_client_mtu(1500).unwrap();
    }
    let icmp = site.katran.stats().icmp().unwrap();
    assert!(
        icmp.ptb_v4_small > 0 && icmp.ptb_v4 > icmp.ptb_v4_small,
        "{icmp:?}"
    );
    assert!(icmp.ptb_v6 > 1 && icmp.ptb_v6_small == 0, "{icmp:?}");
    assert_eq!((icmp.too_big_v4, icmp.too_big_v6), (0, 0));
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}

#[test]
fn a_client_adapts_to_the_largest_frame_in_native_mode() {
    client_adapts(XdpMode::Native);
}

#[test]
fn a_client_adapts_to_the_largest_frame_in_generic_mode() {
    client_adapts(XdpMode::Generic);
}

fn client_adapts(mode: XdpMode) {
    const MTU: u32 = 1300;
    let mut site = Site::with(LabConfig::default(), mode, |builder| {
        builder.max_frame(14 + MTU)
    });
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    for address in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::tcp((address, PORT).into());
        site.add_service(vip, &site::reals(&site.lab, address));
        let mut client = site::connect(&site.lab.client, vip);
        let name = client.ask("who").unwrap();
        assert_eq!(client.ask(&"x".repeat(400_000)).unwrap(), name);
        assert!(has_learnt(
            &site.lab.client,
            &address.to_string(),
            None,
            MTU
        ));
        let forwarded = site.katran.stats().vip(vip).unwrap().forwarded;
        assert!(forwarded.bytes > 400_000);
        assert!(forwarded.bytes / forwarded.packets <= u64::from(MTU));
    }
    let icmp = site.katran.stats().icmp().unwrap();
    assert!(icmp.too_big_v4 > 0 && icmp.too_big_v6 > 0, "{icmp:?}");
    assert_eq!((icmp.ptb_v4, icmp.ptb_v6), (0, 0));
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}

/// All links have an MTU of 1500, with no room for tunnels.
fn plain_links() -> LabConfig {
    LabConfig {
        inner_mtu: 1500,
        ..LabConfig::default()
    }
}

#[test]
fn a_path_of_1500_bytes_from_end_to_end_carries_full_packets_in_ip_in_ip() {
    full_packets_arrive(XdpMode::Native, [1480, 1460], |builder| builder);
}

#[test]
fn a_path_of_1500_bytes_from_end_to_end_carries_full_packets_in_generic_mode() {
    full_packets_arrive(XdpMode::Generic, [1480, 1460], |builder| builder);
}

#[test]
fn a_path_of_1500_bytes_from_end_to_end_carries_full_packets_in_gue() {
    full_packets_arrive(XdpMode::Native, [1472, 1452], |builder| {
        builder
            .encapsulation(Encapsulation::Gue)
            .source_v4("10.0.0.2".parse().unwrap())
            .source_v6("2001:db8:b::2".parse().unwrap())
    });
}

/// The path MTU that a client learns with IPv4 reals only, and with some IPv6 reals.
fn full_packets_arrive(
    mode: XdpMode,
    mtus: [u32; 2],
    settings: impl FnOnce(katran::Builder) -> katran::Builder,
) {
    let mut site = Site::with(plain_links(), mode, settings);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    for (address, mtu) in [site.lab.vip4(), site.lab.vip6()].into_iter().zip(mtus) {
        let vip = Vip::tcp((address, PORT).into());
        site.add_service(vip, &site::reals(&site.lab, address));
        assert_eq!(site.katran.gateways().max_frame(), mtu + 14);
        let mut client = site::connect(&site.lab.client, vip);
        let name = client.ask("who").unwrap();
        // Up in packets as long as the path allows, down in the longest.
        assert_eq!(client.ask(&"x".repeat(400_000)).unwrap(), name);
        let answer = client.ask("fill 400000").unwrap();
        assert_eq!(answer.len(), name.len() + 1 + 400_000);
        let learnt = has_learnt(&site.lab.client, &address.to_string(), None, mtu);
        assert!(learnt, "{}", site.report());
    }
    let icmp = site.katran.stats().icmp().unwrap();
    assert!(icmp.too_big_v4 > 0 && icmp.too_big_v6 > 0, "{icmp:?}");
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}

#[test]
fn the_longest_frame_follows_the_mtu_of_the_interfaces() {
    let mut site = Site::new(plain_links());
    let host = &site.lab.balancers[0].host;
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    let reals = site::reals(&site.lab, vip.address());
    site::add_service(&mut site.katran, vip, &reals);
    let becomes = |site: &Site, expected: u32| {
        site::eventually(format!("frames of {expected} bytes"), || {
            site.katran.gateways().max_frame() == expected
        });
    };
    assert_eq!(site.katran.gateways().max_frame(), 1494);
    for mtu in [1400, 1600, 68, 1500] {
        host.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
        becomes(&site, (mtu - 20 + 14).max(590));
    }
    // Only the balancer's interfaces count; the smallest MTU wins.
    for (name, mtu) in [("other0", 1300), ("other1", 1200)] {
        let add = format!("link add {name} mtu {mtu} type veth peer name {name}-peer");
        host.ip(&add).unwrap();
    }
    let attach = || {
        site.katran.attach("other0", XdpMode::Generic).unwrap();
    };
    host.run(attach);
    assert_eq!(site.katran.gateways().max_frame(), 1294);
    host.ip("link set other0 mtu 1280").unwrap();
    becomes(&site, 1274);
    host.ip("link set eth0 mtu 1260").unwrap();
    becomes(&site, 1254);
    host.ip("link set eth0 mtu 1500").unwrap();
    becomes(&site, 1274);
    // A removed interface no longer counts.
    host.ip("link delete other0").unwrap();
    becomes(&site, 1494);

    // IPv6 headers are longer, and count while there are IPv6 reals.
    let real6 = site::reals(&site.lab, site.lab.vip6())[0];
    site.katran.add_real(vip, Real::new(real6)).unwrap();
    assert_eq!(site.katran.gateways().max_frame(), 1474);
    site.katran.remove_real(vip, real6).unwrap();
    assert_eq!(site.katran.gateways().max_frame(), 1494);
    host.run(|| site.katran.detach("eth0").unwrap());
    assert_eq!(site.katran.gateways().max_frame(), 1514);
    host.run(|| site.katran.attach("eth0", XdpMode::Native).map(drop))
        .unwrap();
    assert_eq!(site.katran.gateways().max_frame(), 1494);
}

#[test]
fn a_fixed_max_frame_stays() {
    let mut site = Site::with(plain_links(), XdpMode::Native, |builder| {
        builder.max_frame(1200)
    });
    let host = &site.lab.balancers[0].host;
    host.ip("link set eth0 mtu 1000").unwrap();
    assert_eq!(site.katran.gateways().max_frame(), 1200);
    site.katran.detach_all();
    assert_eq!(site.katran.gateways().max_frame(), 1200);
}

#[test]
fn without_the_feature_too_big_a_frame_is_dropped() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.max_frame(1014).features(Features::empty())
    });
    let _servers = site.lab.serve_udp(PORT).unwrap();
    for (address, headers) in [(site.lab.vip4(), 28), (site.lab.vip6(), 48)] {
        let vip = Vip::udp((address, PORT).into());
        site.add_service(vip, &site::reals(&site.lab, address));
        let client = site::udp(&site.lab.client, vip);
        let largest = vec![0; 1000 - headers];
        assert!(client.ask(&largest).unwrap().starts_with("backend"));
        client
            .set_patience(std::time::Duration::from_millis(300))
            .unwrap();
        assert!(client.ask(&[&largest[..], b"x"].concat()).is_err());
    }
    let drops = site.katran.stats().drop_reasons().unwrap();
    assert_eq!(drops.get(DropReason::TooBig), 2);
    let icmp = site.katran.stats().icmp().unwrap();
    assert_eq!((icmp.too_big_v4, icmp.too_big_v6), (0, 0));
}
