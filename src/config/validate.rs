//! From settings to what is loaded: checks each against its range by the table of settings, then
//! those that depend on each other and on this machine: where flow tables lie.
//!
//! The result, a `Config`, can be loaded on this machine: every default is resolved.

use std::collections::BTreeSet;

#[cfg(any(test, feature = "serde"))]
use super::BalancerState;
use super::Builder;
use super::Config;
use super::cpus::ForwardingCpu;
use super::cpus::Topology;
use super::ranges::invalid;
use super::ranges::within;
use crate::error::Result;
use crate::types::Encapsulation;
use crate::types::FlowTracking;
use crate::types::ProbeSource;

/// The most entries of one map that make sense.
const MAX_ENTRIES: u32 = 1 << 27;

/// Where only changed flows are remembered a slot has one bit less for its real's number.
const MAX_REALS_OF_SLOTS: u16 = 32_767;

impl Config {
    /// Whether more is counted of VIPs than packets and bytes.
    pub(crate) fn counts_in_detail(&self) -> bool {
        self.count_syns || self.max_vip_reals != 0
    }

    /// Whether probes come from made-up addresses, as clients' packets do.
    pub(crate) fn makes_up_probe_sources(&self) -> bool {
        self.healthcheck_source == ProbeSource::MadeUp && self.encapsulation == Encapsulation::Ipip
    }
}

#[cfg(feature = "serde")]
impl BalancerState {
    /// The settings that a balancer would be loaded with, except those that depend on the machine.
    pub(crate) fn alone(builder: &Builder) -> Result<Self> {
        let config = Config::of_each(builder)?;
        check_each_other(&config)?;
        Ok(Self::of(&config))
    }
}

impl Builder {
    /// Checks all settings against their ranges, each other and this machine.
    pub(crate) fn validate(self) -> Result<Config> {
        self.validate_on(&Topology::read()?)
    }

    pub(super) fn validate_on(self, machine: &Topology) -> Result<Config> {
        let mut config = Config::of_each(&self)?;
        check_each_other(&config)?;
        let places = placement(
            config.forwarding_cpus.take(),
            config.numa_nodes.take(),
            machine,
        )?;
        config.forwarding_cpus = Some(places.iter().map(|place| place.cpu).collect());
        config.numa_nodes = places.iter().map(|place| place.numa_node).collect();
        let usual = usual_flows(config.flow_tracking);
        let flows = *config.flow_table_size.get_or_insert(usual);
        config.flows_per_cpu = flows_per_cpu(flows, places.len())?;
        config.placement = places;
        let of_table = MOST_NEW_FLOWS.min(config.flows_per_cpu);
        config.flood_threshold.get_or_insert(of_table);
        Ok(config)
    }
}

fn check_each_other(config: &Config) -> Result<()> {
    if config.flow_tracking == FlowTracking::Changed && config.max_reals > MAX_REALS_OF_SLOTS {
        return Err(invalid(
            "max_reals",
            config.max_reals,
            format!(
                "must be 1 to {MAX_REALS_OF_SLOTS} with flow_tracking = \"changed\", the default, \
                 or up to {} with flow_tracking = \"all\"",
                u16::MAX
            ),
        ));
    }
    Ok(())
}

/// The default limit of new flows per second on each CPU, with a table that is large enough; as in
/// Katran.
const MOST_NEW_FLOWS: u32 = 125_000;

