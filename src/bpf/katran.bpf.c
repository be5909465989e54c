// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The balancer's XDP programs: one walk takes each frame that arrives on an attached interface to
 * its verdict. The kernel calls `katran` or `katran_full`; the other programs continue the walk by
 * tail call.
 *
 * Each program is also compiled as an explaining twin, which records its decisions in a map. The
 * library runs the twins on frames that you hand it; no interface has them.
 */
#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "events.h"
#include "headers.h"
#include "icmp.h"
#include "ids.h"
#include "inline_decap.h"
#include "lookup.h"
#include "maps.h"
#include "ours.h"
#include "parse.h"
#include "parse_rare.h"
#include "quic_walk.h"
#include "rare.h"
#include "route.h"
#include "send.h"
#include "shared.h"
#include "vlan.h"

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Whether an ICMP error may answer the packet: it is not an ICMP error, and its source is the
 * address of a single station (RFC 1122, 3.2.2; RFC 4443, 2.4). Otherwise anyone could make the
 * balancer send errors to a group. */
static __always_inline bool may_be_answered(const struct packet *packet, enum family family)
{
	const void *source = packet->flow.source;

	return !packet->icmp &&
	       (family == FAMILY_V6 ? is_station_v6(source) : is_station_v4(*(const __be32 *)source));
}

/* Section 8 of the walk: the real. */
static __always_inline int choose_and_send(const struct run *run, struct packet *packet,
					   struct choice *choice, enum family family)
{
	struct real *real;

	real = choose_real(run, packet, choice, family);
	if (unlikely(!real))
		return drop(run, choice->reason);
	return send_out(run, packet, choice, real, family);
}

/* Whether frames for other stations are passed before the walk, and not only once the VIP is known.
 * They must be if the walk could unwrap or answer them. */
static __always_inline bool sorts_early(const struct run *run)
{
	return is(run, RARE) || rare_feature(run, FEATURE_INLINE_DECAP);
}

/* Sections 5 to 8 of the walk: VIP, size, real. */
static __always_inline int forward(const struct run *run, struct packet *packet, __u64 arrived,
				   enum family family)
{
	/* Every other field is written before it is read. */
	struct choice choice;
	bool found;

	choice.number = 0;
	choice.reason = DROP_NONE;
	if (is(run, FULL)) {
		choice.vip_number = 0;
		choice.vip = (struct vip){};
		found = find_vip_once(packet, family, &choice.vip_number, &choice.vip);
	} else {
		found = find_vip(packet, family, &choice.vip_number, &choice.vip);
	}
	if (unlikely(!found))
		return pass(run, STEP_NO_VIP);
	if (!sorts_early(run) && is_for_others(run))
		return pass(run, STEP_OTHER_STATION);
	if (is(run, EXPLAINS))
		run->explanation->vip = choice.vip_number + 1;

	if (unlikely(run->length > live.max_frame)) {
		note_step(run, STEP_TOO_BIG);
		tell(run, EVENT_TOO_BIG);
		if (!feature(FEATURE_ICMP_TOO_BIG) || !may_be_answered(packet, family))
			return drop(run, DROP_TOO_BIG);
		return family == FAMILY_V6 ? too_big_v6(run) : too_big_v4(run);
	}
	if (unlikely(is_special(run, packet, choice.vip.flags)))
		return walk_specially(run, packet, &choice, arrived);
	packet->flow.vip = choice.vip_number + 1;
	return choose_and_send(run, packet, &choice, family);
}

static __always_inline int walk_ip(const struct run *run, struct cursor cursor, __u64 arrived,
				   enum family family)
{
	const __u32 addresses = offsetof(struct packet, flow.source_port);
	struct packet packet;

	/* IPv6 addresses are written whole, so they need no zeroing. */
	if (family == FAMILY_V6)
		__builtin_memset((void *)&packet + addresses, 0, sizeof(packet) - addresses);
	else
		__builtin_memset(&packet, 0, sizeof(packet));
	if (is(run, RARE)) {
		const int verdict = parse(run, &cursor, &packet, family);

		if (verdict != CONTINUE)
			return verdict;
	} else if (unlikely(!(family == FAMILY_V6 ? parse_plain_v6(run, &cursor, &packet) :
				      parse_plain_v4(run, &cursor, &packet)))) {
		return walk_rarely(run, arrived, 0);
	}
	return forward(run, &packet, arrived, family);
}

/* Whether the balancer's owner has given no sign of life for too long. Only full programs check, so
 * the others carry no instruction for it. The clock is the one that stamps flows. */
static __always_inline bool is_orphan(void)
{
	/* The owner may give a sign of life between the two loads, hence the signed comparison. */
	return orphan_limit &&
	       unlikely((__s64)(ticks_now() - *(volatile __u64 *)&live.alive) > (__s64)orphan_limit);
}

