/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Routes a packet by an id in it, and corrects the flow's entry: QUIC connection ids, the TCP
 * option, stable UDP routing. The program `katran_ids` calls it for special packets, and leaves the
 * answer in the CPU's record.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "extensions.h"
#include "flow_table.h"
#include "maps.h"
#include "parse.h"
#include "quic.h"
#include "route.h"
#include "send.h"
#include "server_ids.h"
#include "stable_udp.h"
#include "tcp_option.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

/* An id's answer: the real's number, and above it the step; negative: a reason to drop; 0: no
 * real. */
#define ROUTED(number, step) ((int)((number) | (step) << REAL_NUMBER_BITS))

/* Counts a flow that an id took from another real. */
static __always_inline void count_moved(const struct id_query *query)
{
	struct vip_counters *of_vip = counters_of_vip(query->vip_number);

	if (of_vip)
		of_vip->server_id_moved++;
}

/* Counts what the table said about a flow whose real a connection id had named. */
static __always_inline void count_correction(const struct run *run, const struct id_query *query,
					     enum correction correction)
{
	struct quic_counters *count = &run->cpu->counters.quic;

	switch (correction) {
	case FLOW_MATCHED:
		count->match++;
		break;
	case FLOW_CORRECTED:
		count->mismatch++;
		count_moved(query);
		break;
	default:
		count->not_found++;
	}
}

static __always_inline int by_connection_id(const struct run *run, const struct id_query *query,
					    struct cursor payload,
					    const struct flow_place *place, __u64 now)
{
	struct named named = quic_route(run, payload, query->vip_number, server_id_find);

	if (!named.real)
		return named.known ? -DROP_QUIC_REAL_GONE : 0;
	if (query->vip.flags & VIP_LRU_BYPASS)
		return ROUTED(named.number, STEP_CONNECTION_ID);
	count_correction(run, query, flow_correct(run, place, query, named.id, now));
	return ROUTED(named.number, STEP_CONNECTION_ID);
}

static __always_inline int by_stable_udp(const struct run *run, struct cursor payload)
{
	struct named named = stable_udp_route(run, payload);

	if (named.real)
		return ROUTED(named.number, STEP_STABLE_UDP);
	return named.known ? -DROP_STABLE_UDP_REAL_GONE : 0;
}

/* Whether all these bytes are in the packet, by its IP header. Bytes of the frame behind the packet
 * are padding. */
static __always_inline bool is_in_packet(const struct run *run, const struct id_query *query,
					 struct cursor from, __u32 bytes)
{
	const __u32 end = sizeof(struct ethhdr) + query->l3_length +
			  (query->flow.family == FAMILY_V6 ? sizeof(struct ipv6hdr) : 0);
	__u64 place = from.position - (void *)(long)run->ctx->data;

	/* Otherwise the compiler adds to half a pointer first, which the verifier refuses. */
	barrier_var(place);
	return place + bytes <= end;
}

static __always_inline int by_tcp_option(const struct run *run, const struct id_query *query,
					 struct cursor options, const struct flow_place *place,
					 __u64 now)
{
	struct tcp_server_id_counters *count = &run->cpu->counters.tcp_server_id;
	struct named named = {};
	__u32 id = 0;

	if (query->tcp_flags & TCP_SYN) {
		struct vip_counters *of_vip = counters_of_vip(query->vip_number);

		count->syn++;
		if (of_vip)
			of_vip->server_id_new++;
		return 0;
	}
	if (is_in_packet(run, query, options, query->tcp_options))
		id = tcp_option_id(run->ctx, options, query->tcp_options);
	if (id)
		named = server_id_find(id);
	if (!named.real) {
		count->no_id++;
		return 0;
	}
	count->routed++;
	if (!(query->vip.flags & VIP_LRU_BYPASS) &&
	    flow_correct(run, place, query, named.id, now) == FLOW_CORRECTED) {
		count->mismatch++;
		count_moved(query);
	}
	return ROUTED(named.number, STEP_TCP_SERVER_ID);
}

/* Behind the transport header; for TCP, behind its first 20 bytes. */
static __always_inline struct cursor payload_of(const struct run *run, const struct flow_key *flow)
{
	struct cursor payload = cursor_of(run->ctx);

	cursor_take(&payload, sizeof(struct ethhdr));
	if (flow->family == FAMILY_V6) {
		const struct ipv6hdr *ip = cursor_take(&payload, sizeof(*ip));

		if (ip && has_extensions(ip))
			payload.position += extension_bytes(skip_extensions(run->ctx, sizeof(struct ethhdr)));
	} else {
		cursor_take(&payload, sizeof(struct iphdr));
	}
	if (flow->protocol == IPPROTO_TCP)
		cursor_take(&payload, sizeof(struct tcphdr));
	else
		cursor_take(&payload, sizeof(struct udphdr));
	return payload;
}

/* Steps 1 to 3 for the packet that the CPU's record describes. ICMP errors carry no id. */
static __always_inline int route_by_id(const struct run *run, const struct id_query *query,
				       const struct flow_place *place, __u64 now)
{
	const struct cursor payload = payload_of(run, &query->flow);
	int routed = 0;

	if (query->vip.flags & VIP_QUIC) {
		if (query->icmp)
			quic_count_icmp(run, query->icmp_ignored_by_quic);
		else
			routed = by_connection_id(run, query, payload, place, now);
	}
	if (query->icmp || routed < 0)
		return routed;
	if (feature(FEATURE_UDP_STABLE_ROUTING) && (query->vip.flags & VIP_UDP_STABLE_ROUTING) &&
	    query->flow.protocol == IPPROTO_UDP) {
		const int stable = by_stable_udp(run, payload);

		if (stable)
			routed = stable;
	}
	if (feature(FEATURE_TCP_SERVER_ID) && query->flow.protocol == IPPROTO_TCP)
		routed = by_tcp_option(run, query, payload, place, now);
	return routed;
}

/* Looks for an id in the packet that the CPU's record describes. */
static __always_inline int look_for_id(const struct run *run, const struct id_query *query)
{
	/* Spelt out, because the compiler must see a constant family. */
	const struct flow_place place =
		query->flow.family == FAMILY_V6 ? flow_locate(run, &query->flow, FAMILY_V6) :
						  flow_locate(run, &query->flow, FAMILY_V4);

	/* Fetches the set's memory while the search for the id runs. */
	if (flow_table_kind == FLOW_TABLE_SETS && place.set)
		(void)*(volatile __u64 *)place.set;
	return route_by_id(run, query, &place, ticks_now());
}

/* The same, with the answer left in `query`. Where tables track only changed flows no packet has an
 * id, and its slot decides whether to ask a table. */
static __always_inline void find_id(const struct run *run, struct id_query *query)
{
	const struct packet packet = { .flow.protocol = query->flow.protocol };

	if (!tracks_changes(run, &packet, query->vip.flags))
		query->routed = look_for_id(run, query);
}

/* Sends the packet to the real that its id has named. */
static __always_inline int send_by_id(const struct run *run, const struct id_query *query,
				      enum family family)
{
	struct packet packet = packet_of(query);
	struct choice choice = choice_of(query);
	const struct real *real;

	choice.number = query->routed & REAL_NUMBER_MASK;
	real = real_at(choice.number);
	if (!real)
		return drop(run, DROP_RING_UNKNOWN_REAL);
	run->cpu->counters.flow_packets++;
	return send_out(run, &packet, &choice, real, family);
}
