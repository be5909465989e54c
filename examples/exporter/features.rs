//! The counters of features that many balancers leave off: ids in packets, source routes, global flow
//! tables, tunnels that end here. They are served all the same, as 0, so that dashboards find them.

use std::collections::BTreeMap;
use std::fmt;

use katran::EventCounters;
use katran::GlobalFlowCounters;
use katran::HealthcheckCounters;
use katran::InlineDecapCounters;
use katran::QuicCounters;
use katran::SourceRoutingCounters;
use katran::StableUdpCounters;
use katran::TcpServerIdCounters;
use katran::UdpFlowMigrationCounters;

use crate::page::Page;
use crate::page::families;

pub(crate) fn source_routing(page: &mut Page<'_>, routing: &SourceRoutingCounters) -> fmt::Result {
    page.counters(
        "source_routing_flows",
        "New flows of VIPs with source routing, by whether a prefix covers the client.",
        "result",
        [
            ("matched", routing.matched),
            ("unmatched", routing.unmatched),
        ],
    )
}

pub(crate) fn events(page: &mut Page<'_>, events: &EventCounters) -> fmt::Result {
    page.counters(
        "events",
        "Events handed over to a monitor, by kind.",
        "event",
        [
            ("tcp_non_syn_miss", events.tcp_non_syn_miss),
            ("packet_too_big", events.packet_too_big),
            ("quic_real_gone", events.quic_real_gone),
        ],
    )?;
    page.counters(
        "events_left_out",
        "Events that no monitor was told of, by the rate limit or for want of room in the buffer.",
        "reason",
        [("limited", events.limited), ("lost", events.lost)],
    )
}

pub(crate) fn healthcheck(
    page: &mut Page<'_>,
    counters: &HealthcheckCounters,
    probes: &BTreeMap<String, u64>,
) -> fmt::Result {
    page.counters(
        "healthcheck_packets",
        "Packets that passed the path of health checks, by what became of them.",
        "result",
        [
            ("processed", counters.processed),
            ("dropped", counters.dropped),
            ("skipped", counters.skipped),
        ],
    )?;
    page.counter(
        "healthcheck_too_big_packets",
        "Probes that were dropped because they were too long.",
        counters.too_big,
    )?;
    page.counters(
        "healthcheck_matched_packets",
        "Probes that were told by an address of theirs and not by a mark.",
        "by",
        [
            ("destination", counters.dst_matched),
            ("source", counters.src_matched),
        ],
    )?;
    let probes = probes.iter().map(|(vip, count)| (vip.as_str(), *count));
    page.counters(
        "healthcheck_probe_packets",
        "Probes that were sent for each registered address, port and protocol.",
        "vip",
        probes,
    )
}

pub(crate) fn global_flows(page: &mut Page<'_>, global: &GlobalFlowCounters) -> fmt::Result {
    page.counter(
        "global_flow_no_table_packets",
        "Packets on a CPU without a global flow table of its own, which asked the shared one.",
        global.no_table,
    )?;
    page.counter(
        "global_flow_hit_packets",
        "Packets that a global flow table sent to a real.",
        global.hits,
    )
}

pub(crate) fn decap(page: &mut Page<'_>, decap: &InlineDecapCounters) -> fmt::Result {
    page.counter(
        "decap_remote_packets",
        "Tunnelled packets to an address where the balancer ends tunnels.",
        decap.remote_encap,
    )?;
    page.counters(
        "decap_packets",
        "Packets unwrapped, by family of the outer header.",
        "family",
        families(decap.v4, decap.v6),
    )?;
    page.counters(
        "decap_balanced_packets",
        "Unwrapped packets that were then balanced, by family of the inner header.",
        "family",
        families(decap.xpop_v4, decap.xpop_v6),
    )?;
    page.counters(
        "decap_egress_packets",
        "Unwrapped packets that were sent back out, by family of the inner header.",
        "family",
        families(decap.egress_v4, decap.egress_v6),
    )
}

