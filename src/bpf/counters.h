/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* The state of one run of the walk, its counters, and the explaining twin's notes; every step uses
 * it. Counters are per CPU, so no increment is atomic. */
#pragma once

#include "config.h"
#include "maps.h"
#include "verifier.h"

#include <stdbool.h>
#include <linux/if_ether.h>

/* The variants that a walk is compiled for, as a set. Each program knows its variant at compile
 * time, so code of the others leaves no instruction in it. (Testing a load-time constant still
 * costs a load.) */
enum variant {
	PLAIN = 0,
	EXPLAINS = 1 << 0, /* a twin, which records its decisions */
	SPECIAL = 1 << 1, /* for special packets, which another program has handed over */
	FULL = 1 << 2, /* with the features that few balancers use */
	RARE = 1 << 3, /* for frames that another program has handed over: see rare.h */
};

/* The state of one run of a program. */
struct run {
	struct xdp_md *ctx;
	struct cpu *cpu; /* this CPU's record */
	struct explanation *explanation;
	struct ethhdr *eth; /* valid until the head is moved */
	__u64 length; /* of the whole frame, in bytes; after decapsulation, of what is left */
	enum variant variant; /* a constant */
	bool untagged; /* the frame's VLAN tags are put aside */
	bool unwrapped; /* the frame came in a tunnel that ended here */
};

static __always_inline bool is(const struct run *run, enum variant variant)
{
	return run->variant & variant;
}

/* Whether a feature is on that only full programs have. */
static __always_inline bool rare_feature(const struct run *run, __u32 bit)
{
	return is(run, FULL) && feature(bit);
}

static __always_inline bool gue_is_on(const struct run *run)
{
	return is(run, FULL) && encapsulation == ENCAPSULATION_GUE;
}

static __always_inline void note_step(const struct run *run, enum step step)
{
	if (is(run, EXPLAINS))
		run->explanation->step = step;
}

static __always_inline int drop(const struct run *run, enum drop_reason reason)
{
	stay_aside();
	run->cpu->counters.drops[reason]++;
	if (is(run, EXPLAINS))
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

/* Counts the frame by its verdict, with its length on arrival. */
static __always_inline void count_verdict(const struct run *run, int verdict, __u64 arrived)
{
	if (verdict == XDP_TX || (is(run, FULL) && verdict == XDP_REDIRECT))
		count_frame(&run->cpu->counters.tx, arrived);
	else if (verdict == XDP_PASS)
		count_frame(&run->cpu->counters.pass, arrived);
	else
		count_frame(&run->cpu->counters.drop, arrived);
}
