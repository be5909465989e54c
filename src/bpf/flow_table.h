/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The flow table: which real a flow went to. The walk asks it for packets that the ring alone
 * cannot route. Each forwarding CPU has a table, which the library makes on that CPU's NUMA node;
 * other CPUs share a small one. A load-time constant chooses between two types; code and maps of
 * the other are not loaded. Also here is the flood guard, which decides whether to remember new
 * flows at all.
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

/* The clock of flow entries and of the flood guard, in ticks. Reading it is one load. */
static __always_inline __u64 ticks_now(void)
{
	return bpf_jiffies64();
}

static __always_inline struct flow_place flow_locate(const struct run *run,
						     const struct flow_key *key, enum family family)
{
	const __u32 cpu = bpf_get_smp_processor_id();
	struct flow_place place = { .table = bpf_map_lookup_elem(&flow_tables, &cpu) };

	/* For a special packet the previous program has counted it. */
	if (!place.table && !is(run, SPECIAL))
		run->cpu->counters.flow_fallback++;
	if (flow_table_kind == FLOW_TABLE_SETS) {
		place.fingerprint = flow_fingerprint(key, family);
		place.set = sets_locate(place.table, &run->cpu->sets, place.fingerprint);
	}
	return place;
}

/* The flow's entry, however old, and the real's id in `id`; NULL if there is none. */
static __always_inline struct flow_value *flow_lookup(const struct flow_place *place,
						     const struct flow_key *key, __u32 *id)
{
	if (flow_table_kind == FLOW_TABLE_SETS)
		return sets_find(place->set, place->fingerprint, id);
	return lru_find(place->table, key, id);
}

/* The same for a flow in registers. Passing its own address to the kernel would force it into
 * memory all along, even where the table is of the other type. */
static __always_inline struct flow_value *flow_lookup_copied(const struct flow_place *place,
							     const struct flow_key *key, __u32 *id)
{
	if (flow_table_kind == FLOW_TABLE_LRU) {
		const struct flow_key copy = *key;

		return lru_find(place->table, &copy, id);
	}
	return sets_find(place->set, place->fingerprint, id);
}

/* Whether the stamp is at most `ticks` old. A stamp may be slightly ahead: another CPU has just
 * stamped a shared entry, or its low bits are set. */
static __always_inline bool used_since(__u32 used, __u32 now, __u32 ticks)
{
	return now - used + ticks_per_second <= ticks + ticks_per_second;
}

/* Stamps the entry of a flow when another packet arrives. */
static __always_inline void flow_stamp(const struct run *run, struct flow_value *value, __u32 now)
{
	__u32 used = now | USED_BITS;

	/* Whether an id made the entry matters only while ids are on; then all TCP is special. */
	if (is(run, SPECIAL) && feature(FEATURE_TCP_SERVER_ID))
		used &= value->used | ~USED_NO_ID;
	value->used = used;
}

/* The real that the flow went to; NULL if the flow is new, its entry too old, or its real gone.
 * `uses`: stamp the entry. */
static __always_inline struct real *flow_find(const struct run *run,
					      const struct flow_place *place,
					      const struct flow_key *key, __u32 now, bool uses,
					      __u32 *number)
{
	struct real *real;
	__u32 id = 0;
	struct flow_value *value = flow_lookup_copied(place, key, &id);

	if (!value)
		return NULL;
	*number = id & REAL_NUMBER_MASK;
	real = real_at(*number);
	if (!real || real->id != id)
		return NULL;
	if (key->protocol == IPPROTO_UDP && !used_since(value->used, now, udp_timeout))
		return NULL;
	if (uses)
		flow_stamp(run, value, now);
	return real;
}

/* Where in its set to remember the flow; for set-associative tables only. */
static __always_inline int flow_choose(const struct flow_place *place, __u32 now)
{
	return flow_table_kind == FLOW_TABLE_SETS ?
		       sets_choose(place->set, place->fingerprint, now) :
		       0;
}

/* The real of a SYN whose flow has an entry used a moment ago. Anyone can send a SYN, so it changes
 * nothing. NULL: there is none. */
static __always_inline struct real *flow_follow(const struct flow_place *place,
						const struct flow_key *key, int chosen, __u32 now,
						__u32 *number)
{
	const struct flow_value *value;
	struct real *real;
	__u32 id = 0;

	if (flow_table_kind == FLOW_TABLE_SETS) {
		const struct flow_entry *entry;

		if (likely(!(chosen & CHOSEN_OWN)) || !place->set)
			return NULL;
		entry = entry_at(place->set, chosen * sizeof(*entry));
		value = &entry->value;
		id = entry_real(entry, place->fingerprint);
	} else {
		const struct flow_key copy = *key;

		value = lru_find(place->table, &copy, &id);
		if (!value)
			return NULL;
	}
	*number = id & REAL_NUMBER_MASK;
	real = real_at(*number);
	if (!real || !id || real->id != id || !used_since(value->used, now, syn_follows))
		return NULL;
	return real;
}

