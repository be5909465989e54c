// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* The decapsulator as an XDP program, on the backend's interface. decap.h does the work. */
#include <linux/bpf.h>

#define CONTEXT struct xdp_md
#define PASS XDP_PASS
#define DROP XDP_DROP
#include "decap.h"
#include "strip.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __always_inline __u32 frame_length(const struct xdp_md *ctx)
{
	return (void *)(long)ctx->data_end - (void *)(long)ctx->data;
}

static __always_inline bool strip(struct xdp_md *ctx, struct ethhdr *eth,
				  const struct tunnel *tunnel)
{
	struct cursor inner;

	return strip_outer(ctx, eth, tunnel, &inner);
}

SEC("xdp")
int decap(struct xdp_md *ctx)
{
	return take_out(ctx);
}
