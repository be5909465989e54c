//! Following moves to the next network namespace by itself when the balancer has nothing left in
//! the current one.

use std::fs;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Family;
use katran::Features;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::NextHops;
use katran::Real;
use katran::Vip;
use katran::XdpMode;

use crate::attachments::Place;
use crate::following::netlink_sockets;
use crate::links::xdp_link;
use crate::site;

/// A balancer that discovers its gateway, attached in these places in order.
fn attached_in(places: &[&Place]) -> Katran {
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.load().unwrap();
    for place in places {
        let attach = || katran.attach("eth0", XdpMode::Generic);
        place.host.run(attach).unwrap();
    }
    assert_eq!(katran.gateways().mac(Family::V4), places[0].router_mac);
    katran
}

#[test]
fn following_moves_on_when_the_first_namespaces_interface_is_removed() {
    let (first, second, third) = (Place::new(1), Place::new(2), Place::new(3));
    let mut katran = attached_in(&[&first, &second, &third]);
    // From here on only getters run.
    first.host.ip("link del eth0").unwrap();
    site::eventually("the second router is found", || {
        katran.gateways().mac(Family::V4) == second.router_mac
    });
    // The library holds no namespace in which it has nothing left.
    site::eventually("the first namespace is let go", || {
        netlink_sockets(&first.host).is_empty()
    });
    // Changes there are followed.
    let mac = MacAddr::new([2, 0, 0, 0, 0xee, 9]);
    let set = format!("link set to0 address {mac}");
    second.router.ip(&set).unwrap();
    second.host.ip("neigh flush dev eth0").unwrap();
    site::eventually("the second router's other address is found", || {
        katran.gateways().mac(Family::V4) == mac
    });
    // A link that is ended behind the library's back is noticed, though no notice comes.
    let program = program_on(&second);
    end_link_of(program, second.host.interface_index("eth0").unwrap());
    site::eventually("the third router is found", || {
        katran.gateways().mac(Family::V4) == third.router_mac
    });
    third.host.ip("link del eth0").unwrap();
    site::eventually("nothing is followed", || {
        katran.gateways().next_hops().is_empty()
    });
    assert_eq!(katran.gateways().mac(Family::V4), MacAddr::new([0; 6]));
    site::eventually("nothing is held", || {
        netlink_sockets(&third.host).is_empty()
    });
    // The handle continues after following has ended.
    let fourth = Place::new(4);
    let attach = || katran.attach("eth0", XdpMode::Generic).map(drop);
    fourth.host.run(attach).unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), fourth.router_mac);
}

/// The id of the program on a place's interface.
fn program_on(place: &Place) -> u32 {
    let info = place.host.ip("-details link show eth0").unwrap();
    let number = info.split("prog/xdp id ").nth(1).unwrap();
    let mut words = number.split_whitespace();
    words.next().unwrap().parse().unwrap()
}

/// How many link descriptors for this program the process holds.
fn links_of(program: u32) -> usize {
    let expected = ["link_type:\txdp".to_owned(), format!("prog_id:\t{program}")];
    let all = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    // Another test may have closed one meanwhile.
    let texts = all.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let is_one = |text: &String| {
        let mut expected = expected.iter();
        expected.all(|line| text.lines().any(|of| of == line))
    };
    texts.filter(is_one).count()
}

#[test]
fn no_link_is_held_twice_after_following_ends() {
    let place = Place::new(1);
    let mut katran = attached_in(&[&place]);
    let program = program_on(&place);
    // Another test that looks for a link opens each for a moment.
    let there_are = |number: usize| {
        site::eventually(format_args!("{number} descriptors of the link"), || {
            links_of(program) == number
        });
    };
    // The handle's, and one to check that the attachment still exists.
    there_are(2);
    katran
        .gateways_mut()
        .set_mac(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .unwrap();
    there_are(1);
    katran.gateways_mut().set(Gateway::Auto).unwrap();
    there_are(2);
    katran.detach("eth0").unwrap();
    there_are(0);
}

/// Ends the link by which this program is on the interface with this index.
fn end_link_of(program: u32, index: u32) {
    let link = xdp_link(program, index);
    // SAFETY: takes a descriptor, which is a link's.
    assert_eq!(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) }, 0);
}

/// The interface index stored under a port number.
fn device(katran: &Katran, port: u32) -> Option<u32> {
    let devices = katran.map_fd("devices").unwrap();
    let mut value = [0_u32; 2];
    // SAFETY: the key is as long as the map's, and the value longer.
    let found = unsafe {
        libbpf_sys::bpf_map_lookup_elem(
            devices.as_raw_fd(),
            std::ptr::from_ref(&port).cast(),
            value.as_mut_ptr().cast(),
        )
    };
    (found == 0).then_some(value[0])
}

