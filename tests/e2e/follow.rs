//! Followed next hops: changes without traffic, without notices, or by the thousand; tables and
//! interfaces that the main table does not lead to.

use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Family;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::NextHops;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::attachments::NextHop;
use katran_lab::Host;
use katran_lab::LabConfig;
use katran_lab::StopOnDrop;
use katran_lab::require_root;
use katran_lab::waited;

use crate::segment::Arrival;
use crate::segment::Segment;
use crate::segment::v4;
use crate::segment::v6;
use crate::site;
use crate::site::Site;

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn hop_of(katran: &Katran, real: impl Into<IpAddr>) -> NextHop {
    let real = real.into();
    let hops = katran.gateways().next_hops();
    let is_of_real = |hop: &&NextHop| hop.real == Some(real);
    hops.iter().find(is_of_real).cloned().unwrap()
}

/// The MAC address that the only service's frames go to.
fn destination(katran: &Katran, vip: Vip) -> Vec<u8> {
    let client = "192.0.2.9:1234".parse().unwrap();
    let ran = katran.simulate(&crate::frame::syn(client, site::service(vip)));
    ran.unwrap().frame[..6].to_vec()
}

#[test]
fn the_given_address_is_used_until_one_is_found() {
    let given = mac("02:00:00:00:00:99");
    for mode in [NextHops::PerReal, NextHops::Redirect] {
        let mut network = Segment::new(Arrival::Segment, |builder| {
            builder.gateway(Gateway::Mac(given)).next_hops(mode)
        });
        let host = &network.lab.balancers[0].host;
        host.run(|| network.katran.attach("eth1", XdpMode::Native).unwrap());
        let vip = Vip::tcp("203.0.113.9:80".parse().unwrap());
        // One on the segment, which does not answer yet.
        site::add_service(&mut network.katran, vip, &[v4(77).into()]);
        assert_eq!(destination(&network.katran, vip), given.octets());
        host.run(|| network.katran.gateways_mut().set(Gateway::Auto).unwrap());
        assert_eq!(destination(&network.katran, vip), given.octets());
        assert!(!hop_of(&network.katran, v4(77)).answers);
        let counts = network.katran.stats().next_hops();
        assert_eq!((counts.answering, counts.silent, counts.unknown), (0, 1, 0));
        let found = mac("02:00:00:00:00:77");
        let entry = format!("neigh replace {} lladdr {found} dev eth1", v4(77));
        host.ip(&format!("{entry} nud permanent")).unwrap();
        // Packets see it before the list does.
        site::eventually("the address is found", || {
            let is_used = destination(&network.katran, vip) == found.octets();
            is_used && hop_of(&network.katran, v4(77)).answers
        });
        let counts = network.katran.stats().next_hops();
        assert_eq!((counts.answering, counts.silent, counts.unknown), (1, 0, 0));
    }
}

/// Changes a backend's MAC address without a gratuitous ARP.
fn change_silently(backend: &Host, to: MacAddr) {
    backend.sysctl("net.ipv4.conf.eth0.arp_notify", 0).unwrap();
    backend
        .sysctl("net.ipv6.conf.eth0.ndisc_notify", 0)
        .unwrap();
    backend.ip(&format!("link set eth0 address {to}")).unwrap();
}

#[test]
fn a_peer_that_changes_its_address_is_followed_without_traffic() {
    let mut network = Segment::new(Arrival::Segment, |builder| {
        builder.gateway(Gateway::Auto).next_hops(NextHops::PerReal)
    });
    let host = &network.lab.balancers[0].host;
    host.run(|| network.katran.attach("eth1", XdpMode::Native).unwrap());
    network.serve();
    let host = &network.lab.balancers[0].host;
    // Otherwise the kernel removes the IPv6 address when the link goes down.
    host.sysctl("net.ipv6.conf.eth1.keep_addr_on_down", 1)
        .unwrap();
    let is = |network: &Segment, last: u8, expected: MacAddr| {
        for real in [IpAddr::from(v4(last)), v6(last).into()] {
            site::eventually("the new address is known", || {
                let hop = hop_of(&network.katran, real);
                hop.mac == Some(expected) && hop.answers
            });
        }
    };
    // Flushed by hand.
    let first = mac("02:00:00:00:00:81");
    change_silently(&network.backends[0], first);
    host.ip("neigh flush dev eth1").unwrap();
    is(&network, 11, first);
    // The interface goes down; when it comes up, its neighbours have other addresses.
    host.ip("link set eth1 down").unwrap();
    let (first, second) = (mac("02:00:00:00:00:91"), mac("02:00:00:00:00:92"));
    change_silently(&network.backends[0], first);
    change_silently(&network.backends[1], second);
    host.ip("link set eth1 up").unwrap();
    is(&network, 11, first);
    is(&network, 12, second);
}

