//! A balancing host stays a good neighbour: it receives IGMP queries, fragments and multicast, and
//! routers and backends learn what they need through it.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use caps::CapSet;
use caps::Capability;
use katran::Katran;
use katran::MacAddr;
use katran::Protocol;
use katran::RootProgram;
use katran::Vip;
use katran::XdpMode;
use katran_lab::Host;
use katran_lab::LabConfig;
use katran_lab::eventually;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv4RecvErr;
use nix::sys::socket::sockopt::Ipv4Ttl;
use nix::sys::socket::sockopt::Ipv6RecvErr;
use nix::sys::socket::sockopt::Ipv6Ttl;

use crate::attachments::Place;
use crate::shared::Pins;
use crate::site;
use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(10);

/// The program's verdict on a frame for this host, as if it arrived on an interface of the calling
/// thread's network namespace.
fn verdict(program: BorrowedFd<'_>, interface: u32, mac: [u8; 6]) -> u32 {
    let mut frame = mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend([
        0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 192, 0, 2, 7, 203, 0, 113, 1,
    ]);
    frame.extend([
        0x9c, 0x41, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0,
    ]);
    let mut context = libbpf_sys::xdp_md {
        data_end: frame.len() as u32,
        ingress_ifindex: interface,
        ..Default::default()
    };
    let mut out = [0_u8; 512];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: out.len() as u32,
        ctx_in: std::ptr::from_mut(&mut context).cast(),
        ctx_size_in: size_of::<libbpf_sys::xdp_md>() as u32,
        ..Default::default()
    };
    // SAFETY: the options give the buffers' lengths, and all of them outlive the call.
    let ran = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    assert_eq!(ran, 0);
    options.retval
}

/// Whether frames to this address that arrive on an interface of the host are balanced, not passed.
fn is_ours(katran: &Katran, host: &Host, interface: &str, mac: [u8; 6]) -> bool {
    let program = katran.program_fd();
    let index = host.interface_index(interface).unwrap();
    match host.run(|| verdict(program, index, mac)) {
        libbpf_sys::XDP_TX => true,
        libbpf_sys::XDP_PASS => false,
        other => panic!("verdict {other}"),
    }
}

fn balancer() -> Katran {
    let mut katran = site::small(MacAddr::new([2, 0, 0, 0, 0, 0xfe]))
        .load()
        .unwrap();
    let real: IpAddr = "198.51.100.1".parse().unwrap();
    site::add_service(&mut katran, "203.0.113.1:80/tcp".parse().unwrap(), &[real]);
    katran
}

const ONE: [u8; 6] = [2, 0, 0, 0, 1, 1];
const TWO: [u8; 6] = [2, 0, 0, 0, 1, 2];
const NEW: [u8; 6] = [2, 0, 0, 0, 1, 3];
const OTHER: [u8; 6] = [2, 0, 0, 0, 9, 9];
const GROUP: [u8; 6] = [0xff; 6];

fn set_mac(host: &Host, interface: &str, mac: [u8; 6]) {
    let mac = MacAddr::new(mac);
    host.ip(&format!("link set {interface} address {mac}"))
        .unwrap();
}

#[test]
fn only_frames_for_the_address_of_the_interface_are_balanced() {
    let place = Place::new(1);
    let host = &place.host;
    for (interface, mac) in [("eth1", ONE), ("eth2", TWO)] {
        place.link(interface, mac);
    }
    let mut katran = balancer();
    let ours = |katran: &Katran, interface| {
        let all = [ONE, TWO, NEW, OTHER, GROUP];
        all.map(|mac| is_ours(katran, host, interface, mac))
    };
    let any = [true, true, true, true, false];
    assert_eq!(ours(&katran, "eth1"), any, "attached nowhere");
    host.run(|| katran.attach("eth1", XdpMode::Generic))
        .unwrap();
    let only_one = [true, false, false, false, false];
    let only_two = [false, true, false, false, false];
    assert_eq!(ours(&katran, "eth1"), only_one);
    // Each interface has its own address.
    host.run(|| katran.attach("eth2", XdpMode::Generic))
        .unwrap();
    assert_eq!(ours(&katran, "eth1"), only_one);
    assert_eq!(ours(&katran, "eth2"), only_two);
    // The address changes; the library notices.
    set_mac(host, "eth1", NEW);
    let only_new = [false, false, true, false, false];
    eventually("the new address", || ours(&katran, "eth1") == only_new);
    assert_eq!(ours(&katran, "eth2"), only_two);
    // A detached interface's address is forgotten, whichever thread detaches it.
    katran.detach("eth2").unwrap();
    assert_eq!(ours(&katran, "eth1"), only_new);
    assert_eq!(ours(&katran, "eth2"), [true, true, true, true, false]);
    // One that is removed and recreated with another address.
    host.ip("link del eth1").unwrap();
    place.link("eth1", ONE);
    eventually("the address is forgotten", || ours(&katran, "eth1") == any);
    host.run(|| katran.reattach()).unwrap();
    assert_eq!(ours(&katran, "eth1"), only_one);
    katran.detach_all();
    assert_eq!(ours(&katran, "eth1"), any);
}

