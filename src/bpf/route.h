/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Chooses a packet's real (step 8 of the walk): by an id in the packet (see ids.h), by the flow
 * tables, by the client's prefix, or by the ring. katran.bpf.c calls it once the VIP is known.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "events.h"
#include "flow_table.h"
#include "in_slot.h"
#include "lookup.h"
#include "maps.h"
#include "parse.h"
#include "slots.h"
#include "verifier.h"

#include <linux/in.h>

/* How a packet's real is chosen. */
struct choice {
	struct vip vip;
	__u32 vip_number;
	__u32 number; /* of the real */
	__u32 reason; /* of enum drop_reason; if not DROP_NONE, there is no real */
	struct flow_place place;
};

/* Steps 1 to 3: the id program's answer for this packet. */
static __always_inline struct real *by_packet(const struct run *run, struct choice *choice)
{
	const int routed = run->cpu->scratch.query.routed;

	if (!routed)
		return NULL;
	if (routed < 0) {
		/* Spelt out, so that the verifier sees that it is one of two. */
		choice->reason = routed == -DROP_QUIC_REAL_GONE ? DROP_QUIC_REAL_GONE :
								  DROP_STABLE_UDP_REAL_GONE;
		return NULL;
	}
	note_step(run, (__u32)routed >> REAL_NUMBER_BITS);
	choice->number = routed & REAL_NUMBER_MASK;
	return real_at(choice->number);
}

/* Step 5: the host application's global flow table. */
static __always_inline struct real *by_global_flows(const struct run *run,
						    const struct flow_key *key,
						    struct choice *choice)
{
	const __u32 cpu = bpf_get_smp_processor_id();
	void *table = bpf_map_lookup_elem(&global_flows, &cpu);
	struct real *real;
	__u32 *found;
	__u32 id;

	if (table) {
		found = bpf_map_lookup_elem(table, key);
		stay_apart(found);
	} else {
		run->cpu->counters.global_no_table++;
		found = bpf_map_lookup_elem(&global_fallback, key);
		stay_apart(found);
	}
	if (!found)
		return NULL;
	id = *found;
	real = real_at(id & REAL_NUMBER_MASK);
	if (!real || real->id != id)
		return NULL;
	run->cpu->counters.global_hits++;
	choice->number = id & REAL_NUMBER_MASK;
	note_step(run, STEP_GLOBAL_FLOWS);
	return real;
}

/* Why the VIP's flows must not go to the real, of enum void_reason; 0: they may. Only VIPs with
 * such reals ask, and their packets are special. */
static __always_inline __u32 void_reason(const struct run *run, const struct choice *choice,
					 const struct real *real)
{
	const struct down_real key = { .vip = choice->vip_number, .real = real->id };
	const __u32 *reason;

	if (!is(run, SPECIAL) || !(choice->vip.flags & VIP_VOID_FLOWS))
		return 0;
	reason = bpf_map_lookup_elem(&down_reals, &key);
	return reason ? *reason : 0;
}

/* Step 6: whether the flow's entry is void. As in Katran, datagrams of VIPs with UDP_FLOW_MIGRATION
 * are counted, and stay where they are while the flood guard acts. */
static __always_inline bool is_void(const struct run *run, const struct packet *packet,
				    const struct choice *choice, const struct real *real, __u64 now)
{
	const __u32 reason = void_reason(run, choice, real);

	if (reason == VOID_DOWN && (choice->vip.flags & VIP_UDP_FLOW_MIGRATION) &&
	    packet->flow.protocol == IPPROTO_UDP) {
		if (in_flood(run, now))
			return false;
		run->cpu->counters.migrated++;
	}
	return reason;
}

/* Whether a source route leads to a real that is down. */
static __always_inline bool leads_to_down(const struct run *run, const struct choice *choice)
{
	const struct real *real = real_at(choice->number);

	return real && void_reason(run, choice, real) == VOID_DOWN;
}

/* The number of the real that the client's longest matching prefix names; 0: none. */
static __always_inline __u32 by_source(const struct run *run, const struct packet *packet,
				       enum family family)
{
	__u32 *found;

	if (family == FAMILY_V6) {
		struct source_prefix_v6 key = { .prefix_length = 128 };

		__builtin_memcpy(key.address, packet->flow.source, sizeof(key.address));
		found = bpf_map_lookup_elem(&source_routes_v6, &key);
	} else {
		struct source_prefix_v4 key = { .prefix_length = 32 };

		__builtin_memcpy(key.address, packet->flow.source, sizeof(key.address));
		found = bpf_map_lookup_elem(&source_routes_v4, &key);
	}
	if (!found) {
		run->cpu->counters.source_unmatched++;
		return 0;
	}
	run->cpu->counters.source_matched++;
	return *found;
}

