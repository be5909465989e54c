//! Judges the facts about a balancer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Diagnosis;
use super::FlowTableFacts;
use super::Growth;
use super::HostFacts;
use super::InterfaceFacts;
use super::Subject;
use super::Vlans;
use super::counted;
use super::flow_tables;
use super::host::host;
use super::interface::Holder;
use super::interface::Pages;
use super::interface::checksums;
use super::interface::holder;
use super::interface::interface;
use super::interface::lost;
use super::interface::mode;
use super::interface::offload;
use super::interface::outlook;
use super::interrupts;
use super::reals;
use super::reals::RealTroubles;
use super::sending;
use super::sending::Sends;
use super::tunnel_ends;
use super::tunnel_ends::TunnelEnds;
use super::vlans;
use crate::attach::XdpMode;
use crate::links::longest_frame;
use crate::next_hop::NextHop;
use crate::sys::link::XDP_ACT_NDO_XMIT;
use crate::types::ByFamily;
use crate::types::Encapsulation;
use crate::types::Family;
use crate::types::Gateway;
use crate::types::MacAddr;
use crate::types::MaxFrame;
use crate::types::NextHops;

/// The size of most clients' longest packets, in bytes.
const USUAL_MTU: u32 = 1500;
const ETHERNET: u32 = 14;
/// The smallest MTU of IPv6, in bytes: no sender makes its packets shorter (RFC 8200).
const LEAST_OF_IPV6: u32 = 1280;

/// One "too big" answer per this many forwarded packets is ordinary path MTU discovery.
const FEW_ANSWERS: u64 = 1000;

/// The name of the root program.
const ROOT: &str = "katran_root";

/// A balancer and its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Balancer {
    pub(crate) host: HostFacts,
    pub(crate) interface: InterfaceFacts,
    pub(crate) pages: Pages,
    pub(crate) max_frame: MaxFrame,
    /// Longer packets get an ICMP error as answer.
    pub(crate) answers_too_big: bool,
    /// The number of such answers.
    pub(crate) answered_too_big: u64,
    pub(crate) vlans: Vlans,
    pub(crate) encapsulation: Encapsulation,
    /// Whether there are IPv4 and IPv6 reals.
    pub(crate) reals: ByFamily<bool>,
    pub(crate) sources: ByFamily<bool>,
    /// The outer IPIP source prefixes for IPv4 and IPv6 reals have their default values.
    pub(crate) default_ipip_sources: ByFamily<bool>,
    /// There are marks or rules for probes, or an interface for them.
    pub(crate) healthchecks: bool,
    /// Probes have made-up outer sources, as clients' packets have.
    pub(crate) made_up_probe_sources: bool,
    /// The healthcheck program is attached.
    pub(crate) healthchecks_attached: bool,
    pub(crate) gateway: Gateway,
    pub(crate) gateway_v6: Option<MacAddr>,
    pub(crate) mode: NextHops,
    /// Root entries that were ours and no longer are.
    pub(crate) lost_entries: Vec<String>,
    /// Next hops of all reals except this host.
    pub(crate) next_hops: Vec<NextHop>,
    pub(crate) real_troubles: RealTroubles,
    /// The balancer is not attached, so these come from the kernel's tables without asking the
    /// network.
    pub(crate) next_hops_previewed: bool,
    /// The MAC addresses in the interface's neighbour table.
    pub(crate) neighbours: Vec<MacAddr>,
    pub(crate) online_cpus: u32,
    /// The CPUs with a flow table.
    pub(crate) forwarding_cpus: BTreeSet<u32>,
    /// Packets forwarded by all CPUs, and by those without a flow table.
    pub(crate) packets: Growth,
    pub(crate) without_table: Growth,
    pub(crate) flow_tables: FlowTableFacts,
    pub(crate) vips: usize,
    /// There are IPv6 VIPs.
    pub(crate) vips_of_v6: bool,
    pub(crate) tunnel_ends: TunnelEnds,
    /// VIPs without a real that takes new flows.
    pub(crate) empty_vips: Vec<EmptyVip>,
    /// VIP addresses whose other packets this host routes on: it forwards, and they are not its
    /// own.
    pub(crate) routed_on: Vec<IpAddr>,
    pub(crate) sends: Sends,
    /// Drop reasons that point to a wrong setting: name, frames, advice.
    pub(crate) drops: Vec<(&'static str, Growth, &'static str)>,
}

