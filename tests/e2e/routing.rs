//! What chooses a real besides ring and flow table: source routes, the global flow table, marks;
//! and prefix VIPs.

use std::net::IpAddr;
use std::net::SocketAddr;

use katran::Features;
use katran::Flow;
use katran::FlowTracking;
use katran::Prefix;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::flows::Choice;
use katran_lab::LabConfig;
use katran_lab::TcpClient;
use katran_lab::UdpClient;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

fn site(features: Features) -> Site {
    Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.features(Features::default() | features)
    })
}

#[test]
fn clients_of_a_prefix_go_to_the_real_of_its_route() {
    let mut site = site(Features::SOURCE_ROUTING);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    for (address, clients, prefix) in [
        (
            site.lab.vip4(),
            ["192.0.2.2", "192.0.2.130"],
            "192.0.2.128/25",
        ),
        (
            site.lab.vip6(),
            ["2001:db8:c::2", "2001:db8:c::80:1"],
            "2001:db8:c::80:0/112",
        ),
    ] {
        let length = if address.is_ipv4() { "24" } else { "64 nodad" };
        let add = format!("addr add {}/{length} dev eth0", clients[1]);
        site.lab.client.ip(&add).unwrap();
        site::eventually_local(&site.lab.client, clients[1].parse().unwrap(), "eth0");
        let prefix: Prefix = prefix.parse().unwrap();
        let vip = Vip::tcp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        site.katran.add_vip(vip, VipFlags::SRC_ROUTING).unwrap();
        site.katran.add_real(vip, Real::new(reals[0])).unwrap();
        site.katran
            .source_routes_mut()
            .add(&[prefix], reals[1])
            .unwrap();
        let host = &site.lab.client;
        let [plain, in_prefix] = clients.map(|client| {
            let local = SocketAddr::new(client.parse().unwrap(), 0);
            move || TcpClient::connect_from(host, local, site::service(vip)).unwrap()
        });
        let matched = || site.katran.stats().source_routing().unwrap().matched;
        let before = matched();
        let mut others = Vec::new();
        for _ in 0..8 {
            let mut client = plain();
            assert_eq!(client.ask("who").unwrap(), "backend0");
            others.push(client);
        }
        assert_eq!(matched(), before);
        let mut routed = in_prefix();
        let flow = site::flow_of(&routed, vip);
        assert_eq!(routed.ask("who").unwrap(), "backend1");
        assert!(matched() > before);
        let answer = site.katran.real_for_flow(&flow).unwrap().unwrap();
        assert!(matches!(answer.choice, Choice::FlowTable { .. }));
        let unseen = Flow::tcp((flow.source.ip(), 1).into(), flow.destination);
        let answer = site.katran.real_for_flow(&unseen).unwrap().unwrap();
        assert_eq!(answer.real, Some(reals[1]));
        assert_eq!(answer.choice, Choice::SourceRoute { prefix });

        // Without the route old connections stay, and new ones follow the ring. The VIP keeps the
        // real in use.
        site.katran
            .add_real(vip, Real::new(reals[1]).weight(0))
            .unwrap();
        site.katran.source_routes_mut().remove(&[prefix]).unwrap();
        assert_eq!(routed.ask(&"x".repeat(30_000)).unwrap(), "backend1");
        let mut late = in_prefix();
        assert_eq!(late.ask("who").unwrap(), "backend0");
        for client in &mut others {
            assert_eq!(client.ask("still").unwrap(), "backend0");
        }
    }
    // A retransmitted SYN counts again in both counters.
    let counters = site.katran.stats().source_routing().unwrap();
    assert!(
        counters.matched >= 2 && counters.unmatched >= 18,
        "{counters:?}"
    );
    let syns = site.katran.stats().flow_table().unwrap().miss_syn;
    assert_eq!(counters.matched + counters.unmatched, syns);
}