/// The default number of flows to remember. With `Changed` half of the table breaks fewer
/// connections in a rolling deployment: the bench `table_size`.
fn usual_flows(tracking: FlowTracking) -> u64 {
    match tracking {
        FlowTracking::All => 8_000_000,
        FlowTracking::Changed => 4_000_000,
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
        return refuse_cpus("list at least one CPU".to_owned());
    }
    if cpus.iter().collect::<BTreeSet<_>>().len() != cpus.len() {
        return refuse_cpus("a CPU is listed twice".to_owned());
    }
    if let Some(cpu) = cpus.iter().find(|cpu| !machine.possible.contains(cpu)) {
        return refuse_cpus(format!(
            "this machine cannot have CPU {cpu}: its last one is {}",
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
                    "list one node for each of the {} forwarding CPUs",
                    cpus.len()
                ),
            );
        }
        Some(nodes) => {
            if let Some(node) = nodes.iter().find(|node| !machine.nodes.contains(node)) {
                let online: Vec<_> = machine.nodes.iter().map(ToString::to_string).collect();
                return refuse_nodes(
                    &nodes,
                    format!("node {node} is not online (online: {})", online.join(", ")),
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
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::types::MacAddr;

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
            config.placement,
            [placed(0, Some(0)), placed(1, Some(0)), placed(2, Some(1))]
        );
        assert_eq!(config.flow_tracking, FlowTracking::Changed);
        assert_eq!(config.flows_per_cpu, 1_333_334);
        assert_eq!(config.ring_size, 65_537);
        assert_eq!((config.max_vips, config.max_reals), (512, 4096));
        assert_eq!(config.features, crate::config::Features::default());
    }

    #[test]
    fn the_usual_size_of_the_flow_table_goes_by_what_is_tracked() {
        let size = |builder: Builder| {
            let config = builder.validate_on(&machine()).unwrap();
            let told = BalancerState::of(&config).flow_table_size;
            assert_eq!(told, config.flow_table_size);
            // Three CPUs.
            assert_eq!(told.unwrap().div_ceil(3), u64::from(config.flows_per_cpu));
            // It leads to the same settings again.
            assert_eq!(
                BalancerState::of(&config)
                    .builder()
                    .validate_on(&machine())
                    .unwrap(),
                config
            );
            told.unwrap()
        };
        let all = || builder().flow_tracking(FlowTracking::All);
        let changed = || builder().flow_tracking(FlowTracking::Changed);
        assert_eq!([size(all()), size(changed())], [8_000_000, 4_000_000]);
        for builder in [all(), changed()] {
            assert_eq!(size(builder.flow_table_size(123_456)), 123_456);
        }
    }

    #[test]
    fn the_flood_guard_goes_by_the_size_of_a_table_unless_told_otherwise() {
        let threshold = |builder: Builder| builder.validate_on(&machine()).unwrap().flood_threshold;
        // Three CPUs.
        assert_eq!(threshold(builder()), Some(125_000));
        assert_eq!(threshold(builder().flow_table_size(375_001)), Some(125_000));
        assert_eq!(threshold(builder().flow_table_size(374_997)), Some(124_999));
        assert_eq!(threshold(builder().flow_table_size(1)), Some(1));
        let told = builder().flow_table_size(10).flood_threshold(7_000_000);
        assert_eq!(threshold(told), Some(7_000_000));
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
        assert_eq!(config.placement, [placed(0, 0), placed(3, 1)]);
    }

    #[test]
    fn each_refusal_names_setting_value_and_range() {
        let cases: [(Builder, &[&str]); 22] = [
            (Builder::new(), &["gateway_mac", "set it to the MAC"]),
            (
                builder().gateway_mac(MacAddr::new([0; 6])),
                &["gateway_mac", "unicast"],
            ),
            (builder().max_vips(0), &["max_vips = 0", "1 to 65535"]),
            (
                builder()
                    .max_reals(32_768)
                    .flow_tracking(FlowTracking::Changed),
                &["max_reals = 32768", "1 to 32767", "flow_tracking = \"all\""],
            ),
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
                &["forwarding_cpus", "cannot have CPU 4"],
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
                .max_reals(65_535)
                .flow_tracking(FlowTracking::All),
            builder()
                .max_reals(32_767)
                .flow_tracking(FlowTracking::Changed),
            builder().flow_table_size(1).max_frame(65_549),
            builder().flow_table_size(3 << 27),
        ] {
            assert!(builder.validate_on(&machine()).is_ok());
        }
    }
}
