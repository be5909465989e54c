//! What follows from the facts about a backend.

use std::net::IpAddr;

use super::Diagnosis;
use super::InterfaceFacts;
use super::Subject;
use super::balancer::interface;
use super::balancer::offload;
use super::overhead;

/// All that is known of a backend.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) interface: InterfaceFacts,
    /// The stricter one of the interface's and that of all.
    pub(crate) rp_filter: Option<i64>,
    /// The default routes lead out of the interface.
    pub(crate) default_route_here: bool,
    pub(crate) arp_ignore: Option<i64>,
    /// VIPs, and whether each is an address of this host.
    pub(crate) vips: Vec<(IpAddr, bool)>,
    /// The longest packets that clients are asked to send: the default route's MTU.
    pub(crate) route_mtu: u32,
}

pub(crate) fn judge(facts: &Backend) -> Diagnosis {
    let mut found = Diagnosis::default();
    let name = &facts.interface.name;
    if !interface(&facts.interface, &mut found) {
        return found;
    }
    match (facts.interface.ours.xdp, facts.interface.ours.elsewhere) {
        (Some(mode), _) => found.ok(
            Subject::Program,
            format!("strips tunnels on {name} in {mode} mode"),
        ),
        (None, true) => found.ok(Subject::Program, format!("strips tunnels on {name} in tc")),
        (None, false) => {
            let message = format!("no decapsulator of this process is on {name}");
            let advice = "attach it, unless another process or a tunnel device does its work";
            found.note(Subject::Program, message, advice);
        }
    }
    offload(&facts.interface, &mut found);
    let mtu = facts.interface.mtu;
    let needed = overhead(false, true);
    match facts.route_mtu + needed <= mtu {
        true => found.ok(
            Subject::Mtu,
            format!(
                "{mtu}: room for clients' packets of {} bytes in a tunnel",
                facts.route_mtu
            ),
        ),
        false => {
            let message = format!(
                "{mtu}: clients are asked for packets of up to {} bytes, and {needed} come around them",
                facts.route_mtu
            );
            let advice = format!(
                "ip link set {name} mtu {}; or ip route change default ... mtu {}",
                facts.route_mtu + needed,
                mtu.saturating_sub(needed)
            );
            found.warn(Subject::Mtu, message, advice);
        }
    }
    let advice = format!(
        "sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=0 (or 2, loose)"
    );
    match (facts.rp_filter, facts.default_route_here) {
        (Some(1), false) => found.problem(
            Subject::ReversePathFilter,
            format!(
                "strict, and the way back to clients is not by {name}: their packets are dropped"
            ),
            advice,
        ),
        (Some(1), true) => found.note(
            Subject::ReversePathFilter,
            format!("strict: packets of clients that are not reached by {name} are dropped"),
            advice,
        ),
        _ => found.ok(Subject::ReversePathFilter, "not strict"),
    }
    for (vip, here) in &facts.vips {
        let bits = if vip.is_ipv4() { 32 } else { 128 };
        match here {
            true => found.ok(
                Subject::VipOnLoopback,
                format!("{vip} is an address of this host"),
            ),
            false => found.problem(
                Subject::VipOnLoopback,
                format!("{vip} is no address of this host: its packets are thrown away"),
                format!("ip addr add {vip}/{bits} dev lo"),
            ),
        }
    }
    if facts.vips.is_empty() {
        found.note(Subject::VipOnLoopback, "no VIPs were given to look for", "");
    }
    match facts.arp_ignore {
        Some(0) => found.note(
            Subject::Arp,
            format!("{name} answers ARP requests for addresses of lo"),
            format!(
                "if the router that holds the VIPs is on the same segment: sysctl -w \
                 net.ipv4.conf.{name}.arp_ignore=1 net.ipv4.conf.{name}.arp_announce=2"
            ),
        ),
        _ => found.ok(
            Subject::Arp,
            format!("{name} answers for its own addresses only"),
        ),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::XdpMode;
    use crate::diagnose::Ours;
    use crate::diagnose::Severity;

    fn good() -> Backend {
        Backend {
            interface: InterfaceFacts {
                name: "eth0".to_owned(),
                index: Some(2),
                up: true,
                carrier: true,
                mtu: 1540,
                ours: Ours {
                    xdp: Some(XdpMode::Native),
                    elsewhere: false,
                },
                ..InterfaceFacts::default()
            },
            rp_filter: Some(0),
            default_route_here: true,
            arp_ignore: Some(1),
            vips: vec![([203, 0, 113, 1].into(), true)],
            route_mtu: 1500,
        }
    }

    #[test]
    fn each_trouble_is_one_finding_with_advice() {
        assert_eq!(judge(&good()).worst(), Severity::Ok);
        type Change = fn(&mut Backend);
        let cases: [(Change, Severity, Subject, &str); 7] = [
            (
                |f| f.interface.ours.xdp = None,
                Severity::Note,
                Subject::Program,
                "attach it",
            ),
            (
                |f| f.rp_filter = Some(1),
                Severity::Note,
                Subject::ReversePathFilter,
                "rp_filter=0",
            ),
            (
                |f| {
                    f.rp_filter = Some(1);
                    f.default_route_here = false;
                },
                Severity::Problem,
                Subject::ReversePathFilter,
                "rp_filter=0",
            ),
            (
                |f| f.vips[0].1 = false,
                Severity::Problem,
                Subject::VipOnLoopback,
                "ip addr add 203.0.113.1/32 dev lo",
            ),
            (
                |f| f.arp_ignore = Some(0),
                Severity::Note,
                Subject::Arp,
                "arp_ignore=1",
            ),
            (
                |f| f.interface.mtu = 1500,
                Severity::Warning,
                Subject::Mtu,
                "mtu 1460",
            ),
            (
                |f| f.interface.up = false,
                Severity::Problem,
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
}
