/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The flow table: which real a flow went to. One table per forwarding CPU, made by the library on
 * that CPU's NUMA node, and a small shared one for frames that arrive on other CPUs. There are two
 * kinds, chosen by a load-time constant: what the other one needs, code and maps, is not loaded.
 * Also the flood guard, which decides whether new flows are remembered at all.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "flow_lru.h"
#include "flow_sets.h"
#include "lookup.h"
#include "verifier.h"

#include <linux/in.h>

/* Where a flow's entry is, or would be. */
struct flow_place {
	void *table; /* of this CPU; NULL: the fallback */
	struct flow_set *set;
	__u64 fingerprint;
};

/* The clock of flow entries and of the flood guard, in ticks; to read it is one load. */
static __always_inline __u64 ticks_now(void)
{
	return bpf_jiffies64();
}

static __always_inline struct flow_place flow_locate(const struct run *run,
						     const struct flow_key *key, bool v6)
{
	const __u32 cpu = bpf_get_smp_processor_id();
	struct flow_place place = { .table = bpf_map_lookup_elem(&flow_tables, &cpu) };

	/* For a special packet the program before has counted it. */
	if (!place.table && !is(run, SPECIAL))
		run->cpu->counters.flow_fallback++;
	if (flow_table_kind == FLOW_TABLE_SETS) {
		place.fingerprint = flow_fingerprint(key, v6);
		place.set = sets_locate(place.table, &run->cpu->sets, place.fingerprint);
	}
	return place;
}

/* What the table knows of the flow, however old, and the real's id in `id`; NULL if nothing. */
static __always_inline struct flow_mark *flow_lookup(const struct flow_place *place,
						     const struct flow_key *key, __u32 *id)
{
	if (flow_table_kind == FLOW_TABLE_SETS)
		return sets_find(place->set, place->fingerprint, id);
	return lru_find(place->table, key, id);
}

/* The real that the flow went to; NULL if it is new, its entry too old, or its real gone. */
static __always_inline struct real *flow_find(const struct flow_place *place,
					      const struct flow_key *key, __u32 now, __u32 *number)
{
	struct real *real;
	__u32 id = 0;
	struct flow_mark *mark = flow_lookup(place, key, &id);

	if (!mark)
		return NULL;
	*number = id & REAL_NUMBER_MASK;
	real = real_at(*number);
	if (!real || real->id != id)
		return NULL;
	/* What is a little ahead is an entry of the shared table that another CPU has stamped since. */
	if (key->protocol == IPPROTO_UDP &&
	    now - mark->used + ticks_per_second > udp_timeout + ticks_per_second)
		return NULL;
	/* The LRU hash needs no stamp for its own order. */
	if (flow_table_kind == FLOW_TABLE_SETS || key->protocol == IPPROTO_UDP)
		mark->used = now;
	return real;
}

static __always_inline void flow_remember(const struct run *run, const struct flow_place *place,
					  const struct flow_key *key, __u32 id, __u32 now)
{
	/* The time-out of UDP flows reads the stamp, so theirs is true. */
	const __u32 used = key->protocol == IPPROTO_UDP ? now : now - new_flow_age;

	if (flow_table_kind == FLOW_TABLE_SETS)
		sets_remember(place->table, place->set, &run->cpu->sets, place->fingerprint, id, now,
			      used);
	else
		lru_remember(place->table, key, id, now);
}

/* Counts a new flow of this CPU. True if there have been more than `flood_threshold` in the
 * present second. */
static __always_inline bool under_flood(const struct run *run, __u64 now)
{
	struct flood_window *window = &run->cpu->flood;

	if (now - window->start >= ticks_per_second) {
		window->start = now;
		window->new_flows = 0;
	}
	window->new_flows++;
	return window->new_flows > flood_threshold;
}

/* Whether this CPU's flood guard acts now; counts nothing. */
static __always_inline bool in_flood(const struct run *run, __u64 now)
{
	const struct flood_window *window = &run->cpu->flood;

	return now - window->start < ticks_per_second && window->new_flows > flood_threshold;
}

/* What the table said of a flow whose real was known before it was asked. */
enum correction { FLOW_MATCHED, FLOW_CORRECTED, FLOW_NOT_FOUND };

/* Enters the flow of the packet that this CPU's record describes. A global function, so that the
 * verifier looks at it once; it finds for itself what cannot be handed to such a function. */
LOOKED_AT_ONCE int flow_enter(__u32 id)
{
	const __u32 zero = 0;
	struct run run = { .cpu = bpf_map_lookup_elem(&cpus, &zero), .variant = SPECIAL };
	struct flow_place place;
	struct flow_key *key;

	if (!run.cpu)
		return 0;
	key = &run.cpu->scratch.query.flow;
	place = flow_locate(&run, key, true);
	flow_remember(&run, &place, key, id, ticks_now());
	return 0;
}

/* Makes the entry of that flow say `id`. An entry that is missing counts as a new flow; under flood
 * it is not made. */
static __always_inline enum correction flow_correct(const struct run *run,
						    const struct flow_place *place,
						    const struct flow_key *key, __u32 id, __u64 now)
{
	__u32 before = 0;
	struct flow_mark *mark = flow_lookup(place, key, &before);

	if (!mark) {
		if (!under_flood(run, now))
			flow_enter(id);
		return FLOW_NOT_FOUND;
	}
	mark->used = now;
	if (before == id)
		return FLOW_MATCHED;
	if (flow_table_kind == FLOW_TABLE_SETS)
		sets_change(mark, place->fingerprint, id);
	else
		mark->id = id;
	return FLOW_CORRECTED;
}
