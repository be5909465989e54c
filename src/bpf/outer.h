/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* What all encapsulations have in common: room in front of the packet, and what outer headers are
 * made from. */
#pragma once

#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "headers.h"
#include "made_up.h"
#include "parse.h"

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>

#define OUTER_TTL 64

/* The length of the inner IP packet with its header. */
static __always_inline __u16 inner_length(const struct packet *packet, enum family family)
{
	return family == FAMILY_V6 ? packet->l3_length + sizeof(struct ipv6hdr) : packet->l3_length;
}

/* The last four bytes of the flow's source address, of either family; 0 if the source does not
 * count. */
static __always_inline __u32 source_tail(const struct packet *packet, enum family family)
{
	return ((const __u32 *)packet->flow.source)[family == FAMILY_V6 ? 3 : 0];
}

/*
 * Whether an outer IPv4 packet may be fragmented, as the inner one says (RFC 2003, 3.1); nobody fragments
 * IPv6 on the way. Without the DF bit identifications must differ (RFC 6864, 4.2): those of a CPU, and so of
 * a flow, do for 65,536 packets. Before the head is moved.
 */
static __always_inline void outer_fragmentation(const struct run *run, struct iphdr *outer,
						enum family family)
{
	struct cursor cursor = cursor_of(run->ctx);
	const struct iphdr *inner;

	if (!is(run, FULL) || !inherit_dont_fragment)
		return;
	if (family == FAMILY_V6) {
		outer->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
		return;
	}
	cursor_take(&cursor, sizeof(struct ethhdr));
	inner = cursor_take(&cursor, sizeof(*inner));
	if (!inner)
		return;
	outer->frag_off = inner->frag_off & bpf_htons(IPV4_DONT_FRAGMENT);
	if (!outer->frag_off)
		outer->id = bpf_htons(run->cpu->counters.tx.packets);
}

/* The way to a real that has one of its own. */
struct way {
	__u64 next_hop; /* a MAC address; above it is whatever */
	const struct port *port; /* NULL: out of the interface that the frame came in on */
};

/* Room for an outer IP header of `size` bytes; the frame's new Ethernet header, or NULL. The
 * outer IP header follows it. */
static __always_inline struct ethhdr *grow(const struct run *run, const __u32 size)
{
	struct cursor cursor;

	if (bpf_xdp_adjust_head(run->ctx, -(int)size))
		return NULL;
	cursor = cursor_of(run->ctx);
	return cursor_take(&cursor, sizeof(struct ethhdr) + size);
}

/* Writes the Ethernet header of a frame that has grown by `size` bytes, before the outer header lies over the old one:
 * to the gateway for reals of `outer`, from the address that the frame came to, or as the way says. */
static __always_inline void ether_begin(const struct run *run, struct ethhdr *eth, const __u32 size,
					const struct way *way, enum family outer)
{
	const struct ethhdr *old = (void *)eth + size;
	__u64 to = outer == FAMILY_V6 ? live.gateway_mac_v6 : live.gateway_mac;
	__u64 from = mac_load(old->h_dest);

	if (is(run, FULL) && next_hops)
		to = way->next_hop;
	if (is(run, FULL) && redirect && way->port)
		from = way->port->mac;
	ether_write(eth, to, from, bpf_htons(outer == FAMILY_V6 ? ETH_P_IPV6 : ETH_P_IP));
}
