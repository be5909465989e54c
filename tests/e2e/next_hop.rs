//! Where encapsulated packets go next: gateways that are discovered and followed, backends on the
//! balancer's segment, and interfaces that lead to reals.

use katran::Error;
use katran::Family;
use katran::Gateway;
use katran::MacAddr;
use katran::NextHops;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::attachments::NextHop;
use katran::stats::DropReason;
use katran::stats::NextHopCounts;
use katran_lab::LabConfig;

use crate::segment::Arrival;
use crate::segment::BACKENDS;
use crate::segment::Segment;
use crate::segment::v4;
use crate::site;
use crate::site::PORT;
use crate::site::Site;

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

#[test]
fn a_gateway_is_discovered_and_followed() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.gateway(Gateway::Auto)
    });
    let right = MacAddr::new(site.lab.balancers[0].gateway_mac);
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let vips = [site.lab.vip4(), site.lab.vip6()].map(|vip| Vip::tcp((vip, PORT).into()));
    for vip in vips {
        site.add_service(vip, &site::reals(&site.lab, vip.address()));
        site.new_connections(vip, 5);
    }
    assert_eq!(site.katran.gateways().setting(), Gateway::Auto);
    site::eventually("both gateways are known", || {
        let hops = site.katran.gateways().next_hops();
        hops.len() == 2 && hops.iter().all(|hop| hop.mac == Some(right))
    });
    assert_eq!(site.katran.gateways().mac(Family::V4), right);
    for hop in &site.katran.gateways().next_hops() {
        assert_eq!(hop.interface.as_deref(), Some("eth0"));
        assert_eq!(hop.real, None);
        assert!(hop.address.is_some());
    }

    // Another router takes the gateway's address, as the neighbour tables show; for each family
    // alone.
    let host = &site.lab.balancers[0].host;
    let wrong = "02:00:00:00:00:77";
    for (vip, gateway, other) in [
        (vips[0], "10.0.0.1", vips[1]),
        (vips[1], "2001:db8:b::1", vips[0]),
    ] {
        let set = |mac: MacAddr| {
            let command = format!("neigh replace {gateway} lladdr {mac} nud permanent dev eth0");
            host.ip(&command).unwrap();
        };
        let in_use = |katran: &katran::Katran| match vip.address().is_ipv4() {
            true => katran.gateways().mac(Family::V4),
            false => katran.gateways().mac(Family::V6),
        };
        let mut connection = site::connect(&site.lab.client, vip);
        connection.ask("who").unwrap();
        set(mac(wrong));
        site::eventually("the new address is in use", || {
            in_use(&site.katran) == mac(wrong)
        });
        site::ask_in_vain(&mut connection);
        site.new_connections(other, 3);
        set(right);
        site::eventually("the old address is in use", || {
            in_use(&site.katran) == right
        });
        connection.ask("who").unwrap();
    }
    drop(servers);
}

#[test]
fn a_router_that_changes_its_address_is_followed() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.gateway(Gateway::Auto)
    });
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    site.add_service(vip, &site::reals(&site.lab, vip.address()));
    site.new_connections(vip, 3);
    // It announces its new MAC address (a gratuitous ARP), as a router does on failover.
    let router = &site.lab.router;
    router.sysctl("net.ipv4.conf.bal0.arp_notify", 1).unwrap();
    let new = "02:00:00:00:00:78";
    router.ip(&format!("link set bal0 address {new}")).unwrap();
    site::eventually("the new address is in use", || {
        site.katran.gateways().mac(Family::V4) == mac(new)
    });
    site.new_connections(vip, 3);
    drop(servers);
}

