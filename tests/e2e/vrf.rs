//! Next hops behind a VRF device (Linux's Documentation/networking/vrf.rst): its interfaces have
//! their own routing table, which the balancer must ask instead of the main one. `make kernels`
//! runs this, as its kernels have such devices.

use std::net::Ipv4Addr;

use katran::Family;
use katran::MacAddr;
use katran::NextHops;
use katran::Vip;
use katran::XdpMode;

use crate::segment::Segment;
use crate::site;

#[test]
#[ignore = "needs VRF devices, which not every kernel has: make kernels"]
fn routers_behind_a_vrf_are_found_and_followed() {
    for mode in [NextHops::Gateway, NextHops::PerReal] {
        let mut network = Segment::with_another_table(mode);
        let right = MacAddr::new(network.lab.balancers[0].gateway_mac);
        let host = &network.lab.balancers[0].host;
        host.ip("link add red type vrf table 100").unwrap();
        host.ip("link set red up").unwrap();
        host.ip("link set eth0 master red").unwrap();
        host.ip("route add default via 10.0.0.1 dev eth0 table 100")
            .unwrap();
        host.run(|| network.katran.attach("eth0", XdpMode::Native).unwrap());
        let vip = Vip::tcp("203.0.113.9:80".parse().unwrap());
        let real = Ipv4Addr::new(198, 51, 100, 1);
        site::add_service(&mut network.katran, vip, &[real.into()]);
        site::eventually("the router in the VRF's table is known", || {
            let hops = network.katran.gateways().next_hops();
            hops.iter().any(|hop| {
                let leads = mode == NextHops::Gateway || hop.real == Some(real.into());
                leads && hop.mac == Some(right) && hop.interface.as_deref() == Some("eth0")
            })
        });
        if mode == NextHops::Gateway {
            assert_eq!(network.katran.gateways().mac(Family::V4), right);
        }
        // Another router, in the VRF's table only.
        let other: MacAddr = "02:00:00:00:00:55".parse().unwrap();
        let entry = format!("neigh replace 10.0.0.5 lladdr {other} dev eth0 nud permanent");
        host.ip(&entry).unwrap();
        host.ip("route add 198.51.100.0/24 via 10.0.0.5 dev eth0 onlink table 100")
            .unwrap();
        site::eventually("the other router is in use", || {
            let hops = network.katran.gateways().next_hops();
            hops.iter().any(|hop| hop.mac == Some(other))
        });
        // The interface leaves the VRF, and the main table counts again. The kernel then forgets
        // its neighbours.
        host.ip("link set eth0 nomaster").unwrap();
        let third: MacAddr = "02:00:00:00:00:66".parse().unwrap();
        let entry = format!("neigh replace 10.0.0.6 lladdr {third} dev eth0 nud permanent");
        host.ip(&entry).unwrap();
        host.ip("route replace default via 10.0.0.6 dev eth0 onlink")
            .unwrap();
        site::eventually("the main table is in use", || {
            let hops = network.katran.gateways().next_hops();
            hops.iter()
                .any(|hop| hop.real.is_none_or(|of| of == real) && hop.mac == Some(third))
        });
    }
}
