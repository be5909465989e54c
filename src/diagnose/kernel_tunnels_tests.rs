//! A backend that decapsulates with the kernel's tunnel devices.

use super::*;
use crate::diagnose::kernel_tunnels::Device;
use crate::fou::UdpTunnel;
use crate::rtnetlink::TunnelDevice;

fn device(name: &str, outer: Family, inner: Option<Family>) -> Device {
    Device {
        tunnel: TunnelDevice {
            name: name.to_owned(),
            up: true,
            outer,
            inner,
            local: None,
        },
        rp_filter: Some(0),
    }
}

/// A backend whose kernel unwraps IPv4 from IPv4.
fn with_tunl0() -> Backend {
    let mut facts = good();
    facts.interface.program = None;
    facts.interface.ours.xdp = None;
    facts.kernel.devices = vec![device("tunl0", Family::V4, Some(Family::V4))];
    facts
}

fn finds(facts: &Backend, severity: Severity, subject: Subject, message: &str, advice: &str) {
    let found = judge(facts);
    let mut of = found.about(subject);
    let is_it = of.any(|of| {
        of.severity == severity && of.message.contains(message) && of.advice.contains(advice)
    });
    assert!(is_it, "{severity:?} {message}: {found}");
}

/// Nothing unwraps packets.
fn finds_none(facts: &Backend) {
    let message = "no decapsulator";
    finds(
        facts,
        Severity::Warning,
        Subject::Program,
        message,
        "attach one",
    );
}

#[test]
fn devices_do_in_place_of_our_program() {
    let facts = with_tunl0();
    let found = judge(&facts);
    assert!(found.works(), "{found}");
    assert_eq!(found.about(Subject::Program).count(), 0, "{found}");
    finds(
        &facts,
        Severity::Ok,
        Subject::TunnelEnds,
        "tunl0 unwraps IPv4 packets from IPv4 tunnels",
        "",
    );
    finds(
        &facts,
        Severity::Warning,
        Subject::TunnelEnds,
        "from any source",
        "protocols 4 and 41",
    );
    // Our program, where it is, comes first.
    let mut facts = good();
    facts.kernel = with_tunl0().kernel;
    assert_eq!(judge(&facts).about(Subject::TunnelEnds).count(), 0);
}

#[test]
fn a_device_that_is_down_or_of_another_family_is_none() {
    let mut facts = with_tunl0();
    facts.kernel.devices[0].tunnel.up = false;
    finds_none(&facts);
    facts.kernel.devices = vec![device("sit0", Family::V4, Some(Family::V6))];
    finds_none(&facts);
    // A VIP of each family: one of them is served.
    facts.clients.push(Clients {
        family: Family::V6,
        ..facts.clients[0]
    });
    finds(
        &facts,
        Severity::Problem,
        Subject::TunnelEnds,
        "no device unwraps IPv4",
        "tunl0 up",
    );
    finds(
        &facts,
        Severity::Problem,
        Subject::TunnelEnds,
        "no device unwraps IPv4",
        "type ip6tnl mode any",
    );
    facts.kernel.devices = vec![device("any6", Family::V6, None)];
    facts.kernel.devices[0].tunnel.local = Some("fd00::2".parse().unwrap());
    finds(
        &facts,
        Severity::Ok,
        Subject::TunnelEnds,
        "any6 unwraps IPv4 packets from IPv6 tunnels that end at fd00::2",
        "",
    );
    finds(
        &facts,
        Severity::Ok,
        Subject::TunnelEnds,
        "any6 unwraps IPv6 packets",
        "",
    );
}

#[test]
fn ports_that_take_gue_are_told_from_others() {
    let mut facts = with_tunl0();
    let port = |port, gue| UdpTunnel {
        port,
        outer: Family::V4,
        gue,
    };
    facts.kernel.ports = vec![port(6080, true), port(5555, false)];
    finds(
        &facts,
        Severity::Ok,
        Subject::TunnelEnds,
        "UDP port 6080 accepts GUE over IPv4",
        "",
    );
    finds(
        &facts,
        Severity::Note,
        Subject::TunnelEnds,
        "5555",
        "ip fou add port 5555 gue",
    );
}

#[test]
fn the_filters_that_drop_behind_and_before_the_tunnel_are_problems() {
    for value in [1, 2] {
        let mut facts = with_tunl0();
        facts.kernel.devices[0].rp_filter = Some(value);
        finds(
            &facts,
            Severity::Problem,
            Subject::ReversePathFilter,
            "after unwrapping",
            "conf/tunl0/rp_filter=0",
        );
    }
    for (value, way_back, drops) in [
        (0, WayBack::None, false),
        (1, WayBack::Here, false),
        (1, WayBack::Elsewhere, true),
        (2, WayBack::Elsewhere, false),
        (2, WayBack::None, true),
        (2, WayBack::Partial, true),
    ] {
        let mut facts = with_tunl0();
        facts.rp_filter = Some(value);
        facts.clients[0].way_back = way_back;
        let found = judge(&facts);
        let mut of = found.about(Subject::ReversePathFilter);
        assert_eq!(
            of.any(|of| of.message.contains("made-up sources")),
            drops,
            "{value} {way_back:?}: {found}"
        );
    }
}
