// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Health checks: a tc program at the egress of an interface that sends this host's own probes through
 * the tunnel to one real each, as the balancer would send a client's packets. Which real a probe is
 * for is told by the mark of its socket, by its destination, or by its source.
 */
#include <linux/bpf.h>

#define CONTEXT struct __sk_buff
#include "csum.h"
#include "cursor.h"
#include "shared.h"
#include "tunnel.h"

#include <stdbool.h>
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
/* Reals have next hops of their own: see `ways`. */
const volatile __u8 next_hops = 0;

/* Written by the control side at any time. */
struct probe_settings settings SEC(".data.settings") = {};

static __always_inline const struct own_addresses *own_addresses(void)
{
	return &settings.own[settings.own_current & 1];
}

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

/* By the addresses of reals. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct probe_match);
	__type(value, struct probe_way);
} ways SEC(".maps");

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
	__u32 transport; /* where the header behind those of IP begins */
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
	probe->transport = transport;
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

/* Whether it is a probe that was wrapped here: sent on by its neighbour's address, it passes this hook
 * again. */
static __always_inline bool is_wrapped(struct __sk_buff *skb, const struct probe *probe)
{
	struct cursor cursor = cursor_of(skb);
	struct tunnel tunnel;
	const struct own_addresses *both = own_addresses();
	const __u32 *own = probe->v6 ? both->v6 : &both->v4;
	const __u32 *source = (const __u32 *)probe->source.address;

	if (skb->mark || !own[0] || source[0] != own[0])
		return false;
	if (probe->v6 && (source[1] != own[1] || source[2] != own[2] || source[3] != own[3]))
		return false;
	/* Outer headers that were written here lie in one piece. */
	if (!cursor_take(&cursor, ETH_HLEN))
		return false;
	if (!(probe->v6 ? find_tunnel_v6(&tunnel, cursor, gue_port) :
			  find_tunnel_v4(&tunnel, cursor, gue_port)))
		return false;
	if (encapsulation == ENCAPSULATION_GUE)
		return tunnel.gue && (probe->source.port & bpf_htons(PROBE_PORT_BIT));
	return !tunnel.gue;
}

/* The length of the packet, or of the longest of the segments that it will be cut into. */
static __always_inline __u32 longest(struct __sk_buff *skb, const struct probe *probe)
{
	__u32 header = sizeof(struct udphdr);
	__u8 words;

	if (!skb->gso_size)
		return skb->len;
	if (probe->key.protocol == IPPROTO_TCP) {
		/* The 13th byte says how many words the header has. */
		if (!read(skb, probe->transport + 12, &words, sizeof(words)))
			return skb->len;
		header = (words >> 4) * 4;
	}
	return probe->transport + header + skb->gso_size;
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
	const __u32 own = own_addresses()->v4;
	struct {
		struct iphdr ip;
		struct udphdr udp;
	} outer = {
		.ip = {
			.version = 4,
			.ihl = sizeof(struct iphdr) / 4,
			.ttl = OUTER_TTL,
			.protocol = gue ? IPPROTO_UDP : probe->v6 ? IPPROTO_IPV6 : IPPROTO_IPIP,
			.saddr = own,
			.daddr = *(const __u32 *)real->address,
		},
		.udp = udp_header(probe->l3_length),
	};
	const __u32 size = gue ? sizeof(outer) : sizeof(outer.ip);

	if (!own)
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
	const __u32 *own = own_addresses()->v6;

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

/* Wraps a probe. By its neighbour's address it is sent on later, by the gateway's from here: that is
 * written, and the source of the interface that it leaves by, if it was sent on another one. */
static __always_inline bool wrap(struct __sk_buff *skb, const struct probe *probe,
				 const struct probe_real *real, bool by_gateway, bool elsewhere)
{
	const bool to_v6 = real->v6;
	const __u64 destination = to_v6 ? settings.gateway_mac_v6 : settings.gateway_mac;
	const __u64 source = settings.own_mac;
	const __be16 type = to_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);

	/* Nobody knows the way yet. */
	if (by_gateway && (!destination || (elsewhere && !source)))
		return false;
	if (!(to_v6 ? wrap_v6(skb, probe, real) : wrap_v4(skb, probe, real)))
		return false;
	if (by_gateway && bpf_skb_store_bytes(skb, 0, &destination, ETH_ALEN, 0))
		return false;
	if (by_gateway && elsewhere && bpf_skb_store_bytes(skb, ETH_ALEN, &source, ETH_ALEN, 0))
		return false;
	return !bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0);
}

/* How a real with a next hop of its own is reached. */
static __always_inline struct probe_way way_of(const struct probe_real *real)
{
	struct probe_match key = { .family = real->v6 ? FAMILY_V6 : FAMILY_V4 };
	const struct probe_way *way;

	__builtin_memcpy(key.address, real->address, sizeof(key.address));
	way = bpf_map_lookup_elem(&ways, &key);
	return way ? *way : (struct probe_way){};
}

/* Counts the probe for its key, if somebody has registered that. */
static __always_inline void count_key(const struct vip_key *key)
{
	__u32 *number = bpf_map_lookup_elem(&probe_keys, key);
	__u64 *counter = number ? bpf_map_lookup_elem(&probe_counters, number) : NULL;

	if (counter)
		(*counter)++;
}

static __always_inline void clear_mark(struct __sk_buff *skb)
{
	/* The verifier wants an offset from the context itself, and the compiler would rather keep the
	 * field's address from where it was read: so it is not to know that this is that pointer. */
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
	if (!next_hops && !skb->mark && !settings.destinations && !settings.sources)
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
	count_key(&probe.key);
	if (next_hops && !way.by_gateway)
		return bpf_redirect_neigh(way.interface, NULL, 0, 0);
	/* By another interface it leaves from here, by this one with what else there is for it. */
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
