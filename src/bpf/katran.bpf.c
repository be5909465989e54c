// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The balancer: one walk from an arriving frame to its verdict. It is compiled twice, as the
 * program that is attached and as its explaining twin, which notes in a map what it decided and
 * is only ever run on frames that the control side hands to it.
 */
#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "encap.h"
#include "flow_table.h"
#include "headers.h"
#include "icmp.h"
#include "lookup.h"
#include "maps.h"
#include "parse.h"
#include "shared.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* How a packet's real is chosen. */
struct choice {
	struct vip vip;
	__u32 vip_number;
	__u32 number; /* of the real */
	struct flow_place place;
};

/* Counts the miss for the real, if the flow's VIP is the watched one. */
static __always_inline void count_watched(const struct choice *choice)
{
	struct real_counters *of_real;

	if (live.watched_vip != choice->vip_number + 1)
		return;
	of_real = bpf_map_lookup_elem(&real_counters, &choice->number);
	if (of_real)
		of_real->misses++;
}

/* The real of a flow that no table knows. Counts the flow, asks the ring, remembers the answer.
 * NULL with the reason in `reason`: the ring has none. */
static __always_inline struct real *new_flow(const struct run *run, struct packet *packet,
					     struct choice *choice, bool v6, __u64 now,
					     enum drop_reason *reason)
{
	const __u32 flags = choice->vip.flags;
	const bool by_port = flags & VIP_DPORT_HASH;
	const bool flood = under_flood(run, now);
	__be16 hash_port = packet->flow.source_port;
	struct real *real;
	__u32 id;

	if (packet->flow.protocol == IPPROTO_TCP) {
		if (packet->tcp_flags & TCP_SYN)
			run->counters->flow_miss_syn++;
		else
			run->counters->flow_miss_non_syn++;
	}
	if (by_port) {
		/* Such a flow is not remembered, so nothing else needs to know whose it is. */
		__builtin_memset(packet->flow.source, 0, sizeof(packet->flow.source));
		hash_port = packet->flow.destination_port;
	}
	note_step(run, STEP_RING);
	*reason = DROP_RING_EMPTY;
	if (choice->vip.ring == RING_NONE)
		return NULL;
	choice->number = ring_real(choice->vip.ring,
				   hash_flow((const __u32 *)packet->flow.source, hash_port,
					     packet->flow.destination_port, v6));
	if (!choice->number)
		return NULL;
	*reason = DROP_RING_UNKNOWN_REAL;
	real = real_at(choice->number);
	if (!real)
		return NULL;
	/* 0: the real was taken back since the ring was read. Remembered, it would match for ever. */
	id = *(volatile __u32 *)&real->id;
	if (id && !(flags & VIP_LRU_BYPASS) && !(packet->tcp_flags & TCP_RST) && !flood && !by_port)
		flow_remember(run, &choice->place, &packet->flow, id, now);
	run->counters->flow_misses++;
	count_watched(choice);
	return real;
}

/* Sections 5 to 9 of the walk: VIP, size, flow table, ring, out. */
static __always_inline int forward(const struct run *run, struct packet *packet, bool v6)
{
	struct real *real = NULL;
	struct choice choice = {};
	struct vip_counters *of_vip;
	struct real_counters *of_real;
	enum drop_reason reason;
	__u32 flags;
	__u64 now;

	if (!find_vip(packet, v6, &choice.vip_number, &choice.vip))
		return pass(run, STEP_NO_VIP);
	flags = choice.vip.flags;
	if (run->explain)
		run->explanation->vip = choice.vip_number + 1;

	if (run->length > max_frame) {
		note_step(run, STEP_TOO_BIG);
		if (!feature(FEATURE_ICMP_TOO_BIG))
			return drop(run, DROP_TOO_BIG);
		return v6 ? too_big_v6(run) : too_big_v4(run);
	}

	run->counters->flow_packets++;
	if (flags & VIP_NO_SRC_PORT)
		packet->flow.source_port = 0;
	now = ticks_now();
	choice.place = flow_locate(run, &packet->flow, v6);
	if (!(packet->tcp_flags & TCP_SYN) && !(flags & (VIP_LRU_BYPASS | VIP_NO_REALS))) {
		note_step(run, STEP_FLOW_TABLE);
		real = flow_find(&choice.place, &packet->flow, now, &choice.number);
	}
	if (!real) {
		real = new_flow(run, packet, &choice, v6, now, &reason);
		if (!real)
			return drop(run, reason);
	}
	if (run->explain)
		run->explanation->real = choice.number;

	of_vip = bpf_map_lookup_elem(&vip_counters, &choice.vip_number);
	if (of_vip)
		count_frame(&of_vip->forwarded, packet->l3_length);
	of_real = bpf_map_lookup_elem(&real_counters, &choice.number);
	if (of_real)
		count_frame(&of_real->forwarded, packet->l3_length);
	if (feature(FEATURE_LOCAL_DELIVERY) && (flags & VIP_LOCAL) && (real->flags & REAL_LOCAL)) {
		run->counters->local++;
		return XDP_PASS;
	}
	return encap_and_send(run, packet, real, v6);
}

static __always_inline int walk_ip(const struct run *run, struct cursor cursor, bool v6)
{
	struct packet packet = {};
	int verdict;

	verdict = v6 ? parse_v6(run, &cursor, &packet) : parse_v4(run, &cursor, &packet);
	if (verdict == CONTINUE)
		verdict = parse_transport(run, &cursor, &packet);
	return verdict == CONTINUE ? forward(run, &packet, v6) : verdict;
}

static __always_inline int walk(struct xdp_md *ctx, const bool explain)
{
	const __u32 zero = 0;
	struct run run = {
		.ctx = ctx,
		.counters = bpf_map_lookup_elem(&counters, &zero),
		.explain = explain,
	};
	struct cursor cursor = cursor_of(ctx);
	__be16 type;
	int verdict;

	/* Element 0 of an array of one is always there; the verifier wants to see it. */
	if (!run.counters)
		return XDP_ABORTED;
	if (explain) {
		run.explanation = bpf_map_lookup_elem(&explanations, &zero);
		if (!run.explanation)
			return XDP_ABORTED;
		*run.explanation = (struct explanation){};
	}
	run.eth = cursor_take(&cursor, sizeof(*run.eth));
	if (!run.eth)
		return drop(&run, DROP_FRAME_TRUNCATED);
	run.length = frags ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;

	type = ether_type(run.eth);
	if (type == bpf_htons(ETH_P_IP))
		verdict = walk_ip(&run, cursor, false);
	else if (type == bpf_htons(ETH_P_IPV6))
		verdict = walk_ip(&run, cursor, true);
	else
		verdict = pass(&run, STEP_NOT_IP);

	if (verdict == XDP_TX)
		count_frame(&run.counters->tx, run.length);
	else if (verdict == XDP_PASS)
		count_frame(&run.counters->pass, run.length);
	else
		count_frame(&run.counters->drop, run.length);
	return verdict;
}

SEC("xdp")
int katran(struct xdp_md *ctx)
{
	return walk(ctx, false);
}

/* Tells the control side the time that flows are stamped with, as its return value. */
SEC("xdp")
int ticks(struct xdp_md *ctx __attribute__((unused)))
{
	return ticks_now();
}

SEC("xdp")
int katran_explain(struct xdp_md *ctx)
{
	return walk(ctx, true);
}
