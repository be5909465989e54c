//! Traffic in all mixes of families, both protocols and both attach modes, with the longest frames;
//! several interfaces; echo requests.

use std::net::IpAddr;
use std::process::Command;

use katran::Builder;
use katran::Encapsulation;
use katran::Flow;
use katran::Protocol;
use katran::Vip;
use katran::XdpMode;
use katran::stats::DropReason;
use katran_lab::Host;
use katran_lab::LabConfig;
use katran_lab::UdpClient;
use katran_lab::veth;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

const UPLOAD: usize = 2_000_000;
const DOWNLOAD: usize = 2_000_000;

#[test]
fn all_families_and_protocols_in_native_mode() {
    every_mix(XdpMode::Native, |builder| builder);
}

#[test]
fn all_families_and_protocols_with_a_program_that_takes_fragmented_buffers() {
    every_mix(XdpMode::Native, |builder| builder.frags(true));
}

#[test]
fn all_families_and_protocols_over_gue() {
    every_mix(XdpMode::Native, |builder| {
        builder
            .encapsulation(Encapsulation::Gue)
            .source_v4("198.18.0.10".parse().unwrap())
            .source_v6("2001:db8:ffff::10".parse().unwrap())
    });
}

#[test]
fn all_families_and_protocols_in_generic_mode() {
    every_mix(XdpMode::Generic, |builder| builder);
}

/// Two VIPs of each family, one with reals of its family and one with reals of the other; TCP with
/// much data in both directions, and UDP with the largest datagrams that fit.
fn every_mix(mode: XdpMode, settings: fn(Builder) -> Builder) {
    let vips: Vec<IpAddr> = [
        "203.0.113.1",
        "203.0.113.2",
        "2001:db8:1::1",
        "2001:db8:1::2",
    ]
    .map(|address| address.parse().unwrap())
    .into();
    let config = LabConfig {
        vips: vips.clone(),
        ..LabConfig::default()
    };
    let mut site = Site::with(config, mode, settings);
    let (_tcp, _udp) = (
        site.lab.serve_tcp(PORT).unwrap(),
        site.lab.serve_udp(PORT).unwrap(),
    );
    let mixes = [
        (vips[0], vips[0]),
        (vips[1], vips[2]),
        (vips[2], vips[2]),
        (vips[3], vips[0]),
    ];
    for (address, family_of_reals) in mixes {
        let reals = site::reals(&site.lab, family_of_reals);
        for vip in [
            Vip::tcp((address, PORT).into()),
            Vip::udp((address, PORT).into()),
        ] {
            site.add_service(vip, &reals);
        }
        let before = site.decapsulated();
        transfer_by_tcp(&site, Vip::tcp((address, PORT).into()));
        exchange_by_udp(&site, Vip::udp((address, PORT).into()));
        // Their last packets would count for this mix.
        site::connections_end(&site.lab.client);

        let forwarded = site.katran.stats().reals(&reals).unwrap();
        assert!(forwarded.iter().all(|real| real.forwarded.packets > 0));
        let now = site.decapsulated();
        let (same, other) = if family_of_reals.is_ipv4() {
            (now.0 - before.0, now.1 - before.1)
        } else {
            (now.1 - before.1, now.0 - before.0)
        };
        assert!(same > 1_400, "{same} packets came out of tunnels");
        assert_eq!(other, 0, "the outer header is of the real's family");
    }
    // The backends received all that the balancer sent: no packet was lost or malformed.
    let all: Vec<IpAddr> = site
        .katran
        .real_numbers()
        .iter()
        .map(|real| real.0)
        .collect();
    let sent = || -> u64 {
        let reals = site.katran.stats().reals(&all).unwrap();
        reals.iter().map(|real| real.forwarded.packets).sum()
    };
    site::eventually("all that was sent arrives", || {
        let (v4, v6) = site.decapsulated();
        v4 + v6 == sent()
    });
    let totals = site.katran.stats().totals().unwrap();
    assert_eq!(totals.drop.packets, 0, "{}", site.report());
    assert!(totals.tx.packets >= sent());
}

