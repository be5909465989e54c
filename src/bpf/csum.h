/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* The Internet checksum (RFC 1071) and its incremental update (RFC 1624), for every program that
 * writes headers. Sums are of 16-bit words in memory order, so byte order never matters. */
#pragma once

#include <linux/types.h>
#include <linux/ip.h>
#include <bpf/bpf_helpers.h>

/* Two folds carry out every bit of a sum of up to 2^16 words. */
static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The checksum after one word of the data has changed (RFC 1624, equation 3). */
static __always_inline __u16 csum_replace(__u16 check, __u16 from, __u16 to)
{
	return ~csum_fold((__u16)~check + (__u32)(__u16)~from + to);
}

/* The checksum of an IPv4 header without options whose check field is 0. */
static __always_inline __u16 csum_ipv4(const struct iphdr *header)
{
	const __u32 *word = (const __u32 *)header;
	__u64 sum = 0;

	/* Two words at a time, because 2^16 counts as 1 in this sum; one fold brings it into
	 * csum_fold()'s range. */
#pragma unroll
	for (int i = 0; i < (int)(sizeof(*header) / sizeof(*word)); i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return ~csum_fold(sum);
}
