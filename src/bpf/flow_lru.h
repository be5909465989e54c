/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The flow table as an LRU hash of the kernel: entries carry the whole flow, so they can be listed
 * by address, and cost four times the memory of the set-associative table and a lock to insert.
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

/* What the table knows of the flow, and its real in `id`; NULL if it does not know it. */
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
