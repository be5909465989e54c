/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The default flow table: a set-associative cache in a plain array, without locks. flow_table.h
 * calls it for each packet whose flow the table may know.
 *
 * A flow belongs to one set of two cache lines. A new flow replaces the least recently used entry
 * of its set or, if several entries belong to flows with one packet so far, the oldest of those. An
 * entry holds a fingerprint of the flow instead of its addresses: 48 bits of a hash, and its VIP.
 *
 * The table starts with few sets in use and splits them one by one as flows arrive (linear hashing:
 * Litwin, "Linear hashing: a new tool for file and table addressing", VLDB 1980), so that few flows
 * occupy few cache lines and pages, whatever the table's size.
 *
 * The fingerprint is a multilinear hash (Lemire and Kaser, "Strongly universal string hashing is
 * fast", The Computer Journal, 2014) of the flow's 32-bit words. The library draws the keys at
 * load, so an attacker cannot choose flows that collide in a set.
 */
#pragma once

#include "config.h"
#include "maps.h"
#include "verifier.h"

#include <stddef.h>

#define WAYS_PER_LINE ((int)(64 / sizeof(struct flow_entry)))
/* The number of sets to split when a flow fills the first line of its set, or enters the second.
 * Sets then hold one or two flows on average, and only one new flow in thousands finds its set
 * full. */
#define SPLITS 4
/* Entries of single-packet flows that a set keeps when it makes room. */
#define ONCE_STAY 2

static __always_inline __u64 flow_fingerprint(const struct flow_key *key, enum family family)
{
	const __u32 *words = (const __u32 *)key;
	/* Protocol and family. The VIP is left out: its number is known last, and choosing the set
	 * should not wait for it. */
	const __u32 kind = key->protocol | (__u32)key->family << 8;
	__u64 sum = flow_keys[FLOW_WORDS] + flow_keys[FLOW_WORDS - 1] * kind;

	/* An IPv4 address is one word; the other three are 0 and add nothing. */
#pragma unroll
	for (int i = 0; i < FLOW_WORDS - 1; i++)
		if (family == FAMILY_V6 || i % 4 == 0)
			sum += flow_keys[i] * words[i];
	/* `key->vip` is at least 1, so no flow matches an empty entry. */
	return (sum & ~(__u64)VIP_NUMBER_MASK) | key->vip;
}

/* The bits that choose the set. Flows that differ by a constant step, such as consecutive ports,
 * have sums that do too; mixing spreads them. */
static __always_inline __u32 set_hash(__u64 fingerprint)
{
	const __u64 sum = fingerprint >> VIP_NUMBER_BITS;

	return (sum ^ sum >> 32) * HASH_MIX >> 32;
}

/* The flow's set among the first `active`. `mask` has as many bits as the highest set number. */
static __always_inline __u32 active_set(__u32 hash, __u32 active, __u32 mask)
{
	const __u64 number = hash & mask;
	/* All ones if that set is not in use yet: its flows are still in the set it will be split
	 * from. Not a branch, because its outcome would be random. */
	const __u64 beyond = sign_mask((__u64)active - 1 - number);

	return number ^ (beyond & (mask ^ mask >> 1));
}

/* Several CPUs may write to a fallback set at once. That loses or overwrites entries, but a torn
 * entry matches no flow. */
static __always_inline struct flow_set *
sets_locate(void *table, const struct active_sets *active, __u64 fingerprint)
{
	const __u32 hash = set_hash(fingerprint);
	struct flow_set *set;
	__u32 number;

	if (table) {
		number = active_set(hash, active->count, active->mask);
		set = bpf_map_lookup_elem(table, &number);
		stay_apart(set);
		return set;
	}
	number = hash & (FALLBACK_SETS - 1);
	set = bpf_map_lookup_elem(&fallback_flows, &number);
	stay_apart(set);
	return set;
}

static __always_inline struct flow_entry *entry_at(struct flow_set *set, __u64 offset)
{
	return (void *)set + (offset & (sizeof(*set) - sizeof(struct flow_entry)));
}

/* The entry's real if the entry is this flow's, else 0. In a shared table another CPU may write to
 * the entry at any moment, so this reads tag and id once and judges them together. */
static __always_inline __u32 entry_real(const struct flow_entry *entry, __u64 fingerprint)
{
	const __u32 id = *(const volatile __u32 *)&entry->value.id;

	return (*(const volatile __u64 *)&entry->tag ^ id) == fingerprint ? id : 0;
}

/* In the result of sets_choose: the entry already is the flow's. */
#define CHOSEN_OWN FLOW_WAYS

/* The entry to replace: the one unused for longest, but first those of flows with a single packet,
 * because floods consist of them whatever the protocol. ONCE_STAY of those stay: otherwise a new
 * connection would lose its entry to the next one before its second packet. */
static __always_inline __u64 sets_oldest(const struct flow_set *set, __u32 now)
{
	__u64 oldest = 0, oldest_once = 0, once = 0;

#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		/* Setting the low bits of `now` avoids a borrow; the lowest bit of the difference
		 * then says that there was one packet. */
		const __u64 unused = now - set->entries[way].value.used;
		const __u64 rank = unused << 3 | (FLOW_WAYS - 1 - way);

		if (rank > oldest)
			oldest = rank;
		if (!(unused & 1))
			continue;
		once++;
		if (rank > oldest_once)
			oldest_once = rank;
	}
	if (once >= ONCE_STAY)
		oldest = oldest_once;
	return FLOW_WAYS - 1 - (oldest & (FLOW_WAYS - 1));
}

