// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The backend's decapsulator: strips IP in IP on arrival (all four mixes of families) and hands
 * the inner packet to the stack, where the VIP sits on the loopback interface. What is not
 * tunnelled passes untouched, fragments and options included.
 */
#include "csum.h"
#include "cursor.h"
#include "shared.h"

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IPV4_FRAGMENT_MASK 0x3fff

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* On: only tunnels that end at `destination_v4` or `destination_v6` are stripped. */
const volatile __u8 strict = 0;
const volatile __u8 destination_v4[4] = {};
const volatile __u8 destination_v6[16] = {};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct decap_counters);
} decap_counters SEC(".maps");

static __always_inline bool same(const volatile __u8 *mine, const void *address, int bytes)
{
	const __u8 *theirs = address;
	__u8 difference = 0;

#pragma unroll
	for (int i = 0; i < bytes; i++)
		difference |= mine[i] ^ theirs[i];
	return !difference;
}

/* Whether a whole header of the inner family stands at the cursor. */
static __always_inline bool inner_complete(struct cursor *cursor, bool v6)
{
	return cursor_take(cursor, v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

/* Removes `outer` bytes between the Ethernet header and the inner packet. */
static __always_inline bool strip(struct xdp_md *ctx, struct ethhdr *eth, int outer, bool v6)
{
	struct ethhdr kept = *eth;
	struct cursor cursor;

	kept.h_proto = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	if (bpf_xdp_adjust_head(ctx, outer))
		return false;
	cursor = cursor_of(ctx);
	eth = cursor_take(&cursor, sizeof(*eth));
	if (!eth)
		return false;
	*eth = kept;
	return true;
}

static __always_inline int decap_v4(struct xdp_md *ctx, struct decap_counters *count,
				    struct cursor cursor, struct ethhdr *eth)
{
	struct iphdr *outer = cursor_take(&cursor, sizeof(*outer));
	bool v6;

	if (!outer || (outer->protocol != IPPROTO_IPIP && outer->protocol != IPPROTO_IPV6))
		return XDP_PASS;
	if (strict && !same(destination_v4, &outer->daddr, sizeof(outer->daddr))) {
		count->foreign++;
		return XDP_PASS;
	}
	if (outer->ihl != sizeof(*outer) / 4) {
		count->drop_options++;
		return XDP_DROP;
	}
	if (outer->frag_off & bpf_htons(IPV4_FRAGMENT_MASK)) {
		count->drop_fragment++;
		return XDP_DROP;
	}
	v6 = outer->protocol == IPPROTO_IPV6;
	if (!inner_complete(&cursor, v6)) {
		count->drop_truncated++;
		return XDP_DROP;
	}
	count->ipip_v4++;
	if (!strip(ctx, eth, sizeof(*outer), v6)) {
		count->drop_head++;
		return XDP_DROP;
	}
	return XDP_PASS;
}

static __always_inline int decap_v6(struct xdp_md *ctx, struct decap_counters *count,
				    struct cursor cursor, struct ethhdr *eth)
{
	struct ipv6hdr *outer = cursor_take(&cursor, sizeof(*outer));
	bool v6;

	if (!outer || (outer->nexthdr != IPPROTO_IPIP && outer->nexthdr != IPPROTO_IPV6))
		return XDP_PASS;
	if (strict && !same(destination_v6, &outer->daddr, sizeof(outer->daddr))) {
		count->foreign++;
		return XDP_PASS;
	}
	v6 = outer->nexthdr == IPPROTO_IPV6;
	if (!inner_complete(&cursor, v6)) {
		count->drop_truncated++;
		return XDP_DROP;
	}
	count->ipip_v6++;
	if (!strip(ctx, eth, sizeof(*outer), v6)) {
		count->drop_head++;
		return XDP_DROP;
	}
	return XDP_PASS;
}

SEC("xdp")
int decap(struct xdp_md *ctx)
{
	const __u32 zero = 0;
	struct decap_counters *count = bpf_map_lookup_elem(&decap_counters, &zero);
	struct cursor cursor = cursor_of(ctx);
	struct ethhdr *eth = cursor_take(&cursor, sizeof(*eth));

	if (!count || !eth)
		return XDP_PASS;
	count->total++;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return decap_v4(ctx, count, cursor, eth);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return decap_v6(ctx, count, cursor, eth);
	return XDP_PASS;
}