impl Balancer {
    /// The configured gateway MAC addresses.
    fn given_macs(&self) -> impl Iterator<Item = MacAddr> {
        let given = match self.gateway {
            Gateway::Mac(mac) => Some(mac),
            Gateway::Auto => None,
        };
        given.into_iter().chain(self.gateway_v6)
    }
}

/// A VIP without a real that takes new flows.
#[derive(Clone, Debug)]
pub(crate) struct EmptyVip {
    pub(crate) vip: String,
    /// How many of its reals are down.
    pub(crate) down: usize,
    /// How many of its other reals have weight 0.
    pub(crate) drained: usize,
}

pub(crate) fn judge(facts: &Balancer) -> Diagnosis {
    let mut found = Diagnosis::default();
    host(&facts.host, &mut found);
    if interface(&facts.interface, &mut found) {
        program(facts, &mut found);
        offload(&facts.interface, &mut found);
        checksums(&facts.interface, &mut found);
        queues(facts, &mut found);
        flow_tables::judge(&facts.flow_tables, &mut found);
        mtu(facts, &mut found);
        let around = vlans::Around {
            interface: &facts.interface.name,
            packets: facts.packets.recent,
            next_hops: &facts.next_hops,
            neighbours: facts
                .given_macs()
                .filter(|mac| facts.neighbours.contains(mac))
                .collect(),
        };
        vlans::judge(&facts.vlans, &around, &mut found);
    }
    gateway(facts, &mut found);
    source(facts, &mut found);
    tunnel_ends::judge(&facts.tunnel_ends, &mut found);
    vips(facts, &mut found);
    found
}

/// Which program is on the interface, and whether its frames leave.
fn program(facts: &Balancer, found: &mut Diagnosis) {
    let place = &facts.interface;
    let name = &place.name;
    match holder(place) {
        Holder::Ours(in_force) => {
            found.ok(Subject::Program, format!("attached to {name}"));
            mode(place, facts.pages, in_force, found);
            sending::judge(place, &facts.sends, in_force, found);
        }
        Holder::Lost(message) => lost(message, found),
        Holder::Other(root) if place.ours.elsewhere && [ROOT, ""].contains(&root.name.as_str()) => {
            match root.name.is_empty() {
                false => found.ok(Subject::Program, "an entry of the root program there"),
                true => found.note(
                    Subject::Program,
                    format!(
                        "an entry of the root program, if {} is the root program: reading its name needs CAP_SYS_ADMIN",
                        root.describe()
                    ),
                    "check as root: bpftool prog show",
                ),
            }
            mode(place, facts.pages, root.mode, found);
            sending::judge(place, &facts.sends, root.mode, found);
        }
        Holder::Other(root) if root.name == ROOT => {
            let message = format!(
                "{name} runs the root program of another process, in {} mode",
                root.mode
            );
            found.note(
                Subject::Program,
                message,
                "attach to an entry of it (--shared PATH)",
            );
        }
        Holder::Other(other) if other.name.starts_with("katran") => {
            let message = format!(
                "{name} runs a balancer of another process, in {} mode: attaching would be refused",
                other.mode
            );
            let advice = "ignore this if you only compare a configuration with that balancer; \
                          else stop it first, or share the interface through a root program";
            found.warn(Subject::Program, message, advice);
        }
        Holder::Other(other) if other.name.is_empty() => {
            let message = format!(
                "{name} runs {}, whose name only CAP_SYS_ADMIN may read: attaching would be refused",
                other.describe()
            );
            let advice = format!(
                "as root: bpftool prog show id {}; ignore this if it is the balancer that you \
                 compare a configuration with",
                other.id
            );
            found.warn(Subject::Program, message, advice);
        }
        Holder::Other(other) => {
            let message = format!(
                "{name} runs {}, which is not this balancer's",
                other.describe()
            );
            let advice = format!(
                "stop the program that attached it (bpftool link; without a link: ip link set dev \
                 {name} xdp off), or share the interface through a root program"
            );
            found.problem(Subject::Program, message, advice);
        }
        Holder::Nobody if place.ours.elsewhere => {
            let message = format!("{name} has no root program, so its packets reach no entry");
            let advice = format!(
                "attach the root program there too (katran root attach --interface {name})"
            );
            found.warn(Subject::Program, message, advice);
        }
        Holder::Nobody => {
            let advice = format!("attach the balancer to it: `katran run --interface {name}` does");
            found.note(Subject::Program, format!("not attached to {name}"), advice);
            outlook(place, facts.pages, found);
            if place.native() != Some(false) {
                sending::judge(place, &facts.sends, XdpMode::Native, found);
            }
        }
    }
    for entry in &facts.lost_entries {
        let message = format!("{entry} is no longer this balancer's");
        let advice = "another process took it over or emptied it: stop one of the two; `katran root show` \
             lists entries";
        found.problem(Subject::Program, message, advice);
    }
    let known = place.xdp_features;
    if facts.mode == NextHops::Redirect && known.is_some_and(|known| known & XDP_ACT_NDO_XMIT == 0)
    {
        let message = format!("the driver of {name} drops frames that are redirected to it");
        let advice = "the driver sends redirected frames only while an XDP program is on the \
                      interface (veth: on its peer, or GRO): attach one, or use another card";
        found.warn(Subject::Mode, message, advice);
    }
}

