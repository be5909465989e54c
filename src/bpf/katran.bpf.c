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

/* The real of a flow that no table knows. Counts the flow, asks the ring, remembers the answer.
 * NULL with the verdict in `verdict`: the ring has none. */
static __always_inline struct real *new_flow(const struct run *run, struct packet *packet,
					     struct vip vip, __u32 vip_number, void *table,
					     struct encap *encap, bool v6, __u32 *number,
					     int *verdict)
{
	const bool by_port = vip.flags & VIP_DPORT_HASH;
	struct counters *counters = run->counters;
	const __u64 now = bpf_ktime_get_coarse_ns();
	const bool flood = under_flood(run, now);
	struct real_counters *misses;
	struct real *real;
	__be16 hash_port = packet->flow.source_port;

	if (packet->flow.protocol == IPPROTO_TCP) {
		if (packet->syn)
			counters->flow_miss_syn++;
		else
			counters->flow_miss_non_syn++;
	}
	if (by_port) {
		__builtin_memset(encap->source, 0, sizeof(encap->source));
		hash_port = packet->flow.destination_port;
	}
	note_step(run, STEP_RING);
	*number = vip.ring == RING_NONE ?
			  0 :
			  ring_real(vip.ring, hash_flow(encap->source, hash_port,
							packet->flow.destination_port, v6));
	if (!*number) {
		*verdict = drop(run, DROP_RING_EMPTY);
		return NULL;
	}
	real = bpf_map_lookup_elem(&reals, number);
	if (!real) {
		*verdict = drop(run, DROP_RING_UNKNOWN_REAL);
		return NULL;
	}
	if (!(vip.flags & VIP_LRU_BYPASS) && !packet->rst && !flood && !by_port)
		flow_remember(table, &packet->flow, *number, real->generation, now);
	counters->flow_misses++;
	if (live.watched_vip == vip_number + 1) {
		misses = bpf_map_lookup_elem(&real_counters, number);
		if (misses)
			misses->misses++;
	}
	return real;
}

/* Sections 5 to 9 of the walk: VIP, size, flow table, ring, out. */
static __always_inline int forward(const struct run *run, struct packet *packet, bool v6)
{
	struct encap encap = {
		.l3_length = packet->l3_length,
		.tos = packet->tos,
	};
	struct real *real = NULL;
	struct vip_counters *of_vip;
	struct real_counters *of_real;
	__u32 vip_number, number;
	struct vip *found;
	struct vip vip;
	int verdict;
	void *table;

	found = find_vip(packet, &vip_number);
	if (!found)
		return pass(run, STEP_NO_VIP);
	/* One load, so that flags and ring are of the same moment. */
	*(__u64 *)&vip = *(volatile __u64 *)found;
	if (run->explain)
		run->explanation->vip = vip_number + 1;

	if (run->length > max_frame) {
		note_step(run, STEP_TOO_BIG);
		if (!feature(FEATURE_ICMP_TOO_BIG))
			return drop(run, DROP_TOO_BIG);
		return v6 ? too_big_v6(run) : too_big_v4(run);
	}

	run->counters->flow_packets++;
	if (vip.flags & VIP_NO_SRC_PORT)
		packet->flow.source_port = 0;
	encap.source_port = packet->flow.source_port;
	__builtin_memcpy(encap.source, packet->flow.source, sizeof(encap.source));
	table = flow_table_of_this_cpu(run);
	if (!packet->syn && !(vip.flags & (VIP_LRU_BYPASS | VIP_NO_REALS))) {
		note_step(run, STEP_FLOW_TABLE);
		real = flow_find(table, &packet->flow, &number);
	}
	if (!real) {
		real = new_flow(run, packet, vip, vip_number, table, &encap, v6, &number,
				&verdict);
		if (!real)
			return verdict;
	}
	if (run->explain)
		run->explanation->real = number;

	of_vip = bpf_map_lookup_elem(&vip_counters, &vip_number);
	if (of_vip)
		count_frame(&of_vip->forwarded, packet->l3_length);
	of_real = bpf_map_lookup_elem(&real_counters, &number);
	if (of_real)
		count_frame(&of_real->forwarded, packet->l3_length);
	if (feature(FEATURE_LOCAL_DELIVERY) && (vip.flags & VIP_LOCAL) &&
	    (real->flags & REAL_LOCAL)) {
		run->counters->local++;
		return XDP_PASS;
	}
	return encap_and_send(run, &encap, real, v6);
}

static __always_inline int walk_ip(const struct run *run, struct cursor cursor,
				   struct ethhdr *eth, bool v6)
{
	struct packet packet = {};
	int verdict;

	verdict = v6 ? parse_v6(run, &cursor, eth, &packet) : parse_v4(run, &cursor, eth, &packet);
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
	struct ethhdr *eth;
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
	eth = cursor_take(&cursor, sizeof(*eth));
	if (!eth)
		return drop(&run, DROP_FRAME_TRUNCATED);
	run.length = frags ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;

	if (eth->h_proto == bpf_htons(ETH_P_IP))
		verdict = walk_ip(&run, cursor, eth, false);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		verdict = walk_ip(&run, cursor, eth, true);
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

SEC("xdp")
int katran_explain(struct xdp_md *ctx)
{
	return walk(ctx, true);
}
