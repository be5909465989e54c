//! Each trouble of a balancer is one finding, with what to do.

use super::*;
use crate::diagnose::Ours;
use crate::diagnose::Present;
use crate::diagnose::Severity;

fn good() -> Balancer {
    let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
    Balancer {
        release: "6.18".to_owned(),
        jit: Some(true),
        missing_capabilities: None,
        interface: InterfaceFacts {
            name: "eth0".to_owned(),
            index: Some(2),
            up: true,
            carrier: true,
            mtu: 1540,
            driver: Some("mlx5_core".to_owned()),
            native: Some(true),
            program: Some(Present {
                id: 7,
                mode: XdpMode::Native,
                name: "other".to_owned(),
            }),
            receive_queues: Some(4),
            lro: Some(false),
            gro: Some(true),
            rxvlan: Some(false),
            ours: Ours {
                xdp: Some(XdpMode::Native),
                elsewhere: false,
            },
        },
        frags: false,
        max_frame: 1514,
        gue: false,
        reals: [true, true],
        sources: [true, true],
        default_ipip_source: false,
        healthchecks: false,
        healthchecks_attached: false,
        gateway: Gateway::Mac(mac),
        gateway_v6: None,
        mode: NextHops::Gateway,
        next_hops: Vec::new(),
        next_hops_previewed: false,
        neighbours: vec![mac],
        online_cpus: 4,
        forwarding_cpus: 4,
        packets: 100,
        fallback: 0,
        vips: 1,
        empty_vips: Vec::new(),
        drops: Vec::new(),
    }
}

/// The only finding that is not fine.
fn only(change: impl FnOnce(&mut Balancer)) -> (Severity, Subject, String, String) {
    let mut facts = good();
    change(&mut facts);
    let found = judge(&facts);
    let mut bad = found
        .findings()
        .iter()
        .filter(|finding| finding.severity > Severity::Ok);
    let finding = bad.next().expect("something is wrong").clone();
    assert_eq!(bad.next(), None, "{found}");
    let text = found.to_string();
    assert!(text.contains(&finding.message) && text.contains(&finding.advice));
    (
        finding.severity,
        finding.subject,
        finding.message,
        finding.advice,
    )
}

#[test]
fn a_good_place_has_nothing_but_ok() {
    let found = judge(&good());
    assert_eq!(found.worst(), Severity::Ok, "{found}");
    assert!(
        found
            .to_string()
            .ends_with("0 problems, 0 warnings, 0 notes")
    );
    assert!(found.findings().len() >= 10);
}

#[test]
fn each_trouble_is_one_finding_with_advice() {
    use Severity::Note;
    use Severity::Problem;
    use Severity::Warning;
    type Change = fn(&mut Balancer);
    let cases: [(Change, Severity, Subject, &str, &str); 20] = [
        (
            |f| f.jit = Some(false),
            Warning,
            Subject::Kernel,
            "interprets",
            "bpf_jit_enable",
        ),
        (
            |f| f.missing_capabilities = Some("CAP_BPF".to_owned()),
            Problem,
            Subject::Privileges,
            "CAP_BPF",
            "root",
        ),
        (
            |f| f.interface.up = false,
            Problem,
            Subject::Interface,
            "is down",
            "link set eth0 up",
        ),
        (
            |f| f.interface.carrier = false,
            Problem,
            Subject::Interface,
            "carrier",
            "cable",
        ),
        (
            |f| {
                f.interface.ours.xdp = Some(XdpMode::Generic);
                f.interface.gro = Some(false);
                f.interface.native = Some(false);
            },
            Warning,
            Subject::Mode,
            "generic",
            "no native XDP",
        ),
        (
            |f| {
                f.interface.ours.xdp = Some(XdpMode::Generic);
                f.interface.gro = Some(false);
                f.interface.mtu = 9000;
            },
            Warning,
            Subject::Mode,
            "generic",
            "frags",
        ),
        (
            |f| f.interface.ours.xdp = None,
            Problem,
            Subject::Program,
            "program 7",
            "root program",
        ),
        (
            |f| f.interface.lro = Some(true),
            Warning,
            Subject::Offload,
            "merges",
            "lro off",
        ),
        (
            |f| f.interface.rxvlan = Some(true),
            Note,
            Subject::Offload,
            "VLAN",
            "rxvlan off",
        ),
        (
            |f| f.interface.receive_queues = Some(8),
            Warning,
            Subject::Queues,
            "8 receive queues for 4",
            "combined 4",
        ),
        (
            |f| f.interface.receive_queues = Some(1),
            Note,
            Subject::Queues,
            "1 receive queues",
            "combined 4",
        ),
        (
            |f| f.fallback = 50,
            Warning,
            Subject::FallbackTable,
            "50 of 100",
            "forwarding_cpus",
        ),
        (
            |f| f.interface.mtu = 1500,
            Warning,
            Subject::Mtu,
            "above 1460 bytes",
            "mtu 1540",
        ),
        (
            |f| f.neighbours.clear(),
            Note,
            Subject::Gateway,
            "02:00:00:00:00:01 is no address",
            "auto",
        ),
        (
            |f| {
                f.gateway = Gateway::Auto;
                f.next_hops = vec![NextHop { mac: None, ..hop() }];
            },
            Problem,
            Subject::Gateway,
            "10.0.0.1 does not answer",
            "gateway_mac",
        ),
        (
            |f| {
                f.gateway = Gateway::Auto;
                f.next_hops = vec![hop()];
            },
            Warning,
            Subject::Gateway,
            "10.0.0.1 does not answer; packets go to 02:00:00:00:00:01",
            "ip neighbour",
        ),
        (
            |f| {
                f.gateway = Gateway::Auto;
                f.next_hops = vec![NextHop {
                    answers: true,
                    attached: false,
                    ..hop()
                }];
            },
            Warning,
            Subject::Gateway,
            "10.0.0.1 is behind eth1",
            "redirect",
        ),
        (
            |f| {
                f.gue = true;
                f.sources[1] = false;
                f.interface.mtu = 1600;
            },
            Problem,
            Subject::Source,
            "GUE to IPv6",
            "source_v6",
        ),
        (
            |f| f.empty_vips.push("203.0.113.1:80/tcp".to_owned()),
            Warning,
            Subject::Vips,
            "takes new flows",
            "weights",
        ),
        (
            |f| f.drops.push(("encap_v4", 3, "headroom")),
            Warning,
            Subject::Drops,
            "encap_v4: 3",
            "headroom",
        ),
    ];
    for (change, severity, subject, message, advice) in cases {
        let found = only(change);
        assert_eq!((found.0, found.1), (severity, subject), "{found:?}");
        assert!(found.2.contains(message), "{message}: {found:?}");
        assert!(found.3.contains(advice), "{advice}: {found:?}");
    }
}

#[test]
fn without_an_interface_the_rest_is_still_looked_at() {
    let mut facts = good();
    facts.interface = InterfaceFacts {
        name: "eth7".to_owned(),
        ..InterfaceFacts::default()
    };
    let found = judge(&facts);
    assert!(!found.works());
    assert_eq!(found.about(Subject::Vips).count(), 1);
    assert_eq!(found.about(Subject::Mtu).count(), 0);
}

/// A gateway that does not answer any more.
fn hop() -> NextHop {
    NextHop {
        real: None,
        address: Some([10, 0, 0, 1].into()),
        interface: Some("eth1".to_owned()),
        mac: Some(MacAddr::new([2, 0, 0, 0, 0, 1])),
        answers: false,
        attached: true,
        here: false,
    }
}