#[test]
fn the_way_to_the_reals_is_followed_when_routes_change() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.gateway(Gateway::Auto)
    });
    let host = &site.lab.balancers[0].host;
    let (vip, first) = (
        Vip::tcp((site.lab.vip4(), PORT).into()),
        mac("02:00:00:00:00:81"),
    );
    host.ip(&format!(
        "neigh add 10.0.0.5 lladdr {first} nud permanent dev eth0"
    ))
    .unwrap();
    let right = site.katran.gateways().mac(Family::V4);
    // Behind a router other than the default one.
    host.ip("route add 198.51.100.0/24 via 10.0.0.5 dev eth0 onlink")
        .unwrap();
    site.katran.add_vip(vip, VipFlags::empty()).unwrap();
    let real = katran::Real::new("198.51.100.1".parse().unwrap());
    site.katran.add_real(vip, real).unwrap();
    assert_eq!(site.katran.gateways().mac(Family::V4), first);
    // A second real is behind a second router, which becomes the gateway when the first real goes.
    let second = mac("02:00:00:00:00:82");
    host.ip(&format!(
        "neigh add 10.0.0.6 lladdr {second} nud permanent dev eth0"
    ))
    .unwrap();
    host.ip("route add 198.18.0.0/24 via 10.0.0.6 dev eth0 onlink")
        .unwrap();
    let other = "198.18.0.1".parse().unwrap();
    site.katran.add_real(vip, katran::Real::new(other)).unwrap();
    assert_eq!(site.katran.gateways().mac(Family::V4), first);
    site.katran.remove_real(vip, real.address()).unwrap();
    site::eventually("the router of the real that is left is in use", || {
        site.katran.gateways().mac(Family::V4) == second
    });
    site.katran.add_real(vip, real).unwrap();
    site.katran.remove_real(vip, other).unwrap();
    site::eventually("the first router is in use again", || {
        site.katran.gateways().mac(Family::V4) == first
    });
    // Permanent entries stay.
    for (router, mac) in [("10.0.0.5", first), ("10.0.0.6", second)] {
        let entry = host.ip(&format!("neigh show {router} dev eth0")).unwrap();
        let expected = format!("lladdr {mac} PERMANENT");
        assert!(entry.contains(&expected), "{entry}");
    }
    host.ip("route del 198.51.100.0/24").unwrap();
    site::eventually("the default route's router is in use", || {
        site.katran.gateways().mac(Family::V4) == right
    });
}

#[test]
fn the_last_gateway_stays_in_use_until_the_next_one_answers() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.gateway(Gateway::Auto)
    });
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let vips = [site.lab.vip4(), site.lab.vip6()].map(|vip| Vip::tcp((vip, PORT).into()));
    for vip in vips {
        site.add_service(vip, &site::reals(&site.lab, vip.address()));
    }
    let right = site.katran.gateways().mac(Family::V4);
    let host = &site.lab.balancers[0].host;
    // The other family has another router, which must not get these packets.
    let other = mac("02:00:00:00:00:66");
    host.ip(&format!(
        "neigh replace 2001:db8:b::1 lladdr {other} nud permanent dev eth0"
    ))
    .unwrap();
    site::eventually("the other router is in use", || {
        site.katran.gateways().mac(Family::V6) == other
    });
    host.ip("route replace default via 10.0.0.9 dev eth0 onlink")
        .unwrap();
    let of_v4 = |katran: &katran::Katran| {
        let hops = katran.gateways().next_hops();
        let is_v4 = |hop: &&NextHop| hop.address.is_some_and(|address| address.is_ipv4());
        hops.iter().find(is_v4).cloned().unwrap()
    };
    site::eventually("the new gateway is asked for", || {
        of_v4(&site.katran).address == Some("10.0.0.9".parse().unwrap())
    });
    let hop = of_v4(&site.katran);
    assert_eq!(
        (hop.mac, hop.answers, hop.attached),
        (Some(right), false, true)
    );
    let counts = site.katran.stats().next_hops();
    assert_eq!((counts.answering, counts.silent), (1, 1));
    site.new_connections(vips[0], 3);
    // Now a router answers.
    let next = mac("02:00:00:00:00:67");
    host.ip(&format!(
        "neigh replace 10.0.0.9 lladdr {next} nud permanent dev eth0"
    ))
    .unwrap();
    site::eventually("the new gateway is in use", || {
        let hop = of_v4(&site.katran);
        hop.answers && hop.mac == Some(next) && site.katran.gateways().mac(Family::V4) == next
    });
    drop(servers);
}

