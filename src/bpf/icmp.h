/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The ICMP messages that the balancer itself sends: echo replies (RFC 792, RFC 4443), and
 * fragmentation-needed (RFC 1191) or packet-too-big (RFC 4443) for frames above `max_frame`. The
 * walk calls it in place of forwarding; the reply leaves in the request's frame.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "csum.h"
#include "cursor.h"
#include "headers.h"
#include "ours.h"
#include "verifier.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>

/* Both ICMP versions begin alike. (The system's linux/icmp.h drags in the C library.) */
struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	union {
		struct {
			__be16 unused;
			__be16 mtu;
		} v4; /* fragmentation needed, RFC 1191 */
		__be32 mtu_v6; /* packet too big, RFC 4443 */
	};
};
_Static_assert(sizeof(struct icmp_header) == 8, "icmp_header is laid over packets");

#define ICMPV4_ECHO_REPLY 0
#define ICMPV4_UNREACHABLE 3
#define ICMPV4_ECHO_REQUEST 8
#define ICMPV4_TIME_EXCEEDED 11
#define ICMPV4_PARAMETER_PROBLEM 12
#define ICMPV4_CODE_HOST_UNREACHABLE 1
#define ICMPV4_CODE_PORT_UNREACHABLE 3
#define ICMPV4_CODE_FRAGMENTATION_NEEDED 4
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_CODE_ADDRESS_UNREACHABLE 3
#define ICMPV6_CODE_PORT_UNREACHABLE 4
#define ICMPV6_TOO_BIG 2
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_PARAMETER_PROBLEM 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

#define REPLY_TTL 64
#define ECHO_BODY 4 /* offset in the message of the identifier, where the body begins */
#define ECHO_BODY_V4 (sizeof(struct ethhdr) + sizeof(struct iphdr) + ECHO_BODY)
#define ECHO_LONGEST 1500
/* Bytes of the packet that a too-big message quotes. */
#define TOO_BIG_QUOTE_V4 84
#define TOO_BIG_QUOTE_V6 248
#define TOO_BIG_HEADERS_V4 (sizeof(struct iphdr) + sizeof(struct icmp_header))
#define TOO_BIG_HEADERS_V6 (sizeof(struct ipv6hdr) + sizeof(struct icmp_header))

static __always_inline void swap_macs(struct ethhdr *eth)
{
	const __u64 destination = mac_load(eth->h_dest);

	mac_store(eth->h_dest, mac_load(eth->h_source));
	mac_store(eth->h_source, destination);
}

/* Whether an echo message over IPv4 is all zeros, except type and checksum. Assumed of bytes beyond
 * the first buffer, or beyond the longest ordinary packet. */
LOOKED_AT_ONCE int echo_is_of_zeros(struct xdp_md *ctx, __u32 bytes)
{
	struct cursor cursor;
	const __u8 *rest;

	if (!ctx)
		return 0;
	cursor = cursor_of(ctx);
	if (!cursor_take(&cursor, ECHO_BODY_V4))
		return 0;
	for (int i = 0; i < ECHO_LONGEST / 8 && bytes >= 8; i++) {
		const __u64 *eight = cursor_take(&cursor, sizeof(*eight));

		if (!eight)
			return 1;
		if (*eight)
			return 0;
		bytes -= sizeof(*eight);
	}
	for (int i = 0; i < 7 && bytes; i++) {
		rest = cursor_take(&cursor, 1);
		if (!rest)
			return 1;
		if (*rest)
			return 0;
		bytes--;
	}
	return 1;
}

/* Answers an echo request to an address of a VIP; others are for the host. */
static __always_inline int echo_v4(const struct run *run, struct iphdr *ip,
				   struct icmp_header *icmp)
{
	__u16 *type_and_code = (__u16 *)icmp;
	const __u16 request = *type_and_code;
	/* Read again, so that other packets need not keep them in registers. */
	const __be32 source = *(const volatile __be32 *)&ip->saddr;
	const __be32 destination = *(const volatile __be32 *)&ip->daddr;

	if (!is_station_v4(source) || !is_station_v4(destination))
		return pass(run, STEP_ICMP_OTHER);
	if (!is_vip_v4(destination))
		return pass(run, STEP_NO_VIP);
	note_step(run, STEP_ICMP_ECHO);
	run->cpu->counters.echo_v4++;
	icmp->type = ICMPV4_ECHO_REPLY;
	icmp->checksum = csum_replace(icmp->checksum, request, *type_and_code);
	/* Only an all-zero message adds up to 0 rather than 0xffff, so only its checksum is 0xffff
	 * instead of 0. */
	if (!icmp->checksum &&
	    echo_is_of_zeros(run->ctx, bpf_ntohs(ip->tot_len) - sizeof(*ip) - ECHO_BODY))
		icmp->checksum = 0xffff;
	ip->saddr = destination;
	ip->daddr = source;
	ip->ttl = REPLY_TTL;
	ip->check = 0;
	ip->check = csum_ipv4(ip);
	swap_macs(run->eth);
	return XDP_TX;
}

