//! Diagnoses of a balancer without troubles; `balancer_troubles.rs` has the troubles.

#[path = "balancer_troubles.rs"]
mod troubles;

#[path = "room_troubles.rs"]
mod room_troubles;

#[path = "sending_troubles.rs"]
mod sending_troubles;

use super::*;
use crate::attach::XdpMode;
use crate::diagnose::OurAttachment;
use crate::diagnose::Ours;
use crate::diagnose::Present;
use crate::diagnose::Severity;
use crate::diagnose::facts::XDP_ACT_BASIC;
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
            far_end: None,
            virtio_queues: None,
            rxvlan: Some(false),
            ours: Ours {
                program: Some(7),
                xdp: Some(OurAttachment {
                    index: 2,
                    not_native: None,
                }),
                elsewhere: false,
            },
        },
        pages: Pages::One,
        max_frame: MaxFrame::Bytes(1514),
        answers_too_big: true,
        answered_too_big: 0,
        vlans: Vlans::default(),
        flow_tables: FlowTableFacts::default(),
        encapsulation: Encapsulation::Ipip,
        reals: ByFamily::of(|_| true),
        sources: ByFamily::of(|_| true),
        default_ipip_sources: ByFamily::of(|_| false),
        lost_entries: Vec::new(),
        real_troubles: RealTroubles::default(),
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
        packets: Growth::now(100),
        without_table: Growth::default(),
        vips: 1,
        vips_of_v6: true,
        tunnel_ends: TunnelEnds::default(),
        empty_vips: Vec::new(),
        routed_on: Vec::new(),
        sends: Sends::default(),
        drops: Vec::new(),
    }
}

/// A VIP without a real that takes new flows.
fn empty(down: usize, drained: usize) -> EmptyVip {
    EmptyVip {
        vip: "203.0.113.1:80/tcp".to_owned(),
        down,
        drained,
    }
}

/// The program on the interface.
fn present(facts: &mut Balancer) -> &mut Present {
    facts.interface.program.as_mut().expect("there is one")
}

/// Another process's program is there, and we are not attached.
fn other(facts: &mut Balancer, name: &str) {
    facts.interface.ours.xdp = None;
    facts.interface.ours.program = Some(8);
    present(facts).name = name.to_owned();
}

/// The only finding that is not good.
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
        "the driver has native XDP, sends frames redirected to it"
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