#[test]
fn a_gateway_where_the_balancer_is_attached_comes_first() {
    let mut network = Segment::new(Arrival::OwnLink, |builder| builder.gateway(Gateway::Auto));
    let right = MacAddr::new(network.lab.balancers[0].gateway_mac);
    let host = &network.lab.balancers[0].host;
    // The best default route uses another interface, such as one for management.
    host.ip("route replace default via 10.0.0.1 dev eth0 metric 100")
        .unwrap();
    host.ip("route del default metric 0").unwrap();
    host.ip(&format!("route add default via {} dev eth1", v4(1)))
        .unwrap();
    host.ip("-6 route del default").unwrap();
    host.run(|| network.katran.attach("eth0", XdpMode::Native).unwrap());
    assert_eq!(network.katran.gateways().mac(Family::V4), right);
    let hop = network.katran.gateways().next_hops()[0].clone();
    assert_eq!(hop.interface.as_deref(), Some("eth0"));
    assert!(hop.attached && hop.answers && !hop.here);
    // No packet goes there yet, and the other family has no route.
    assert_eq!(network.katran.stats().next_hops(), NextHopCounts::default());

    // If there is no other, the library takes it and reports that it is on another interface.
    host.ip("route del default dev eth0").unwrap();
    site::eventually("the other gateway is in use", || {
        let hop = network.katran.gateways().next_hops()[0].clone();
        hop.interface.as_deref() == Some("eth1") && !hop.attached && hop.answers
    });
    assert_ne!(network.katran.gateways().mac(Family::V4), right);
    // Through a bridge of which the balancer's interface is a port.
    host.ip("link add name br0 type bridge").unwrap();
    host.ip("link set br0 up").unwrap();
    host.ip("addr add 10.30.0.2/24 dev br0").unwrap();
    host.ip("link set eth0 master br0").unwrap();
    host.ip("route add default via 10.30.0.1 dev br0 metric 50")
        .unwrap();
    site::eventually("the gateway behind the bridge is asked for", || {
        let hop = network.katran.gateways().next_hops()[0].clone();
        hop.interface.as_deref() == Some("br0") && hop.attached
    });
}

#[test]
fn a_gateway_is_discovered_where_the_balancer_is_attached() {
    let mut site = Site::new(LabConfig::default());
    let right = MacAddr::new(site.lab.balancers[0].gateway_mac);
    site.katran
        .gateways_mut()
        .set_mac(mac("02:00:00:00:00:68"))
        .unwrap();
    // This thread is in another network namespace.
    site.katran.gateways_mut().set(Gateway::Auto).unwrap();
    assert_eq!(site.katran.gateways().mac(Family::V4), right);
    site.katran
        .gateways_mut()
        .set_mac(mac("02:00:00:00:00:68"))
        .unwrap();
    let host = &site.lab.balancers[0].host;
    host.run(|| site.katran.gateways_mut().set(Gateway::Auto))
        .unwrap();
    assert_eq!(site.katran.gateways().mac(Family::V4), right);
    // Back and forth.
    site.katran
        .gateways_mut()
        .set_mac(mac("02:00:00:00:00:68"))
        .unwrap();
    assert!(site.katran.gateways().next_hops().is_empty());
    host.run(|| site.katran.gateways_mut().set(Gateway::Auto))
        .unwrap();
    assert_eq!(site.katran.gateways().mac(Family::V4), right);
    // A balancer that is attached nowhere has no routes to ask.
    site.katran.detach("eth0").unwrap();
    assert!(site.katran.gateways().next_hops().is_empty());
    let host = &site.lab.balancers[0].host;
    host.run(|| site.katran.attach("eth0", XdpMode::Native).unwrap());
    assert_eq!(site.katran.gateways().mac(Family::V4), right);
}

#[test]
fn a_gateway_that_cannot_be_discovered_is_an_error() {
    let mut network = Segment::new(Arrival::OwnLink, |builder| builder.gateway(Gateway::Auto));
    let host = &network.lab.balancers[0].host;
    host.ip("route del default").unwrap();
    host.ip("-6 route del default").unwrap();
    let attach = |katran: &mut katran::Katran| {
        host.run(|| katran.attach("eth0", XdpMode::Native).unwrap_err())
    };
    let error = attach(&mut network.katran);
    assert!(matches!(error, Error::NoNextHop { .. }), "{error}");
    assert!(error.to_string().contains("no default route"), "{error}");
    host.ip("route add default via 10.0.0.9 dev eth0 onlink")
        .unwrap();
    let error = attach(&mut network.katran);
    assert!(
        error.to_string().contains("10.0.0.9 does not answer"),
        "{error}"
    );
    assert!(network.katran.interfaces().is_empty());
    assert!(!host.ip("link show dev eth0").unwrap().contains("xdp"));

    // A given address works; here nothing is discovered, so it stays.
    let given = mac("02:00:00:00:00:90");
    network.katran.gateways_mut().set_mac(given).unwrap();
    host.run(|| network.katran.attach("eth0", XdpMode::Native).unwrap());
    let error = host.run(|| {
        network
            .katran
            .gateways_mut()
            .set(Gateway::Auto)
            .unwrap_err()
    });
    assert!(matches!(error, Error::NoNextHop { .. }), "{error}");
    assert_eq!(network.katran.gateways().setting(), Gateway::Mac(given));
    assert_eq!(network.katran.gateways().mac(Family::V4), given);
}

