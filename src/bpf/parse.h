/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Parses an ordinary packet into the flow it belongs to: whole TCP or UDP right behind an IP header
 * without options. The walk calls it first; parse_rare.h parses everything else.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "headers.h"
#include "tunnel.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#define IPV4_PLAIN 0x45 /* first byte of IPv4 without options: version and header length */
#define TCP_FLAGS_BYTE 13
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04

/* What the walk knows of a packet. */
struct packet {
	struct flow_key flow __attribute__((aligned(8))); /* as tables key it */
	/* Its ports as ring and outer header use them, in memory order, the source port in the
	 * lower half. 0: the port does not count for the VIP. */
	__u32 hash_ports;
	__u16 l3_length; /* as in the header: IPv4 total length, IPv6 payload length */
	__u8 tos;
	bool icmp; /* an ICMP error: the flow is that of the packet it quotes */
	bool icmp_ignored_by_quic; /* one that a QUIC server ignores */
	__u8 tcp_flags; /* TCP_SYN and others as in the header; 0 if not TCP or quoted */
	__u8 tcp_options; /* bytes of TCP options, by the header's length field */
	bool unchecked; /* without a checksum; for GUE only */
};

/* The walk continues. Any other value is the frame's verdict. */
#define CONTINUE (-1)

static __always_inline __be16 hash_source(const struct packet *packet)
{
	return packet->hash_ports;
}

static __always_inline void copy_v4(__u8 *to, __be32 address)
{
	__builtin_memcpy(to, &address, sizeof(address));
}

static __always_inline void copy_v6(__u8 *to, const struct in6_addr *address)
{
	__builtin_memcpy(to, address, sizeof(*address));
}

/* The same in two loads. An IPv6 header's addresses are aligned to eight bytes if the header is,
 * which it is on machines that require alignment. */
static __always_inline void copy_v6_at_once(__u64 to[2], const struct in6_addr *address)
{
	to[0] = ((const __u64 *)address)[0];
	to[1] = ((const __u64 *)address)[1];
	/* Forces later reads from memory: the compiler must not rebuild values from these two. */
	barrier();
}

/* Whether the whole packet is there, at least to the end of a transport header of `transport`
 * bytes. `payload`: the length behind the `ip_header` bytes, by the IP header. The transport header
 * is known to be in the frame, so a difference below 0 can only mean that the payload is too
 * short. */
static __always_inline bool is_whole(const struct run *run, __u32 payload, const __u32 ip_header,
				     const __u32 transport)
{
	const __u32 in_frame = run->length - sizeof(struct ethhdr) - ip_header - transport;

	return payload - transport <= in_frame;
}

static __always_inline void read_tcp(const struct run *run, struct packet *packet,
				     const struct tcphdr *tcp)
{
	packet->tcp_flags = ((const __u8 *)tcp)[TCP_FLAGS_BYTE];
	if (rare_feature(run, FEATURE_TCP_SERVER_ID) && tcp->doff > sizeof(*tcp) / 4)
		packet->tcp_options = tcp->doff * 4 - sizeof(*tcp);
}

/* Ports are at the same place in TCP and UDP. */
static __always_inline bool parse_plain_transport(const struct run *run, struct cursor *cursor,
						  struct packet *packet, __u32 payload,
						  const __u32 ip_header)
{
	struct udphdr *ports;
	__u32 both;

	if (packet->flow.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = cursor_take(cursor, sizeof(*tcp));

		if (!tcp || !is_whole(run, payload, ip_header, sizeof(*tcp)))
			return false;
		read_tcp(run, packet, tcp);
		ports = (struct udphdr *)tcp;
	} else if (packet->flow.protocol == IPPROTO_UDP) {
		ports = cursor_take(cursor, sizeof(*ports));
		if (!ports || !is_whole(run, payload, ip_header, sizeof(*ports)))
			return false;
		if (gue_is_on(run))
			packet->unchecked = !ports->check;
		if (rare_feature(run, FEATURE_INLINE_DECAP) && run->unwrapped &&
		    ports->dest == bpf_htons(gue_port))
			return false;
	} else {
		return false;
	}
	/* Both ports in one load. */
	both = *(const __u32 *)ports;
	packet->flow.source_port = both;
	packet->flow.destination_port = both >> 16;
	return true;
}

static __always_inline void read_v4(struct packet *packet, const struct iphdr *ip)
{
	packet->l3_length = bpf_ntohs(ip->tot_len);
	packet->tos = ip->tos;
	packet->flow.family = FAMILY_V4;
	packet->flow.protocol = ip->protocol;
	copy_v4(packet->flow.source, ip->saddr);
	copy_v4(packet->flow.destination, ip->daddr);
}

static __always_inline void read_v6(struct packet *packet, const struct ipv6hdr *ip)
{
	packet->l3_length = bpf_ntohs(ip->payload_len);
	packet->tos = bpf_ntohs(*(const __be16 *)ip) >> 4;
	packet->flow.family = FAMILY_V6;
	packet->flow.protocol = ip->nexthdr;
	copy_v6_at_once((__u64 *)packet->flow.source, &ip->saddr);
	copy_v6_at_once((__u64 *)packet->flow.destination, &ip->daddr);
}

/* Parses an ordinary packet. False: it is not one. */
static __always_inline bool parse_plain_v4(const struct run *run, struct cursor *cursor,
					   struct packet *packet)
{
	struct iphdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip || *(__u8 *)ip != IPV4_PLAIN || ip->frag_off & bpf_htons(IPV4_FRAGMENT_MASK))
		return false;
	read_v4(packet, ip);
	return parse_plain_transport(run, cursor, packet, packet->l3_length - sizeof(*ip),
				     sizeof(*ip));
}

static __always_inline bool parse_plain_v6(const struct run *run, struct cursor *cursor,
					   struct packet *packet)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip || bpf_ntohs(*(const __be16 *)ip) >> 12 != 6)
		return false;
	read_v6(packet, ip);
	return parse_plain_transport(run, cursor, packet, packet->l3_length, sizeof(*ip));
}