#[test]
fn vips_may_be_prefixes_with_a_port_and_without() {
    let vips: Vec<IpAddr> = [
        "203.0.113.1",
        "203.0.113.2",
        "203.0.113.130",
        "2001:db8:1::1",
        "2001:db8:1::2",
        "2001:db8:1::8000:1",
    ]
    .map(|address| address.parse().unwrap())
    .into();
    let config = LabConfig {
        vips: vips.clone(),
        backends: 4,
        ..LabConfig::default()
    };
    let mut site = Site::new(config);
    let other_port = PORT + 1;
    let _servers = [PORT, other_port].map(|port| site.lab.serve_tcp(port).unwrap());
    let _udp = site.lab.serve_udp(PORT).unwrap();
    // The first address has its own VIP; then match the longer prefix, the shorter one with the
    // port, and the shorter one for all ports.
    for (exact, long, short) in [
        ("203.0.113.1:80", "203.0.113.128/25:80", "203.0.113.0/24"),
        (
            "[2001:db8:1::1]:80",
            "[2001:db8:1::8000:0/112]:80",
            "2001:db8:1::/64",
        ),
    ] {
        let any_family = if exact.starts_with('[') { 3 } else { 0 };
        let vip = |text: String| -> Vip { text.parse().unwrap() };
        let with_port = |port| match any_family {
            0 => vip(format!("{short}:{port}/tcp")),
            _ => vip(format!("[{short}]:{port}/tcp")),
        };
        let reals = site::reals(&site.lab, vips[any_family]);
        let services = [
            vip(format!("{exact}/tcp")),
            vip(format!("{long}/tcp")),
            with_port(PORT),
            with_port(0),
        ];
        for (service, real) in services.iter().zip(&reals) {
            site.add_service(*service, &[*real]);
        }
        let who = |address: IpAddr, port: u16| {
            let mut client = TcpClient::connect(&site.lab.client, (address, port).into()).unwrap();
            let answer = client.ask(&"x".repeat(20_000)).unwrap();
            let flow = Flow::tcp(client.local_addr().unwrap(), (address, port).into());
            assert_eq!(site.expected(flow), answer);
            answer
        };
        for (index, port, backend) in [
            (0, PORT, "backend0"),
            (1, PORT, "backend2"),
            (2, PORT, "backend1"),
            (0, other_port, "backend3"),
            (1, other_port, "backend3"),
            (2, other_port, "backend3"),
        ] {
            let address = vips[any_family + index];
            assert_eq!(who(address, port), backend, "{address} {port}");
        }
        for service in services {
            let counters = site.katran.stats().vip(service).unwrap();
            assert!(counters.forwarded.packets > 0, "{service}");
        }
        // UDP has none of these yet.
        let udp = match any_family {
            0 => vip(format!("{short}:0/udp")),
            _ => vip(format!("[{short}]:0/udp")),
        };
        let passed = site.katran.stats().totals().unwrap().pass.packets;
        let remote = (vips[any_family], PORT).into();
        let socket = UdpClient::connect(&site.lab.client, remote).unwrap();
        site::ask_udp_in_vain(&socket);
        assert!(site.katran.stats().totals().unwrap().pass.packets > passed);
        site.add_service(udp, &[reals[1]]);
        let socket = UdpClient::connect(&site.lab.client, remote).unwrap();
        assert_eq!(socket.ask(b"who").unwrap(), "backend1");
    }
}

#[test]
fn the_host_application_chooses_a_flows_real() {
    let mut site = site(Features::GLOBAL_FLOW_TABLE);
    let _servers = site.lab.serve_udp(PORT).unwrap();
    for address in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::udp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        let flags = VipFlags::GLOBAL_LRU | VipFlags::LRU_BYPASS;
        site.katran.add_vip(vip, flags).unwrap();
        site.katran.add_real(vip, Real::new(reals[0])).unwrap();
        // Known, but without a slot.
        let drained = Real::new(reals[1]).weight(0);
        site.katran.add_real(vip, drained).unwrap();
        let socket = site::udp(&site.lab.client, vip);
        assert_eq!(socket.ask(b"who").unwrap(), "backend0");
        let flow = Flow::udp(socket.local_addr().unwrap(), site::service(vip));
        // The lab's client arrives on CPU 0.
        site.katran
            .global_flows_mut()
            .set(0, &flow, reals[1])
            .unwrap();
        let answer = site.katran.real_for_flow(&flow).unwrap().unwrap();
        assert_eq!(answer.choice, Choice::GlobalFlowTable { cpu: Some(0) });
        for _ in 0..3 {
            assert_eq!(socket.ask(b"who").unwrap(), "backend1");
        }
        let other = site::udp(&site.lab.client, vip);
        assert_eq!(other.ask(b"who").unwrap(), "backend0");
        assert!(site.katran.global_flows_mut().remove(0, &flow).unwrap());
        assert_eq!(socket.ask(b"who").unwrap(), "backend0");
    }
    assert_eq!(site.katran.stats().global_flows().unwrap().hits, 6);
}

