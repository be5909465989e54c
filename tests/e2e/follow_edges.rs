//! Edges of following next hops: addresses given for one family, probes' paths that change with a
//! setting, interfaces that vanish.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::Duration;

use katran::Family;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::NextHops;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::require_root;
use katran_lab::veth;
use nix::time::ClockId;

use crate::attachments::Place;
use crate::attachments::way_of_probes;
use crate::follow::followers_cpu_time;
use crate::segment::Arrival;
use crate::segment::Segment;
use crate::segment::v4;
use crate::site;

/// The first entry of the map of probes' paths: the interface (0: the default one), and whether
/// probes go to the gateway's address.
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
fn the_probes_path_changes_with_the_gateway() {
    let given: MacAddr = "02:00:00:00:00:99".parse().unwrap();
    let mut network = Segment::new(Arrival::Segment, |builder| {
        let builder = builder.gateway(Gateway::Mac(given));
        builder
            .next_hops(NextHops::PerReal)
            .healthcheck_interface("eth1")
    });
    let host = &network.lab.balancers[0].host;
    host.run(|| network.katran.attach("eth1", XdpMode::Native).unwrap());
    // Behind a router whose address was given.
    let real: IpAddr = "198.51.100.77".parse().unwrap();
    host.ip(&format!("route add 198.51.100.0/24 via {} dev eth1", v4(1)))
        .unwrap();
    network
        .katran
        .gateways_mut()
        .set_source("10.0.0.2".parse().unwrap())
        .unwrap();
    host.run(|| network.katran.probes_mut().map_mark(7, real).unwrap());
    assert_eq!(way(&network.katran), Some((0, 1)));
    // At once: the check every 15 seconds would be too late.
    host.run(|| network.katran.gateways_mut().set(Gateway::Auto).unwrap());
    assert_eq!(way(&network.katran), Some((0, 0)));
    network.katran.gateways_mut().set_mac(given).unwrap();
    assert_eq!(way(&network.katran), Some((0, 1)));
}

#[test]
fn a_given_ipv6_address_is_enough_for_ipv6_reals() {
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
    assert_eq!(katran.gateways().mac(Family::V6), given);
    // Without an IPv4 address to send to, adding a real fails, and must not change others.
    katran.gateways_mut().set_mac_v6(None).unwrap_err();
    assert_eq!(katran.gateways().mac(Family::V6), given);
}

#[test]
fn a_child_process_inherits_nothing_of_the_follower() {
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

/// Routes to `count` single addresses.
fn many_routes(host: &Host, count: u32) {
    let mut batch = String::new();
    for number in 0..count {
        let [_, second, third, fourth] = number.to_be_bytes();
        let to = Ipv4Addr::new(198, 16 + second, third, fourth);
        writeln!(batch, "route add {to}/32 via 10.0.0.1").unwrap();
    }
    let file = std::env::temp_dir().join(format!("katran-routes-{}", std::process::id()));
    fs::write(&file, batch).unwrap();
    let added = host.tool("ip", &format!("-batch {}", file.display()));
    fs::remove_file(&file).unwrap();
    added.unwrap();
}

#[test]
fn adding_a_real_does_not_list_all_routes() {
    let place = Place::new(1);
    place.host.ip("addr add 10.1.0.2/16 dev eth0").unwrap();
    many_routes(&place.host, 100_000);
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.load().unwrap();
    let vip = Vip::tcp("203.0.113.9:80".parse().unwrap());
    let real = |last: u8| IpAddr::from(Ipv4Addr::new(10, 1, 100, last));
    site::add_service(&mut katran, vip, &[real(1)]);
    place
        .host
        .run(|| katran.attach("eth0", XdpMode::Generic))
        .unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), place.router_mac);
    // Of this thread and the follower's, so that a busy machine makes no difference.
    let used = || {
        let own: Duration = ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into();
        own + followers_cpu_time(&place.host)
    };
    let before = used();
    const REALS: u8 = 30;
    for last in 2..2 + REALS {
        katran.add_real(vip, Real::new(real(last))).unwrap();
    }
    // Listing the routes takes half a second; a single query and a ring take some milliseconds in a
    // debug build.
    let each = (used() - before) / u32::from(REALS);
    println!("a real among 100,000 routes: {each:?}");
    assert!(each < Duration::from_millis(100), "{each:?}");
    // A stale cache is not used, whichever host has the address.
    let (second, third) = (
        MacAddr::new([2, 0, 0, 0, 0, 0x21]),
        MacAddr::new([2, 0, 0, 0, 0, 0x31]),
    );
    for (address, mac) in [("10.0.0.21", second), ("10.0.0.31", third)] {
        let entry = format!("neigh replace {address} lladdr {mac} nud permanent dev eth0");
        place.host.ip(&entry).unwrap();
    }
    place
        .host
        .ip("route replace default via 10.0.0.21 dev eth0")
        .unwrap();
    site::eventually("the new default route is in use", || {
        katran.gateways().mac(Family::V4) == second
    });
    // A real's router comes first while there is such a real.
    place
        .host
        .ip("route add 192.0.2.0/24 via 10.0.0.31 dev eth0")
        .unwrap();
    let behind: IpAddr = "192.0.2.7".parse().unwrap();
    katran.add_real(vip, Real::new(behind)).unwrap();
    assert_eq!(katran.gateways().mac(Family::V4), third);
    katran.remove_real(vip, behind).unwrap();
    site::eventually("the default route is in use again", || {
        katran.gateways().mac(Family::V4) == second
    });
}

