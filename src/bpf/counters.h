/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Counting, and what the explaining twin notes on the way. Per CPU, so no increment is atomic. */
#pragma once

#include "config.h"
#include "maps.h"

#include <stdbool.h>
#include <linux/if_ether.h>

/* What one run of the program carries along. `explain` is a constant of each of the two
 * programs, so the balancer itself holds no trace of it. */
struct run {
	struct xdp_md *ctx;
	struct cpu *cpu; /* this one's record */
	struct explanation *explanation;
	struct ethhdr *eth; /* valid until the head is moved */
	__u64 length; /* of the whole frame, bytes; after decapsulation, of what is left of it */
	bool explain;
	/* Constants, too: this is the program for special VIPs; this one has what few balancers need.
	 * To test a load-time constant still takes a load, which all others are spared so. */
	bool special;
	bool full;
	bool untagged; /* the frame's VLAN tags are put aside */
	bool unwrapped; /* the frame came in a tunnel that ended here */
};

/* Whether one of the features is on that only full programs have. */
static __always_inline bool rare_feature(const struct run *run, __u32 bit)
{
	return run->full && feature(bit);
}

static __always_inline bool gue_is_on(const struct run *run)
{
	return run->full && encapsulation == ENCAPSULATION_GUE;
}

static __always_inline void note_step(const struct run *run, enum step step)
{
	if (run->explain)
		run->explanation->step = step;
}

static __always_inline int drop(const struct run *run, enum drop_reason reason)
{
	run->cpu->counters.drops[reason]++;
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

/* Counts the frame by its verdict, with the bytes that it came with. */
static __always_inline void count_verdict(const struct run *run, int verdict, __u64 arrived)
{
	if (verdict == XDP_TX || (run->full && verdict == XDP_REDIRECT))
		count_frame(&run->cpu->counters.tx, arrived);
	else if (verdict == XDP_PASS)
		count_frame(&run->cpu->counters.pass, arrived);
	else
		count_frame(&run->cpu->counters.drop, arrived);
}