#[test]
fn families_may_have_gateways_of_their_own() {
    let mut site = Site::new(LabConfig::default());
    let right = site.katran.gateways().mac(Family::V4);
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let vips = [site.lab.vip4(), site.lab.vip6()].map(|vip| Vip::tcp((vip, PORT).into()));
    for vip in vips {
        site.add_service(vip, &site::reals(&site.lab, vip.address()));
    }
    let wrong = mac("02:00:00:00:00:99");
    site.katran.gateways_mut().set_mac_v6(Some(wrong)).unwrap();
    assert_eq!(site.katran.gateways().mac(Family::V6), wrong);
    site.new_connections(vips[0], 3);
    site.katran.gateways_mut().set_mac(wrong).unwrap();
    site.katran.gateways_mut().set_mac_v6(Some(right)).unwrap();
    site.new_connections(vips[1], 3);
    site.katran.gateways_mut().set_mac(right).unwrap();
    site.katran.gateways_mut().set_mac_v6(None).unwrap();
    assert_eq!(site.katran.gateways().mac(Family::V6), right);
    for vip in vips {
        site.new_connections(vip, 3);
    }
    let group = mac("01:00:00:00:00:01");
    assert!(site.katran.gateways_mut().set_mac_v6(Some(group)).is_err());
    drop(servers);
}

#[test]
fn backends_on_the_same_segment_get_packets_at_their_own_addresses() {
    for gateway in [Gateway::Auto, Gateway::Mac(mac("02:00:00:00:00:99"))] {
        let mut network = Segment::new(Arrival::Segment, |builder| {
            builder.gateway(gateway).next_hops(NextHops::PerReal)
        });
        let balancer = &network.lab.balancers[0].host;
        let attach = |katran: &mut katran::Katran| katran.attach("eth1", XdpMode::Native);
        balancer.run(|| attach(&mut network.katran).unwrap());
        let vips = network.serve();
        network.check(&vips);
        let hops = network.katran.gateways().next_hops();
        assert_eq!(hops.len(), 2 * BACKENDS);
        for hop in &hops {
            assert_eq!(hop.address, hop.real, "no router in between");
            assert_eq!(hop.interface.as_deref(), Some("eth1"));
        }
        let own = network.backends[0].ip("-br link show dev eth0").unwrap();
        let first = hops.iter().find(|hop| hop.real == Some(v4(11).into()));
        let first = first.unwrap().mac.unwrap().to_string();
        assert!(own.contains(&first), "{own}: {first}");

        // A real without a neighbour: dropped and counted, unless a router's address was given.
        let nowhere = Vip::tcp((network.lab.vip4(), 81).into());
        network.katran.add_vip(nowhere, VipFlags::empty()).unwrap();
        let real = katran::Real::new(v4(77).into());
        network.katran.add_real(nowhere, real).unwrap();
        let flow = "192.0.2.9:1234".parse().unwrap();
        let frame = crate::frame::syn(flow, site::service(nowhere));
        let ran = network.katran.simulate(&frame).unwrap();
        match gateway {
            Gateway::Auto => assert_eq!(
                ran.reason,
                katran::flows::Reason::Dropped(DropReason::NextHopUnknown)
            ),
            Gateway::Mac(mac) => assert_eq!(ran.frame[..6], mac.octets()),
        }
        network.katran.remove_vip(nowhere).unwrap();
        assert_eq!(network.katran.gateways().next_hops().len(), 2 * BACKENDS);

        // Another server takes over the address.
        let backend = &network.backends[0];
        backend.sysctl("net.ipv4.conf.eth0.arp_notify", 1).unwrap();
        let new = "02:00:00:00:00:79";
        backend.ip(&format!("link set eth0 address {new}")).unwrap();
        site::eventually("the new address is in use", || {
            let hops = network.katran.gateways().next_hops();
            let mut first = hops.iter().filter(|hop| hop.real == Some(v4(11).into()));
            first.next().unwrap().mac == Some(mac(new))
        });
        network.check(&vips[1..]);
    }
}

