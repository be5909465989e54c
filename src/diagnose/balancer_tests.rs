//! Each trouble of a balancer is one finding, with what to do.

use super::*;
use crate::attach::XdpMode;
use crate::diagnose::OurAttachment;
use crate::diagnose::Ours;
use crate::diagnose::Present;
use crate::diagnose::Severity;
use crate::diagnose::facts::OtherEnd;
use crate::diagnose::facts::XDP_ACT_BASIC;
use crate::diagnose::interrupts::Interrupt;
use crate::environment::Privileges;
use crate::types::Encapsulation;

fn good() -> Balancer {
    let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
    Balancer {
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
            name: "eth0".to_owned(),
            index: Some(2),
            up: true,
            carrier: true,
            mtu: 1540,
            driver: Some("mlx5_core".to_owned()),
            xdp_features: Some(XDP_ACT_BASIC | XDP_ACT_NDO_XMIT),
            program: Some(Present {
                id: 7,
                mode: XdpMode::Native,
                name: "katran".to_owned(),
            }),
            receive_queues: Some(4),
            interrupts: Vec::new(),
            lro: Some(false),
            gro: Some(true),
            hardware_gro: Some(false),
            other_end: None,
            rxvlan: Some(false),
            ours: Ours {
                program: Some(7),
                xdp: Some(OurAttachment {
                    index: 2,
                    refused: None,
                }),
                elsewhere: false,
            },
        },
        pages: Pages::One,
        max_frame: MaxFrame::Bytes(1514),
        answers_too_big: true,
        encapsulation: Encapsulation::Ipip,
        reals: ByFamily::of(|_| true),
        sources: ByFamily::of(|_| true),
        default_ipip_sources: ByFamily::of(|_| false),
        lost_entries: Vec::new(),
        reals_here: Vec::new(),
        healthchecks: false,
        made_up_probe_sources: false,
        healthchecks_attached: false,
        gateway: Gateway::Mac(mac),
        gateway_v6: None,
        mode: NextHops::Gateway,
        next_hops: Vec::new(),
        next_hops_previewed: false,
        neighbours: vec![mac],
        online_cpus: 4,
        forwarding_cpus: (0..4).collect(),
        packets: 100,
        fallback: 0,
        vips: 1,
        vips_of_v6: true,
        tunnel_ends: TunnelEnds::default(),
        empty_vips: Vec::new(),
        routed_on: Vec::new(),
        drops: Vec::new(),
    }
}

/// The program that is on the interface.
fn empty(down: usize, drained: usize) -> EmptyVip {
    EmptyVip {
        vip: "203.0.113.1:80/tcp".to_owned(),
        down,
        drained,
    }
}

fn present(facts: &mut Balancer) -> &mut Present {
    facts.interface.program.as_mut().expect("there is one")
}

