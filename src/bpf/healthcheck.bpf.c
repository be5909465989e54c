// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Health checks: a tc program at the egress of an interface that sends this host's own probes through
 * the tunnel to one real each, as the balancer would send a client's packets. Which real a probe is
 * for is told by the mark of its socket, by its destination, or by its source.
 */
#include "csum.h"
#include "shared.h"

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define OUTER_TTL 64
/* Bit 10 of the source port, in the network's order: such packets are probes. */
#define PROBE_PORT_BIT (1 << 10)

/* Load-time constants, as those of the balancer. */
const volatile __u32 encapsulation = ENCAPSULATION_IPIP;
const volatile __u16 gue_port = 6080;
/* The largest packet, Ethernet header included; 0: any. */
const volatile __u32 max_packet = 0;
/* Reals have next hops of their own: the kernel's neighbour table has them. */
const volatile __u8 next_hops = 0;

/* Written by the control side at any time. */
struct probe_settings settings SEC(".data.settings") = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct probe_real);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct probe_match);
	__type(value, struct probe_real);
} destinations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct probe_match);
	__type(value, struct probe_real);
} sources SEC(".maps");

/* Numbers of registered keys, and the probes that each number has counted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct vip_key);
	__type(value, __u32);
} probe_keys SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} probe_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct probe_totals);
} probe_totals SEC(".maps");

/* What is known of a packet that may be a probe. */
struct probe {
	struct vip_key key; /* where it goes to */
	struct probe_match source;
	__u32 l3_length; /* of the inner packet, header included */
	bool v6;
	bool ports; /* TCP or UDP with its ports */
};

/* Reads bytes of the packet, wherever they lie. */
static __always_inline bool read(struct __sk_buff *skb, __u32 at, void *to, const __u32 size)
{
	return !bpf_skb_load_bytes(skb, at, to, size);
}

static __always_inline bool parse(struct __sk_buff *skb, struct probe *probe)
{
	__u32 transport = ETH_HLEN;
	__be16 ports[2] = {};

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (!read(skb, ETH_HLEN, &ip, sizeof(ip)))
			return false;
		transport += ip.ihl * 4;
		probe->key.family = FAMILY_V4;
		probe->key.protocol = ip.protocol;
		__builtin_memcpy(probe->key.address, &ip.daddr, sizeof(ip.daddr));
		__builtin_memcpy(probe->source.address, &ip.saddr, sizeof(ip.saddr));
		probe->ports = !(ip.frag_off & bpf_htons(0x1fff));
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (!read(skb, ETH_HLEN, &ip, sizeof(ip)))
			return false;
		transport += sizeof(ip);
		probe->v6 = true;
		probe->key.family = FAMILY_V6;
		probe->key.protocol = ip.nexthdr;
		__builtin_memcpy(probe->key.address, &ip.daddr, sizeof(ip.daddr));
		__builtin_memcpy(probe->source.address, &ip.saddr, sizeof(ip.saddr));
		probe->ports = true;
	} else {
		return false;
	}
	probe->l3_length = skb->len - ETH_HLEN;
	probe->source.family = probe->key.family;
	probe->ports = probe->ports &&
		       (probe->key.protocol == IPPROTO_TCP || probe->key.protocol == IPPROTO_UDP) &&
		       read(skb, transport, ports, sizeof(ports));
	if (probe->ports) {
		probe->source.port = ports[0];
		probe->key.port = ports[1];
	}
	return true;
}

/* The real that an address and port are matched to; port 0 of a match is any. */
static __always_inline struct probe_real *match(void *map, struct probe_match *match)
{
	struct probe_real *real = bpf_map_lookup_elem(map, match);

	if (real || !match->port)
		return real;
	match->port = 0;
	return bpf_map_lookup_elem(map, match);
}

/* The real that a packet is for; NULL: it is none of ours. */
static __always_inline struct probe_real *real_of(struct __sk_buff *skb, const struct probe *probe,
						  struct probe_totals *totals)
{
	const __u32 mark = skb->mark;
	struct probe_real *real = mark ? bpf_map_lookup_elem(&marks, &mark) : NULL;
	struct probe_match key = { .port = probe->key.port, .family = probe->key.family };

	if (real)
		return real;
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
		if (real)
			totals->src_matched++;
	}
	return real;
}

/* Room for the outer headers behind the Ethernet header; false if there is none. */
static __always_inline bool grow(struct __sk_buff *skb, bool to_v6, __u32 size)
{
	__u64 flags = to_v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	if (encapsulation == ENCAPSULATION_GUE)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	return !bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, flags);
}

static __always_inline struct udphdr udp_header(__u32 length)
{
	return (struct udphdr){
		.source = bpf_htons(bpf_get_prandom_u32() | PROBE_PORT_BIT),
		.dest = bpf_htons(gue_port),
		.len = bpf_htons(length + sizeof(struct udphdr)),
	};
}

