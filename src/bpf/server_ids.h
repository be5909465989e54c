/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Finds reals by the numbers that their servers put into packets: QUIC connection ids, a TCP
 * option, the header of stable UDP routing. ids.h and quic_walk.h call it. Such a number survives
 * changes of the ring and the loss of the flow table.
 *
 * The table is a hash of lines: an id is in one of two lines (Azar, Broder, Karlin and Upfal,
 * "Balanced allocations", SIAM Journal on Computing 29, 1999). Only the control side writes it,
 * through shared memory.
 */
#pragma once

#include "config.h"
#include "flow_table.h"
#include "lookup.h"
#include "maps.h"
#include "parse.h"
#include "verifier.h"

/* The answer for an id in a packet. */
struct named {
	bool real; /* there is one */
	__u32 number;
	__u32 id; /* of the real: number and generation */
	bool known; /* the table has the id, though its real may be gone */
	const struct real *at; /* where it is, if the finder sets this */
};

/* The real's id in these entries; 0: they do not have the server id. There is no branch, because
 * the verifier would follow every combination; the barriers hide from the compiler that this is a
 * comparison. */
static __always_inline __u32 server_id_among(const struct server_id *entries, const int count, __u32 id)
{
	__u64 found = 0;

#pragma unroll
	for (int i = 0; i < count; i++) {
		const __u64 word = *(volatile __u64 *)&entries[i];
		__u64 difference = (__u32)word ^ id;

		/* All ones if it is 0. */
		barrier_var(difference);
		found |= (__s64)(difference - 1) >> 63 & word;
		/* One by one, in registers: otherwise the compiler loads all words first and spills
		 * them. */
		barrier_var(found);
	}
	return found >> 32;
}

/* The real's id in one line of the table; 0: the line does not have the server id. */
static __always_inline __u32 server_id_in_line(__u32 base, __u32 number, __u32 id)
{
	const __u32 chunk = base + number / SERVER_ID_CHUNK_LINES;
	const __u32 in_chunk = number % SERVER_ID_CHUNK_LINES;
	void *lines = bpf_map_lookup_elem(&server_ids, &chunk);
	const struct server_id_line *line;
	__u32 real;

	if (!lines)
		return 0;
	line = bpf_map_lookup_elem(lines, &in_chunk);
	if (!line)
		return 0;
	/* A table is at most half full, and lines fill from the front, so few ids are in the second
	 * half. */
	real = server_id_among(line->entries, SERVER_IDS_PER_LINE / 2, id);
	return real ? real :
		      server_id_among(line->entries + SERVER_IDS_PER_LINE / 2,
				      SERVER_IDS_PER_LINE / 2, id);
}

/* The id of the real that a server id names; 0: the table does not have it. */
static __always_inline __u32 server_id_search(__u32 id)
{
	const __u32 in_force = live.server_ids;
	const __u32 base = in_force / SERVER_ID_TABLE * server_id_chunks;
	const __u32 mask = in_force % SERVER_ID_TABLE;
	const __u64 product = (server_id_start + id) * server_id_key;
	const __u64 hash = (product ^ product >> 32) * HASH_MIX;
	const __u32 real = server_id_in_line(base, (__u32)(hash >> 32) & mask, id);

	return real ? real : server_id_in_line(base, (__u32)(hash >> 8) & mask, id);
}

/* The same as a function that the verifier checks once, and not for each path that leads to an
 * id. */
LOOKED_AT_ONCE __u32 server_id_lookup(__u32 id)
{
	return server_id_search(id);
}

static __always_inline struct named server_id_find(__u32 id)
{
	struct named named = { .id = server_id_lookup(id) };

	if (!named.id)
		return named;
	named.known = true;
	named.number = named.id & REAL_NUMBER_MASK;
	named.real = is_real(named.id);
	return named;
}
