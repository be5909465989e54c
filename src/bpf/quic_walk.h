/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The end of the walk for QUIC: one program sends a datagram to the real that its connection id
 * names. katran.bpf.c hands plain datagrams of QUIC VIPs to it by tail call.
 *
 * It parses the headers again, which takes fewer steps than passing a record. It writes a record
 * only in rare cases: for a flow whose entry does not name that real yet, and for a datagram
 * without a usable id, which the program for special VIPs sends.
 */
#pragma once

#include "counters.h"
#include "cursor.h"
#include "flow_table.h"
#include "ids.h"
#include "lookup.h"
#include "maps.h"
#include "parse.h"
#include "quic.h"
#include "route.h"
#include "send.h"
#include "server_ids.h"

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

/* Reads a datagram that the walk found to be plain, up to its payload. Its ports are those that
 * count for the VIP, as the walk has left them. */
static __always_inline bool read_datagram(const struct run *run, const struct id_query *query,
					  struct cursor *cursor, struct packet *packet,
					  enum family family)
{
	const __u32 ports = query->hash_ports;
	const struct udphdr *udp;

	if (family == FAMILY_V6) {
		const struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));

		if (!ip)
			return false;
		read_v6(packet, ip);
	} else {
		const struct iphdr *ip = cursor_take(cursor, sizeof(*ip));

		if (!ip)
			return false;
		read_v4(packet, ip);
	}
	packet->flow.protocol = IPPROTO_UDP;
	packet->flow.vip = query->vip_number + 1;
	udp = cursor_take(cursor, sizeof(*udp));
	if (!udp)
		return false;
	*(__u32 *)&packet->flow.source_port = ports;
	packet->hash_ports = ports;
	if (gue_is_on(run))
		packet->unchecked = !udp->check;
	return true;
}

/* Makes the flow that the CPU's record describes name the real in its entry, and counts what the
 * entry said before. A global function, so the verifier checks it once; it looks up whatever cannot
 * be passed to one. */
LOOKED_AT_ONCE int quic_correct(__u32 id)
{
	const __u32 zero = 0;
	struct run run = { .cpu = bpf_map_lookup_elem(&cpus, &zero), .variant = SPECIAL };
	const struct id_query *query;
	struct flow_place place;

	if (!run.cpu)
		return 0;
	query = &run.cpu->scratch.query;
	place = flow_locate(&run, &query->flow, FAMILY_V6);
	count_correction(&run, query, flow_correct(&run, &place, query, id, ticks_now()));
	return 0;
}

/* Whether the table has the flow with that real. If so, stamps its entry. */
static __always_inline bool is_entered(const struct flow_place *place, __u32 id)
{
	struct flow_value *value;

	/* The other type would need the whole flow in memory. */
	if (flow_table_kind != FLOW_TABLE_SETS)
		return false;
	value = sets_find_of(place->set, place->fingerprint, id);
	if (!value)
		return false;
	value->used = ticks_now() | USED_BITS;
	return true;
}

/* The real that a server id names, if there is one. */
static __always_inline struct named find_here(__u32 id)
{
	struct named named = { .id = server_id_search(id) };
	const struct real *real;

	if (!named.id)
		return named;
	named.known = true;
	named.number = named.id & REAL_NUMBER_MASK;
	/* Otherwise the compiler masks the id again where it uses the number, and that copy was not
	 * compared (clang 22). */
	barrier_var(named.number);
	real = real_at(named.number);
	if (!real || real->id != named.id)
		return named;
	named.real = true;
	named.at = real;
	return named;
}

static __always_inline int route_quic(const struct run *run, struct cursor cursor,
				      enum family family)
{
	struct id_query *query = &run->cpu->scratch.query;
	struct packet packet = {};
	struct choice choice; /* written before it is read */
	struct flow_place place;
	struct named named;

	choice.vip = query->vip;
	choice.vip_number = query->vip_number;
	if (!read_datagram(run, query, &cursor, &packet, family))
		return drop(run, DROP_FRAME_TRUNCATED);
	place = flow_locate(run, &packet.flow, family);
	named = quic_route(run, cursor, choice.vip_number, find_here);
	if (!named.at) {
		describe(run, &packet, &choice, query->arrived);
		query->routed = named.known ? -DROP_QUIC_REAL_GONE : 0;
		bpf_tail_call(run->ctx, &special_programs, PROGRAM_SPECIAL);
		return drop(run, DROP_PROGRAM_MISSING);
	}
	if (!(choice.vip.flags & VIP_LRU_BYPASS)) {
		if (likely(is_entered(&place, named.id))) {
			run->cpu->counters.quic.match++;
		} else {
			describe(run, &packet, &choice, query->arrived);
			quic_correct(named.id);
		}
	}
	choice.number = named.number;
	run->cpu->counters.flow_packets++;
	return send_out(run, &packet, &choice, named.at, family);
}