fn transfer_by_tcp(site: &Site, vip: Vip) {
    let line = "x".repeat(UPLOAD);
    for backend in &site.lab.backends {
        let name = backend.host.name();
        let mut client = site.connect_to(vip, name);
        assert_eq!(site.expected(site::flow_of(&client, vip)), name);
        let before = site.katran.stats().vip(vip).unwrap().forwarded;
        assert_eq!(client.ask(&line).unwrap(), name);
        let after = site.katran.stats().vip(vip).unwrap().forwarded;
        let (packets, bytes) = (after.packets - before.packets, after.bytes - before.bytes);
        assert!(bytes > UPLOAD as u64);
        assert!(
            bytes / packets > 1_300,
            "full-size segments: {bytes} bytes in {packets} packets"
        );
        let answer = client.ask(&format!("fill {DOWNLOAD}")).unwrap();
        assert_eq!(answer.len(), name.len() + 1 + DOWNLOAD);
    }
}

fn exchange_by_udp(site: &Site, vip: Vip) {
    let largest = match vip.address() {
        IpAddr::V4(_) => 1500 - 20 - 8,
        IpAddr::V6(_) => 1500 - 40 - 8,
    };
    let mut names = Vec::new();
    for _ in 0..40 {
        let client = site::udp(&site.lab.client, vip);
        let flow = Flow::udp(client.local_addr().unwrap(), site::service(vip));
        let name = client.ask(&vec![0x5a; largest]).unwrap();
        // Again, with the smallest: from the flow table this time.
        assert_eq!(client.ask(b"").unwrap(), name);
        assert_eq!(site.expected(flow), name);
        names.push(name);
    }
    for backend in &site.lab.backends {
        assert!(names.iter().any(|name| name == backend.host.name()));
    }
    let forwarded = site.katran.stats().vip(vip).unwrap().forwarded;
    assert_eq!(forwarded.packets, 80);
}

#[test]
fn one_balancer_on_two_interfaces() {
    let mut site = Site::new(LabConfig::default());
    let lab = &site.lab;
    let balancer = &lab.balancers[0];
    // A second link between the two, by which the router sends the IPv6 VIP. The router's end has
    // the gateway's MAC address too, as there can be only one.
    let end = balancer.host.port("eth1").mac([2, 0, 0, 9, 0, 1]);
    let router = lab.router.port("bal0b").mac(balancer.gateway_mac);
    veth(end, router.takes_xdp_tx(), 1600).unwrap();
    for (host, interface, address) in [
        (&balancer.host, "eth1", "2001:db8:b:ff::2/64"),
        (&lab.router, "bal0b", "2001:db8:b:ff::1/64"),
    ] {
        host.ip(&format!("addr add {address} dev {interface} nodad"))
            .unwrap();
    }
    let vip6 = lab.vip6();
    lab.router
        .ip(&format!("route replace {vip6}/128 via 2001:db8:b:ff::2"))
        .unwrap();
    let katran = &mut site.katran;
    let attached = balancer
        .host
        .run(|| katran.attach("eth1", XdpMode::Native).unwrap());
    assert_eq!(attached.mode, XdpMode::Native);
    let names: Vec<_> = katran
        .interfaces()
        .into_iter()
        .map(|a| a.interface)
        .collect();
    assert_eq!(names, ["eth0", "eth1"]);

    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let received = |interface: &str| -> u64 {
        let statistics = site
            .lab
            .router
            .tool("ethtool", &format!("-S {interface}"))
            .unwrap();
        let (_, number) = statistics.split_once("rx_queue_0_xdp_packets: ").unwrap();
        number.lines().next().unwrap().parse().unwrap()
    };
    let vips = [site.lab.vip4(), vip6].map(|address| Vip::tcp((address, PORT).into()));
    for (vip, interface, other) in [(vips[0], "bal0", "bal0b"), (vips[1], "bal0b", "bal0")] {
        let reals = site::reals(&site.lab, vip.address());
        site::add_service(&mut site.katran, vip, &reals);
        let before = (received(interface), received(other));
        let mut client = site::connect(&site.lab.client, vip);
        let name = client.ask("who").unwrap();
        let line = "x".repeat(200_000);
        assert_eq!(client.ask(&line).unwrap(), name);
        let forwarded = site.katran.stats().vip(vip).unwrap().forwarded.packets;
        assert!(forwarded > 100);
        site::eventually("frames leave where they came in", || {
            received(interface) - before.0 >= forwarded
        });
        // Neighbour discovery uses the other one now and then.
        assert!(received(other) - before.1 < 50);
    }
    // The other continues when one is detached.
    site.katran.detach("eth0").unwrap();
    let left: Vec<_> = site.katran.interfaces();
    assert_eq!(left.len(), 1);
    site::connect(&site.lab.client, vips[1]).ask("who").unwrap();
}

