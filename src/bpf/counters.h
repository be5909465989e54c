/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Counting, and what the explaining twin notes on the way. Per CPU, so no increment is atomic. */
#pragma once

#include "maps.h"

#include <stdbool.h>
#include <linux/if_ether.h>

/* What one run of the program carries along. `explain` is a constant of each of the two
 * programs, so the balancer itself holds no trace of it. */
struct run {
	struct xdp_md *ctx;
	struct counters *counters;
	struct explanation *explanation;
	struct ethhdr *eth; /* valid until the head is moved */
	__u64 length; /* of the whole frame on arrival, bytes */
	bool explain;
};

static __always_inline void note_step(const struct run *run, enum step step)
{
	if (run->explain)
		run->explanation->step = step;
}

static __always_inline int drop(const struct run *run, enum drop_reason reason)
{
	run->counters->drops[reason]++;
	if (run->explain)
		run->explanation->drop = reason;
	return XDP_DROP;
}

static __always_inline int pass(const struct run *run, enum step step)
{
	note_step(run, step);
	return XDP_PASS;
}

static __always_inline void count_frame(struct count *count, __u64 bytes)
{
	count->packets++;
	count->bytes += bytes;
}
