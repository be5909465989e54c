/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Decides where a packet in an unsettled slot goes: by its flow's entry, by the slot's base, or by
 * the ring. route.h calls it. slots.h describes a slot's past, which the control side writes in
 * src/ring/history.rs.
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

/* The number of the real for a packet in an unsettled slot that no entry routes. `first`: it is a
 * SYN. */
static __always_inline __u32 without_entry(const struct run *run, const struct slot_past *past,
					   __u32 current, bool udp, bool first, __u64 now)
{
	const __u32 base = past->base & BASE_REAL;

	if (udp) {
		const __u16 age = moment_of(now, udp) - (past->since & ~MOMENT_BIT);

		return base && (__u32)(age >> 1) << udp_moment_shift <= udp_timeout ? base :
											 current;
	}
	if (!first)
		return base ? base : current;
	/* A flow on its base needs no entry. */
	return (past->base & BASE_TAKES_NEW) && in_flood(run, now) ? base : current;
}

/* Whether the VIP has given up its flows on this real, though the real exists. Not inlined, to keep
 * the key off the caller's stack. */
static __noinline bool is_given_up(__u32 vip_number, __u32 id)
{
	const struct down_real key = { .vip = vip_number, .real = id };

	return bpf_map_lookup_elem(&down_reals, &key);
}

/* Whether the entry of a flow in an unsettled slot routes its packet: it is no older than the
 * change, not too old for the protocol, and its real exists. */
static __always_inline bool leads(const struct id_query *query, const struct flow_value *value,
				  __u32 id, __u16 since, bool udp, bool first, __u64 now)
{
	const struct real *real = real_of_slot(id & REAL_NUMBER_MASK);

	if (!real || real->id != id || !not_before(moment_of(value->used, udp), since))
		return false;
	if (udp && !used_since(value->used, now, udp_timeout))
		return false;
	if (first && !used_since(value->used, now, syn_follows))
		return false;
	return likely(!(query->vip.flags & VIP_VOID_FLOWS)) || !is_given_up(query->vip_number, id);
}

/* Stamps the entry that routed a packet. Once the client has ended a connection, its entry may be
 * replaced as early as that of a single-packet flow; packets within seconds of the FIN leave it so.
 * Later ones restore it, because anyone can send a FIN. Not inlined, because the caller's stack
 * would grow too long. */
static __noinline void stamp_in_slot(struct flow_value *value, __u32 tcp_flags, __u32 now)
{
	if (tcp_flags & TCP_FIN)
		value->used = now & ~USED_BITS;
	else if ((value->used & USED_BITS) || !used_since(value->used, now, syn_follows))
		value->used = now | USED_BITS;
}

/* Remembers that a flow in an unsettled slot goes to this real. A connection on its base needs no
 * entry, and an old one would catch it. `base`: 0 if it does need one. `value` is the flow's entry,
 * if there is one. True: split sets. */
static __always_inline bool remember_in_slot(const struct run *run, const struct flow_place *place,
					     const struct flow_key *key, struct flow_value *value,
					     __u32 number, __u32 base, __u64 now)
{
	struct real *real = real_of_slot(number);
	__u32 id;

	if (key->protocol != IPPROTO_UDP && number == base) {
		if (value)
			flow_forget(place, key, value);
		return false;
	}
	if (!real)
		return false;
	/* 0: the library took the real back since. */
	id = *(volatile __u32 *)&real->id;
	if (!id)
		return false;
	/* The flood guard counts the flow, but never prevents the entry: without one the flow would
	 * break at its next packet. */
	under_flood(run, now);
	return flow_remember(run, place, key, flow_choose(place, now), id, now, USED_NO_ID);
}

/* Stamps the slot of a packet that goes elsewhere than its ring says. */
static __always_inline void stamp_slot(struct slot_past *past, bool deviates, bool udp, __u64 now)
{
	const __u16 moment = moment_of(now, udp);

	/* Only if it changes, because all CPUs share it. */
	if (deviates && past->deviated != moment)
		past->deviated = moment;
}

/* Flags of a packet in an unsettled slot, beside the number of its real. */
enum in_slot {
	IN_SLOT_BY_ENTRY = 1 << 16,
	IN_SLOT_BY_BASE = 1 << 17,
	IN_SLOT_MISS = 1 << 18, /* the flow is new, or has most likely lost its real */
	IN_SLOT_BROKEN = 1 << 19, /* the latter */
	IN_SLOT_SPLIT = 1 << 20, /* split sets */
	IN_SLOT_DEVIATES = 1 << 21, /* a connection begins on a real other than the base */
};

/* The number of the real for the packet that this CPU's record describes, in an unsettled slot, and
 * bits of enum in_slot. The real comes from the flow's entry if that is no older than the change;
 * else from the base if the flow is older than the change; else from the ring. A global function,
 * so the verifier checks it once; it looks up whatever cannot be passed to such a function. */