/* The entry for the flow: its own, else an empty one, else the one to replace; the first if there
 * are several. A global function, so the verifier checks it once for all callers. It also hides the
 * number from callers, whose code the verifier would otherwise check once per number. */
LOOKED_AT_ONCE int sets_choose(struct flow_set *set, __u64 fingerprint, __u32 now)
{
	/* Before Linux 6.8 the verifier checks this even if nothing calls it. */
	if (flow_table_kind != FLOW_TABLE_SETS || !set)
		return 0;
#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++)
		if ((set->entries[way].tag ^ set->entries[way].value.id) == fingerprint)
			return way | CHOSEN_OWN;
#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++)
		if (!set->entries[way].value.id)
			return way;
	return sets_oldest(set, now | USED_BITS);
}

/* The offset of the flow's entry in this line, counted from 1 entry, or 0 if the line has none.
 * Offsets of several matches add up. There is no branch: most sets are not in the CPU's cache, so a
 * branch on their contents is resolved late, and a wrong prediction discards all the work done in
 * the meantime. */
static __always_inline __u64 line_find(const struct flow_entry *line, __u64 fingerprint)
{
	__u64 place = 0;

#pragma unroll
	for (int way = 0; way < WAYS_PER_LINE; way++) {
		const __u64 difference = line[way].tag ^ line[way].value.id ^ fingerprint;

		place += (way + 1) * sizeof(*line);
		place -= sign_mask(difference | -difference) & ((way + 1) * sizeof(*line));
	}
	return place;
}

/* The flow's entry in the set, with its real in `id`; NULL if there is none. Reads one cache line
 * at a time. */
static __always_inline struct flow_value *sets_find(struct flow_set *set, __u64 fingerprint,
						   __u32 *id)
{
	struct flow_entry *entry;
	__u64 place;

	if (!set)
		return NULL;
	place = line_find(set->entries, fingerprint);
	if (!place) {
		place = line_find(set->entries + WAYS_PER_LINE, fingerprint);
		if (!place)
			return NULL;
		place += WAYS_PER_LINE * sizeof(*entry);
	}
	entry = entry_at(set, place - sizeof(*entry));
	*id = entry_real(entry, fingerprint);
	if (unlikely(!*id)) {
		/* Another CPU has overwritten the entry, or several have entered the flow at once
		 * so that `place` points at no single entry: take the first match. */
		place = sets_choose(set, fingerprint, 0);
		entry = entry_at(set, place * sizeof(*entry));
		*id = entry_real(entry, fingerprint);
	}
	return *id ? &entry->value : NULL;
}

