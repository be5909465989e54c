/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Hands rare frames to a separate program, so that others pay nothing for them. A frame is
 * rare if it has VLAN tags, or anything but whole TCP or UDP right behind a plain IP header: ICMP,
 * fragments, options, extension headers, wrong lengths.
 */
#pragma once

#include "counters.h"
#include "maps.h"

/* `tag_bytes`: length of the VLAN tags put aside. */
static __always_inline int walk_rarely(const struct run *run, __u64 arrived, __u32 tag_bytes)
{
	struct rare_frame *rare = &run->cpu->scratch.rare;

	rare->arrived = arrived;
	rare->tag_bytes = tag_bytes;
	rare->unwrapped = run->unwrapped;
	bpf_tail_call(run->ctx, &special_programs,
		      is(run, EXPLAINS) ? PROGRAM_EXPLAIN_RARE : PROGRAM_RARE);
	/* The programs are there since load, unless something empties the array. */
	return drop(run, DROP_PROGRAM_MISSING);
}
