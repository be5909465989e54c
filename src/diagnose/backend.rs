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
    /// The way back to clients, IPv4's default route, is by this interface; `None`: there is none.
    pub(crate) way_back_here: Option<bool>,
    pub(crate) arp_ignore: Option<i64>,
    pub(crate) arp_announce: Option<i64>,
    /// GUE is stripped.
    pub(crate) gue: bool,
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
    for (gue, severe) in [(false, true), (true, false)] {
        let needed = overhead(gue, true);
        if gue && !facts.gue || !gue && facts.gue && facts.route_mtu + overhead(true, true) <= mtu {
            continue;
        }
        let kind = if gue { "GUE" } else { "IP in IP" };
        if facts.route_mtu + needed <= mtu {
            let message = format!(
                "{mtu}: room for clients' packets of {} bytes in {kind}",
                facts.route_mtu
            );
            found.ok(Subject::Mtu, message);
            continue;
        }
        let message = format!(
            "{mtu}: clients are asked for packets of up to {} bytes, and up to {needed} of {kind} come \
             around them",
            facts.route_mtu
        );
        let advice = format!(
            "ip link set {name} mtu {}; or ip route change default ... advmss {}",
            facts.route_mtu + needed,
            mtu.saturating_sub(needed + 60)
        );
        match severe {
            true => found.warn(Subject::Mtu, message, advice),
            false => found.note(Subject::Mtu, message, advice),
        }
    }
    let advice =
        format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=0");
    let about = Subject::ReversePathFilter;
    match (facts.rp_filter, facts.way_back_here) {
        (Some(1), Some(true)) => found.note(
            about,
            format!("strict: packets of clients that are not reached by {name} are dropped"),
            advice,
        ),
        (Some(1), Some(false)) => found.problem(
            about,
            format!(
                "strict, and the way back to clients is not by {name}: their packets are dropped"
            ),
            advice,
        ),
        (_, None) => found.problem(
            about,
            "there is no default route, so no way back to most clients",
            "ip route add default via ...",
        ),
        _ => found.ok(about, "not strict"),
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
    match (facts.arp_ignore, facts.arp_announce) {
        (Some(0), _) | (_, Some(0 | 1)) => found.note(
            Subject::Arp,
            format!("{name} speaks by ARP of addresses of lo"),
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
            way_back_here: Some(true),
            arp_ignore: Some(1),
            arp_announce: Some(2),
            gue: false,
            vips: vec![([203, 0, 113, 1].into(), true)],
            route_mtu: 1500,
        }
    }

    #[test]
    fn each_trouble_is_one_finding_with_advice() {
        assert_eq!(judge(&good()).worst(), Severity::Ok);
        type Change = fn(&mut Backend);
        let cases: [(Change, Severity, Subject, &str); 10] = [
            (|f| f.gue = true, Severity::Note, Subject::Mtu, "mtu 1548"),
            (
                |f| f.arp_announce = Some(0),
                Severity::Note,
                Subject::Arp,
                "arp_announce=2",
            ),
            (
                |f| f.way_back_here = None,
                Severity::Problem,
                Subject::ReversePathFilter,
                "default via",
            ),
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
                    f.way_back_here = Some(false);
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
                "advmss 1400",
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
