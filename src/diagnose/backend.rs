//! Judges the facts about a backend.

use std::net::IpAddr;

use super::Diagnosis;
use super::HostFacts;
use super::InterfaceFacts;
use super::Subject;
use super::clients::Clients;
use super::clients::WayBack;
use super::host::host;
use super::interface::Holder;
use super::interface::Pages;
use super::interface::holder;
use super::interface::interface;
use super::interface::lost;
use super::interface::mode;
use super::interface::offload;
use super::interface::outlook;
use super::kernel_tunnels;
use super::kernel_tunnels::Around;
use super::kernel_tunnels::KernelTunnels;
use crate::types::Encapsulation;
use crate::types::Family;

/// The name of the decapsulator's XDP program.
const DECAP: &str = "decap";

/// A backend and its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) host: HostFacts,
    pub(crate) interface: InterfaceFacts,
    /// The kernel's own tunnel devices.
    pub(crate) kernel: KernelTunnels,
    /// The index of the interface of that name when the program was attached at tc.
    pub(crate) tc_index: Option<u32>,
    /// The stricter of the interface's and the global setting.
    pub(crate) rp_filter: Option<i64>,
    /// Clients of the VIPs' families, or of both families without VIPs.
    pub(crate) clients: Vec<Clients>,
    /// The family of the longest outer headers to expect.
    pub(crate) outer: Family,
    pub(crate) arp_ignore: Option<i64>,
    pub(crate) arp_announce: Option<i64>,
    /// GUE is stripped.
    pub(crate) gue: bool,
    /// VIPs, and whether each is an address of this host.
    pub(crate) vips: Vec<(IpAddr, bool)>,
}

/// The option of `ip` that selects a family.
fn option(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "-6 ",
    }
}

pub(crate) fn judge(facts: &Backend) -> Diagnosis {
    let mut found = Diagnosis::default();
    host(&facts.host, &mut found);
    if !interface(&facts.interface, &mut found) {
        return found;
    }
    program(facts, &mut found);
    offload(&facts.interface, &mut found);
    for clients in &facts.clients {
        mtu(facts, *clients, &mut found);
    }
    for clients in &facts.clients {
        way_back(facts, *clients, &mut found);
    }
    reverse_path_filter(facts, &mut found);
    vips(facts, &mut found);
    arp(facts, &mut found);
    found
}

fn program(facts: &Backend, found: &mut Diagnosis) {
    let place = &facts.interface;
    let name = &place.name;
    let about = Subject::Program;
    match holder(place) {
        Holder::Ours(in_force) => {
            found.ok(
                about,
                format!("strips tunnels on {name} in {in_force} mode"),
            );
            mode(place, Pages::One, in_force, found);
        }
        Holder::Lost(message) => lost(message, found),
        Holder::Other(other) if place.ours.elsewhere => {
            let message = format!("{name} runs {}, which sees frames first", other.describe());
            let advice = "fine if it passes tunnels on; if the decapsulator's counters stay at 0, it does not";
            found.note(about, message, advice);
        }
        Holder::Other(other) if other.name == DECAP => {
            let message = format!(
                "another process strips tunnels on {name}, in {} mode: attaching would be refused",
                other.mode
            );
            let advice = "ignore this if you only compare this check with that decapsulator; else \
                          stop it first";
            found.note(about, message, advice);
        }
        Holder::Other(other) => {
            let message = format!(
                "{name} runs {}, which is not the decapsulator: attaching with XDP would be \
                 refused",
                other.describe()
            );
            let advice = "strip at tc instead (--tc), or stop the program that attached it \
                          (bpftool link)";
            found.warn(about, message, advice);
        }
        Holder::Nobody if place.ours.elsewhere => {}
        Holder::Nobody if of_kernel(facts, found) => {}
        Holder::Nobody => {
            let message = format!(
                "nothing strips tunnels here: no decapsulator is on {name} (XDP), and this \
                 process has none at tc"
            );
            let advice = "attach one (`katran decap` does), unless another process decapsulates at tc; or use the \
                          kernel's tunnel devices";
            found.warn(about, message, advice);
            outlook(place, Pages::One, found);
        }
    }
    match facts.tc_index {
        Some(_) if facts.tc_index == place.index => {
            found.ok(about, format!("strips tunnels on {name} at tc"));
        }
        Some(_) => lost(
            format!("{name} is a new interface: the one that the program was attached to is gone"),
            found,
        ),
        None => {}
    }
}

/// Looks for the kernel's tunnel devices in place of our program. False if they unwrap nothing
/// either.
fn of_kernel(facts: &Backend, found: &mut Diagnosis) -> bool {
    kernel_tunnels::judge(
        &facts.kernel,
        &Around {
            interface: &facts.interface.name,
            rp_filter: facts.rp_filter,
            clients: &facts.clients,
        },
        found,
    )
}

