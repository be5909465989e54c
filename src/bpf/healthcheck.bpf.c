// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Health checks: a tc program at the egress of an interface that sends each of this host's probes
 * through the tunnel to one real, as the balancer would send a client's packets. The mark of a
 * probe's socket, its destination or its source names the real. What the kernel sends for a
 * connection after its socket is gone has no mark, and goes where the connection went.
 */
#include <linux/bpf.h>

#define CONTEXT struct __sk_buff
#include "cursor.h"
#include "probe.h"
#include "probe_maps.h"
#include "probe_real.h"
#include "probe_wrap.h"
#include "shared.h"
#include "tunnel.h"

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Whether the source is one that this program gives to outer headers. */
static __always_inline bool is_from_here(const struct probe *probe)
{
	const __u32 *source = (const __u32 *)probe->source.address;

	if (made_up_sources) {
		if (!probe->v6)
			return (__u16)source[0] == ipip_source_v4;
		return source[0] == ipip_source_v6[0] && source[1] == ipip_source_v6[1] &&
		       source[2] == ipip_source_v6[2];
	}
	return is_own_address(own_addresses(), source, probe->v6);
}

/* Whether this program has already wrapped the probe: one that the kernel sends to a neighbour
 * passes this hook again. */
static __always_inline bool is_wrapped(struct __sk_buff *skb, const struct probe *probe)
{
	struct cursor cursor = cursor_of(skb);
	struct tunnel tunnel;

	if (skb->mark || !is_from_here(probe))
		return false;
	/* Outer headers written here are in one piece. */
	if (!cursor_take(&cursor, ETH_HLEN))
		return false;
	if (!(probe->v6 ? find_tunnel_v6(&tunnel, cursor, gue_port) :
			  find_tunnel_v4(&tunnel, cursor, gue_port)))
		return false;
	if (encapsulation == ENCAPSULATION_GUE)
		return tunnel.gue && (probe->source.port & bpf_htons(PROBE_PORT_BIT));
	return !tunnel.gue;
}

/* The length of the packet, or of its longest segment if the kernel will cut it. */
static __always_inline __u32 longest(struct __sk_buff *skb, const struct probe *probe)
{
	__u32 header = sizeof(struct udphdr);
	__u8 words;

	if (!skb->gso_size)
		return skb->len;
	if (probe->key.protocol == IPPROTO_TCP) {
		/* Byte 12 holds the header's length in words. */
		if (!read(skb, probe->transport + 12, &words, sizeof(words)))
			return skb->len;
		header = (words >> 4) * 4;
	}
	return probe->transport + header + skb->gso_size;
}

/* How to reach a real with its own next hop. */
static __always_inline struct probe_way way_of(const struct probe_real *real)
{
	struct probe_match key = { .family = real->v6 ? FAMILY_V6 : FAMILY_V4 };
	const struct probe_way *way;

	__builtin_memcpy(key.address, real->address, sizeof(key.address));
	way = bpf_map_lookup_elem(&ways, &key);
	return way ? *way : (struct probe_way){};
}

/* Counts the probe for its key, if that is registered. */
static __always_inline void count_key(const struct vip_key *key)
{
	__u32 *number = bpf_map_lookup_elem(&probe_keys, key);
	__u64 *counter = number ? bpf_map_lookup_elem(&probe_counters, number) : NULL;

	if (counter)
		(*counter)++;
}

static __always_inline void clear_mark(struct __sk_buff *skb)
{
	/* The verifier requires an offset from the context itself, but the compiler would reuse the
	 * field's address from an earlier read: this hides that it is the same pointer. */
	asm volatile("" : "+r"(skb));
	skb->mark = 0;
}

SEC("tc")
int healthcheck(struct __sk_buff *skb)
{
	const __u32 zero = 0;
	struct probe_totals *totals = bpf_map_lookup_elem(&probe_totals, &zero);
	struct probe probe = {};
	struct probe_way way = { .by_gateway = 1 };
	struct probe_real *real;
	struct probe_real to;
	bool elsewhere;

	if (!totals)
		return TC_ACT_UNSPEC;
	if (!next_hops && !skb->mark && !settings.destinations && !settings.sources &&
	    !settings.marked)
		goto skip;
	if (!parse(skb, &probe))
		goto skip;
	if (next_hops && is_wrapped(skb, &probe))
		return TC_ACT_UNSPEC;
	real = real_of(skb, &probe, totals);
	if (!real)
		goto skip;
	if (max_packet && longest(skb, &probe) > max_packet) {
		totals->too_big++;
		goto drop;
	}
	to = *real;
	if (next_hops)
		way = way_of(&to);
	if (!way.interface)
		way.interface = settings.interface ? settings.interface : skb->ifindex;
	elsewhere = way.interface != skb->ifindex;
	if (!wrap(skb, &probe, &to, way.by_gateway, elsewhere))
		goto drop;
	clear_mark(skb);
	totals->processed++;
	if (!probe.late)
		count_key(&probe.key);
	if (next_hops && !way.by_gateway)
		return bpf_redirect_neigh(way.interface, NULL, 0, 0);
	/* Through another interface it leaves from here; through this one after the remaining tc
	 * programs. */
	if (elsewhere)
		return bpf_redirect(way.interface, 0);
	return TC_ACT_UNSPEC;
drop:
	totals->dropped++;
	return TC_ACT_SHOT;
skip:
	totals->skipped++;
	return TC_ACT_UNSPEC;
}
