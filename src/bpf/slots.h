/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Slots of rings and their past; route.h and in_slot.h call it. A slot is settled when every live
 * flow in it belongs to the real that the ring names: the program then looks nowhere else. An
 * unsettled slot has a base, the real it named when it was last settled. Flows older than the
 * change belong to the base; younger ones have entries in the flow table unless they are on the
 * base.
 *
 * A slot's past is one record: its base, the moment since when it is unsettled, and the last moment
 * at which a packet went to another real than the ring's. Records are spread over PLANES places of
 * rings, which the ring names after its slots, so the one store that switches a VIP to a ring also
 * switches it to marks and bases. The control side settles slots in place.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "flow_table.h"
#include "lookup.h"
#include "maps.h"
#include "parse.h"
#include "verifier.h"

#include <linux/in.h>

/* The slot that a packet's hash picks. */
struct slot {
	__u64 index;
	__u32 word; /* the real's number, and SLOT_UNSETTLED; 0: the VIP has no ring */
};

/* Whether only unsettled slots ask the tables. */
static __always_inline bool tracks_changes(const struct run *run, const struct packet *packet,
					   __u32 flags)
{
	return (flags & VIP_TRACKS_CHANGES) && !(rare_feature(run, FEATURE_TCP_SERVER_ID) &&
						 packet->flow.protocol == IPPROTO_TCP);
}

static __always_inline bool is_unsettled(const struct slot *slot)
{
	return slot->word & SLOT_UNSETTLED;
}

static __always_inline __u32 number_in(const struct slot *slot)
{
	return flow_tracking == TRACK_CHANGED ? slot->word & SLOT_REAL : slot->word;
}

/* The real with the number in a slot or an entry. Hides what the verifier knows about the number,
 * so that it checks what follows once for all paths. */
static __always_inline struct real *real_of_slot(__u64 number)
{
	return real_at(number + unknown_zero(number));
}

static __always_inline struct slot find_slot(__u32 ring, __u32 hash)
{
	struct slot slot = { .index = hash % ring_size };
	__u16 *words = ring_at(ring);

	/* The verifier does not track the remainder. So compare with ring_size again; the barrier
	 * makes the compiler compare all 64 bits, including the upper half, which it knows to be 0
	 * and the verifier does not (clang 15 and newer). */
	barrier_var(slot.index);
	if (words && slot.index < ring_size)
		slot.word = words[slot.index];
	return slot;
}

/* The past of an unsettled slot, and its word in `word`; NULL: the ring has no such slot, or no
 * past. */
static __always_inline struct slot_past *find_past(__u32 ring, __u64 index, __u32 *word)
{
	__u16 *words = ring_at(ring);
	const struct ring_planes *planes;
	struct slot_past *plane;

	/* See find_slot. */
	barrier_var(index);
	if (!words || index >= ring_size)
		return NULL;
	*word = words[index];
	planes = (void *)words + ring_planes_at;
	plane = (void *)ring_at(planes->numbers[index % PLANES]);
	return plane ? &plane[index / PLANES] : NULL;
}

/* The slot of the flow's hash. */
static __always_inline struct slot slot_of(const struct packet *packet, const struct vip *vip,
					   enum family family)
{
	/* RING_NONE does not exist, so it has no slot. */
	return find_slot(vip->ring,
			 hash_flow((const __u32 *)packet->flow.source, packet->hash_ports, family));
}

/* Moments of a history: ticks so coarse that 15 bits last hundreds of timeouts. The lowest bit is
 * for the control side. */
static __always_inline __u16 moment_of(__u32 ticks, bool udp)
{
	return ticks >> (udp ? udp_moment_shift : tcp_moment_shift) << 1;
}

static __always_inline bool not_before(__u16 moment, __u16 other)
{
	return (__s16)(moment - (other & ~MOMENT_BIT)) >= 0;
}