#[test]
fn probes_use_the_routing_table_of_the_balancers_interface() {
    let given: MacAddr = "02:00:00:00:00:99".parse().unwrap();
    let mut network = Segment::new(Arrival::OwnLink, |builder| {
        let builder = builder.gateway(Gateway::Mac(given));
        builder
            .next_hops(NextHops::PerReal)
            .healthcheck_interface("eth0")
    });
    let host = &network.lab.balancers[0].host;
    // The main table has the real on the segment; the rule for the balancer's own interface has a
    // router.
    let real: IpAddr = "198.51.100.77".parse().unwrap();
    host.ip("route add 198.51.100.0/24 dev eth1").unwrap();
    host.ip("route add default via 10.0.0.1 dev eth0 table 100")
        .unwrap();
    host.ip("rule add oif eth0 table 100").unwrap();
    let source = network
        .katran
        .gateways_mut()
        .set_source("10.0.0.2".parse().unwrap());
    source.unwrap();
    host.run(|| network.katran.attach("eth0", XdpMode::Native).unwrap());
    host.run(|| network.katran.probes_mut().map_mark(7, real).unwrap());
    assert_eq!(way(&network.katran), Some((0, 1)));
}

#[test]
fn following_moves_on_when_the_last_interface_of_a_namespace_is_removed() {
    let (here, there) = (Place::new(1), Place::new(2));
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.load().unwrap();
    for place in [&here, &there] {
        let attach = || katran.attach("eth0", XdpMode::Generic).map(drop);
        place.host.run(attach).unwrap();
    }
    assert_eq!(katran.gateways().mac(Family::V4), here.router_mac);
    here.host.ip("link del eth0").unwrap();
    // Found at the handle's next change, of whatever kind.
    let vip = Vip::tcp("203.0.113.9:80".parse().unwrap());
    site::eventually("the other router is in use", || {
        katran.add_vip(vip, VipFlags::empty()).unwrap();
        katran.remove_vip(vip).unwrap();
        katran.gateways().mac(Family::V4) == there.router_mac
    });
}

#[test]
fn probes_leave_by_the_next_interface_when_the_first_is_removed() {
    for gateway in [
        Gateway::Auto,
        Gateway::Mac(MacAddr::new([2, 0, 0, 0, 0, 9])),
    ] {
        let place = Place::new(1);
        let host = &place.host;
        place.link("one0", [2, 0, 0, 0, 0xcc, 1]);
        place.link("probe0", [2, 0, 0, 0, 0xbb, 1]);
        let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(gateway);
        let mut katran = builder.healthcheck_interface("probe0").load().unwrap();
        host.run(|| {
            katran.attach("one0", XdpMode::Generic).unwrap();
            katran.attach("eth0", XdpMode::Generic).unwrap();
        });
        let index = |name: &str| host.interface_index(name).unwrap();
        assert_eq!(way_of_probes(&katran).0, index("one0"));
        let second = index("eth0");
        host.ip("link del one0").unwrap();
        // At once with followed next hops; otherwise at the handle's next change.
        site::eventually("probes leave by the second interface", || {
            if gateway != Gateway::Auto {
                katran
                    .gateways_mut()
                    .set_source("192.0.2.1".parse().unwrap())
                    .unwrap();
                katran
                    .gateways_mut()
                    .set_source("192.0.2.2".parse().unwrap())
                    .unwrap();
            }
            way_of_probes(&katran).0 == second
        });
        if gateway == Gateway::Auto {
            host.ip("link del eth0").unwrap();
            site::eventually("probes leave by their own interface", || {
                way_of_probes(&katran) == (0, MacAddr::new([0; 6]))
            });
        }
    }
}

/// Makes a follower panic when it finds this address, in place of an unforeseen bug.
struct Panics;

const FATAL: &str = "02:00:00:00:de:ad";

impl log::Log for Panics {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let is_follower = std::thread::current().name() == Some("katran-next-hop");
        assert!(
            !is_follower || !record.args().to_string().contains(FATAL),
            "on purpose"
        );
    }

    fn flush(&self) {}
}

#[test]
fn a_follower_that_has_panicked_is_replaced() {
    log::set_logger(&Panics).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let place = Place::new(1);
    let builder = site::small(MacAddr::new([2, 0, 0, 0, 0, 1])).gateway(Gateway::Auto);
    let mut katran = builder.load().unwrap();
    let attach = || katran.attach("eth0", XdpMode::Generic).map(drop);
    place.host.run(attach).unwrap();
    let router_is = |mac: &str| {
        let entry = format!("neigh replace 10.0.0.1 lladdr {mac} nud permanent dev eth0");
        place.host.ip(&entry).unwrap();
    };
    let first = katran.gateways().mac(Family::V4);
    router_is(FATAL);
    std::thread::sleep(Duration::from_millis(500));
    // The last known address stays in use, and no call waits for the dead thread.
    assert_eq!(katran.gateways().mac(Family::V4), first);
    let second = MacAddr::new([2, 0, 0, 0, 0, 0x22]);
    router_is(&second.to_string());
    let vip = Vip::tcp("203.0.113.9:80".parse().unwrap());
    site::eventually("another follower has found the second address", || {
        katran.add_vip(vip, VipFlags::empty()).unwrap();
        katran.remove_vip(vip).unwrap();
        katran.gateways().mac(Family::V4) == second
    });
}
