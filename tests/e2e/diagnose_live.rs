//! Diagnosis of faults that appear after setup, with few privileges, in shared mode, and of
//! backends by address family; each made for real.

use caps::Capability;
use katran::Decap;
use katran::Gateway;
use katran::NextHops;
use katran::Real;
use katran::RootProgram;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::attachments::SharedEntries;
use katran::attachments::TcHook;
use katran::diagnosis::Diagnosis;
use katran::diagnosis::Severity;
use katran::diagnosis::Subject;
use katran_lab::Host;
use katran_lab::LabConfig;
use katran_lab::private_bpf_fs;
use katran_lab::require_root;

use crate::diagnose::finds;
use crate::faults::without_capabilities;
use crate::site::Site;
use crate::site::small;

const ROUTER: &str = "02:00:00:00:00:01";

/// No finding of this severity is about the subject.
fn nothing(found: &Diagnosis, severity: Severity, subject: Subject) {
    let mut about = found.about(subject).peekable();
    assert!(about.peek().is_some(), "{found}");
    assert!(about.all(|finding| finding.severity < severity), "{found}");
}

/// A host with both ends of a veth pair, `eth0` and `eth1`.
pub(crate) fn host() -> Host {
    require_root();
    let host = Host::new("host").unwrap();
    pair(&host);
    host
}

pub(crate) fn pair(host: &Host) {
    host.ip("link add eth0 type veth peer name eth1").unwrap();
    host.ip("link set eth0 up").unwrap();
    host.ip("link set eth1 up").unwrap();
}

#[test]
fn a_recreated_interface_is_not_called_attached() {
    let host = host();
    let mut katran = small(ROUTER.parse().unwrap()).load().unwrap();
    let mut decap = Decap::builder().load().unwrap();
    host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    host.run(|| decap.attach("eth1", XdpMode::Native).unwrap());
    let balancer = || host.run(|| katran.diagnose("eth0").unwrap());
    let backend = |decap: &Decap| host.run(|| decap.diagnose("eth1", &[]).unwrap());
    let is_fine = |found: &Diagnosis| nothing(found, Severity::Note, Subject::Program);
    is_fine(&balancer());
    is_fine(&backend(&decap));
    // After a rename it is still the same program.
    host.ip("link set eth0 name wan0").unwrap();
    let renamed = host.run(|| katran.diagnose("wan0").unwrap());
    finds(
        &renamed,
        Severity::Ok,
        Subject::Program,
        "attached to wan0",
        "",
    );
    host.ip("link del wan0").unwrap();
    pair(&host);
    for found in [balancer(), backend(&decap)] {
        finds(
            &found,
            Severity::Problem,
            Subject::Program,
            "is a new interface",
            "attach again",
        );
    }
    decap.detach("eth1").unwrap();
    host.run(|| decap.attach_tc("eth1", TcHook::Auto).unwrap());
    is_fine(&backend(&decap));
    host.ip("link del eth0").unwrap();
    pair(&host);
    finds(
        &backend(&decap),
        Severity::Problem,
        Subject::Program,
        "is a new interface",
        "attach again",
    );
}

#[test]
fn the_drivers_refusal_is_reported() {
    let host = host();
    let mut katran = small(ROUTER.parse().unwrap()).load().unwrap();
    // A veth refuses native XDP if its peer may send longer frames than a page has room for.
    host.ip("link set eth1 mtu 9000").unwrap();
    // The peer needs a program, or native mode is not even tried.
    let mut passes = Decap::builder().load().unwrap();
    host.run(|| passes.attach("eth1", XdpMode::Native).unwrap());
    let attached = host.run(|| katran.attach("eth0", XdpMode::Auto).unwrap());
    assert_eq!(attached.mode, XdpMode::Generic);
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Warning,
        Subject::Mode,
        "refused native mode: Numerical result out of range",
        "dmesg",
    );
    // Asked for generic mode, the library no longer reports a refusal.
    katran.detach("eth0").unwrap();
    host.run(|| katran.attach("eth0", XdpMode::Generic).unwrap());
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Warning,
        Subject::Mode,
        "generic",
        "was requested",
    );
    assert!(!found.to_string().contains("refused native"), "{found}");
}

