/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Where a packet in an unsettled slot goes: by its flow's entry, by the slot's base, or by the ring. What a
 * slot was before is in slots.h, what the control side makes of it in src/ring/history.rs.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "flow_table.h"
#include "lookup.h"
#include "maps.h"
#include "parse.h"
#include "slots.h"
#include "verifier.h"

#include <linux/in.h>
#include <bpf/bpf_helpers.h>

/* What is known of an unsettled slot at the moment `now`. */
struct history {
	__u32 base; /* a real's number; 0: none */
	bool takes_new;
	__u16 since;
	__u16 now;
};

static __always_inline struct history history_of(const struct slot *slot, __u64 ticks, bool udp)
{
	struct history history = { .now = moment_of(ticks, udp) };
	const struct ring_planes *planes = slot->planes;
	__u16 *word;

	if (!planes)
		return history;
	word = plane_word(planes->bases, slot->index);
	if (word) {
		history.base = *word & BASE_REAL;
		history.takes_new = *word & BASE_TAKES_NEW;
	}
	word = plane_word(planes->since, slot->index);
	if (word)
		history.since = *word;
	return history;
}

/* A packet of the slot goes to another real than the ring's. This and the next function are no part of their caller,
 * whose stack would be too long otherwise. */
static __noinline void note_deviation(__u32 ring, __u32 index, __u16 now)
{
	const struct slot slot = find_slot(ring, index);
	__u16 *word = slot.planes ? plane_word(slot.planes->deviated, index) : NULL;

	if (word && *word != now)
		*word = now;
}

/* Where a packet in an unsettled slot goes that no entry leads: the real's number. `first`: it is a SYN. */
static __always_inline __u32 without_entry(const struct run *run, const struct history *history,
					   __u32 current, bool udp, bool first, __u64 now)
{
	if (udp) {
		const __u16 age = history->now - (history->since & ~MOMENT_BIT);

		return history->base &&
				       (__u32)(age >> 1) << udp_moment_shift <= udp_timeout ?
			       history->base :
			       current;
	}
	if (!first)
		return history->base ? history->base : current;
	/* On its base a flow needs no entry. */
	return history->takes_new && in_flood(run, now) ? history->base : current;
}

/* Whether the entry of a flow in an unsettled slot leads its packet: it is not older than the change, nor too
 * old for the protocol, and its real is there. */
static __noinline bool leads(const struct id_query *query, const struct flow_value *value, __u32 id,
			     __u16 since)
{
	const struct down_real key = { .vip = query->vip_number, .real = id };
	const bool udp = query->flow.protocol == IPPROTO_UDP;
	const __u64 now = ticks_now();

	if (!is_real(id) || !not_before(moment_of(value->used, udp), since))
		return false;
	if (udp && !used_since(value->used, now, udp_timeout))
		return false;
	if ((query->tcp_flags & TCP_SYN) && !used_since(value->used, now, syn_follows))
		return false;
	return !(query->vip.flags & VIP_VOID_FLOWS) || !bpf_map_lookup_elem(&down_reals, &key);
}

/* Remembers a flow in an unsettled slot that goes to this real. A connection on its base needs no entry, and an old one
 * would catch it. `value` is what the table knows of the flow, if it does. */
static __always_inline void remember_in_slot(const struct run *run, const struct flow_place *place,
					     const struct flow_key *key, struct flow_value *value,
					     __u32 number, __u32 base, __u64 now)
{
	struct real *real = real_of_slot(number);
	__u32 id;

	if (key->protocol != IPPROTO_UDP && number == base) {
		if (value)
			flow_forget(place, key, value);
		return;
	}
	if (!real)
		return;
	/* 0: the real was taken back since. */
	id = *(volatile __u32 *)&real->id;
	if (!id)
		return;
	/* Counted for the guard, but remembered all the same: else it would be lost at its next packet. */
	under_flood(run, now);
	flow_remember(run, place, key, flow_choose(place, now), id, now, USED_NO_ID);
}

/* What is said of a packet in an unsettled slot besides the number of its real. */
enum in_slot {
	IN_SLOT_BY_ENTRY = 1 << 16,
	IN_SLOT_BY_BASE = 1 << 17,
	IN_SLOT_MISS = 1 << 18, /* of a flow that is new, or has most likely lost its real */
	IN_SLOT_BROKEN = 1 << 19, /* the latter */
};

/* The number of the real of the packet that this CPU's record describes, in an unsettled slot, and bits of enum
 * in_slot: its entry's, if that is not older than the change; else its base's, for it is older itself; or
 * the ring's. A global function, so that the verifier looks at it once; it finds for itself what cannot be handed to such a
 * function. */
LOOKED_AT_ONCE int choose_in_slot(__u32 ring, __u32 index, __u32 special)
{
	const __u32 zero = 0;
	struct run run = {
		.cpu = bpf_map_lookup_elem(&cpus, &zero),
		.variant = special ? SPECIAL : PLAIN,
	};
	const __u64 now = ticks_now();
	const struct id_query *query;
	struct flow_value *value;
	struct flow_place place;
	struct history history;
	__u32 current, number, answer, id = 0;
	struct slot slot;
	bool udp, first, leaves, entry_leads;

	/* Before Linux 6.8 the verifier looks at it even if nothing calls it. */
	if (flow_tracking != TRACK_CHANGED || !run.cpu)
		return 0;
	query = &run.cpu->scratch.query;
	slot = find_slot(ring, index);
	current = number_in(&slot);
	history = history_of(&slot, now, query->flow.protocol == IPPROTO_UDP);
	place = flow_locate(&run, &query->flow, FAMILY_V6);
	value = flow_lookup(&place, &query->flow, &id);
	entry_leads = value && leads(query, value, id, history.since);
	/* What it says is read again and not kept on the stack, which is short. */
	barrier_var(query);
	udp = query->flow.protocol == IPPROTO_UDP;
	first = query->tcp_flags & TCP_SYN;
	/* RSTs and ICMP errors leave entries alone. */
	leaves = query->icmp || (query->tcp_flags & TCP_RST);
	if (entry_leads) {
		number = id & REAL_NUMBER_MASK;
		answer = number | IN_SLOT_BY_ENTRY;
		if (!first && !leaves)
			flow_stamp(&run, value, now);
	} else {
		number = without_entry(&run, &history, current, udp, first, now);
		answer = number;
		if (number && number == history.base)
			answer |= IN_SLOT_BY_BASE;
		else if (number && !udp && !first && !leaves)
			answer |= IN_SLOT_MISS | IN_SLOT_BROKEN;
		if (number && (udp || first) && !leaves) {
			answer |= IN_SLOT_MISS;
			remember_in_slot(&run, &place, &query->flow, value, number, history.base, now);
		}
	}
	if (number != current)
		note_deviation(ring, index, history.now);
	return answer;
}
