//! From settings to what is loaded: every range in one place.
//!
//! The result, a `Config`, holds only values that can be loaded on this machine, with everything
//! resolved that a default left open.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Builder;
use super::Features;
use super::cpus::Topology;
use crate::error::Error;
use crate::error::Result;
use crate::types::Encapsulation;
use crate::types::FlowTableKind;
use crate::types::Gateway;
use crate::types::HashFunction;
use crate::types::MacAddr;
use crate::types::NextHops;
use crate::types::TcHook;
use crate::types::check_host;

/// The most entries of one map that anyone can mean.
const MAX_ENTRIES: u32 = 1 << 27;

/// Settings that can be loaded on this machine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) gateway: Gateway,
    pub(crate) gateway_mac_v6: Option<MacAddr>,
    pub(crate) next_hops: NextHops,
    pub(crate) encapsulation: Encapsulation,
    pub(crate) features: Features,
    pub(crate) source_v4: Option<Ipv4Addr>,
    pub(crate) source_v6: Option<Ipv6Addr>,
    /// The last 16 bits are 0.
    pub(crate) ipip_source_v4: Ipv4Addr,
    /// The last 32 bits are 0.
    pub(crate) ipip_source_v6: Ipv6Addr,
    pub(crate) gue_port: u16,
    /// Bytes, Ethernet header included.
    pub(crate) max_frame: u32,
    pub(crate) frags: bool,
    pub(crate) max_vips: u16,
    pub(crate) max_reals: u16,
    /// A prime.
    pub(crate) ring_size: u32,
    pub(crate) hash_function: HashFunction,
    pub(crate) flow_table: FlowTableKind,
    /// As it was asked for, over all forwarding CPUs.
    pub(crate) flow_table_size: u64,
    /// Entries of each forwarding CPU's flow table.
    pub(crate) flows_per_cpu: u32,
    /// Ascending by CPU; at least one.
    pub(crate) forwarding_cpus: Vec<ForwardingCpu>,
    pub(crate) flood_threshold: u32,
    pub(crate) udp_timeout: Duration,
    pub(crate) global_flow_table_size: u32,
    pub(crate) max_source_routes: u32,
    pub(crate) max_decap: u32,
    pub(crate) max_server_ids: u32,
    pub(crate) healthcheck_interface: Option<String>,
    pub(crate) healthcheck_priority: u16,
    pub(crate) healthcheck_max_packet: u32,
    pub(crate) healthcheck_hook: TcHook,
    pub(crate) event_buffer: u32,
}

/// A CPU that has a flow table, and where that table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardingCpu {
    pub(crate) cpu: u32,
    /// None on a kernel that knows no nodes: the kernel chooses.
    pub(crate) numa_node: Option<u32>,
}

impl Builder {
    /// Checks all settings against their ranges, each other and this machine.
    pub(crate) fn validate(self) -> Result<Config> {
        self.validate_on(&Topology::read()?)
    }

    fn validate_on(self, machine: &Topology) -> Result<Config> {
        let Some(gateway) = self.gateway else {
            return Err(invalid(
                "gateway_mac",
                "(not set)",
                "required: the MAC address of the router that leads to the reals, as \
                 `ip neighbour` shows it, or auto",
            ));
        };
        check_gateway(gateway)?;
        self.gateway_mac_v6.map_or(Ok(()), check_gateway_mac)?;
        check_event_buffer(self.event_buffer)?;
        self.features.check()?;
        for source in [
            self.source_v4.map(IpAddr::V4),
            self.source_v6.map(IpAddr::V6),
        ] {
            source.map_or(Ok(()), check_source)?;
        }
        check_ipip_prefixes(self.ipip_source_v4, self.ipip_source_v6)?;
        within("gue_port", self.gue_port, 1..=u16::MAX)?;
        within("max_frame", self.max_frame, 590..=65_549)?;
        within("max_vips", self.max_vips, 1..=u32::from(u16::MAX))?;
        within("max_reals", self.max_reals, 1..=u32::from(u16::MAX))?;
        check_ring_size(self.ring_size)?;
        within("flood_threshold", self.flood_threshold, 1..=u32::MAX)?;
        if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&self.udp_timeout) {
            return Err(invalid(
                "udp_timeout",
                format!("{:?}", self.udp_timeout),
                "must be 1 second to 1 day",
            ));
        }
        within(
            "global_flow_table_size",
            self.global_flow_table_size,
            1..=MAX_ENTRIES,
        )?;
        within("max_source_routes", self.max_source_routes, 1..=MAX_ENTRIES)?;
        within("max_decap", self.max_decap, 1..=u32::from(u16::MAX))?;
        within("max_server_ids", self.max_server_ids, 1..=1 << 24)?;
        if let Some(name) = &self.healthcheck_interface {
            check_interface_name(name)?;
        }
        within(
            "healthcheck_priority",
            self.healthcheck_priority,
            1..=u16::MAX,
        )?;

