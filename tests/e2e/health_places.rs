//! Where health checks are attached and which way probes go from there: with few privileges,
//! attached by the embedder, and along routes that change.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::thread;

use caps::CapSet;
use caps::Capability;
use katran::Error;
use katran::Gateway;
use katran::Katran;
use katran::MacAddr;
use katran::NextHops;
use katran::XdpMode;
use katran::attachments::TcHook;
use katran_lab::Host;
use katran_lab::LabConfig;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Mark;

use crate::health::counters;
use crate::health::probe;
use crate::health::probe_in_vain;
use crate::health::sent;
use crate::health::site as health_site;
use crate::segment::Arrival;
use crate::segment::Segment;
use crate::segment::v4;
use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// Sends this many datagrams with a mark; no host answers them.
fn datagrams(host: &Host, to: IpAddr, mark: u32, number: usize) {
    host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        setsockopt(&socket, Mark, &mark).unwrap();
        for _ in 0..number {
            socket.send_to(b"datagram", (to, 9)).unwrap();
        }
    });
}

/// Attaches a program to an interface's egress as an embedder might.
fn attach_by_hand(host: &Host, program: BorrowedFd<'_>) {
    let index = host.interface_index("eth0").unwrap();
    let attached = host.run(|| {
        let mut hook = libbpf_sys::bpf_tc_hook {
            sz: size_of::<libbpf_sys::bpf_tc_hook>() as _,
            ifindex: index as i32,
            attach_point: libbpf_sys::BPF_TC_EGRESS,
            ..Default::default()
        };
        let mut options = libbpf_sys::bpf_tc_opts {
            sz: size_of::<libbpf_sys::bpf_tc_opts>() as _,
            prog_fd: program.as_raw_fd(),
            handle: 1,
            priority: 1,
            ..Default::default()
        };
        // SAFETY: hook and options outlive the calls, and are as long as they say.
        unsafe {
            libbpf_sys::bpf_tc_hook_create(&mut hook);
            libbpf_sys::bpf_tc_attach(&hook, &mut options)
        }
    });
    assert_eq!(attached, 0);
}

#[test]
fn an_embedder_may_attach_the_program_by_other_means() {
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.source_v4("10.0.0.2".parse().unwrap())
    });
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let vip: SocketAddr = (site.lab.vip4(), PORT).into();
    for (mark, backend) in (1..).zip(&site.lab.backends) {
        site.katran
            .probes_mut()
            .map_mark(mark, backend.v4.into())
            .unwrap();
    }
    let host = &site.lab.balancers[0].host;
    attach_by_hand(host, site.katran.probes().program_fd().unwrap());
    assert!(site.katran.probes().attachment().is_none());
    for (mark, backend) in [(1, "backend0"), (2, "backend1")] {
        assert_eq!(probe(host, vip, mark, None).unwrap(), backend);
    }
    let now = counters(&site.katran);
    assert!(now.processed >= 8 && now.dropped == 0, "{now:?}");
    drop(servers);
}

#[test]
fn a_leftover_filter_is_taken_over_with_few_privileges() {
    let site = Site::with(
        LabConfig {
            backends: 0,
            ..LabConfig::default()
        },
        XdpMode::Native,
        |builder| builder,
    );
    let host = &site.lab.balancers[0].host;
    let gateway = MacAddr::new(site.lab.balancers[0].gateway_mac);
    // All the privileges this takes; opening another's program by its id would take CAP_SYS_ADMIN.
    // On its own thread, as the thread must leave the namespace it enters.
    let on_thread = |f: &(dyn Fn() -> katran::Result<Katran> + Sync)| {
        host.run(|| thread::scope(|scope| scope.spawn(f).join().unwrap()))
    };
    let start = || {
        on_thread(&|| {
            let all = caps::all();
            let needed = [
                Capability::CAP_BPF,
                Capability::CAP_NET_ADMIN,
                Capability::CAP_PERFMON,
            ];
            for capability in all.difference(&needed.into()) {
                caps::drop(None, CapSet::Effective, *capability).unwrap();
            }
            let mut katran = site::small(gateway)
                .healthcheck_interface("eth0")
                .healthcheck_hook(TcHook::Clsact)
                .load()
                .unwrap();
            katran.probes_mut().attach().map(|()| katran)
        })
    };
    let filters = || host.tool("tc", "filter show dev eth0 egress").unwrap();
    let number = || {
        let text = filters();
        assert_eq!(text.matches("healthcheck:[").count(), 1, "{text}");
        text.split("healthcheck:[").nth(1).unwrap()[..8].to_owned()
    };
    std::mem::forget(start().unwrap());
    let killed = number();
    let katran = start().unwrap();
    assert_ne!(number(), killed, "another program is there");
    drop(katran);
    assert!(filters().is_empty());
    // A foreign filter has another program name.
    host.tool("tc", "qdisc replace dev eth0 clsact").unwrap();
    foreign_filter(host);
    match start().map(drop) {
        Err(Error::ForeignTcFilter { program_name, .. }) => assert_eq!(program_name, "foreign"),
        other => panic!("{other:?}"),
    }
    assert!(filters().contains("foreign"));
}

