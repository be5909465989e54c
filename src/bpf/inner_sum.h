/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What an inner packet adds up to, as the UDP checksum in front of it has to know (RFC 768), without a look
 * at its payload: a right transport checksum makes transport header and payload add up to the
 * complement of their pseudo header.
 */
#pragma once

#include "csum.h"

#include <stdbool.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>

/* The sum of so many bytes in words of 32 bits. */
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

/* An IPv4 packet without options. The addresses are in header and pseudo header; ICMP has none
 * (RFC 792). */
static __always_inline __u32 inner_sum_v4(const struct iphdr *ip, bool pseudo_header)
{
	const __u16 length = bpf_ntohs(ip->tot_len) - sizeof(*ip);

	if (!pseudo_header)
		return sum_words(ip, sizeof(*ip));
	return sum_words(ip, sizeof(*ip) - 2 * sizeof(ip->saddr)) +
	       minus(bpf_htons(ip->protocol) + bpf_htons(length));
}

/* An IPv6 packet without extension headers. Addresses and length are in both. */
static __always_inline __u32 inner_sum_v6(const struct ipv6hdr *ip)
{
	return sum_words(ip, sizeof(__u32)) + *(const __u16 *)&ip->nexthdr +
	       minus(bpf_htons(ip->nexthdr));
}