        let forwarding_cpus = placement(self.forwarding_cpus, self.numa_nodes, machine)?;
        let flows_per_cpu = flows_per_cpu(self.flow_table_size, forwarding_cpus.len())?;
        Ok(Config {
            gateway,
            gateway_mac_v6: self.gateway_mac_v6,
            next_hops: self.next_hops,
            encapsulation: self.encapsulation,
            features: self.features,
            source_v4: self.source_v4,
            source_v6: self.source_v6,
            ipip_source_v4: self.ipip_source_v4,
            ipip_source_v6: self.ipip_source_v6,
            gue_port: self.gue_port,
            max_frame: self.max_frame,
            frags: self.frags,
            // Both were checked to fit above.
            max_vips: self.max_vips as u16,
            max_reals: self.max_reals as u16,
            ring_size: self.ring_size,
            hash_function: self.hash_function,
            flow_table: self.flow_table,
            flow_table_size: self.flow_table_size,
            flows_per_cpu,
            forwarding_cpus,
            flood_threshold: self.flood_threshold,
            udp_timeout: self.udp_timeout,
            global_flow_table_size: self.global_flow_table_size,
            max_source_routes: self.max_source_routes,
            max_decap: self.max_decap,
            max_server_ids: self.max_server_ids,
            healthcheck_interface: self.healthcheck_interface,
            healthcheck_priority: self.healthcheck_priority,
            healthcheck_max_packet: self.healthcheck_max_packet,
            healthcheck_hook: self.healthcheck_hook,
            event_buffer: self.event_buffer,
        })
    }
}

/// Refuses a gateway that cannot be.
pub(crate) fn check_gateway(gateway: Gateway) -> Result<()> {
    match gateway {
        Gateway::Mac(mac) => check_gateway_mac(mac),
        Gateway::Auto => Ok(()),
    }
}

fn check_event_buffer(bytes: u32) -> Result<()> {
    match bytes.is_power_of_two() && (1 << 12..=1 << 30).contains(&bytes) {
        true => Ok(()),
        false => Err(invalid(
            "event_buffer",
            bytes,
            "must be a power of two, 4096 to 1073741824",
        )),
    }
}

/// Refuses a gateway address that no single station has.
pub(crate) fn check_gateway_mac(mac: MacAddr) -> Result<()> {
    match mac.is_unicast() {
        true => Ok(()),
        false => Err(invalid(
            "gateway_mac",
            mac,
            "must be the address of one station: not zero, not a group",
        )),
    }
}

/// Refuses an outer source address that no host has.
pub(crate) fn check_source(address: IpAddr) -> Result<()> {
    check_host(address)
}

fn invalid(setting: &'static str, value: impl Display, reason: impl Into<String>) -> Error {
    Error::InvalidConfig {
        setting,
        value: value.to_string(),
        reason: reason.into(),
    }
}