fn queues(facts: &Balancer, found: &mut Diagnosis) {
    let name = &facts.interface.name;
    let (forwarding, online) = (facts.forwarding_cpus.len() as u32, facts.online_cpus);
    let shared = |queues: u32| {
        let queues = counted(queues, "receive queue");
        let cpus = counted(forwarding, "CPU");
        format!("{queues} for {cpus} with a flow table")
    };
    match facts.interface.receive_queues {
        Some(queues) if queues > forwarding => {
            let message = shared(queues);
            let advice = format!(
                "ethtool -L {name} combined {forwarding}, and one interrupt on each of those CPUs"
            );
            found.warn(Subject::Queues, message, advice);
        }
        Some(queues) if queues < forwarding && queues < online => {
            let message = format!(
                "{}: some may get no packets, or a flow's packets may change CPU and find no entry",
                shared(queues)
            );
            let advice = format!(
                "ethtool -L {name} combined {}, or fewer forwarding_cpus (on veth, one, and \
                 rps_cpus of its receive queue for that CPU)",
                forwarding.min(online)
            );
            found.note(Subject::Queues, message, advice);
        }
        Some(queues) => {
            let message = shared(queues);
            found.ok(Subject::Queues, message);
        }
        None => found.note(
            Subject::Queues,
            "the driver does not report the number of receive queues",
            "see how packets spread over CPUs: katran top, or katran_cpu_packets_total",
        ),
    }
    interrupts::judge(&facts.interface.interrupts, &facts.forwarding_cpus, found);
    let (packets, without) = (&facts.packets, &facts.without_table);
    let ever = format!(
        "{} of {} packets since the balancer was loaded arrived on CPUs without a flow table",
        without.total, packets.total
    );
    let about = Subject::FallbackTable;
    let advice = "set forwarding_cpus to the CPUs that receive the interface's interrupts \
                  (/proc/interrupts, /proc/irq/*/smp_affinity_list)";
    match (without.total, without.recent) {
        (0, _) => found.ok(about, ever),
        (_, 0) => found.note(about, format!("{ever}, {}", without.silence()), advice),
        (_, recent) => {
            let message = format!(
                "{recent} of {} packets {} arrived on CPUs without a flow table",
                packets.recent,
                without.lately()
            );
            found.warn(about, message, advice);
        }
    }
}