fn mtu(facts: &Backend, clients: Clients, found: &mut Diagnosis) {
    let (name, mtu, longest) = (&facts.interface.name, facts.interface.mtu, clients.longest);
    if matches!(clients.way_back, WayBack::Partial | WayBack::None) {
        // Each route may limit what its clients are asked for.
        return;
    }
    let of = clients.family;
    let has_room_for_gue = longest + Encapsulation::Gue.overhead(facts.outer) <= mtu;
    for (encapsulation, kind, is_moot, severe) in [
        (
            Encapsulation::Ipip,
            "IP in IP",
            facts.gue && has_room_for_gue,
            true,
        ),
        (Encapsulation::Gue, "GUE", !facts.gue, false),
    ] {
        if is_moot {
            continue;
        }
        let needed = encapsulation.overhead(facts.outer);
        if longest + needed <= mtu {
            let message =
                format!("{mtu}: room for clients' {of} packets of {longest} bytes in {kind}");
            found.ok(Subject::Mtu, message);
            continue;
        }
        let message = format!(
            "{mtu}: {of} clients send packets of up to {longest} bytes, and {kind} adds up to {needed}: the \
                 longest do not fit"
        );
        let advice = format!(
            "ip link set {name} mtu {}; or ip {}route change default ... advmss {}",
            longest + needed,
            option(clients.family),
            mtu.saturating_sub(needed + 60)
        );
        match severe {
            true => found.warn(Subject::Mtu, message, advice),
            false => found.note(Subject::Mtu, message, advice),
        }
    }
}

fn way_back(facts: &Backend, clients: Clients, found: &mut Diagnosis) {
    let of = clients.family;
    let about = Subject::WayBack;
    let advice = format!("ip {}route add default via ...", option(clients.family));
    match clients.way_back {
        WayBack::Here => found.ok(
            about,
            format!("{of} answers leave through {}", facts.interface.name),
        ),
        WayBack::Elsewhere => found.ok(
            about,
            format!("{of} answers leave through another interface"),
        ),
        WayBack::Partial => found.warn(
            about,
            format!(
                "{of} has no default route: answers reach only clients that other routes lead to"
            ),
            format!("if there are clients elsewhere: {advice}"),
        ),
        WayBack::None if facts.vips.is_empty() => found.note(
            about,
            format!("{of} has no default route, so answers do not reach most clients"),
            format!("if there is a VIP of {of}: {advice}"),
        ),
        WayBack::None => found.problem(
            about,
            format!("{of} has no default route, so answers do not reach most clients"),
            advice,
        ),
    }
}

/// IPv6 has no such filter.
fn reverse_path_filter(facts: &Backend, found: &mut Diagnosis) {
    let name = &facts.interface.name;
    let about = Subject::ReversePathFilter;
    // With slashes, because interface names may contain dots.
    let advice =
        format!("sysctl -w net/ipv4/conf/all/rp_filter=0 net/ipv4/conf/{name}/rp_filter=0");
    let mut clients = facts.clients.iter();
    let Some(v4) = clients.find(|of| of.family == Family::V4) else {
        return found.ok(about, "has no effect on IPv6");
    };
    match (facts.rp_filter, v4.way_back) {
        (Some(1), WayBack::Elsewhere) => found.problem(
            about,
            format!(
                "strict, and the way back to clients does not lead through {name}: the kernel \
                 drops their packets"
            ),
            advice,
        ),
        (Some(1), _) => found.note(
            about,
            format!(
                "strict: the kernel drops packets from clients that this host does not reach \
                     through {name}"
            ),
            advice,
        ),
        (None, _) => found.note(
            about,
            format!("/proc/sys has no value for {name}"),
            format!("to be sure: {advice}"),
        ),
        _ => found.ok(about, "not strict"),
    }
}

fn vips(facts: &Backend, found: &mut Diagnosis) {
    for (vip, here) in &facts.vips {
        let bits = Family::of(*vip).bits();
        match here {
            true => found.ok(
                Subject::VipOnLoopback,
                format!("{vip} is an address of this host"),
            ),
            false => found.problem(
                Subject::VipOnLoopback,
                format!("{vip} is not an address of this host: the kernel discards its packets"),
                format!("ip addr add {vip}/{bits} dev lo"),
            ),
        }
    }
    if facts.vips.is_empty() {
        found.note(
            Subject::VipOnLoopback,
            "not checked: no VIPs were named",
            "name the VIPs (--vip)",
        );
    }
}

/// ARP is for IPv4 only. For IPv6 no host answers for addresses of `lo`.
fn arp(facts: &Backend, found: &mut Diagnosis) {
    let name = &facts.interface.name;
    match (facts.arp_ignore, facts.arp_announce) {
        (Some(0), _) | (_, Some(0 | 1)) => found.note(
            Subject::Arp,
            format!("{name} answers ARP requests for addresses of lo"),
            format!(
                "if the router that holds the VIPs is on the same segment: sysctl -w \
                 net/ipv4/conf/{name}/arp_ignore=1 net/ipv4/conf/{name}/arp_announce=2"
            ),
        ),
        _ => found.ok(
            Subject::Arp,
            format!("{name} answers for its own addresses only"),
        ),
    }
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
