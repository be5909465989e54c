// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The backend's decapsulator: strips IP in IP on arrival (all four mixes of families) and hands
 * the inner packet to the stack, where the VIP sits on the loopback interface. What is not
 * tunnelled passes untouched, fragments and options included.
 */
#include "cursor.h"
#include "headers.h"
#include "shared.h"

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* On: only tunnels that end at `destination_v4` or `destination_v6` are stripped. */
const volatile __u8 strict = 0;
/* Words as they lie in memory. */
const volatile __u32 destination_v4 = 0;
const volatile __u32 destination_v6[4] = {};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct decap_counters);
} decap_counters SEC(".maps");

static __always_inline bool is_ours_v6(const struct in6_addr *address)
{
	return address->in6_u.u6_addr32[0] == destination_v6[0] &&
	       address->in6_u.u6_addr32[1] == destination_v6[1] &&
	       address->in6_u.u6_addr32[2] == destination_v6[2] &&
	       address->in6_u.u6_addr32[3] == destination_v6[3];
}

/* Whether a whole header of the inner family stands at the cursor. */
static __always_inline bool inner_complete(struct cursor *cursor, bool v6)
{
	return cursor_take(cursor, v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

/* Removes `outer` bytes between the Ethernet header and the inner packet. */
static __always_inline bool strip(struct xdp_md *ctx, struct ethhdr *eth, int outer, bool v6)
{
	const __u64 destination = mac_load(eth->h_dest);
	const __u64 source = mac_load(eth->h_source);
	struct cursor cursor;

	if (bpf_xdp_adjust_head(ctx, outer))
		return false;
	cursor = cursor_of(ctx);
	eth = cursor_take(&cursor, sizeof(*eth));
	if (!eth)
		return false;
	ether_write(eth, destination, source, v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP));
	return true;
}

/* Hands the inner packet to the stack, and counts it in `stripped`. */
static __always_inline int unwrap(struct xdp_md *ctx, struct decap_counters *count,
				  struct cursor cursor, struct ethhdr *eth, int outer, bool v6,
				  __u64 *stripped)
{
	if (!inner_complete(&cursor, v6)) {
		count->drop_truncated++;
		return XDP_DROP;
	}
	if (!strip(ctx, eth, outer, v6)) {
		count->drop_head++;
		return XDP_DROP;
	}
	(*stripped)++;
	return XDP_PASS;
}

static __always_inline int decap_v4(struct xdp_md *ctx, struct decap_counters *count,
				    struct cursor cursor, struct ethhdr *eth)
{
	struct iphdr *outer = cursor_take(&cursor, sizeof(*outer));
	bool v6;

	if (!outer || (outer->protocol != IPPROTO_IPIP && outer->protocol != IPPROTO_IPV6))
		return XDP_PASS;
	if (strict && outer->daddr != destination_v4) {
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
	return unwrap(ctx, count, cursor, eth, sizeof(*outer), v6, &count->ipip_v4);
}

static __always_inline int decap_v6(struct xdp_md *ctx, struct decap_counters *count,
				    struct cursor cursor, struct ethhdr *eth)
{
	struct ipv6hdr *outer = cursor_take(&cursor, sizeof(*outer));
	bool v6;

	if (!outer || (outer->nexthdr != IPPROTO_IPIP && outer->nexthdr != IPPROTO_IPV6))
		return XDP_PASS;
	if (strict && !is_ours_v6(&outer->daddr)) {
		count->foreign++;
		return XDP_PASS;
	}
	v6 = outer->nexthdr == IPPROTO_IPV6;
	return unwrap(ctx, count, cursor, eth, sizeof(*outer), v6, &count->ipip_v6);
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
	if (ether_type(eth) == bpf_htons(ETH_P_IP))
		return decap_v4(ctx, count, cursor, eth);
	if (ether_type(eth) == bpf_htons(ETH_P_IPV6))
		return decap_v6(ctx, count, cursor, eth);
	return XDP_PASS;
}