fn within<T>(setting: &'static str, value: T, range: RangeInclusive<T>) -> Result<()>
where
    T: Copy + Display + PartialOrd,
{
    match range.contains(&value) {
        true => Ok(()),
        false => Err(invalid(
            setting,
            value,
            format!("must be {} to {}", range.start(), range.end()),
        )),
    }
}

fn check_ipip_prefixes(v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    if v4.to_bits() & 0xffff != 0 {
        return Err(invalid(
            "ipip_source_v4",
            v4,
            "must be the first address of a /16 prefix: the last 16 bits are the flow's",
        ));
    }
    if v6.to_bits() & 0xffff_ffff != 0 {
        return Err(invalid(
            "ipip_source_v6",
            v6,
            "must be the first address of a /96 prefix: the last 32 bits are the flow's",
        ));
    }
    // 240.0.0.0/4 has no hosts either, and ends with the broadcast address.
    if v4.octets()[0] >= 240 {
        return Err(invalid(
            "ipip_source_v4",
            v4,
            "a reserved prefix has no hosts",
        ));
    }
    check_source(v4.into())?;
    check_source(v6.into())
}

fn check_ring_size(size: u32) -> Result<()> {
    within("ring_size", size, 3..=16_777_213)?;
    if is_prime(size) {
        return Ok(());
    }
    // The upper end of the range is a prime, so there is one.
    let next = (size..).find(|larger| is_prime(*larger)).unwrap_or(65_537);
    Err(invalid(
        "ring_size",
        size,
        format!("must be a prime; the next larger one is {next}"),
    ))
}

fn is_prime(n: u32) -> bool {
    n >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= n)
            .all(|divisor| !n.is_multiple_of(divisor))
}

fn check_interface_name(name: &str) -> Result<()> {
    let valid = (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name
            .bytes()
            .any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace());
    match valid {
        true => Ok(()),
        false => Err(invalid(
            "healthcheck_interface",
            format!("{name:?}"),
            "must be an interface name: 1 to 15 bytes without `/`, `:` and spaces",
        )),
    }
}

fn flows_per_cpu(flows: u64, cpus: usize) -> Result<u32> {
    // The longest list of CPUs is far below 2^32.
    let most = u64::from(MAX_ENTRIES) * cpus as u64;
    within("flow_table_size", flows, 1..=most)?;
    Ok(flows.div_ceil(cpus as u64) as u32)
}

