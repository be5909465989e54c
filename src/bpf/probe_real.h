/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Finds the real that a packet is for; healthcheck.bpf.c calls it. The real comes from the mark of
 * the packet's socket, from its destination or source, or from its connection, if a socket with a
 * mark opened that and is gone.
 */
#pragma once

#include "probe.h"
#include "probe_maps.h"

/* Where flags are in a TCP header. */
#define TCP_FLAGS 13
#define TCP_SYN 0x02
#define TCP_ACK 0x10

/* The real that an address and port match; port 0 of a match is any. */
static __always_inline struct probe_real *match(void *map, struct probe_match *match)
{
	struct probe_real *real = bpf_map_lookup_elem(map, match);

	if (real || !match->port)
		return real;
	match->port = 0;
	return bpf_map_lookup_elem(map, match);
}

static __always_inline struct flow_key flow_of(const struct probe *probe)
{
	struct flow_key flow = {
		.source_port = probe->source.port,
		.destination_port = probe->key.port,
		.protocol = probe->key.protocol,
		.family = probe->key.family,
	};

	__builtin_memcpy(flow.source, probe->source.address, sizeof(flow.source));
	__builtin_memcpy(flow.destination, probe->key.address, sizeof(flow.destination));
	return flow;
}

static __always_inline bool is_tcp(const struct probe *probe)
{
	return probe->ports && probe->key.protocol == IPPROTO_TCP;
}

static __always_inline bool same_real(const struct probe_real *one, const struct probe_real *other)
{
	const __u32 *a = (const __u32 *)one;
	const __u32 *b = (const __u32 *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4];
}

/* Remembers where the connection of a marked packet goes. */
static __always_inline void remember(const struct probe *probe, const struct probe_real *real)
{
	const struct flow_key flow = flow_of(probe);
	const struct probe_real *known = bpf_map_lookup_elem(&probe_flows, &flow);

	/* If there is no room, it is not remembered. */
	if (!known || !same_real(known, real))
		bpf_map_update_elem(&probe_flows, &flow, real, BPF_ANY);
}

/* The real of a packet's connection, if no mark leads to one: the kernel sends such a packet for a
 * socket that is gone, to the VIP it was connected to. A packet with an unknown mark comes from a
 * live socket and is left alone. A SYN begins another connection, which is not a probe's. */
static __always_inline struct probe_real *recall(struct __sk_buff *skb, const struct probe *probe,
						  __u32 mark)
{
	const struct flow_key flow = flow_of(probe);
	struct probe_real *real = bpf_map_lookup_elem(&probe_flows, &flow);
	__u8 flags;

	if (!real || !read(skb, probe->transport + TCP_FLAGS, &flags, sizeof(flags)))
		return NULL;
	if ((flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return mark ? NULL : real;
	bpf_map_delete_elem(&probe_flows, &flow);
	return NULL;
}

/* The real that a packet is for; NULL: it is not a probe. */
static __always_inline struct probe_real *real_of(struct __sk_buff *skb, struct probe *probe,
						  struct probe_totals *totals)
{
	const __u32 mark = skb->mark;
	struct probe_real *real = mark ? bpf_map_lookup_elem(&marks, &mark) : NULL;
	struct probe_match key = { .port = probe->key.port, .family = probe->key.family };

	if (real) {
		if (is_tcp(probe))
			remember(probe, real);
		return real;
	}
	if (settings.destinations) {
		__builtin_memcpy(key.address, probe->key.address, sizeof(key.address));
		real = match(&destinations, &key);
		if (real) {
			totals->dst_matched++;
			return real;
		}
	}
	if (settings.sources) {
		key = probe->source;
		real = match(&sources, &key);
		if (real) {
			totals->src_matched++;
			return real;
		}
	}
	if (settings.marked && is_tcp(probe)) {
		real = recall(skb, probe, mark);
		probe->late = real;
		if (real)
			totals->recalled++;
	}
	return real;
}