/// The capabilities in the guide's units, which lack `CAP_SYS_ADMIN`.
#[test]
fn few_privileges_cause_no_false_findings() {
    require_root();
    let pins = private_bpf_fs().unwrap();
    let host = host();
    host.tool("ethtool", "-K eth0 gro on").unwrap();
    let path = pins.join("few");
    let mut root = RootProgram::builder().load().unwrap();
    host.run(|| root.attach("eth0", XdpMode::Generic).unwrap());
    root.pin(&path).unwrap();
    let mut katran = small(ROUTER.parse().unwrap()).load().unwrap();
    let alone = small(ROUTER.parse().unwrap()).load().unwrap();
    host.run(|| katran.attach_shared(&path, 2).unwrap());
    let few = |katran: &katran::Katran| {
        host.run(|| {
            without_capabilities(&[Capability::CAP_SYS_ADMIN], || {
                katran.diagnose("eth0").unwrap()
            })
        })
    };
    // Root sees the same.
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    nothing(&found, Severity::Note, Subject::Program);
    nothing(&found, Severity::Note, Subject::Privileges);
    finds(&found, Severity::Warning, Subject::Mode, "generic", "");
    finds(
        &found,
        Severity::Warning,
        Subject::Offload,
        "GRO",
        "gro off",
    );
    let found = few(&katran);
    nothing(&found, Severity::Warning, Subject::Program);
    finds(
        &found,
        Severity::Note,
        Subject::Program,
        "an entry of the root program, if XDP program",
        "bpftool",
    );
    finds(
        &found,
        Severity::Warning,
        Subject::Privileges,
        "cannot take over",
        "CAP_SYS_ADMIN",
    );
    // A balancer that shares nothing needs no more, but cannot tell whose program is in its way.
    let found = few(&alone);
    nothing(&found, Severity::Note, Subject::Privileges);
    finds(
        &found,
        Severity::Warning,
        Subject::Program,
        "whose name only CAP_SYS_ADMIN may read",
        "bpftool prog show id",
    );
    let found = host.run(|| alone.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Note,
        Subject::Program,
        "the root program of another process",
        "--shared",
    );
    // Attached directly, it can tell: the program is its own.
    drop(root);
    RootProgram::remove(&path).unwrap();
    let mut alone = alone;
    host.run(|| alone.attach("eth0", XdpMode::Native).unwrap());
    nothing(&few(&alone), Severity::Note, Subject::Program);

    // Missing privileges are reported without a balancer, since none can be loaded.
    let missing = [
        Capability::CAP_SYS_ADMIN,
        Capability::CAP_BPF,
        Capability::CAP_PERFMON,
    ];
    let found = without_capabilities(&missing, Diagnosis::of_host);
    finds(
        &found,
        Severity::Problem,
        Subject::Privileges,
        "missing: CAP_PERFMON, CAP_BPF",
        "root",
    );
    assert!(Diagnosis::of_host().works());
}

#[test]
fn an_entry_that_was_taken_is_found() {
    require_root();
    let pins = private_bpf_fs().unwrap();
    let host = host();
    let path = pins.join("taken");
    let mut root = RootProgram::builder().load().unwrap();
    host.run(|| root.attach("eth0", XdpMode::Native).unwrap());
    root.pin(&path).unwrap();
    let mut katran = small(ROUTER.parse().unwrap()).load().unwrap();
    host.run(|| katran.attach_shared(&path, 2).unwrap());
    SharedEntries::open(&path).unwrap().clear(2).unwrap();
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Problem,
        Subject::Program,
        "taken is no longer this balancer's",
        "root show",
    );
    // Without a root program, nothing calls the entry.
    drop(root);
    RootProgram::remove(&path).unwrap();
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Warning,
        Subject::Program,
        "has no root program",
        "root attach",
    );
}