#[test]
fn frames_to_a_bridges_address_are_balanced_on_its_ports() {
    let place = Place::new(1);
    let host = &place.host;
    place.link("eth1", ONE);
    host.ip("link add br0 type bridge").unwrap();
    set_mac(host, "br0", TWO);
    let mut katran = balancer();
    host.run(|| katran.attach("eth1", XdpMode::Generic))
        .unwrap();
    assert!(!is_ours(&katran, host, "eth1", TWO));
    host.ip("link set eth1 master br0").unwrap();
    eventually("the bridge", || is_ours(&katran, host, "eth1", TWO));
    assert!(is_ours(&katran, host, "eth1", ONE));
    assert!(!is_ours(&katran, host, "eth1", OTHER));
    set_mac(host, "br0", NEW);
    eventually("its new address", || is_ours(&katran, host, "eth1", NEW));
    host.ip("link set eth1 nomaster").unwrap();
    eventually("no bridge", || !is_ours(&katran, host, "eth1", NEW));
}

/// The kernel does not say in which namespace a root program's interfaces are: the balancer's own
/// namespace may use the same indexes.
#[test]
fn behind_a_root_program_only_group_frames_are_passed() {
    let place = Place::new(1);
    let host = &place.host;
    place.link("eth1", ONE);
    let pins = Pins::new();
    let mut root = RootProgram::builder().load().unwrap();
    root.pin(pins.path()).unwrap();
    let mut katran = balancer();
    host.run(|| katran.attach_shared(pins.path(), 2)).unwrap();
    host.run(|| root.attach("eth1", XdpMode::Generic)).unwrap();
    assert!(is_ours(&katran, host, "eth1", ONE));
    assert!(is_ours(&katran, host, "eth1", OTHER));
    assert!(!is_ours(&katran, host, "eth1", GROUP));
    // An attached interface keeps its address regardless.
    host.run(|| katran.attach("eth0", XdpMode::Native)).unwrap();
    eventually("its address", || !is_ours(&katran, host, "eth0", OTHER));
    assert!(is_ours(&katran, host, "eth1", OTHER));
    assert!(!is_ours(&katran, host, "eth1", GROUP));
    katran.detach_shared(pins.path()).unwrap();
    drop(root);
    RootProgram::remove(pins.path()).unwrap();
}

#[test]
fn membership_of_a_group_survives_the_querier_s_questions() {
    let place = Place::new(1);
    let (host, router) = (&place.host, &place.router);
    host.ip("addr add 2001:db8:9::2/64 dev eth0 nodad").unwrap();
    // A switch that forgets members which do not answer for two seconds.
    let querier = "type bridge mcast_snooping 1 mcast_querier 1 mcast_startup_query_interval 50 \
                   mcast_query_interval 50 mcast_query_response_interval 10 \
                   mcast_membership_interval 200 mcast_last_member_interval 20";
    router.ip(&format!("link add br0 {querier}")).unwrap();
    router.ip("link set br0 up").unwrap();
    router.ip("link set to0 master br0").unwrap();

    let mut katran = balancer();
    host.run(|| katran.attach("eth0", XdpMode::Native)).unwrap();
    let member = host.run(|| UdpSocket::bind("0.0.0.0:5000")).unwrap();
    let group = Ipv4Addr::new(239, 1, 1, 1);
    member
        .join_multicast_v4(&group, &Ipv4Addr::new(10, 0, 0, 2))
        .unwrap();
    let is_member = || {
        let members = router.tool("bridge", "mdb show").unwrap();
        members.contains("grp 239.1.1.1")
    };
    eventually("the switch learns of the member", is_member);
    // Long enough to be forgotten twice; the first reports come unsolicited.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        assert!(is_member(), "forgotten after {:?}", began.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    let totals = katran.stats().totals().unwrap();
    assert!(
        totals.pass.packets >= 5 && totals.drop.packets == 0,
        "{totals:?}"
    );
}