pub(crate) fn quic(page: &mut Page<'_>, quic: &QuicCounters) -> fmt::Result {
    for (name, help, value) in [
        (
            "quic_ch_routed_packets",
            "QUIC packets without a known server id, which went by flow table and ring.",
            quic.ch_routed,
        ),
        (
            "quic_cid_initial_packets",
            "QUIC packets whose ids are the client's, which went by flow table and ring.",
            quic.cid_initial,
        ),
        (
            "quic_cid_routed_packets",
            "QUIC packets that went by their server id.",
            quic.cid_routed,
        ),
        (
            "quic_cid_invalid_server_id_packets",
            "QUIC packets with a server id that nobody has.",
            quic.cid_invalid_server_id,
        ),
        (
            "quic_cid_unknown_real_dropped_packets",
            "QUIC packets dropped because the real of their server id was just going.",
            quic.cid_unknown_real_dropped,
        ),
        (
            "quic_dst_match_in_lru_packets",
            "QUIC packets that went by their id to where the flow table would have sent them.",
            quic.dst_match_in_lru,
        ),
        (
            "quic_dst_mismatch_in_lru_packets",
            "QUIC packets that went by their id, and the flow table's entry was corrected.",
            quic.dst_mismatch_in_lru,
        ),
        (
            "quic_dst_not_found_in_lru_packets",
            "QUIC packets that went by their id and were new to the flow table.",
            quic.dst_not_found_in_lru,
        ),
        (
            "quic_icmp_packets",
            "ICMP errors about flows of QUIC VIPs.",
            quic.icmp,
        ),
        (
            "quic_icmp_ignored_packets",
            "ICMP errors about flows of QUIC VIPs that a QUIC server takes no notice of.",
            quic.icmp_ignored,
        ),
    ] {
        page.counter(name, help, value)?;
    }
    page.counters(
        "quic_cid_version_packets",
        "QUIC packets by the version of their connection id.",
        "version",
        [quic.cid_v0, quic.cid_v1, quic.cid_v2, quic.cid_v3]
            .into_iter()
            .enumerate(),
    )?;
    page.gauge(
        "quic_cid_invalid_server_id_sample",
        "One of the server ids that nobody has; 0: none yet.",
        quic.cid_invalid_server_id_sample,
    )
}

pub(crate) fn tcp_server_id(page: &mut Page<'_>, ids: &TcpServerIdCounters) -> fmt::Result {
    page.counter(
        "tcp_server_id_ch_routed_packets",
        "TCP packets without a known server id, which went by flow table and ring.",
        ids.ch_routed,
    )?;
    page.counter(
        "tcp_server_id_sid_routed_packets",
        "TCP packets that went by their server id.",
        ids.sid_routed,
    )?;
    page.counter(
        "tcp_server_id_dst_mismatch_in_lru_packets",
        "TCP packets that went by their server id, and the flow table's entry was corrected.",
        ids.dst_mismatch_in_lru,
    )?;
    page.counter(
        "tcp_server_id_syn_packets",
        "SYNs, which are never routed by server id.",
        ids.syn,
    )
}

pub(crate) fn stable_udp(page: &mut Page<'_>, stable: &StableUdpCounters) -> fmt::Result {
    page.counter(
        "stable_udp_ch_routed_packets",
        "Packets of stable UDP without a known server id, which went by flow table and ring.",
        stable.ch_routed,
    )?;
    page.counter(
        "stable_udp_cid_routed_packets",
        "Packets of stable UDP that went by their server id.",
        stable.cid_routed,
    )?;
    page.counter(
        "stable_udp_cid_invalid_server_id_packets",
        "Packets of stable UDP with a server id that nobody has.",
        stable.cid_invalid_server_id,
    )?;
    page.counter(
        "stable_udp_cid_unknown_real_dropped_packets",
        "Packets of stable UDP dropped because the real of their server id was just going.",
        stable.cid_unknown_real_dropped,
    )?;
    page.counter(
        "stable_udp_invalid_type_packets",
        "Packets to stable UDP VIPs whose first byte is another one, or that are too short.",
        stable.invalid_packet_type,
    )
}

pub(crate) fn migration(page: &mut Page<'_>, migration: &UdpFlowMigrationCounters) -> fmt::Result {
    page.counter(
        "udp_flow_migration_invalidated_packets",
        "Packets whose flow was remembered on a real that is down.",
        migration.invalidated,
    )
}