/* Counts the miss for the real, if the flow's VIP is the watched one. */
static __always_inline void count_watched(const struct choice *choice)
{
	struct real_counters *of_real;

	if (live.watched_vip != choice->vip_number + 1)
		return;
	of_real = counters_of_real(choice->number);
	if (of_real)
		of_real->misses++;
}

/* Whether the packet is an ICMP error, which leaves entries, misses and events alone. All of them
 * are special. */
static __always_inline bool is_error(const struct run *run, const struct packet *packet)
{
	return is(run, SPECIAL) && packet->icmp;
}

/* Step 7: the real of a SYN, or of a flow that no table knows. A SYN follows an entry that was used
 * a moment ago. Otherwise this counts the flow, asks the source routes or the ring, and remembers
 * the answer. NULL with the reason in `choice`: there is no real. */
static __always_inline struct real *new_flow(const struct run *run, struct packet *packet,
					     struct choice *choice, enum family family, __u64 now)
{
	const __u32 flags = choice->vip.flags;
	const bool error = is_error(run, packet);
	/* If the ring chooses by the port alone, there is nothing to remember. */
	bool forget = flags & VIP_DPORT_HASH;
	__u32 answer = 0;
	__u32 hash_ports = packet->hash_ports;
	struct real *real;
	struct slot slot;
	int chosen;
	__u32 id;

	if (!error && !in_flood(run, now) && !(flags & (VIP_LRU_BYPASS | VIP_NO_REALS))) {
		chosen = flow_choose(&choice->place, now);
		if (packet->tcp_flags & TCP_SYN) {
			real = flow_follow(&choice->place, &packet->flow, chosen, now,
					   &choice->number);
			if (real && !void_reason(run, choice, real)) {
				note_step(run, STEP_FLOW_TABLE);
				return real;
			}
		}
	} else {
		chosen = unknown_zero(now);
	}
	if (packet->flow.protocol == IPPROTO_TCP && !error) {
		if (packet->tcp_flags & TCP_SYN) {
			run->cpu->counters.flow_miss_syn++;
		} else {
			run->cpu->counters.flow_miss_non_syn++;
			tell(run, EVENT_TCP_NON_SYN_MISS);
		}
	}
	choice->number = 0;
	if (rare_feature(run, FEATURE_SOURCE_ROUTING) && (flags & VIP_SRC_ROUTING))
		choice->number = by_source(run, packet, family);
	if (is(run, SPECIAL) && choice->number && leads_to_down(run, choice))
		choice->number = 0;
	if (rare_feature(run, FEATURE_SOURCE_ROUTING) && choice->number) {
		note_step(run, STEP_SOURCE_ROUTE);
		/* Without reals nothing looks up the entry. */
		forget = flags & VIP_NO_REALS;
	} else {
		if (forget) {
			/* The flow is not remembered, so nothing needs its source any more. */
			__builtin_memset(packet->flow.source, 0, sizeof(packet->flow.source));
			hash_ports = hash_ports >> 16 | (hash_ports & 0xffff0000);
		}
		note_step(run, STEP_RING);
		choice->reason = DROP_RING_EMPTY;
		if (choice->vip.ring == RING_NONE)
			return NULL;
		slot = find_slot(choice->vip.ring,
				 hash_flow((const __u32 *)packet->flow.source, hash_ports, family));
		choice->number = number_in(&slot);
		if (is(run, SPECIAL) && flow_tracking == TRACK_CHANGED &&
		    feature(FEATURE_TCP_SERVER_ID)) {
			answer = choose_unknown_in_slot(choice->vip.ring, slot.index);
			choice->number = answer & SLOT_REAL;
			run->cpu->counters.by_base += !!(answer & IN_SLOT_BY_BASE);
			if (answer & IN_SLOT_BY_BASE)
				note_step(run, STEP_BASE);
			/* While the guard acts, the place was not chosen above. */
			if (in_flood(run, now))
				chosen = flow_choose(&choice->place, now);
		}
		if (!choice->number)
			return NULL;
	}
	choice->reason = DROP_RING_UNKNOWN_REAL;
	real = real_at(choice->number);
	if (!real)
		return NULL;
	/* 0: the library took the real back after the ring was read. An entry with it would match
	 * forever. */
	id = *(volatile __u32 *)&real->id;
	if (error)
		return real;
	/* While the guard acts nothing is remembered, except a flow that would otherwise break at
	 * its next packet. */
	if (id && !(flags & VIP_LRU_BYPASS) && !(packet->tcp_flags & TCP_RST) && !forget &&
	    (!under_flood(run, now) || (answer & IN_SLOT_DEVIATES)))
		flow_remember_copied(run, &choice->place, &packet->flow, chosen, id, now,
				     USED_NO_ID);
	run->cpu->counters.flow_misses++;
	count_watched(choice);
	return real;
}