#[test]
fn a_gateway_is_followed_through_a_link_that_goes_down_and_up() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.gateway(Gateway::Auto)
    });
    let (host, router) = (&site.lab.balancers[0].host, &site.lab.router);
    let vip = Vip::tcp((site.lab.vip4(), 80).into());
    site::add_service(
        &mut site.katran,
        vip,
        &site::reals(&site.lab, site.lab.vip4()),
    );
    router.sysctl("net.ipv4.conf.bal0.arp_notify", 0).unwrap();
    let flushed = mac("02:00:00:00:00:71");
    router
        .ip(&format!("link set bal0 address {flushed}"))
        .unwrap();
    host.ip("neigh flush dev eth0").unwrap();
    site::eventually("the address after a flush is in use", || {
        site.katran.gateways().mac(Family::V4) == flushed
    });
    let before = site.katran.gateways().mac(Family::V4);
    host.ip("link set eth0 down").unwrap();
    let after = mac("02:00:00:00:00:72");
    router
        .ip(&format!("link set bal0 address {after}"))
        .unwrap();
    // Without a route the last address stays in use.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(site.katran.gateways().mac(Family::V4), before);
    host.ip("link set eth0 up").unwrap();
    // The kernel removed this route with the link, and nothing restores it.
    host.ip("route replace default via 10.0.0.1 dev eth0")
        .unwrap();
    site::eventually("the address after the link came back is in use", || {
        site.katran.gateways().mac(Family::V4) == after
    });
}

#[test]
fn a_renamed_interface_is_reported_by_its_new_name() {
    let mut network = Segment::new(Arrival::Segment, |builder| {
        builder.gateway(Gateway::Auto).next_hops(NextHops::PerReal)
    });
    let host = &network.lab.balancers[0].host;
    host.run(|| network.katran.attach("eth1", XdpMode::Native).unwrap());
    network.serve();
    let host = &network.lab.balancers[0].host;
    let all_by = |name: &str| {
        let hops = network.katran.gateways().next_hops();
        hops.iter()
            .all(|hop| hop.interface.as_deref() == Some(name) && hop.attached)
    };
    site::eventually("the first name is reported", || all_by("eth1"));
    // Where renaming needs the link down, its routes are lost and must be restored.
    let renamed = host.ip("link set eth1 name uplink9");
    if renamed.is_err() {
        host.ip("link set eth1 down").unwrap();
        host.ip("link set eth1 name uplink9").unwrap();
        host.ip("link set uplink9 up").unwrap();
    }
    site::eventually("the second name is reported", || all_by("uplink9"));
}

#[test]
fn routes_in_the_interfaces_table_are_found() {
    for mode in [NextHops::Gateway, NextHops::PerReal] {
        let mut network = Segment::with_another_table(mode);
        let right = MacAddr::new(network.lab.balancers[0].gateway_mac);
        let host = &network.lab.balancers[0].host;
        host.ip("route add default via 10.0.0.1 dev eth0 table 100")
            .unwrap();
        host.ip("rule add oif eth0 table 100").unwrap();
        host.run(|| network.katran.attach("eth0", XdpMode::Native).unwrap());
        let vip = Vip::tcp("203.0.113.9:80".parse().unwrap());
        let real = Ipv4Addr::new(198, 51, 100, 1);
        if mode == NextHops::Gateway {
            // Without a real, the default route decides.
            assert_eq!(network.katran.gateways().mac(Family::V4), right);
        }
        site::add_service(&mut network.katran, vip, &[real.into()]);
        let hop = |katran: &Katran| match mode {
            NextHops::Gateway => katran.gateways().next_hops()[0].clone(),
            _ => hop_of(katran, real),
        };
        site::eventually("the way by the interface is known", || {
            let hop = hop(&network.katran);
            hop.mac == Some(right) && hop.attached && hop.interface.as_deref() == Some("eth0")
        });
        assert_eq!(destination(&network.katran, vip), right.octets());
        // The other table's route for some addresses is followed as well.
        let other = mac("02:00:00:00:00:55");
        let entry = format!("neigh replace 10.0.0.5 lladdr {other} dev eth0 nud permanent");
        host.ip(&entry).unwrap();
        host.ip("route add 198.51.100.0/24 via 10.0.0.5 dev eth0 onlink table 100")
            .unwrap();
        site::eventually("the other router is in use", || {
            destination(&network.katran, vip) == other.octets()
        });
        host.ip("route del 198.51.100.0/24 table 100").unwrap();
        site::eventually("the first router is in use again", || {
            destination(&network.katran, vip) == right.octets()
        });
        // The main table has another router on the same interface, but a rule overrides it until it
        // is deleted.
        host.ip("route replace default via 10.0.0.5 dev eth0 onlink")
            .unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(destination(&network.katran, vip), right.octets());
        host.ip("rule del oif eth0 table 100").unwrap();
        site::eventually("the router of the main table is in use", || {
            destination(&network.katran, vip) == other.octets()
        });
    }
}

