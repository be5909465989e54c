// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Health checks: a tc program at the egress of an interface that sends this host's own probes through
 * the tunnel to one real each, as the balancer would send a client's packets. The mark of a probe's
 * socket, its destination or its source says which real it is for; what the kernel sends for a
 * connection whose socket is gone has no mark, and goes where the connection went.
 */
#include <linux/bpf.h>

#define CONTEXT struct __sk_buff
#include "csum.h"
#include "cursor.h"
#include "inner_sum.h"
#include "made_up.h"
#include "shared.h"
#include "tunnel.h"

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define OUTER_TTL 64
/* Bit 10 of the source port, in the network's order: such packets are probes. */
#define PROBE_PORT_BIT (1 << 10)
/* Where flags stand in a TCP header. */
#define TCP_FLAGS 13
#define TCP_SYN 0x02
#define TCP_ACK 0x10

/* Load-time constants, as those of the balancer. */
const volatile __u32 encapsulation = ENCAPSULATION_IPIP;
const volatile __u16 gue_port = 6080;
/* The largest packet, Ethernet header included; 0: any. */
const volatile __u32 max_packet = 0;
/* Outer sources of IP in IP are made up as those of clients' packets are, of these prefixes (config.h). */
const volatile __u8 made_up_sources = 0;
const volatile __u16 ipip_source_v4 = 0;
const volatile __u32 ipip_source_v6[3] = {};
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

/* Where TCP connections went whose packets had a mark. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PROBE_FLOWS);
	__type(key, struct flow_key);
	__type(value, struct probe_real);
} probe_flows SEC(".maps");

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
	__u32 sum; /* what it adds up to */
	bool v6;
	bool ports; /* TCP or UDP with its ports */
	bool summed; /* `sum` is known */
	bool late; /* no probe, but what the kernel sends for one's connection */
};

/* Reads bytes of the packet, wherever they lie. */
static __always_inline bool read(struct __sk_buff *skb, __u32 at, void *to, const __u32 size)
{
	return !bpf_skb_load_bytes(skb, at, to, size);
}

/* Whether a transport checksum says what is behind the IP header, `length` bytes. It may still have to be
 * filled in: that makes no difference. */
