//! Layout numbers of sets: what programs and maps mean. Parts with the same number in two layouts
//! move to the new set together.

/// The meaning of programs and maps in a balancer's set. Increase it whenever programs of another
/// version of the crate could not use what this one has pinned, and with it each of the
/// [parts](BALANCER) that changed. Unchanged parts move to the new set.
pub(super) const LAYOUT: u64 = 4;

/// The meaning of the maps of each part; 0: there is none. Increase one whenever its maps change,
/// or their sizes.
pub(super) const BALANCER: [u64; PARTS] = [2, 1, 1, 1, 0, 0];

/// The same for a decapsulator and a server id option, which have no flows and no probes.
pub(super) const DECAPSULATOR: u64 = 2;
pub(super) const SERVER_ID_OPTION: u64 = 2;
pub(super) const OTHERS: [u64; PARTS] = [1, 0, 1, 0, 0, 0];

/// The most parts that there can be: words for them.
pub(super) const PARTS: usize = 6;

/// A part of a set. Its number is a word of `contents.rs`, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Of a balancer: VIPs, reals, rings with their histories, names of reals, next hops. Of
    /// others: everything.
    State = 0,
    /// Which real a flow is on, and which of these entries are void.
    Flows = 1,
    /// Packet counters.
    Counters = 2,
    /// The tables and counters of health checks.
    Probes = 3,
}

impl Part {
    /// The part of a balancer's map. `None`: each set has a new one, because nothing in it is worth
    /// keeping.
    pub(crate) fn of(map: &str) -> Option<Self> {
        Some(match map {
            "rings" | "ring_chunk" | "prefix_vips" | "vip_addresses" | ".data.vip_heads"
            | ".data.vip_infos" | ".data.reals" | ".data.live" | ".data.hops" | ".data.ports"
            | "devices" | "server_ids" | "source_routes_v4" | "source_routes_v6"
            | "decap_destinations" | "allowed_sources" | "egress_sources" => Self::State,
            "flows" | "flow_tables" | "fallback_flows" | "global_flows" | "global_fallback"
            | "down_reals" => Self::Flows,
            "cpus" | "vip_counters" | "real_counters" | "vip_details" | "vip_reals" => {
                Self::Counters
            }
            "marks" | "destinations" | "sources" | "ways" | "probe_keys" | "probe_counters"
            | "probe_flows" | "probe_totals" | ".data.settings" => Self::Probes,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::MapRow;

    #[test]
    fn every_map_is_of_a_part_or_made_anew() {
        let new: Vec<_> = MapRow::names()
            .filter(|name| Part::of(name).is_none())
            .collect();
        assert_eq!(
            new,
            ["explanations", "rodata", "special_programs", "events"]
        );
    }

    /// The records in the maps of each part, and a checksum of their current definition.
    const RECORDS: [(Part, &[&str], u32); 4] = [
        (
            Part::State,
            &[
                "slot_past",
                "ring_planes",
                "vip_key",
                "vip_prefix_key",
                "vip",
                "vip_info",
                "real",
                "live",
                "own_addresses",
                "station",
                "port",
                "decap_destination",
                "server_id",
                "server_id_line",
            ],
            0x2dd5_d56c,
        ),
        (
            Part::Flows,
            &[
                "flow_key",
                "flow_value",
                "flow_entry",
                "flow_set",
                "down_real",
            ],
            0x66d7_757b,
        ),
        (
            Part::Counters,
            &[
                "counters",
                "quic_counters",
                "tcp_server_id_counters",
                "stable_udp_counters",
                "inline_decap_counters",
                "count",
                "vip_counters",
                "real_counters",
                "vip_details",
                "vip_real",
                "vip_real_counters",
                "cpu",
                "flood_window",
                "active_sets",
                "event_window",
                "id_query",
                "rare_frame",
                "scratch",
            ],
            0x1bda_687e,
        ),
        (
            Part::Probes,
            &[
                "probe_match",
                "probe_real",
                "probe_way",
                "probe_settings",
                "probe_totals",
            ],
            0xb9bc_49e6,
        ),
    ];

    fn header() -> String {
        let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bpf/shared.h");
        fs::read_to_string(header).unwrap()
    }

    /// The fields of a record, without comments.
    fn record(header: &str, name: &str) -> Option<Vec<String>> {
        let (_, rest) = header.split_once(&format!("\nstruct {name} {{\n"))?;
        let (inside, _) = rest.split_once("\n};")?;
        let mut code = String::new();
        for part in inside.split("/*") {
            code += part.split_once("*/").map_or(part, |(_, behind)| behind);
        }
        let fields = code.split(';').map(str::trim);
        Some(fields.map(str::to_owned).collect())
    }

    /// A field of another record changes with it.
    #[test]
    fn records_inside_records_are_watched_too() {
        let header = header();
        let listed: BTreeSet<_> = RECORDS
            .iter()
            .flat_map(|(_, records, _)| *records)
            .copied()
            .collect();
        let mut inside = BTreeSet::new();
        for name in &listed {
            for field in record(&header, name).expect(name) {
                let Some(field) = field.strip_prefix("struct ") else {
                    continue;
                };
                if let Some((kind, rest)) = field.split_once(' ')
                    && !rest.starts_with('*')
                {
                    inside.insert(kind.to_owned());
                }
            }
        }
        assert!(inside.contains("rare_frame"), "{inside:?}");
        let missing: Vec<_> = inside
            .iter()
            .filter(|kind| !listed.contains(kind.as_str()))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn what_changes_a_record_counts_its_layout_up() {
        let header = header();
        let mut found = Vec::new();
        for (part, records, known) in RECORDS {
            let mut sum = crc32fast::Hasher::new();
            for name in records {
                let fields = record(&header, name).expect(name);
                fields.iter().for_each(|field| sum.update(field.as_bytes()));
            }
            let sum = sum.finalize();
            if sum != known {
                found.push(format!("{part:?}: {sum:#x}"));
            }
        }
        assert!(
            found.is_empty(),
            "{found:?}: count up LAYOUT and these parts, unless it is the spelling alone; then write down the sums"
        );
    }
}
