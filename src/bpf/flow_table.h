/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The flow table: which real a flow went to. One kernel LRU hash per forwarding CPU, made by the
 * library on that CPU's NUMA node, behind flow_find() and flow_remember(); another kind of table
 * replaces this file's two functions and its maps. Also the flood guard, which decides whether
 * new flows are remembered at all.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "maps.h"

#include <linux/in.h>

#define SECOND 1000000000ull

struct flow_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(struct flow_entry));
};

/* By CPU number; empty for a CPU that does not forward. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct flow_table);
} flow_tables SEC(".maps");

/* For frames that arrive on a CPU without a table of its own. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow_entry);
} fallback_flows SEC(".maps");

static __always_inline void *flow_table_of_this_cpu(const struct run *run)
{
	const __u32 cpu = bpf_get_smp_processor_id();
	void *table = bpf_map_lookup_elem(&flow_tables, &cpu);

	if (table)
		return table;
	run->counters->flow_fallback++;
	return &fallback_flows;
}

/* The real that the flow went to; NULL if it is new, its entry too old, or its real gone. */
static __always_inline struct real *flow_find(void *table, const struct flow_key *key,
					      __u32 *number)
{
	struct flow_entry *entry = bpf_map_lookup_elem(table, key);
	struct real *real;

	if (!entry)
		return NULL;
	*number = entry->real;
	real = bpf_map_lookup_elem(&reals, number);
	if (!real || real->generation != entry->generation)
		return NULL;
	if (key->protocol == IPPROTO_UDP) {
		const __u64 now = bpf_ktime_get_coarse_ns();

		/* Signed: another CPU may have stamped an entry of the shared table since. */
		if ((__s64)(now - entry->time) > (__s64)udp_timeout)
			return NULL;
		entry->time = now;
	}
	return real;
}

static __always_inline void flow_remember(void *table, const struct flow_key *key, __u32 number,
					  __u32 generation, __u64 now)
{
	const struct flow_entry entry = {
		.real = number,
		.generation = generation,
		.time = key->protocol == IPPROTO_UDP ? now : 0,
	};

	bpf_map_update_elem(table, key, &entry, BPF_ANY);
}

/* Counts a new flow of this CPU. True if there have been more than `flood_threshold` in the
 * present second. */
static __always_inline bool under_flood(const struct run *run, __u64 now)
{
	struct counters *record = run->counters;

	if (now - record->window_start >= SECOND) {
		record->window_start = now;
		record->window_flows = 0;
	}
	record->window_flows++;
	return record->window_flows > flood_threshold;
}