LOOKED_AT_ONCE int choose_in_slot(__u32 ring, __u32 index)
{
	const __u32 zero = 0;
	const struct run run = { .cpu = bpf_map_lookup_elem(&cpus, &zero), .variant = PLAIN };
	const __u64 now = ticks_now();
	__u32 current = 0, number, answer, id = 0;
	const struct id_query *query;
	struct flow_value *value;
	struct flow_place place;
	struct slot_past *past;
	bool udp, first, leaves;

	/* Before Linux 6.8 the verifier checks this even if nothing calls it. */
	if (flow_tracking != TRACK_CHANGED || !run.cpu)
		return 0;
	query = &run.cpu->scratch.query;
	place = flow_locate(&run, &query->flow, FAMILY_V6);
	past = find_past(ring, index, &current);
	if (!past)
		return 0;
	current &= SLOT_REAL;
	udp = query->flow.protocol == IPPROTO_UDP;
	first = query->tcp_flags & TCP_SYN;
	/* RSTs and ICMP errors leave entries alone. */
	leaves = query->icmp || (query->tcp_flags & TCP_RST);
	value = flow_lookup(&place, &query->flow, &id);
	if (value && leads(query, value, id, past->since, udp, first, now)) {
		number = id & REAL_NUMBER_MASK;
		answer = number | IN_SLOT_BY_ENTRY;
		if (!first && !leaves)
			stamp_in_slot(value, query->tcp_flags, now);
	} else {
		const __u32 base = past->base & BASE_REAL;

		number = without_entry(&run, past, current, udp, first, now);
		answer = number;
		if (number && number == base)
			answer |= IN_SLOT_BY_BASE;
		else if (number && !udp && !first && !leaves)
			answer |= IN_SLOT_MISS | IN_SLOT_BROKEN;
		if (number && (udp || first) && !leaves) {
			answer |= IN_SLOT_MISS;
			/* Without an entry here the connection would find an old entry in the
			 * replaced program's table. */
			if (remember_in_slot(&run, &place, &query->flow, value, number,
					     query->vip.flags & VIP_HANDS_BACK ? 0 : base, now))
				answer |= IN_SLOT_SPLIT;
		}
	}
	stamp_slot(past, number != current, udp, now);
	return answer;
}

/* The same for a packet in any slot that neither an id nor an entry routes, while TCP server ids
 * are on. Tables know all connections only since ids were turned on; an older one may have no
 * entry, and is on the base. */
LOOKED_AT_ONCE int choose_unknown_in_slot(__u32 ring, __u32 index)
{
	const __u32 zero = 0;
	const struct run run = { .cpu = bpf_map_lookup_elem(&cpus, &zero), .variant = SPECIAL };
	const __u64 now = ticks_now();
	const struct id_query *query;
	__u32 word = 0, number, base;
	struct slot_past *past;
	bool first;

	/* Before Linux 6.8 the verifier checks this even if nothing calls it. */
	if (flow_tracking != TRACK_CHANGED || !feature(FEATURE_TCP_SERVER_ID) || !run.cpu)
		return 0;
	query = &run.cpu->scratch.query;
	past = find_past(ring, index, &word);
	number = word & SLOT_REAL;
	if (!past || !(word & SLOT_UNSETTLED) || !(query->vip.flags & VIP_TRACKS_CHANGES))
		return number;
	base = past->base & BASE_REAL;
	first = query->tcp_flags & TCP_SYN;
	number = without_entry(&run, past, number, false, first, now);
	stamp_slot(past, number != (word & SLOT_REAL), false, now);
	if (number && number == base)
		return number | IN_SLOT_BY_BASE;
	return first ? number | IN_SLOT_DEVIATES : number;
}

/* Whether only ring and base route the packet that this CPU's record describes, while tables of the
 * replaced program, from which not all flows have been copied, may have an entry. A flow that
 * begins with this packet has none. */
LOOKED_AT_ONCE int may_be_known_before(void)
{
	const __u32 zero = 0;
	const struct run run = { .cpu = bpf_map_lookup_elem(&cpus, &zero), .variant = SPECIAL };
	const __u64 now = ticks_now();
	const struct id_query *query;
	struct flow_value *value;
	struct flow_place place;
	__u32 id = 0;
	bool udp;

	if (!run.cpu)
		return 0;
	query = &run.cpu->scratch.query;
	if (query->tcp_flags & TCP_SYN)
		return 0;
	udp = query->flow.protocol == IPPROTO_UDP;
	place = flow_locate(&run, &query->flow, FAMILY_V6);
	value = flow_lookup(&place, &query->flow, &id);
	if (flow_tracking == TRACK_CHANGED && (query->vip.flags & VIP_TRACKS_CHANGES) &&
	    (udp || !feature(FEATURE_TCP_SERVER_ID))) {
		const __u32 *source = (const __u32 *)query->flow.source;
		const struct slot slot = find_slot(query->vip.ring,
						   query->flow.family == FAMILY_V6 ?
							   hash_flow(source, query->hash_ports, FAMILY_V6) :
							   hash_flow(source, query->hash_ports, FAMILY_V4));
		const struct slot_past *past;
		__u32 word = 0;

		if (!is_unsettled(&slot))
			return 0;
		past = find_past(query->vip.ring, slot.index, &word);
		return past && !(value && leads(query, value, id, past->since, udp, false, now));
	}
	return !value || !is_real(id) || (udp && !used_since(value->used, now, udp_timeout));
}
