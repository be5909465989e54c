// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* The decapsulator as an XDP program. */
#include <linux/bpf.h>

#define CONTEXT struct xdp_md
#define PASS XDP_PASS
#define DROP XDP_DROP
#include "decap.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __always_inline __u32 frame_length(const struct xdp_md *ctx)
{
	return (void *)(long)ctx->data_end - (void *)(long)ctx->data;
}

static __always_inline bool strip(struct xdp_md *ctx, struct ethhdr *eth,
				  const struct tunnel *tunnel)
{
	const __u64 destination = mac_load(eth->h_dest);
	const __u64 source = mac_load(eth->h_source);
	const __be16 type = tunnel->inner_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	struct cursor cursor;

	if (bpf_xdp_adjust_head(ctx, tunnel->outer_bytes))
		return false;
	cursor = cursor_of(ctx);
	eth = cursor_take(&cursor, sizeof(*eth));
	if (!eth)
		return false;
	ether_write(eth, destination, source, type);
	return true;
}

SEC("xdp")
int decap(struct xdp_md *ctx)
{
	return take_out(ctx);
}