/* Writes the outer headers behind the Ethernet header, and that one anew. */
static __always_inline bool wrap_v4(struct __sk_buff *skb, const struct probe *probe,
				    const struct probe_real *real)
{
	const bool gue = encapsulation == ENCAPSULATION_GUE;
	struct {
		struct iphdr ip;
		struct udphdr udp;
	} outer = {
		.ip = {
			.version = 4,
			.ihl = sizeof(struct iphdr) / 4,
			.ttl = OUTER_TTL,
			.protocol = gue ? IPPROTO_UDP : probe->v6 ? IPPROTO_IPV6 : IPPROTO_IPIP,
			.saddr = settings.own.v4,
			.daddr = *(const __u32 *)real->address,
		},
		.udp = udp_header(probe->l3_length),
	};
	const __u32 size = gue ? sizeof(outer) : sizeof(outer.ip);

	if (!settings.own.v4)
		return false;
	outer.ip.tot_len = bpf_htons(probe->l3_length + size);
	outer.ip.check = csum_ipv4(&outer.ip);
	if (!grow(skb, false, size))
		return false;
	if (gue)
		return !bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0);
	return !bpf_skb_store_bytes(skb, ETH_HLEN, &outer.ip, sizeof(outer.ip), 0);
}

static __always_inline bool wrap_v6(struct __sk_buff *skb, const struct probe *probe,
				    const struct probe_real *real)
{
	const bool gue = encapsulation == ENCAPSULATION_GUE;
	struct {
		struct ipv6hdr ip;
		struct udphdr udp;
	} outer = {
		.ip = {
			.version = 6,
			.hop_limit = OUTER_TTL,
			.nexthdr = gue ? IPPROTO_UDP : probe->v6 ? IPPROTO_IPV6 : IPPROTO_IPIP,
		},
		.udp = udp_header(probe->l3_length),
	};
	const __u32 size = gue ? sizeof(outer) : sizeof(outer.ip);
	const __u32 *own = settings.own.v6;

	if (!(own[0] | own[1] | own[2] | own[3]))
		return false;
	__builtin_memcpy(&outer.ip.saddr, own, sizeof(outer.ip.saddr));
	__builtin_memcpy(&outer.ip.daddr, real->address, sizeof(outer.ip.daddr));
	outer.ip.payload_len = bpf_htons(probe->l3_length + size - sizeof(outer.ip));
	if (!grow(skb, true, size))
		return false;
	if (gue)
		return !bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0);
	return !bpf_skb_store_bytes(skb, ETH_HLEN, &outer.ip, sizeof(outer.ip), 0);
}

static __always_inline bool wrap(struct __sk_buff *skb, const struct probe *probe,
				 const struct probe_real *real)
{
	const bool to_v6 = real->v6;
	struct {
		__u64 destination;
		__u64 source;
	} macs = {
		.destination = to_v6 ? settings.gateway_mac_v6 : settings.gateway_mac,
		.source = settings.own_mac,
	};
	const __be16 type = to_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);

	/* Nobody knows the way yet, or there is nothing to write it on: no Ethernet. */
	if (!next_hops && (!macs.destination || !macs.source))
		return false;
	if (!(to_v6 ? wrap_v6(skb, probe, real) : wrap_v4(skb, probe, real)))
		return false;
	return !bpf_skb_store_bytes(skb, 0, &macs.destination, ETH_ALEN, 0) &&
	       !bpf_skb_store_bytes(skb, ETH_ALEN, &macs.source, ETH_ALEN, 0) &&
	       !bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0);
}

/* Counts the probe for its key, if somebody has registered that. */
static __always_inline void count_key(const struct vip_key *key)
{
	__u32 *number = bpf_map_lookup_elem(&probe_keys, key);
	__u64 *counter = number ? bpf_map_lookup_elem(&probe_counters, number) : NULL;

	if (counter)
		(*counter)++;
}

SEC("tc")
int healthcheck(struct __sk_buff *skb)
{
	const __u32 zero = 0;
	struct probe_totals *totals = bpf_map_lookup_elem(&probe_totals, &zero);
	struct probe probe = {};
	struct probe_real *real;
	struct probe_real to;

	if (!totals)
		return TC_ACT_UNSPEC;
	if (!skb->mark && !settings.destinations && !settings.sources)
		goto skip;
	if (!parse(skb, &probe))
		goto skip;
	real = real_of(skb, &probe, totals);
	if (!real)
		goto skip;
	if (max_packet && skb->len > max_packet) {
		totals->too_big++;
		goto drop;
	}
	to = *real;
	if (!wrap(skb, &probe, &to))
		goto drop;
	skb->mark = 0;
	totals->processed++;
	count_key(&probe.key);
	if (next_hops)
		return bpf_redirect_neigh(to.interface ? to.interface : settings.interface, NULL, 0,
					  0);
	/* By another interface it leaves from here, by this one with what else there is for it. */
	if (settings.interface != skb->ifindex)
		return bpf_redirect(settings.interface, 0);
	return TC_ACT_UNSPEC;
drop:
	totals->dropped++;
	return TC_ACT_SHOT;
skip:
	totals->skipped++;
	return TC_ACT_UNSPEC;
}