#[test]
fn udp_flows_leave_a_real_that_is_marked_down() {
    let mut site = site(Features::empty());
    let _servers = site.lab.serve_udp(PORT).unwrap();
    for address in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::udp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        site.katran
            .add_vip(vip, VipFlags::UDP_FLOW_MIGRATION)
            .unwrap();
        for real in &reals {
            site.katran.add_real(vip, Real::new(*real)).unwrap();
        }
        let sockets: Vec<(UdpClient, String)> = (0..32)
            .map(|_| {
                let socket = site::udp(&site.lab.client, vip);
                let name = socket.ask(b"who").unwrap();
                (socket, name)
            })
            .collect();
        let on = |name| sockets.iter().filter(|(_, of)| of == name).count() as u64;
        let (first, second) = (on("backend0"), on("backend1"));
        assert!(first > 0 && second > 0);
        // A drained real keeps its flows; marked down, too, it loses them.
        let drained = Real::new(reals[0]).weight(0);
        site.katran.add_real(vip, drained).unwrap();
        for (socket, name) in &sockets {
            assert_eq!(socket.ask(b"who").unwrap(), *name);
        }
        let before = site.katran.stats().udp_flow_migration().unwrap();
        site.katran.mark_down(vip, reals[0]).unwrap();
        for _ in 0..2 {
            for (socket, _) in &sockets {
                assert_eq!(socket.ask(b"who").unwrap(), "backend1");
            }
        }
        let after = site.katran.stats().udp_flow_migration().unwrap();
        assert_eq!(after.invalidated - before.invalidated, first, "once each");
        // The flows have moved for good.
        site.katran.mark_up(vip, reals[0]).unwrap();
        site.katran.add_real(vip, Real::new(reals[0])).unwrap();
        for (socket, _) in &sockets {
            assert_eq!(socket.ask(b"who").unwrap(), "backend1");
        }
    }
}

#[test]
fn flows_can_be_listed_and_purged_while_active() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.flow_tracking(FlowTracking::All)
    });
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    for address in [site.lab.vip4(), site.lab.vip6()] {
        let vip = Vip::tcp((address, PORT).into());
        let reals = site::reals(&site.lab, address);
        site.add_service(vip, &reals);
        let mut clients: Vec<_> = (0..16)
            .map(|_| site::connect(&site.lab.client, vip))
            .collect();
        let names: Vec<String> = clients
            .iter_mut()
            .map(|client| client.ask("who").unwrap())
            .collect();
        // One entry each, and a second one where a packet arrived on another CPU.
        let entries = |site: &Site| {
            let stats = site.katran.flows().stats(vip).unwrap();
            assert_eq!(stats.stale, 0, "{stats:?}");
            stats.entries
        };
        let before = entries(&site);
        assert!((16..=32).contains(&before), "{before}");
        for (client, name) in clients.iter().zip(&names) {
            let found = site
                .katran
                .flows()
                .find(&site::flow_of(client, vip))
                .unwrap();
            assert!(!found.is_empty());
            for entry in found {
                assert_eq!(site::backend_at(&site.lab, entry.real.unwrap()), *name);
            }
        }
        // Forgotten flows follow the ring, which leads them to the same place.
        let of_first = names.iter().filter(|name| *name == "backend0").count() as u64;
        let purged = site.katran.flows_mut().purge_real(vip, reals[0]).unwrap();
        assert!((of_first..=2 * of_first).contains(&purged));
        let rest = site.katran.flows_mut().purge(vip).unwrap();
        assert_eq!(purged + rest, before);
        assert_eq!(entries(&site), 0);
        for (client, name) in clients.iter_mut().zip(&names) {
            assert_eq!(client.ask(&"x".repeat(20_000)).unwrap(), *name);
        }
        // Remembered again: a drained real keeps only remembered flows.
        assert!(entries(&site) >= 16);
        let lost = names.iter().position(|name| name == "backend0").unwrap();
        let drained = Real::new(reals[0]).weight(0);
        site.katran.add_real(vip, drained).unwrap();
        let flow = site::flow_of(&clients[lost], vip);
        assert!(site.katran.flows_mut().remove(&flow).unwrap() >= 1);
        for (index, (client, name)) in clients.iter_mut().zip(&names).enumerate() {
            let answer = client.ask("still");
            match index == lost {
                false => assert_eq!(answer.unwrap(), *name),
                true => assert!(answer.is_err()),
            }
        }
    }
}