fn mtu(facts: &Balancer, found: &mut Diagnosis) {
    let ByFamily { v4, v6 } = facts.reals;
    // Without reals the larger header is assumed.
    let outer = if v6 || !v4 { Family::V6 } else { Family::V4 };
    let needed = facts.encapsulation.overhead(outer);
    let mtu = facts.interface.mtu;
    let longest = match facts.max_frame {
        MaxFrame::Bytes(bytes) => bytes,
        MaxFrame::Auto => longest_frame(mtu, needed),
    };
    let longest = longest.saturating_sub(ETHERNET);
    let room = mtu.saturating_sub(needed);
    let is_found_out = facts.max_frame == MaxFrame::Auto;
    let fits = longest.min(room);
    if facts.vips_of_v6 && fits < LEAST_OF_IPV6 {
        let name = &facts.interface.name;
        let message = format!(
            "{mtu}: room for packets of {fits} bytes plus {needed} of outer headers, but IPv6 clients \
             never send shorter ones than {LEAST_OF_IPV6}: larger packets are lost"
        );
        let wanted = needed + LEAST_OF_IPV6;
        let advice = match room < LEAST_OF_IPV6 {
            true => format!(
                "ip link set {name} mtu {} ({wanted} at least), there and on the path to the reals",
                needed + USUAL_MTU
            ),
            false => format!("max_frame of at least {}", LEAST_OF_IPV6 + ETHERNET),
        };
        return found.problem(Subject::Mtu, message, advice);
    }
    if longest <= room && (longest >= USUAL_MTU || !is_found_out) {
        let message =
            format!("{mtu}: room for packets of {longest} bytes plus {needed} of outer headers");
        return found.ok(Subject::Mtu, message);
    }
    let name = &facts.interface.name;
    let wanted = needed + if is_found_out { USUAL_MTU } else { longest };
    let mss = room.saturating_sub(60);
    let advice = format!(
        "ip link set {name} mtu {wanted}, there and on the path to the reals; or have backends announce \
         a smaller MSS (ip route ... advmss {mss})"
    );
    if !is_found_out {
        let message = format!(
            "{mtu}: packets above {room} bytes do not fit with {needed} bytes of outer headers; up to \
             {longest} are accepted"
        );
        let advice = format!("{advice}, or set max_frame = {}", room + ETHERNET);
        return found.warn(Subject::Mtu, message, advice);
    }
    let message = |fate: &str| {
        format!(
            "{mtu}: packets above {longest} bytes are {fate}, as the outer headers take {needed}"
        )
    };
    let answered = facts.answered_too_big;
    let many = answered > 0 && answered >= facts.packets.total / FEW_ANSWERS;
    match (facts.answers_too_big, answered) {
        // One answer is enough to tell a client its path MTU.
        (true, 1..) if !many => found.note(
            Subject::Mtu,
            format!(
                "{}, {answered} so far: few clients are affected",
                message("answered with an ICMP error")
            ),
            advice,
        ),
        (true, 1..) => found.warn(
            Subject::Mtu,
            format!(
                "{}, {answered} so far: clients behind networks that drop ICMP hang",
                message("answered with an ICMP error")
            ),
            advice,
        ),
        (true, 0) => found.note(Subject::Mtu, message("answered with an ICMP error"), advice),
        (false, _) => found.warn(Subject::Mtu, message("dropped"), advice),
    }
}

const NEXT_HOP_ADVICE: &str = "ip route; ip neighbour; or set gateway_mac";

fn is_it_there(address: IpAddr) -> String {
    format!(
        "check that it is up, in this segment and VLAN: ping {address}; ip neighbour; or set gateway_mac"
    )
}

/// What is wrong with one next hop, if anything.
fn next_hop(facts: &Balancer, hop: &NextHop, whom: &str, found: &mut Diagnosis) {
    let about = Subject::Gateway;
    match (hop.address, hop.mac) {
        (None, None) => {
            found.problem(about, format!("{whom}: no route"), NEXT_HOP_ADVICE);
        }
        (Some(address), None) if facts.next_hops_previewed => {
            let message = format!(
                "{whom}: the MAC address of {address} is not known yet: the balancer looks for it \
                 when attached"
            );
            let advice = format!("ping {address} shows whether it answers");
            found.note(about, message, advice);
        }
        (Some(address), None) => {
            let message = format!("{whom}: {address} does not answer");
            found.problem(about, message, is_it_there(address));
        }
        (Some(address), Some(mac)) if !hop.answers && !facts.next_hops_previewed => {
            let message = format!("{whom}: {address} does not answer; packets go to {mac}");
            found.warn(about, message, is_it_there(address));
        }
        _ => {}
    }
    if let (Some(address), Some(interface), false) = (hop.address, &hop.interface, hop.attached) {
        let message = format!(
            "{whom}: {address} is behind {interface}, but packets leave through the interface they arrived on"
        );
        let advice = "attach there, change the route, or set next_hops = \"redirect\"";
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
            let message = format!("{} known", counted(facts.next_hops.len(), "next hop"));
            found.ok(Subject::Gateway, message);
        }
        return;
    }
    for mac in facts.given_macs() {
        match facts.neighbours.contains(&mac) {
            true => found.ok(Subject::Gateway, format!("{mac} belongs to a neighbour")),
            false => {
                let message = format!("{mac} is not in the kernel's neighbour table");
                let advice = "ping the router, then compare with `ip neighbour`; or set gateway_mac = \
                          \"auto\"";
                found.note(Subject::Gateway, message, advice);
            }
        }
    }
}

