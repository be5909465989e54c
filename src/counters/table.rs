//! The table of counters. A row names the field of the program's record (in `bpf/shared.h`), how to
//! combine the values of all CPUs, the field of the snapshot, and its documentation.
//!
//! A block is one metric: kind, name (the exporter adds `katran_`, and `_total` for counters),
//! unit, and for several series their label and a help text. A metric with one series uses the
//! documentation of its field. `make docs` writes this table to `docs/metrics.md`.

use super::Count;
use super::DropReason;
use super::metric::Family;
use super::metric::MetricKind;
use super::metric::Series;
use super::metric::counters;
use crate::skel::healthcheck::types as probes;
use crate::skel::katran::types;
use crate::skel::katran::types::event_kind;

counters! {
    /// What the flow table did.
    FlowTableCounters from types::counters {
        Counter flow_table_packets, "packets" {
            /// Packets to VIPs that looked into the flow table: all except those in settled slots.
            packets = sum(flow_packets);
        }
        Counter flow_table_misses, "packets" {
            /// Packets of new flows, whose real the ring chose.
            misses = sum(flow_misses);
        }
        Counter flow_table_tcp_misses, "packets" by kind:
            "TCP packets of new flows, by whether they open a connection."
        {
            /// TCP packets of new flows that open a connection.
            miss_syn = sum(flow_miss_syn) as "syn";
            /// TCP packets of new flows in the middle of a connection.
            miss_non_syn = sum(flow_miss_non_syn) as "non_syn";
        }
        Counter flow_table_fallback_packets, "packets" {
            /// Packets on a CPU without a flow table, which used the small shared one.
            fallback = sum(flow_fallback);
        }
        Counter slot_packets, "packets" by choice:
            "Packets to VIPs that remember only changed flows, by what chose the real: the ring in a settled slot, \
             base or entry in an unsettled one."
        {
            /// Packets in settled slots, which followed the ring without asking the flow table.
            settled = sum(settled) as "settled";
            /// Packets in unsettled slots without an entry, which followed the slot's base.
            by_base = sum(by_base) as "base";
            /// Packets in unsettled slots that followed an entry.
            by_entry = sum(by_entry) as "entry";
        }
    }

    /// ICMP messages, sent and received.
    IcmpCounters from types::counters {
        Counter icmp_too_big_sent, "messages" by family:
            "Too-big messages sent for frames above `max_frame`."
        {
            /// Fragmentation-needed messages sent for IPv4 frames above `max_frame`.
            too_big_v4 = sum(too_big_v4) as "ipv4";
            /// Packet-too-big messages sent for IPv6 frames above `max_frame`.
            too_big_v6 = sum(too_big_v6) as "ipv6";
        }
        Counter icmp_too_big_received, "messages" by family:
            "Too-big messages received, for any destination."
        {
            /// Fragmentation-needed messages received, for any destination.
            ptb_v4 = sum(ptb_v4) as "ipv4";
            /// Packet-too-big messages received, for any destination.
            ptb_v6 = sum(ptb_v6) as "ipv6";
        }
        Counter icmp_too_big_small_received, "messages" by family:
            "Too-big messages received that announce an MTU below 1280 bytes."
        {
            /// Fragmentation-needed messages received that announce an MTU below 1280 bytes.
            ptb_v4_small = sum(ptb_v4_small) as "ipv4";
            /// Packet-too-big messages received that announce an MTU below 1280 bytes.
            ptb_v6_small = sum(ptb_v6_small) as "ipv6";
        }
        Counter icmp_echo_replies, "messages" by family:
            "Echo requests that the balancer answered."
        {
            /// Echo requests over IPv4 answered.
            echo_v4 = sum(echo_v4) as "ipv4";
            /// Echo requests over IPv6 answered.
            echo_v6 = sum(echo_v6) as "ipv6";
        }
    }

    /// Packets that the ring had no real for.
    RingDrops from types::counters {
        Counter ring_dropped_packets, "packets" by reason:
            "Packets without a real in the ring; also among the dropped frames."
        {
            /// The slot names a real out of range: something else wrote to the map.
            unknown_real = sum(drops[DropReason::RingUnknownReal.number()]) as "unknown_real";
            /// The VIP has no real that takes new flows.
            empty = sum(drops[DropReason::RingEmpty.number()]) as "empty";
        }
    }

    /// Packets without headroom for outer headers.
    EncapFailures from types::counters {
        Counter encap_failed_packets, "packets" by family:
            "Packets without headroom for outer headers; also among the dropped frames."
        {
            /// For an IPv4 real.
            v4 = sum(drops[DropReason::EncapV4.number()]) as "ipv4";
            /// For an IPv6 real.
            v6 = sum(drops[DropReason::EncapV6.number()]) as "ipv6";
        }
    }

    /// New flows at VIPs with [`VipFlags::SRC_ROUTING`](crate::VipFlags::SRC_ROUTING).
    SourceRoutingCounters from types::counters {
        Counter source_routing_flows, "flows" by result:
            "New flows of VIPs with source routing, by whether a prefix covers the client."
        {
            /// No prefix covers the client: they followed the ring.
            unmatched = sum(source_unmatched) as "unmatched";
            /// The client's prefix chose the real.
            matched = sum(source_matched) as "matched";
        }
    }

    /// Packets that looked into the global flow tables.
    GlobalFlowCounters from types::counters {
        Counter global_flow_no_table_packets, "packets" {
            /// Packets on a CPU without a global flow table, which used the shared one.
            no_table = sum(global_no_table);
        }
        Counter global_flow_hit_packets, "packets" {
            /// Packets that a global flow table sent to a real.
            hits = sum(global_hits);
        }
    }

    /// What the program did with events; see [`Katran::events`](crate::Katran::events).
    EventCounters from types::counters {
        Counter events, "events" by event: "Events sent to a monitor, by kind." {
            /// Sent: TCP packets without SYN of flows that no table knew.
            tcp_non_syn_miss = sum(events[event(event_kind::EVENT_TCP_NON_SYN_MISS)]) as "tcp_non_syn_miss";
            /// Sent: frames above `max_frame`.
            packet_too_big = sum(events[event(event_kind::EVENT_TOO_BIG)]) as "packet_too_big";
            /// Sent: QUIC packets whose real is being removed.
            quic_real_gone = sum(events[event(event_kind::EVENT_QUIC_REAL_GONE)]) as "quic_real_gone";
        }
        Counter events_left_out, "events" by reason:
            "Events not sent, because of the rate limit or a full buffer."
        {
            /// Left out by the rate limit.
            limited = sum(events_limited) as "limited";
            /// Left out because the buffer was full: the monitor did not keep up.
            lost = sum(events_lost) as "lost";
        }
    }

    /// Packets in tunnels that end at the balancer.
    #[doc(alias = "decap_stats")]
    InlineDecapCounters from types::counters {
        Counter decap_remote_packets, "packets" {
            /// Tunnelled packets to an address where the balancer ends tunnels.
            remote_encap = sum(decap.remote);
        }
        Counter decap_packets, "packets" by family:
            "Packets unwrapped, by family of the outer header."
        {
            /// Outer IPv4.
            v4 = sum(decap.v4) as "ipv4";
            /// Outer IPv6.
            v6 = sum(decap.v6) as "ipv6";
        }
        Counter decap_balanced_packets, "packets" by family:
            "Unwrapped packets that were balanced, by family of the inner header."
        {
            /// Inner IPv4 packets that were balanced.
            xpop_v4 = sum(decap.walked_v4) as "ipv4";
            /// Inner IPv6 packets that were balanced.
            xpop_v6 = sum(decap.walked_v6) as "ipv6";
        }
        Counter decap_egress_packets, "packets" by family:
            "Unwrapped packets that were sent back out, by family of the inner header."
        {
            /// Inner IPv4 packets that were sent back out.
            egress_v4 = sum(decap.egress_v4) as "ipv4";
            /// Inner IPv6 packets that were sent back out.
            egress_v6 = sum(decap.egress_v6) as "ipv6";
        }
    }

    /// Routing by QUIC connection ids.
    #[doc(alias = "lb_quic_packets_stats")]
    QuicCounters from types::counters {
        Counter quic_ch_routed_packets, "packets" {
            /// QUIC packets without a known server id, routed by flow table and ring.
            ch_routed = sum(quic.no_id);
        }
        Counter quic_cid_initial_packets, "packets" {
            /// QUIC initial and 0-RTT packets, whose ids the client chose, routed by flow table and
            /// ring.
            cid_initial = sum(quic.initial);
        }
        Counter quic_cid_invalid_server_id_packets, "packets" {
            /// QUIC packets with an unknown server id.
            cid_invalid_server_id = sum(quic.unknown_id);
        }
        Gauge quic_cid_invalid_server_id_sample, "a server id" {
            /// One of the unknown server ids; 0: none yet.
            cid_invalid_server_id_sample = any(quic.unknown_id_sample);
        }
        Counter quic_cid_routed_packets, "packets" {
            /// QUIC packets routed by server id.
            cid_routed = sum(quic.routed);
        }
        Counter quic_cid_unknown_real_dropped_packets, "packets" {
            /// QUIC packets dropped because the real of their server id is being removed.
            cid_unknown_real_dropped = sum(quic.real_gone);
        }
        Counter quic_cid_version_packets, "packets" by version:
            "QUIC packets by the version of their connection id."
        {
            /// Packets with an id of version 0, which holds no server id.
            cid_v0 = sum(quic.versions[0]) as "0";
            /// Packets with an id of version 1 (16 bits of server id).
            cid_v1 = sum(quic.versions[1]) as "1";
            /// Packets with an id of version 2 (24 bits).
            cid_v2 = sum(quic.versions[2]) as "2";
            /// Packets with an id of version 3 (32 bits).
            cid_v3 = sum(quic.versions[3]) as "3";
        }
        Counter quic_dst_match_in_lru_packets, "packets" {
            /// QUIC packets routed by id, to the same real as by the flow table.
            dst_match_in_lru = sum(quic.r#match);
        }
        Counter quic_dst_mismatch_in_lru_packets, "packets" {
            /// QUIC packets routed by id, which corrected the flow's entry.
            dst_mismatch_in_lru = sum(quic.mismatch);
        }
        Counter quic_dst_not_found_in_lru_packets, "packets" {
            /// QUIC packets routed by id, whose flow had no entry.
            dst_not_found_in_lru = sum(quic.not_found);
        }
        Counter quic_icmp_packets, "packets" {
            /// ICMP errors about flows of QUIC VIPs.
            icmp = sum(quic.icmp);
        }
        Counter quic_icmp_ignored_packets, "packets" {
            /// ICMP errors that QUIC servers ignore: port or host unreachable.
            icmp_ignored = sum(quic.icmp_ignored);
        }
    }

    /// TCP routing by the server id in an option.
    #[doc(alias = "tpr_packets_stats")]
    TcpServerIdCounters from types::counters {
        Counter tcp_server_id_ch_routed_packets, "packets" {
            /// TCP packets without a known server id, routed by flow table and ring.
            ch_routed = sum(tcp_server_id.no_id);
        }
        Counter tcp_server_id_dst_mismatch_in_lru_packets, "packets" {
            /// TCP packets routed by server id, which corrected the flow's entry.
            dst_mismatch_in_lru = sum(tcp_server_id.mismatch);
        }
        Counter tcp_server_id_sid_routed_packets, "packets" {
            /// TCP packets routed by server id.
            sid_routed = sum(tcp_server_id.routed);
        }
        Counter tcp_server_id_syn_packets, "packets" {
            /// SYNs, which are never routed by server id.
            syn = sum(tcp_server_id.syn);
        }
    }

    /// Stable routing of UDP.
    StableUdpCounters from types::counters {
        Counter stable_udp_ch_routed_packets, "packets" {
            /// Stable UDP packets without a known server id, routed by flow table and ring.
            ch_routed = sum(stable_udp.no_id);
        }
        Counter stable_udp_cid_routed_packets, "packets" {
            /// Stable UDP packets routed by server id.
            cid_routed = sum(stable_udp.routed);
        }
        Counter stable_udp_cid_invalid_server_id_packets, "packets" {
            /// Stable UDP packets with an unknown server id.
            cid_invalid_server_id = sum(stable_udp.unknown_id);
        }
        Counter stable_udp_cid_unknown_real_dropped_packets, "packets" {
            /// Stable UDP packets dropped because the real of their server id is being removed.
            cid_unknown_real_dropped = sum(stable_udp.real_gone);
        }
        Counter stable_udp_invalid_type_packets, "packets" {
            /// Packets to stable UDP VIPs with an unknown first byte, or too short.
            invalid_packet_type = sum(stable_udp.invalid_type);
        }
    }

    /// UDP flows that left a real that is down.
    UdpFlowMigrationCounters from types::counters {
        Counter udp_flow_migration_invalidated_packets, "packets" {
            /// Datagrams of `udp-flow-migration` VIPs that left a real that is down.
            invalidated = sum(migrated);
        }
    }

    /// What [`orphan_limit`](crate::Builder::orphan_limit) did.
    OrphanCounters from types::counters {
        Counter orphan_passed_packets, "packets" {
            /// Frames passed because the owner gave no sign of life within `orphan_limit`; `pass`
            /// counts them too.
            passed = sum(orphaned);
        }
    }

    /// What the probe program did.
    #[doc(alias = "HealthCheckProgStats")]
    HealthcheckCounters from probes::probe_totals {
        Counter healthcheck_packets, "packets" by result:
            "Packets that the probe program saw, by outcome."
        {
            /// Probes wrapped and sent.
            processed = sum(processed) as "processed";
            /// Probes dropped for any reason.
            dropped = sum(dropped) as "dropped";
            /// Packets of the interface that are not probes.
            skipped = sum(skipped) as "skipped";
        }
        Counter healthcheck_too_big_packets, "packets" {
            /// Probes dropped because they were longer than `healthcheck_max_packet`.
            too_big = sum(too_big);
        }
        Counter healthcheck_matched_packets, "packets" by by:
            "Probes recognised without a mark, by an address or their connection."
        {
            /// Recognised by their destination.
            dst_matched = sum(dst_matched) as "destination";
            /// Recognised by their source.
            src_matched = sum(src_matched) as "source";
            /// Packets of TCP connections whose socket had a mark: the kernel sends them after the
            /// socket is gone.
            recalled = sum(recalled) as "connection";
        }
    }

    /// One VIP's traffic.
    VipCounters from types::vip_counters {
        /// Packets sent to a real, or delivered to this host.
        count forwarded {
            packets: vip_packets,
                "Packets to the VIP, forwarded or delivered to this host.";
            bytes: vip_bytes,
                "Bytes of packets to the VIP: total length of IPv4, payload length of IPv6.";
        }
        Counter vip_server_id_new_packets, "packets" {
            /// Packets that open connections whose later packets may carry a server id.
            server_id_new = sum(server_id_new);
        }
        Counter vip_server_id_moved_flows, "flows" {
            /// Flows that a server id moved to a real other than the one in their entry.
            server_id_moved = sum(server_id_moved);
        }
        Counter vip_decap_packets, "packets" {
            /// GUE packets for the VIP, unwrapped for this host's network stack.
            decap = sum(decap);
        }
    }

    /// Counters of one VIP that [`count_syns`](crate::Builder::count_syns) or
    /// [`max_vip_reals`](crate::Builder::max_vip_reals) turns on.
    VipDetails from types::vip_details {
        Counter vip_syn_packets, "packets" {
            /// TCP packets with SYN to the VIP: each opens a connection or retries.
            syns = sum(syns);
        }
        Counter vip_unpaired_packets, "packets" {
            /// Packets to the VIP not counted by real, because all `max_vip_reals` places were
            /// taken; 0 without that setting.
            unpaired = sum(unpaired);
        }
    }

    /// One VIP's traffic to one real.
    VipRealCounters from types::vip_real_counters {
        /// Packets of the VIP that were sent to the real, or delivered to this host.
        count forwarded {
            packets: vip_real_packets,
                "Packets of the VIP to the real; with `max_vip_reals`.";
            bytes: vip_real_bytes,
                "Bytes of the VIP's packets to the real, counted as for VIPs.";
        }
        Counter vip_real_syn_packets, "packets" {
            /// TCP packets with SYN of the VIP to the real; with `max_vip_reals`.
            syns = sum(syns);
        }
    }

    /// One real's traffic, of all VIPs.
    RealCounters from types::real_counters {
        /// Packets sent to the real, or delivered to this host.
        count forwarded {
            packets: real_packets,
                "Packets of all VIPs to the real.";
            bytes: real_bytes,
                "Bytes of packets to the real, counted as for VIPs.";
        }
        Counter real_watched_misses, "packets":
            "New flows of the watched VIP to the real; 0 while none is watched."
        {
            /// New flows of the watched VIP that went to this real since
            /// [`StatsMut::watch_misses`](crate::stats::StatsMut::watch_misses); 0 while none is
            /// watched.
            misses = sum(misses);
        }
    }
}

const fn event(kind: event_kind) -> usize {
    kind.0 as usize
}
