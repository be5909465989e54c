//! What follows from the facts about a balancer.

use super::Diagnosis;
use super::InterfaceFacts;
use super::Subject;
use super::overhead;
use crate::Gateway;
use crate::MacAddr;
use crate::NextHop;
use crate::NextHops;
use crate::XdpMode;

/// The longest packet that native XDP takes in one page, without frames in several buffers: what most
/// drivers have room for.
const NATIVE_MTU: u32 = 3498;

/// The name of the root program.
const ROOT: &str = "katran_root";

/// All that is known of a balancer and of its place.
#[derive(Clone, Debug)]
pub(crate) struct Balancer {
    pub(crate) release: String,
    pub(crate) jit: Option<bool>,
    pub(crate) missing_capabilities: Option<String>,
    pub(crate) interface: InterfaceFacts,
    pub(crate) frags: bool,
    /// Bytes, Ethernet header included.
    pub(crate) max_frame: u32,
    pub(crate) gue: bool,
    /// Whether there are reals of IPv4 and of IPv6.
    pub(crate) reals: [bool; 2],
    pub(crate) sources: [bool; 2],
    /// The prefix that IPIP packets to IPv4 reals come from was left at its default.
    pub(crate) default_ipip_source: bool,
    /// There are marks or matches of health checks, or an interface for them.
    pub(crate) healthchecks: bool,
    /// Health checks are attached.
    pub(crate) healthchecks_attached: bool,
    pub(crate) gateway: Gateway,
    pub(crate) gateway_v6: Option<MacAddr>,
    pub(crate) mode: NextHops,
    pub(crate) next_hops: Vec<NextHop>,
    /// These are what the tables say without asking, as the balancer is not attached.
    pub(crate) next_hops_previewed: bool,
    /// The Ethernet addresses that the interface's neighbours have, as far as the kernel knows.
    pub(crate) neighbours: Vec<MacAddr>,
    pub(crate) online_cpus: u32,
    pub(crate) forwarding_cpus: u32,
    pub(crate) packets: u64,
    pub(crate) fallback: u64,
    pub(crate) vips: usize,
    /// VIPs that take no new flows.
    pub(crate) empty_vips: Vec<String>,
    /// Reasons for drops that tell of a setting, and how many there were.
    pub(crate) drops: Vec<(&'static str, u64, &'static str)>,
}

pub(crate) fn judge(facts: &Balancer) -> Diagnosis {
    let mut found = Diagnosis::default();
    kernel(facts, &mut found);
    if interface(&facts.interface, &mut found) {
        program(facts, &mut found);
        offload(&facts.interface, &mut found);
        queues(facts, &mut found);
        mtu(facts, &mut found);
    }
    gateway(facts, &mut found);
    source(facts, &mut found);
    vips(facts, &mut found);
    found
}

