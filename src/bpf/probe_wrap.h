/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Writes the outer headers of a probe, the same as a client's packet gets. healthcheck.bpf.c calls
 * it last.
 */
#pragma once

#include "csum.h"
#include "made_up.h"
#include "probe.h"
#include "probe_maps.h"

#include <linux/udp.h>

#define OUTER_TTL 64
/* Bit 10 of the source port, in network order, marks probes. */
#define PROBE_PORT_BIT (1 << 10)

/* Makes room for the outer headers behind the Ethernet header; false if there is none. */
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

	/* No checksum if the packet's sum is unknown (RFC 6935). */
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

/* Writes the outer headers behind the Ethernet header. */
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

/* Wraps a probe. Without `by_gateway` the kernel resolves the neighbour and sends the packet later.
 * With it this program sends the frame, so this writes the gateway's address and, if the probe was
 * sent on another interface (`elsewhere`), the source address of the one it leaves by. */
static __always_inline bool wrap(struct __sk_buff *skb, const struct probe *probe,
				 const struct probe_real *real, bool by_gateway, bool elsewhere)
{
	const bool to_v6 = real->v6;
	const __u64 destination = to_v6 ? settings.gateway_mac_v6 : settings.gateway_mac;
	const __u64 source = settings.own_mac;
	const __be16 type = to_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);

	/* The gateway's or the own address is not known yet. */
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
