//! Each trouble of a balancer is one finding with a remedy, by subject.

use super::*;
use crate::attach::NotNative;
use crate::diagnose::Severity::Note;
use crate::diagnose::Severity::Problem;
use crate::diagnose::Severity::Warning;
use crate::diagnose::facts::OtherEnd;
use crate::diagnose::interrupts::Interrupt;

/// A trouble, and its finding: parts of the message and of the advice.
pub(super) type Trouble = (
    fn(&mut Balancer),
    Severity,
    Subject,
    &'static str,
    &'static str,
);

pub(super) fn tell(troubles: &[Trouble]) {
    for (change, severity, subject, message, advice) in troubles {
        let found = only(change);
        assert_eq!((found.0, found.1), (*severity, *subject), "{found:?}");
        assert!(found.2.contains(message), "{message}: {found:?}");
        assert!(found.3.contains(advice), "{advice}: {found:?}");
    }
}

#[test]
fn troubles_of_kernel_and_program() {
    tell(&[
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
            "does not report whether",
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
            "/proc is not readable",
            "mount",
        ),
        (
            |f| {
                f.host.shares = true;
                f.host.privileges.as_mut().unwrap().sees_all_programs = false;
            },
            Warning,
            Subject::Privileges,
            "cannot take over",
            "CAP_SYS_ADMIN",
        ),
        // What the kernel reports, compared with what we remember.
        (
            |f| {
                f.interface.index = Some(9);
                f.interface.program = None;
            },
            Problem,
            Subject::Program,
            "eth0 is a new interface",
            "attach again",
        ),
        (
            |f| f.interface.program = None,
            Problem,
            Subject::Program,
            "was removed from eth0",
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
            "took it over",
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
            "XDP program 7, whose name only CAP_SYS_ADMIN may read",
            "prog show id 7",
        ),
        // In shared mode it may be the root program.
        (
            |f| {
                other(f, "");
                f.interface.ours.elsewhere = true;
            },
            Note,
            Subject::Program,
            "an entry of the root program, if XDP program 7 is",
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
            |f| other(f, "other"),
            Problem,
            Subject::Program,
            "program 7 (other)",
            "root program",
        ),
        (
            |f| {
                f.mode = NextHops::Redirect;
                f.interface.xdp_features = Some(XDP_ACT_BASIC);
            },
            Warning,
            Subject::Mode,
            "driver of eth0 drops frames",
            "XDP program is on the interface",
        ),
        (
            |f| {
                present(f).mode = XdpMode::Generic;
                f.interface.gro = Some(false);
                f.interface.ours.xdp.as_mut().unwrap().not_native =
                    Some(NotNative::Refused { errno: 28 });
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
            "generic mode was requested",
        ),
        // The same for a root program in generic mode.
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
    ]);
}

#[test]
fn troubles_of_the_interface() {
    tell(&[
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
            "does not report the number",
            "katran_cpu_packets_total",
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
            "1 receive queue for",
            "combined 4",
        ),
        (
            |f| f.without_table = Growth::now(50),
            Warning,
            Subject::FallbackTable,
            "50 of 100 packets in the last 60 s arrived on CPUs without a flow table",
            "forwarding_cpus",
        ),
        (
            |f| f.without_table = Growth::earlier(50),
            Note,
            Subject::FallbackTable,
            "50 of 100 packets since the balancer was loaded arrived on CPUs without a flow table, none in the last 75 s",
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
    ]);
}

#[test]
fn troubles_of_where_packets_go() {
    tell(&[
        (
            |f| f.neighbours.clear(),
            Note,
            Subject::Gateway,
            "02:00:00:00:00:01 is not in",
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
            |f| f.real_troubles.here.push([10, 0, 0, 2].into()),
            Problem,
            Subject::Vips,
            "real 10.0.0.2 is this host",
            "local-vip",
        ),
        (
            |f| f.real_troubles.vips = vec![[203, 0, 113, 1].into(); 3],
            Problem,
            Subject::Vips,
            "real 203.0.113.1 and 2 more are the address of a VIP",
            "the backend's own address",
        ),
        (
            |f| f.real_troubles.unreachable.push([10, 9, 0, 2].into()),
            Problem,
            Subject::Vips,
            "real 10.9.0.2 is unreachable",
            "ip route get",
        ),
        (
            |f| {
                f.real_troubles.unreachable.push([10, 9, 0, 2].into());
                f.real_troubles.gateway_is_given = true;
            },
            Warning,
            Subject::Vips,
            "unless the router of gateway_mac",
            "ip route get",
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
            "a weight",
        ),
        (
            |f| f.empty_vips.push(empty(1, 0)),
            Warning,
            Subject::Vips,
            "takes new flows (1 down)",
            "mark them up",
        ),
        (
            |f| f.empty_vips.push(empty(1, 2)),
            Warning,
            Subject::Vips,
            "(1 down, 2 drained)",
            "a weight",
        ),
        (
            |f| f.routed_on.push([203, 0, 113, 1].into()),
            Warning,
            Subject::Vips,
            "203.0.113.1 is not its own address",
            "ip_forward=0",
        ),
        (
            |f| f.routed_on = vec![[203, 0, 113, 1].into(), [203, 0, 113, 2].into()],
            Warning,
            Subject::Vips,
            "203.0.113.1 and 1 more are not",
            "unreachable",
        ),
        (
            |f| {
                let frames = Growth::earlier(5).and(Growth::now(3));
                f.drops.push(("encap_v4", frames, "headroom"));
            },
            Warning,
            Subject::Drops,
            "encap_v4: 3 frames in the last 60 s, 8 since the balancer was loaded",
            "headroom",
        ),
        (
            |f| f.drops.push(("encap_v4", Growth::earlier(3), "headroom")),
            Note,
            Subject::Drops,
            "encap_v4: 3 frames since the balancer was loaded, none in the last 75 s",
            "headroom",
        ),
    ]);
}

/// A gateway that does not answer any more.
fn hop() -> NextHop {
    NextHop {
        real: None,
        family: Family::V4,
        address: Some([10, 0, 0, 1].into()),
        interface: Some("eth1".into()),
        mac: Some(MacAddr::new([2, 0, 0, 0, 0, 1])),
        answers: false,
        attached: true,
        here: false,
    }
}
