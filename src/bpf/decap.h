/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The backend's decapsulator: strips IP in IP and GUE on arrival (all four mixes of families) and
 * hands the inner packet to the stack, where the VIP sits on the loopback interface. What is not
 * tunnelled passes untouched, fragments and options included. It is compiled for XDP and for tc, which
 * say what CONTEXT, PASS and DROP are, and how to strip.
 */
#pragma once

#include "cursor.h"
#include "headers.h"
#include "shared.h"
#include "tcp_option.h"

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* On: only tunnels that end at `destination_v4` or `destination_v6` are stripped. */
const volatile __u8 strict = 0;
/* Words as they lie in memory. */
const volatile __u32 destination_v4 = 0;
const volatile __u32 destination_v6[4] = {};
/* The UDP port that GUE comes to; 0: GUE is not stripped. */
const volatile __u16 gue_port = 6080;
/* This server's own id in TCP options; 0: packets are not looked at for one. */
const volatile __u32 own_server_id = 0;

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

/* What is in a tunnel. */
struct inner {
	struct cursor packet;
	__u32 outer_bytes; /* headers before it, without Ethernet's */
	bool v6;
	bool gue;
};

/* GUE, variant 1: the inner packet follows UDP's header, and its version tells its family. */
static __always_inline bool is_gue(struct inner *inner)
{
	const struct udphdr *udp = cursor_take(&inner->packet, sizeof(*udp));
	struct cursor behind = inner->packet;
	const __u8 *first;

	if (!udp || udp->dest != bpf_htons(gue_port))
		return false;
	first = cursor_take(&behind, 1);
	if (first && *first >> 4 != 4 && *first >> 4 != 6)
		return false;
	inner->v6 = first && *first >> 4 == 6;
	inner->outer_bytes += sizeof(*udp);
	inner->gue = true;
	return true;
}

static __always_inline bool is_tunnel(struct inner *inner, __u8 protocol)
{
	if (gue_port && protocol == IPPROTO_UDP)
		return is_gue(inner);
	inner->v6 = protocol == IPPROTO_IPV6;
	return inner->v6 || protocol == IPPROTO_IPIP;
}

/* Counts the TCP server id in the inner packet, if it carries one. */
static __always_inline void count_server_id(CONTEXT *ctx, struct decap_counters *count,
					    struct cursor packet, bool v6)
{
	struct tcphdr *tcp;
	__u8 protocol;
	__u32 id;

	if (v6) {
		struct ipv6hdr *ip = cursor_take(&packet, sizeof(*ip));

		if (!ip)
			return;
		protocol = ip->nexthdr;
	} else {
		struct iphdr *ip = cursor_take(&packet, sizeof(*ip));

		if (!ip || ip->ihl != sizeof(*ip) / 4 ||
		    (ip->frag_off & bpf_htons(IPV4_FRAGMENT_MASK)))
			return;
		protocol = ip->protocol;
	}
	if (protocol != IPPROTO_TCP)
		return;
	tcp = cursor_take(&packet, sizeof(*tcp));
	if (!tcp || tcp->doff <= sizeof(*tcp) / 4)
		return;
	id = tcp_option_id(ctx, packet, tcp->doff * 4 - sizeof(*tcp));
	if (!id)
		return;
	count->server_ids++;
	if (id != own_server_id)
		count->other_server_ids++;
}

/* Removes `outer` bytes between the Ethernet header and the inner packet, which the two programs do
 * differently. */
static __always_inline bool strip(CONTEXT *ctx, struct ethhdr *eth, const struct inner *inner,
				  bool outer_v6);

/* Hands the inner packet to the stack, and counts it in `stripped`. */
static __always_inline int unwrap(CONTEXT *ctx, struct decap_counters *count,
				  const struct inner *inner, struct ethhdr *eth, bool outer_v6,
				  __u64 *stripped)
{
	struct cursor cursor = inner->packet;

	if (!cursor_take(&cursor, inner->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr))) {
		count->drop_truncated++;
		return DROP;
	}
	if (own_server_id)
		count_server_id(ctx, count, inner->packet, inner->v6);
	if (!strip(ctx, eth, inner, outer_v6)) {
		count->drop_head++;
		return DROP;
	}
	(*stripped)++;
	return PASS;
}

static __always_inline int decap_v4(CONTEXT *ctx, struct decap_counters *count,
				    struct cursor cursor, struct ethhdr *eth)
{
	struct iphdr *outer = cursor_take(&cursor, sizeof(*outer));
	struct inner inner = { .packet = cursor, .outer_bytes = sizeof(*outer) };
	const __u16 fragment = bpf_htons(IPV4_FRAGMENT_MASK);
	bool plain;

	if (!outer)
		return PASS;
	plain = outer->ihl == sizeof(*outer) / 4 && !(outer->frag_off & fragment);
	/* Of UDP in fragments or behind options it cannot be told whether it is GUE. */
	if ((!plain && outer->protocol == IPPROTO_UDP) || !is_tunnel(&inner, outer->protocol))
		return PASS;
	if (strict && outer->daddr != destination_v4) {
		count->foreign++;
		return PASS;
	}
	if (outer->ihl != sizeof(*outer) / 4) {
		count->drop_options++;
		return DROP;
	}
	if (outer->frag_off & fragment) {
		count->drop_fragment++;
		return DROP;
	}
	return unwrap(ctx, count, &inner, eth, false,
		      inner.gue ? &count->gue_v4 : &count->ipip_v4);
}

static __always_inline int decap_v6(CONTEXT *ctx, struct decap_counters *count,
				    struct cursor cursor, struct ethhdr *eth)
{
	struct ipv6hdr *outer = cursor_take(&cursor, sizeof(*outer));
	struct inner inner = { .packet = cursor, .outer_bytes = sizeof(*outer) };

	if (!outer || !is_tunnel(&inner, outer->nexthdr))
		return PASS;
	if (strict && !is_ours_v6(&outer->daddr)) {
		count->foreign++;
		return PASS;
	}
	return unwrap(ctx, count, &inner, eth, true,
		      inner.gue ? &count->gue_v6 : &count->ipip_v6);
}

/* What becomes of a packet: PASS or DROP. */
static __always_inline int take_out(CONTEXT *ctx)
{
	const __u32 zero = 0;
	struct decap_counters *count = bpf_map_lookup_elem(&decap_counters, &zero);
	struct cursor cursor = cursor_of(ctx);
	struct ethhdr *eth = cursor_take(&cursor, sizeof(*eth));

	if (!count || !eth)
		return PASS;
	count->total++;
	if (ether_type(eth) == bpf_htons(ETH_P_IP))
		return decap_v4(ctx, count, cursor, eth);
	if (ether_type(eth) == bpf_htons(ETH_P_IPV6))
		return decap_v6(ctx, count, cursor, eth);
	return PASS;
}
