/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Generic UDP encapsulation, variant 1 (draft-ietf-intarea-gue-09, section 4): a UDP header, and
 * the inner IP packet at once. The outer checksum (RFC 768) is found without reading the payload:
 * the inner checksum says what the payload adds up to.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "csum.h"
#include "cursor.h"
#include "headers.h"
#include "outer.h"
#include "parse.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

/* The bytes of the outer source port, which spreads flows over the backend's queues: those of the
 * flow's port and of the client's address mixed, differently for each family of the real. */
static __always_inline __u16 gue_port_v4(const struct packet *packet, bool v6)
{
	return usable_port(source_tail(packet, v6) >> 16 ^
			   __builtin_bswap16(packet->flow.source_port));
}

static __always_inline __u16 gue_port_v6(const struct packet *packet, bool v6)
{
	const __u32 tail = source_tail(packet, v6);

	return usable_port((v6 ? tail : tail >> 16) ^ packet->flow.source_port);
}

/* The sum of words of an address or two. */
static __always_inline __u32 sum_words(const void *from, const __u32 bytes)
{
	const __u32 *word = from;
	__u32 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < bytes / sizeof(*word); i++)
		sum += (word[i] & 0xffff) + (word[i] >> 16);
	return sum;
}

/* What takes a sum of 16-bit words back out of another one (RFC 1071: the complement). */
static __always_inline __u32 minus(__u32 sum)
{
	return (__u16)~csum_fold(sum);
}

/*
 * What the inner packet adds up to, as its headers have it. Transport header and payload add up to
 * the complement of the pseudo header, an IPv4 header to 0.
 */
static __always_inline __u32 inner_sum(const struct run *run, const struct packet *packet, bool v6)
{
	struct cursor cursor = cursor_of(run->ctx);

	cursor_take(&cursor, sizeof(struct ethhdr));
	if (v6) {
		/* The addresses and the length are in both the header and the pseudo header. */
		const struct ipv6hdr *ip = cursor_take(&cursor, sizeof(*ip));

		if (!ip)
			return 0;
		return sum_words(ip, sizeof(__u32)) + *(const __u16 *)&ip->nexthdr +
		       minus(bpf_htons(ip->nexthdr));
	}
	/* ICMP over IPv4 has no pseudo header (RFC 792). */
	if (!packet->icmp) {
		const struct iphdr *ip = cursor_take(&cursor, sizeof(*ip));
		const __u16 length = packet->l3_length - sizeof(*ip);

		if (!ip)
			return 0;
		return minus(sum_words(&ip->saddr, 2 * sizeof(ip->saddr)) +
			     bpf_htons(ip->protocol) + bpf_htons(length));
	}
	return 0;
}

/* The UDP header. `addresses`: the sum of the outer addresses. */
static __always_inline struct udphdr gue_header(const struct run *run, const struct packet *packet,
						__u16 source_port, __u32 addresses, bool v6)
{
	struct udphdr udp = {
		.source = source_port,
		.dest = bpf_htons(gue_port),
		.len = bpf_htons(inner_length(packet, v6) + sizeof(struct udphdr)),
	};

	/* Without an inner checksum the outer one is 0 too: none (RFC 6935). */
	if (packet->unchecked)
		return udp;
	udp.check = ~csum_fold(addresses + bpf_htons(IPPROTO_UDP) + udp.len + udp.source +
			       udp.dest + udp.len + inner_sum(run, packet, v6));
	if (!udp.check)
		udp.check = 0xffff;
	return udp;
}

static __always_inline int gue_v4(const struct run *run, const struct packet *packet,
				  const struct macs *macs, const struct real *real, bool v6)
{
	const __u32 size = sizeof(struct iphdr) + sizeof(struct udphdr);
	struct iphdr outer = {
		.version = 4,
		.ihl = sizeof(struct iphdr) / 4,
		.tos = packet->tos,
		.tot_len = bpf_htons(inner_length(packet, v6) + size),
		.ttl = OUTER_TTL,
		.protocol = IPPROTO_UDP,
		.saddr = own_addresses()->v4,
		.daddr = *(const __u32 *)real->address,
	};
	const __u32 addresses = sum_words(&outer.saddr, 2 * sizeof(outer.saddr));
	const struct udphdr udp =
		gue_header(run, packet, gue_port_v4(packet, v6), addresses, v6);
	struct ethhdr *eth;

	outer_fragmentation(run, &outer, v6);
	outer.check = csum_ipv4(&outer);
	eth = grow(run, size);
	if (!eth)
		return drop(run, DROP_ENCAP_V4);
	ether_write(eth, macs->gateway, macs->own, bpf_htons(ETH_P_IP));
	*(struct iphdr *)(eth + 1) = outer;
	*(struct udphdr *)((struct iphdr *)(eth + 1) + 1) = udp;
	return XDP_TX;
}

static __always_inline int gue_v6(const struct run *run, const struct packet *packet,
				  const struct macs *macs, const struct real *real, bool v6)
{
	const struct own_addresses *own = own_addresses();
	const __u32 addresses =
		sum_words(own->v6, ADDRESS_BYTES) + sum_words(real->address, ADDRESS_BYTES);
	const struct udphdr udp =
		gue_header(run, packet, gue_port_v6(packet, v6), addresses, v6);
	const __u32 *address = (const __u32 *)real->address;
	struct ethhdr *eth = grow(run, sizeof(struct ipv6hdr) + sizeof(struct udphdr));
	struct ipv6hdr *outer;

	if (!eth)
		return drop(run, DROP_ENCAP_V6);
	ether_write(eth, macs->gateway, macs->own, bpf_htons(ETH_P_IPV6));
	outer = (struct ipv6hdr *)(eth + 1);
	/* Version, traffic class, and a flow label of 0. */
	*(__be32 *)outer = bpf_htonl(6u << 28 | (__u32)packet->tos << 20);
	outer->payload_len = bpf_htons(inner_length(packet, v6) + sizeof(struct udphdr));
	outer->nexthdr = IPPROTO_UDP;
	outer->hop_limit = OUTER_TTL;
	outer->saddr.in6_u.u6_addr32[0] = own->v6[0];
	outer->saddr.in6_u.u6_addr32[1] = own->v6[1];
	outer->saddr.in6_u.u6_addr32[2] = own->v6[2];
	outer->saddr.in6_u.u6_addr32[3] = own->v6[3];
	outer->daddr.in6_u.u6_addr32[0] = address[0];
	outer->daddr.in6_u.u6_addr32[1] = address[1];
	outer->daddr.in6_u.u6_addr32[2] = address[2];
	outer->daddr.in6_u.u6_addr32[3] = address[3];
	*(struct udphdr *)(outer + 1) = udp;
	return XDP_TX;
}
