//! Each trouble of a backend is one finding with a remedy; each address family is judged by its own
//! routes.

use super::*;
use crate::attach::XdpMode;
use crate::diagnose::OurAttachment;
use crate::diagnose::Ours;
use crate::diagnose::Present;
use crate::diagnose::Severity;
use crate::environment::Privileges;
use crate::types::Family;

fn good() -> Backend {
    Backend {
        host: HostFacts {
            release: "6.18".to_owned(),
            jit: Some(true),
            privileges: Some(Privileges {
                lacking: Vec::new(),
                sees_all_programs: true,
            }),
            ..HostFacts::default()
        },
        interface: InterfaceFacts {
            name: "eth0.7".to_owned(),
            index: Some(2),
            up: true,
            carrier: true,
            mtu: 1540,
            xdp_features: Some(1),
            program: Some(Present {
                id: 7,
                mode: XdpMode::Native,
                name: DECAP.to_owned(),
            }),
            ours: Ours {
                program: Some(7),
                xdp: Some(OurAttachment {
                    index: 2,
                    not_native: None,
                }),
                elsewhere: false,
            },
            ..InterfaceFacts::default()
        },
        kernel: KernelTunnels::default(),
        tc_index: None,
        rp_filter: Some(0),
        clients: vec![Clients {
            family: Family::V4,
            way_back: WayBack::Here,
            longest: 1500,
        }],
        outer: Family::V6,
        arp_ignore: Some(1),
        arp_announce: Some(2),
        gue: false,
        vips: vec![([203, 0, 113, 1].into(), true)],
    }
}

/// Attached at tc, without an XDP program.
fn at_tc(facts: &mut Backend, index: u32) {
    facts.interface.program = None;
    facts.interface.ours.xdp = None;
    facts.interface.ours.elsewhere = true;
    facts.tc_index = Some(index);
}

fn other(facts: &mut Backend, name: &str) {
    facts.interface.ours.xdp = None;
    facts.interface.ours.program = Some(8);
    facts.interface.program.as_mut().unwrap().name = name.to_owned();
}