fn kernel(facts: &Balancer, found: &mut Diagnosis) {
    match facts.jit {
        Some(false) => found.warn(
            Subject::Kernel,
            format!(
                "Linux {} interprets BPF programs instead of compiling them: several times slower",
                facts.release
            ),
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        _ => found.ok(Subject::Kernel, format!("Linux {}", facts.release)),
    }
    match &facts.missing_capabilities {
        None => found.ok(Subject::Privileges, "sufficient"),
        Some(missing) => found.problem(
            Subject::Privileges,
            format!("missing: {missing}"),
            "run as root, or grant them",
        ),
    }
}

/// Whether there is an interface to say more of.
pub(super) fn interface(facts: &InterfaceFacts, found: &mut Diagnosis) -> bool {
    let name = &facts.name;
    if facts.index.is_none() {
        let message = format!("{name} does not exist in this network namespace");
        found.problem(Subject::Interface, message, "ip link");
        return false;
    }
    let driver = facts.driver.as_deref().unwrap_or("unknown driver");
    if !facts.up {
        let message = format!("{name} ({driver}) is down");
        found.problem(
            Subject::Interface,
            message,
            format!("ip link set {name} up"),
        );
    } else if !facts.carrier {
        let message = format!("{name} ({driver}) has no carrier");
        found.problem(
            Subject::Interface,
            message,
            "look at cable, switch port, or peer",
        );
    } else {
        found.ok(Subject::Interface, format!("{name} ({driver}) is up"));
    }
    true
}

fn program(facts: &Balancer, found: &mut Diagnosis) {
    let interface = &facts.interface;
    let name = &interface.name;
    let why_not_native = || {
        if interface.native == Some(false) {
            return "its driver has no native XDP: another card, or live with it".to_owned();
        }
        if interface.mtu > NATIVE_MTU && !facts.frags {
            return format!(
                "its MTU of {} is too large for one page: lower it to {NATIVE_MTU}, or load with frags",
                interface.mtu
            );
        }
        if interface.lro == Some(true) {
            return format!("ethtool -K {name} lro off, and attach again");
        }
        "attach in native mode to see why the driver refuses (often: too few free queues, see \
         ethtool -L)"
            .to_owned()
    };
    match (interface.ours.xdp, &interface.program) {
        (Some(XdpMode::Generic), _) => {
            found.ok(Subject::Program, format!("attached to {name}"));
            let message = "generic: in the network stack, several times slower than native";
            found.warn(Subject::Mode, message, why_not_native());
        }
        (Some(mode), _) => {
            found.ok(Subject::Program, format!("attached to {name}"));
            found.ok(Subject::Mode, mode.to_string());
        }
        (None, Some(root)) if interface.ours.elsewhere && root.name == ROOT => {
            found.ok(Subject::Program, "an entry of the root program there");
            match root.mode {
                XdpMode::Generic => {
                    let message = "the root is in generic mode, several times slower than native";
                    found.warn(Subject::Mode, message, why_not_native());
                }
                mode => found.ok(Subject::Mode, mode.to_string()),
            }
        }
        (None, Some(other)) if other.name.starts_with("katran") => {
            let what = if other.name == ROOT {
                "root program"
            } else {
                "balancer"
            };
            let message = format!(
                "{name} runs a {what} of another process, in {} mode",
                other.mode
            );
            found.note(Subject::Program, message, "");
        }
        (None, Some(other)) => {
            let message = format!(
                "{name} runs XDP program {} ({}), which is not this balancer's",
                other.id, other.name
            );
            let advice = format!(
                "stop the program that has attached it (bpftool link; without a link: ip link set dev \
                 {name} xdp off), or share the interface by a root program"
            );
            found.problem(Subject::Program, message, advice);
        }
        (None, None) => {
            found.note(Subject::Program, format!("not attached to {name}"), "");
            match interface.native {
                Some(false) => {
                    let message = "the driver has no native XDP: generic mode would be used";
                    found.warn(Subject::Mode, message, why_not_native());
                }
                _ if interface.mtu > NATIVE_MTU && !facts.frags => {
                    let message = "native mode may be refused";
                    found.warn(Subject::Mode, message, why_not_native());
                }
                Some(true) => found.ok(Subject::Mode, "the driver has native XDP"),
                None => found.note(Subject::Mode, "this kernel does not tell (before 6.3)", ""),
            }
        }
    }
}

pub(super) fn offload(interface: &InterfaceFacts, found: &mut Diagnosis) {
    let name = &interface.name;
    let mut any = false;
    if interface.lro == Some(true) {
        any = true;
        let message = "large receive offload merges packets, beyond what can be wrapped";
        found.warn(
            Subject::Offload,
            message,
            format!("ethtool -K {name} lro off"),
        );
    }
    if interface.gro == Some(true) && interface.ours.xdp == Some(XdpMode::Generic) {
        any = true;
        let message = "in generic mode receive offload (GRO) merges packets before the program";
        found.warn(
            Subject::Offload,
            message,
            format!("ethtool -K {name} gro off"),
        );
    }
    if interface.rxvlan == Some(true) && interface.ours.xdp != Some(XdpMode::Generic) {
        any = true;
        let message = "VLAN tags are taken off before the program sees them, and not put back";
        let advice = format!(
            "if packets come with tags: ethtool -K {name} rxvlan off rx-vlan-stag-hw-parse off"
        );
        found.note(Subject::Offload, message, advice);
    }
    if !any {
        found.ok(Subject::Offload, "nothing changes packets on arrival");
    }
}

fn queues(facts: &Balancer, found: &mut Diagnosis) {
    let name = &facts.interface.name;
    let (forwarding, online) = (facts.forwarding_cpus, facts.online_cpus);
    match facts.interface.receive_queues {
        Some(queues) if queues > forwarding => {
            let message =
                format!("{queues} receive queues for {forwarding} CPUs with a flow table");
            let advice = format!(
                "ethtool -L {name} combined {forwarding}, and one interrupt on each of those CPUs"
            );
            found.warn(Subject::Queues, message, advice);
        }
        Some(queues) if queues < forwarding && queues < online => {
            let message = format!(
                "{queues} receive queues: {forwarding} CPUs have a flow table, {queues} get packets"
            );
            let advice = format!(
                "ethtool -L {name} combined {}, or fewer forwarding_cpus",
                forwarding.min(online)
            );
            found.note(Subject::Queues, message, advice);
        }
        Some(queues) => {
            let message =
                format!("{queues} receive queues for {forwarding} CPUs with a flow table");
            found.ok(Subject::Queues, message);
        }
        None => found.note(Subject::Queues, "the driver does not tell", ""),
    }
    let message = format!(
        "{} of {} packets came on CPUs without a flow table",
        facts.fallback, facts.packets
    );
    match facts.fallback {
        0 => found.ok(Subject::FallbackTable, message),
        _ => found.warn(
            Subject::FallbackTable,
            message,
            "set forwarding_cpus to the CPUs that the interface's interrupts go to \
             (/proc/interrupts, /proc/irq/*/smp_affinity_list)",
        ),
    }
}

fn mtu(facts: &Balancer, found: &mut Diagnosis) {
    let [v4, v6] = facts.reals;
    // Without reals nothing is known: the larger one.
    let needed = overhead(facts.gue, v6 || !v4);
    let (longest, mtu) = (facts.max_frame - 14, facts.interface.mtu);
    if longest + needed <= mtu {
        let message =
            format!("{mtu}: room for packets of {longest} bytes and {needed} around them");
        return found.ok(Subject::Mtu, message);
    }
    let message = format!(
        "{mtu}: packets above {} bytes cannot leave, as {needed} come around them; up to {longest} are \
         accepted",
        mtu.saturating_sub(needed)
    );
    let advice = format!(
        "ip link set {} mtu {}, there and on the way to the reals; or have backends announce a smaller \
         MSS (ip route ... advmss {}), or set max_frame = {}",
        facts.interface.name,
        longest + needed,
        mtu.saturating_sub(needed + 60),
        mtu.saturating_sub(needed) + 14,
    );
    found.warn(Subject::Mtu, message, advice);
}

const NEXT_HOP_ADVICE: &str = "ip route; ip neighbour; or set gateway_mac";

/// What is wrong with one next hop, if anything is.
fn next_hop(facts: &Balancer, hop: &NextHop, whom: &str, found: &mut Diagnosis) {
    let about = Subject::Gateway;
    match (hop.address, hop.mac) {
        (None, None) => {
            found.problem(about, format!("{whom}: no route"), NEXT_HOP_ADVICE);
        }
        (Some(address), None) if facts.next_hops_previewed => {
            let message = format!("{whom}: {address} is asked when the balancer is attached");
            let advice = format!("ping {address} shows if it answers");
            found.note(about, message, advice);
        }
        (Some(address), None) => {
            let message = format!("{whom}: {address} does not answer");
            found.problem(about, message, NEXT_HOP_ADVICE);
        }
        (Some(address), Some(mac)) if !hop.answers && !facts.next_hops_previewed => {
            let message = format!("{whom}: {address} does not answer; packets go to {mac}");
            found.warn(about, message, NEXT_HOP_ADVICE);
        }
        _ => {}
    }
    if let (Some(address), Some(interface), false) = (hop.address, &hop.interface, hop.attached) {
        let message = format!(
            "{whom}: {address} is behind {interface}, but packets leave where they came in"
        );
        let advice = "attach there; or route by this interface; or next_hops = \"redirect\"";
        found.warn(about, message, advice);
    }
}

fn gateway(facts: &Balancer, found: &mut Diagnosis) {
    let advice = NEXT_HOP_ADVICE;
    if facts.gateway == Gateway::Auto || facts.mode != NextHops::Gateway {
        let none = facts.next_hops.is_empty();
        if none && facts.mode == NextHops::Gateway {
            let message = "no real is behind a router, and there is no default route";
            return found.problem(Subject::Gateway, message, advice);
        }
        if none {
            return found.ok(Subject::Gateway, "no reals, so no next hops");
        }
        let mut unknown = 0;
        for hop in facts.next_hops.iter().filter(|hop| !hop.here) {
            let whom = hop
                .real
                .map_or("the gateway".to_owned(), |real| format!("real {real}"));
            let before = found.findings().len();
            next_hop(facts, hop, &whom, found);
            unknown += found.findings().len() - before;
        }
        if unknown == 0 {
            let message = format!("{} next hops are known", facts.next_hops.len());
            found.ok(Subject::Gateway, message);
        }
        return;
    }
    let given = match facts.gateway {
        Gateway::Mac(mac) => Some(mac),
        Gateway::Auto => None,
    };
    for mac in given.into_iter().chain(facts.gateway_v6) {
        match facts.neighbours.contains(&mac) {
            true => found.ok(Subject::Gateway, format!("{mac} is a neighbour's")),
            false => {
                let message = format!("{mac} is no address of a neighbour that the kernel knows");
                let advice = "compare it with `ip neighbour` after a ping to the router; or \
                              gateway_mac = \"auto\"";
                found.note(Subject::Gateway, message, advice);
            }
        }
    }
}

fn source(facts: &Balancer, found: &mut Diagnosis) {
    let mut fine = true;
    for (v6, name) in [(false, "source_v4"), (true, "source_v6")] {
        let at = usize::from(v6);
        if !facts.reals[at] || facts.sources[at] {
            continue;
        }
        let family = if v6 { "IPv6" } else { "IPv4" };
        if facts.gue {
            fine = false;
            let message = format!("GUE to {family} reals has no outer source address");
            found.problem(Subject::Source, message, format!("set {name}"));
        } else if facts.healthchecks {
            fine = false;
            let message = format!("health checks of {family} reals have no source address");
            found.warn(Subject::Source, message, format!("set {name}"));
        }
    }
    if !facts.gue && facts.default_ipip_source && facts.reals[0] {
        fine = false;
        let message = "packets to IPv4 reals come from 172.16.0.0/16, made up for each flow";
        let advice = "if the network filters by source: ipip_source_v4 with a /16 of your own";
        found.note(Subject::Source, message, advice);
    }
    if facts.healthchecks && !facts.healthchecks_attached && facts.interface.ours.xdp.is_some() {
        fine = false;
        let message =
            "probes are not sent through the tunnel: the path of health checks is not attached";
        found.warn(Subject::Source, message, "set healthcheck_interface");
    }
    if fine {
        found.ok(Subject::Source, "as far as needed");
    }
}

fn vips(facts: &Balancer, found: &mut Diagnosis) {
    if facts.vips == 0 {
        found.note(
            Subject::Vips,
            "there are none: every packet passes",
            "add_vip",
        );
    }
    for vip in &facts.empty_vips {
        let message = format!("{vip} has no real that takes new flows: they are dropped");
        found.warn(Subject::Vips, message, "add reals, or give them weights");
    }
    if facts.vips > 0 && facts.empty_vips.is_empty() {
        found.ok(Subject::Vips, format!("{} with reals", facts.vips));
    }
    for (reason, frames, advice) in &facts.drops {
        found.warn(Subject::Drops, format!("{reason}: {frames} frames"), advice);
    }
    if facts.drops.is_empty() {
        found.ok(Subject::Drops, "none that tell of a setting");
    }
}

#[cfg(test)]
#[path = "balancer_tests.rs"]
mod tests;
