//! Diagnosis: it finds nothing wrong with a sound setup, and finds each fault that a test makes.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Encapsulation;
use katran::FlowTracking;
use katran::Gateway;
use katran::NextHops;
use katran::Real;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::Severity;
use katran::diagnosis::Subject;
use katran_lab::LabConfig;
use katran_lab::TcpClient;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// A site whose balancer has a VIP with IPv4 reals.
fn site(mode: XdpMode, settings: impl FnOnce(katran::Builder) -> katran::Builder) -> Site {
    let mut site = Site::with(LabConfig::default(), mode, |builder| {
        settings(builder.ipip_source_v4("10.77.0.0".parse().unwrap()))
    });
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    let reals = site::reals(&site.lab, vip.address());
    site.add_service(vip, &reals);
    site
}

fn diagnose(site: &Site) -> Diagnosis {
    let host = &site.lab.balancers[0].host;
    host.run(|| site.katran.diagnose("eth0").unwrap())
}

/// Whether there is a finding of this severity about the subject with these words in its message
/// and advice. Also checks that every finding above `Ok` has advice.
pub(crate) fn finds(
    found: &Diagnosis,
    severity: Severity,
    subject: Subject,
    message: &str,
    advice: &str,
) {
    for finding in found.findings() {
        let fine = finding.severity == Severity::Ok;
        assert_eq!(finding.advice.is_empty(), fine, "{found}");
    }
    let mut about = found.about(subject);
    assert!(
        about.any(|finding| finding.severity == severity
            && finding.message.contains(message)
            && finding.advice.contains(advice)),
        "no {severity} about {subject} with `{message}` and `{advice}`:\n{found}"
    );
}

fn bad(found: &Diagnosis) -> Vec<Subject> {
    let findings = found.findings().iter();
    let bad = findings.filter(|finding| finding.severity >= Severity::Warning);
    bad.map(|finding| finding.subject).collect()
}

#[test]
fn a_sound_setup_has_no_findings_before_and_after_attaching() {
    let mut site = site(XdpMode::Native, |builder| builder);
    let found = diagnose(&site);
    assert!(found.works() && bad(&found).is_empty(), "{found}");
    finds(
        &found,
        Severity::Ok,
        Subject::Program,
        "attached to eth0",
        "",
    );
    finds(&found, Severity::Ok, Subject::Mode, "native", "");
    finds(&found, Severity::Ok, Subject::Mtu, "1600", "");
    site.katran.detach("eth0").unwrap();
    let found = diagnose(&site);
    assert!(found.works() && bad(&found).is_empty(), "{found}");
    finds(&found, Severity::Note, Subject::Program, "not attached", "");
    finds(&found, Severity::Ok, Subject::Mode, "has native XDP", "");
}

#[test]
fn faults_of_the_interface_are_found() {
    let mut site = site(XdpMode::Native, |builder| builder);
    let host = &site.lab.balancers[0].host;
    host.ip("link set eth0 mtu 1510").unwrap();
    let found = diagnose(&site);
    assert!(found.works() && bad(&found).is_empty(), "{found}");
    finds(
        &found,
        Severity::Note,
        Subject::Mtu,
        "above 1490 bytes are answered with an ICMP error",
        "mtu 1520",
    );
    host.ip("link set eth0 mtu 1600 down").unwrap();
    let found = diagnose(&site);
    assert!(!found.works());
    finds(
        &found,
        Severity::Problem,
        Subject::Interface,
        "is down",
        "link set eth0 up",
    );
    let missing = host.run(|| site.katran.diagnose("eth7").unwrap());
    finds(
        &missing,
        Severity::Problem,
        Subject::Interface,
        "does not exist",
        "ip link",
    );
    host.ip("link set eth0 up").unwrap();

    // Generic mode, and its reason: a bridge's driver has no native XDP.
    site.katran.detach("eth0").unwrap();
    let host = &site.lab.balancers[0].host;
    host.ip("link add bridge0 type bridge").unwrap();
    host.ip("link set bridge0 up").unwrap();
    host.run(|| site.katran.attach("bridge0", XdpMode::Auto).unwrap());
    let found = host.run(|| site.katran.diagnose("bridge0").unwrap());
    finds(
        &found,
        Severity::Warning,
        Subject::Mode,
        "generic",
        "no native XDP",
    );
    site.katran.detach("bridge0").unwrap();

    // A foreign program.
    let host = &site.lab.balancers[0].host;
    let mut other = katran::Decap::builder().load().unwrap();
    host.run(|| other.attach("eth0", XdpMode::Native).unwrap());
    let found = diagnose(&site);
    finds(
        &found,
        Severity::Problem,
        Subject::Program,
        "not this balancer's",
        "bpftool link",
    );
    // Another balancer's program is only a warning: the diagnosis may run beside that balancer.
    drop(other);
    let gateway = katran::MacAddr::new(site.lab.balancers[0].gateway_mac);
    let mut second = site::small(gateway).load().unwrap();
    host.run(|| second.attach("eth0", XdpMode::Native).unwrap());
    let found = diagnose(&site);
    assert!(found.works(), "{found}");
    finds(
        &found,
        Severity::Warning,
        Subject::Program,
        "a balancer of another process, in native mode",
        "stop it first",
    );
}

