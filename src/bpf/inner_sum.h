/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The sum of an inner packet, which the UDP checksum in front of it needs (RFC 768). gue.h and the
 * health checks compute it without reading the payload: a correct transport checksum makes
 * transport header and payload add up to the complement of their pseudo header.
 */
#pragma once

#include "csum.h"

#include <stdbool.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>

/* The sum of `bytes` bytes as 32-bit words. */
static __always_inline __u32 sum_words(const void *from, const __u32 bytes)
{
	const __u32 *word = from;
	__u32 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < bytes / sizeof(*word); i++)
		sum += (word[i] & 0xffff) + (word[i] >> 16);
	return sum;
}

/* Subtracts a sum of 16-bit words from another when added to it (RFC 1071: the complement). */
static __always_inline __u32 minus(__u32 sum)
{
	return (__u16)~csum_fold(sum);
}

/* An IPv4 packet without options. Header and pseudo header both hold the addresses. ICMP has no
 * pseudo header (RFC 792). */
static __always_inline __u32 inner_sum_v4(const struct iphdr *ip, bool pseudo_header)
{
	const __u16 length = bpf_ntohs(ip->tot_len) - sizeof(*ip);

	if (!pseudo_header)
		return sum_words(ip, sizeof(*ip));
	return sum_words(ip, sizeof(*ip) - 2 * sizeof(ip->saddr)) +
	       minus(bpf_htons(ip->protocol) + bpf_htons(length));
}

/* An IPv6 packet without extension headers. Header and pseudo header both hold addresses and
 * length. */
static __always_inline __u32 inner_sum_v6(const struct ipv6hdr *ip)
{
	return sum_words(ip, sizeof(__u32)) + *(const __u16 *)&ip->nexthdr +
	       minus(bpf_htons(ip->nexthdr));
}
