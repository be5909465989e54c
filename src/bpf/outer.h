/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* What all encapsulations share: room in front of the packet, and the values of outer headers.
 * encap.h and gue.h call it. */
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
 * Lets an outer IPv4 packet be fragmented if the inner one may be (RFC 2003, 3.1); routers do not
 * fragment IPv6. Without the DF bit identifications must differ (RFC 6864, 4.2): a CPU's, and so a
 * flow's, differ for 65,536 packets. Call this before moving the head.
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

/* The way to a real with its own next hop. */
struct way {
	__u64 next_hop; /* a MAC address; the bits above are undefined */
	const struct port *port; /* NULL: out of the interface where the frame arrived */
};

/* Makes room for an outer IP header of `size` bytes. Returns the frame's new Ethernet header, which
 * the outer IP header follows, or NULL. */
static __always_inline struct ethhdr *grow(const struct run *run, const __u32 size)
{
	struct cursor cursor;

	if (bpf_xdp_adjust_head(run->ctx, -(int)size))
		return NULL;
	cursor = cursor_of(run->ctx);
	return cursor_take(&cursor, sizeof(struct ethhdr) + size);
}

/* Writes the Ethernet header of a frame that has grown by `size` bytes; call it before the outer
 * header overwrites the old one. The frame goes to the gateway for reals of family `outer`, from
 * the address where it arrived, or as `way` says. */
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