/* The real of a packet in a settled slot. NULL with the reason in `choice`: the ring has none. */
static __always_inline struct real *by_settled_slot(const struct run *run, struct choice *choice,
						    const struct slot *slot)
{
	struct real *real;

	run->cpu->counters.settled++;
	note_step(run, STEP_SETTLED_SLOT);
	choice->number = slot->word & SLOT_REAL;
	real = real_numbered(choice->number);
	if (unlikely(!real)) {
		stay_aside();
		choice->reason = choice->number ? DROP_RING_UNKNOWN_REAL : DROP_RING_EMPTY;
	}
	return real;
}

/* Writes a packet's flow and VIP to this CPU's record. */
static __always_inline void describe_flow(struct id_query *query, const struct packet *packet,
					  const struct choice *choice)
{
	const __u32 *source = (const __u32 *)packet->flow.source;
	const __u32 *destination = (const __u32 *)packet->flow.destination;

	/* Word by word, as it is read. Otherwise the compiler builds one value on the stack, and
	 * the loads that follow wait for stores of other sizes. */
#pragma unroll
	for (int i = 0; i < ADDRESS_BYTES / 4; i++) {
		((__u32 *)query->flow.source)[i] = source[i];
		((__u32 *)query->flow.destination)[i] = destination[i];
	}
	*(__u32 *)&query->flow.source_port =
		packet->flow.source_port | packet->flow.destination_port << 16;
	query->hash_ports = packet->hash_ports;
	*(__u32 *)&query->flow.protocol = packet->flow.protocol | packet->flow.family << 8 |
					  (choice->vip_number + 1) << 16;
	query->vip_number = choice->vip_number;
	/* From memory, so that other packets need not keep the ring in a register. */
	query->vip.flags = choice->vip.flags;
	query->vip.ring = *(const volatile __u32 *)&choice->vip.ring;
	query->tcp_flags = packet->tcp_flags;
	query->icmp = packet->icmp;
}

/* The real of a packet in an unsettled slot. NULL with the reason in `choice`. */
static __always_inline struct real *by_unsettled_slot(const struct run *run,
						      const struct packet *packet,
						      struct choice *choice, __u32 index)
{
	__u32 answer;

	run->cpu->counters.flow_packets++;
	/* A special packet's record is already written. */
	if (!is(run, SPECIAL))
		describe_flow(&run->cpu->scratch.query, packet, choice);
	answer = choose_in_slot(choice->vip.ring, index);
	choice->number = answer & SLOT_REAL;
	choice->reason = DROP_RING_EMPTY;
	if (!choice->number)
		return NULL;
	note_step(run, answer & IN_SLOT_BY_ENTRY ? STEP_FLOW_TABLE :
		       answer & IN_SLOT_BY_BASE	 ? STEP_BASE :
						   STEP_RING);
	run->cpu->counters.by_entry += !!(answer & IN_SLOT_BY_ENTRY);
	run->cpu->counters.by_base += !!(answer & IN_SLOT_BY_BASE);
	if (answer & IN_SLOT_SPLIT)
		sets_split();
	if (answer & IN_SLOT_MISS) {
		run->cpu->counters.flow_misses++;
		count_watched(choice);
		if (answer & IN_SLOT_BROKEN) {
			run->cpu->counters.flow_miss_non_syn++;
			tell(run, EVENT_TCP_NON_SYN_MISS);
		} else if (packet->flow.protocol != IPPROTO_UDP) {
			run->cpu->counters.flow_miss_syn++;
		}
	}
	choice->reason = DROP_RING_UNKNOWN_REAL;
	return real_of_slot(choice->number);
}

/* Flags of VIPs whose packets may be routed by more than flow table, prefix and ring, or whose
 * tables may hold void entries or lack some. */
#define VIP_SPECIAL \
	(VIP_QUIC | VIP_UDP_STABLE_ROUTING | VIP_GLOBAL_LRU | VIP_VOID_FLOWS | VIP_HANDS_BACK)

/* Whether steps 1 to 3, 5 and 6 may concern the packet, or it is an ICMP error. Those steps are in
 * separate programs: here, the registers they need would cost every packet some nanoseconds. If
 * tunnels may end here, all rare frames go there: all combinations in one program would be too many
 * for the verifier. */
static __always_inline bool is_special(const struct run *run, const struct packet *packet,
				       __u32 flags)
{
	if (is(run, RARE) && feature(FEATURE_INLINE_DECAP))
		return true;
	return unlikely((flags & VIP_SPECIAL) | packet->icmp) ||
	       (rare_feature(run, FEATURE_TCP_SERVER_ID) && packet->flow.protocol == IPPROTO_TCP);
}