#[test]
fn offloads_are_found() {
    let mut site = site(XdpMode::Generic, |builder| builder);
    let host = &site.lab.balancers[0].host;
    host.tool("ethtool", "-K eth0 gro on").unwrap();
    let found = diagnose(&site);
    finds(
        &found,
        Severity::Warning,
        Subject::Offload,
        "GRO",
        "gro off",
    );
    host.tool("ethtool", "-K eth0 gro off rxvlan off").unwrap();
    let found = diagnose(&site);
    finds(
        &found,
        Severity::Ok,
        Subject::Offload,
        "nothing changes",
        "",
    );
    site.katran.detach("eth0").unwrap();
    let host = &site.lab.balancers[0].host;
    host.run(|| site.katran.attach("eth0", XdpMode::Native).unwrap());
    host.tool("ethtool", "-K eth0 rxvlan on").unwrap();
    let found = diagnose(&site);
    finds(
        &found,
        Severity::Note,
        Subject::Offload,
        "VLAN",
        "rxvlan off",
    );
}

/// Native XDP sends checksums on as it received them: a virtual link's neighbour leaves them to
/// hardware.
#[test]
fn unfinished_checksums_of_virtual_links_are_found() {
    let mut site = site(XdpMode::Native, |builder| builder);
    let found = diagnose(&site);
    let hint = "in another network namespace";
    finds(&found, Severity::Note, Subject::Offload, hint, "tx off");
    // A client's packets then arrive with wrong checksums, and are lost.
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    site::connect(&site.lab.client, vip).ask("who").unwrap();
    let links = [(&site.lab.client, "eth0"), (&site.lab.router, "bal0")];
    for (host, interface) in links {
        host.tool("ethtool", &format!("-K {interface} tx on"))
            .unwrap();
    }
    assert!(TcpClient::connect(&site.lab.client, (vip.address(), PORT).into()).is_err());
    site.lab.router.tool("ethtool", "-K bal0 tx off").unwrap();
    site::connect(&site.lab.client, vip).ask("who").unwrap();
    drop(servers);

    // If both ends of the link are in this namespace, the finding names the peer.
    let host = &site.lab.balancers[0].host;
    host.ip("link add near0 type veth peer name far0").unwrap();
    host.ip("link set near0 up").unwrap();
    host.ip("link set far0 up").unwrap();
    let attach = || site.katran.attach("near0", XdpMode::Native).map(drop);
    host.run(attach).unwrap();
    let diagnose = || host.run(|| site.katran.diagnose("near0").unwrap());
    let hint = "the other end, far0, leaves checksums unfinished";
    finds(
        &diagnose(),
        Severity::Warning,
        Subject::Offload,
        hint,
        "ethtool -K far0 tx off",
    );
    host.tool("ethtool", "-K far0 tx off").unwrap();
    let found = diagnose();
    assert!(!found.to_string().contains("checksums"), "{found}");
}

#[test]
fn unfinished_checksums_are_finished_in_generic_mode() {
    let site = site(XdpMode::Generic, |builder| builder);
    let _servers = site.lab.serve_tcp(PORT).unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    let links = [(&site.lab.client, "eth0"), (&site.lab.router, "bal0")];
    for (host, interface) in links {
        host.tool("ethtool", &format!("-K {interface} tx on"))
            .unwrap();
    }
    let mut client = site::connect(&site.lab.client, vip);
    let name = client.ask("who").unwrap();
    assert_eq!(client.ask(&"x".repeat(100_000)).unwrap(), name);
}