#[test]
fn a_real_that_is_this_host_needs_no_next_hop() {
    let host = host();
    host.ip("addr add 10.0.0.2/24 dev eth0").unwrap();
    host.ip("link set lo up").unwrap();
    let mut katran = small(ROUTER.parse().unwrap())
        .gateway(Gateway::Auto)
        .next_hops(NextHops::PerReal)
        .load()
        .unwrap();
    let vip: Vip = "203.0.113.1:80/tcp".parse().unwrap();
    katran.add_vip(vip, VipFlags::LOCAL_VIP).unwrap();
    let real = Real::new("10.0.0.2".parse().unwrap());
    let local = real.flags(katran::RealFlags::LOCAL_REAL);
    katran.add_real(vip, local).unwrap();
    let before = host.run(|| katran.diagnose("eth0").unwrap());
    host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    let after = host.run(|| katran.diagnose("eth0").unwrap());
    for found in [before, after] {
        nothing(&found, Severity::Note, Subject::Gateway);
        nothing(&found, Severity::Note, Subject::Vips);
    }
    katran
        .set_real_flags(real.address(), katran::RealFlags::empty())
        .unwrap();
    let found = host.run(|| katran.diagnose("eth0").unwrap());
    finds(
        &found,
        Severity::Problem,
        Subject::Vips,
        "real 10.0.0.2 is this host",
        "local-vip",
    );
}

/// With a gateway no real's next hop shows the interface: the host's routes do.
#[test]
fn unreachable_reals_are_findings_with_a_gateway() {
    let host = host();
    for command in [
        "addr add 10.0.0.2/24 dev eth0",
        "link set lo up",
        "route add 10.9.0.0/24 via 10.0.0.9",
        "route add unreachable 10.8.0.0/24",
    ] {
        host.ip(command).unwrap();
    }
    let vip: Vip = "203.0.113.1:80/tcp".parse().unwrap();
    let other: Vip = "203.0.113.2:80/tcp".parse().unwrap();
    for (gateway, unreachable) in [
        (Gateway::Auto, Severity::Problem),
        (Gateway::Mac(ROUTER.parse().unwrap()), Severity::Warning),
    ] {
        let builder = small(ROUTER.parse().unwrap()).gateway(gateway);
        let mut katran = builder.load().unwrap();
        katran.add_vip(vip, VipFlags::empty()).unwrap();
        katran.add_vip(other, VipFlags::empty()).unwrap();
        for of in [vip, other] {
            let real = Real::new("10.9.0.5".parse().unwrap());
            katran.add_real(of, real).unwrap();
        }
        let diagnose = |katran: &katran::Katran| host.run(|| katran.diagnose("eth0").unwrap());
        nothing(&diagnose(&katran), Severity::Warning, Subject::Vips);
        for (real, severity, message, advice) in [
            ("10.0.0.2", Severity::Problem, "is this host", "local-vip"),
            (
                "203.0.113.2",
                Severity::Problem,
                "is the address of a VIP",
                "backend's own",
            ),
            ("10.8.0.7", unreachable, "is unreachable", "ip route get"),
        ] {
            let real = Real::new(real.parse().unwrap());
            katran.add_real(vip, real).unwrap();
            let message = format!("real {} {message}", real.address());
            finds(
                &diagnose(&katran),
                severity,
                Subject::Vips,
                &message,
                advice,
            );
            katran.remove_real(vip, real.address()).unwrap();
            nothing(&diagnose(&katran), Severity::Warning, Subject::Vips);
        }
    }
}