/* Remembers a flow of which one packet was seen, in the chosen place; `bits` are of USED_BITS.
 * True: sets must be split. That is left to the caller, which may have more stack to spare. */
static __always_inline bool flow_remember(const struct run *run, const struct flow_place *place,
					  const struct flow_key *key, int chosen, __u32 id,
					  __u32 now, __u32 bits)
{
	const __u32 used = (now & ~USED_BITS) | bits;

	if (flow_table_kind == FLOW_TABLE_SETS)
		return sets_remember(place->table, place->set, &run->cpu->sets, place->fingerprint,
				     chosen, id, used);
	lru_remember(place->table, key, id, used);
	return false;
}

/* The same for a flow in registers. */
static __always_inline void flow_remember_copied(const struct run *run,
						 const struct flow_place *place,
						 const struct flow_key *key, int chosen, __u32 id,
						 __u32 now, __u32 bits)
{
	if (flow_table_kind == FLOW_TABLE_LRU) {
		const struct flow_key copy = *key;

		lru_remember(place->table, &copy, id, (now & ~USED_BITS) | bits);
		return;
	}
	if (flow_remember(run, place, key, chosen, id, now, bits))
		sets_split();
}

/* Removes the flow's entry. */
static __always_inline void flow_forget(const struct flow_place *place, const struct flow_key *key,
					struct flow_value *value)
{
	if (flow_table_kind == FLOW_TABLE_SETS)
		sets_change(value, 0, 0);
	else
		lru_forget(place->table, key);
}

/* Counts a new flow of this CPU. True: more than `flood_threshold` arrived in the current second,
 * so it must not be remembered. */
static __always_inline bool under_flood(const struct run *run, __u64 now)
{
	struct flood_window *window = &run->cpu->flood;

	if (now - window->start >= ticks_per_second) {
		window->start = now;
		window->new_flows = 0;
	}
	if (++window->new_flows <= flood_threshold)
		return false;
	window->until = window->start + ticks_per_second;
	return true;
}

/* Whether this CPU's flood guard acts now; counts nothing. */
static __always_inline bool in_flood(const struct run *run, __u64 now)
{
	return now < run->cpu->flood.until;
}

/* What the table said about a flow whose real an id had named. */
enum correction { FLOW_MATCHED, FLOW_CORRECTED, FLOW_NOT_FOUND, FLOW_LEFT };

/* Enters the flow of the packet that this CPU's record describes. A global function, so the
 * verifier checks it once; it looks up whatever cannot be passed to such a function. */
LOOKED_AT_ONCE int flow_enter(__u32 id, __u32 bits)
{
	const __u32 zero = 0;
	struct run run = { .cpu = bpf_map_lookup_elem(&cpus, &zero), .variant = SPECIAL };
	struct flow_place place;
	struct flow_key *key;

	if (!run.cpu)
		return 0;
	key = &run.cpu->scratch.query.flow;
	place = flow_locate(&run, key, FAMILY_V6);
	if (flow_remember(&run, &place, key, flow_choose(&place, ticks_now()), id, ticks_now(),
			  bits & USED_BITS))
		sets_split();
	return 0;
}

/* Whether an entry that names this real is valid. */
static __always_inline bool names_live_real(const struct id_query *query, __u32 id)
{
	const struct down_real key = { .vip = query->vip_number, .real = id };

	if (!is_real(id))
		return false;
	return !(query->vip.flags & VIP_VOID_FLOWS) || !bpf_map_lookup_elem(&down_reals, &key);
}

/* Makes the flow's entry name `id`. A missing entry counts as a new flow, and is not made under
 * flood. TCP ids travel in the clear and can be forged, so they do not change a valid entry that no
 * id has made. */
static __always_inline enum correction flow_correct(const struct run *run,
						    const struct flow_place *place,
						    const struct id_query *query, __u32 id,
						    __u64 now)
{
	const bool tcp = query->flow.protocol == IPPROTO_TCP;
	__u32 before = 0;
	struct flow_value *value = flow_lookup(place, &query->flow, &before);

	if (!value) {
		if (!under_flood(run, now))
			flow_enter(id, tcp ? 0 : USED_NO_ID);
		return FLOW_NOT_FOUND;
	}
	if (before == id) {
		value->used = (now | USED_BITS) & (value->used | ~USED_NO_ID);
		return FLOW_MATCHED;
	}
	if (tcp && (value->used & USED_NO_ID) && names_live_real(query, before))
		return FLOW_LEFT;
	value->used = tcp ? (now | USED_BITS) ^ USED_NO_ID : now | USED_BITS;
	if (flow_table_kind == FLOW_TABLE_SETS)
		sets_change(value, place->fingerprint, id);
	else
		value->id = id;
	return FLOW_CORRECTED;
}