/* Describes the packet in the CPU's record for those programs. */
static __always_inline void describe(const struct run *run, const struct packet *packet,
				     const struct choice *choice, __u64 arrived)
{
	struct id_query *query = &run->cpu->scratch.query;

	describe_flow(query, packet, choice);
	query->routed = 0;
	query->arrived = arrived;
	query->tcp_options = packet->tcp_options;
	query->icmp_ignored_by_quic = packet->icmp_ignored_by_quic;
	query->l3_length = packet->l3_length;
	query->tos = packet->tos;
	query->unchecked = packet->unchecked;
	query->explain = is(run, EXPLAINS);
	query->untagged = run->untagged;
}

/* Whether a QUIC connection id is the only id that may route the packet, and the packet lies in its
 * frame as usual, so that the program for QUIC needs little information. */
static __always_inline bool is_plain_quic(const struct run *run, __u32 flags)
{
	return !is(run, EXPLAINS) && !is(run, RARE) &&
	       (flags & (VIP_QUIC | VIP_UDP_STABLE_ROUTING | VIP_HANDS_BACK)) == VIP_QUIC;
}

static __always_inline int walk_quic(const struct run *run, const struct packet *packet,
				     const struct choice *choice, __u64 arrived)
{
	struct id_query *query = &run->cpu->scratch.query;

	query->arrived = arrived;
	query->vip_number = choice->vip_number;
	query->vip.flags = choice->vip.flags;
	query->vip.ring = *(const volatile __u32 *)&choice->vip.ring;
	query->hash_ports = packet->hash_ports;
	bpf_tail_call(run->ctx, &special_programs, PROGRAM_QUIC);
	return drop(run, DROP_PROGRAM_MISSING);
}

/* Hands the packet to those programs. They are there since load, unless something empties the
 * array. */
static __always_inline int walk_specially(const struct run *run, const struct packet *packet,
					   const struct choice *choice, __u64 arrived)
{
	if (is_plain_quic(run, choice->vip.flags))
		return walk_quic(run, packet, choice, arrived);
	describe(run, packet, choice, arrived);
	bpf_tail_call(run->ctx, &special_programs, PROGRAM_IDS);
	return drop(run, DROP_PROGRAM_MISSING);
}

/* The packet that was handed over. The verifier knows nothing about its contents, so it checks what
 * follows once for all paths. */
static __always_inline struct packet packet_of(const struct id_query *query)
{
	return (struct packet){
		.flow = query->flow,
		.hash_ports = query->hash_ports,
		.l3_length = query->l3_length,
		.tos = query->tos,
		.icmp = query->icmp,
		.tcp_flags = query->tcp_flags,
		.unchecked = query->unchecked,
	};
}

static __always_inline struct choice choice_of(const struct id_query *query)
{
	return (struct choice){
		.vip = query->vip,
		.vip_number = query->vip_number,
	};
}

/* The packet's real. NULL with the reason in `choice`: it has none. */
static __always_inline struct real *choose_real(const struct run *run, struct packet *packet,
						struct choice *choice, enum family family)
{
	const __u32 flags = choice->vip.flags;
	const bool syn = packet->tcp_flags & TCP_SYN;
	struct real *real = NULL;
	__u64 now;

	if (likely(tracks_changes(run, packet, flags))) {
		const struct slot slot = slot_of(packet, &choice->vip, family);

		return likely(!is_unsettled(&slot)) ?
			       by_settled_slot(run, choice, &slot) :
			       by_unsettled_slot(run, packet, choice, slot.index);
	}
	now = ticks_now();
	run->cpu->counters.flow_packets++;
	choice->place = flow_locate(run, &packet->flow, family);
	if (is(run, SPECIAL)) {
		real = by_packet(run, choice);
		if (choice->reason)
			return NULL;
		if (real)
			return real;
	}
	if (!syn && !(flags & (VIP_LRU_BYPASS | VIP_NO_REALS))) {
		note_step(run, STEP_FLOW_TABLE);
		real = flow_find(run, &choice->place, &packet->flow, now, !is_error(run, packet),
				 &choice->number);
	}
	if (is(run, SPECIAL) && feature(FEATURE_GLOBAL_FLOW_TABLE) && !real && !syn &&
	    (flags & (VIP_GLOBAL_LRU | VIP_NO_REALS)) == VIP_GLOBAL_LRU)
		real = by_global_flows(run, &packet->flow, choice);
	if (is(run, SPECIAL) && real && is_void(run, packet, choice, real, now))
		real = NULL;
	return real ? real : new_flow(run, packet, choice, family, now);
}