static __always_inline bool is_summed(struct __sk_buff *skb, const struct probe *probe, __u16 length)
{
	struct udphdr udp;

	/* The kernel cuts it into segments later, and leaves each with this checksum. */
	if (skb->gso_size)
		return false;
	switch (probe->key.protocol) {
	case IPPROTO_TCP:
		return true;
	case IPPROTO_UDP:
		return read(skb, probe->transport, &udp, sizeof(udp)) && udp.check &&
		       udp.len == bpf_htons(length);
	case IPPROTO_ICMP:
		return !probe->v6;
	case IPPROTO_ICMPV6:
		return probe->v6;
	}
	return false;
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
		probe->transport = transport;
		probe->summed = ip.ihl == sizeof(ip) / 4 &&
				!(ip.frag_off & bpf_htons(IPV4_FRAGMENT_MASK)) &&
				is_summed(skb, probe, bpf_ntohs(ip.tot_len) - sizeof(ip));
		probe->sum = inner_sum_v4(&ip, ip.protocol != IPPROTO_ICMP);
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
		probe->transport = transport;
		probe->summed = is_summed(skb, probe, bpf_ntohs(ip.payload_len));
		probe->sum = inner_sum_v6(&ip);
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

/* Remembers where the connection of a packet with a mark goes. */
static __always_inline void remember(const struct probe *probe, const struct probe_real *real)
{
	const struct flow_key flow = flow_of(probe);
	const struct probe_real *known = bpf_map_lookup_elem(&probe_flows, &flow);

	/* If there is no room, it is not remembered. */
	if (!known || !same_real(known, real))
		bpf_map_update_elem(&probe_flows, &flow, real, BPF_ANY);
}

/* Where the connection of a packet went that no mark leads to a real: the kernel sends it for a socket that is
 * gone, to the VIP that it was connected to. What has a mark that means nothing (any more) a socket has sent: it is
 * left alone. A SYN begins another connection, which is no probe's. */
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

/* The real that a packet is for; NULL: it is none of ours. */
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

/* Whether the source is one that the outer headers of probes have. */
static __always_inline bool is_from_here(const struct probe *probe)
{
	const struct own_addresses *both = own_addresses();
	const __u32 *own = probe->v6 ? both->v6 : &both->v4;
	const __u32 *source = (const __u32 *)probe->source.address;

	if (made_up_sources) {
		if (!probe->v6)
			return (__u16)source[0] == ipip_source_v4;
		return source[0] == ipip_source_v6[0] && source[1] == ipip_source_v6[1] &&
		       source[2] == ipip_source_v6[2];
	}
	if (!probe->v6)
		return own[0] && source[0] == own[0];
	return (own[0] | own[1] | own[2] | own[3]) && source[0] == own[0] && source[1] == own[1] &&
	       source[2] == own[2] && source[3] == own[3];
}

/* Whether it is a probe that was wrapped here: sent on by its neighbour's address, it passes this hook
 * again. */
static __always_inline bool is_wrapped(struct __sk_buff *skb, const struct probe *probe)
{
	struct cursor cursor = cursor_of(skb);
	struct tunnel tunnel;

	if (skb->mark || !is_from_here(probe))
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

/* The UDP header of GUE. `addresses`: the sum of the outer addresses. */
static __always_inline struct udphdr udp_header(const struct probe *probe, __u32 addresses)
{
	struct udphdr udp = {
		.source = bpf_htons(bpf_get_prandom_u32() | PROBE_PORT_BIT),
		.dest = bpf_htons(gue_port),
		.len = bpf_htons(probe->l3_length + sizeof(struct udphdr)),
	};

	/* None, where nobody knows what the packet adds up to (RFC 6935). */
	if (!probe->summed)
		return udp;
	udp.check = ~csum_fold(addresses + bpf_htons(IPPROTO_UDP) + udp.len + udp.source +
			       udp.dest + udp.len + probe->sum);
	if (!udp.check)
		udp.check = 0xffff;
	return udp;
}

/* The outer source; 0: there is none. */
static __always_inline __u32 outer_source_v4(const struct probe *probe)
{
	const __u32 *from = (const __u32 *)probe->source.address;
	const __u32 tail = from[probe->v6 ? 3 : 0] >> 16;

	if (!made_up_sources)
		return own_addresses()->v4;
	return ipip_source_v4 |
	       usable_host_v4((tail ^ __builtin_bswap16(probe->source.port)) << 16);
}

/* The same, written to `source`; false: there is none. */
static __always_inline bool outer_source_v6(const struct probe *probe, __u32 *source)
{
	const __u32 *from = (const __u32 *)probe->source.address;
	const __u32 *own = own_addresses()->v6;

	if (!made_up_sources) {
		__builtin_memcpy(source, own, ADDRESS_BYTES);
		return own[0] | own[1] | own[2] | own[3];
	}
	source[0] = ipip_source_v6[0];
	source[1] = ipip_source_v6[1];
	source[2] = ipip_source_v6[2];
	source[3] = usable_host_v6(from[probe->v6 ? 3 : 0] ^ probe->source.port);
	return true;
}

/* Writes the outer headers behind the Ethernet header, and that one anew. */
static __always_inline bool wrap_v4(struct __sk_buff *skb, const struct probe *probe,
				    const struct probe_real *real)
{
	const bool gue = encapsulation == ENCAPSULATION_GUE;
	const __u32 own = outer_source_v4(probe);
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
	};
	const __u32 size = gue ? sizeof(outer) : sizeof(outer.ip);

	if (!own)
		return false;
	outer.ip.tot_len = bpf_htons(probe->l3_length + size);
	outer.ip.check = csum_ipv4(&outer.ip);
	if (gue)
		outer.udp = udp_header(probe, sum_words(&outer.ip.saddr,
							2 * sizeof(outer.ip.saddr)));
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
	};
	const __u32 size = gue ? sizeof(outer) : sizeof(outer.ip);

	if (!outer_source_v6(probe, outer.ip.saddr.in6_u.u6_addr32))
		return false;
	__builtin_memcpy(&outer.ip.daddr, real->address, sizeof(outer.ip.daddr));
	if (gue)
		outer.udp = udp_header(probe, sum_words(&outer.ip.saddr,
							2 * sizeof(outer.ip.saddr)));
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