static __always_inline int finish(const struct run *run, int verdict, __u64 arrived)
{
	if (run->untagged)
		verdict = tag_again(run, verdict);
	count_verdict(run, verdict, arrived);
	return verdict;
}

/* The twin's record, emptied. */
static __always_inline struct explanation *explanation_of_run(void)
{
	const __u32 zero = 0;
	struct explanation *explanation = bpf_map_lookup_elem(&explanations, &zero);

	if (explanation)
		*explanation = (struct explanation){};
	return explanation;
}

static __always_inline int walk(struct xdp_md *ctx, const enum variant variant)
{
	const __u32 zero = 0;
	struct run run = {
		.ctx = ctx,
		.cpu = bpf_map_lookup_elem(&cpus, &zero),
		.variant = variant,
	};
	struct cursor cursor = cursor_of(ctx);
	int verdict = CONTINUE;
	__u64 arrived;
	__be16 type;

	/* Element 0 of a one-element array always exists, but the verifier requires the check. */
	if (!run.cpu)
		return XDP_ABORTED;
	if (variant & EXPLAINS) {
		run.explanation = explanation_of_run();
		if (!run.explanation)
			return XDP_ABORTED;
	}
	run.eth = cursor_take(&cursor, sizeof(*run.eth));
	if (!run.eth)
		return drop(&run, DROP_FRAME_TRUNCATED);
	run.length = (variant & FULL) && frags ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
	arrived = run.length;
	if (variant & RARE) {
		arrived = run.cpu->scratch.rare.arrived;
		run.unwrapped = run.cpu->scratch.rare.unwrapped;
		run.untagged = run.cpu->scratch.rare.tag_bytes;
	}

	if ((variant & FULL) && !(variant & RARE) && is_orphan()) {
		run.cpu->counters.orphaned++;
		return finish(&run, pass(&run, STEP_ORPHAN), arrived);
	}
	type = ether_type(run.eth);
	if (sorts_early(&run) && is_for_others(&run))
		verdict = pass(&run, STEP_OTHER_STATION);
	if (verdict == CONTINUE && rare_feature(&run, FEATURE_INLINE_DECAP) && !run.unwrapped)
		verdict = inline_decap(&run, &cursor, &type);
	if (verdict != CONTINUE)
		;
	else if (type == bpf_htons(ETH_P_IP))
		verdict = walk_ip(&run, cursor, arrived, FAMILY_V4);
	else if (type == bpf_htons(ETH_P_IPV6))
		verdict = walk_ip(&run, cursor, arrived, FAMILY_V6);
	else if (!(variant & RARE))
		verdict = walk_untagged(&run, cursor, type, arrived);
	else
		verdict = pass(&run, STEP_NOT_IP);
	return finish(&run, verdict, arrived);
}

SEC("xdp")
int katran(struct xdp_md *ctx)
{
	return walk(ctx, PLAIN);
}

/* The same with GUE and the features that few balancers use; the library attaches one of the
 * two. */
SEC("xdp")
int katran_full(struct xdp_md *ctx)
{
	return walk(ctx, FULL);
}

/* Returns the time that flows are stamped with. The library runs this program to read the clock. */
SEC("xdp")
int ticks(struct xdp_md *ctx __attribute__((unused)))
{
	return ticks_now();
}

SEC("xdp")
int katran_explain(struct xdp_md *ctx)
{
	return walk(ctx, EXPLAINS);
}

SEC("xdp")
int katran_explain_full(struct xdp_md *ctx)
{
	return walk(ctx, EXPLAINS | FULL);
}

/* Hands the frame as it arrived, except for a tunnel that ended here, to the program that this one
 * replaced. If that program has just gone, returns CONTINUE, or a verdict if tags were put back. */
static __always_inline int hand_back(const struct run *run)
{
	if (run->untagged && tag_again(run, XDP_TX) != XDP_TX)
		return XDP_DROP;
	bpf_tail_call(run->ctx, &special_programs, PROGRAM_BEFORE);
	return run->untagged ? drop(run, DROP_PROGRAM_MISSING) : CONTINUE;
}

/* Looks for an id in the packet, unless the replaced program may know its flow. If the id leads to
 * a real, the program that sends continues, otherwise the walk. The walk also continues for the
 * explaining twin. */