/// Pairs each forwarding CPU with the node of its flow table.
fn placement(
    cpus: Option<Vec<u32>>,
    nodes: Option<Vec<u32>>,
    machine: &Topology,
) -> Result<Vec<ForwardingCpu>> {
    let cpus = cpus.unwrap_or_else(|| machine.online.iter().copied().collect());
    let refuse_cpus = |reason: String| Err(invalid("forwarding_cpus", format!("{cpus:?}"), reason));
    if cpus.is_empty() {
        return refuse_cpus("at least one CPU is needed".to_owned());
    }
    if cpus.iter().collect::<BTreeSet<_>>().len() != cpus.len() {
        return refuse_cpus("a CPU is listed twice".to_owned());
    }
    if let Some(cpu) = cpus.iter().find(|cpu| !machine.possible.contains(cpu)) {
        return refuse_cpus(format!(
            "this machine can have no CPU {cpu}: the last one is {}",
            machine.possible.last().copied().unwrap_or_default()
        ));
    }
    let refuse_nodes =
        |nodes: &[u32], reason: String| Err(invalid("numa_nodes", format!("{nodes:?}"), reason));
    let nodes = match nodes {
        None => cpus
            .iter()
            .map(|cpu| machine.node_of.get(cpu).copied())
            .collect(),
        Some(nodes) if nodes.len() != cpus.len() => {
            return refuse_nodes(
                &nodes,
                format!(
                    "one node for each of the {} forwarding CPUs is needed",
                    cpus.len()
                ),
            );
        }
        Some(nodes) => {
            if let Some(node) = nodes.iter().find(|node| !machine.nodes.contains(node)) {
                return refuse_nodes(
                    &nodes,
                    format!(
                        "node {node} is not online; those that are: {:?}",
                        machine.nodes
                    ),
                );
            }
            nodes.into_iter().map(Some).collect::<Vec<_>>()
        }
    };
    let mut placed: Vec<_> = cpus
        .iter()
        .zip(nodes)
        .map(|(&cpu, numa_node)| ForwardingCpu { cpu, numa_node })
        .collect();
    placed.sort_by_key(|placed| placed.cpu);
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn machine() -> Topology {
        Topology {
            online: BTreeSet::from([0, 1, 2]),
            possible: BTreeSet::from([0, 1, 2, 3]),
            nodes: BTreeSet::from([0, 1]),
            node_of: BTreeMap::from([(0, 0), (1, 0), (2, 1)]),
        }
    }

    fn builder() -> Builder {
        Builder::new().gateway_mac(MacAddr::new([2, 0, 0, 0, 0, 1]))
    }

    fn message(builder: Builder) -> String {
        builder.validate_on(&machine()).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_resolved() {
        let config = builder().validate_on(&machine()).unwrap();
        let placed = |cpu, numa_node| ForwardingCpu { cpu, numa_node };
        assert_eq!(
            config.forwarding_cpus,
            [placed(0, Some(0)), placed(1, Some(0)), placed(2, Some(1))]
        );
        assert_eq!(config.flows_per_cpu, 2_666_667);
        assert_eq!(config.ring_size, 65_537);
        assert_eq!((config.max_vips, config.max_reals), (512, 4096));
        assert_eq!(config.features, Features::default());
    }

    #[test]
    fn placement_is_sorted_and_keeps_pairs() {
        let config = builder()
            .forwarding_cpus([3, 0])
            .numa_nodes([1, 0])
            .validate_on(&machine())
            .unwrap();
        let placed = |cpu, node| ForwardingCpu {
            cpu,
            numa_node: Some(node),
        };
        assert_eq!(config.forwarding_cpus, [placed(0, 0), placed(3, 1)]);
    }

    #[test]
    fn each_refusal_names_setting_value_and_range() {
        let cases: [(Builder, &[&str]); 21] = [
            (Builder::new(), &["gateway_mac", "required"]),
            (
                builder().gateway_mac(MacAddr::new([0; 6])),
                &["gateway_mac", "station"],
            ),
            (builder().max_vips(0), &["max_vips = 0", "1 to 65535"]),
            (
                builder().max_reals(65_536),
                &["max_reals = 65536", "1 to 65535"],
            ),
            (
                builder().ring_size(65_536),
                &["ring_size", "prime", "65537"],
            ),
            (builder().ring_size(2), &["ring_size = 2", "3 to 16777213"]),
            (
                builder().flow_table_size(0),
                &["flow_table_size", "1 to 402653184"],
            ),
            (
                builder().forwarding_cpus([]),
                &["forwarding_cpus", "at least one"],
            ),
            (
                builder().forwarding_cpus([1, 1]),
                &["forwarding_cpus", "twice"],
            ),
            (
                builder().forwarding_cpus([4]),
                &["forwarding_cpus", "no CPU 4"],
            ),
            (builder().numa_nodes([0]), &["numa_nodes", "each of the 3"]),
            (
                builder().numa_nodes([0, 0, 7]),
                &["numa_nodes", "node 7 is not online"],
            ),
            (
                builder().max_frame(589),
                &["max_frame = 589", "590 to 65549"],
            ),
            (
                builder().max_frame(65_550),
                &["max_frame = 65550", "590 to 65549"],
            ),
            (builder().flood_threshold(0), &["flood_threshold"]),
            (
                builder().udp_timeout(Duration::from_millis(999)),
                &["udp_timeout = 999ms"],
            ),
            (builder().gue_port(0), &["gue_port"]),
            (
                builder().ipip_source_v4(Ipv4Addr::new(10, 0, 1, 0)),
                &["ipip_source_v4", "/16"],
            ),
            (
                builder().ipip_source_v6("2001:db8::1:0:0:1".parse().unwrap()),
                &["ipip_source_v6", "/96"],
            ),
            (
                builder().source_v4(Ipv4Addr::LOCALHOST),
                &["127.0.0.1", "loopback"],
            ),
            (
                builder().healthcheck_interface("a/b"),
                &["healthcheck_interface"],
            ),
        ];
        for (builder, parts) in cases {
            let message = message(builder);
            for part in parts {
                assert!(message.contains(part), "{part:?} is not in: {message}");
            }
        }
    }

    #[test]
    fn ends_of_ranges_are_inside() {
        for builder in [
            builder()
                .ring_size(3)
                .max_vips(1)
                .max_reals(1)
                .max_frame(590),
            builder()
                .ring_size(16_777_213)
                .max_vips(65_535)
                .max_reals(65_535),
            builder().flow_table_size(1).max_frame(65_549),
            builder().flow_table_size(3 << 27),
        ] {
            assert!(builder.validate_on(&machine()).is_ok());
        }
    }
}
