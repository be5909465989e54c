/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The flow table as a set-associative cache in a plain array, without locks. A flow belongs to one
 * set of two cache lines; within the set the least recently used entry goes first. An entry holds
 * a fingerprint of the flow instead of its addresses.
 *
 * Set and fingerprint are multilinear hashes (Lemire and Kaser, "Strongly universal string hashing
 * is fast", The Computer Journal, 2014) of the flow's 32-bit words, with keys drawn at load: for
 * flows chosen without knowing the keys, each pair meets in a set no more often than by chance.
 */
#pragma once

#include "config.h"
#include "maps.h"

struct flow_hash {
	__u32 set; /* to be scaled to the number of sets */
	__u64 fingerprint;
};

/* Adds the flow's word `i` to both sums. */
static __always_inline void flow_hash_word(struct flow_hash *sums, __u64 *first,
					   const __u32 *words, int i)
{
	*first += flow_keys[i].set * words[i];
	sums->fingerprint += flow_keys[i].fingerprint * words[i];
}

static __always_inline struct flow_hash flow_hash(const struct flow_key *key, bool v6)
{
	const __u32 *words = (const __u32 *)key;
	struct flow_hash hash = { .fingerprint = flow_keys[FLOW_WORDS].fingerprint };
	__u64 sum = flow_keys[FLOW_WORDS].set;

	/* An IPv4 address is one word; the other three are 0 and add nothing. */
#pragma unroll
	for (int i = 0; i < FLOW_WORDS; i++)
		if (v6 || i % 4 == 0 || i > 8)
			flow_hash_word(&hash, &sum, words, i);
	/* The upper half is the one that is strongly universal. */
	hash.set = sum >> 32;
	/* Odd, so that no flow matches an empty entry. */
	hash.fingerprint |= 1;
	return hash;
}

/* The set of a hash in a table of so many: the hash as a fraction, times the number. */
static __always_inline __u32 scale(__u32 hash, __u32 sets)
{
	return (__u64)hash * sets >> 32;
}

/* Several CPUs may write to a set of the fallback at once: entries are lost then, or overwritten,
 * but one that is half of each matches no flow. */
static __always_inline struct flow_set *sets_locate(void *table, const struct flow_hash *hash)
{
	__u32 number;

	if (table) {
		number = scale(hash->set, flow_sets);
		return bpf_map_lookup_elem(table, &number);
	}
	number = scale(hash->set, fallback_flow_sets);
	return bpf_map_lookup_elem(&fallback_flows, &number);
}

/* What the table knows of the flow; NULL if it does not know it. */
static __always_inline struct flow_mark *sets_find(struct flow_set *set, __u64 fingerprint)
{
	if (!set)
		return NULL;
#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		struct flow_entry *entry = &set->entries[way];

		if ((entry->tag ^ entry->mark.id) == fingerprint)
			return &entry->mark;
	}
	return NULL;
}

/* The flow's own entry, or else an empty one, or else the one unused for longest. */
static __always_inline struct flow_entry *sets_choose(struct flow_set *set, __u64 fingerprint,
						      __u32 now)
{
	struct flow_entry *chosen = &set->entries[0];
	__u64 longest = 0;

#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		struct flow_entry *entry = &set->entries[way];
		__u64 unused = (__u32)(now - entry->mark.used) + 1ull;

		if ((entry->tag ^ entry->mark.id) == fingerprint)
			return entry;
		if (!entry->mark.id)
			unused = ~0ull;
		if (unused > longest) {
			longest = unused;
			chosen = entry;
		}
	}
	return chosen;
}

static __always_inline void sets_remember(struct flow_set *set, __u64 fingerprint, __u32 id,
					  __u32 now)
{
	struct flow_entry *entry;

	if (!set)
		return;
	entry = sets_choose(set, fingerprint, now);
	entry->tag = fingerprint ^ id;
	entry->mark.id = id;
	entry->mark.used = now;
}