/// Another process's program is there, and we have not attached.
fn other(facts: &mut Balancer, name: &str) {
    facts.interface.ours.xdp = None;
    facts.interface.ours.program = Some(8);
    present(facts).name = name.to_owned();
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
    assert!(!finding.advice.is_empty(), "{found}");
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
    let cases: [(Change, Severity, Subject, &str, &str); 55] = [
        (
            |f| f.host.jit = Some(false),
            Warning,
            Subject::Kernel,
            "interprets",
            "bpf_jit_enable",
        ),
        (
            |f| f.host.jit = None,
            Note,
            Subject::Kernel,
            "does not tell here",
            "bpf_jit_enable",
        ),
        (
            |f| f.host.privileges.as_mut().unwrap().lacking = vec!["CAP_BPF"],
            Problem,
            Subject::Privileges,
            "CAP_BPF",
            "root",
        ),
        (
            |f| f.host.privileges = None,
            Note,
            Subject::Privileges,
            "/proc does not tell",
            "mount",
        ),
        (
            |f| {
                f.host.shares = true;
                f.host.privileges.as_mut().unwrap().sees_all_programs = false;
            },
            Warning,
            Subject::Privileges,
            "cannot be taken over",
            "CAP_SYS_ADMIN",
        ),
        // What the kernel says against what we remember.
        (
            |f| {
                f.interface.index = Some(9);
                f.interface.program = None;
            },
            Problem,
            Subject::Program,
            "another interface than the one",
            "attach again",
        ),
        (
            |f| f.interface.program = None,
            Problem,
            Subject::Program,
            "was taken off eth0",
            "attach again",
        ),
        (
            |f| present(f).id = 9,
            Problem,
            Subject::Program,
            "XDP program 9 (katran) in the place",
            "attach again",
        ),
        (
            |f| f.lost_entries.push("entry 2 of /x".to_owned()),
            Problem,
            Subject::Program,
            "entry 2 of /x is no longer",
            "taken it over",
        ),
        (
            |f| other(f, "katran"),
            Warning,
            Subject::Program,
            "a balancer of another process, in native mode",
            "stop it first",
        ),
        (
            |f| other(f, "katran_root"),
            Note,
            Subject::Program,
            "the root program of another process",
            "--shared",
        ),
        (
            |f| other(f, ""),
            Warning,
            Subject::Program,
            "XDP program 7, of which only those with CAP_SYS_ADMIN",
            "prog show id 7",
        ),
        // In shared mode it need not be a stranger.
        (
            |f| {
                other(f, "");
                f.interface.ours.elsewhere = true;
            },
            Note,
            Subject::Program,
            "an entry of the root program, if that is XDP program 7",
            "bpftool prog show",
        ),
        (
            |f| {
                other(f, "");
                f.interface.ours.elsewhere = true;
                f.interface.program = None;
            },
            Warning,
            Subject::Program,
            "has no root program",
            "root attach --interface eth0",
        ),
        (
            |f| {
                f.mode = NextHops::Redirect;
                f.interface.xdp_features = Some(XDP_ACT_BASIC);
            },
            Warning,
            Subject::Mode,
            "redirected to eth0 are not sent",
            "XDP program there",
        ),
        (
            |f| {
                present(f).mode = XdpMode::Generic;
                f.interface.gro = Some(false);
                f.interface.ours.xdp.as_mut().unwrap().refused = Some(28);
            },
            Warning,
            Subject::Mode,
            "refused native mode: No space left on device",
            "dmesg",
        ),
        (
            |f| {
                present(f).mode = XdpMode::Generic;
                f.interface.gro = Some(false);
            },
            Warning,
            Subject::Mode,
            "generic",
            "it was asked for",
        ),
        // Also of a root program that is in generic mode.
        (
            |f| {
                other(f, "katran_root");
                f.interface.ours.elsewhere = true;
                present(f).mode = XdpMode::Generic;
                f.interface.gro = Some(false);
                f.interface.lro = Some(false);
            },
            Warning,
            Subject::Mode,
            "generic",
            "native",
        ),
        (
            |f| f.default_ipip_sources.v4 = true,
            Note,
            Subject::Source,
            "172.16.0.0/16",
            "ipip_source_v4",
        ),
        (
            |f| f.default_ipip_sources.v6 = true,
            Note,
            Subject::Source,
            "100::/64",
            "ipip_source_v6",
        ),
        (
            |f| f.reals_here.push([10, 0, 0, 2].into()),
            Warning,
            Subject::Vips,
            "real 10.0.0.2 is this host",
            "LOCAL_REAL",
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
                present(f).mode = XdpMode::Generic;
                f.interface.gro = Some(false);
                f.interface.xdp_features = Some(0);
            },
            Warning,
            Subject::Mode,
            "generic",
            "no native XDP",
        ),
        (
            |f| {
                present(f).mode = XdpMode::Generic;
                f.interface.gro = Some(false);
                f.interface.mtu = 9000;
            },
            Warning,
            Subject::Mode,
            "generic",
            "frags",
        ),
        (
            |f| other(f, "other"),
            Problem,
            Subject::Program,
            "program 7 (other)",
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
            |f| f.interface.hardware_gro = Some(true),
            Warning,
            Subject::Offload,
            "HW-GRO",
            "rx-gro-hw off",
        ),
        (
            |f| {
                f.interface.other_end = Some(OtherEnd::Here {
                    name: "veth7".to_owned(),
                    leaves_checksums: Some(true),
                });
            },
            Warning,
            Subject::Offload,
            "the other end, veth7, leaves checksums unfinished",
            "ethtool -K veth7 tx off",
        ),
        (
            |f| f.interface.other_end = Some(OtherEnd::Elsewhere),
            Note,
            Subject::Offload,
            "in another network namespace",
            "tx off",
        ),
        (
            |f| f.interface.rxvlan = Some(true),
            Note,
            Subject::Offload,
            "VLAN",
            "rxvlan off",
        ),
        (
            |f| f.interface.receive_queues = None,
            Note,
            Subject::Queues,
            "does not tell",
            "CPU balance",
        ),
        (
            |f| {
                f.interface.interrupts.push(Interrupt {
                    number: 38,
                    name: "eth0-TxRx-0".to_owned(),
                    cpus: [5].into(),
                });
            },
            Warning,
            Subject::Queues,
            "interrupt 38 (eth0-TxRx-0), on CPU 5",
            "/proc/irq/38/smp_affinity_list",
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
            "50 of 100 packets since the balancer was loaded",
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
            |f| {
                f.interface.mtu = 1500;
                f.max_frame = MaxFrame::Auto;
            },
            Note,
            Subject::Mtu,
            "above 1460 bytes are answered with an ICMP error",
            "mtu 1540",
        ),
        (
            |f| {
                f.interface.mtu = 1500;
                f.max_frame = MaxFrame::Auto;
                f.answers_too_big = false;
            },
            Warning,
            Subject::Mtu,
            "above 1460 bytes are dropped",
            "advmss 1400",
        ),
        (
            |f| {
                f.interface.mtu = 1319;
                f.max_frame = MaxFrame::Auto;
            },
            Problem,
            Subject::Mtu,
            "room for packets of 1279 bytes",
            "mtu 1540 (1320 at least)",
        ),
        (
            |f| {
                f.interface.mtu = 1319;
                f.max_frame = MaxFrame::Auto;
                f.vips_of_v6 = false;
            },
            Note,
            Subject::Mtu,
            "above 1279 bytes are answered with an ICMP error",
            "mtu 1540",
        ),
        (
            |f| f.max_frame = MaxFrame::Bytes(1293),
            Problem,
            Subject::Mtu,
            "room for packets of 1279 bytes",
            "max_frame of at least 1294",
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
                f.encapsulation = Encapsulation::Gue;
                f.sources.v6 = false;
                f.interface.mtu = 1600;
            },
            Problem,
            Subject::Source,
            "GUE to IPv6",
            "source_v6",
        ),
        (
            |f| {
                f.healthchecks = true;
                f.healthchecks_attached = true;
                f.sources.v4 = false;
            },
            Warning,
            Subject::Source,
            "health checks of IPv4",
            "source_v4",
        ),
        (
            |f| f.empty_vips.push(empty(0, 0)),
            Warning,
            Subject::Vips,
            "takes new flows: they",
            "add reals",
        ),
        (
            |f| f.empty_vips.push(empty(0, 2)),
            Warning,
            Subject::Vips,
            "takes new flows (2 drained)",
            "weights",
        ),
        (
            |f| f.empty_vips.push(empty(1, 0)),
            Warning,
            Subject::Vips,
            "takes new flows (1 down)",
            "mark_up",
        ),
        (
            |f| f.empty_vips.push(empty(1, 2)),
            Warning,
            Subject::Vips,
            "(1 down, 2 drained)",
            "weights",
        ),
        (
            |f| f.routed_on.push([203, 0, 113, 1].into()),
            Warning,
            Subject::Vips,
            "203.0.113.1 is not its own address",
            "dev lo",
        ),
        (
            |f| f.routed_on = vec![[203, 0, 113, 1].into(), [203, 0, 113, 2].into()],
            Warning,
            Subject::Vips,
            "203.0.113.1 and 1 more are not",
            "unreachable",
        ),
        (
            |f| f.drops.push(("encap_v4", 3, "headroom")),
            Warning,
            Subject::Drops,
            "encap_v4: 3 frames since the balancer was loaded",
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
fn merged_packets_are_found_wherever_generic_mode_is_or_will_be() {
    type Change = fn(&mut Balancer);
    let places: [Change; 3] = [
        |f| present(f).mode = XdpMode::Generic,
        |f| {
            other(f, "katran_root");
            f.interface.ours.elsewhere = true;
            present(f).mode = XdpMode::Generic;
        },
        |f| {
            f.interface.ours.xdp = None;
            f.interface.program = None;
            f.interface.xdp_features = Some(0);
        },
    ];
    for place in places {
        let mut facts = good();
        place(&mut facts);
        let found = judge(&facts);
        let mut offloads = found.about(Subject::Offload);
        let merged = offloads.next().expect("one is there");
        assert_eq!(merged.severity, Severity::Warning, "{found}");
        assert!(merged.message.contains("GRO"), "{found}");
    }
    let native = judge(&good());
    assert_eq!(native.about(Subject::Offload).count(), 1);
    assert_eq!(native.worst(), Severity::Ok);
}

#[test]
fn what_the_driver_can_do_is_told_before_attaching() {
    let mut facts = good();
    facts.interface.ours.xdp = None;
    facts.interface.program = None;
    let found = judge(&facts);
    let mode = found.about(Subject::Mode).next().expect("one is there");
    assert_eq!(
        mode.message,
        "the driver has native XDP, sends what is redirected to it"
    );
    facts.interface.xdp_features = None;
    let found = judge(&facts);
    let mode = found.about(Subject::Mode).next().expect("one is there");
    assert_eq!(mode.severity, Severity::Note);
    assert!(mode.advice.contains("to find out"), "{found}");
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
        interface: Some("eth1".into()),
        mac: Some(MacAddr::new([2, 0, 0, 0, 0, 1])),
        answers: false,
        attached: true,
        here: false,
    }
}