#[test]
fn backends_are_judged_by_the_families_of_their_vips() {
    let site = Site::new(LabConfig {
        backends: 1,
        ..LabConfig::default()
    });
    let backend = &site.lab.backends[0].host;
    let (v4, v6) = (site.lab.vip4(), site.lab.vip6());
    let diagnose = |vips: &[std::net::IpAddr]| {
        let diagnose = || site.decaps[0].diagnose("eth0", vips).unwrap();
        backend.run(diagnose)
    };
    backend.ip("-6 route del default").unwrap();
    finds(
        &diagnose(&[v6]),
        Severity::Problem,
        Subject::WayBack,
        "IPv6 has no default route",
        "ip -6 route add",
    );
    nothing(&diagnose(&[v4]), Severity::Note, Subject::WayBack);
    let found = diagnose(&[]);
    finds(
        &found,
        Severity::Note,
        Subject::WayBack,
        "IPv6 has no default route",
        "if there is a VIP of IPv6",
    );
    nothing(&found, Severity::Warning, Subject::WayBack);
    // Clients on the local network only.
    backend
        .ip("-6 route add 2001:db8::/64 via 2001:db8:2::ffff")
        .unwrap();
    finds(
        &diagnose(&[v6]),
        Severity::Warning,
        Subject::WayBack,
        "that other routes lead to",
        "elsewhere",
    );
    // IPv6 only.
    backend
        .ip("-6 route add default via 2001:db8:2::ffff dev eth0")
        .unwrap();
    backend.ip("route del default").unwrap();
    backend.sysctl("net.ipv4.conf.eth0.rp_filter", 1).unwrap();
    let found = diagnose(&[v6]);
    assert!(found.works(), "{found}");
    nothing(&found, Severity::Note, Subject::WayBack);
    nothing(&found, Severity::Note, Subject::ReversePathFilter);
    // IPv4 only: outer headers of 20 bytes.
    backend
        .ip("route add default via 198.51.100.254 dev eth0")
        .unwrap();
    backend.sysctl("net.ipv6.conf.all.disable_ipv6", 1).unwrap();
    backend.ip("link set eth0 mtu 1520").unwrap();
    backend
        .ip("route change default via 198.51.100.254 dev eth0 mtu 1500")
        .unwrap();
    let found = diagnose(&[v4]);
    finds(
        &found,
        Severity::Ok,
        Subject::Mtu,
        "IPv4 packets of 1500 bytes in IP in IP",
        "",
    );
    finds(
        &found,
        Severity::Note,
        Subject::Mtu,
        "GUE adds up to 28",
        "mtu 1528",
    );
    // A VIP whose family is disabled is a finding, not an error.
    let found = diagnose(&[v6]);
    assert!(!found.works(), "{found}");
    finds(
        &found,
        Severity::Problem,
        Subject::WayBack,
        "IPv6 has no default route",
        "",
    );
    let balancer = &site.lab.balancers[0].host;
    balancer
        .sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        .unwrap();
    let found = balancer.run(|| site.katran.diagnose("eth0").unwrap());
    nothing(&found, Severity::Warning, Subject::Program);
}

#[test]
fn other_programs_on_a_backend_are_found() {
    let host = host();
    let mut other = Decap::builder().load().unwrap();
    let mut decap = Decap::builder().load().unwrap();
    let diagnose = |decap: &Decap| host.run(|| decap.diagnose("eth0", &[]).unwrap());
    host.run(|| other.attach("eth0", XdpMode::Generic).unwrap());
    finds(
        &diagnose(&other),
        Severity::Warning,
        Subject::Mode,
        "generic",
        "was requested",
    );
    finds(
        &diagnose(&decap),
        Severity::Note,
        Subject::Program,
        "another process strips tunnels on eth0, in generic mode",
        "stop it first",
    );
    drop(other);
    let mut katran = small(ROUTER.parse().unwrap()).load().unwrap();
    host.run(|| katran.attach("eth0", XdpMode::Native).unwrap());
    finds(
        &diagnose(&decap),
        Severity::Warning,
        Subject::Program,
        "which is not the decapsulator",
        "--tc",
    );
    host.run(|| decap.attach_tc("eth0", TcHook::Auto).unwrap());
    finds(
        &diagnose(&decap),
        Severity::Note,
        Subject::Program,
        "sees frames first",
        "passes tunnels on",
    );
    finds(
        &diagnose(&decap),
        Severity::Ok,
        Subject::Program,
        "strips tunnels on eth0 at tc",
        "",
    );
}
