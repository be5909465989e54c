/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Generic UDP encapsulation, variant 1 (draft-ietf-intarea-gue-09, section 4): a UDP header, then
 * the inner IP packet. encap.h calls it for balancers with GUE. The outer checksum (RFC 768) comes
 * from the inner one without reading the payload (inner_sum.h). Only packets whose inner checksum
 * does not cover everything, because of a short UDP length or extension headers, are summed as a
 * whole.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "csum.h"
#include "cursor.h"
#include "extensions.h"
#include "headers.h"
#include "inner_sum.h"
#include "outer.h"
#include "parse.h"
#include "verifier.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

/* The outer source port, in memory order, which spreads flows over the backend's queues: the flow's
 * port mixed with the client's address, differently for each family of the real. */
static __always_inline __u16 gue_port_v4(const struct packet *packet, enum family family)
{
	return usable_port(source_tail(packet, family) >> 16 ^
			   __builtin_bswap16(hash_source(packet)));
}

static __always_inline __u16 gue_port_v6(const struct packet *packet, enum family family)
{
	const __u32 tail = source_tail(packet, family);

	return usable_port((family == FAMILY_V6 ? tail : tail >> 16) ^ hash_source(packet));
}

/* Bytes per step when a packet is summed as a whole. */
#define SUM_STEP 64

struct summing {
	struct xdp_md *ctx;
	__u32 from; /* places in the frame */
	__u32 to;
	__u32 sum;
	bool failed;
};

static int sum_step(__u32 step __attribute__((unused)), struct summing *summing)
{
	__u8 bytes[SUM_STEP] = {};
	/* One less than the bytes to add now, of which there is always at least one. */
	__u32 last = summing->to - summing->from - 1;

	if (last > SUM_STEP - 1)
		last = SUM_STEP - 1;
	/* The verifier must see both ends of the range; in Linux 6.1 it learns no lower bound from
	 * a comparison with 0. */
	barrier_var(last);
	last &= SUM_STEP - 1;
	if (bpf_xdp_load_bytes(summing->ctx, summing->from, bytes, last + 1)) {
		summing->failed = true;
		return 1;
	}
	summing->sum = csum_fold(bpf_csum_diff(NULL, 0, (void *)bytes, sizeof(bytes), summing->sum));
	summing->from += last + 1;
	return 0;
}

/* The sum of the frame's bytes from `from` to `to`; negative: the frame ends before. A global
 * function with a kernel loop, so the verifier checks it once. */
LOOKED_AT_ONCE int sum_of_frame(struct xdp_md *ctx, __u32 from, __u32 to)
{
	struct summing summing = { .ctx = ctx, .from = from, .to = to };

	if (from >= to)
		return 0;
	bpf_loop((to - from + SUM_STEP - 1) / SUM_STEP, sum_step, &summing, 0);
	return summing.failed ? -1 : (int)csum_fold(summing.sum);
}

/* Whether the transport checksum covers all `length` bytes behind the IP header. UDP has its own
 * length, and no checksum covers bytes behind its end (RFC 9868). */
static __always_inline bool covers_all(const struct packet *packet, struct cursor cursor, __u16 length)
{
	const struct udphdr *udp;

	if (packet->icmp || packet->flow.protocol != IPPROTO_UDP)
		return true;
	udp = cursor_take(&cursor, sizeof(*udp));
	return udp && udp->len == bpf_htons(length);
}

/* The sum of the inner packet, whatever its headers claim; negative: it is cut short. */
static __always_inline int inner_sum(const struct run *run, const struct packet *packet,
				     enum family family)
{
	const __u32 header = family == FAMILY_V6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	const __u16 length = inner_length(packet, family) - header;
	const __u32 behind = sizeof(struct ethhdr) + header;
	struct cursor cursor = cursor_of(run->ctx);
	const void *ip;
	int rest;

	cursor_take(&cursor, sizeof(struct ethhdr));
	ip = cursor_take(&cursor, header);
	if (!ip)
		return -1;
	if (covers_all(packet, cursor, length) && !(family == FAMILY_V6 && has_extensions(ip)))
		return family == FAMILY_V6 ? inner_sum_v6(ip) : inner_sum_v4(ip, !packet->icmp);
	rest = sum_of_frame(run->ctx, behind, behind + length);
	return rest < 0 ? rest : (int)(sum_words(ip, header) + rest);
}

/* The UDP header. `addresses`: the sum of the outer addresses. */
static __always_inline struct udphdr gue_header(const struct run *run, const struct packet *packet,
						__u16 source_port, __u32 addresses,
						enum family family)
{
	struct udphdr udp = {
		.source = source_port,
		.dest = bpf_htons(gue_port),
		.len = bpf_htons(inner_length(packet, family) + sizeof(struct udphdr)),
	};

	const int inner = packet->unchecked ? -1 : inner_sum(run, packet, family);

	/* Without an inner checksum the outer one is 0 too: none (RFC 6935). */
	if (inner < 0)
		return udp;
	udp.check = ~csum_fold(addresses + bpf_htons(IPPROTO_UDP) + udp.len + udp.source +
			       udp.dest + udp.len + inner);
	if (!udp.check)
		udp.check = 0xffff;
	return udp;
}

static __always_inline int gue_v4(const struct run *run, const struct packet *packet,
				  const struct way *way, const struct real *real,
				  enum family family)
{
	const __u32 size = sizeof(struct iphdr) + sizeof(struct udphdr);
	struct iphdr outer = {
		.version = 4,
		.ihl = sizeof(struct iphdr) / 4,
		.tos = packet->tos,
		.tot_len = bpf_htons(inner_length(packet, family) + size),
		.ttl = OUTER_TTL,
		.protocol = IPPROTO_UDP,
		.saddr = own_addresses()->v4,
		.daddr = *(const __u32 *)real->address,
	};
	const __u32 addresses = sum_words(&outer.saddr, 2 * sizeof(outer.saddr));
	const struct udphdr udp =
		gue_header(run, packet, gue_port_v4(packet, family), addresses, family);
	struct ethhdr *eth;

	outer_fragmentation(run, &outer, family);
	outer.check = csum_ipv4(&outer);
	eth = grow(run, size);
	if (!eth)
		return drop(run, DROP_ENCAP_V4);
	ether_begin(run, eth, size, way, FAMILY_V4);
	*(struct iphdr *)(eth + 1) = outer;
	*(struct udphdr *)((struct iphdr *)(eth + 1) + 1) = udp;
	return XDP_TX;
}

static __always_inline int gue_v6(const struct run *run, const struct packet *packet,
				  const struct way *way, const struct real *real,
				  enum family family)
{
	const struct own_addresses *own = own_addresses();
	const __u32 addresses =
		sum_words(own->v6, ADDRESS_BYTES) + sum_words(real->address, ADDRESS_BYTES);
	const struct udphdr udp =
		gue_header(run, packet, gue_port_v6(packet, family), addresses, family);
	const __u32 *address = (const __u32 *)real->address;
	const __u32 size = sizeof(struct ipv6hdr) + sizeof(struct udphdr);
	struct ethhdr *eth = grow(run, size);
	struct ipv6hdr *outer;

	if (!eth)
		return drop(run, DROP_ENCAP_V6);
	ether_begin(run, eth, size, way, FAMILY_V6);
	outer = (struct ipv6hdr *)(eth + 1);
	/* Version, traffic class, and a flow label of 0. */
	*(__be32 *)outer = bpf_htonl(6u << 28 | (__u32)packet->tos << 20);
	outer->payload_len = bpf_htons(inner_length(packet, family) + sizeof(struct udphdr));
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