/* Makes the entry around `value` name another real. */
static __always_inline void sets_change(struct flow_value *value, __u64 fingerprint, __u32 id)
{
	struct flow_entry *entry = (void *)value - offsetof(struct flow_entry, value);

	entry->tag = fingerprint ^ id;
	entry->value.id = id;
}

/* The same for a tag. */
static __always_inline __u64 line_find_tag(const struct flow_entry *line, __u64 tag)
{
	__u64 place = 0;

#pragma unroll
	for (int way = 0; way < WAYS_PER_LINE; way++) {
		const __u64 difference = line[way].tag ^ tag;

		place += (way + 1) * sizeof(*line);
		place -= sign_mask(difference | -difference) & ((way + 1) * sizeof(*line));
	}
	return place;
}

/* The flow's entry in the set if it names exactly this real. */
static __always_inline struct flow_value *sets_find_of(struct flow_set *set, __u64 fingerprint,
						      __u32 id)
{
	const __u64 tag = fingerprint ^ id;
	struct flow_entry *entry;
	__u64 place;

	if (!set)
		return NULL;
	place = line_find_tag(set->entries, tag);
	if (!place) {
		place = line_find_tag(set->entries + WAYS_PER_LINE, tag);
		if (!place)
			return NULL;
		place += WAYS_PER_LINE * sizeof(*entry);
	}
	entry = entry_at(set, place - sizeof(*entry));
	return entry_real(entry, fingerprint) == id ? &entry->value : NULL;
}

/* Brings the next sets of this CPU's table into use and moves into each the flows that belong
 * there. A global function, so the verifier checks it once for all callers. It is called rarely,
 * and looks up whatever cannot be passed to such a function. */
LOOKED_AT_ONCE int sets_split(void)
{
	const __u32 zero = 0, cpu = bpf_get_smp_processor_id();
	struct cpu *record = bpf_map_lookup_elem(&cpus, &zero);
	void *table = bpf_map_lookup_elem(&flow_tables, &cpu);

	/* Before Linux 6.8 the verifier checks this even if nothing calls it. */
	if (flow_table_kind != FLOW_TABLE_SETS || !record || !table)
		return 0;
	for (int i = 0; i < SPLITS; i++) {
		__u32 number = record->sets.count;
		__u32 mask = record->sets.mask;
		struct flow_set *from, *to;
		__u32 bit, parent;

		if (number >= flow_sets)
			return 0;
		if (number > mask)
			mask = mask << 1 | 1;
		bit = mask ^ mask >> 1;
		parent = number ^ bit;
		from = bpf_map_lookup_elem(table, &parent);
		to = bpf_map_lookup_elem(table, &number);
		if (!from || !to)
			return 0;
		for (int way = 0; way < FLOW_WAYS; way++) {
			struct flow_entry *entry = &from->entries[way];
			const struct flow_entry old = *entry;

			if (!old.value.id || !(set_hash(old.tag ^ old.value.id) & bit))
				continue;
			to->entries[way] = old;
			*entry = (struct flow_entry){};
		}
		record->sets.mask = mask;
		record->sets.count = number + 1;
	}
	return 0;
}

/* Gives the chosen entry to the flow. True: split sets. */
static __always_inline bool sets_remember(void *table, struct flow_set *set,
					  const struct active_sets *active, __u64 fingerprint,
					  int chosen, __u32 id, __u32 used)
{
	const __u64 way = chosen & (FLOW_WAYS - 1);
	struct flow_entry *entry;

	if (!set)
		return false;
	entry = entry_at(set, way * sizeof(*entry));
	entry->tag = fingerprint ^ id;
	entry->value.id = id;
	entry->value.used = used;
	return way >= WAYS_PER_LINE - 1 && table && active->count < flow_sets;
}