#[test]
fn each_trouble_is_one_finding_with_advice() {
    use Severity::Note;
    use Severity::Problem;
    use Severity::Warning;
    assert_eq!(judge(&good()).worst(), Severity::Ok);
    type Change = fn(&mut Backend);
    let cases: [(Change, Severity, Subject, &str); 20] = [
        (|f| f.gue = true, Note, Subject::Mtu, "mtu 1548"),
        (
            |f| f.arp_announce = Some(0),
            Note,
            Subject::Arp,
            "net/ipv4/conf/eth0.7/arp_announce=2",
        ),
        (
            |f| f.clients[0].way_back = WayBack::None,
            Problem,
            Subject::WayBack,
            "ip route add default via",
        ),
        (
            |f| {
                f.clients[0].family = Family::V6;
                f.clients[0].way_back = WayBack::None;
            },
            Problem,
            Subject::WayBack,
            "ip -6 route add default via",
        ),
        (
            |f| f.clients[0].way_back = WayBack::Partial,
            Warning,
            Subject::WayBack,
            "if there are clients elsewhere",
        ),
        (
            |f| {
                f.interface.ours.xdp = None;
                f.interface.program = None;
            },
            Warning,
            Subject::Program,
            "attach one",
        ),
        (
            |f| {
                f.interface.index = Some(3);
                f.interface.program = None;
            },
            Problem,
            Subject::Program,
            "attach again",
        ),
        (
            |f| f.interface.program = None,
            Problem,
            Subject::Program,
            "attach again",
        ),
        (|f| at_tc(f, 1), Problem, Subject::Program, "attach again"),
        (
            |f| {
                let program = f.interface.program.take();
                at_tc(f, 2);
                f.interface.program = program;
                f.interface.ours.program = Some(8);
            },
            Note,
            Subject::Program,
            "passes tunnels on",
        ),
        (|f| other(f, "filter"), Warning, Subject::Program, "--tc"),
        (|f| other(f, DECAP), Note, Subject::Program, "ignore this"),
        (
            |f| f.interface.program.as_mut().unwrap().mode = XdpMode::Generic,
            Warning,
            Subject::Mode,
            "generic mode was requested",
        ),
        (
            |f| f.rp_filter = Some(1),
            Note,
            Subject::ReversePathFilter,
            "net/ipv4/conf/eth0.7/rp_filter=0",
        ),
        (
            |f| {
                f.rp_filter = Some(1);
                f.clients[0].way_back = WayBack::Elsewhere;
            },
            Problem,
            Subject::ReversePathFilter,
            "rp_filter=0",
        ),
        (
            |f| f.rp_filter = None,
            Note,
            Subject::ReversePathFilter,
            "to be sure",
        ),
        (
            |f| f.vips[0].1 = false,
            Problem,
            Subject::VipOnLoopback,
            "ip addr add 203.0.113.1/32 dev lo",
        ),
        (
            |f| f.arp_ignore = Some(0),
            Note,
            Subject::Arp,
            "arp_ignore=1",
        ),
        (
            |f| f.interface.mtu = 1500,
            Warning,
            Subject::Mtu,
            "advmss 1400",
        ),
        (
            |f| f.interface.up = false,
            Problem,
            Subject::Interface,
            "up",
        ),
    ];
    for (change, severity, subject, advice) in cases {
        let mut facts = good();
        change(&mut facts);
        let found = judge(&facts);
        let bad: Vec<_> = found
            .findings()
            .iter()
            .filter(|finding| finding.severity > Severity::Ok)
            .collect();
        assert_eq!(bad.len(), 1, "{found}");
        assert_eq!(
            (bad[0].severity, bad[0].subject),
            (severity, subject),
            "{found}"
        );
        assert!(bad[0].advice.contains(advice), "{found}");
    }
}

#[test]
fn each_family_is_judged_by_its_own_routes() {
    let worst = |facts: &Backend, subject| {
        let found = judge(facts);
        let severities = found.about(subject).map(|finding| finding.severity);
        severities.max().unwrap()
    };
    // An IPv6 backend needs nothing for IPv4.
    let mut facts = good();
    facts.clients[0].family = Family::V6;
    facts.rp_filter = Some(1);
    assert_eq!(judge(&facts).worst(), Severity::Ok);
    // An IPv4 backend needs no room for 40 bytes.
    let mut facts = good();
    facts.interface.mtu = 1520;
    assert_eq!(worst(&facts, Subject::Mtu), Severity::Warning);
    facts.outer = Family::V4;
    assert_eq!(worst(&facts, Subject::Mtu), Severity::Ok);
    // A route that limits IPv4 does nothing for IPv6.
    facts.interface.mtu = 1500;
    facts.clients[0].longest = 1460;
    assert_eq!(worst(&facts, Subject::Mtu), Severity::Ok);
    facts.clients.push(Clients {
        family: Family::V6,
        way_back: WayBack::Here,
        longest: 1500,
    });
    let found = judge(&facts);
    let mut about = found.about(Subject::Mtu);
    assert_eq!(about.next().unwrap().severity, Severity::Ok);
    let of_v6 = about.next().unwrap();
    assert_eq!(of_v6.severity, Severity::Warning, "{found}");
    assert!(of_v6.advice.contains("ip -6 route change"), "{found}");
    // Without VIPs, the needs are unknown.
    facts.vips.clear();
    facts.clients[1].way_back = WayBack::None;
    assert_eq!(worst(&facts, Subject::WayBack), Severity::Note);
    assert_eq!(worst(&facts, Subject::VipOnLoopback), Severity::Note);
}

#[path = "kernel_tunnels_tests.rs"]
mod kernel_tunnels_tests;