#[test]
fn packets_on_cpus_without_a_table_are_found() {
    // Even if packets need no flow table yet: they will once a ring changes.
    let cpus = site::cpus();
    for tracking in [FlowTracking::Changed, FlowTracking::All] {
        packets_without_a_table_are_found(tracking, cpus[1]);
    }
}

fn packets_without_a_table_are_found(tracking: FlowTracking, other: u32) {
    let site = site(XdpMode::Native, |builder| {
        builder.flow_tracking(tracking).forwarding_cpus([other])
    });
    assert!(!bad(&diagnose(&site)).contains(&Subject::FallbackTable));
    site::arrive_on_one_cpu(&site.lab);
    let servers = site.lab.serve_tcp(PORT).unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    site.new_connections(vip, 3);
    let found = diagnose(&site);
    let advice = "forwarding_cpus";
    finds(
        &found,
        Severity::Warning,
        Subject::FallbackTable,
        "without a flow table",
        advice,
    );
    drop(servers);
}

#[test]
fn faults_on_the_way_to_reals_are_found() {
    // No host has this address.
    let mut site = site(XdpMode::Native, |builder| builder);
    let loaded = Instant::now();
    let wrong = "02:00:00:00:00:99".parse().unwrap();
    site.katran.gateways_mut().set_mac(wrong).unwrap();
    let found = diagnose(&site);
    finds(
        &found,
        Severity::Note,
        Subject::Gateway,
        "02:00:00:00:00:99",
        "auto",
    );

    // A VIP without reals: the finding says that its packets are dropped.
    let vip = Vip::udp((site.lab.vip4(), 53).into());
    site.katran.add_vip(vip, VipFlags::empty()).unwrap();
    let socket = site::udp(&site.lab.client, vip);
    site::ask_udp_in_vain(&socket);
    let found = diagnose(&site);
    finds(
        &found,
        Severity::Warning,
        Subject::Vips,
        "203.0.113.1:53/udp has no real that takes new flows: ",
        "add reals",
    );
    finds(
        &found,
        Severity::Warning,
        Subject::Drops,
        "ring_empty: ",
        "add reals",
    );

    // A replacement knows since when they were counted.
    thread::sleep(Duration::from_secs(1));
    let mut state = site.katran.state();
    state.balancer.as_mut().unwrap().max_vips = Some(77);
    site.katran.apply(&state).unwrap();
    let passed = loaded.elapsed();
    let found = diagnose(&site);
    let mut drops = found.findings().iter();
    let drops = drops.find(|of| of.subject == Subject::Drops).unwrap();
    let (_, lately) = drops.message.split_once("in the last ").unwrap();
    let seconds: f64 = lately.split(' ').next().unwrap().parse().unwrap();
    assert!(seconds >= passed.as_secs_f64(), "{}", drops.message);
    drop(site);

    // No route to the gateway: found even before attaching.
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.gateway(Gateway::Auto)
    });
    site.katran.detach("eth0").unwrap();
    drop(site.katran);
    let gateway = katran::MacAddr::new(site.lab.balancers[0].gateway_mac);
    let auto = site::small(gateway).gateway(Gateway::Auto).load().unwrap();
    let host = &site.lab.balancers[0].host;
    let found = host.run(|| auto.diagnose("eth0").unwrap());
    assert!(found.works(), "{found}");
    host.ip("neigh flush all").unwrap();
    let found = host.run(|| auto.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Note,
        Subject::Gateway,
        "looks for it when attached",
        "ping 10.0.0.1",
    );
    host.ip("route del default").unwrap();
    host.ip("-6 route del default").unwrap();
    let found = host.run(|| auto.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Problem,
        Subject::Gateway,
        "no default route",
        "ip route",
    );
    drop(auto);

    // No neighbour answers for this real.
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder.gateway(Gateway::Auto).next_hops(NextHops::PerReal)
    });
    let host = &site.lab.balancers[0].host;
    host.ip("route add 198.51.100.0/24 dev eth0").unwrap();
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    site.add_service(vip, &["198.51.100.9".parse().unwrap()]);
    let found = diagnose(&site);
    finds(
        &found,
        Severity::Problem,
        Subject::Gateway,
        "198.51.100.9 does not answer",
        "neighbour",
    );
    assert!(!found.works());
    drop(site);

    // Adding a GUE real checks its source; for probes with IP in IP the source may still be
    // missing.
    let mut site = Site::with(LabConfig::default(), XdpMode::Native, |builder| {
        builder
            .encapsulation(Encapsulation::Ipip)
            .healthcheck_interface("eth0")
            .source_v4("10.0.0.2".parse().unwrap())
    });
    let vip = Vip::tcp((site.lab.vip6(), PORT).into());
    let reals = site::reals(&site.lab, vip.address());
    site.add_service(vip, &reals);
    let found = diagnose(&site);
    finds(
        &found,
        Severity::Warning,
        Subject::Source,
        "health checks of IPv6",
        "source_v6",
    );
}

