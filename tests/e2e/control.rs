//! Changes an operator makes under traffic: the gateway's MAC address, and packets on CPUs without
//! a flow table.

use katran::Family;
use katran::Flow;
use katran::FlowTracking;
use katran::MacAddr;
use katran::Real;
use katran::Vip;
use katran::XdpMode;
use katran::flows::Choice;
use katran_lab::LabConfig;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

#[test]
fn traffic_follows_the_gateways_mac_address() {
    let mut site = Site::new(LabConfig::default());
    let _servers = (
        site.lab.serve_tcp(PORT).unwrap(),
        site.lab.serve_udp(PORT).unwrap(),
    );
    let right = site.katran.gateways().mac(Family::V4);
    let wrong: MacAddr = "02:00:00:00:00:99".parse().unwrap();
    for address in [site.lab.vip4(), site.lab.vip6()] {
        let (tcp, udp) = (
            Vip::tcp((address, PORT).into()),
            Vip::udp((address, PORT).into()),
        );
        let reals = site::reals(&site.lab, address);
        site.add_service(tcp, &reals);
        site.add_service(udp, &reals);
        let mut connection = site::connect(&site.lab.client, tcp);
        let name = connection.ask("who").unwrap();
        let socket = site::udp(&site.lab.client, udp);
        let before = socket.ask(b"who").unwrap();

        site.katran.gateways_mut().set_mac(wrong).unwrap();
        assert_eq!(site.katran.gateways().mac(Family::V4), wrong);
        // Forwarded, but to a MAC address that no host has.
        let sent = site.katran.stats().totals().unwrap().tx.packets;
        site::ask_udp_in_vain(&socket);
        site::ask_in_vain(&mut connection);
        assert!(site.katran.stats().totals().unwrap().tx.packets >= sent + 2);

        // TCP retransmits what was lost.
        site.katran.gateways_mut().set_mac(right).unwrap();
        assert_eq!(connection.ask("back").unwrap(), name);
        assert_eq!(socket.ask(b"back").unwrap(), before);
    }
    // A multicast address is refused.
    let all = "ff:ff:ff:ff:ff:ff".parse().unwrap();
    assert!(site.katran.gateways_mut().set_mac(all).is_err());
    assert_eq!(site.katran.gateways().mac(Family::V4), right);
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
}

#[test]
fn a_cpu_without_a_flow_table_uses_the_shared_one() {
    let [other, .., last] = site::cpus()[..] else {
        panic!("this test needs two CPUs");
    };
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder
            .flow_tracking(FlowTracking::All)
            .forwarding_cpus([last])
    });
    assert_eq!(site::arrive_on_one_cpu(&site.lab), other);
    let _servers = site.lab.serve_udp(PORT).unwrap();
    let address = site.lab.vip4();
    let vip = Vip::udp((address, PORT).into());
    let reals = site::reals(&site.lab, address);
    site.add_service(vip, &reals[..1]);
    let socket = site::udp(&site.lab.client, vip);
    assert_eq!(socket.ask(b"who").unwrap(), "backend0");
    let flow = Flow::udp(socket.local_addr().unwrap(), site::service(vip));
    let answer = site.katran.real_for_flow(&flow).unwrap().unwrap();
    assert_eq!(answer.choice, Choice::FallbackTable);

    // The flow table keeps the flow on a real that the ring would not choose.
    site.katran.add_real(vip, Real::new(reals[1])).unwrap();
    let drained = Real::new(reals[0]).weight(0);
    site.katran.add_real(vip, drained).unwrap();
    // Keeps the sockets open, so that the kernel does not reuse a port.
    let mut others = Vec::new();
    for _ in 0..20 {
        assert_eq!(socket.ask(b"still").unwrap(), "backend0");
        let new = site::udp(&site.lab.client, vip);
        assert_eq!(new.ask(b"who").unwrap(), "backend1");
        others.push(new);
    }
    let counters = site.katran.stats().flow_table().unwrap();
    assert_eq!((counters.packets, counters.misses), (41, 21));
    assert_eq!(counters.fallback, 41, "all of them");
    let of_cpus = site.katran.stats().cpus().unwrap();
    let forwarded = |cpu| of_cpus.iter().find(|c| c.cpu == cpu).unwrap().forwarded;
    assert_eq!((forwarded(other), forwarded(last)), (41, 0));

    // With a flow table on every CPU, no packet uses the fallback table.
    site.katran = {
        let Site { katran, lab, .. } = &mut site;
        katran.detach_all();
        site::balancer(lab, 0, XdpMode::Native, |builder| {
            builder.flow_tracking(FlowTracking::All)
        })
        .0
    };
    site.add_service(vip, &reals);
    site::udp(&site.lab.client, vip).ask(b"who").unwrap();
    let counters = site.katran.stats().flow_table().unwrap();
    assert_eq!((counters.packets, counters.fallback), (1, 0));
}
