/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Takes a packet out of its tunnel, in XDP programs: removes the outer headers and moves the
 * Ethernet header to the inner packet. The balancer's inline_decap.h and the XDP decapsulator call
 * it. */
#pragma once

#include "cursor.h"
#include "headers.h"
#include "tunnel.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

/* The frame's new Ethernet header, with the cursor at the inner packet behind it; NULL: the kernel
 * refused to move the head. */
static __always_inline struct ethhdr *strip_outer(struct xdp_md *ctx, const struct ethhdr *eth,
						  const struct tunnel *tunnel, struct cursor *inner)
{
	const __u64 destination = mac_load(eth->h_dest);
	const __u64 source = mac_load(eth->h_source);
	struct ethhdr *moved;

	if (bpf_xdp_adjust_head(ctx, tunnel->outer_bytes))
		return NULL;
	*inner = cursor_of(ctx);
	moved = cursor_take(inner, sizeof(*moved));
	if (!moved)
		return NULL;
	ether_write(moved, destination, source, inner_type(tunnel));
	return moved;
}