/// Probes go the way of clients' packets: along the current routes, whatever they were when the
/// mark was mapped.
#[test]
fn probes_follow_routes_that_change() {
    let mut network = Segment::new(Arrival::OwnLink, |builder| {
        builder
            .gateway(Gateway::Auto)
            .next_hops(NextHops::Redirect)
            .healthcheck_interface("eth0")
            .source_v4("10.20.0.2".parse().unwrap())
    });
    let vip = network.lab.vip4();
    let service: SocketAddr = (vip, PORT).into();
    let real = network.reals("10.0.0.0".parse().unwrap())[0];
    // From another namespace, before anything is attached.
    network.katran.probes_mut().map_mark(1, real).unwrap();
    let host = &network.lab.balancers[0].host;
    host.run(|| network.katran.attach("eth0", XdpMode::Native).unwrap());
    assert_eq!(probe(host, service, 1, None).unwrap(), "backend0");
    let by_eth0 = || {
        let before = sent(&network.lab.router, "bal0");
        datagrams(host, vip, 1, 100);
        sent(&network.lab.router, "bal0") - before >= 100
    };
    assert!(!by_eth0());
    // The route now leads through the router, by the other interface.
    host.ip(&format!("route add {real}/32 via 10.0.0.1 dev eth0"))
        .unwrap();
    site::eventually("probes leave by the other interface", by_eth0);
    assert_eq!(probe(host, service, 1, None).unwrap(), "backend0");
    host.ip(&format!("route del {real}/32 via 10.0.0.1 dev eth0"))
        .unwrap();
    site::eventually("probes leave by the first one", || !by_eth0());
    assert_eq!(probe(host, service, 1, None).unwrap(), "backend0");
}

#[test]
fn probes_use_a_given_gateway_address_too() {
    let mut network = Segment::new(Arrival::Segment, |builder| {
        builder
            .next_hops(NextHops::PerReal)
            .healthcheck_interface("eth1")
            .source_v4("10.20.0.2".parse().unwrap())
    });
    let service = (network.lab.vip4(), PORT).into();
    let host = &network.lab.balancers[0].host;
    host.run(|| network.katran.attach("eth1", XdpMode::Native).unwrap());
    // A real behind a router that is the second backend itself.
    let behind: IpAddr = "192.0.2.99".parse().unwrap();
    let router = &network.backends[1];
    site::add_to_lo(router, behind);
    let link = router.ip("link show dev eth0").unwrap();
    let mac = link.split("link/ether ").nth(1).unwrap();
    let mac: MacAddr = mac.split_whitespace().next().unwrap().parse().unwrap();
    network
        .katran
        .probes_mut()
        .map_mark(1, v4(11).into())
        .unwrap();
    network.katran.probes_mut().map_mark(2, behind).unwrap();
    // No host has the gateway address set so far; a service on the segment does not need it.
    assert_eq!(probe(host, service, 1, None).unwrap(), "backend0");
    probe_in_vain(host, service, 2, None);
    network.katran.gateways_mut().set_mac(mac).unwrap();
    assert_eq!(probe(host, service, 2, None).unwrap(), "backend1");
    assert_eq!(probe(host, service, 1, None).unwrap(), "backend0");
}

#[test]
fn a_probe_that_passes_twice_counts_once() {
    let mut network = Segment::new(Arrival::Segment, |builder| {
        builder
            .gateway(Gateway::Auto)
            .next_hops(NextHops::PerReal)
            .healthcheck_interface("eth1")
            .source_v4("10.20.0.2".parse().unwrap())
    });
    let vip = network.lab.vip4();
    let host = &network.lab.balancers[0].host;
    host.run(|| network.katran.attach("eth1", XdpMode::Native).unwrap());
    let real = network.reals("10.0.0.0".parse().unwrap())[0];
    // Matched by the probe's source, which the wrapped packet shares.
    let own = ("10.20.0.2".parse::<IpAddr>().unwrap(), 0).into();
    network.katran.probes_mut().match_source(own, real).unwrap();
    let service = (vip, PORT).into();
    assert_eq!(probe(host, service, 0, None).unwrap(), "backend0");
    network.katran.probes_mut().unmatch_source(own).unwrap();
    network.katran.probes_mut().map_mark(1, real).unwrap();
    let before = counters(&network.katran);
    datagrams(host, vip, 1, 100);
    let now = counters(&network.katran);
    assert_eq!(now.processed - before.processed, 100);
    // Frames without IP, such as ARP, are skipped as always.
    assert!(now.skipped - before.skipped < 50, "{before:?} {now:?}");
}