#[test]
fn answers_in_fragments_reach_the_host() {
    let place = Place::new(1);
    let (host, router) = (&place.host, &place.router);
    host.ip("addr add 2001:db8:9::2/64 dev eth0 nodad").unwrap();
    router
        .ip("addr add 2001:db8:9::1/64 dev to0 nodad")
        .unwrap();
    let mut katran = balancer();
    host.run(|| katran.attach("eth0", XdpMode::Native)).unwrap();
    for (own, server) in [
        ("10.0.0.2:0", "10.0.0.1:53"),
        ("[2001:db8:9::2]:0", "[2001:db8:9::1]:53"),
    ] {
        let resolver = router.run(|| UdpSocket::bind(server)).unwrap();
        let client = host.run(|| UdpSocket::bind(own)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(b"question", server).unwrap();
        let mut question = [0; 16];
        let (_, from) = resolver.recv_from(&mut question).unwrap();
        let answer: Vec<u8> = (0..4000_u16).map(|i| i as u8).collect();
        resolver.send_to(&answer, from).unwrap();
        let mut got = [0; 5000];
        let length = client.recv(&mut got).unwrap();
        assert_eq!(&got[..length], answer);
    }
    assert_eq!(katran.stats().totals().unwrap().drop.packets, 0);
}

#[test]
fn a_backend_traces_its_route_to_a_client_through_the_balancer() {
    const TRACED: u16 = 33_434;
    let mut site = Site::new(LabConfig::default());
    let backend = &site.lab.backends[0];
    let (v4, v6) = (backend.v4, backend.v6);
    for (vip, real) in [
        (site.lab.vip4(), IpAddr::from(v4)),
        (site.lab.vip6(), IpAddr::from(v6)),
    ] {
        let service = Vip::new((vip, TRACED).into(), Protocol::Udp);
        site.add_service(service, &[real]);
    }
    for (vip, client) in [
        (site.lab.vip4(), "192.0.2.2"),
        (site.lab.vip6(), "2001:db8:c::2"),
    ] {
        let host = &site.lab.backends[0].host;
        let socket = host.run(|| UdpSocket::bind((vip, TRACED))).unwrap();
        socket.connect((client, 9)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        match vip {
            IpAddr::V4(_) => {
                setsockopt(&socket, Ipv4RecvErr, &true).unwrap();
                setsockopt(&socket, Ipv4Ttl, &1).unwrap();
            }
            IpAddr::V6(_) => {
                setsockopt(&socket, Ipv6RecvErr, &true).unwrap();
                setsockopt(&socket, Ipv6Ttl, &1).unwrap();
            }
        }
        let before = site.katran.stats().totals().unwrap().tx.packets;
        socket.send(b"how far?").unwrap();
        // The router, one hop away, sends time exceeded to the VIP, the packet's source.
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(Errno::EHOSTUNREACH as i32),
            "{error}"
        );
        let after = site.katran.stats().totals().unwrap().tx.packets;
        assert_eq!(after, before + 1, "{}", site.report());
    }
    assert_eq!(site.katran.stats().flow_table().unwrap().misses, 0);
}

#[test]
fn forwarding_to_a_vips_address_is_a_warning() {
    let place = Place::new(1);
    let host = &place.host;
    let katran = balancer();
    let warned = || {
        let diagnosis = host.run(|| katran.diagnose("eth0")).unwrap();
        diagnosis.to_string().contains("203.0.113.1 is not its own")
    };
    host.sysctl("net.ipv4.ip_forward", 0).unwrap();
    assert!(!warned(), "it does not forward");
    host.sysctl("net.ipv4.ip_forward", 1).unwrap();
    assert!(warned());
    for recipe in [
        "addr add 203.0.113.1/32 dev lo",
        "route add unreachable 203.0.113.1/32",
    ] {
        host.ip(recipe).unwrap();
        assert!(!warned(), "{recipe}");
        host.ip(&recipe.replace(" add ", " del ")).unwrap();
        assert!(warned());
    }
}

#[test]
fn changes_without_a_notice_are_polled() {
    let place = Place::new(1);
    let host = &place.host;
    place.link("eth1", ONE);
    let mut katran = balancer();
    // Outside the process's own network namespace, subscribing to notices needs a privilege.
    host.run(|| {
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_BROADCAST).unwrap();
        katran.attach("eth1", XdpMode::Generic).unwrap();
        caps::raise(None, CapSet::Effective, Capability::CAP_NET_BROADCAST).unwrap();
    });
    assert!(!is_ours(&katran, host, "eth1", NEW));
    set_mac(host, "eth1", NEW);
    let began = Instant::now();
    while !is_ours(&katran, host, "eth1", NEW) {
        assert!(began.elapsed() < 6 * PATIENCE, "never looked for");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(!is_ours(&katran, host, "eth1", ONE));
}