fn ping(host: &Host, arguments: &str) -> bool {
    let mut command = Command::new("ping");
    command.args(arguments.split_whitespace());
    host.output(command).unwrap().status.success()
}

#[test]
fn echo_requests_are_answered_by_the_balancer() {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let mut site = Site::with(LabConfig::default(), mode, |builder| builder);
        for vip in [site.lab.vip4(), site.lab.vip6()] {
            let service = Vip::new((vip, PORT).into(), Protocol::Tcp);
            site.add_service(service, &[site.lab.backends[0].v4.into()]);
        }
        let balancer = &site.lab.balancers[0];
        // The program answers for VIPs, the host for itself.
        for (v4, v6) in [
            (site.lab.vip4(), site.lab.vip6()),
            (balancer.v4.into(), balancer.v6.into()),
        ] {
            for size in [0, 56, 1400] {
                for address in [v4, v6] {
                    let arguments = format!("-c 2 -i 0.02 -W 5 -s {size} {address}");
                    assert!(ping(&site.lab.client, &arguments), "{}", site.report());
                }
            }
        }
        let icmp = site.katran.stats().icmp().unwrap();
        assert_eq!((icmp.echo_v4, icmp.echo_v6), (6, 6));
        assert_eq!(site.decapsulated(), (0, 0), "no backend was asked");
        assert!(site.katran.stats().totals().unwrap().tx.packets == 12);

        // IPv4 options (record route) are dropped, and so are fragments.
        for arguments in ["-R", "-s 3000"] {
            let arguments = format!("-c 1 -W 1 {arguments} {}", site.lab.vip4());
            assert!(!ping(&site.lab.client, &arguments));
        }
        let drops = site.katran.stats().drop_reasons().unwrap();
        assert_eq!(drops.get(DropReason::Ipv4Options), 1);
        assert_eq!(drops.get(DropReason::Ipv4Fragment), 3);
        let icmp = site.katran.stats().icmp().unwrap();
        assert_eq!((icmp.echo_v4, icmp.echo_v6), (6, 6));
    }
}

#[test]
fn other_packets_reach_the_balancers_own_stack() {
    let mut site = Site::new(LabConfig::default());
    let vip = Vip::udp((site.lab.vip4(), PORT).into());
    site.add_service(vip, &site::reals(&site.lab, vip.address()));
    let balancer = &site.lab.balancers[0];
    let address = IpAddr::from(balancer.v4);
    let own = katran_lab::UdpServer::start(&balancer.host, &[address], PORT, "balancer").unwrap();
    let client = UdpClient::connect(&site.lab.client, (address, PORT).into()).unwrap();
    let before = site.katran.stats().totals().unwrap();
    for _ in 0..10 {
        assert_eq!(client.ask(b"who").unwrap(), "balancer");
    }
    assert_eq!(own.received(), 10);
    let totals = site.katran.stats().totals().unwrap();
    assert!(totals.pass.packets - before.pass.packets >= 10);
    assert_eq!(totals.tx, before.tx);
    assert_eq!(totals.drop.packets, 0);
}