/// A host with a link without a neighbour, and a balancer with many reals behind one router.
struct Crowd {
    katran: Katran,
    host: Host,
}

const ROUTER: &str = "02:00:00:00:00:01";

impl Crowd {
    fn new(reals: u16) -> Self {
        require_root();
        let host = Host::new("balancer").unwrap();
        for link in ["eth0", "eth1"] {
            host.ip(&format!("link add {link} type veth peer name peer-{link}"))
                .unwrap();
            host.ip(&format!("link set {link} up")).unwrap();
            host.ip(&format!("link set peer-{link} up")).unwrap();
        }
        host.ip("addr add 10.0.0.2/24 dev eth0").unwrap();
        host.ip("addr add 10.1.0.2/24 dev eth1").unwrap();
        for (router, link) in [
            ("10.0.0.1", "eth0"),
            ("10.0.0.3", "eth0"),
            ("10.1.0.1", "eth1"),
        ] {
            let entry = format!("neigh add {router} lladdr {ROUTER} dev {link} nud permanent");
            host.ip(&entry).unwrap();
        }
        host.ip("route add default via 10.0.0.1").unwrap();
        let mut katran = balancer(reals);
        host.run(|| katran.attach("eth0", XdpMode::Generic).unwrap());
        Self { katran, host }
    }

    fn cpu_time(&self) -> Duration {
        followers_cpu_time(&self.host)
    }
}

/// CPU time of the follower's thread, the only one of its name in the host's namespace.
pub(crate) fn followers_cpu_time(host: &Host) -> Duration {
    let own = host.run(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let threads = threads.map(|thread| thread.unwrap().path());
    let mut of_host = threads.filter(|thread| {
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        let namespace = fs::read_link(thread.join("ns/net")).unwrap_or_default();
        name.trim() == "katran-next-hop" && namespace == own
    });
    let thread = of_host.next().unwrap();
    let times = fs::read_to_string(thread.join("schedstat")).unwrap();
    Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
}

/// A balancer with this many reals, attached nowhere.
fn balancer(reals: u16) -> Katran {
    let mut katran = site::small(mac(ROUTER))
        .gateway(Gateway::Auto)
        .next_hops(NextHops::PerReal)
        .max_reals(reals.into())
        .load()
        .unwrap();
    let vip = Vip::tcp("203.0.113.1:80".parse().unwrap());
    katran.add_vip(vip, VipFlags::empty()).unwrap();
    let changes: Vec<_> = (0..u32::from(reals))
        .map(|number| RealChange::Add(Real::new(real(number).into())))
        .collect();
    katran.modify_reals(vip, &changes).unwrap();
    katran
}

/// The same, following next hops on this host although an embedder attaches it.
fn follow(host: &Host, reals: u16) -> Katran {
    let mut katran = balancer(reals);
    host.run(|| katran.gateways_mut().follow().unwrap());
    katran
}

fn real(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits() + number)
}

#[test]
fn a_flapping_route_costs_only_what_it_touches() {
    let crowd = Crowd::new(4_000);
    let before = crowd.cpu_time();
    let began = Instant::now();
    let mut changes = 0;
    while began.elapsed() < Duration::from_secs(3) {
        // Routes to one real, and to one that does not exist.
        crowd
            .host
            .ip("route add 198.18.0.1/32 via 10.0.0.3")
            .unwrap();
        crowd
            .host
            .ip("route add 192.0.2.0/24 via 10.0.0.3")
            .unwrap();
        crowd.host.ip("route del 198.18.0.1/32").unwrap();
        crowd.host.ip("route del 192.0.2.0/24").unwrap();
        changes += 4;
    }
    let used = crowd.cpu_time() - before;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
    println!(
        "{changes} changes: {used:?}, {:.2} % of a CPU",
        share * 100.
    );
    // The library confirms all reals every 15 seconds: once here at most. Asking for all after each
    // change would take over a millisecond a change and a third of a CPU.
    assert!(
        used < Duration::from_millis(400) + changes * Duration::from_micros(300),
        "{changes} changes: {used:?}"
    );
    let way = |katran: &Katran| hop_of(katran, real(0)).address;
    let [plain, other] = ["10.0.0.1", "10.0.0.3"].map(|router| Some(router.parse().unwrap()));
    crowd
        .host
        .ip("route add 198.18.0.1/32 via 10.0.0.3")
        .unwrap();
    site::eventually("the route is followed", || way(&crowd.katran) == other);
    crowd.host.ip("route del 198.18.0.1/32").unwrap();
    site::eventually("the route is gone", || way(&crowd.katran) == plain);
}

