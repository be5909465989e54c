//! The backend's decapsulator: which packets it unwraps, and which it leaves alone.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use katran::Decap;
use katran::Vip;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::LabConfig;
use katran_lab::UdpClient;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// Packets of unknown protocols that the host's stack received: here, tunnelled ones.
fn unknown_protocols(host: &Host) -> u64 {
    host.run(|| {
        let v6 = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
        let value = v6
            .lines()
            .find_map(|line| line.strip_prefix("Ip6InUnknownProtos"));
        let v6: u64 = value.unwrap().trim().parse().unwrap();
        let v4 = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut lines = v4.lines().filter(|line| line.starts_with("Ip:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let column = names.split(' ').position(|name| name == "InUnknownProtos");
        let v4: u64 = values
            .split(' ')
            .nth(column.unwrap())
            .unwrap()
            .parse()
            .unwrap();
        v4 + v6
    })
}

#[test]
fn tunnels_to_other_addresses_are_passed_untouched_if_strict() {
    let mut site = Site::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    });
    let _server = site.lab.serve_udp(PORT).unwrap();
    let backend = &site.lab.backends[0];
    let second: [IpAddr; 2] = ["198.51.100.77", "2001:db8:2::77"].map(|a| a.parse().unwrap());
    for address in second {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let prefix = format!("{address}/{length}");
        site::add_to_lo(&backend.host, address);
        let to = &backend.router_interface;
        let via = if address.is_ipv4() {
            IpAddr::from(backend.v4)
        } else {
            IpAddr::from(backend.v6)
        };
        site.lab
            .router
            .ip(&format!("route add {prefix} via {via} dev {to} onlink"))
            .unwrap();
    }
    // Addresses of both families; of one only, so that tunnels of the other do not end here; none.
    for (own, taken) in [
        (vec![backend.v4.into(), backend.v6.into()], [true, true]),
        (vec![IpAddr::from(backend.v4)], [true, false]),
        (vec![IpAddr::from(backend.v6)], [false, true]),
    ] {
        let mut strict = Decap::builder();
        for address in own {
            strict = strict.destination(address);
        }
        site.decaps.clear();
        let mut strict = strict.load().unwrap();
        backend
            .host
            .run(|| strict.attach("eth0", XdpMode::Native).unwrap());
        site.decaps.push(strict);

        for (address, taken) in [site.lab.vip4(), site.lab.vip6()].into_iter().zip(taken) {
            let vip = Vip::udp((address, PORT).into());
            let (own, other) = match address {
                IpAddr::V4(_) => (IpAddr::from(backend.v4), second[0]),
                IpAddr::V6(_) => (IpAddr::from(backend.v6), second[1]),
            };
            site::add_service(&mut site.katran, vip, &[own]);
            let before = site.decaps[0].counters().unwrap();
            let unknown = unknown_protocols(&backend.host);
            let socket = site::udp(&site.lab.client, vip);
            if taken {
                assert_eq!(socket.ask(b"who").unwrap(), "backend0");
            } else {
                site::ask_udp_in_vain(&socket);
            }
            // A tunnel to an address that is not this host's, though the packet arrived here.
            site::replace_real(&mut site.katran, vip, own, other);
            site::ask_udp_in_vain(&site::udp(&site.lab.client, vip));

            let passed = if taken { 1 } else { 2 };
            site::eventually("the host's stack has them", || {
                unknown_protocols(&backend.host) - unknown >= passed
            });
            let after = site.decaps[0].counters().unwrap();
            assert_eq!(after.foreign - before.foreign, passed);
            assert_eq!(unknown_protocols(&backend.host) - unknown, passed);
            let out = (
                after.ipip_v4 - before.ipip_v4,
                after.ipip_v6 - before.ipip_v6,
            );
            let expected = match (taken, address) {
                (false, _) => (0, 0),
                (true, IpAddr::V4(_)) => (1, 0),
                (true, IpAddr::V6(_)) => (0, 1),
            };
            assert_eq!(out, expected);
            site.katran.remove_vip(vip).unwrap();
        }
    }
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}

#[test]
fn fragments_and_options_outside_of_tunnels_pass() {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let site = Site::with(LabConfig::default(), mode, |builder| builder);
        let servers = site.lab.serve_udp(PORT).unwrap();
        let backend = &site.lab.backends[0];
        let before = site.decaps[0].counters().unwrap();
        for address in [IpAddr::from(backend.v4), IpAddr::from(backend.v6)] {
            let client = UdpClient::connect(&site.lab.client, (address, PORT).into()).unwrap();
            // Three fragments each.
            assert_eq!(client.ask(&[0x5a; 4000]).unwrap(), "backend0");
        }
        assert_eq!(servers[0].received(), 2);
        // Record route: an IPv4 option, in the request as sent and as the backend receives it.
        let mut ping = Command::new("ping");
        ping.args(["-c", "2", "-i", "0.02", "-W", "5", "-R"])
            .arg(backend.v4.to_string());
        let output = site.lab.client.output(ping).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("RR:"), "{text}");

        let after = site.decaps[0].counters().unwrap();
        assert!(after.total - before.total >= 8, "{after:?}");
        assert_eq!((after.ipip_v4, after.ipip_v6, after.foreign), (0, 0, 0));
        let dropped = (
            after.drop_fragment,
            after.drop_options,
            after.drop_truncated,
        );
        assert_eq!(dropped, (0, 0, 0));
    }
}

#[test]
fn without_a_decapsulator_there_is_no_answer() {
    let mut site = Site::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    });
    let server = site.lab.serve_udp(PORT).unwrap();
    let vip = Vip::udp((site.lab.vip4(), PORT).into());
    site.add_service(vip, &site::reals(&site.lab, vip.address()));
    let socket = site::udp(&site.lab.client, vip);
    assert_eq!(socket.ask(b"who").unwrap(), "backend0");
    assert_eq!(site.decapsulated(), (1, 0));
    let backend = &site.lab.backends[0].host;
    let unknown = unknown_protocols(backend);

    site.decaps.clear();
    site::ask_udp_in_vain(&socket);
    site::eventually("the host's stack has it", || {
        unknown_protocols(backend) - unknown == 1
    });
    assert_eq!(server[0].received(), 1);
}
