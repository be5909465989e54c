/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Frames that few packets come in: with VLAN tags, and all but whole TCP and UDP right behind a plain IP
 * header, such as ICMP, fragments, options and extension headers, or lengths that are wrong. A program of
 * its own walks them, so that others pay for none of it.
 */
#pragma once

#include "counters.h"
#include "maps.h"

/* Hands the frame to that program, with so many bytes of tags that are put aside. */
static __always_inline int walk_rarely(const struct run *run, __u64 arrived, __u32 tag_bytes)
{
	struct rare_frame *rare = &run->cpu->scratch.rare;

	rare->arrived = arrived;
	rare->tag_bytes = tag_bytes;
	rare->unwrapped = run->unwrapped;
	bpf_tail_call(run->ctx, &special_programs,
		      is(run, EXPLAINS) ? PROGRAM_EXPLAIN_RARE : PROGRAM_RARE);
	/* They are there since load, unless somebody has emptied the array. */
	return drop(run, DROP_PROGRAM_MISSING);
}