#[test]
fn packets_leave_by_the_interface_that_leads_to_the_real() {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let mut network = Segment::new(Arrival::OwnLink, |builder| {
            builder.gateway(Gateway::Auto).next_hops(NextHops::Redirect)
        });
        let balancer = &network.lab.balancers[0].host;
        balancer.run(|| network.katran.attach("eth0", mode).unwrap());
        let vips = network.serve();
        // Until then packets are dropped, as no next hop is known.
        site::eventually("all next hops are known", || {
            let hops = network.katran.gateways().next_hops();
            hops.iter().all(|hop| hop.mac.is_some())
        });
        network.check(&vips);
        let hops = network.katran.gateways().next_hops();
        assert!(!hops.is_empty());
        for hop in &hops {
            assert_eq!(hop.interface.as_deref(), Some("eth1"));
        }
        let totals = network.katran.stats().totals().unwrap();
        assert!(totals.tx.packets > 0);
        assert_eq!(
            totals.drop.packets,
            0,
            "{:?}",
            network.katran.stats().drop_reasons()
        );
        // Also for packets that arrive there: they leave by the same interface.
        let router = &network.lab.router;
        let balancer = &network.lab.balancers[0].host;
        balancer.run(|| network.katran.attach("eth1", mode).unwrap());
        let vip = network.lab.vip4();
        router
            .ip(&format!("route replace {vip}/32 via {}", v4(2)))
            .unwrap();
        network.check(&vips[..1]);
        assert_eq!(network.katran.stats().totals().unwrap().drop.packets, 0);
    }
}

#[test]
fn a_recreated_interface_leads_to_reals_again() {
    let mut network = Segment::new(Arrival::OwnLink, |builder| {
        builder.gateway(Gateway::Auto).next_hops(NextHops::Redirect)
    });
    let balancer = &network.lab.balancers[0].host;
    let mut attach = || network.katran.attach("eth0", XdpMode::Native).unwrap();
    balancer.run(&mut attach);
    let vips = network.serve();
    let all_by = |network: &Segment, interface: &str| {
        site::eventually("all next hops are known", || {
            let hops = network.katran.gateways().next_hops();
            hops.iter()
                .all(|hop| hop.interface.as_deref() == Some(interface) && hop.answers)
        });
    };
    all_by(&network, "eth1");
    let check = |network: &Segment| {
        network.check(&vips);
        // The last packets of its connections would be lost with the interface.
        site::connections_end(&network.lab.client);
    };
    check(&network);
    for _ in 0..2 {
        network.lab.balancers[0].host.ip("link del eth1").unwrap();
        // Only the router's link is left, and it reaches the other backend.
        all_by(&network, "eth0");
        check(&network);
        network.join_again();
        all_by(&network, "eth1");
        check(&network);
    }
    let totals = network.katran.stats().totals().unwrap();
    assert_eq!(
        totals.drop.packets,
        0,
        "{:?}",
        network.katran.stats().drop_reasons()
    );
}

#[test]
fn before_attaching_packets_go_to_the_given_address() {
    let first = mac("02:00:00:00:00:91");
    let mut katran = site::small(first)
        .next_hops(NextHops::PerReal)
        .load()
        .unwrap();
    let vip = Vip::tcp("203.0.113.1:80".parse().unwrap());
    site::add_service(&mut katran, vip, &["198.51.100.1".parse().unwrap()]);
    let frame = crate::frame::syn("192.0.2.9:1234".parse().unwrap(), site::service(vip));
    for gateway in [first, mac("02:00:00:00:00:92")] {
        katran.gateways_mut().set_mac(gateway).unwrap();
        let ran = katran.simulate(&frame).unwrap();
        assert_eq!(ran.frame[..6], gateway.octets());
    }
}