#[test]
fn a_vip_with_only_down_or_drained_reals_is_found() {
    let mut site = site(XdpMode::Native, |builder| builder);
    let vip = Vip::tcp((site.lab.vip4(), PORT).into());
    let reals = site.katran.reals(vip).unwrap();
    for real in &reals {
        site.katran.mark_down(vip, real.address()).unwrap();
    }
    let found = diagnose(&site);
    let down = format!("new flows ({} down)", reals.len());
    finds(
        &found,
        Severity::Warning,
        Subject::Vips,
        &down,
        "mark them up",
    );

    // One of the two also drained, then drained only.
    for real in &reals[..2] {
        site.katran
            .add_real(vip, Real::new(real.address()).weight(0))
            .unwrap();
    }
    site.katran.mark_up(vip, reals[0].address()).unwrap();
    let found = diagnose(&site);
    let both = format!("({} down, 1 drained)", reals.len() - 1);
    finds(&found, Severity::Warning, Subject::Vips, &both, "a weight");

    // One real with flows is enough.
    site.katran.add_real(vip, reals[0]).unwrap();
    let found = diagnose(&site);
    finds(&found, Severity::Ok, Subject::Vips, "1 with reals", "");
}

#[test]
fn faults_of_a_backend_are_found() {
    let site = Site::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    });
    let backend = &site.lab.backends[0];
    let vips = [site.lab.vip4(), site.lab.vip6()];
    let diagnose = || {
        let diagnose = || site.decaps[0].diagnose("eth0", &vips).unwrap();
        backend.host.run(diagnose)
    };
    let found = diagnose();
    assert!(found.works() && bad(&found).is_empty(), "{found}");
    finds(&found, Severity::Ok, Subject::Program, "in native mode", "");
    finds(
        &found,
        Severity::Note,
        Subject::Arp,
        "answers ARP requests",
        "arp_ignore=1",
    );

    backend
        .host
        .sysctl("net.ipv4.conf.eth0.rp_filter", 1)
        .unwrap();
    finds(
        &diagnose(),
        Severity::Note,
        Subject::ReversePathFilter,
        "strict",
        "rp_filter=0",
    );
    backend.host.ip("route del default").unwrap();
    finds(
        &diagnose(),
        Severity::Problem,
        Subject::WayBack,
        "IPv4 has no default route",
        "default via",
    );
    backend.host.ip("route add default dev lo").unwrap();
    let found = diagnose();
    finds(
        &found,
        Severity::Problem,
        Subject::ReversePathFilter,
        "not lead through eth0",
        "rp_filter=0",
    );
    backend
        .host
        .sysctl("net.ipv4.conf.eth0.rp_filter", 0)
        .unwrap();

    let vip = vips[0];
    backend
        .host
        .ip(&format!("addr del {vip}/32 dev lo"))
        .unwrap();
    let advice = format!("ip addr add {vip}/32 dev lo");
    let found = diagnose();
    finds(
        &found,
        Severity::Problem,
        Subject::VipOnLoopback,
        "the kernel discards its packets",
        &advice,
    );
    assert!(!found.works());

    backend.host.ip("link set eth0 mtu 1500").unwrap();
    finds(
        &diagnose(),
        Severity::Warning,
        Subject::Mtu,
        "IP in IP adds up to",
        "advmss 1400",
    );
    // The MSS makes clients send shorter packets.
    for (gateway, family) in [("198.51.100.254", "-4"), ("2001:db8:2::ffff", "-6")] {
        let route = format!("{family} route replace default via {gateway} dev eth0 advmss 1400");
        backend.host.ip(&route).unwrap();
    }
    finds(&diagnose(), Severity::Ok, Subject::Mtu, "1460", "");
    backend
        .host
        .sysctl("net.ipv4.conf.eth0.arp_announce", 2)
        .unwrap();
    backend
        .host
        .sysctl("net.ipv4.conf.eth0.arp_ignore", 1)
        .unwrap();
    finds(&diagnose(), Severity::Ok, Subject::Arp, "its own", "");
}
