//! Edges of following next hops: addresses that are given for one family, ways of probes that change with a
//! setting, interfaces that go.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::process::Command;

use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::NextHops;
use katran::Vip;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::require_root;
use katran_lab::veth;

use crate::attachments::Place;
use crate::segment::Arrival;
use crate::segment::Segment;
use crate::segment::v4;
use crate::site;

/// The first way of probes in the map: the interface (0: that of all probes), and whether probes go to the
/// gateway's address.
fn first_way(map: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let (mut key, mut way) = ([0_u8; 64], [0_u32; 16]);
    // SAFETY: key and value are longer than those of the map.
    let found = unsafe {
        libbpf_sys::bpf_map_get_next_key(map.as_raw_fd(), std::ptr::null(), key.as_mut_ptr().cast())
            == 0
            && libbpf_sys::bpf_map_lookup_elem(
                map.as_raw_fd(),
                key.as_ptr().cast(),
                way.as_mut_ptr().cast(),
            ) == 0
    };
    found.then_some((way[0], way[1] & 0xff))
}

fn way(katran: &Katran) -> Option<(u32, u32)> {
    first_way(katran.map_fd("ways").unwrap())
}

#[test]
fn the_way_of_probes_changes_with_the_gateway() {
    let given: MacAddr = "02:00:00:00:00:99".parse().unwrap();
    let mut network = Segment::new(Arrival::Segment, |builder| {
        let builder = builder.gateway(Gateway::Mac(given));
        builder
            .next_hops(NextHops::PerReal)
            .healthcheck_interface("eth1")
    });
    let host = &network.lab.balancers[0].host;
    host.run(|| network.katran.attach("eth1", XdpMode::Native).unwrap());
    // Behind a router, whose address is the one that was given.
    let real: IpAddr = "198.51.100.77".parse().unwrap();
    host.ip(&format!("route add 198.51.100.0/24 via {} dev eth1", v4(1)))
        .unwrap();
    network
        .katran
        .set_source("10.0.0.2".parse().unwrap())
        .unwrap();
    host.run(|| network.katran.probes_mut().map_mark(7, real).unwrap());
    assert_eq!(way(&network.katran), Some((0, 1)));
    // At once: what is looked at again every 15 seconds is too late.
    network.katran.set_gateway(Gateway::Auto).unwrap();
    assert_eq!(way(&network.katran), Some((0, 0)));
    network.katran.set_gateway_mac(given).unwrap();
    assert_eq!(way(&network.katran), Some((0, 1)));
}

#[test]
fn an_ipv6_address_that_is_given_is_enough_for_ipv6_reals() {
    require_root();
    let (host, router) = (Host::new("host").unwrap(), Host::new("router").unwrap());
    veth(host.port("eth0"), router.port("to0"), 1600).unwrap();
    let given = MacAddr::new([2, 0, 0, 0, 0, 6]);
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.gateway_mac_v6(given).load().unwrap();
    let vip = Vip::tcp("[2001:db8:1::9]:80".parse().unwrap());
    site::add_service(&mut katran, vip, &["2001:db8:2::1".parse().unwrap()]);
    host.run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    assert_eq!(katran.gateway_mac_v6(), given);
    // IPv4 has nobody to send to: a real of it does not change what holds for others.
    katran.set_gateway_mac_v6(None).unwrap_err();
    assert_eq!(katran.gateway_mac_v6(), given);
}

#[test]
fn a_program_that_is_started_inherits_nothing_of_the_follower() {
    let place = Place::new(1);
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.load().unwrap();
    let attach = || katran.attach("eth0", XdpMode::Generic).map(drop);
    place.host.run(attach).unwrap();
    let listing = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
    let listing = String::from_utf8(listing.unwrap().stdout).unwrap();
    assert!(listing.contains("/proc/"), "{listing}");
    for kind in ["eventfd", "eventpoll", "bpf", "perf_event", "net:["] {
        assert!(!listing.contains(kind), "{listing}");
    }
}