static __always_inline int echo_v6(const struct run *run, struct ipv6hdr *ip,
				   struct icmp_header *icmp)
{
	__u16 *type_and_code = (__u16 *)icmp;
	const __u16 request = *type_and_code;
	const struct in6_addr source = ip->saddr;

	if (!is_station_v6(&ip->saddr) || !is_station_v6(&ip->daddr))
		return pass(run, STEP_ICMP_OTHER);
	if (!is_vip_v6(&ip->daddr))
		return pass(run, STEP_NO_VIP);
	note_step(run, STEP_ICMP_ECHO);
	run->cpu->counters.echo_v6++;
	icmp->type = ICMPV6_ECHO_REPLY;
	icmp->checksum = csum_replace(icmp->checksum, request, *type_and_code);
	ip->saddr = ip->daddr;
	ip->daddr = source;
	ip->hop_limit = REPLY_TTL;
	swap_macs(run->eth);
	return XDP_TX;
}

/* Cuts the frame to the quoted bytes, makes room for `headers` bytes in front of them, and writes
 * the reversed Ethernet header. Returns the new frame, whole, or NULL if that fails. */
static __always_inline struct ethhdr *reshape(const struct run *run, const __u32 quote,
					      const __u32 headers)
{
	const int kept = sizeof(struct ethhdr) + quote;
	struct ethhdr *eth, *old;
	struct cursor cursor;

	if (bpf_xdp_adjust_tail(run->ctx, kept - (int)run->length) ||
	    bpf_xdp_adjust_head(run->ctx, -(int)headers))
		return NULL;
	cursor = cursor_of(run->ctx);
	eth = cursor_take(&cursor, headers + kept);
	if (!eth)
		return NULL;
	old = (void *)eth + headers;
	ether_write(eth, mac_load(old->h_source), mac_load(old->h_dest), ether_type(old));
	return eth;
}

static __always_inline int too_big_v4(const struct run *run)
{
	struct ethhdr *eth;
	struct iphdr *ip, *quoted;
	struct icmp_header *icmp;

	run->cpu->counters.too_big_v4++;
	eth = reshape(run, TOO_BIG_QUOTE_V4, TOO_BIG_HEADERS_V4);
	if (!eth)
		return drop(run, DROP_REPLY_FAILED);
	ip = (struct iphdr *)(eth + 1);
	icmp = (struct icmp_header *)(ip + 1);
	quoted = (struct iphdr *)(icmp + 1);
	*ip = (struct iphdr){
		.version = 4,
		.ihl = sizeof(*ip) / 4,
		.tot_len = bpf_htons(TOO_BIG_HEADERS_V4 + TOO_BIG_QUOTE_V4),
		.ttl = REPLY_TTL,
		.protocol = IPPROTO_ICMP,
		.saddr = quoted->daddr,
		.daddr = quoted->saddr,
	};
	ip->check = csum_ipv4(ip);
	*icmp = (struct icmp_header){
		.type = ICMPV4_UNREACHABLE,
		.code = ICMPV4_CODE_FRAGMENTATION_NEEDED,
		.v4.mtu = bpf_htons(live.max_frame - sizeof(*eth)),
	};
	icmp->checksum = ~csum_fold(
		bpf_csum_diff(NULL, 0, (void *)icmp, sizeof(*icmp) + TOO_BIG_QUOTE_V4, 0));
	return XDP_TX;
}

static __always_inline int too_big_v6(const struct run *run)
{
	const __u32 mtu = live.max_frame - sizeof(struct ethhdr);
	const __u16 payload = sizeof(struct icmp_header) + TOO_BIG_QUOTE_V6;
	struct ethhdr *eth;
	struct ipv6hdr *ip, *quoted;
	struct icmp_header *icmp;
	__u32 sum;

	run->cpu->counters.too_big_v6++;
	eth = reshape(run, TOO_BIG_QUOTE_V6, TOO_BIG_HEADERS_V6);
	if (!eth)
		return drop(run, DROP_REPLY_FAILED);
	ip = (struct ipv6hdr *)(eth + 1);
	icmp = (struct icmp_header *)(ip + 1);
	quoted = (struct ipv6hdr *)(icmp + 1);
	*ip = (struct ipv6hdr){
		.version = 6,
		.payload_len = bpf_htons(payload),
		.nexthdr = IPPROTO_ICMPV6,
		.hop_limit = REPLY_TTL,
		.saddr = quoted->daddr,
		.daddr = quoted->saddr,
	};
	*icmp = (struct icmp_header){
		.type = ICMPV6_TOO_BIG,
		/* No link has less (RFC 8200, 5): hosts need not believe a smaller one. */
		.mtu_v6 = bpf_htonl(mtu < IPV6_MIN_MTU ? IPV6_MIN_MTU : mtu),
	};
	/* Pseudo header (RFC 8200, 8.1): both addresses, the length, the next header. */
	sum = bpf_htons(payload) + bpf_htons(IPPROTO_ICMPV6);
	sum = bpf_csum_diff(NULL, 0, (void *)&ip->saddr, 2 * sizeof(struct in6_addr), sum);
	sum = bpf_csum_diff(NULL, 0, (void *)icmp, payload, sum);
	icmp->checksum = ~csum_fold(sum);
	return XDP_TX;
}