SEC("xdp")
int katran_ids(struct xdp_md *ctx)
{
	const __u32 zero = 0;
	struct run run = {
		.ctx = ctx,
		.cpu = bpf_map_lookup_elem(&cpus, &zero),
		.variant = FULL,
	};
	struct id_query *query;
	int verdict;

	if (!run.cpu)
		return XDP_ABORTED;
	query = &run.cpu->scratch.query;
	if ((query->vip.flags & VIP_HANDS_BACK) && !query->explain && may_be_known_before()) {
		run.untagged = query->untagged;
		verdict = hand_back(&run);
		if (verdict != CONTINUE)
			return finish(&run, verdict, query->arrived);
	}
	find_id(&run, query);
	if (query->explain)
		bpf_tail_call(ctx, &special_programs, PROGRAM_EXPLAIN_SPECIAL);
	if (query->routed > 0)
		bpf_tail_call(ctx, &special_programs, PROGRAM_SEND);
	bpf_tail_call(ctx, &special_programs, PROGRAM_SPECIAL);
	return finish(&run, drop(&run, DROP_PROGRAM_MISSING), query->arrived);
}

/* Takes the packet that the CPU's record describes. Never NULL in practice; the verifier requires
 * the check. */
static __always_inline const struct id_query *take_over(struct run *run, struct cursor *cursor)
{
	const __u32 zero = 0;

	*cursor = cursor_of(run->ctx);
	run->cpu = bpf_map_lookup_elem(&cpus, &zero);
	run->eth = cursor_take(cursor, sizeof(*run->eth));
	if (!run->cpu || !run->eth)
		return NULL;
	run->untagged = run->cpu->scratch.query.untagged;
	return &run->cpu->scratch.query;
}

/* Sends a packet to the real that its id names. A separate program, because the verifier would
 * otherwise check this code once for each path that leads to an id. */
SEC("xdp")
int katran_send(struct xdp_md *ctx)
{
	struct run run = { .ctx = ctx, .variant = FULL };
	struct cursor cursor;
	const struct id_query *query = take_over(&run, &cursor);
	int verdict;

	if (!query)
		return XDP_ABORTED;
	verdict = query->flow.family == FAMILY_V6 ? send_by_id(&run, query, FAMILY_V6) :
						    send_by_id(&run, query, FAMILY_V4);
	return finish(&run, verdict, query->arrived);
}

static __always_inline int finish_quic(struct xdp_md *ctx, const enum variant variant)
{
	struct run run = { .ctx = ctx, .variant = variant };
	struct cursor cursor;
	const struct id_query *query = take_over(&run, &cursor);
	int verdict;

	if (!query)
		return XDP_ABORTED;
	run.untagged = false;
	verdict = ether_type(run.eth) == bpf_htons(ETH_P_IPV6) ?
			  route_quic(&run, cursor, FAMILY_V6) :
			  route_quic(&run, cursor, FAMILY_V4);
	return finish(&run, verdict, query->arrived);
}

/* Sends a QUIC datagram by its connection id: see quic_walk.h. */
SEC("xdp")
int katran_quic(struct xdp_md *ctx)
{
	return full ? finish_quic(ctx, FULL) : finish_quic(ctx, PLAIN);
}

/* The end of the walk for a packet that the CPU's record describes: step 8 with all its
 * parts. */
static __always_inline int walk_special(struct xdp_md *ctx, const enum variant variant)
{
	struct run run = { .ctx = ctx, .variant = variant };
	struct cursor cursor;
	const struct id_query *query = take_over(&run, &cursor);
	struct choice choice = {};
	struct packet packet;
	int verdict;

	if (!query)
		return XDP_ABORTED;
	packet = packet_of(query);
	/* `choice` must start empty: otherwise the compiler keeps the reason where the verifier
	 * loses its bounds. */
	choice.vip = query->vip;
	choice.vip_number = query->vip_number;
	if (variant & EXPLAINS) {
		run.explanation = explanation_of_run();
		if (!run.explanation)
			return XDP_ABORTED;
		run.explanation->vip = choice.vip_number + 1;
	}
	verdict = packet.flow.family == FAMILY_V6 ?
			  choose_and_send(&run, &packet, &choice, FAMILY_V6) :
			  choose_and_send(&run, &packet, &choice, FAMILY_V4);
	return finish(&run, verdict, query->arrived);
}

SEC("xdp")
int katran_special(struct xdp_md *ctx)
{
	return walk_special(ctx, SPECIAL | FULL);
}

SEC("xdp")
int katran_explain_special(struct xdp_md *ctx)
{
	return walk_special(ctx, EXPLAINS | SPECIAL | FULL);
}

/* Frames that another program has handed over: see rare.h. */
SEC("xdp")
int katran_rare(struct xdp_md *ctx)
{
	return walk(ctx, FULL | RARE);
}

SEC("xdp")
int katran_explain_rare(struct xdp_md *ctx)
{
	return walk(ctx, EXPLAINS | FULL | RARE);
}