#[test]
fn next_hops_of_reals_move_on_by_themselves() {
    let (first, second) = (Place::new(1), Place::new(2));
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.next_hops(NextHops::Redirect).load().unwrap();
    let vip = Vip::tcp("203.0.113.1:80".parse().unwrap());
    let real = "198.51.100.9".parse().unwrap();
    site::add_service(&mut katran, vip, &[real]);
    for place in [&first, &second] {
        let attach = || katran.attach("eth0", XdpMode::Generic);
        place.host.run(attach).unwrap();
    }
    let leads_to = |katran: &Katran, place: &Place| {
        let hops = katran.gateways().next_hops();
        assert!(hops.len() <= 1, "{hops:?}");
        hops.iter().any(|hop| hop.mac == Some(place.router_mac))
    };
    site::eventually("the first router is found", || leads_to(&katran, &first));
    first.host.ip("link del eth0").unwrap();
    site::eventually("the second router is found", || leads_to(&katran, &second));
    // Under a new number: a packet may still be using the first one.
    let index = |place: &Place| place.host.interface_index("eth0").unwrap();
    assert_eq!(device(&katran, 2), Some(index(&second)));
    // Later changes are followed there.
    let other = "198.51.100.10".parse().unwrap();
    katran.add_real(vip, Real::new(other)).unwrap();
    katran.remove_real(vip, real).unwrap();
    site::eventually("the other real's is found", || leads_to(&katran, &second));
    assert_eq!(katran.gateways().next_hops()[0].real, Some(other));
}

#[test]
fn a_reload_moves_nothing_on() {
    let (first, second) = (Place::new(1), Place::new(2));
    let mut katran = attached_in(&[&first, &second]);
    for features in [Features::empty(), Features::default()] {
        katran.reload(features).unwrap();
        // Twice the interval at which the thread checks its attachments.
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            assert_eq!(katran.gateways().mac(Family::V4), first.router_mac);
            thread::sleep(Duration::from_millis(50));
        }
    }
    first.host.ip("link del eth0").unwrap();
    site::eventually("the second router is found", || {
        katran.gateways().mac(Family::V4) == second.router_mac
    });
}

/// Drops a place's host and waits until the router's end of a link to it is gone, and so the host's
/// namespace.
fn goes(place: Place, link: &str) {
    let Place { host, router, .. } = place;
    assert!(router.interface_index(link).is_ok());
    drop(host);
    site::eventually("the namespace is gone", || {
        router.interface_index(link).is_err()
    });
}

#[test]
fn a_balancer_with_a_given_gateway_keeps_no_namespace_alive() {
    let place = Place::new(1);
    let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .load()
        .unwrap();
    let attach = || katran.attach("eth0", XdpMode::Generic).map(drop);
    place.host.run(attach).unwrap();
    // Following MTUs takes a thread.
    assert_eq!(katran.gateways().max_frame(), 1594);
    place.host.ip("link set eth0 mtu 1400").unwrap();
    site::eventually("the MTU is followed", || {
        katran.gateways().max_frame() == 1394
    });
    goes(place, "to0");
    site::eventually("no MTU is left", || katran.gateways().max_frame() == 1514);
}

#[test]
fn a_thread_that_has_moved_on_leaves_the_namespace_where_it_was() {
    let (first, second) = (Place::new(1), Place::new(2));
    first.link("two0", [2, 0, 0, 0, 0xbb, 1]);
    let katran = attached_in(&[&first, &second]);
    first.host.ip("link del eth0").unwrap();
    site::eventually("the second router is found", || {
        katran.gateways().mac(Family::V4) == second.router_mac
    });
    goes(first, "two0x");
    assert_eq!(katran.gateways().mac(Family::V4), second.router_mac);
}

#[test]
fn a_thread_does_not_keep_the_namespace_of_its_starter() {
    let (place, elsewhere) = (Place::new(1), Place::new(2));
    let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 1]))
        .load()
        .unwrap();
    let attach = || katran.attach("eth0", XdpMode::Generic).map(drop);
    place.host.run(attach).unwrap();
    let change = || katran.gateways_mut().set(Gateway::Auto);
    elsewhere.host.run(change).unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), place.router_mac);
    goes(elsewhere, "to0");
    // Changes are followed.
    let mac = MacAddr::new([2, 0, 0, 0, 0xee, 9]);
    let set = format!("link set to0 address {mac}");
    place.router.ip(&set).unwrap();
    place.host.ip("neigh flush dev eth0").unwrap();
    site::eventually("the router's other address is found", || {
        katran.gateways().mac(Family::V4) == mac
    });
}
