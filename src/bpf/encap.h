/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Wraps a packet for its real, IP in IP (RFC 2003, RFC 2473, RFC 4213) or GUE, and sends it; send.h
 * calls it last. The outer source is made up per flow, so that the backend's receive-side scaling,
 * which sees only the outer header, spreads flows over its queues.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "csum.h"
#include "cursor.h"
#include "gue.h"
#include "headers.h"
#include "next_hop.h"
#include "outer.h"
#include "parse.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>

static __always_inline int ipip_v4(const struct run *run, const struct packet *packet,
				   const struct way *way, const struct real *real,
				   enum family family)
{
	const __u16 tail = source_tail(packet, family) >> 16;
	struct iphdr outer = {
		.version = 4,
		.ihl = sizeof(struct iphdr) / 4,
		.tos = packet->tos,
		.tot_len = bpf_htons(inner_length(packet, family) + sizeof(struct iphdr)),
		.ttl = OUTER_TTL,
		.protocol = family == FAMILY_V6 ? IPPROTO_IPV6 : IPPROTO_IPIP,
		/* Both halves are in memory order; the port's bytes come swapped. */
		.saddr = ipip_source_v4 |
			 usable_host_v4((tail ^ __builtin_bswap16(hash_source(packet))) << 16),
		.daddr = *(const __u32 *)real->address,
	};
	struct ethhdr *eth;

	outer_fragmentation(run, &outer, family);
	outer.check = csum_ipv4(&outer);
	eth = grow(run, sizeof(outer));
	if (!eth)
		return drop(run, DROP_ENCAP_V4);
	ether_begin(run, eth, sizeof(outer), way, FAMILY_V4);
	*(struct iphdr *)(eth + 1) = outer;
	return XDP_TX;
}

static __always_inline int ipip_v6(const struct run *run, const struct packet *packet,
				   const struct way *way, const struct real *real,
				   enum family family)
{
	/* The port's bytes in memory order, over the first two of the address's tail. */
	const __u32 tail = source_tail(packet, family) ^ hash_source(packet);
	const __u32 *address = (const __u32 *)real->address;
	struct ethhdr *eth = grow(run, sizeof(struct ipv6hdr));
	struct ipv6hdr *outer;

	if (!eth)
		return drop(run, DROP_ENCAP_V6);
	ether_begin(run, eth, sizeof(struct ipv6hdr), way, FAMILY_V6);
	outer = (struct ipv6hdr *)(eth + 1);
	/* Version, traffic class, and a flow label of 0. */
	*(__be32 *)outer = bpf_htonl(6u << 28 | (__u32)packet->tos << 20);
	outer->payload_len = bpf_htons(inner_length(packet, family));
	outer->nexthdr = family == FAMILY_V6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	outer->hop_limit = OUTER_TTL;
	outer->saddr.in6_u.u6_addr32[0] = ipip_source_v6[0];
	outer->saddr.in6_u.u6_addr32[1] = ipip_source_v6[1];
	outer->saddr.in6_u.u6_addr32[2] = ipip_source_v6[2];
	outer->saddr.in6_u.u6_addr32[3] = usable_host_v6(tail);
	outer->daddr.in6_u.u6_addr32[0] = address[0];
	outer->daddr.in6_u.u6_addr32[1] = address[1];
	outer->daddr.in6_u.u6_addr32[2] = address[2];
	outer->daddr.in6_u.u6_addr32[3] = address[3];
	return XDP_TX;
}

static __always_inline int encap(const struct run *run, const struct packet *packet,
				 const struct way *way, const struct real *real,
				 enum family family)
{
	/* The two share no code, so neither pays for the other's needs. */
	if (gue_is_on(run)) {
		if (real->flags & REAL_IPV6)
			return gue_v6(run, packet, way, real, family);
		return gue_v4(run, packet, way, real, family);
	}
	if (real->flags & REAL_IPV6)
		return ipip_v6(run, packet, way, real, family);
	return ipip_v4(run, packet, way, real, family);
}

/* Wraps the packet for `real`, and sends it out of the interface where it arrived or of the one
 * that leads to the real. */
static __always_inline int encap_and_send(const struct run *run, const struct packet *packet,
					  const struct real *real, __u32 number, enum family family)
{
	struct way way = {};
	__u32 key = 0;
	int verdict;

	if (is(run, FULL) && next_hops) {
		const __u64 hop = hop_of(number);

		if (!hop)
			return drop(run, DROP_NEXT_HOP_UNKNOWN);
		way.next_hop = hop;
		key = hop >> HOP_PORT_SHIFT;
		if (redirect)
			way.port = other_port(run, key);
	}
	verdict = encap(run, packet, &way, real, family);
	if (is(run, FULL) && redirect && way.port && verdict == XDP_TX) {
		verdict = bpf_redirect_map(&devices, key, XDP_DROP);
		if (verdict != XDP_REDIRECT)
			return drop(run, DROP_REDIRECT_FAILED);
	}
	return verdict;
}