#[test]
fn getters_do_not_wait_for_a_thread_that_is_busy() {
    let crowd = Crowd::new(4_000);
    let stop = AtomicBool::new(false);
    let changes = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Each of these may change every real's next hop.
            while !stop.load(Ordering::Relaxed) {
                crowd.host.ip("rule add pref 100 table 77").unwrap();
                crowd.host.ip("rule del pref 100").unwrap();
                changes.fetch_add(2, Ordering::Relaxed);
            }
        });
        let _stop = StopOnDrop(&stop);
        let mut slow = [0; 2];
        let mut asked = 0;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            let waited = [
                waited(|| {
                    assert_eq!(
                        crowd.katran.gateways().mac(Family::V6),
                        MacAddr::new([0; 6])
                    )
                }),
                waited(|| assert_eq!(crowd.katran.gateways().next_hops().len(), 4_000)),
            ];
            for (slow, waited) in slow.iter_mut().zip(waited) {
                *slow += u32::from(waited >= Duration::from_millis(1));
            }
            asked += 1;
            thread::sleep(Duration::from_millis(3));
        }
        stop.store(true, Ordering::Relaxed);
        println!("{asked} asked, {slow:?} slow");
        // A busy machine may take the CPU from the thread in ways that its times do not show.
        // Getters that waited for rounds would be slow every third time.
        assert!(
            asked > 20 && slow.iter().all(|slow| *slow <= asked / 8),
            "{slow:?} of {asked}"
        );
    });
    assert!(changes.into_inner() > 10);
}

/// The next hops without what depends on when a neighbour was asked.
fn ways(katran: &Katran) -> Vec<NextHop> {
    let mut hops = katran.gateways().next_hops().to_vec();
    for hop in &mut hops {
        (hop.mac, hop.answers) = (None, false);
    }
    hops
}

#[test]
fn followed_next_hops_match_a_fresh_query() {
    let mut crowd = Crowd::new(40);
    crowd.katran = follow(&crowd.host, 40);
    let mut random = fastrand::Rng::with_seed(7);
    let host = &crowd.host;
    let prefixes = ["198.18.0.0/24", "198.18.0.0/28", "198.18.0.5/32", "default"];
    for round in 0..10 {
        for _ in 0..random.usize(1..4) {
            let prefix = random.choice(prefixes).unwrap();
            let (router, link) = random
                .choice([
                    ("10.0.0.1", "eth0"),
                    ("10.0.0.3", "eth0"),
                    ("10.1.0.1", "eth1"),
                ])
                .unwrap();
            let table = random.choice(["main", "77"]).unwrap();
            // Most of these fail now and then: the route is missing, or already there.
            let _ = match random.u8(0..12) {
                0..3 => host.ip(&format!(
                    "route replace {prefix} via {router} dev {link} table {table} onlink"
                )),
                3..5 => host.ip(&format!("route del {prefix} table {table}")),
                5 => host.ip(&format!("route replace blackhole {prefix} table {table}")),
                6 => host.ip(&format!("link set {link} down")),
                7 => host.ip(&format!("link set {link} up")),
                8 => host.ip("rule add pref 100 table 77"),
                9 => host.ip("rule del pref 100"),
                10 => host.ip("addr add 198.18.0.6/32 dev eth1"),
                _ => host.ip("addr del 198.18.0.6/32 dev eth1"),
            };
        }
        let fresh = follow(host, 40);
        // Before the periodic confirmation would correct it.
        let end = Instant::now() + Duration::from_secs(5);
        while ways(&crowd.katran) != ways(&fresh) {
            let both = (ways(&crowd.katran), ways(&fresh));
            assert!(Instant::now() < end, "round {round}: {both:#?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
