/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The alternative flow table: an LRU hash of the kernel, called by flow_table.h. Entries hold the
 * whole flow, so they can be listed by address, but they take four times the memory of the
 * set-associative table, and inserting one takes a lock.
 */
#pragma once

#include "maps.h"
#include "verifier.h"

static __always_inline struct flow_value *lru_lookup(void *table, const struct flow_key *key)
{
	struct flow_value *value;

	if (table) {
		value = bpf_map_lookup_elem(table, key);
		stay_apart(value);
		return value;
	}
	value = bpf_map_lookup_elem(&fallback_flows, key);
	stay_apart(value);
	return value;
}

/* The flow's entry, and its real in `id`; NULL if there is none. */
static __always_inline struct flow_value *lru_find(void *table, const struct flow_key *key,
						  __u32 *id)
{
	struct flow_value *value = lru_lookup(table, key);

	if (value)
		*id = *(volatile __u32 *)&value->id;
	return value;
}

static __always_inline void lru_remember(void *table, const struct flow_key *key, __u32 id,
					 __u32 used)
{
	const struct flow_value value = { .id = id, .used = used };
	long failed;

	if (table) {
		failed = bpf_map_update_elem(table, key, &value, BPF_ANY);
		stay_apart(failed);
		return;
	}
	failed = bpf_map_update_elem(&fallback_flows, key, &value, BPF_ANY);
	stay_apart(failed);
}

static __always_inline void lru_forget(void *table, const struct flow_key *key)
{
	if (table) {
		bpf_map_delete_elem(table, key);
		return;
	}
	barrier();
	bpf_map_delete_elem(&fallback_flows, key);
}
