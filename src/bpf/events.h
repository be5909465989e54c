/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Events for the control side: what happened, with the beginning of the frame. The walk emits them
 * only while a monitor listens. */
#pragma once

#include "config.h"
#include "counters.h"
#include "maps.h"
#include "verifier.h"

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Emits an event, unless this CPU has emitted `event_limit` of its kind in the current second. A
 * global function, so the verifier checks it once and not at each call. */
LOOKED_AT_ONCE int event_emit(struct xdp_md *ctx, __u32 kind)
{
	const __u32 zero = 0;
	struct cpu *record = bpf_map_lookup_elem(&cpus, &zero);
	const __u64 now = bpf_jiffies64();
	struct event *event;
	__u32 bytes;

	/* Before Linux 6.8 the verifier checks this even if nothing calls it, and without the
	 * feature there is no ring buffer. */
	if (!feature(FEATURE_INTROSPECTION))
		return 0;
	if (!ctx || !record || kind >= EVENT_KINDS)
		return 0;
	if (now - record->limit.start >= ticks_per_second) {
		record->limit.start = now;
		__builtin_memset(record->limit.events, 0, sizeof(record->limit.events));
	}
	if (++record->limit.events[kind] > live.event_limit) {
		record->counters.events_limited++;
		return 0;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		record->counters.events_lost++;
		return 0;
	}
	event->time = bpf_ktime_get_ns();
	event->kind = kind;
	event->interface = ctx->ingress_ifindex;
	event->length = frags ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
	bytes = event->length;
	if (bytes > EVENT_BYTES)
		bytes = EVENT_BYTES;
	/* 1 to EVENT_BYTES, in a form that the verifier understands. */
	bytes = ((bytes - 1) & (EVENT_BYTES - 1)) + 1;
	event->captured = bytes;
	if (bpf_xdp_load_bytes(ctx, 0, event->data, bytes)) {
		bpf_ringbuf_discard(event, 0);
		record->counters.events_lost++;
		return 0;
	}
	record->counters.events[kind]++;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __always_inline void tell(const struct run *run, enum event_kind kind)
{
	if (rare_feature(run, FEATURE_INTROSPECTION) && (live.events & 1u << kind))
		event_emit(run->ctx, kind);
}
