/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Congestion marks at the end of a tunnel (RFC 6040, section 4.2): copies what routers wrote into
 * the outer header to the inner packet, so that its ends see it. Every program that strips tunnels
 * calls it.
 */
#pragma once

#include "csum.h"
#include "cursor.h"
#include "tunnel.h"

#include <stdbool.h>
#include <linux/ip.h>

#define ECN_MASK 3
#define ECN_NOT_ECT 0
#define ECN_ECT_1 1
#define ECN_ECT_0 2
#define ECN_CE 3

/* For programs whose kernel keeps a sum of the packet: a word changed that no checksum in the
 * packet makes up for. */
#ifndef SUM_CHANGED
#define SUM_CHANGED(ctx, from, to) ((void)(ctx))
#endif

/* False: the packet must be dropped, because its ends would not understand a mark (or it is cut
 * short). */
static __always_inline bool hand_on_ecn(CONTEXT *ctx, const struct tunnel *tunnel)
{
	const __u8 outer = tunnel->tos & ECN_MASK;
	const __u8 shift = tunnel->inner_v6 ? 4 : 0;
	struct cursor cursor = tunnel->inner;
	/* The first 20 bytes of either header; the mark is in the second byte. */
	struct iphdr *ip = cursor_take(&cursor, sizeof(*ip));
	__u8 inner, mark;
	__u16 before;

	if (!ip)
		return false;
	before = *(__u16 *)ip;
	inner = ip->tos >> shift & ECN_MASK;
	if (outer == ECN_CE)
		mark = ECN_CE;
	else if (outer == ECN_ECT_1 && inner == ECN_ECT_0)
		mark = ECN_ECT_1;
	else
		return true;
	if (inner == ECN_NOT_ECT)
		return false;
	ip->tos ^= (inner ^ mark) << shift;
	if (tunnel->inner_v6)
		SUM_CHANGED(ctx, before, *(__u16 *)ip);
	else
		ip->check = csum_replace(ip->check, before, *(__u16 *)ip);
	return true;
}