fn source(facts: &Balancer, found: &mut Diagnosis) {
    let mut fine = true;
    let families = Family::ALL.into_iter().zip(["source_v4", "source_v6"]);
    for (family, name) in families {
        if !facts.reals[family] || facts.sources[family] {
            continue;
        }
        if facts.encapsulation == Encapsulation::Gue {
            fine = false;
            let message = format!("GUE to {family} reals has no outer source address");
            found.problem(Subject::Source, message, format!("set {name}"));
        } else if facts.healthchecks && !facts.made_up_probe_sources {
            fine = false;
            let message = format!("health checks of {family} reals have no source address");
            found.warn(Subject::Source, message, format!("set {name}"));
        }
    }
    let made_up = [
        (
            Family::V4,
            "172.16.0.0/16",
            "ipip_source_v4 with a /16 of your own",
        ),
        (
            Family::V6,
            "100::/64, the discard prefix of RFC 6666, which routers may drop",
            "ipip_source_v6 with a prefix of your own",
        ),
    ];
    for (family, prefix, setting) in made_up {
        if facts.encapsulation == Encapsulation::Ipip
            && facts.default_ipip_sources[family]
            && facts.reals[family]
        {
            fine = false;
            let message = format!(
                "packets to {family} reals come from a made-up address for each flow, in {prefix}"
            );
            let advice = format!("if the network filters by source, set {setting}");
            found.note(Subject::Source, message, advice);
        }
    }
    let attached = facts.interface.ours.xdp.is_some();
    if facts.healthchecks && !facts.healthchecks_attached && attached {
        fine = false;
        let message =
            "probes do not go through the tunnel: the healthcheck program is not attached";
        found.warn(Subject::Source, message, "set healthcheck_interface");
    }
    if fine {
        found.ok(Subject::Source, "all necessary outer sources are set");
    }
}

fn vips(facts: &Balancer, found: &mut Diagnosis) {
    if facts.vips == 0 {
        found.note(
            Subject::Vips,
            "there are no VIPs: every packet passes to the host",
            "add a VIP",
        );
    }
    reals::judge(&facts.real_troubles, found);
    for EmptyVip { vip, down, drained } in &facts.empty_vips {
        let (why, advice) = match (down, drained) {
            (0, 0) => (String::new(), "add reals"),
            (0, drained) => (
                format!(" ({drained} drained)"),
                "give drained reals a weight",
            ),
            (down, 0) => (
                format!(" ({down} down)"),
                "repair the reals: health checks bring them back; without checks, mark them up",
            ),
            (down, drained) => (
                format!(" ({down} down, {drained} drained)"),
                "repair the reals that are down, or give drained ones a weight (`katran drain REAL --undo` does)",
            ),
        };
        let message = format!("{vip} has no real that takes new flows{why}: they are dropped");
        found.warn(Subject::Vips, message, advice);
    }
    if facts.vips > 0 && facts.empty_vips.is_empty() {
        found.ok(Subject::Vips, format!("{} with reals", facts.vips));
    }
    if let [first, others @ ..] = &facts.routed_on[..] {
        let more = match others.len() {
            0 => "is not its own address".to_owned(),
            number => format!("and {number} more are not its own addresses"),
        };
        found.warn(
            Subject::Vips,
            format!(
        "the host forwards packets, and {first} {more}: packets to ports without a VIP are routed on, \
         possibly in a loop"
            ),
        "switch forwarding off (sysctl -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0); if \
         it must stay on and no probe goes through the tunnel, discard such packets (ip route add \
         unreachable ADDRESS)",
        );
    }
    for (reason, frames, advice) in &facts.drops {
        let about = Subject::Drops;
        if frames.recent == 0 {
            let total = counted(frames.total, "frame");
            let silence = frames.silence();
            let message = format!("{reason}: {total} since the balancer was loaded, {silence}");
            found.note(about, message, advice);
            continue;
        }
        let (recent, lately) = (counted(frames.recent, "frame"), frames.lately());
        let total = frames.total;
        let message = format!("{reason}: {recent} {lately}, {total} since the balancer was loaded");
        found.warn(about, message, advice);
    }
    if facts.drops.is_empty() {
        found.ok(Subject::Drops, "none that point to a wrong setting");
    }
}

#[cfg(test)]
#[path = "balancer_tests.rs"]
mod tests;
