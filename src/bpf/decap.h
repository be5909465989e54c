/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The backend's decapsulator: strips IP in IP and GUE (all four mixes of families) from arriving
 * packets and hands the inner packet to the stack, where the loopback interface has the VIP.
 * Packets that are not tunnelled pass untouched, fragments and options included.
 *
 * decap.bpf.c compiles it for XDP, decap_tc.bpf.c for tc. Each defines CONTEXT, PASS and DROP (and
 * SUM_CHANGED), the length of a frame, and how to strip.
 */
#pragma once

#include "cursor.h"
#include "ecn.h"
#include "headers.h"
#include "prefixes.h"
#include "shared.h"
#include "tcp_option.h"
#include "tunnel.h"

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

/* Strips only tunnels that end at `destination_v4` or `destination_v6`. */
const volatile __u8 strict = 0;
/* Words in memory order. */
const volatile __u32 destination_v4 = 0;
const volatile __u32 destination_v6[4] = {};
/* The UDP port where GUE arrives; 0: GUE is not stripped. */
const volatile __u16 gue_port = 6080;
/* Drops packets with an outer source, or an inner destination, that no prefix covers. */
const volatile __u8 limit_sources = 0;
const volatile __u8 limit_destinations = 0;
/* This server's id in TCP options; 0: packets are not searched for one. */
const volatile __u32 own_server_id = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct decap_counters);
} decap_counters SEC(".maps");

/* Prefixes of outer sources and of inner destinations. */
struct prefixes allowed_sources SEC(".maps");
struct prefixes allowed_destinations SEC(".maps");

/* Zeros: there is no address of that family. */
static __always_inline bool is_ours(const struct tunnel *tunnel)
{
	const __u32 *end = tunnel->destination;

	if (!tunnel->outer_v6)
		return destination_v4 && end[0] == destination_v4;
	return (destination_v6[0] | destination_v6[1] | destination_v6[2] | destination_v6[3]) &&
	       end[0] == destination_v6[0] && end[1] == destination_v6[1] &&
	       end[2] == destination_v6[2] && end[3] == destination_v6[3];
}

/* Counts the TCP server id in the inner packet, if there is one. A SYN's id would belong to an
 * earlier connection, and the balancer ignores it. */
static __always_inline void count_server_id(CONTEXT *ctx, struct decap_counters *count,
					    struct cursor packet, enum family family)
{
	struct tcphdr *tcp;
	__u8 protocol;
	__s32 bytes; /* behind the IP header */
	__u32 id;

	if (family == FAMILY_V6) {
		struct ipv6hdr *ip = cursor_take(&packet, sizeof(*ip));

		if (!ip)
			return;
		protocol = ip->nexthdr;
		bytes = bpf_ntohs(ip->payload_len);
	} else {
		struct iphdr *ip = cursor_take(&packet, sizeof(*ip));

		if (!ip || ip->ihl != sizeof(*ip) / 4 ||
		    (ip->frag_off & bpf_htons(IPV4_FRAGMENT_MASK)))
			return;
		protocol = ip->protocol;
		bytes = bpf_ntohs(ip->tot_len) - (__s32)sizeof(*ip);
	}
	if (protocol != IPPROTO_TCP)
		return;
	tcp = cursor_take(&packet, sizeof(*tcp));
	if (!tcp || tcp->syn || tcp->doff <= sizeof(*tcp) / 4 || tcp->doff * 4 > bytes)
		return;
	id = tcp_option_id(ctx, packet, tcp->doff * 4 - sizeof(*tcp));
	if (!id)
		return;
	count->server_ids++;
	if (id != own_server_id)
		count->other_server_ids++;
}

static __always_inline __u32 frame_length(const CONTEXT *ctx);

/* Removes the outer headers between the Ethernet header and the inner packet; each program has its
 * own way. */
static __always_inline bool strip(CONTEXT *ctx, struct ethhdr *eth, const struct tunnel *tunnel);

static __always_inline void count_stripped(struct decap_counters *count, const struct tunnel *tunnel)
{
	if (tunnel->outer_v6)
		(*(tunnel->gue ? &count->gue_v6 : &count->ipip_v6))++;
	else
		(*(tunnel->gue ? &count->gue_v4 : &count->ipip_v4))++;
}

/* Hands the inner packet to the stack. */
static __always_inline int unwrap(CONTEXT *ctx, struct decap_counters *count, struct ethhdr *eth,
				  const struct tunnel *tunnel)
{
	if (strict && !is_ours(tunnel)) {
		count->foreign++;
		return PASS;
	}
	if (limit_sources && !is_covered(&allowed_sources, tunnel->source, outer_family(tunnel))) {
		count->drop_source++;
		return DROP;
	}
	if (tunnel->options) {
		count->drop_options++;
		return DROP;
	}
	if (tunnel->fragment) {
		count->drop_fragment++;
		return DROP;
	}
	if (tunnel->length + sizeof(*eth) > frame_length(ctx) || !inner_header_is_whole(tunnel)) {
		count->drop_truncated++;
		return DROP;
	}
	if (!inner_is_ip(tunnel)) {
		count->drop_version++;
		return DROP;
	}
	if (!inner_is_whole(tunnel)) {
		count->drop_truncated++;
		return DROP;
	}
	if (limit_destinations &&
	    !inner_is_covered(tunnel, &allowed_destinations, INNER_DESTINATION)) {
		count->drop_destination++;
		return DROP;
	}
	if (!hand_on_ecn(ctx, tunnel)) {
		count->drop_ecn++;
		return DROP;
	}
	if (own_server_id)
		count_server_id(ctx, count, tunnel->inner, inner_family(tunnel));
	if (!strip(ctx, eth, tunnel)) {
		count->drop_head++;
		return DROP;
	}
	count_stripped(count, tunnel);
	return PASS;
}

/* The packet's verdict: PASS or DROP. */
static __always_inline int take_out(CONTEXT *ctx)
{
	const __u32 zero = 0;
	struct decap_counters *count = bpf_map_lookup_elem(&decap_counters, &zero);
	struct cursor cursor = cursor_of(ctx);
	struct ethhdr *eth = cursor_take(&cursor, sizeof(*eth));
	struct tunnel tunnel;

	if (!count || !eth)
		return PASS;
	count->total++;
	/* A version that does not match the EtherType is not IP. */
	if (ether_type(eth) == bpf_htons(ETH_P_IP)) {
		if (ip_version(cursor) == 4 && find_tunnel_v4(&tunnel, cursor, gue_port))
			return unwrap(ctx, count, eth, &tunnel);
	} else if (ether_type(eth) == bpf_htons(ETH_P_IPV6)) {
		if (ip_version(cursor) == 6 && find_tunnel_v6(&tunnel, cursor, gue_port))
			return unwrap(ctx, count, eth, &tunnel);
	}
	return PASS;
}