#[test]
fn the_filter_goes_with_the_balancer_and_leaves_foreign_ones_alone() {
    let mut site = health_site(|builder| builder.healthcheck_hook(TcHook::Clsact));
    let filters = |host: &Host| host.tool("tc", "filter show dev eth0 egress").unwrap();
    let clsact = |host: &Host| {
        host.tool("tc", "qdisc show dev eth0")
            .unwrap()
            .contains("clsact")
    };
    let host = &site.lab.balancers[0].host;
    assert!(filters(host).contains("healthcheck"), "{}", filters(host));
    // Called here, in another namespace than the filter's.
    site.katran.detach("eth0").unwrap();
    assert!(filters(host).is_empty() && !clsact(host));
    assert!(site.katran.probes().attachment().is_none());

    // An existing qdisc stays.
    host.tool("tc", "qdisc add dev eth0 clsact").unwrap();
    host.run(|| site.katran.attach("eth0", XdpMode::Native).unwrap());
    assert!(filters(host).contains("healthcheck"));
    // The filter's place is taken; the XDP program must not stay attached alone.
    let gateway = MacAddr::new(site.lab.balancers[0].gateway_mac);
    let mut other = site::small(gateway)
        .healthcheck_interface("eth0")
        .healthcheck_hook(TcHook::Clsact)
        .load()
        .unwrap();
    let error = host.run(|| other.attach("eth0", XdpMode::Native).unwrap_err());
    assert!(matches!(error, Error::ForeignProgram { .. }), "{error}");
    site.katran.detach_all();
    assert!(filters(host).is_empty() && clsact(host));
    // A killed process's filter is replaced; a foreign one is not.
    std::mem::forget(host.run(|| {
        let mut killed = site::small(gateway)
            .healthcheck_interface("eth0")
            .healthcheck_hook(TcHook::Clsact)
            .load()
            .unwrap();
        killed.probes_mut().attach().unwrap();
        killed
    }));
    assert!(filters(host).contains("healthcheck"));
    host.run(|| other.attach("eth0", XdpMode::Native).unwrap());
    drop(other);
    assert!(filters(host).is_empty());

    // Another qdisc has clsact's place.
    host.tool("tc", "qdisc del dev eth0 clsact").unwrap();
    host.tool("tc", "qdisc add dev eth0 ingress").unwrap();
    let error = host.run(|| site.katran.attach("eth0", XdpMode::Native).unwrap_err());
    assert!(error.to_string().contains("ingress qdisc"), "{error}");
    host.tool("tc", "qdisc del dev eth0 ingress").unwrap();
    host.tool("tc", "qdisc add dev eth0 clsact").unwrap();

    foreign_filter(host);
    let before = filters(host);
    assert!(before.contains("pref 2307"), "{before}");
    let error = host.run(|| site.katran.attach("eth0", XdpMode::Native).unwrap_err());
    assert!(matches!(error, Error::ForeignTcFilter { .. }), "{error}");
    assert_eq!(filters(host), before);
    assert!(site.katran.interfaces().is_empty());
    assert!(!host.ip("link show dev eth0").unwrap().contains("xdp"));
}

/// Attaches a foreign filter where ours would be.
fn foreign_filter(host: &Host) {
    let instruction = |code, immediate| libbpf_sys::bpf_insn {
        code,
        imm: immediate,
        ..Default::default()
    };
    // r0 = TC_ACT_UNSPEC; exit
    let program = [instruction(0xb7, -1), instruction(0x95, 0)];
    let index = host.interface_index("eth0").unwrap();
    let attached = host.run(|| {
        let hook = libbpf_sys::bpf_tc_hook {
            sz: size_of::<libbpf_sys::bpf_tc_hook>() as _,
            ifindex: index as i32,
            attach_point: libbpf_sys::BPF_TC_EGRESS,
            ..Default::default()
        };
        // SAFETY: instructions, hook and options outlive the calls, and are as long as they say.
        unsafe {
            let fd = libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
                c"foreign".as_ptr(),
                c"MIT".as_ptr(),
                program.as_ptr(),
                program.len() as _,
                std::ptr::null_mut(),
            );
            assert!(fd >= 0);
            let mut options = libbpf_sys::bpf_tc_opts {
                sz: size_of::<libbpf_sys::bpf_tc_opts>() as _,
                prog_fd: fd,
                handle: 1,
                priority: 2307,
                ..Default::default()
            };
            libbpf_sys::bpf_tc_attach(&hook, &mut options)
        }
    });
    assert_eq!(attached, 0);
}
