/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Skips the IPv6 extension headers between the IP header and what it carries (RFC 8200, section 4).
 * The parser and the decapsulators call it for packets that have any. */
#pragma once

#include "cursor.h"
#include "verifier.h"

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/ipv6.h>

#define IPV6_NEXT_HOP_BY_HOP 0
#define IPV6_NEXT_ROUTING 43
#define IPV6_NEXT_FRAGMENT 44
#define IPV6_NEXT_DESTINATION 60
/* How many extension headers are skipped, and a mask for their length: each has at most 256 times
 * eight bytes. */
#define EXTENSIONS 4
#define EXTENSION_BYTES_MASK 0x3fff
/* An IP header begins no later in a frame. */
#define IP_LATEST 0x3fff

/* Hop-by-hop options, destination options and routing begin alike (RFC 8200, 4). */
struct extension {
	__u8 next;
	__u8 length; /* in units of eight bytes, without the first */
	__u8 routing_type;
	__u8 segments_left;
	__u8 rest[4];
};

static __always_inline bool is_extension(__u8 next)
{
	return next == IPV6_NEXT_HOP_BY_HOP || next == IPV6_NEXT_ROUTING ||
	       next == IPV6_NEXT_DESTINATION;
}

static __always_inline bool has_extensions(const struct ipv6hdr *ip)
{
	return is_extension(ip->nexthdr);
}

/* The protocol behind the extension headers of the IPv6 packet at offset `at` of the frame, and
 * above it their bytes; negative: they cannot be skipped. A global function, so the verifier checks
 * it once, and packets without extension headers keep their registers. */
LOOKED_AT_ONCE int skip_extensions(struct xdp_md *ctx, __u32 at)
{
	const struct ipv6hdr *ip;
	struct cursor cursor;
	__u32 bytes = 0;
	__u8 next;

	if (!ctx)
		return -1;
	cursor = cursor_of(ctx);
	cursor.position += at & IP_LATEST;
	ip = cursor_take(&cursor, sizeof(*ip));
	if (!ip)
		return -1;
	next = ip->nexthdr;
	for (int i = 0; i < EXTENSIONS && is_extension(next); i++) {
		const struct extension *header = cursor_take(&cursor, sizeof(*header));

		if (!header || (next == IPV6_NEXT_ROUTING && header->segments_left))
			return -1;
		next = header->next;
		bytes += sizeof(*header) * (header->length + 1);
		cursor.position += sizeof(*header) * header->length;
	}
	return is_extension(next) ? -1 : (int)(next | bytes << 8);
}

/* The bytes that skip_extensions() skipped. */
static __always_inline __u32 extension_bytes(int skipped)
{
	return (__u32)skipped >> 8 & EXTENSION_BYTES_MASK;
}
